"""Evenflow: train controllers through differentiable physics, and choose how the gradient flows back through time.

`import evenflow as ef` for the library, `evenflow --help` for the command line.
"""

import os
import sys
import time
import warnings
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Generic, TypeVar

import tyro
from rich.console import Console
from rich.table import Table

from benchmarks.scale.settings import ScaleSettings
from engine import *  # noqa: F403
from engine import EvenflowError, RunError, init
from engine import __all__ as _engine_names
from policies import *  # noqa: F403
from policies import PolicyError
from policies import __all__ as _policies_names
from training import *  # noqa: F403
from training import GRADIENTS, OPTIMISERS, TASKS, Experiment, RunDirectory, TrainingSettings, resume, task_options
from training import __all__ as _training_names
from training import train as train_experiment
from training.display import outcome_table
from training.experiment import check_total
from training.session import ended, shown
from training.stopping import Stopped
from training.viewing import ViewSettings

__version__ = "0.1.0"
__all__ = [*_engine_names, *_policies_names, *_training_names]  # pyright: ignore[reportUnsupportedDunderAll]

_console = Console()
Options = TypeVar("Options")


@dataclass(frozen=True)
class Machine:
    """Where the engine runs."""

    backend: str = "auto"
    """auto, cpu, cuda or vulkan."""
    precision: str = "float32"
    """float32 or float64."""
    threads: int | None = None
    """CPU threads; every core by default."""

    def start(self) -> None:
        runtime = init(self.backend, self.precision, self.threads)
        note = f" ({runtime.note})" if runtime.note else ""
        _console.print(
            f"{runtime.backend}, {runtime.precision}, {runtime.threads} threads{note}", style="dim", highlight=False
        )


@dataclass(frozen=True)
class Train(Generic[Options]):
    """Train controllers for a task: every gradient with every seed, learning rate and clipping, as one ensemble."""

    options: tyro.conf.OmitArgPrefixes[Options]
    gradients: tuple[str, ...] = ("R", "C")
    """Letters or names, as `evenflow list` shows them."""
    seeds: int = 4
    """How many seeds for each gradient; seeds are paired: same data, same initial weights."""
    first_seed: int = 0
    """The first of them; the others count up."""
    epochs: int = 100
    """Passes over the training states."""
    learning_rates: tuple[float, ...] = (1e-3,)
    """Each is trained."""
    clippings: tuple[str, ...] = ("none",)
    """Each is trained: none, value or norm, at 1."""
    checkpoint_every: int = 10
    """Epochs between checkpoints."""
    out: Path | None = None
    """A new directory for the run; by default runs/TASK-TIME."""
    settings: tyro.conf.OmitArgPrefixes[TrainingSettings] = field(default_factory=TrainingSettings)
    machine: tyro.conf.OmitArgPrefixes[Machine] = field(default_factory=Machine)

    def run(self) -> None:
        task = next(name for name, kind in TASKS.items() if isinstance(self.options, kind))
        if self.seeds < 1:
            raise SettingError(f"Expected at least 1 seed, got {self.seeds}.")  # noqa: F405
        experiment = Experiment(
            task,
            dict(vars(self.options)),
            self.gradients,
            tuple(range(self.first_seed, self.first_seed + self.seeds)),
            self.learning_rates,
            self.clippings,
            self.epochs,
            self.checkpoint_every,
            settings=self.settings,
        )
        self.machine.start()
        out = self.out or Path("runs") / f"{task}-{time.strftime('%Y%m%d-%H%M%S')}"
        with shown(experiment.labels(), self.epochs, _console) as (progress, stopping):
            train_experiment(experiment, out, progress, stopping)
        _conclude(out, self.epochs)
        ended(stopping, out, self.epochs)


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
    """CPU threads; every core by default."""

    def run(self) -> None:
        run = RunDirectory.open(self.resume)
        experiment = Experiment.from_config(run.config)
        epochs = experiment.epochs if self.epochs is None else replace(experiment, epochs=self.epochs).epochs
        if self.epochs is not None:
            check_total(run, epochs)
        run.check_settings()
        started_on = run.config.get("runtime")
        if not isinstance(started_on, dict) or set(started_on) != {"backend", "precision"}:
            raise RunError(f"Expected backend and precision in {self.resume / 'config.yaml'}, got {started_on!r}.")
        Machine(**started_on, threads=self.threads).start()
        if run.epoch >= epochs:
            _console.print(
                f"nothing to train: the run has its {run.epoch} epochs; go on with: evenflow train --resume "
                f"{self.resume} --epochs TOTAL",
                highlight=False,
                soft_wrap=True,
            )
            return _conclude(self.resume, epochs)
        with shown(experiment.labels(), epochs, _console) as (progress, stopping):
            resume(self.resume, progress, self.epochs, stopping)
        _conclude(self.resume, epochs)
        ended(stopping, self.resume, epochs)


