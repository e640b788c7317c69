"""What policies compute with besides their parameters, such as buffers of a module, among the tensors of a trainer."""

from collections.abc import Mapping

import torch

from policies import Policy

_PREFIX = "constant."


def as_tensors(policy: Policy) -> dict[str, torch.Tensor]:
    """Its constants by the names that a checkpoint keeps them under."""
    return {f"{_PREFIX}{name}": value.detach() for name, value in policy.constants().items()}


def from_tensors(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Those among a trainer's tensors, by the names that a policy has for them."""
    return {name.removeprefix(_PREFIX): value for name, value in tensors.items() if name.startswith(_PREFIX)}
