"""Studies: every gradient × difficulty × clipping × learning rate × seed of a task, trained as ensembles.

A study is a directory. Members of one difficulty share a shape, so they train together in packs, each a run directory
of its own with a checkpoint after every epoch; a study that was killed continues where it stopped when the same
command is given again. Results are appended to `results.jsonl` when a pack is done, one line for each training, with
everything needed to repeat it.

Seeds are paired: equal seeds have equal data and initial weights whatever their variant. Where several learning rates
are given, each variant's is chosen on tuning seeds (1000 and up) that no report ever sees.
"""

import json
import math
import os
import platform
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml

from benchmarks.studies.checks import check_result, check_study, is_result
from benchmarks.studies.statistics import interquartile_mean
from engine import RunError, SettingError, current
from engine.checks import plain, whole
from training import Experiment, RunDirectory, TrainingSettings, read_checkpoint, resume, task_options, train
from training.experiment import Progress
from training.files import reason, write_whole
from training.lock import LOCK, only_writer
from training.metrics import from_json
from training.optimisers import settings_from_file, settings_to_file
from training.provenance import FIELD as PLUGINS
from training.provenance import check_plugins, with_plugins
from training.stopping import Stopped, Stopping
from training.tasks import difficulty_of
from training.trainer import Trainer
from training.variant import Label, Variant

FORMAT = 1
TUNING_SEED = 1000
_KIND = "evenflow study"
_MEMBERS = 48  # more fill neither cache nor cores better


