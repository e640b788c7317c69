"""Initial weights of a torch module, drawn anew from a seed: what each member of an ensemble begins with."""

import copy
import inspect
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import nn

from policies.checks import PolicyError


def redrawn(module: nn.Module, seed: int) -> dict[str, torch.Tensor]:
    """Its parameters by name after every part's `reset_parameters`; frozen ones stay as they are.

    Drawn in float64 on the CPU, so that precisions agree.

    Raises:
        PolicyError: a parameter that is trained and that no part draws.
    """
    remedy = "or give a function that builds the module: ModulePolicy(build, ...)"
    try:
        fresh = copy.deepcopy(module).to(device="cpu", dtype=torch.float64)
    except Exception as error:
        said = next(iter(str(error).strip().splitlines()), "").split(". ")[0].rstrip(".")
        raise PolicyError(
            f"Expected a module of which every member draws a copy, got {type(module).__name__}, which cannot be "
            f"copied ({said}); train one member, {remedy}."
        ) from error
    kept = {name: value.detach().clone() for name, value in fresh.named_parameters() if not value.requires_grad}
    with _seeded(seed), torch.no_grad():
        for name, parameter in fresh.named_parameters():
            if name not in kept:
                parameter.fill_(torch.nan)
        for part in fresh.modules():
            reset = getattr(part, "reset_parameters", None)
            if callable(reset):
                reset()
    drawn = {name: value.detach() for name, value in fresh.named_parameters()} | kept
    missing = [name for name, value in drawn.items() if name not in kept and value.isnan().any()]
    if missing:
        raise PolicyError(
            f"Expected parts whose reset_parameters() draws all that is trained, so that each member has its own, got "
            f"{', '.join(missing)} left as before; write it there, {remedy}."
        )
    return drawn


def built(build: Callable[[], nn.Module], seed: int | None = None) -> nn.Module:
    """What `build` returns, leaving every random generator as it was."""
    if not callable(build):
        raise PolicyError(f"Expected a torch module, or a function that builds one, got a {type(build).__name__}.")
    try:
        inspect.signature(build).bind()
    except TypeError:
        raise PolicyError(
            f"Expected a function that builds a torch module from nothing, got {build!r}, which takes arguments; wrap "
            "it as lambda: module(...)."
        ) from None
    except ValueError:  # of what is not written in Python nobody knows
        pass
    with _seeded(seed):
        module = build()
    if not isinstance(module, nn.Module):
        raise PolicyError(f"Expected a torch module from the function that builds it, got {type(module).__name__}.")
    return module


def check_same_buffers(module: nn.Module, other: nn.Module) -> None:
    """PolicyError if two that were built differ in a buffer, which members share."""
    ours, theirs = dict(module.named_buffers()), dict(other.named_buffers())
    for name in ours.keys() | theirs.keys():
        one, two = ours.get(name), theirs.get(name)
        if one is None or two is None or not torch.equal(one.cpu(), two.to(one.dtype).cpu()):
            raise PolicyError(
                f"Expected modules that differ in parameters alone, got another buffer {name!r} each time one is "
                "built; make it a parameter with requires_grad=False."
            )


@contextmanager
def _seeded(seed: int | None) -> Iterator[None]:
    """Random generators begin at `seed` inside, and go on afterwards as if nothing had been drawn."""
    python, arrays = random.getstate(), np.random.get_state()  # noqa: NPY002
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else []
    try:
        with torch.random.fork_rng(devices):
            if seed is not None:
                torch.manual_seed(seed)
                random.seed(seed)
                np.random.seed(seed % 2**32)  # noqa: NPY002
            yield
    finally:
        random.setstate(python)
        np.random.set_state(arrays)  # noqa: NPY002
