"""One training from its configuration: what `evenflow train` runs and what a run directory can repeat."""

import itertools
import time
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import KW_ONLY, asdict, astuple, dataclass, field, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from engine import BudgetError, SettingError, current
from engine.checks import plain, whole
from engine.contracts import described
from training.checks import check_types
from training.clipping import clipping_named
from training.errors import RunError
from training.gradients import gradient_named
from training.keeping import keep, kept, writes
from training.optimisers import made_before, settings_from_file, settings_to_file
from training.ordering import sweep_order
from training.provenance import check_plugins, with_plugins
from training.ranges import as_ranges, as_texts
from training.ranks import ALONE, Ranks
from training.run import RunDirectory, RunOfOthers
from training.settings import Comparison, TrainingSettings, distinct
from training.stopping import Stopping
from training.task import Task, seed_of
from training.tasks import TaskOptions, task_options
from training.trainer import EpochRecord, Member, Trainer
from training.variant import Label, Variant

_CROSSED = ("gradients", "seeds", "learning_rates", "clippings")


@dataclass(frozen=True)
class Experiment(Comparison):
    """Every gradient × clipping × learning rate × seed on one task, trained as one ensemble.

    What is crossed and for how long is a `Comparison`'s, given by name.

    Attributes:
        task: name; options: of the task.
        seeds: the seeds themselves.
        checkpoint_every: epochs between checkpoints.
        variants: to train instead of the whole grid of them.
        milestones: epochs whose checkpoints stay; of the others only the last two do. None keeps every checkpoint.
        order: of the gradients in the ensemble; chosen where it is not given, and then kept in the run.
        randomise: ranges of physical parameters to draw with every training state, such as pole_mass=0.08:0.12.
    """

    task: str
    options: dict[str, Any] = field(default_factory=dict)
    _: KW_ONLY
    seeds: tuple[int, ...] = (0, 1, 2, 3)
    checkpoint_every: int = 10
    variants: tuple[Variant, ...] = ()
    milestones: tuple[int, ...] | None = None
    order: tuple[str, ...] = ()
    randomise: tuple[str, ...] = ()

    def __post_init__(self):
        super().__post_init__()
        variants = tuple(Variant.of(*(one if isinstance(one, tuple) else astuple(one))) for one in self.variants)
        milestones = self.milestones
        if milestones is not None:
            if not isinstance(milestones, (tuple, list)):
                raise SettingError(f"Expected milestones as a tuple of epochs, got {milestones!r}.")
            milestones = tuple(whole("milestones as epochs of at least 0", epoch, least=0) for epoch in milestones)
        if not isinstance(self.options, Mapping):
            raise SettingError(
                f"Expected options of a task as a dictionary, got {self.options!r}; write {{'poles': 2}}."
            )
        checked = {
            "options": {name: plain(value) for name, value in self.options.items()},
            "seeds": tuple(seed_of(seed, "seeds") for seed in distinct("seeds", self.seeds)),
            "checkpoint_every": whole("checkpoint every of at least 1", self.checkpoint_every),
            "variants": distinct("variants", variants) if variants else (),
            "milestones": milestones,
            "randomise": as_texts(self.randomise),
        }
        for name, value in checked.items():
            object.__setattr__(self, name, value)
        check_types(task_options(self.task), self.options, f"options of {self.task}")
        members = {variant.gradient for variant in self._variants()}
        if self.order and sorted(self.order) != sorted(members):
            raise SettingError(f"Expected an order of the gradients {', '.join(members)}, got {', '.join(self.order)}.")

    @property
    def task_options(self) -> TaskOptions:
        kind = task_options(self.task)
        return kind(**self.options)

    def labels(self) -> list[Label]:
        """What sets each member apart, in the order of the ensemble."""
        ordered = sorted(self._variants(), key=lambda variant: self._order.index(variant.gradient))
        return [Label(variant, seed) for variant in ordered for seed in self.seeds]

    @cached_property
    def _order(self) -> tuple[str, ...]:
        return tuple(self.order) or sweep_order(Counter(variant.gradient for variant in self._variants()))

    def _variants(self) -> list[Variant]:
        grid = itertools.product(self.gradients, self.clippings, self.learning_rates)
        return list(self.variants) or [Variant(*each) for each in grid]

    def members(self) -> list[Member]:
        """The members, in the order of `labels`."""
        return [
            Member(gradient_named(one.gradient).estimator, label.seed, one.learning_rate, clipping_named(one.clipping))
            for label in self.labels()
            for one in (label.variant,)
        ]

    def build_task(self, **changed: Any) -> Task:
        """The task, with options changed if asked to, and what is randomised here, if anything, in place of its own."""
        task = replace(self.task_options, **changed).build()
        return replace(task, randomise=as_ranges(self.randomise)) if self.randomise else task

    def trainer(self, ranks: Ranks = ALONE) -> Trainer:
        """A fresh trainer; needs a runtime."""
        return Trainer(self.build_task(), self.members(), self.settings, ranks=ranks)

    def to_config(self) -> dict[str, Any]:
        """Plain values that `from_config` reads back, with the runtime they were used on."""
        config = {"task": self.task, "options": {}} | asdict(self)  # in this order in the file
        config |= {"options": asdict(self.task_options), "order": self._order}
        config["settings"] = settings_to_file(config["settings"])
        config["variants"] = [list(astuple(variant)) for variant in self.variants]
        for name in (*_CROSSED, "order", "randomise"):
            config[name] = list(config[name])
        if not self.randomise:
            del config["randomise"]
        if self.milestones is not None:
            config["milestones"] = list(self.milestones)
        runtime = current()
        where = {"backend": runtime.backend, "precision": runtime.precision}
        return with_plugins({"runtime": where, **config})

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "Experiment":
        """The experiment of a run's configuration; RunError if values are missing or make no sense.

        What was called adam before Keras' form of it is adam-torch in the experiment; `made_before` says so.
        """
        check_plugins(config, "the run's config.yaml")
        try:
            values = {name: value for name, value in config.items() if name in cls.__dataclass_fields__}
            for name in _CROSSED:
                values[name] = tuple(values[name])
            with _read_from_config():
                values["variants"] = tuple(_variant(variant) for variant in values.get("variants", ()))
            for name in ("order", "randomise"):
                values[name] = tuple(values.get(name, ()))
            values["settings"] = settings_from_file(values["settings"])
            if values.get("milestones") is not None:
                values["milestones"] = tuple(values["milestones"])
            with _read_from_config():
                check_types(cls, {name: value for name, value in values.items() if name != "settings"})
                check_types(TrainingSettings, values["settings"])
                experiment = cls(**{**values, "settings": TrainingSettings(**values["settings"])})
                experiment.members()  # for the errors of their settings
            return experiment
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise RunError(f"Expected a complete configuration in config.yaml, got one that fails: {error}.") from error


