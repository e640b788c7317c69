"""What an ensemble's estimators are combined from: sweeps, rollouts of copies, and what they remember of updates.

Members that need one rule are swept together; score estimators roll out copies of their members' states besides, and
members of short horizons go on with environments of their own.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from engine import AdjointRule, PerSample, Rollout, SettingError, current
from engine.contracts import described
from engine.finiteness import Finiteness
from policies import Policy
from training.combinations import MaskRandom
from training.estimators import GradientEstimator, combined, is_sweep
from training.ranks import ALONE, Ranks
from training.scores import Copies, Score
from training.short_horizons import Short, Windows, by_steps
from training.task import Task, generator

_COMBINED = 2  # arrays of every sample's gradient that are made while such are combined
_SEEDS = 2**32  # of noise
_APART = 2**20  # between the seeds of starts that are told apart, where the task has noise

Inspect = Callable[[GradientEstimator, Any, Mapping[Any, torch.Tensor]], None]
"""Called with each estimator, the members that have it and the gradients that it combines, before it does."""


class Sources:
    """Gradients [P, n] of members with estimators of their own, from one rollout.

    Args:
        task: what is trained for.
        estimators, seeds: of each member.
        batch: initial states of a member.
        trained: the members' policy.
        policy: `policy(members)` builds policies like it.
        ranks: who shares the batch; what is swept and rolled out here is of this rank's samples.

    Attributes:
        rules: for each rule that is swept the smallest run of samples that holds every member who needs it.
        acting: (estimator, members) of those that act on the optimiser's step.
        windowed: indices of the members of short horizons, whose losses are those of their windows.
    """

    def __init__(
        self,
        task: Task,
        estimators: Sequence[GradientEstimator],
        seeds: Sequence[int],
        batch: int,
        trained: Policy,
        policy: Callable[[int], Policy],
        ranks: Ranks = ALONE,
    ):
        device, theta = current().device, trained.theta.detach()
        self._trained = trained
        self._ranks, self._whole, self._part = ranks, batch, ranks.part(batch, "samples of a batch")
        batch = self._part.stop - self._part.start
        spans: dict[Any, slice] = {}
        for index, estimator in enumerate(estimators):
            for source in estimator.rules:
                first = spans[source].start if source in spans else index
                spans[source] = slice(first, index + 1)
        self.rules: dict[AdjointRule, slice] = {
            source: slice(span.start * batch, span.stop * batch) for source, span in spans.items() if is_sweep(source)
        }
        self._batch, self._horizon, self._control_shape = batch, task.horizon, task.system.control_shape
        self._copies = {
            source: (span, _copies(task, policy, span.stop - span.start, source, batch))
            for source, span in spans.items()
            if not is_sweep(source) and not isinstance(source, Short)
        }
        if ranks.size > 1:
            _check_divisible(estimators)
        self._windows = [Windows(task, policy, shorts, seeds, batch) for shorts in by_steps(estimators)]
        self.windowed = {index for windows in self._windows for index in windows.members}
        self._losses = torch.zeros(len(seeds), dtype=theta.dtype, device=device)
        self._seeds = list(seeds)
        self._draws: dict[tuple[int, Any], torch.Generator] = {}
        self._named_draws: dict[str, torch.Generator] = {}
        for index, estimator in enumerate(estimators):
            scores = [source for source in estimator.rules if source in self._copies]
            # Each has its own, so that what one draws depends on no other, and all of a seed begin alike. Checkpoints
            # have one for every member, whether or not it draws.
            for place, source in enumerate((scores or [None]) if self._copies else []):
                draw = self._draws[index, source] = generator(seeds[index], "noise")
                self._named_draws[f"noise.{index}.{place}" if place else f"noise.{index}"] = draw
        self._estimators = grouped(list(estimators), device)
        self.acting = [(one, rows) for one, rows in self._estimators if hasattr(one, "adjust_step")]
        self._memories = {
            index: one.memory(len(theta[rows]), theta[rows].clone())
            for index, (one, rows) in enumerate(self._estimators)
            if hasattr(one, "memory")
        }

    def gradients(
        self,
        swept: Mapping[AdjointRule, torch.Tensor],
        initial: torch.Tensor,
        theta: torch.Tensor,
        parameters: torch.Tensor | None = None,
        draw: int = 0,
        inspect: Inspect | None = None,
    ) -> torch.Tensor:
        """The members' gradients [P, n] from those of each rule and, where they need more, from `initial` states.

        `parameters` [P·b, q] are those that the task randomises; `draw` is that of its noise.
        """
        for policy in self._policies:
            policy.take_constants(self._trained.constants())
        found = self._over_ranks({**swept, **self._scores(initial, theta, parameters, draw)}) | self._of_windows(theta)
        gradient = torch.empty_like(theta, requires_grad=False)
        for index, (estimator, rows) in enumerate(self._estimators):
            given = {source: found[source][rows] for source in estimator.rules}
            if inspect is not None:
                inspect(estimator, rows, given)
            rows_found = combined(estimator, given)
            if index in self._memories:
                rows_found = estimator.remember(rows_found, self._memories[index])  # type: ignore[attr-defined]
            gradient[rows] = rows_found
        return gradient

    def losses(self, found: torch.Tensor | None) -> torch.Tensor:
        """Each member's loss [P]: the mean of its own of `found` [P·b], or what its last windows had."""
        if found is None:
            return self._losses.clone()
        (whole,) = self._ranks.mean(self._whole, found.view(len(self._losses), -1).mean(1))
        if self.windowed:
            windowed = sorted(self.windowed)
            whole[windowed] = self._losses[windowed]
        return whole

    @property
    def planned_bytes(self) -> int:
        """Bytes of the rollouts of copies and windows."""
        return sum(one.plan.predicted for one in self._rollouts)

    @property
    def _policies(self) -> list[Policy]:
        """Those of copies and windows, which compute as the one that is trained does."""
        return [copies.policy for _, copies in self._copies.values()] + [windows.policy for windows in self._windows]

    @property
    def _rollouts(self) -> list[Rollout]:
        of_copies = [copies.rollout for _, copies in self._copies.values()]
        return of_copies + [windows.rollout for windows in self._windows]

    def ask_by(self, finite: Finiteness) -> None:
        """Have the rollouts of copies and windows ask as another does, so that their questions are put off with its."""
        for rollout in self._rollouts:
            rollout.finite = finite

    def tensors(self) -> dict[str, torch.Tensor]:
        """What goes on from update to update, by name, for a checkpoint."""
        draws = {name: draw.get_state() for name, draw in self._named_draws.items()}
        memories = {
            f"memory.{index}.{name}": value
            for index, memory in self._memories.items()
            for name, value in memory.items()
        }
        of_windows = {name: value for windows in self._windows for name, value in windows.tensors().items()}
        return draws | memories | of_windows

    def load(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Continue from `tensors()`."""
        for name, draw in self._named_draws.items():
            draw.set_state(tensors[name].cpu())
        for index, memory in self._memories.items():
            for name, value in memory.items():
                value.copy_(tensors[f"memory.{index}.{name}"])
        for windows in self._windows:
            windows.load(tensors)

    def _over_ranks(self, found: dict[Any, torch.Tensor]) -> dict[Any, torch.Tensor]:
        """The gradients of each source, of whole batches, or of each of their samples, from those of own samples."""
        means = [source for source in found if not isinstance(source, PerSample)]
        whole = self._ranks.mean(self._whole, *(found[source] for source in means)) if means else []
        samples = {
            source: self._ranks.gathered(self._whole, rows)
            for source, rows in found.items()
            if isinstance(source, PerSample)
        }
        return samples | dict(zip(means, whole, strict=True))

    def _of_windows(self, theta: torch.Tensor) -> dict[Any, torch.Tensor]:
        """The gradient [P, n] of every short horizon that is wanted, whose environments go on."""
        found: dict[Any, torch.Tensor] = {}
        for windows in self._windows:
            self._losses[windows.members], gradients = windows.gradients(theta[windows.members])
            for short, rows in gradients.items():
                found[short] = torch.zeros_like(theta, requires_grad=False)
                found[short][windows.members] = rows
        return found

    def _scores(
        self, initial: torch.Tensor, theta: torch.Tensor, parameters: torch.Tensor | None, draw: int
    ) -> dict[Any, torch.Tensor]:
        """z of every score that is wanted, [P, n] or [P, b, n]; 0 for members who do not want it."""
        found = {}
        for source, (span, copies) in self._copies.items():
            rows = theta[span]
            each = copies.policy.members // len(rows)  # 1, or the starts of a member, each of them a member there
            copies.policy.theta.data.copy_(rows.repeat_interleave(each, 0))
            starts, first = range(1), self._part.start
            if isinstance(source, PerSample):
                starts, first = range(self._part.start, self._part.stop), 0
            seeds = [(seed + _APART * k) % _SEEDS for seed in self._seeds[span] for k in starts]
            copies.rollout.seed_noise(seeds, draw, first, copies.rows)
            part = slice(span.start * self._batch, span.stop * self._batch)
            given = None if parameters is None else parameters[part]
            drawn = copies.gradients(initial[part], self._noise(source, span, copies, theta), given)
            shape = (len(rows), each) if isinstance(source, PerSample) else (len(rows),)
            found[source] = torch.zeros(len(theta), *shape[1:], theta.shape[1], dtype=theta.dtype, device=theta.device)
            found[source][span] = drawn.view(*shape, -1)
        return found

    def _noise(self, source: Any, span: slice, copies: Copies, like: torch.Tensor) -> torch.Tensor:
        """w of the first of each pair, 0 for members who do not want it: one seed draws alike for every estimator."""
        shape = (self._whole, copies.score.copies // 2, self._horizon, *self._control_shape)
        drawn = torch.zeros(span.stop - span.start, *shape, dtype=torch.float64)
        for index, rows in enumerate(drawn, span.start):
            if (index, source) in self._draws:
                torch.randn(shape, generator=self._draws[index, source], out=rows)
        # Otherwise the host would wait until the device has done all that it was given before, and not for the copy
        # alone.
        return drawn[:, self._part].flatten(0, 1).to(like.dtype).to(like.device, non_blocking=True)


def bytes_of_samples(estimators: Sequence[GradientEstimator], policy: Policy, each: int) -> int:
    """Bytes that gradients of single samples take, of every rule whose are wanted and of what they are combined by."""
    wanted = {one for estimator in estimators for one in estimator.rules if isinstance(one, PerSample)}
    if not wanted:
        return 0
    sweeps, theta = sum(map(is_sweep, wanted)), policy.theta
    return (sweeps + _COMBINED) * each * theta.numel() * theta.element_size()


def passes(estimator: GradientEstimator) -> int:
    """How many times an update steps a batch through its horizon: forward, back for each sweep, and all copies both.

    The windows of a short horizon are as many steps as the whole horizon of a batch, but for rounding.
    """
    copies = [_score(source).copies + 1 for source in estimator.rules if isinstance(_score(source), Score)]
    return 1 + len(estimator.rules) - len(copies) + 2 * sum(copies)


def _copies(task: Task, policy: Callable[[int], Policy], members: int, source: Any, batch: int) -> Copies:
    """Copies of so many members' starts; where starts are told apart, each is a member of its own."""
    if isinstance(source, PerSample):
        return Copies(task, policy(members * batch), _score(source), 1)
    return Copies(task, policy(members), source, batch)


def _check_divisible(estimators: Sequence[Any]) -> None:
    """SettingError for estimators that would not give on several ranks what they give in one process."""
    for estimator in estimators:
        why = _UNDIVIDED.get(type(estimator))
        if why is not None:
            raise SettingError(
                f"Expected gradients that several ranks can share, got {described(estimator)}, {why}; train it without "
                "torchrun."
            )
        _check_divisible([value for value in getattr(estimator, "__dict__", {}).values() if hasattr(value, "combine")])


_UNDIVIDED: dict[type, str] = {
    Short: "whose environments and critic go on in one process",
    MaskRandom: "which draws from the last bits of a gradient",
}


def _score(source: Any) -> Any:
    return source.of if isinstance(source, PerSample) else source


def grouped(values: list, device: torch.device) -> list[tuple]:
    """Equal values with the indices at which they stand; a slice where those are consecutive, to avoid copies."""
    groups: dict = {}
    for index, value in enumerate(values):
        groups.setdefault(value, []).append(index)
    result = []
    for value, rows in groups.items():
        consecutive = rows == list(range(rows[0], rows[-1] + 1))
        chosen = slice(rows[0], rows[-1] + 1) if consecutive else torch.tensor(rows, device=device)
        result.append((value, chosen))
    return result
