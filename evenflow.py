"""Evenflow: train controllers through differentiable physics, and choose how the gradient flows back through time.

`import evenflow as ef` for the library, `evenflow --help` for the command line.
"""

import io
import os
import sys
import time
import warnings
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Generic, NoReturn, TypeVar

try:
    import engine  # noqa: F401
except ImportError as missing:  # what Taichi lacks on this machine, told to whoever typed a command
    if __name__ == "__main__" or Path(sys.argv[0]).stem == "evenflow":
        sys.exit(str(missing))
    raise

import tyro
from rich.table import Table

from benchmarks.commands import COMMANDS as BENCHMARKS
from benchmarks.commands import Variants
from engine import *  # noqa: F403
from engine import EvenflowError, RunError, SettingError
from engine import __all__ as _engine_names
from engine.checks import perhaps
from policies import *  # noqa: F403
from policies import PolicyError
from policies import __all__ as _policies_names
from training import *  # noqa: F403
from training import GRADIENTS, OPTIMISERS, TASKS, Experiment, RunDirectory, TrainingSettings, resume
from training import __all__ as _training_names
from training import train as train_experiment
from training.arguments import HELP, check, options_of, read
from training.display import outcome_table
from training.experiment import check_total
from training.machine import Machine
from training.machine import console as _console
from training.overview import print_overview, summary, task_summaries
from training.session import ended, shown
from training.stopping import Stopped
from training.tasks import task_name
from training.viewing.command import View, ViewTask

__version__ = "0.1.0"
__all__ = [*_engine_names, *_policies_names, *_training_names]  # pyright: ignore[reportUnsupportedDunderAll]

Options = TypeVar("Options")
_MOST_SEEDS = 10_000


@dataclass(frozen=True)
class Train(Generic[Options]):
    """Train controllers for a task: every gradient with every seed, learning rate and clipping, as one ensemble."""

    options: tyro.conf.OmitArgPrefixes[Options]
    gradients: tuple[str, ...] = ("R", "C")
    """As `evenflow list` shows them, such as C or "clip-norm(R, 1)"."""
    seeds: int = 4
    """How many seeds for each gradient; seeds are paired: same data, same initial weights."""
    first_seed: int = 0
    """The first of them; the others count up."""
    epochs: int = 100
    """Passes over the training states."""
    learning_rates: tuple[float, ...] = (1e-3,)
    """Each is trained."""
    clippings: tuple[str, ...] = ("none",)
    """Each is trained: none, or norm or value, at 1 or at a limit, as "norm(0.5)"."""
    checkpoint_every: int = 10
    """Epochs between checkpoints."""
    out: Path | None = None
    """A new directory for the run; by default runs/TASK-TIME."""
    settings: tyro.conf.OmitArgPrefixes[TrainingSettings] = field(default_factory=TrainingSettings)
    machine: tyro.conf.OmitArgPrefixes[Machine] = field(default_factory=Machine)

    def run(self) -> None:
        task = task_name(self.options)
        if not 1 <= self.seeds <= _MOST_SEEDS:
            raise SettingError(f"Expected 1 to {_MOST_SEEDS} seeds, got {self.seeds}.")
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
    from benchmarks.studies.curves import loss_figure

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
            tasks.add_row(name, summary(kind), ", ".join(f"{key}={value}" for key, value in vars(kind()).items()))
        gradients = Table("gradient", "also", "what flows back", "from", title="Gradients")
        for name, entry in GRADIENTS.items():
            gradients.add_row(entry.usage, ", ".join(entry.aliases), entry.description, GRADIENTS.origin(name))
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
class ReportPage:
    """Write one HTML page of a run or a study: table, curves, last frames, adjoints, configuration."""

    run_or_study: tyro.conf.Positional[Path]
    """Directory of a run, or of a study by `evenflow bench variants`."""
    out: Path | None = None
    """A new file; by default report.html in the directory, in place of an earlier one."""

    def run(self) -> None:
        from benchmarks.studies.page import precision_of, write_page

        Machine("cpu", precision_of(self.run_or_study)).start()
        page = write_page(self.run_or_study, self.out)
        _console.print(f"report: {page}", highlight=False, soft_wrap=True)


_PLAIN: dict[tuple[str, ...], Any] = {
    ("train",): Resume,
    ("view",): View,
    ("report",): ReportPage,
    ("list",): List,
    ("check",): Check,
    **{("bench", name): kind for name, kind in BENCHMARKS.items() if kind is not Variants},
}
_WITH_TASK: dict[tuple[str, ...], Any] = {("train",): Train, ("bench", "variants"): Variants, ("view",): ViewTask}
_COMMANDS = ("train", "view", "report", "list", "check", "bench")