class Progress(Protocol):
    """Sees every epoch as it ends; one with a method `follow` is also given the trainer before the first."""

    def __call__(self, trainer: Trainer, record: EpochRecord, /) -> object: ...


@runtime_checkable
class Follower(Protocol):
    """A progress that looks at the trainer between epochs too."""

    def follow(self, trainer: Trainer) -> None: ...


def _variant(written: Any) -> Variant:
    """A variant as files hold it: gradient, clipping, learning rate."""
    if not isinstance(written, list | tuple) or len(written) != len(fields(Variant)):
        raise SettingError(f"Expected variants as a gradient, a clipping and a learning rate each, got {written!r}.")
    return Variant(*written)


def train(
    experiment: Experiment,
    out: str | Path,
    progress: Progress | None = None,
    stopping: Stopping | None = None,
    ranks: Ranks = ALONE,
) -> Trainer:
    """Train into a new run directory.

    Ctrl-C, SIGTERM and SIGHUP end after the update under way, with a checkpoint of the last whole epoch; a second one
    interrupts at once. What `progress` raises ends the training too, with a checkpoint.

    Args:
        experiment: what to train.
        out: a new or empty directory.
        progress: called after every epoch.
        stopping: who listens to those signals, if the caller does.
        ranks: the processes that train together, each of which calls this; the first of them writes.

    Raises:
        RunError: a directory that is not empty or cannot be written, or a full disk; all complete files stay readable.
        RankError: one of the ranks is gone; there is a checkpoint.
    """
    if not isinstance(experiment, Experiment):
        raise SettingError(f"Expected an experiment such as Experiment('cart-pole'), got {described(experiment)}.")
    _check_progress(progress)
    if ranks.first:
        RunDirectory.check_new(out)
    config = experiment.to_config()
    Experiment.from_config(config)  # what could not be read again would never be gone on with
    trainer = experiment.trainer(ranks)
    trainer.agree(config)
    run = (RunDirectory if ranks.first else RunOfOthers).create(out, config)
    with run.writing():
        return _continue(run, trainer, experiment, progress, stopping, ranks)


