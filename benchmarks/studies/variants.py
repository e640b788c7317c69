"""`evenflow bench variants TASK`: train a study, then write its table, figures and diagnostics."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks.studies.comparisons import AGAINST, table
from benchmarks.studies.costs import load_costs, measure_costs
from benchmarks.studies.diagnostics import diagnose, write_diagnostics
from benchmarks.studies.directory import StudyDirectory, check_same
from benchmarks.studies.pack import Pack
from benchmarks.studies.packs import Stage, run_study
from benchmarks.studies.report import said_of, write_report
from benchmarks.studies.study import Study
from benchmarks.studies.workers import Workers
from training.display import TrainingProgress
from training.files import write_ours
from training.stopping import CLOSED_PIPE, Stopped, Stopping


def compare(
    study: Study,
    out: Path,
    console: Console,
    train: bool = True,
    against: str = AGAINST,
    workers: Workers | None = None,
) -> list[Path]:
    """Train what is left of a study if asked to, and write the report; returns the paths of what was written."""
    if train:
        train_shown(study, out, console, workers)
    return write_comparison(study, out, console, against)


def train_shown(
    study: Study,
    out: Path,
    console: Console,
    workers: Workers | None = None,
    stopping: Stopping | None = None,
    stage: Stage | None = None,
) -> None:
    """Train what is left of a study, as `run_study` does, and show it: by epoch in this process, else pack by pack."""
    watch = PackProgress(study, console, by_epoch=workers is None)
    try:
        run_study(study, out, watch, stopping, stage, workers)
    except BrokenPipeError as error:
        console.quiet = True
        raise Stopped(CLOSED_PIPE, "give the same command again to go on") from error
    finally:
        watch.close()


def write_comparison(study: Study, out: Path, console: Console, against: str = AGAINST) -> list[Path]:
    """Write the report of what is done of a study, with its costs and diagnostics; returns the paths."""
    directory = StudyDirectory(out)
    check_same(study.to_config(), directory.config, out)
    if study.trials:  # what is reported has settings that were found
        reported = dict.fromkeys(result.variant.gradient for result in directory.reported)
        study = replace(study, gradients=tuple(reported), trials=0)
    threshold = study.experiment(directory.reported[0].difficulty, (0,)).task_options.build().success
    costs = _costs(study, out, console)
    written = write_report(directory, threshold, costs, against)
    with console.status("diagnosing gradients"):
        diagnosed = write_diagnostics(diagnose(study, out), study, out)
    if not diagnosed:
        console.print(f"no adjoints are diagnosed: {out} has no run with finite losses", highlight=False)
    written += diagnosed
    rows = table(directory, threshold, costs, against)
    for row in rows:
        console.print(
            f"{study.difficulty} {row.difficulty}  {row.name:8}  {row.loss:.3g}  ({row.loss_low:.3g} to "
            f"{row.loss_high:.3g})  diverged {row.diverged:.0%}",
            highlight=False,
        )
    for sentence in said_of(directory, rows):
        console.print(sentence, highlight=False)
    return written


def write_comparisons(
    studies: Mapping[str, Study], out: Path, console: Console, every: Sequence[str]
) -> tuple[dict[str, StudyDirectory], list[Path]]:
    """Write the report of each study, by the name of its folder, that has reported trainings.

    Returns:
        All that have some, those among the folders `every` too that are not asked for now; and the paths.
    """
    names = [name for name in dict.fromkeys((*every, *studies)) if StudyDirectory.is_at(out / name)]
    there = {name: StudyDirectory(out / name) for name in names}
    done = {name: study for name, study in there.items() if any(one.phase == "report" for one in study.results)}
    written = []
    for name in (name for name in done if name in studies):
        console.print(name, highlight=False)
        written += write_comparison(studies[name], out / name, console)
    return done, written


def _costs(study: Study, out: Path, console: Console) -> dict[str, Any]:
    """Measured once for each study, since figures from busier moments would not be comparable."""
    file = out / "costs.json"
    known = load_costs(out)
    wanted = [(str(difficulty), text) for difficulty in study.difficulties for text in study.gradients]
    if all(text in known.get(difficulty, {}) for difficulty, text in wanted):
        return known
    with console.status("timing one training of each gradient"):
        costs = measure_costs(study)
    write_ours(file, json.dumps(costs, indent=1) + "\n")
    return costs


class PackProgress:
    """Names each pack as it starts and shows its progress, if that is seen epoch by epoch."""

    def __init__(self, study: Study, console: Console, by_epoch: bool = True):
        self._study, self._console, self._by_epoch = study, console, by_epoch
        self._progress: TrainingProgress | None = None

    def __call__(self, pack: Pack, left: int):
        labels = pack.experiment.labels()
        self._console.print(
            f"{self._study.difficulty} {pack.difficulty}, {pack.phase}: {len(labels)} trainings together, {left} "
            f"{'pack' if left == 1 else 'packs'} left here",
            highlight=False,
        )
        if not self._by_epoch:
            return None
        if self._progress is not None:
            self._progress.__exit__()
        self._progress = TrainingProgress(labels, pack.experiment.epochs, self._console).__enter__()
        return self._progress

    def close(self) -> None:
        """End the progress of the last pack."""
        if self._progress is not None:
            self._progress.__exit__()
