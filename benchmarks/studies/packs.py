"""The trainings of a study in packs: which there are, and the results of each, appended by one writer.

Members of one difficulty share a shape, so they train together in packs, each a run directory of its own with a
checkpoint after every epoch; a study that was killed continues where it stopped when the same command is given again.
Who trains them is handed in. Results stand in the order of the packs, whoever trained them and whenever.
"""

import itertools
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from benchmarks.studies.directory import StudyDirectory, check_same
from benchmarks.studies.pack import Pack, Watch, identities, key_of
from benchmarks.studies.search import Search
from benchmarks.studies.spaces import family_of
from benchmarks.studies.statistics import interquartile_mean
from benchmarks.studies.study import Study
from benchmarks.studies.workers import Here, Workers
from training import Experiment, RunDirectory
from training.errors import RunError
from training.files import add_lines, reason, write_whole
from training.lock import LOCK, only_writer
from training.optimisers import settings_to_file
from training.stopping import Stopped, Stopping
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


def run_study(
    study: Study,
    out: Path,
    progress: Watch = lambda pack, left: None,
    stopping: Stopping | None = None,
    stage: Stage | None = None,
    workers: Workers | None = None,
) -> None:
    """Train whatever of the study is not trained yet. KeyboardInterrupt where a signal stops it.

    Args:
        study: what to train.
        out: a new directory, or that of this very study.
        progress: called before each pack with the number of packs left; what it returns sees every epoch.
        stopping: who listens to signals, if the caller does.
        stage: the part to train; by default everything, with learning rates chosen where there are several, and with
            the study's trials searched before.
        workers: who trains the packs; by default this process, one after another.

    Raises:
        RunError: a directory of something else, one in which another process trains, or that cannot be written; or
            workers that die again and again.
    """
    workers = Here() if workers is None else workers
    if not out.is_dir() or not any(out.iterdir()):
        for difficulty in study.difficulties:  # what cannot be trained leaves no directory behind
            study.experiment(difficulty, (0,)).trainer()
    with _claimed(study, out), Stopping() if stopping is None else nullcontext(stopping) as stop:
        for packs in _rounds(study, out, stage, workers.at_once):
            _train_all(packs, out, workers, progress, stop)