def resume(
    path: str | Path,
    progress: Progress | None = None,
    epochs: int | None = None,
    stopping: Stopping | None = None,
    ranks: Ranks = ALONE,
) -> Trainer:
    """Continue a run from its last checkpoint to the same numbers as if it had never stopped.

    A run made before "adam" was Keras' form goes on with torch's, and a warning says so.

    Args:
        path: the run directory.
        progress, stopping, ranks: as for `train`.
        epochs: a new total, if the run is to go on longer than it was configured for; it is recorded in config.yaml.

    Raises:
        RunError: no run there, one that somebody else trains, a damaged one, or one whose config.yaml has other
            settings than its checkpoint.
        SettingError: fewer epochs than the run has.
    """
    _check_progress(progress)
    run = (RunDirectory if ranks.first else RunOfOthers).open(path)
    experiment = Experiment.from_config(run.config)
    note = made_before(run.config["settings"])
    if note is not None:
        warnings.warn(note, stacklevel=2)
    if epochs is not None:
        experiment = replace(experiment, epochs=epochs)
        check_total(run, epochs)
    if run.epoch >= experiment.epochs:
        return _restored(run, experiment, ranks)
    with run.writing():
        if RunDirectory.open(path).config != run.config:
            raise RunError(f"Expected {run.path} as it was a moment ago, got a changed config.yaml; try again.")
        trainer = _restored(run, experiment, ranks)
        trainer.agree({**experiment.to_config(), "epoch": trainer.epoch})
        run.rewind(trainer.epoch, epochs)
        return _continue(run, trainer, experiment, progress, stopping, ranks)


def _check_progress(progress: Progress | None) -> None:
    if progress is not None and not callable(progress):
        raise SettingError(f"Expected progress as a function of a trainer and a record, got {described(progress)}.")


def check_total(run: RunDirectory, epochs: int) -> None:
    """SettingError unless a run can be trained to so many epochs, since it has no more."""
    done = max(run.epoch, len(run.metrics()))
    if epochs < done:
        raise SettingError(
            f"Expected a total of at least the {done} epochs that {run.path} has, got {epochs}; give more to train on."
        )


def _restored(run: RunDirectory, experiment: Experiment, ranks: Ranks) -> Trainer:
    with _read_from_config():
        trainer = experiment.trainer(ranks)
    run.restore(trainer)
    return trainer


def _continue(
    run: RunDirectory,
    trainer: Trainer,
    experiment: Experiment,
    progress: Progress | None,
    stopping: Stopping | None,
    ranks: Ranks,
) -> Trainer:
    """Train on to the end, or to a signal; whatever ends it, there is a checkpoint."""
    total, recorded = experiment.epochs, run.metrics()
    started = time.perf_counter() - (recorded[-1]["seconds"] if recorded else 0.0)
    if isinstance(progress, Follower):
        progress.follow(trainer)
    with Stopping() if stopping is None else nullcontext(stopping) as stop, kept(run, trainer, experiment.milestones):

        def stopped() -> bool:
            found = ranks.signalled(stop.requested)
            if found is not None:  # a signal may come while the others are asked, and be told next time
                stop.requested = found
            return found is not None

        keep(run, trainer, experiment.milestones)
        while trainer.epoch < total and not stopped():
            record = trainer.try_epoch(stopped)
            if record is None:
                break
            with writes(run):
                run.append(record, time.perf_counter() - started, trainer.divergences)
            if trainer.epoch % experiment.checkpoint_every == 0 or trainer.epoch == total:
                keep(run, trainer, experiment.milestones)
            if progress is not None:
                try:
                    progress(trainer, record)
                except Exception:  # such as a pipe that nobody reads any more
                    keep(run, trainer, experiment.milestones)
                    raise
        keep(run, trainer, experiment.milestones)
        stopped()  # the others go on when all is written
    return trainer


@contextmanager
def _read_from_config() -> Iterator[None]:
    """Settings that make no sense are the file's fault where they come from one."""
    try:
        yield
    except (SettingError, BudgetError) as error:
        raise RunError(f"{str(error).removesuffix('.')} in config.yaml.") from error