@dataclass(frozen=True)
class Study:
    """What is compared with what.

    Attributes:
        task: name; options: all but the difficulty.
        difficulties: values of the option that makes the task harder; the task's own by default.
        gradients, clippings, learning_rates: what is crossed.
        seeds: reported seeds, 0 and up; tuning_seeds: for choosing learning rates where there are several.
        epochs: of every training.
        settings: shared by all.
    """

    task: str
    options: dict[str, Any] = field(default_factory=dict)
    difficulties: tuple[Any, ...] = ()
    gradients: tuple[str, ...] = ("R", "M", "S", "C")
    clippings: tuple[str, ...] = ("none",)
    learning_rates: tuple[float, ...] = (1e-3,)
    seeds: int = 10
    tuning_seeds: int = 3
    epochs: int = 100
    settings: TrainingSettings = field(default_factory=TrainingSettings)

    def __post_init__(self):
        kind = task_options(self.task)
        for name in ("seeds", "tuning_seeds"):
            object.__setattr__(self, name, whole(f"at least 1 of {name.replace('_', ' ')}", getattr(self, name)))
        if self.seeds > TUNING_SEED:
            raise SettingError(f"Expected at most {TUNING_SEED} seeds, where those for tuning begin, got {self.seeds}.")
        if not self.difficulties:
            object.__setattr__(self, "difficulties", tuple(difficulty_of(kind)[1]))
        object.__setattr__(self, "difficulties", tuple(plain(value) for value in self.difficulties))
        if len(set(self.difficulties)) < len(self.difficulties):
            raise SettingError(f"Expected difficulties without repetition, got {list(self.difficulties)}.")
        if self.difficulty in self.options:
            raise SettingError(f"Expected {self.difficulty} as a difficulty, got it as an option too.")
        for value in self.difficulties:
            checked = self.experiment(value, range(1))  # every setting is checked before anything is trained
            checked.task_options.build()
            checked.members()
            object.__setattr__(self, "gradients", checked.gradients)
            object.__setattr__(self, "clippings", checked.clippings)

    @classmethod
    def of(cls, task: str, options: dict[str, Any], difficulties: tuple[float, ...], **settings: Any) -> "Study":
        """A study from all options of a task and difficulties as plain numbers."""
        name = difficulty_of(task_options(task))[0]
        default = getattr(task_options(task)(), name)
        given = options.pop(name, default)
        if given != default:
            raise SettingError(f"Expected values of {name} as difficulties, got the option {name} = {given}.")
        values = []
        for value in difficulties:
            if not math.isfinite(value) or type(default)(value) != value:
                raise SettingError(f"Expected {name} as {type(default).__name__}, got {value}.")
            values.append(type(default)(value))
        return cls(task, options, tuple(values), **settings)

    @property
    def difficulty(self) -> str:
        """Name of the option that makes the task harder."""
        return difficulty_of(task_options(self.task))[0]

    @property
    def milestones(self) -> tuple[int, ...]:
        """Epochs whose weights are kept for diagnostics: the start, a tenth, a half, the end."""
        return tuple(sorted({0, max(1, self.epochs // 10), max(1, self.epochs // 2), self.epochs}))

    def experiment(self, difficulty: Any, seeds: range, variants: tuple[Variant, ...] = ()) -> Experiment:
        return Experiment(
            self.task,
            {**self.options, self.difficulty: difficulty},
            self.gradients,
            tuple(seeds),
            self.learning_rates,
            self.clippings,
            self.epochs,
            checkpoint_every=1,
            variants=variants,
            milestones=self.milestones,
            settings=self.settings,
        )

    def to_config(self) -> dict[str, Any]:
        """Plain values, with the runtime: what a study's directory is known by, and what `load_study` finds there."""
        runtime = current()
        values = json.loads(json.dumps(asdict(self)))
        where = {"backend": runtime.backend, "precision": runtime.precision}
        return with_plugins({"kind": _KIND, "format": FORMAT, "runtime": where, **values})


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
) -> None:
    """Train whatever of the study is not trained yet. KeyboardInterrupt where a signal stops it.

    Args:
        study: what to train.
        out: a new directory, or that of this very study.
        progress: called before each pack with the number of packs left; what it returns sees every epoch.
        stopping: who listens to signals, if the caller does.

    Raises:
        RunError: a directory of something else, one in which another process trains, or that cannot be written.
    """
    if not out.is_dir() or not any(out.iterdir()):
        for difficulty in study.difficulties:  # what cannot be trained leaves no directory behind
            study.experiment(difficulty, range(1)).trainer()
    with _claimed(study, out), Stopping() if stopping is None else nullcontext(stopping) as stop:
        for difficulty in study.difficulties:
            chosen: tuple[Variant, ...] = ()
            if len(study.learning_rates) > 1:
                seeds = range(TUNING_SEED, TUNING_SEED + study.tuning_seeds)
                _train_all(_packs(study, out, "tuning", difficulty, seeds, ()), out, progress, stop)
                chosen = _best_rates(out, study, difficulty)
            _train_all(_packs(study, out, "report", difficulty, range(study.seeds), chosen), out, progress, stop)


def load_study(out: Path) -> dict[str, Any]:
    """The configuration of the study in a directory; what was called adam before Keras' form is adam-torch in it."""
    file = out / "study.yaml"
    try:
        config = yaml.safe_load(file.read_text())
    except (FileNotFoundError, NotADirectoryError) as error:
        raise RunError(f"Expected a study with a study.yaml, got {out}, which has none.") from error
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise RunError(f"Expected {file} as plain YAML, got something that cannot be read as such.") from error
    if not isinstance(config, dict) or config.get("kind") != _KIND:
        raise RunError(f"Expected {file} to describe a study, got other content.")
    if config.get("format") != FORMAT:
        raise RunError(f"Expected a study of format {FORMAT}, got format {config.get('format')!r} in {file}.")
    check_plugins(config, file)
    config = {**config, "settings": settings_from_file(config.get("settings"))}
    check_study(Study, config, file)
    return config


def load_results(out: Path) -> list[dict[str, Any]]:
    """Every training that is done, one dictionary each; a line cut off by a kill is left out, a damaged one told."""
    file, study = out / "results.jsonl", load_study(out)
    task = study["task"]
    try:
        lines = file.read_bytes().split(b"\n")[:-1]
    except FileNotFoundError:
        return []
    except OSError as error:
        raise RunError(f"Expected results that can be read, got {file}: {reason(error)}.") from error
    results = []
    for number, line in enumerate(lines, start=1):
        result = from_json(line)
        if not isinstance(result, dict) or not {"format", "task"} <= set(result):
            raise RunError(f"Expected a training's result in line {number} of {file}, got something else.")
        if (result["format"], result["task"]) != (FORMAT, task):
            raise RunError(
                f"Expected results of {task} in format {FORMAT}, got {result['task']} in format {result['format']} in "
                f"line {number} of {file}."
            )
        if not is_result(result):
            raise RunError(
                f"Expected a training's settings and its losses of every epoch in line {number} of {file}, got "
                "something else."
            )
        check_result(study, result, f"line {number} of {file}")
        results.append({**result, "settings": settings_from_file(result.get("settings"))})
    return results


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
    check_same(study.to_config(), load_study(out), out)


def check_same(config: dict[str, Any], there: dict[str, Any], out: Path) -> None:
    """RunError unless a study's configuration is that of the study `there`, in the directory `out`."""
    different = [name for name in config if name != PLUGINS and there.get(name) != config[name]]
    ours, theirs = ((values.get("settings") or {}).get("optimiser") for values in (config, there))
    if "settings" in different and ours != theirs:
        raise RunError(
            f"Expected the optimiser that {out} was begun with, {theirs}, got {ours}; continue with --optimiser "
            f"{theirs} or choose another --out."
        )
    if different:
        raise RunError(
            f"Expected the settings that {out} was begun with, got other {', '.join(different)}; choose another --out."
        )


def _packs(
    study: Study, out: Path, phase: str, difficulty: Any, seeds: range, variants: tuple[Variant, ...]
) -> list[Pack]:
    """Seeds in as few packs as memory and cache allow, of nearly equal size; a seed's variants stay together."""
    per_seed = len(study.experiment(difficulty, seeds[:1], variants).labels())
    most = max(1, min(_MEMBERS, _members_that_fit(study.experiment(difficulty, seeds[:1], variants))) // per_seed)
    count = -(-len(seeds) // most)
    bounds = [len(seeds) * index // count for index in range(count + 1)]
    root = out / f"{study.difficulty}-{difficulty}"
    return [
        Pack(
            root / f"{phase}-{bounds[index]}",
            phase,
            difficulty,
            study.experiment(difficulty, seeds[bounds[index] : bounds[index + 1]], variants),
        )
        for index in range(count)
    ]


def _members_that_fit(experiment: Experiment) -> int:
    """How many members' buffers take half of the memory that is free."""
    trainer = replace(experiment, variants=(experiment.labels()[0].variant,), seeds=experiment.seeds[:1]).trainer()
    needed = trainer.rollout.plan.predicted + trainer.evaluation.plan.predicted
    try:
        free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError, AttributeError):  # not on this system
        return _MEMBERS
    return max(1, int(free / 2 / needed))


def _train_all(
    packs: list[Pack], out: Path, progress: Callable[[Pack, int], Progress | None], stopping: Stopping
) -> None:
    done = {_key(result) for result in load_results(out)}
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
    done = {_key(result) for result in load_results(out)}
    records = RunDirectory.open(pack.path).metrics()
    lines = [line for line in _lines(pack, trainer, records) if _key(line) not in done]
    try:
        there = file.read_bytes() if file.exists() else b""
        whole_lines = there[: there.rfind(b"\n") + 1]  # without one that a kill cut off
        write_whole(file, whole_lines + "".join(json.dumps(line) + "\n" for line in lines).encode())
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
            "format": FORMAT,
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
                "diverged": None if divergence is None else asdict(divergence),
            }
        yield line


def _key(line: dict[str, Any]) -> tuple:
    names = ("phase", "difficulty", "gradient", "clipping", "learning_rate", "seed", "epochs")
    return tuple(line[name] for name in names)


def _best_rates(out: Path, study: Study, difficulty: Any) -> tuple[Variant, ...]:
    """For each gradient and clipping the learning rate with the lowest interquartile mean of final tuning losses."""
    finals: dict[Variant, list[float]] = {}
    for result in load_results(out):
        if result["phase"] == "tuning" and result["difficulty"] == difficulty:
            finals.setdefault(Label.from_file(result).variant, []).append(final_loss(result))
    best: dict[tuple[str, str], Variant] = {}
    for variant, losses in finals.items():
        key = (variant.gradient, variant.clipping)
        if key not in best or interquartile_mean(losses) < interquartile_mean(finals[best[key]]):
            best[key] = variant
    return tuple(best[letter, clipping] for letter in study.gradients for clipping in study.clippings)


def final_loss(result: dict[str, Any]) -> float:
    """Test loss after the last epoch; infinite for a training that diverged."""
    last = result["test_loss"][-1]
    return float("inf") if last is None else float(last)


def weights_at(out: Path, study: Study, result: dict[str, Any], epoch: int):
    """The parameters [n] of a training at one of the study's milestones."""
    root = out / f"{study.difficulty}-{result['difficulty']}" / result["run"]
    _, tensors, _ = read_checkpoint(root / "checkpoints" / f"epoch-{epoch:06d}.safetensors")
    return tensors["theta"][result["member"]]
