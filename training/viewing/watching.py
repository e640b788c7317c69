"""Controllers to watch: one member of a run at any of its checkpoints, or a task without one."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from policies import Policy
from training.checkpoint import Checkpoint, load_checkpoint
from training.controllers import addressed, best_member, checkpoint_at, filled, fitting_members
from training.divergence import Divergence
from training.errors import RunError
from training.experiment import Experiment
from training.run import RunDirectory, epoch_of
from training.task import Task
from training.tasks import TASKS, TaskOptions


@dataclass(frozen=True)
class Watched:
    """A controller of a task.

    Attributes:
        name: for people.
        options: of its task.
        checkpoints: (epoch, file) in order; none without a trained controller, whose control is then 0.
        member: which of the ensemble.
        precision: that it was trained in.
    """

    name: str
    options: TaskOptions
    checkpoints: tuple[tuple[int, Path], ...] = ()
    member: int = 0
    precision: str = "float32"

    @cached_property
    def task(self) -> Task:
        """What it does; some systems need a runtime to be built."""
        return self.options.build()

    def fill(self, policy: Policy, checkpoint: int) -> None:
        """Make a policy of one member that of a checkpoint; its parameters are 0 if untrained."""
        if self.checkpoints:
            found, path = self._at(checkpoint)
            filled(policy, found, [self.member], path)
        else:
            policy.theta.detach().zero_()

    def divergence(self, checkpoint: int) -> Divergence | None:
        """When and why it had diverged by a checkpoint, if it had."""
        return self._at(checkpoint)[0].divergences.get(self.member) if self.checkpoints else None

    def _at(self, checkpoint: int) -> tuple[Checkpoint, Path]:
        path = self.checkpoints[min(checkpoint, len(self.checkpoints) - 1)][1]
        return load_checkpoint(path), path

    def epoch(self, checkpoint: int) -> int | None:
        """The epoch of a checkpoint; None if untrained."""
        return self.checkpoints[min(checkpoint, len(self.checkpoints) - 1)][0] if self.checkpoints else None


def untrained(options: TaskOptions) -> Watched:
    """A task of these options without a controller."""
    return Watched("no control", options)


def watched(address: str) -> Watched:
    """The controller at an address: a run directory, RUN, RUN@C, RUN@clip-norm(R, 1),3 (gradient, seed), or a task.

    Without gradient or seed it is, of those that fit, the one with the lowest test loss last.

    Raises:
        RunError: no run there, or one without checkpoints, or of another version.
        SettingError: a task, gradient or seed that does not exist.
    """
    name, gradient, seed = addressed(address)
    if not Path(name).is_dir():
        if name in TASKS and gradient is None and seed is None:
            return untrained(TASKS[name]())
        raise RunError(f"Expected a run directory or a task among {', '.join(TASKS)}, got {name!r}.")
    run = RunDirectory.open(name)
    labels = Experiment.from_config(run.config).labels()
    fitting = fitting_members(labels, gradient, seed, f"after @ a controller of {run.path}")
    records = run.metrics()
    return member_of(run, best_member(fitting, records[-1]["test_loss"] if records else ()))


def member_of(run: RunDirectory, index: int) -> Watched:
    """One member of a run; RunError or SettingError as for `watched`."""
    experiment = Experiment.from_config(run.config)
    options, precision = experiment.task_options, run.runtime.precision
    checkpoint_at(run)
    run.check_settings()
    files = tuple((epoch_of(path), path) for path in run.checkpoints())
    label = experiment.labels()[index]
    return Watched(f"{label.gradient}, seed {label.seed}", options, files, index, precision)
