"""A study on disk: its configuration and its results, read once and checked."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from benchmarks.studies.checks import check_result, check_study, is_result
from benchmarks.studies.pack import key_of
from benchmarks.studies.spaces import family_of
from benchmarks.studies.study import KIND, LATER, STUDY_FORMAT
from policies import Policy
from training import RunDirectory, task_options
from training.checkpoint import load_checkpoint
from training.controllers import filled
from training.errors import RunError
from training.metrics import json_lines
from training.optimisers import settings_from_file
from training.provenance import FIELD as PLUGINS
from training.provenance import check_plugins
from training.run import StoredRuntime, stored_runtime
from training.tasks import difficulty_of
from training.variant import Label, Variant


@dataclass(frozen=True)
class Result:
    """One training that is done.

    Attributes:
        phase: "report", or "tuning" on seeds that are not reported.
        options: of the task, with the difficulty.
        run, member: its run directory, within that of the difficulty, and its place in the ensemble.
        test_loss: after each epoch; NaN once diverged.
        validation_loss: the same on the validation states; empty where there are none.
    """

    phase: str
    difficulty: Any
    label: Label
    options: Mapping[str, Any]
    run: str
    member: int
    test_loss: tuple[float, ...]
    validation_loss: tuple[float, ...] = ()

    @classmethod
    def of(cls, line: Mapping[str, Any]) -> "Result":
        """What a line of results.jsonl says."""
        tested, validated = (
            tuple(math.nan if loss is None else float(loss) for loss in line.get(name, ()))
            for name in ("test_loss", "validation_loss")
        )
        where = line["options"], line["run"], line["member"]
        return cls(line["phase"], line["difficulty"], Label.from_file(line), *where, tested, validated)

    @property
    def variant(self) -> Variant:
        return self.label.variant

    @property
    def final_loss(self) -> float:
        """Test loss after the epoch that is reported; infinite for a training that diverged, or has none there."""
        losses = self.test_loss[-1], self.test_loss[self.chosen_epoch - 1]
        return math.inf if any(map(math.isnan, losses)) else losses[1]

    @property
    def chosen_epoch(self) -> int:
        """The epoch that is reported: the last, or the first with the lowest loss on the validation states."""
        known = [(math.inf if math.isnan(loss) else loss, epoch) for epoch, loss in enumerate(self.validation_loss, 1)]
        return min(known)[1] if known else len(self.test_loss)


class StudyDirectory:
    """The study in a directory, as it is when each part is first asked for; RunError where that is damaged.

    Attributes:
        path: of the directory.
    """

    def __init__(self, path: Path):
        self.path = path

    @classmethod
    def at(cls, place: "Path | StudyDirectory") -> "StudyDirectory":
        """A study that is open already, or the one at a path."""
        return place if isinstance(place, cls) else cls(Path(str(place)))

    @staticmethod
    def is_at(path: Path) -> bool:
        """Whether a study stands there."""
        return (path / "study.yaml").exists()

    @cached_property
    def config(self) -> dict[str, Any]:
        """Its configuration; what was called adam before Keras' form is adam-torch in it."""
        out, file = self.path, self.path / "study.yaml"
        try:
            config = yaml.safe_load(file.read_text())
        except (FileNotFoundError, NotADirectoryError) as error:
            raise RunError(f"Expected a study with a study.yaml, got {out}, which has none.") from error
        except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
            raise RunError(f"Expected {file} as plain YAML, got something that cannot be read as such.") from error
        if not isinstance(config, dict) or config.get("kind") != KIND:
            raise RunError(f"Expected {file} to describe a study, got other content.")
        if config.get("format") != STUDY_FORMAT:
            raise RunError(f"Expected a study of format {STUDY_FORMAT}, got format {config.get('format')!r} in {file}.")
        config = {**config, "settings": settings_from_file(config.get("settings"))}
        check_plugins(config, file)
        check_study(config, file)
        return config

    @property
    def difficulty(self) -> str:
        """Name of the option that makes its task harder."""
        return difficulty_of(task_options(self.config["task"]))[0]

    @property
    def runtime(self) -> StoredRuntime:
        """What it was trained on."""
        return stored_runtime(self.config, self.path / "study.yaml")

    @cached_property
    def lines(self) -> list[dict[str, Any]]:
        """Every training that is done, as plain values; a line cut off by a kill is left out, a damaged one told."""
        file, study = self.path / "results.jsonl", self.config
        task = study["task"]
        results, seen = [], {}
        for number, (result, _) in enumerate(json_lines(file, "results"), start=1):
            if not isinstance(result, dict) or not {"format", "task"} <= set(result):
                raise RunError(f"Expected a training's result in line {number} of {file}, got something else.")
            if (result["format"], result["task"]) != (STUDY_FORMAT, task):
                raise RunError(
                    f"Expected results of {task} in format {STUDY_FORMAT}, got {result['task']} in format "
                    f"{result['format']} in line {number} of {file}."
                )
            if not is_result(result):
                raise RunError(
                    f"Expected a training's settings and its losses of every epoch in line {number} of {file}, got "
                    "something else."
                )
            check_result(study, result, f"line {number} of {file}")
            first = seen.setdefault(key_of(result), number)
            if first != number:
                raise RunError(
                    f"Expected each training once in {file}, got that of line {first} in line {number} again."
                )
            results.append({**result, "settings": settings_from_file(result.get("settings"))})
        return results

    @cached_property
    def results(self) -> list[Result]:
        """Every training that is done."""
        return [Result.of(line) for line in self.lines]

    @cached_property
    def reported(self) -> list[Result]:
        """Results of the reported seeds; RunError if there is none."""
        found = [result for result in self.results if result.phase == "report"]
        if not found:
            raise RunError(f"Expected finished trainings in {self.path}, got none; train first.")
        return found

    def has_run(self, result: Result) -> bool:
        """Whether the run directory of a training is here, and not its result alone."""
        return (self._folder(result) / "config.yaml").exists()

    def run_of(self, result: Result) -> RunDirectory:
        """The run directory that a training was part of."""
        return RunDirectory.open(self._folder(result))

    def fill(self, policy: Policy, result: Result, epoch: int) -> None:
        """Make a policy of one member that of a training at one of the study's milestones."""
        file = self._folder(result) / "checkpoints" / f"epoch-{epoch:06d}.safetensors"
        filled(policy, load_checkpoint(file), [result.member], file)

    def _folder(self, result: Result) -> Path:
        return self.path / f"{self.difficulty}-{result.difficulty}" / result.run