def _conclude(path: Path, epochs: int) -> None:
    """The final table and the figure of a run."""
    from benchmarks.curves import loss_figure

    run = RunDirectory.open(path)
    experiment = Experiment.from_config(run.config)
    labels, records = experiment.labels(), run.metrics()
    if not records:
        _console.print(f"stopped before the first epoch; continue with: evenflow train --resume {path}")
        return
    threshold = experiment.task_options.build().success
    _console.print(outcome_table(labels, records[-1]["test_loss"], threshold))
    if records[-1]["epoch"] < epochs:
        _console.print(f"stopped early; continue with: evenflow train --resume {path}", highlight=False, soft_wrap=True)
    figure = loss_figure(run, labels)
    note = "" if figure.stem == "losses" else "; losses.png is not as Evenflow wrote it, and stays"
    _console.print(f"figure: {figure}{note}", highlight=False, soft_wrap=True)


@dataclass(frozen=True)
class List:
    """List tasks, gradients and optimisers."""

    def run(self) -> None:
        tasks = Table("task", "what it is", "options", title="Tasks")
        for name, kind in TASKS.items():
            summary = " ".join((kind.__doc__ or "").split("\n\n")[0].split())
            tasks.add_row(name, summary, ", ".join(f"{key}={value}" for key, value in vars(kind()).items()))
        gradients = Table("letter", "name", "what flows back", title="Gradients")
        for entry in GRADIENTS:
            gradients.add_row(entry.letter, entry.name, entry.description)
        optimisers = Table("name", "displacement for each unit of learning rate, downhill", title="Optimisers")
        optimisers.columns[0].no_wrap = True
        for name, optimiser in OPTIMISERS.items():
            optimisers.add_row(name, optimiser.description)
        _console.print(tasks, gradients, optimisers, highlight=False)


@dataclass(frozen=True)
class Check:
    """Check this machine: backends that start, versions, launch costs, and a gradient check of every system."""

    def run(self) -> None:
        from benchmarks.check import check

        if not check(_console):
            raise SystemExit(1)


@dataclass(frozen=True)
class Speed:
    """Time one update, alone and in an ensemble, and say where the time goes; peers run alternately where installed."""

    task: str = "cart-pole"
    """cart-pole, guidance or quantum."""
    rounds: int = 20
    """Turns of each side, four updates long; medians are reported."""
    members: int = 40
    """Members of the ensemble."""
    out: Path | None = None
    """A file for the results as JSON; it must not exist."""

    def run(self) -> None:
        from benchmarks.speed import speed

        speed(_console, self.rounds, self.members, self.out, self.task)


@dataclass(frozen=True)
class Scale:
    """Time a step of particle systems and of its adjoint against N, and long rollouts in little memory, beside peers.

    Give the same command again to continue a study that was stopped: what was measured is not measured again.
    """

    out: Path
    """Directory of the study: a new one, or the one to continue."""
    settings: tyro.conf.OmitArgPrefixes[ScaleSettings] = field(default_factory=ScaleSettings)

    def run(self) -> None:
        from benchmarks.scale.report import scale

        for path in scale(self.settings, self.out, _console):
            _console.print(f"written: {path}", highlight=False, soft_wrap=True)


