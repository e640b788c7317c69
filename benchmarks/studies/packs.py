"""The trainings of a study: packs of them, one after another, each result appended as its pack is done.

Members of one difficulty share a shape, so they train together in packs, each a run directory of its own with a
checkpoint after every epoch; a study that was killed continues where it stopped when the same command is given again.
"""

import json
import os
import platform
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml

from benchmarks.studies.directory import StudyDirectory, check_same
from benchmarks.studies.knobs import family_of
from benchmarks.studies.statistics import interquartile_mean
from benchmarks.studies.study import STUDY_FORMAT, Study
from engine import current
from training import Experiment, RunDirectory, resume, train
from training.errors import RunError
from training.experiment import Progress
from training.files import add_lines, reason, write_whole
from training.lock import LOCK, only_writer
from training.optimisers import settings_to_file
from training.stopping import Stopped, Stopping
from training.trainer import Trainer
from training.variant import Variant

_MEMBERS = 48  # more fill neither cache nor cores better


@dataclass(frozen=True)
class Stage:
    """A part of a study that is trained before the rest: some variants on some seeds, at every difficulty.

    Attributes:
        name: part of the names of its run directories.
        variants: what is trained; seeds: on which of the study's.
    """

    name: str
    variants: tuple[Variant, ...]
    seeds: tuple[int, ...]


@dataclass(frozen=True)
class Pack:
    """Trainings that share one ensemble and its run directory."""

    path: Path
    phase: str
    difficulty: Any
    experiment: Experiment


def run_study(
    study: Study,
    out: Path,
    progress: Callable[[Pack, int], Progress | None] = lambda pack, left: None,
    stopping: Stopping | None = None,
    stage: Stage | None = None,
) -> None:
    """Train whatever of the study is not trained yet. KeyboardInterrupt where a signal stops it.

    Args:
        study: what to train.
        out: a new directory, or that of this very study.
        progress: called before each pack with the number of packs left; what it returns sees every epoch.
        stopping: who listens to signals, if the caller does.
        stage: the part to train; by default everything, with learning rates chosen where there are several.

    Raises:
        RunError: a directory of something else, one in which another process trains, or that cannot be written.
    """
    if not out.is_dir() or not any(out.iterdir()):
        for difficulty in study.difficulties:  # what cannot be trained leaves no directory behind
            study.experiment(difficulty, (0,)).trainer()
    with _claimed(study, out), Stopping() if stopping is None else nullcontext(stopping) as stop:
        for difficulty in study.difficulties:
            if stage is not None:
                _train_all(packs_of(study, out, difficulty, stage), out, progress, stop)
                continue
            chosen: tuple[Variant, ...] = ()
            if study.tunes:
                tuning = _packs(study, out, "tuning", difficulty, study.tuning_seeds, ())
                _train_all(tuning, out, progress, stop)
                chosen = _best_tuned(out, study, difficulty)
            _train_all(_packs(study, out, "report", difficulty, study.seeds, chosen), out, progress, stop)


@contextmanager
def _claimed(study: Study, out: Path) -> Iterator[None]:
    """Make the directory, or make sure that it is this study's, and be the only one who writes it."""
    try:
        _check_place(study, out)
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"Expected a directory that can be written, got {out}: {reason(error)}.") from error
    with only_writer(out, "study"):
        try:
            _check_place(study, out)
            if not (out / "study.yaml").exists():
                config = study.to_config()
                written = {**config, "settings": settings_to_file(config["settings"])}
                write_whole(out / "study.yaml", yaml.safe_dump(written, sort_keys=False))
        except OSError as error:
            raise RunError(f"Expected a directory that can be written, got {out}: {reason(error)}.") from error
        yield


def _check_place(study: Study, out: Path) -> None:
    """RunError unless the directory is new, empty or this study's."""
    if not out.exists() or (out.is_dir() and all(entry.name == LOCK for entry in out.iterdir())):
        return
    if not (out / "study.yaml").exists():
        raise RunError(f"Expected a new directory or a study's, got {out}, which holds something else.")
    check_same(study.to_config(), StudyDirectory(out).config, out)