def _parse(arguments: Sequence[str]) -> Any:
    """The command that these words call, as a dataclass with a `run()`."""
    name = _command_of(arguments)
    plain, with_task, prog = _PLAIN.get(name), _WITH_TASK.get(name), " ".join(("evenflow", *name))
    kinds = [kind for kind in (plain, with_task) if kind is not None]
    tasks = TASKS if with_task else {}
    line = read(arguments[len(name) :], options_of(*kinds, *tasks.values()), tasks.__contains__)
    given, elsewhere = line.given, {}
    if with_task is not None and line.words and line.words[0] in TASKS:
        if "--resume" in given:
            raise SettingError(f"Expected {prog} TASK or {prog} --resume RUN, got both; a run knows its task.")
        task = line.words.pop(0)
        kind, options, prog = with_task[TASKS[task]], options_of(with_task, TASKS[task]), f"{prog} {task}"
        elsewhere = {other: options_of(options) for other, options in TASKS.items()}
    elif plain is None or (name == ("train",) and "--resume" not in given):
        _without_task(prog, line.words, HELP in given)
    else:
        kind, options = plain, options_of(plain)
        elsewhere = {f"{prog} TASK": options_of(with_task, *TASKS.values())} if with_task else {}
    if HELP not in given:
        check(line, options, prog, elsewhere)
    return tyro.cli(
        kind, prog=prog, args=[HELP] if HELP in given else line.arguments(), config=(tyro.conf.DisallowNone,)
    )


def _command_of(arguments: Sequence[str]) -> tuple[str, ...]:
    """The words of the command; help, the version or SettingError where they are no whole command."""
    first, second = (*arguments, "", "")[:2]
    if first == "--version":
        print(f"evenflow {__version__}")
        raise SystemExit(0)
    if first in ("", "-h", HELP):
        about = (__doc__ or "").partition("\n")[0]
        print_overview("evenflow COMMAND", about, Commands=_commands(), Tasks=task_summaries())
        _end(first != "", f"Expected a command among {', '.join(_COMMANDS)}, got none; begin with evenflow train TASK.")
    if first not in _COMMANDS:
        note = f", which is a task; evenflow train {first} trains it" if first in TASKS else perhaps(first, _COMMANDS)
        raise SettingError(f"Expected a command among {', '.join(_COMMANDS)}, got {first!r}{note}.")
    if first != "bench":
        return (first,)
    if second in ("", "-h", HELP):
        about = {name: summary(kind) for name, kind in BENCHMARKS.items()}
        print_overview("evenflow bench BENCHMARK", "", Benchmarks=about)
        _end(second != "", f"Expected a benchmark among {', '.join(BENCHMARKS)} after evenflow bench, got none.")
    if second not in BENCHMARKS:
        known = f"Expected a benchmark among {', '.join(BENCHMARKS)} after evenflow bench"
        raise SettingError(f"{known}, got {second!r}{perhaps(second, BENCHMARKS)}.")
    return first, second


def _without_task(prog: str, words: Sequence[str], wants_help: bool) -> NoReturn:
    """What to say where a task is due and none is there."""
    if words:
        is_run = (Path(words[0]) / "config.yaml").is_file()
        note = f", a run; evenflow train --resume {words[0]} continues it" if is_run else perhaps(words[0], TASKS)
        raise SettingError(f"Expected a task among {', '.join(TASKS)} after {prog}, got {words[0]!r}{note}.")
    resuming = "" if prog != "evenflow train" else f" {prog} --resume RUN continues a run."
    about = (
        f"A task is a system, what it is to do, and where it starts. {prog} TASK {HELP} shows its options.{resuming}"
    )
    print_overview(f"{prog} TASK [OPTIONS]", about, Tasks=task_summaries())
    _end(wants_help, f"Expected a task after {prog}, as in {prog} cart-pole, got none.")


def _end(wanted: bool, message: str) -> NoReturn:
    """After help: success where it was wanted, else SettingError."""
    _flush()
    if wanted:
        raise SystemExit(0)
    raise SettingError(message)


def _flush() -> None:
    if sys.stdout is not None:  # it may have been closed before we began
        sys.stdout.flush()


def _commands() -> dict[str, str]:
    named = {words[0]: summary(kind) for words, kind in {**_WITH_TASK, **_PLAIN}.items() if len(words) == 1}
    return {name: named.get(name, "Benchmarks: " + ", ".join(BENCHMARKS) + ".") for name in _COMMANDS}


def _say(message: Warning | str, *where: object) -> None:
    """A warning as one sentence, without the place in the code that it comes from."""
    print(f"evenflow: {message}", file=sys.stderr)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status. A user's mistake ends in one sentence on standard error."""
    warnings.showwarning = _say
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal that has no θ still shows the rest
    try:
        _parse(list(sys.argv[1:] if arguments is None else arguments)).run()
        _flush()
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
    except OSError as error:  # whatever a file system can refuse: a full disk, a name too long, no permission
        where = f" at {error.filename}" if error.filename is not None else ""
        print(f"evenflow: Expected files that can be read and written, got{where}: {error.strerror}.", file=sys.stderr)
        return 2
    except SystemExit as end:  # after help
        return end.code if isinstance(end.code, int) else 0
    return 0


if __name__ == "__main__":
    sys.exit(main())
