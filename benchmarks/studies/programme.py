"""The paper's programme: its three tasks at every difficulty, as one resumable directory with a study for each task.

Trained in stages, so that a first complete comparison exists early and further seeds and clippings refine it. Every
stage goes through all tasks and difficulties before the next one begins.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.studies.directory import StudyDirectory
from benchmarks.studies.packs import Stage
from benchmarks.studies.sizing import seconds_of_an_epoch
from benchmarks.studies.study import Study
from benchmarks.studies.variants import train_shown, write_comparisons
from benchmarks.studies.verdicts import write_verdicts
from benchmarks.studies.workers import Workers
from engine import SettingError
from training.stopping import Stopping
from training.variant import Variant

TASKS = ("cart-pole", "guidance", "quantum")
GRADIENTS = ("R", "M", "C", "S", "bisect(M, R)")
CLIPPINGS = ("none", "value", "norm")
_FIRST_SEEDS = 4


def programme(tasks: Sequence[str], seeds: int, epochs: int) -> dict[str, Study]:
    """The study of each task, without a repetition; SettingError for a task that the paper does not have."""
    for name in tasks:
        if name not in TASKS:
            raise SettingError(f"Expected tasks of the paper, {', '.join(TASKS)}, got {name!r}.")
    return {
        name: Study(name, gradients=GRADIENTS, clippings=CLIPPINGS, seed_count=seeds, epochs=epochs)
        for name in dict.fromkeys(tasks)
    }


def stages(study: Study) -> list[Stage]:
    """The parts of a study in the order in which they are worth having."""
    first, rest = study.seeds[:_FIRST_SEEDS], study.seeds[_FIRST_SEEDS:]
    main = [text for text in study.gradients if text in ("R", "M", "C")]
    others = [text for text in study.gradients if text not in main]
    parts = (
        ("first", main, ["none"], first),
        ("seeds", main, ["none"], rest),
        ("others", others, ["none"], study.seeds),
        ("clipped", study.gradients, study.clippings[1:], first),
        ("clipped-seeds", study.gradients, study.clippings[1:], rest),
    )
    (rate,) = study.learning_rates
    return [
        Stage(name, tuple(Variant(*each, rate) for each in product(gradients, clippings)), seeds)
        for name, gradients, clippings, seeds in parts
        if seeds and gradients and clippings
    ]


@dataclass(frozen=True)
class Planned:
    """What is left to train of one stage of a task at one difficulty, and how long it will take here."""

    stage: str
    task: str
    difficulty: Any
    trainings: int
    hours: float


def plan(studies: dict[str, Study], out: Path) -> Iterator[Planned]:
    """What is left, stage by stage; an update of every task and difficulty is timed once, with all of the first stage.

    A training's time in a larger pack is taken to be that in the first; tests are counted as the time of one.
    """
    done = {name: _done(out / name) for name in studies}
    seconds: dict[tuple[str, Any], float] = {}
    for index, task, study in _by_stages(studies):
        stage = stages(study)[index]
        for difficulty in study.difficulties:
            wanted = {(difficulty, variant, seed) for variant in stage.variants for seed in stage.seeds}
            left = len(wanted - done[task])
            if left and (task, difficulty) not in seconds:
                first = stages(study)[0]
                together = study.experiment(difficulty, first.seeds, first.variants)
                seconds[task, difficulty] = seconds_of_an_epoch(together) / len(together.labels())
            yield Planned(
                stage.name,
                task,
                difficulty,
                left,
                left * study.epochs * seconds.get((task, difficulty), 0.0) / 3600,
            )


def print_plan(studies: dict[str, Study], out: Path, console: Console) -> None:
    """Tell what is left and its hours, a row for each stage and task."""
    rows: dict[tuple[str, str], list[Planned]] = {}
    with console.status("timing an update of every task and difficulty"):
        for entry in plan(studies, out):
            rows.setdefault((entry.stage, entry.task), []).append(entry)
    printed = Table(box=None)
    for column in ("stage", "task", "trainings left", "hours"):
        printed.add_column(column, justify="left" if column in ("stage", "task") else "right")
    for (stage, task), entries in rows.items():
        hours = sum(entry.hours for entry in entries)
        printed.add_row(stage, task, str(sum(entry.trainings for entry in entries)), f"{hours:.2f}")
    console.print(printed)
    total = sum(entry.hours for entries in rows.values() for entry in entries)
    console.print(f"{total:.1f} hours are left on this machine as it is now", highlight=False)


def run_programme(studies: dict[str, Study], out: Path, console: Console, workers: Workers | None = None) -> None:
    """Train what is left, stage by stage; KeyboardInterrupt where a signal stops it."""
    with Stopping() as stopping:
        for index, task, study in _by_stages(studies):
            train_shown(study, out / task, console, workers, stopping, stages(study)[index])


def report_programme(studies: dict[str, Study], out: Path, console: Console) -> list[Path]:
    """Write the report of every task of which something is done, and who wins in all of them."""
    done, written = write_comparisons(studies, out, console, TASKS)
    told = write_verdicts(done, out)
    return written if told is None else [*written, told]


def _by_stages(studies: dict[str, Study]) -> Iterator[tuple[int, str, Study]]:
    """(index of the stage, task, study), the first stage of every task before any second one."""
    for index in range(max(len(stages(study)) for study in studies.values())):
        for task, study in studies.items():
            if index < len(stages(study)):
                yield index, task, study


def _done(out: Path) -> set[tuple[Any, Variant, int]]:
    """(difficulty, variant, seed) of every training that is done in a study's directory."""
    if not StudyDirectory.is_at(out):
        return set()
    return {(result.difficulty, result.variant, result.label.seed) for result in StudyDirectory(out).results}