def check_holds(config: dict[str, Any], there: dict[str, Any], out: Path) -> None:
    """RunError unless a study's configuration is that of the study `there`, or of that one and more."""
    grown = {name: there[name] for name in growing(there)}
    check_same({**config, **grown}, there, out)
    fewer = [name for name, begun in grown.items() if not _holds(config[name], begun)]
    if fewer:
        raise RunError(
            f"Expected the {' and '.join(fewer)} that {out} was begun with, or more, got others; name those of its "
            "study.yaml too, or choose another --out."
        )
    chosen = _of_chosen_families(config["gradients"], there["gradients"]) if there.get("tune_knobs") else []
    if chosen:
        raise RunError(
            f"Expected no more of the families from which {out} has chosen one on its tuning seeds, got "
            f"{', '.join(chosen)}; leave them out, or choose another --out."
        )


def _of_chosen_families(asked: list[str], begun: list[str]) -> list[str]:
    """Gradients that are new in a family of one that was begun."""
    families = set(map(family_of, begun))
    return [text for text in asked if text not in begun and family_of(text) in families]


def growing(config: dict[str, Any]) -> tuple[str, ...]:
    """The settings of which a study that was begun can be given more; not what its choice on tuning seeds hangs on."""
    return ("seeds",) if config.get("trials") else ("seeds", "difficulties", "clippings", "gradients")


def _holds(asked: Any, begun: Any) -> bool:
    return set(begun) <= set(asked) if isinstance(begun, list) else begun <= asked


def check_same(config: dict[str, Any], there: dict[str, Any], out: Path) -> None:
    """RunError unless a study's configuration is that of the study `there`, in the directory `out`."""
    asked, begun = {**LATER, **config}, {**LATER, **there}
    different = [name for name, value in asked.items() if name != PLUGINS and begun.get(name) != value]
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
