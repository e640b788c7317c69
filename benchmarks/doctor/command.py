"""`evenflow doctor`: its options, of a run and of a task."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

import tyro

from engine import SettingError
from engine.checks import finite, whole
from training.machine import Machine, console
from training.outputs import check_folder
from training.tasks import task_name
from training.viewing.watching import Watched, untrained, watched

Options = TypeVar("Options")


@dataclass(frozen=True)
class DoctorSettings:
    """How a task or a controller is examined."""

    samples: int = 16
    """Starts, of the test set of seed 0."""
    copies: int = 8
    """Disturbed copies of each start for estimates of zeroth order; 0 for none."""
    sigma: float = 0.1
    """The noise on their controls."""
    single: bool = True
    """Find out what float32 loses, in a process of its own."""
    out: Path | None = None
    """A directory for doctor.json and doctor.png; without one there is only the text."""

    def __post_init__(self):
        object.__setattr__(self, "samples", whole("at least 2 samples", self.samples, least=2))
        object.__setattr__(self, "copies", whole("at least 0 copies", self.copies, least=0))
        if self.copies % 2:
            raise SettingError(f"Expected copies in pairs, got {self.copies}.")
        object.__setattr__(self, "sigma", finite("a finite sigma above 0", self.sigma, lambda number: number > 0))


def _examine(controller: Watched, asked: dict[str, Any], settings: DoctorSettings) -> None:
    from benchmarks.doctor.advice import advise
    from benchmarks.doctor.examination import examine
    from benchmarks.doctor.findings import show, write
    from benchmarks.doctor.patient import Patient
    from training.errors import RunError

    if settings.out is not None:
        check_folder(settings.out, "what the doctor finds")
        for name in ("doctor.json", "doctor.png"):
            if (settings.out / name).exists():
                raise RunError(
                    f"Expected a directory without {name}, got {settings.out}, which has one; choose another --out."
                )
    Machine("cpu", "float64").start()
    with console.status("examining"):
        patient = Patient.of(controller, settings.samples)
        found = examine(patient, settings.copies, settings.sigma, asked if settings.single else None)
    advice = advise(found)
    show(found, advice, console)
    for path in write(found, advice, settings.out) if settings.out is not None else ():
        console.print(f"written: {path}", highlight=False, soft_wrap=True)


@dataclass(frozen=True)
class Doctor:
    """Examine how the gradient of a trained controller travels back, and say what to try.

    `evenflow doctor TASK` examines a task at the weights that training starts from; `evenflow doctor TASK --help` shows
    its options.
    """

    run_or_task: tyro.conf.Positional[str]
    """RUN, or one of its controllers as RUN@C or RUN@C,3 (gradient, seed); by default that with the lowest loss."""
    settings: tyro.conf.OmitArgPrefixes[DoctorSettings] = field(default_factory=DoctorSettings)

    def run(self) -> None:
        address = str(Path(self.run_or_task.partition("@")[0]).resolve()) + "".join(self.run_or_task.partition("@")[1:])
        controller = watched(self.run_or_task)
        _examine(controller, {"run": address, "samples": self.settings.samples}, self.settings)


@dataclass(frozen=True)
class DoctorTask(Generic[Options]):
    """Examine how the gradient of a task travels back at the weights that training starts from, and say what to try."""

    options: tyro.conf.OmitArgPrefixes[Options]
    settings: tyro.conf.OmitArgPrefixes[DoctorSettings] = field(default_factory=DoctorSettings)

    def run(self) -> None:
        options: Any = self.options
        asked = {"task": task_name(options), "options": dict(vars(options)), "samples": self.settings.samples}
        _examine(untrained(options), asked, self.settings)
