"""What follows `evenflow`, of what is trained and listed: a dataclass of options for each command, with a `run()`."""

import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, ClassVar, Generic, TypeVar

import tyro
from rich.table import Table

from engine.checks import whole
from engine.registry import Registry
from engine.systems import SYSTEMS
from training.controllers import addressed
from training.display import summary_table
from training.experiment import Experiment, Progress, check_total, resume, train
from training.export import export_controller
from training.gradients import GRADIENTS
from training.machine import Machine, console
from training.optimisers import OPTIMISERS
from training.overview import first_paragraph
from training.ranks import Ranks
from training.run import RunDirectory, resuming
from training.session import ended, shown
from training.settings import Comparison
from training.tasks import TASKS, task_name
from training.trackers import check_trackers
from training.tracking import Tracking
from training.viewing.command import View, ViewTask
from training.viewing.drawings import DRAWINGS

Options = TypeVar("Options")
_MOST_SEEDS = 10_000


@dataclass(frozen=True)
class Train(Generic[Options]):
    """Train controllers for a task: every gradient with every seed, learning rate and clipping, as one ensemble.

    Under `torchrun --nproc-per-node N -m evenflow train TASK` N processes share every batch and train as one.
    """

    options: tyro.conf.OmitArgPrefixes[Options]
    comparison: tyro.conf.OmitArgPrefixes[Comparison] = field(default_factory=Comparison)
    seed_count: Annotated[int, tyro.conf.arg(name="seeds")] = 4
    """How many seeds for each gradient; seeds are paired: same data, same initial weights."""
    first_seed: int = 0
    """The first of them; the others count up."""
    randomise: tuple[str, ...] = ()
    """Physical parameters to draw with every training state, such as pole_mass=0.08:0.12; tests have the usual ones."""
    checkpoint_every: int = 10
    """Epochs between checkpoints."""
    out: Path | None = None
    """A new directory for the run; by default runs/TASK-TIME."""
    track: tuple[str, ...] = ()
    """Trackers that draw it: tensorboard, mlflow, wandb, trackio, each in the run's directory, by extras so named."""
    machine: tyro.conf.OmitArgPrefixes[Machine] = field(default_factory=Machine)
    for_ranks: ClassVar[bool] = True

    def run(self) -> None:
        task = task_name(self.options)  # pyright: ignore[reportArgumentType]
        count = whole(f"1 to {_MOST_SEEDS} seeds", self.seed_count, most=_MOST_SEEDS)
        experiment = Experiment(
            task,
            dict(vars(self.options)),
            seeds=tuple(range(self.first_seed, self.first_seed + count)),
            checkpoint_every=self.checkpoint_every,
            randomise=self.randomise,
            **self.comparison.shared(),
        )
        check_trackers(self.track)
        ranks = self.machine.start_ranks()
        out = ranks.told(self.out or Path("runs") / f"{task}-{time.strftime('%Y%m%d-%H%M%S')}")
        with (
            shown(experiment.labels(), experiment.epochs, console) as (progress, stopping),
            _tracked(self.track, out, progress, ranks) as tracked,
        ):
            train(experiment, out, tracked, stopping, ranks)
        _conclude(out, experiment.epochs, ranks)
        ended(stopping, out, experiment.epochs)


@dataclass(frozen=True)
class Resume:
    """Train controllers for a task, or continue a run that was stopped, to the same numbers.

    `evenflow train TASK` starts a run, `evenflow train TASK --help` shows its options; tasks are listed by
    `evenflow list`.
    """

    resume: Path
    """Directory of the run to continue."""
    epochs: int | None = None
    """A new total of epochs, to go on for longer than was asked for at first."""
    threads: int | None = None
    """CPU threads; every core by default, shared by the ranks of torchrun."""
    track: tuple[str, ...] = ()
    """Trackers that follow it from now on, beside those that do already."""
    for_ranks: ClassVar[bool] = True

    def run(self) -> None:
        check_trackers(self.track)
        run = RunDirectory.open(self.resume)
        experiment = Experiment.from_config(run.config)
        epochs = experiment.epochs if self.epochs is None else replace(experiment, epochs=self.epochs).epochs
        if self.epochs is not None:
            check_total(run, epochs)
        run.check_settings()
        ranks = Machine(**run.runtime._asdict(), threads=self.threads).start_ranks()
        if run.epoch >= epochs:
            console.print(
                f"nothing to train: the run has its {run.epoch} epochs; go on with: {resuming(self.resume)} "
                "--epochs TOTAL",
                highlight=False,
                soft_wrap=True,
            )
            return _conclude(self.resume, epochs, ranks)
        with (
            shown(experiment.labels(), epochs, console) as (progress, stopping),
            _tracked(self.track, self.resume, progress, ranks) as tracked,
        ):
            resume(self.resume, tracked, self.epochs, stopping, ranks)
        _conclude(self.resume, epochs, ranks)
        ended(stopping, self.resume, epochs)


