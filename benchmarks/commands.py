"""What follows `evenflow bench`: a dataclass of options for each benchmark, with a `run()`."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Generic, TypeVar

import tyro

from benchmarks.doctor.command import Doctor, DoctorTask
from benchmarks.programmes import Paper, Zoo
from benchmarks.scale.settings import ScaleSettings
from benchmarks.studies.spread import Spread
from engine import SettingError
from training.gradients import gradient_named
from training.machine import Machine, console
from training.settings import COMPARED, Comparison
from training.tasks import task_name

Options = TypeVar("Options")


@dataclass(frozen=True)
class Speed:
    """Time one update, alone and in an ensemble, and say where the time goes; peers run alternately where installed.

    With `--peers` everything that any peer does is timed beside it instead: updates of cart-pole, guidance and quantum
    control, alone and in ensembles, steps of particles, and what comes before the first update. That takes half an
    hour; given again with the same `--out` it goes on where it was stopped.
    """

    task: str = "cart-pole"
    """Any registered task; JAX and torch run beside ours where they compute its update."""
    rounds: int = 20
    """Turns of each side, four updates long; medians are reported."""
    members: int = 40
    """Members of the ensemble."""
    peers: bool = False
    """The whole table beside peers: one that is not installed is a row that says so."""
    out: Path | None = None
    """A file for the results as JSON, which must not exist; with --peers a directory, a new one or one to continue."""

    def run(self) -> None:
        if not self.peers:
            from benchmarks.speed import speed

            speed(console, self.rounds, self.members, self.out, self.task)
            return
        if self.task != "cart-pole":
            raise SettingError(f"Expected all tasks with --peers, got --task {self.task}; leave one of them out.")
        from benchmarks.beside.plan import Sizes
        from benchmarks.beside.report import beside

        for path in beside(console, self.out, Sizes(rounds=self.rounds, together=self.members)):
            console.print(f"written: {path}", highlight=False, soft_wrap=True)


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

        for path in scale(self.settings, self.out, console):
            console.print(f"written: {path}", highlight=False, soft_wrap=True)


@dataclass(frozen=True)
class Device:
    """Try and time everything on a CUDA device: launches, marked tests, parity, repeatability, ensembles, particles.

    Give the same command again to continue where it was stopped; what was measured is not measured again.
    """

    out: Path
    """Directory of the study: a new one, or the one to continue."""

    def run(self) -> None:
        from benchmarks.device.study import device

        for path in device(self.out, console):
            console.print(f"written: {path}", highlight=False, soft_wrap=True)


@dataclass(frozen=True)
class Variants(Generic[Options]):
    """Compare gradients on a task: every gradient × difficulty × clipping × learning rate × seed, with a report.

    Give the same command again to continue a study that was stopped, or with more seeds, gradients, clippings or
    difficulties (with --tune, with more seeds) to train those besides; its study.yaml and results.jsonl are all that it
    takes.
    """

    options: tyro.conf.OmitArgPrefixes[Options]
    out: Path
    """Directory of the study: a new one, or the one to continue."""
    difficulties: tuple[float, ...] = ()
    """Values of the option that makes the task harder; by default the paper's."""
    comparison: tyro.conf.OmitArgPrefixes[Comparison] = field(default_factory=lambda: Comparison(gradients=COMPARED))
    seed_count: Annotated[int, tyro.conf.arg(name="seeds")] = 10
    """How many paired seeds are reported."""
    tuning_seed_count: Annotated[int, tyro.conf.arg(name="tuning-seeds")] = 3
    """How many seeds learning rates are chosen on."""
    tune_knobs: bool = False
    """Of gradients that differ in their own number alone, as "clip-norm(R, 1)" and "clip-norm(R, 10)", report only the
    one that is best on the tuning seeds."""
    tune: str | None = None
    """With what to search each gradient's learning rate and own number on the tuning seeds: optuna, of the extra so
    named. Learning rates and gradients of one family that are given are the ends of what is searched."""
    trials: int | None = None
    """With --tune, how many settings of each variant are tried, 16 by default."""
    hours: float | None = None
    """Take as many paired seeds as fit into so many hours on this machine, instead of --seeds."""
    report_only: bool = False
    """Write the report of what is done, and train nothing."""
    against: str = "R"
    """The gradient of those trained that the report compares the others with."""
    spread: tyro.conf.OmitArgPrefixes[Spread] = field(default_factory=Spread)
    machine: tyro.conf.OmitArgPrefixes[Machine] = field(default_factory=Machine)

    def run(self) -> None:
        from benchmarks.studies.comparisons import check_against, chooses_numbers
        from benchmarks.studies.search import trials_with
        from benchmarks.studies.sizing import sized
        from benchmarks.studies.study import Study
        from benchmarks.studies.variants import compare

        against, workers = gradient_named(self.against).text, self.spread.workers(self.machine)
        if workers is not None and self.hours is not None:
            raise SettingError("Expected --hours, which are timed in one process, without --jobs and --ray, got both.")
        trials = trials_with(self.tune, self.trials)
        if trials and (self.hours is not None or self.tune_knobs):
            raise SettingError("Expected --tune without --hours and without --tune-knobs; leave them out.")
        self.machine.start()
        study = Study.of(
            task_name(self.options),  # pyright: ignore[reportArgumentType]
            dict(vars(self.options)),
            self.difficulties,
            seed_count=self.seed_count,
            tuning_seed_count=self.tuning_seed_count,
            tune_knobs=self.tune_knobs,
            trials=trials,
            **self.comparison.shared(),
        )
        check_against(against, study.gradients, chooses_numbers(study.to_config()))
        if self.hours is not None:
            study, told = sized(study, self.hours, self.out)
            for sentence in told:
                console.print(sentence, highlight=False)
        for path in compare(study, self.out, console, not self.report_only, against, workers):
            console.print(f"written: {path}", highlight=False, soft_wrap=True)