@dataclass(frozen=True)
class Variants(Generic[Options]):
    """Compare gradients on a task: every gradient × difficulty × clipping × learning rate × seed, with a report.

    Give the same command again to continue a study that was stopped.
    """

    options: tyro.conf.OmitArgPrefixes[Options]
    out: Path
    """Directory of the study: a new one, or the one to continue."""
    difficulties: tuple[float, ...] = ()
    """Values of the option that makes the task harder; by default the paper's."""
    gradients: tuple[str, ...] = ("R", "M", "S", "C")
    """Letters or names."""
    clippings: tuple[str, ...] = ("none",)
    """none, value or norm, at 1."""
    learning_rates: tuple[float, ...] = (1e-3,)
    """Where there are several, each variant's is chosen on tuning seeds that are not reported."""
    seeds: int = 10
    """Paired seeds that are reported."""
    tuning_seeds: int = 3
    """Seeds on which learning rates are chosen."""
    epochs: int = 100
    """Of every training."""
    report_only: bool = False
    """Write the report of what is done, and train nothing."""
    settings: tyro.conf.OmitArgPrefixes[TrainingSettings] = field(default_factory=TrainingSettings)
    machine: tyro.conf.OmitArgPrefixes[Machine] = field(default_factory=Machine)

    def run(self) -> None:
        from benchmarks.study import Study
        from benchmarks.variants import compare

        task = next(name for name, kind in TASKS.items() if isinstance(self.options, kind))
        self.machine.start()
        study = Study.of(
            task,
            dict(vars(self.options)),
            self.difficulties,
            gradients=self.gradients,
            clippings=self.clippings,
            learning_rates=self.learning_rates,
            seeds=self.seeds,
            tuning_seeds=self.tuning_seeds,
            epochs=self.epochs,
            settings=self.settings,
        )
        for path in compare(study, self.out, _console, train=not self.report_only):
            _console.print(f"written: {path}", highlight=False, soft_wrap=True)


@dataclass(frozen=True)
class VariantsHelp:
    """Compare gradients on a task over many seeds; `evenflow bench variants TASK --help` shows the options."""

    def run(self) -> None:
        raise SettingError(f"Expected a task among {', '.join(TASKS)} after bench variants, got none.")  # noqa: F405


@dataclass(frozen=True)
class Figures:
    """Draw the paper's Fig. 1 and Fig. 2 from this engine."""

    out: Path = Path("benchmarks/figures")
    """Directory of the figures; figures of the same name are drawn anew."""

    def run(self) -> None:
        from benchmarks.figures import draw_figures

        Machine(precision="float64", backend="cpu").start()
        for path in draw_figures(self.out):
            _console.print(f"figure: {path}", highlight=False, soft_wrap=True)


@dataclass(frozen=True)
class Outcome:
    """Draw what a run amounts to: one test start, and where each gradient's median controller takes it."""

    trained: tyro.conf.Positional[Path]
    """Directory of the run."""
    out: Path
    """The picture; it must not exist."""
    seed: int = 0
    """Of the start."""

    def run(self) -> None:
        from benchmarks.outcome import outcome_figure
        from benchmarks.report_page import precision_of

        Machine("cpu", precision_of(self.trained)).start()
        _console.print(f"figure: {outcome_figure(self.trained, self.out, self.seed)}", highlight=False, soft_wrap=True)


@dataclass(frozen=True)
class Transfer:
    """Test a run's controllers at other values of the option that makes the task harder, such as other sizes."""

    trained: tyro.conf.Positional[Path]
    """Directory of the run."""
    difficulties: tuple[float, ...]
    """Values of that option."""
    machine: tyro.conf.OmitArgPrefixes[Machine] = field(default_factory=Machine)

    def run(self) -> None:
        from benchmarks.transfer import transfer_table, transferred

        self.machine.start()
        _console.print(transfer_table(self.trained, transferred(self.trained, self.difficulties)))


def _view(controllers, settings: ViewSettings) -> None:
    from training.viewing import view

    Machine("cpu", controllers[0].precision).start()
    out = view(controllers, settings, _console)
    if out is not None:
        _console.print(f"recorded: {out}", highlight=False, soft_wrap=True)


@dataclass(frozen=True)
class View:
    """Watch a trained controller, compare two, or see how their gradients flow back.

    `evenflow view TASK` watches a task without a controller; `evenflow view TASK --help` shows its options.
    """

    run_or_task: tyro.conf.Positional[str | None] = None
    """RUN, or one of its controllers as RUN@C or RUN@C,3 (gradient, seed); by default that with the lowest loss."""
    compare: tuple[str, str] | None = None
    """Two controllers from the same start, side by side: RUN@R RUN@C."""
    settings: tyro.conf.OmitArgPrefixes[ViewSettings] = field(default_factory=ViewSettings)

    def run(self) -> None:
        from training.viewing import watched

        if (self.run_or_task is None) == (self.compare is None):
            raise SettingError(  # noqa: F405
                "Expected evenflow view RUN_OR_TASK, or evenflow view --compare RUN@R RUN@C, got "
                f"{'neither' if self.compare is None else 'both'}."
            )
        addresses = self.compare or (self.run_or_task,)
        _view([watched(address) for address in addresses if address is not None], self.settings)


