"""Checks of the sizes that users give to policies: each ends in one sentence, "Expected WANTED, got ..."."""

from collections.abc import Iterable
from numbers import Integral, Real
from typing import Any

import torch


class PolicyBaseError(Exception):
    """Base of errors of policies by themselves; where there is an engine, its errors' base stands here."""


class PolicyError(PolicyBaseError, ValueError):
    """A policy that does not fit what it is asked to control."""


def is_size(value: Any) -> bool:
    """Whether a value is a whole number of at least 1; NumPy's are, booleans are not."""
    return isinstance(value, Integral) and not isinstance(value, bool) and int(value) >= 1


def size(wanted: str, value: Any) -> int:
    """`value` as an int of at least 1."""
    if not is_size(value):
        raise PolicyError(f"Expected {wanted}, got {value}.")
    return int(value)


def sizes(wanted: str, values: Any) -> tuple[int, ...]:
    """`values` as a tuple of ints of at least 1."""
    if isinstance(values, str) or not isinstance(values, Iterable):
        raise PolicyError(f"Expected {wanted}, got {values!r}.")
    given = list(values)
    if not all(map(is_size, given)):
        raise PolicyError(f"Expected {wanted}, got {given}.")
    return tuple(int(value) for value in given)


def numbers(wanted: str, values: Any) -> tuple[float, ...]:
    """`values` as a tuple of floats."""
    given = None if isinstance(values, str) or not isinstance(values, Iterable) else list(values)
    if given is None or not all(isinstance(value, Real) for value in given):
        raise PolicyError(f"Expected {wanted}, got {values!r}.")
    return tuple(float(value) for value in given)


def floating(dtype: Any) -> Any:
    """`dtype` if torch computes with it as with real numbers, or None."""
    if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        raise PolicyError(f"Expected a dtype such as torch.float32, got {dtype!r}.")
    return dtype


def index(member: Any, members: int) -> int:
    """`member` as one of so many, from 0."""
    if not isinstance(member, Integral) or isinstance(member, bool) or not 0 <= int(member) < members:
        raise PolicyError(f"Expected a member from 0 to {members - 1}, got {member!r}.")
    return int(member)


def check_draw(member: Any, members: int, generator: Any) -> None:
    """PolicyError unless this is one of so many members, and what its parameters can be drawn from."""
    index(member, members)
    if not isinstance(generator, torch.Generator):
        raise PolicyError(f"Expected a generator such as torch.Generator().manual_seed(0), got {generator!r}.")


def check_states(states: Any, members: int, state_shape: tuple[int, ...]) -> None:
    """PolicyError unless these are states [members, samples, *state_shape]."""
    if isinstance(states, torch.fx.Proxy):
        return
    if not isinstance(states, torch.Tensor):
        raise PolicyError(f"Expected states as a torch tensor, got {type(states).__name__}.")
    found = tuple(states.shape)
    if len(found) == 2 + len(state_shape) and found[0] == members and found[2:] == state_shape:
        return
    wanted = ", ".join(map(str, (members, "samples", *state_shape)))
    hint = ""
    if found[1:] == state_shape:
        hint = "; add the axis of members, as state[None]" if members == 1 else "; add the axis of members"
    raise PolicyError(f"Expected states of shape [{wanted}], got {list(found)}{hint}.")


def places(wanted: str, values: Any) -> tuple[int, ...]:
    """`values` as a tuple of ints of at least 0."""
    given = numbers(wanted, values)
    if not all(value == int(value) and value >= 0 for value in given):
        raise PolicyError(f"Expected {wanted}, got {values!r}.")
    return tuple(int(value) for value in given)


def shape(name: str, values: Any) -> tuple[int, ...]:
    """A shape of one sample."""
    return sizes(f"a {name} of sizes of at least 1, such as (4,)", values)