def _rounds(study: Study, out: Path, stage: Stage | None, at_once: int) -> Iterator[list[Pack]]:
    """Packs that may be trained at the same time, every difficulty's; a round begins when the one before is done."""
    if stage is not None:
        yield [pack for difficulty in study.difficulties for pack in packs_of(study, out, difficulty, stage, at_once)]
        return
    chosen: dict[Any, tuple[Variant, ...]] = dict.fromkeys(study.difficulties, ())
    if study.trials:
        search = Search(study, out)
        for first, variants in search.rounds():
            tried = (Stage(f"{first}", of, study.tuning_seeds) for of in variants.values())
            yield [
                pack
                for value, stage in zip(variants, tried, strict=True)
                for pack in packs_of(study, out, value, stage, at_once, "tuning")
            ]
        chosen = search.chosen()
    elif study.tunes:
        seeds = study.tuning_seeds
        yield [pack for value in chosen for pack in _packs(study, out, "tuning", value, seeds, (), at_once=at_once)]
        chosen = {difficulty: _best_tuned(out, study, difficulty) for difficulty in study.difficulties}
    yield [
        pack
        for value, variants in chosen.items()
        for pack in _packs(study, out, "report", value, study.seeds, variants, at_once=at_once)
    ]


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
    most = min(_MEMBERS, _members_that_fit(_needed_by_each(one)))
    return tuple(range(max(1, most // len(one.labels()))))


def packs_of(
    study: Study, out: Path, difficulty: Any, stage: Stage, at_once: int = 1, phase: str = "report"
) -> list[Pack]:
    """The packs of one stage at one difficulty, of which so many share this machine's memory."""
    return _packs(study, out, phase, difficulty, stage.seeds, stage.variants, f"{stage.name}-", at_once)


def _packs(
    study: Study,
    out: Path,
    phase: str,
    difficulty: Any,
    seeds: tuple[int, ...],
    variants: tuple[Variant, ...],
    prefix: str = "",
    at_once: int = 1,
) -> list[Pack]:
    """Seeds in as few packs as memory and cache allow, of nearly equal size; a seed's variants stay together."""
    one = study.experiment(difficulty, seeds[:1], variants)
    needed = _needed_by_each(one)
    most = max(1, min(_MEMBERS, _members_that_fit(needed, at_once)) // len(one.labels()))
    root, stem = out / f"{study.difficulty}-{difficulty}", f"{phase}-{prefix}"
    runs = _runs(seeds, -(-len(seeds) // most), bool(prefix), _begun(root, stem))
    if runs is None:
        raise RunError(
            f"Expected the runs {stem}* in {root} to be of this study, got other seeds; choose another --out."
        )
    return [
        Pack(
            root / f"{stem}{number}",
            phase,
            difficulty,
            study.experiment(difficulty, its_seeds, variants),
            int(needed * len(its_seeds) * len(one.labels())),
        )
        for number, its_seeds in runs.items()
    ]


def _runs(
    seeds: tuple[int, ...], wanted: int, by_seed: bool, begun: dict[int, tuple[int, ...]]
) -> dict[int, tuple[int, ...]] | None:
    """The seeds of each run directory by its number: so many runs, or that number of them which holds all begun ones.

    Memory may have been free for other packs when those were begun. None if no number does.

    Args:
        by_seed: whether runs are numbered by their first seed, else by its place among the seeds.
    """
    for count in (wanted, *range(1, len(seeds) + 1)):
        bounds = [len(seeds) * index // count for index in range(count + 1)]
        runs = {seeds[low] if by_seed else low: seeds[low:high] for low, high in itertools.pairwise(bounds)}
        if begun.items() <= runs.items():
            return runs
    return None


def _begun(root: Path, stem: str) -> dict[int, tuple[int, ...]]:
    """The seeds of every run directory of this stem, by its number."""
    folders = [file.parent for file in root.glob(f"{stem}*/config.yaml")]
    numbered = {folder.name.removeprefix(stem): folder for folder in folders}
    return {
        int(number): tuple(RunDirectory.open(folder).config.get("seeds") or ())
        for number, folder in numbered.items()
        if number.isdecimal()
    }


def _needed_by_each(experiment: Experiment) -> float:
    """Bytes of a member's buffers where there are as many of each variant, with their copies."""
    trainer = replace(experiment, seeds=experiment.seeds[:1]).trainer()
    return (trainer.planned_bytes + trainer.evaluation.plan.predicted) / len(trainer.members)


def _members_that_fit(needed: float, at_once: int = 1) -> int:
    """How many members of so many bytes take half of the memory that is free, where so many packs share it."""
    try:
        free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError, AttributeError):  # not on this system
        return _MEMBERS
    return max(1, int(free / 2 / at_once / needed))


def _train_all(packs: list[Pack], out: Path, workers: Workers, progress: Watch, stopping: Stopping) -> None:
    done = {key_of(result) for result in StudyDirectory(out).lines}
    waiting = [pack for pack in packs if not all(key_of(line) in done for line in identities(pack))]
    with closing(workers.train(waiting, out, progress, stopping)) as trained:
        for lines in trained:
            _append(lines, out)
    if stopping.requested is not None:
        raise Stopped(stopping.requested, "give the same command again to go on")


def _append(lines: Sequence[Mapping[str, Any]], out: Path) -> None:
    file = out / "results.jsonl"
    done = {key_of(result) for result in StudyDirectory(out).lines}
    try:
        add_lines(file, [json.dumps(line) for line in lines if key_of(line) not in done])
    except OSError as error:
        raise RunError(f"Expected results that can be written, got {file}: {reason(error)}.") from error


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