def packed_seeds(study: Study, difficulty: Any) -> tuple[int, ...]:
    """Seeds of a full pack of this difficulty, every combination of each."""
    one = study.experiment(difficulty, (0,))
    return tuple(range(max(1, min(_MEMBERS, _members_that_fit(one)) // len(one.labels()))))


def packs_of(study: Study, out: Path, difficulty: Any, stage: Stage) -> list[Pack]:
    """The packs of one stage at one difficulty."""
    return _packs(study, out, "report", difficulty, stage.seeds, stage.variants, f"{stage.name}-")


def _packs(
    study: Study,
    out: Path,
    phase: str,
    difficulty: Any,
    seeds: tuple[int, ...],
    variants: tuple[Variant, ...],
    prefix: str = "",
) -> list[Pack]:
    """Seeds in as few packs as memory and cache allow, of nearly equal size; a seed's variants stay together."""
    per_seed = len(study.experiment(difficulty, seeds[:1], variants).labels())
    most = max(1, min(_MEMBERS, _members_that_fit(study.experiment(difficulty, seeds[:1], variants))) // per_seed)
    count = -(-len(seeds) // most)
    bounds = [len(seeds) * index // count for index in range(count + 1)]
    root = out / f"{study.difficulty}-{difficulty}"
    return [
        Pack(
            root / f"{phase}-{prefix}{seeds[bounds[index]]}" if prefix else root / f"{phase}-{bounds[index]}",
            phase,
            difficulty,
            study.experiment(difficulty, seeds[bounds[index] : bounds[index + 1]], variants),
        )
        for index in range(count)
    ]


def _members_that_fit(experiment: Experiment) -> int:
    """How many members' buffers take half of the memory that is free: as many of each variant, with their copies."""
    trainer = replace(experiment, seeds=experiment.seeds[:1]).trainer()
    needed = (trainer.planned_bytes + trainer.evaluation.plan.predicted) / len(trainer.members)
    try:
        free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError, AttributeError):  # not on this system
        return _MEMBERS
    return max(1, int(free / 2 / needed))


def _train_all(
    packs: list[Pack], out: Path, progress: Callable[[Pack, int], Progress | None], stopping: Stopping
) -> None:
    done = {_key(result) for result in StudyDirectory(out).lines}
    waiting = [pack for pack in packs if not all(_key(line) in done for line in _lines(pack))]
    for index, pack in enumerate(waiting):
        watch = progress(pack, len(waiting) - index)
        if (pack.path / "config.yaml").exists():
            trainer = resume(pack.path, watch, stopping=stopping)
        else:
            trainer = train(pack.experiment, pack.path, watch, stopping)
        if trainer.epoch >= pack.experiment.epochs:
            _append(pack, trainer, out)
        if stopping.requested is not None:
            raise Stopped(stopping.requested, "give the same command again to go on")


def _append(pack: Pack, trainer: Trainer, out: Path) -> None:
    file = out / "results.jsonl"
    done = {_key(result) for result in StudyDirectory(out).lines}
    records = RunDirectory.open(pack.path).metrics()
    lines = [line for line in _lines(pack, trainer, records) if _key(line) not in done]
    try:
        add_lines(file, map(json.dumps, lines))
    except OSError as error:
        raise RunError(f"Expected results that can be written, got {file}: {reason(error)}.") from error


def _lines(
    pack: Pack, trainer: Trainer | None = None, records: list[dict[str, Any]] | None = None
) -> Iterator[dict[str, Any]]:
    """What is written of each member; without a trainer only what identifies it."""
    experiment = pack.experiment
    runtime = current()
    packages = {name: version(name) for name in ("taichi", "torch")}
    for member, label in enumerate(experiment.labels()):
        line = {
            "format": STUDY_FORMAT,
            "task": experiment.task,
            "phase": pack.phase,
            "options": asdict(experiment.task_options),
            "difficulty": pack.difficulty,
            **label.to_file(),
            "epochs": experiment.epochs,
        }
        if trainer is not None and records is not None:
            divergence = trainer.divergences.get(member)
            line |= {
                "settings": settings_to_file(asdict(experiment.settings)),
                "backend": runtime.backend,
                "precision": runtime.precision,
                "versions": {"python": platform.python_version(), **packages},
                "members": len(experiment.labels()),
                "seconds": records[-1]["seconds"],
                "run": str(pack.path.name),
                "member": member,
                "train_loss": [record["train_loss"][member] for record in records],
                "test_loss": [record["test_loss"][member] for record in records],
                **_validation(records, member),
                "diverged": None if divergence is None else asdict(divergence),
            }
        yield line


def _validation(records: list[dict[str, Any]], member: int) -> dict[str, Any]:
    """The losses on the validation states, where there are any."""
    losses = [record["validation_loss"][member] for record in records if "validation_loss" in record]
    return {"validation_loss": losses} if len(losses) == len(records) else {}


def _key(line: dict[str, Any]) -> tuple:
    names = ("phase", "difficulty", "gradient", "clipping", "learning_rate", "seed", "epochs")
    return tuple(line[name] for name in names)


def _best_tuned(out: Path, study: Study, difficulty: Any) -> tuple[Variant, ...]:
    """For each gradient, or family of them, and clipping the variant with the lowest mean of final tuning losses."""
    finals: dict[Variant, list[float]] = {}
    for result in StudyDirectory(out).results:
        if result.phase == "tuning" and result.difficulty == difficulty:
            finals.setdefault(result.variant, []).append(result.final_loss)
    best: dict[tuple[str, str], Variant] = {}
    for letter in study.gradients:
        for variant, losses in finals.items():
            key = (family_of(letter) if study.tune_knobs else letter, variant.clipping)
            better = key not in best or interquartile_mean(losses) < interquartile_mean(finals[best[key]])
            if variant.gradient == letter and better:
                best[key] = variant
    return tuple(best.values())
