"""Policies from plain data, as a checkpoint keeps what was trained."""

from collections.abc import Mapping
from typing import Any

import torch

from policies.convolutional import Convolutional
from policies.linear import Linear
from policies.mlp import MLP
from policies.open_loop import OpenLoop
from policies.particles import DeepSets, Moments
from policies.policy import Policy, PolicyError
from policies.polynomial import Polynomial

CLASSES: dict[str, type[Policy]] = {
    kind.__name__: kind for kind in (MLP, Convolutional, Linear, Polynomial, Moments, DeepSets, OpenLoop)
}
"""The policies that ship, by the names that checkpoints know; each keeps the contract that tests hold it to."""


def is_ours(architecture: Mapping[str, Any]) -> bool:
    """Whether `policy_from` can build it: a class of Evenflow's that its settings describe in full."""
    return isinstance(architecture.get("class"), str) and architecture["class"] in CLASSES


def policy_from(
    architecture: Mapping[str, Any],
    members: int = 1,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> Policy:
    """A policy of an `architecture`, as another one gave it, with parameters of its own.

    Raises:
        PolicyError: a class that is not Evenflow's, whose construction only its author knows, or arguments that do not
            fit it.
    """
    if not isinstance(architecture, Mapping):
        raise PolicyError(f"Expected an architecture as a dictionary, as a policy gives it, got {architecture!r}.")
    arguments = dict(architecture)
    name = arguments.pop("class", None)
    kind = CLASSES.get(name) if isinstance(name, str) else None
    if kind is None:
        raise PolicyError(f"Expected a policy among {', '.join(CLASSES)}, got {name!r}; build it yourself.")
    try:
        return kind(**arguments, members=members, dtype=dtype, device=device)
    except (TypeError, ValueError, AttributeError, IndexError) as error:
        raise PolicyError(f"Expected an architecture of {name}, got {arguments}, which fails: {error}.") from error
