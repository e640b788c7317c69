"""What a controller sees of a state, and the derivatives of that."""

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any

import torch

from engine.checks import is_whole, several
from engine.contracts import check_tensor, unchanged
from engine.errors import AdjointError, SettingError, ShapeError
from engine.system import positive_shape

Rows = Mapping[str, torch.Tensor]


class Observation:
    """o = O(x, t, p), which the controller sees in place of the state.

    Args:
        function: `function(states, steps, parameters)` [S, B, *shape] as torch expressions of states [S, B,
            *state_shape], the times `steps` [S] and, by name, the parameters [S, B] that vary between samples; each
            sample's by itself, and differentiable as an objective is. Rollouts ask for t < T; environments and the
            critics of short horizons also for what is seen at the end, t = T.
        shape: of one sample's observation.
    """

    def __init__(self, function: Callable[[torch.Tensor, torch.Tensor, Rows], torch.Tensor], shape: Sequence[int]):
        if not callable(function):
            raise SettingError(
                f"Expected an observation as a function of (states, steps, parameters), got {function!r}."
            )
        self.function, self.shape = function, positive_shape("the shape of an observation", shape)

    def __call__(self, states: torch.Tensor, steps: torch.Tensor, parameters: Rows) -> torch.Tensor:
        """[S, B, *shape], checked."""
        seen = unchanged(self.function, "an observation", states, steps, parameters)
        check_tensor("observations", seen, (*states.shape[:2], *self.shape), states)
        return seen

    @classmethod
    def components(cls, indices: Sequence[int]) -> "Observation":
        """Some components of a state [n]."""
        chosen = [int(index) if is_whole(index) else index for index in several("components in a tuple", indices)]
        if not chosen or not all(map(is_whole, chosen)):
            raise SettingError(f"Expected components of a state by their places, such as [0, 2], got {indices!r}.")

        def seen(states: torch.Tensor, steps: torch.Tensor, parameters: Rows) -> torch.Tensor:
            return states[..., places(states.shape[-1], states.device)]

        @cache  # made at every step the places would be copied to a device every time
        def places(count: int, device: torch.device) -> torch.Tensor:
            if not all(-count <= index < count for index in chosen):
                raise ShapeError(f"Expected components below {count}, which a state has, got {chosen}.")
            with torch.inference_mode(False):  # autograd keeps it
                return torch.tensor(chosen, device=device)

        return cls(seen, (len(chosen),))

    @classmethod
    def clock(cls) -> "Observation":
        """The time alone, o = t, in steps; for open loop."""
        return cls(lambda states, steps, parameters: _time_like(states, steps), (1,))


def _time_like(states: torch.Tensor, steps: torch.Tensor) -> torch.Tensor:
    return steps.to(states.dtype).view(-1, 1, 1).expand(*states.shape[:2], 1)


def check_derivative(observe: Callable[[torch.Tensor], torch.Tensor], states: torch.Tensor) -> None:
    """Whether what is seen of `states` [1, B, ...] is each sample's own, and has a gradient where it depends on them.

    Raises:
        AdjointError: it has none, or not all of it could be had, since a sample shows in what is seen of another.
    """
    with torch.inference_mode(False), torch.enable_grad():
        seen, moved = observe(states.detach().clone().requires_grad_()), 1.25 * states.detach() + 0.1
        if not seen.requires_grad and _differ(seen, observe(moved)):
            raise AdjointError(
                "Expected an observation that torch can differentiate, got one that depends on the states but has no "
                "gradient; look for detach, no_grad, item, numpy or comparisons."
            )
        others = torch.cat([states[:, :1].detach(), moved[:, 1:]], 1)
        if _differ(seen[:, 0], observe(others)[:, 0]):
            raise AdjointError(
                "Expected an observation of each sample by itself, got one in which another sample shows; look for "
                "means, norms or reshapes over the samples' axis, the second."
            )


def _differ(one: torch.Tensor, other: torch.Tensor) -> bool:
    return not torch.allclose(one, other, rtol=1e-5, atol=1e-8, equal_nan=True)


def check_observation(observation: Any) -> None:
    """SettingError unless this is an observation, or None."""
    if observation is not None and not isinstance(observation, Observation):
        raise SettingError(f"Expected an Observation(function, shape) or None, got {observation!r}.")


def pulled_back(
    seen: torch.Tensor, leaves: Sequence[torch.Tensor], weights: torch.Tensor, again: bool = False
) -> tuple[torch.Tensor, ...]:
    """Gradients of ⟨weights, seen⟩ at the leaves, 0 where it does not depend on them."""
    if not seen.requires_grad:
        return tuple(torch.zeros_like(leaf) for leaf in leaves)
    return torch.autograd.grad(seen, leaves, weights, retain_graph=again, allow_unused=True, materialize_grads=True)
