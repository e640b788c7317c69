"""The trainer: many controllers of one task at once, each with its own seed, gradient and learning rate."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch

from engine import OneProcess, Rollout, RolloutTape, SettingError, current
from engine.checks import positive, real, whole
from engine.contracts import described
from engine.memory import format_bytes, parse_bytes
from engine.modes import plain_torch
from engine.norms import wide_norm
from policies import Policy, PolicyError
from training import constants
from training.clipping import Clipping, check_clipping
from training.divergence import Divergence, Doubts, cause_of, place_of, within
from training.estimators import Backpropagation, GradientEstimator, check_estimator
from training.evaluation import Evaluation
from training.measures import EpochRecord, Measures
from training.optimisers import EnsembleOptimiser
from training.ranks import ALONE, Ranks
from training.settings import TrainingSettings
from training.sources import Sources, bytes_of_samples, grouped
from training.starts import built, check_starts_fit, show_typical, starts_of
from training.task import PolicyFactory, Task, generator, seed_of


@dataclass(frozen=True)
class Member:
    """One controller of an ensemble. Members with one seed share data and initial weights, whatever else differs."""

    estimator: GradientEstimator = field(default_factory=Backpropagation)
    seed: int = 0
    learning_rate: float = 1e-3
    clipping: Clipping = field(default_factory=Clipping)

    def __post_init__(self):
        check_estimator(self.estimator)
        rate = real("a learning rate above 0", self.learning_rate)
        if math.isinf(rate):
            raise SettingError(f"Expected learning rates that are finite, got {rate}.")
        object.__setattr__(self, "learning_rate", positive("a learning rate above 0", rate))
        object.__setattr__(self, "seed", seed_of(self.seed))
        check_clipping(self.clipping)


# Of noise: no update comes so far.
_TEST_DRAW, _VALIDATION_DRAW = 2**32 - 1, 2**32 - 2


class Trainer(OneProcess):
    """Trains P members of one task as one ensemble: one rollout, a sweep for each adjoint rule that is needed.

    Args:
        task: what is trained for.
        members: the controllers; those that need a rule are swept together, so list equal estimators side by side.
        settings: shared by all.
        policy: builds the policy; by default the task's.
        ranks: the processes that share every batch; each calls what is called here, with whole batches.

    Attributes:
        policy: the ensemble's policy; `policy.theta` [P, n].
        epoch: epochs completed.
        updates: made in the epoch under way.
        divergences: members frozen so far, by index. A frozen member keeps its last finite parameters.
    """

    @plain_torch
    def __init__(
        self,
        task: Task,
        members: Sequence[Member],
        settings: TrainingSettings | None = None,
        policy: PolicyFactory | None = None,
        ranks: Ranks = ALONE,
    ):
        _check(task, members, settings)
        self.task, self.members, self._ranks = task, list(members), ranks
        self.settings = settings = settings or TrainingSettings()
        runtime = current()
        samples = settings.train_samples + settings.test_samples + settings.validation_samples
        check_starts_fit(task, len(self.members), samples)
        count, batch = len(self.members), settings.batch_size
        self._part = own = ranks.part(batch, "samples of a batch")
        self.policy: Policy = built(policy or task.policy, count)
        for index, member in enumerate(self.members):
            self.policy.initialise(index, generator(member.seed, "policy"))
        self._seeds = seeds = [member.seed for member in self.members]
        self._train, self._train_parameters = starts_of(task, seeds, "train", settings.train_samples)
        show_typical(task.system, self._train.flatten(0, 1))
        estimators, each = [member.estimator for member in self.members], own.stop - own.start
        self.rollout = Rollout(
            task.system, self.policy, task.horizon, count * each, memory=settings.memory,
            reserved=bytes_of_samples(estimators, self.policy, each), **task.parts
        )  # fmt: skip
        self._judged = partial(Evaluation, task, self.policy, seeds, ranks=ranks)
        self._tests = self._judged("test", settings.test_samples, _TEST_DRAW)
        self.evaluation, validated = self._tests.trajectory, settings.validation_samples
        self._validation = self._judged("validation", validated, _VALIDATION_DRAW) if validated else None
        self._frozen()
        rates = torch.tensor([member.learning_rate for member in self.members], dtype=runtime.dtype)
        self._optimiser = EnsembleOptimiser(
            self.policy.theta.detach(), rates.to(runtime.device), settings.optimiser, settings.momentum
        )
        self._active = torch.ones(count, dtype=torch.bool, device=runtime.device)
        self._orders = [generator(member.seed, "order") for member in self.members]
        self._sources = Sources(
            task, estimators, seeds, batch, self.policy,
            partial(built, policy or task.policy), ranks,
        )  # fmt: skip
        self._sources.ask_by(self.rollout.finite)
        self._check_copies()
        self._clippings = grouped([member.clipping for member in self.members], runtime.device)
        self._measures = Measures(self.members, runtime.device, batch, ranks)
        self._doubts = Doubts(task.system)
        self.epoch = self.updates = 0
        self.divergences: dict[int, Divergence] = {}

    def _check_copies(self) -> None:
        """SettingError if copies of scores and windows, which store everything, do not fit a budget by themselves."""
        budget, needed = self.settings.memory, self._sources.planned_bytes
        if budget is not None and needed > parse_bytes(budget):
            raise SettingError(
                f"Expected a memory budget of more than the {format_bytes(needed)} of the scores' copies or windows, "
                f"which store everything, got {budget}; raise memory, or lower the copies, the batch or the members."
            )

    @property
    def updates_per_epoch(self) -> int:
        return self.settings.train_samples // self.settings.batch_size

    def fit(self, epochs: int) -> Iterator[EpochRecord]:
        """Train until `epochs` epochs are complete, yielding a record after each."""
        return self._fit(whole("at least 1 epoch", epochs))

    def _fit(self, epochs: int) -> Iterator[EpochRecord]:
        while self.epoch < epochs:
            yield self.run_epoch()

    def run_epoch(self) -> EpochRecord:
        """One pass over the training states in order (or shuffled), then a test."""
        record = self.try_epoch(lambda: False)
        assert record is not None
        return record

    def try_epoch(self, stop: Callable[[], bool]) -> EpochRecord | None:
        """`run_epoch`, unless `stop()` is true before one of its updates: then None, and all is as before the epoch."""
        before = {name: value.clone() for name, value in self.state().items()}
        restore = partial(self.load, self.epoch, before, dict(self.divergences))
        try:
            return self._tried(stop, restore)
        except BaseException:
            restore()
            raise

    def agree(self, facts: Mapping[str, Any]) -> None:
        """SettingError unless all ranks have these facts, and the same data, parameters and what else goes on."""
        self._ranks.agree(facts, self._train, *self.state().values())

    def _tried(self, stop: Callable[[], bool], restore: Callable[[], None]) -> EpochRecord | None:
        # What is not finite may be a frozen member's from now on, or another rank's alone: then every update asks.
        if self.divergences or self._ranks.size > 1:
            total = self._losses_of_epoch(stop)
        else:
            total, sound = self.rollout.finite.unasked(lambda: self._losses_of_epoch(stop))
            if not sound:
                restore()
                total = self._losses_of_epoch(stop)
        if total is None:
            restore()
            return None
        measured = self._measures.found(self._active, self.updates_per_epoch)
        train = torch.where(self._active, total / self.updates_per_epoch, torch.nan)
        test = torch.where(self._active, self.test().to(torch.float64), torch.nan)
        for rollouts in (self.rollout, self.evaluation):  # each with the states that it has in memory
            self._doubts.tell(rollouts.states)
        validation = None
        if self._validation is not None:
            losses = self._validation.losses().to(torch.float64)
            validation = torch.where(self._active, losses, torch.nan).tolist()
        self.epoch, self.updates = self.epoch + 1, 0
        return EpochRecord(self.epoch, train.tolist(), test.tolist(), validation, **measured)

    def _losses_of_epoch(self, stop: Callable[[], bool]) -> torch.Tensor | None:
        """The sum [P] of the losses of an epoch's updates, made now; None if `stop()` was true before one of them."""
        total = torch.zeros(len(self.members), dtype=torch.float64, device=self._train.device)
        self.updates = 0
        with self._measures.epoch():
            for update, (states, parameters) in enumerate(self.batches()):
                if stop():
                    return None
                total += self.update(states, parameters, update)
                self.rollout.finite.piece_done()
        return total

    @plain_torch
    def update(self, initial: torch.Tensor, parameters: torch.Tensor | None = None, update: int = 0) -> torch.Tensor:
        """One optimiser step from initial states [P·b, *state_shape]; returns each member's loss [P] before it.

        `parameters` [P·b, q] are those that the task randomises, as they come with the states from `batches`; `update`
        is its place in the epoch, for the record of what diverged.
        """
        losses, gradient = self.gradient(initial, parameters)
        # Norms tell at a fraction of the cost: where one is finite, so are the numbers and their squares.
        norms = torch.linalg.vector_norm(gradient, 2, 1)
        if not self.rollout.finite(losses, norms):
            norms = wide_norm(gradient)
            good = torch.isfinite(losses) & within(gradient, self._optimiser.largest())
            if not bool((good | ~self._active).all()):
                self._freeze(~good & self._active, update, losses, gradient)
        self._measures.clipped(norms)
        self._step(gradient)
        self.updates += 1
        return losses

    def _step(self, gradient: torch.Tensor) -> None:
        """Let the optimiser move the parameters, wherever they are by now, but for those with requires_grad=False."""
        theta, frozen = self.policy.theta.detach(), self._frozen()
        self._optimiser.theta = theta
        held = None if frozen is None else theta[:, frozen]
        self._optimiser.step(gradient, self._adjust if self._sources.acting else None)
        if frozen is not None and held is not None:
            theta[:, frozen] = held

    def _adjust(self, displacement: torch.Tensor, gradient: torch.Tensor) -> None:
        """Let the estimators that act on the optimiser's step do so."""
        for estimator, rows in self._sources.acting:
            displacement[rows] = estimator.adjust_step(displacement[rows], gradient[rows])

    def _frozen(self) -> torch.Tensor | None:
        """`Policy.frozen`; PolicyError if nothing is left to train."""
        frozen = self.policy.frozen()
        if frozen is not None and bool(frozen.all()):
            raise PolicyError(
                "Expected parameters to train, got a policy whose parameters all have requires_grad=False; call "
                "requires_grad_() on what is to be trained."
            )
        return frozen

    @plain_torch
    def gradient(
        self, initial: torch.Tensor, parameters: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Losses [P] and the members' estimated, clipped gradients [P, n] from initial states [P·b, ...]."""
        draw, ranks, count = self.epoch * self.updates_per_epoch + self.updates, self._ranks, len(self.members)
        if self.task.noise is not None:
            self.rollout.seed_noise(self._seeds, draw, self._part.start)
        initial = ranks.own(initial, count)
        parameters = None if parameters is None else ranks.own(parameters, count)
        rules = self._sources.rules
        if rules:
            with RolloutTape(*rules, samples=rules) as tape:
                self.rollout(initial, self.task.objective, parameters)
            result = tape.gradients(self.rollout)
            losses, swept = result.losses, result.parameters
            self._measures.adjoints(result.initial)
        else:
            losses, swept = None, {}
            if len(self._sources.windowed) < len(self.members):
                losses = self.rollout.forward(initial, self.task.objective, parameters)
        theta, inspect = self.policy.theta.detach(), self._measures.signs
        gradient = self._sources.gradients(swept, initial, theta, parameters, draw, inspect)
        frozen = self._frozen()
        if frozen is not None:
            gradient.masked_fill_(frozen, 0.0)
        self._measures.gradient(gradient)
        for clipping, rows in self._clippings:
            if clipping.kind != "none":
                gradient[rows] = clipping(gradient[rows])
        return self._sources.losses(losses), gradient

    @property
    def planned_bytes(self) -> int:
        """Bytes of all buffers of its training rollouts."""
        return self.rollout.plan.predicted + self._sources.planned_bytes

    def test(self, **parameters: float) -> torch.Tensor:
        """Mean loss [P] on the test states; with physical parameters of the task at other values than usual, if given.

        Raises:
            SettingError: a parameter that the task does not have, or cannot have at this value.
        """
        if not parameters:
            return self._tests.losses()
        return self._judged("test", self.settings.test_samples, _TEST_DRAW, parameters).losses()

    def state(self) -> dict[str, torch.Tensor]:
        """Everything that training continues from, by name."""
        tensors = {"theta": self.policy.theta.detach(), "active": self._active}
        tensors |= {f"optimiser.{name}": value for name, value in self._optimiser.tensors().items()}
        tensors |= self._sources.tensors() | constants.as_tensors(self.policy)
        return tensors | {f"order.{index}": order.get_state() for index, order in enumerate(self._orders)}

    def load(self, epoch: int, tensors: dict[str, torch.Tensor], divergences: dict[int, Divergence]) -> None:
        """Continue from `state()` after `epoch` epochs."""
        for index, order in enumerate(self._orders):
            order.set_state(tensors[f"order.{index}"].cpu())
        self.epoch, self.updates, self.divergences = epoch, 0, dict(divergences)
        self.rollout.turn = epoch * self.updates_per_epoch
        with torch.no_grad():
            self.policy.theta.copy_(tensors["theta"])
        self.policy.take_constants(constants.from_tensors(tensors))
        self._active.copy_(tensors["active"])
        self._optimiser.only(self._active)
        self._sources.load(tensors)
        prefix = "optimiser."
        self._optimiser.load({name[len(prefix) :]: value for name, value in tensors.items() if name.startswith(prefix)})

    def batches(self) -> Iterator[tuple[torch.Tensor, torch.Tensor | None]]:
        """An epoch's mini-batches, as `update(*batch)` and `gradient(*batch)` take them.

        Each is initial states [P·b, *state_shape] and what the task randomises with them [P·b, q], or None; shuffled
        ones advance the members' random generators.
        """
        arrays = [self._train] if self._train_parameters is None else [self._train, self._train_parameters]
        size = self.settings.batch_size
        if self.settings.shuffle:
            orders = [torch.randperm(self._train.shape[1], generator=order) for order in self._orders]
            arrays = [torch.stack([rows[order] for rows, order in zip(array, orders, strict=True)]) for array in arrays]
        for first in range(0, self.updates_per_epoch * size, size):
            states, *parameters = (array[:, first : first + size].flatten(0, 1).contiguous() for array in arrays)
            yield states, parameters[0] if parameters else None

    def _freeze(self, bad: torch.Tensor, update: int, losses: torch.Tensor, gradient: torch.Tensor) -> None:
        for member in bad.nonzero().flatten().tolist():
            at = None if member in self._sources.windowed else place_of(self.rollout, member, self._part, self._ranks)
            cause = cause_of(at, losses[member], gradient[member], self.settings)
            self.divergences[member] = Divergence(member, self.epoch + 1, update + 1, cause)
        self._active &= ~bad
        self._optimiser.only(self._active)


def _check(task: Any, members: Any, settings: Any) -> None:
    if not isinstance(task, Task):
        hint = f"; write build_task({task!r})" if isinstance(task, str) else ""
        raise SettingError(f"Expected a task, got {described(task)}{hint}.")
    if isinstance(members, Member):
        raise SettingError("Expected a list of members, got one Member; write [Member(...)].")
    wrong = [member for member in members if not isinstance(member, Member)] if isinstance(members, Sequence) else None
    if wrong is None or wrong:
        came = described(members) if not wrong else f"one with {described(wrong[0])}"
        raise SettingError(f"Expected a list of members such as [Member()], got {came}.")
    if not members:
        raise SettingError("Expected at least one member to train, got none.")
    if settings is not None and not isinstance(settings, TrainingSettings):
        raise SettingError(f"Expected settings as TrainingSettings(...), got {described(settings)}.")