def _tracked(names: Sequence[str], path: Path, progress: Progress, ranks: Ranks) -> AbstractContextManager[Progress]:
    """A progress that trackers follow too, on the one rank that writes."""
    return Tracking(names, path, progress) if ranks.first else nullcontext(progress)


def _conclude(path: Path, epochs: int, ranks: Ranks) -> None:
    """What the first rank has to show of a run, while the others wait."""
    if ranks.first:
        _show(path, epochs)
    ranks.leave()


def _show(path: Path, epochs: int) -> None:
    """The final table and the figure of a run."""
    from training.curves import loss_figure  # matplotlib takes a while to load

    run = RunDirectory.open(path)
    experiment = Experiment.from_config(run.config)
    labels, records = experiment.labels(), run.metrics()
    if not records:
        console.print(
            f"stopped before the first epoch; continue with: {resuming(path)}", highlight=False, soft_wrap=True
        )
        return
    threshold = experiment.task_options.build().success
    console.print(summary_table(labels, records[-1]["test_loss"], threshold))
    if records[-1]["epoch"] < epochs:
        console.print(f"stopped early; continue with: {resuming(path)}", highlight=False, soft_wrap=True)
    figure = loss_figure(run, labels)
    note = "" if figure.stem == "losses" else "; losses.png is not as Evenflow wrote it, and stays"
    console.print(f"figure: {figure}{note}", highlight=False, soft_wrap=True)


@dataclass(frozen=True)
class Export:
    """Write a trained controller to a file that other programs read, with what it sees and what it is."""

    controller: tyro.conf.Positional[str]
    """RUN, or one of its controllers as RUN@C or RUN@C,3 (gradient, seed); by default that with the lowest loss."""
    out: Path
    """A new file: .onnx (with the extra `export`), .pt2 (of torch.export) or .safetensors (parameters by name)."""
    epoch: int | None = None
    """One with a checkpoint; by default the last."""

    def run(self) -> None:
        path, gradient, seed = addressed(self.controller)
        run = RunDirectory.open(path)
        Machine("cpu", run.runtime.precision).start()
        file = export_controller(run, self.out, gradient, seed, self.epoch)
        console.print(f"exported: {file}", highlight=False, soft_wrap=True)


@dataclass(frozen=True)
class List:
    """List tasks, gradients, systems and optimisers, and where each comes from."""

    def run(self) -> None:
        tasks = Table("task", "what it is", "options", "from", title="Tasks")
        for name, kind in TASKS.items():
            options = ", ".join(f"{key}={value}" for key, value in vars(kind()).items())
            tasks.add_row(name, first_paragraph(kind), options, TASKS.origin(name))
        gradients = Table("gradient", "also", "what flows back", "from", title="Gradients")
        for name, entry in GRADIENTS.items():
            gradients.add_row(entry.usage, ", ".join(entry.aliases), entry.description, GRADIENTS.origin(name))
        optimisers = Table("name", "displacement for each unit of learning rate, downhill", title="Optimisers")
        optimisers.columns[0].no_wrap = True
        for name, optimiser in OPTIMISERS.items():
            optimisers.add_row(name, optimiser.description)
        systems = _with_origins("system", SYSTEMS, list(SYSTEMS), "Systems")
        drawings = _with_origins("of", DRAWINGS, [kind.__name__ for kind, _ in DRAWINGS.values()], "Drawings")
        console.print(tasks, gradients, systems, drawings, optimisers, highlight=False)


def _with_origins(head: str, registry: Registry, shown: Sequence[str], title: str) -> Table:
    """Names of a registry by where they come from."""
    table = Table(head, "from", title=title)
    origins = [registry.origin(name) for name in registry]
    for origin in dict.fromkeys(origins):
        table.add_row(", ".join(name for name, of in zip(shown, origins, strict=True) if of == origin), origin)
    return table


PLAIN = {("train",): Resume, ("view",): View, ("export",): Export, ("list",): List}
WITH_TASK = {("train",): Train, ("view",): ViewTask}