@dataclass(frozen=True)
class Throughput:
    """Time a study with one worker and with more, and draw studies an hour against workers, more of them simulated."""

    out: Path
    """A new directory."""
    jobs: tuple[int, ...] = (1, 2)
    """Workers that are measured, each a process of one thread; 1 is among them in any case."""
    machine: tyro.conf.OmitArgPrefixes[Machine] = field(default_factory=Machine)

    def run(self) -> None:
        from benchmarks.studies.throughput import throughput

        self.machine.start()
        for path in throughput(self.jobs, self.out, console):
            console.print(f"written: {path}", highlight=False, soft_wrap=True)


@dataclass(frozen=True)
class Figures:
    """Draw the paper's Fig. 1 and Fig. 2 from this engine."""

    out: Path = Path("docs/results/paper")
    """Directory of the figures; figures of the same name are drawn anew."""

    def run(self) -> None:
        from benchmarks.paper import draw_figures

        Machine(precision="float64", backend="cpu").start()
        for path in draw_figures(self.out):
            console.print(f"figure: {path}", highlight=False, soft_wrap=True)


@dataclass(frozen=True)
class Outcome:
    """Draw what a run amounts to: one test start, and where each gradient's median controller takes it."""

    run_directory: tyro.conf.Positional[Path]
    """Directory of the run."""
    out: Path
    """The picture, as .png, .pdf, .svg or .jpg; it must not exist."""
    seed: int = 0
    """Of the start."""

    def run(self) -> None:
        from benchmarks.studies.outcome import outcome_figure
        from benchmarks.studies.page import precision_of

        Machine("cpu", precision_of(self.run_directory)).start()
        figure = outcome_figure(self.run_directory, self.out, self.seed)
        console.print(f"figure: {figure}", highlight=False, soft_wrap=True)


@dataclass(frozen=True)
class Transfer:
    """Test a run's controllers at other values of the option that makes the task harder, such as other sizes."""

    run_directory: tyro.conf.Positional[Path]
    """Directory of the run."""
    difficulties: tuple[float, ...]
    """Values of that option."""
    parameter: str | None = None
    """A physical parameter that has these values instead, such as pole_mass."""
    machine: tyro.conf.OmitArgPrefixes[Machine] = field(default_factory=Machine)

    def run(self) -> None:
        from benchmarks.studies.transfer import transfer_table, transferred

        self.machine.start()
        found = transferred(self.run_directory, self.difficulties, self.parameter)
        console.print(transfer_table(self.run_directory, found, self.parameter))


@dataclass(frozen=True)
class Check:
    """Check this machine: backends that start, versions, launch costs, and a gradient check of every system."""

    def run(self) -> None:
        from benchmarks.check import check

        if not check(console):
            raise SystemExit(1)


@dataclass(frozen=True)
class ReportPage:
    """Write one HTML page of a run or a study: table, curves, last frames, adjoints, configuration."""

    run_or_study: tyro.conf.Positional[Path]
    """Directory of a run, or of a study by `evenflow bench variants`."""
    out: Path | None = None
    """A new file; by default report.html in the directory, in place of an earlier one."""
    against: str | None = None
    """The gradient of a study's that the others are compared with, R by default."""

    def run(self) -> None:
        from benchmarks.studies.page import precision_of, write_page

        against = None if self.against is None else gradient_named(self.against).text
        Machine("cpu", precision_of(self.run_or_study)).start()
        page = write_page(self.run_or_study, self.out, against)
        console.print(f"report: {page}", highlight=False, soft_wrap=True)


BENCHMARKS = {
    "speed": Speed,
    "scale": Scale,
    "variants": Variants,
    "paper": Paper,
    "zoo": Zoo,
    "workers": Throughput,
    "figures": Figures,
    "outcome": Outcome,
    "transfer": Transfer,
    "device": Device,
}
PLAIN = {
    ("doctor",): Doctor,
    ("report",): ReportPage,
    ("check",): Check,
    **{("bench", name): kind for name, kind in BENCHMARKS.items() if kind is not Variants},
}
WITH_TASK = {("bench", "variants"): Variants, ("doctor",): DoctorTask}
