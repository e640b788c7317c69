"""Commands that train several studies in one directory: `evenflow bench paper` and `evenflow bench zoo`."""

import abc
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import tyro

from benchmarks.studies.spread import Spread
from training.errors import RunError
from training.machine import Machine, console


@dataclass(frozen=True)
class Programme(abc.ABC):
    """What such commands share."""

    out: Path
    """Directory of the programme: a new one, or the one to continue."""
    tasks: tuple[str, ...] = ()
    """Which tasks; all by default."""
    seeds: int = 10
    """Paired seeds of every variant."""
    plan_only: bool = False
    """Tell the hours, and train nothing."""
    report_only: bool = False
    """Write the reports of what is done, and train nothing."""
    spread: tyro.conf.OmitArgPrefixes[Spread] = field(default_factory=Spread)
    machine: tyro.conf.OmitArgPrefixes[Machine] = field(default_factory=Machine)

    def run(self) -> None:
        workers = self.spread.workers(self.machine)
        self.machine.start()
        tell_hours, train, report = self._parts()
        if self.report_only:
            if not self._write(report):
                raise RunError(f"Expected finished trainings in {self.out}, got none; train first.")
            return
        tell_hours()
        if self.plan_only:
            return
        try:
            train(workers)
        except KeyboardInterrupt:
            self._write(report)
            raise
        self._write(report)

    def _write(self, report: Callable[[], list[Path]]) -> list[Path]:
        written = report()
        for path in written:
            console.print(f"written: {path}", highlight=False, soft_wrap=True)
        return written

    @abc.abstractmethod
    def _parts(self) -> tuple[Callable[[], None], Callable[..., None], Callable[[], list[Path]]]:
        """What tells the hours that are left, what trains with the workers that it is given, and what reports."""


@dataclass(frozen=True)
class Paper(Programme):
    """Train the paper's programme: three tasks at every difficulty, R, M, C, S and bisect, three ways of clipping.

    A first comparison without clipping comes first, further seeds and clippings after it. The hours that are left are
    told before. Give the same command again to go on; reports are written when it ends or is stopped.
    """

    epochs: int = 1000
    """Of every training."""

    def _parts(self):
        from benchmarks.studies import programme

        studies = programme.programme(self.tasks or programme.TASKS, self.seeds, self.epochs)
        return (
            lambda: programme.print_plan(studies, self.out, console),
            lambda workers: programme.run_programme(studies, self.out, console, workers),
            lambda: programme.report_programme(studies, self.out, console),
        )


@dataclass(frozen=True)
class Zoo(Programme):
    """Train many gradients on eight tasks, and draw all comparisons with R as one matrix.

    Of gradients that differ in their own number alone the one that is best on tuning seeds is reported. The hours that
    are left are told before. Give the same command again to go on, with more tasks, seeds or gradients if you like;
    reports are written when it ends or is stopped.
    """

    gradients: tuple[str, ...] = ()
    """Which gradients, R among them; by default the 26 of whole sweeps in benchmarks/studies/zoo.py."""

    def _parts(self):
        from benchmarks.studies import zoo

        studies = zoo.zoo(self.tasks or tuple(zoo.TASKS), self.seeds, self.gradients)
        zoo.print_left_out(tuple(studies), self.gradients, console)
        return (
            lambda: zoo.print_hours(studies, self.out, console),
            lambda workers: zoo.run_zoo(studies, self.out, console, workers),
            lambda: zoo.report_zoo(studies, self.out, console),
        )
