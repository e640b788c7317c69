"""Studies an hour against workers: measured with a few on this machine, beyond that from the time of each pack."""

import heapq
import itertools
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks.studies.packs import run_study
from benchmarks.studies.processes import Processes
from benchmarks.studies.study import Study
from benchmarks.studies.workers import DONE
from engine.checks import whole
from training.errors import RunError
from training.files import write_whole
from training.style import legend_below, new_figure, save

_MOST = 16  # workers that are simulated
STUDY = {"difficulties": (1, 2, 3, 4), "gradients": ("R", "C"), "seed_count": 48, "epochs": 3}
"""Of cart-pole: eight packs of 48 trainings, those of four poles the longest."""


@dataclass(frozen=True)
class _OneThreadEach(Processes):
    """Processes of one thread, however many there are, so that workers are alike."""

    @property
    def threads(self) -> int:
        return 1


def throughput(jobs: Sequence[int], out: Path, console: Console, study: Study | None = None) -> list[Path]:
    """Train one study by one worker and by more, and write table and figure of studies an hour; returns their paths.

    Args:
        jobs: how many workers are measured; one is measured in any case, whose packs' times the simulation lays out.
        out: a new directory.
        study: by default `STUDY`.

    Raises:
        RunError: a directory that is there already.
        SettingError: jobs below 1.
    """
    jobs = sorted({1, *(whole("at least 1 job", count) for count in jobs)})
    if out.exists():
        raise RunError(f"Expected a new directory, got {out}; choose another --out.")
    study = Study("cart-pole", **STUDY) if study is None else study
    measured, packs = {}, []
    for count in jobs:
        seconds, done = _timed(study, out / f"jobs-{count}", count)
        measured[count] = seconds
        packs = done if count == 1 else packs
        console.print(f"{_workers(count)}: {seconds:.1f} s, {3600 / seconds:.1f} studies an hour", highlight=False)
    simulated = {count: finish(packs, count) for count in range(1, _MOST + 1)}
    found = {"packs": packs, "measured": measured, "simulated": simulated}
    write_whole(out / "workers.json", json.dumps(found, indent=1) + "\n")
    write_whole(out / "workers.md", _table(found))
    return [out / "workers.md", out / "workers.json", _figure(found, out / "workers.png")]


def finish(packs: Sequence[float], workers: int) -> float:
    """When the last pack is done if each, in turn, goes to the worker who is free first: seconds from the start."""
    free = [0.0] * workers
    for seconds in packs:
        heapq.heapreplace(free, free[0] + seconds)
    return max(free)


def _timed(study: Study, out: Path, count: int) -> tuple[float, list[float]]:
    """Seconds that a study takes with so many workers, and those from one pack done to the next."""
    started = time.perf_counter()
    done = [started]

    def tell(told: str) -> None:
        if DONE in told:  # and not that a process ended and another goes on
            done.append(time.perf_counter())

    run_study(study, out, workers=_OneThreadEach(count, tell))
    ended = time.perf_counter()
    return ended - started, [late - early for early, late in itertools.pairwise(done)]


def _workers(count: int) -> str:
    return f"{count} worker" if count == 1 else f"{count} workers"


def _table(found: dict[str, Any]) -> str:
    measured, simulated = found["measured"], found["simulated"]
    lines = ["| workers | measured, s | studies an hour | simulated, s | studies an hour |", "| --- " * 5 + "|"]
    for count, seconds in simulated.items():
        real = measured.get(count)
        shown = f"{real:.1f} | {3600 / real:.1f}" if real else " | "
        lines.append(f"| {count} | {shown} | {seconds:.1f} | {3600 / seconds:.1f} |")
    packs = ", ".join(f"{seconds:.1f}" for seconds in found["packs"])
    return "\n".join(lines) + (
        f"\n\nWorkers are processes of one thread on this machine. Simulated: packs of {packs} s, as one worker "
        "trained them, each given in turn to the worker who is free first; workers do not slow each other there.\n"
    )


def _figure(found: dict[str, Any], path: Path) -> Path:
    figure, (axes,) = new_figure(6.0, 3.6)
    for name, style in (("simulated", "--"), ("measured", "o")):
        times = found[name]
        axes.plot(list(times), [3600 / seconds for seconds in times.values()], style, label=name)
    axes.set_xlabel("workers")
    axes.set_ylabel("studies an hour")
    axes.set_xlim(0, _MOST + 0.5)
    axes.set_ylim(bottom=0)
    legend_below(figure, [axes])
    return save(figure, path)
