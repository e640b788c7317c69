"""The critic of short horizons: what is still to be paid from an observation on, learned from windows of steps."""

from collections.abc import Mapping, Sequence

import torch

from engine import current
from policies import MLP
from training.optimisers import EnsembleOptimiser
from training.task import generator

HIDDEN = (64, 64)
LEARNING_RATE = 1e-3
# After each window, so many passes over its observations in so many mini-batches.
PASSES, PARTS = 4, 4
# λ of the targets, and how much of the network that follows stays as it was at every window.
TRACE, KEPT = 0.95, 0.2


class Critic:
    """V(o) of P members: networks [64, 64] of tanh that learn, and V' that follows them.

    After a window V is moved towards targets G by Adam on mean (V(o) - G)², and then V' ← α V' + (1 - α) V, α = 0.2.
    Mini-batches are every fourth diagonal of steps and environments, so that nothing is drawn and each holds all
    environments; each member learns by itself.

    Source: Xu et al., "Accelerated Policy Learning with Parallel Differentiable Simulation" (ICLR 2022).

    Args:
        shape: of one observation.
        seeds: of each member, for the initial weights; V' begins as V.
    """

    def __init__(self, shape: Sequence[int], seeds: Sequence[int]):
        members, runtime = len(seeds), current()
        options = {"members": members, "dtype": runtime.dtype, "device": runtime.device}
        self._learning, self._following = (MLP(shape, (1,), HIDDEN, **options) for _ in range(2))
        for index, seed in enumerate(seeds):
            self._learning.initialise(index, generator(seed, "critic"))
        theta = self._learning.theta.detach()
        self._following.theta.requires_grad_(False).copy_(theta)
        rates = torch.full((members,), LEARNING_RATE, dtype=runtime.dtype, device=runtime.device)
        self._optimiser = EnsembleOptimiser(theta, rates, "adam-torch")
        self._parts: dict[tuple[int, int], list[torch.Tensor]] = {}  # the same for all windows of one shape

    def __call__(self, observations: torch.Tensor) -> torch.Tensor:
        """V' [B] of observations [B, *shape], members one after the other."""
        return self._following(observations.unflatten(0, (self._following.members, -1))).flatten()

    def learn(self, observations: torch.Tensor, targets: torch.Tensor, counted: torch.Tensor) -> None:
        """Move V towards `targets` [h, B] at observations [h, B, *shape] where these are `counted` [h, B]; then V'."""
        members = self._learning.members
        seen, wanted, weights = (
            rows.unflatten(1, (members, -1)).transpose(0, 1).flatten(1, 2)
            for rows in (observations, targets, counted.to(targets.dtype))
        )
        shape = len(observations), observations.shape[1] // members
        if shape not in self._parts:
            self._parts[shape] = mini_batches(*shape, seen.device)
        for _ in range(PASSES):
            for rows in self._parts[shape]:
                self._optimiser.step(self._gradient(seen[:, rows], wanted[:, rows], weights[:, rows]))
        self._following.theta.data.lerp_(self._learning.theta.data, 1.0 - KEPT)

    def _gradient(self, seen: torch.Tensor, wanted: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        """The gradient [P, n] of each member's mean of weighted squares."""
        errors = weights * (self._learning(seen).squeeze(2) - wanted).square()
        means = errors.sum(1) / weights.sum(1).clamp(min=1.0)
        return torch.autograd.grad(means.sum(), self._learning.theta)[0]

    def tensors(self) -> dict[str, torch.Tensor]:
        """What it goes on from, by name, for a checkpoint."""
        networks = {"critic": self._learning.theta.detach(), "follower": self._following.theta.detach()}
        return networks | {f"critic.{name}": value for name, value in self._optimiser.tensors().items()}

    def load(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Continue from `tensors()`."""
        for name, value in self.tensors().items():
            value.copy_(tensors[name])


def mini_batches(steps: int, environments: int, device: torch.device | str = "cpu") -> list[torch.Tensor]:
    """The rows (s, b) ↦ s·`environments` + b of each mini-batch: those of one (s + b) mod 4; none is empty."""
    part_of = (torch.arange(steps, device=device)[:, None] + torch.arange(environments, device=device)) % PARTS
    rows = (torch.nonzero(part_of.flatten() == part).flatten() for part in range(PARTS))
    return [part for part in rows if len(part)]


def targets_of(
    costs: torch.Tensor, values: torch.Tensor, last: torch.Tensor, stop: torch.Tensor, discount: torch.Tensor
) -> torch.Tensor:
    """TD(λ) targets G [h, B] of the observations of a window, with λ = 0.95:

        G_s = ℓ_s + γ ((1 - λ) V'(o_{s+1}) + λ G_{s+1}),   V'(o_τ) = G_τ = v

    Args:
        costs: ℓ_s [h, B]; values: V'(o_s) [h, B].
        last: v [B], what is still to be paid at step τ; stop: τ [B] ≥ 1. From τ on targets mean nothing.
        discount: γ [B].
    """
    targets, target, value = torch.empty_like(costs), last, last
    for step in reversed(range(len(costs))):
        at_end = stop == step + 1
        target, value = torch.where(at_end, last, target), torch.where(at_end, last, value)
        target = costs[step] + discount * ((1.0 - TRACE) * value + TRACE * target)
        targets[step], value = target, values[step]
    return targets