@dataclass(frozen=True)
class ViewTask(Generic[Options]):
    """Watch a task without a controller."""

    options: tyro.conf.OmitArgPrefixes[Options]
    settings: tyro.conf.OmitArgPrefixes[ViewSettings] = field(default_factory=ViewSettings)

    def run(self) -> None:
        from training.viewing import untrained

        _view([untrained(self.options)], self.settings)  # pyright: ignore[reportArgumentType]


@dataclass(frozen=True)
class ReportPage:
    """Write one HTML page of a run or a study: table, curves, last frames, adjoints, configuration."""

    run_or_study: tyro.conf.Positional[Path]
    """Directory of a run, or of a study by `evenflow bench variants`."""
    out: Path | None = None
    """A new file; by default report.html in the directory, in place of an earlier one."""

    def run(self) -> None:
        from benchmarks.report_page import precision_of, write_page

        Machine("cpu", precision_of(self.run_or_study)).start()
        page = write_page(self.run_or_study, self.out)
        _console.print(f"report: {page}", highlight=False, soft_wrap=True)


_Bench = Annotated[
    Annotated[Speed, tyro.conf.subcommand("speed")]
    | Annotated[Scale, tyro.conf.subcommand("scale")]
    | Annotated[VariantsHelp, tyro.conf.subcommand("variants")]
    | Annotated[Figures, tyro.conf.subcommand("figures")]
    | Annotated[Outcome, tyro.conf.subcommand("outcome")]
    | Annotated[Transfer, tyro.conf.subcommand("transfer")],
    tyro.conf.OmitSubcommandPrefixes,
]


@dataclass(frozen=True)
class Bench:
    """Benchmarks: speed, scale, gradients over many seeds, what a run came to, and the paper's figures."""

    what: _Bench

    def run(self) -> None:
        self.what.run()


_Command = (
    Annotated[List, tyro.conf.subcommand("list")]
    | Annotated[Resume, tyro.conf.subcommand("train")]
    | Annotated[Check, tyro.conf.subcommand("check")]
    | Annotated[Bench, tyro.conf.subcommand("bench")]
    | Annotated[View, tyro.conf.subcommand("view")]
    | Annotated[ReportPage, tyro.conf.subcommand("report")]
)


_WITH_TASK = {("train",): Train, ("bench", "variants"): Variants, ("view",): ViewTask}


def _parse(arguments: Sequence[str]) -> Train | Variants | ViewTask | List | Resume | Check | Bench | View | ReportPage:
    for words, command in _WITH_TASK.items():
        task = arguments[len(words) : len(words) + 1]
        if words == ("view",) and task and task[0] not in TASKS:
            continue  # a run's directory
        if tuple(arguments[: len(words)]) == words and task and not task[0].startswith("-"):
            prog = " ".join(("evenflow", *words, *task))
            return tyro.cli(command[task_options(task[0])], prog=prog, args=arguments[len(words) + 1 :])
    return tyro.cli(
        _Command, prog="evenflow", description=__doc__, args=list(arguments), config=(tyro.conf.OmitSubcommandPrefixes,)
    )


def _say(message: Warning | str, *where: object) -> None:
    """A warning as one sentence, without the place in the code that it comes from."""
    print(f"evenflow: {message}", file=sys.stderr)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status. A user's mistake ends in one sentence on standard error."""
    warnings.showwarning = _say
    try:
        _parse(list(sys.argv[1:] if arguments is None else arguments)).run()
    except (EvenflowError, PolicyError) as error:
        print(f"evenflow: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as stop:
        with suppress(OSError):  # who ended it may have closed this too
            print(f"evenflow: {stop if isinstance(stop, Stopped) else 'stopped'}.", file=sys.stderr)
        return 128 + (stop.number if isinstance(stop, Stopped) else 2)
    except BrokenPipeError:  # the reader of a pipe has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
