"""The trainings of a study in packs: which there are, and the results of each, appended by one writer.

Members of one difficulty share a shape, so they train together in packs, each a run directory of its own with a
checkpoint after every epoch; a study that was killed continues where it stopped when the same command is given again.
Who trains them is handed in. Results stand in the order of the packs, whoever trained them and whenever.
"""

import itertools
import json
import os
from collections.abc import Iterator, Mapping, Sequence, Set
from contextlib import closing, contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from benchmarks.studies.directory import StudyDirectory, check_holds, growing
from benchmarks.studies.pack import Pack, Watch, identities, key_of
from benchmarks.studies.search import Search
from benchmarks.studies.study import SEEDS_BEFORE, Study
from benchmarks.studies.tuning import best_tuned, to_tune
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
        out: a new directory, or that of this very study, or of one that it is more of.
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
        seeds, tuned = study.tuning_seeds, to_tune(study)
        if tuned:
            yield [p for value in chosen for p in _packs(study, out, "tuning", value, seeds, tuned, at_once=at_once)]
        results = StudyDirectory(out).results
        chosen = {difficulty: best_tuned(study, results, difficulty) for difficulty in study.difficulties}
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
            _write_config(study, out, _check_place(study, out))
        except OSError as error:
            raise RunError(f"Expected a directory that can be written, got {out}: {reason(error)}.") from error
        yield


def _check_place(study: Study, out: Path) -> StudyDirectory | None:
    """The study that stands there; RunError unless the directory is new, empty, or of this study or a part of it."""
    if not out.exists() or (out.is_dir() and all(entry.name == LOCK for entry in out.iterdir())):
        return None
    if not StudyDirectory.is_at(out):
        raise RunError(f"Expected a new directory or a study's, got {out}, which holds something else.")
    there = StudyDirectory(out)
    check_holds(study.to_config(), there.config, out)
    return there


def _write_config(study: Study, out: Path, there: StudyDirectory | None) -> None:
    """Write study.yaml where there is none, or where the study is more of what stands there."""
    config = study.to_config()
    if there is not None:
        if all(config[name] == there.config[name] for name in growing(there.config)):
            return
        before = list(there.config.get(SEEDS_BEFORE, ()))
        seen = config["seeds"] > there.config["seeds"] and any(one.phase == "report" for one in there.results)
        if before or seen:
            config[SEEDS_BEFORE] = [*before, there.config["seeds"]] if seen else before
    written = {**config, "settings": settings_to_file(config["settings"])}
    write_whole(out / "study.yaml", yaml.safe_dump(written, sort_keys=False))


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
    """Seeds in as few packs as memory and cache allow, of nearly equal size; a seed's variants stay together.

    What was begun stays in its packs, and what is done without any, as where another machine trained it, has none.
    """
    one = study.experiment(difficulty, seeds[:1], variants)
    everything = tuple(label.variant for label in one.labels())
    needed = _needed_by_each(one)
    most = max(1, min(_MEMBERS, _members_that_fit(needed, at_once)))
    root, stem = out / f"{study.difficulty}-{difficulty}", f"{phase}-{prefix}"
    begun = _begun(root, stem)
    trained = {
        (result.variant, result.label.seed): result.run
        for result in (StudyDirectory(out).results if StudyDirectory.is_at(out) else ())
        if (result.phase, result.difficulty) == (phase, difficulty)
    }
    elsewhere = {name.removeprefix(stem) for name in trained.values() if name.startswith(stem)}
    used = {int(number) for number in elsewhere if number.isdecimal()}
    runs = _runs(seeds, everything, most, bool(prefix), begun, trained.keys(), used)
    if runs is None:
        raise RunError(
            f"Expected the runs {stem}* in {root} to be of this study, got other trainings; choose another --out."
        )
    return [
        Pack(
            root / f"{stem}{number}",
            phase,
            difficulty,
            study.experiment(difficulty, its_seeds, variants if set(its) == set(everything) else its),
            int(needed * len(its_seeds) * len(its)),
        )
        for number, (its_seeds, its) in runs.items()
    ]


_Block = tuple[tuple[int, ...], tuple[Variant, ...]]
"""The trainings of one run directory: its seeds, and the variants that are trained on each."""


def _runs(
    seeds: tuple[int, ...],
    variants: tuple[Variant, ...],
    most: int,
    by_seed: bool,
    begun: Mapping[int, _Block],
    trained: Set[tuple[Variant, int]] = frozenset(),
    used: Set[int] = frozenset(),
) -> dict[int, _Block] | None:
    """The trainings of each run directory by its number: those that were begun, and what else is not trained.

    Args:
        most: how many trainings share a run at most, unless those of one seed are more.
        by_seed: whether runs are numbered by their first seed, else by its place among the seeds.
        trained: what needs no run, since its results are known; used: numbers of the runs that those name, which are
            given to no other.

    Returns:
        None where what was begun is not wanted, or is there twice.
    """
    blocks = [set(itertools.product(its, its_seeds)) for its_seeds, its in begun.values()]
    taken = set().union(*blocks)
    if len(taken) < sum(map(len, blocks)) or not taken <= set(itertools.product(variants, seeds)):
        return None
    left: dict[tuple[Variant, ...], list[int]] = {}
    for seed in seeds:
        its = tuple(one for one in variants if (one, seed) not in taken and (one, seed) not in trained)
        left.setdefault(its, []).append(seed)
    left.pop((), None)
    runs = dict(begun)
    for its, of_seeds in left.items():
        count = -(-len(of_seeds) // max(1, most // len(its)))
        bounds = [len(of_seeds) * index // count for index in range(count + 1)]
        for low, high in itertools.pairwise(bounds):
            number = of_seeds[low] if by_seed else seeds.index(of_seeds[low])
            while number in runs or number in used:
                number += len(seeds)
            runs[number] = (tuple(of_seeds[low:high]), its)
    return dict(sorted(runs.items()))


def _begun(root: Path, stem: str) -> dict[int, _Block]:
    """The trainings of every run directory of this stem, by its number."""
    folders = [file.parent for file in root.glob(f"{stem}*/config.yaml")]
    numbered = {folder.name.removeprefix(stem): folder for folder in folders}
    found = {}
    for number, folder in numbered.items():
        if number.isdecimal():
            experiment = Experiment.from_config(RunDirectory.open(folder).config)
            variants = dict.fromkeys(label.variant for label in experiment.labels())
            found[int(number)] = (experiment.seeds, tuple(variants))
    return found


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
