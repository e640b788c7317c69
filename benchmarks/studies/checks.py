"""What a study's files hold, checked before anything is made of it: they may have been edited by hand."""

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from benchmarks.studies.spaces import searched
from benchmarks.studies.study import COUNTS, LATER, SEEDS_BEFORE, TUNING_SEED, Study
from engine import SettingError
from engine.checks import whole
from training import TrainingSettings, clipping_named, gradient_named, task_options
from training.checks import check_types
from training.errors import RunError
from training.metrics import are_losses
from training.tasks import difficulty_of


def check_study(config: Mapping[str, Any], file: Path) -> None:
    """RunError unless the configuration has everything that a `Study` has, with values that make sense."""
    try:
        names = {entry.name: COUNTS.get(entry.name, entry.name) for entry in fields(Study)}
        values = {name: _tuples({**LATER, **config}[written]) for name, written in names.items()}
        settings = values.pop("settings")
        check_types(Study, values)
        check_types(TrainingSettings, settings)
        TrainingSettings(**{name: settings[name] for name in ("batch_size", "train_samples", "test_samples")})
        options = task_options(values["task"])
        check_types(options, values["options"])
        for value in values["difficulties"]:
            check_types(options, {difficulty_of(options)[0]: value})
        for text in values["gradients"]:
            gradient_named(text)
        for text in values["clippings"]:
            clipping_named(text)
        if not values["difficulties"]:
            raise SettingError("Expected difficulties, got none.")
        for count in config.get(SEEDS_BEFORE, ()):
            whole(f"{SEEDS_BEFORE.replace('_', ' ')} of at least 1", count)
    except KeyError as error:
        raise RunError(f"Expected {error} among the settings of the study in {file}, got a file without it.") from error
    except SettingError as error:
        raise RunError(f"{str(error).removesuffix('.')} in {file}.") from error
    except (TypeError, AttributeError, ValueError, OverflowError) as error:
        raise RunError(f"Expected the settings of a study in {file}, got values of other types.") from error


def is_result(value: dict[str, Any]) -> bool:
    """Whether a line has what reports read of it, of the right types and lengths."""
    kinds = {"phase": str, "gradient": str, "clipping": str, "learning_rate": (int, float), "seed": int, "epochs": int,
             "options": dict, "run": str, "member": int}  # fmt: skip
    if any(not isinstance(value.get(name), kind) or isinstance(value[name], bool) for name, kind in kinds.items()):
        return False
    names = ("train_loss", "test_loss", *(["validation_loss"] if "validation_loss" in value else []))
    losses = [value.get(name) for name in names]
    return "difficulty" in value and all(
        isinstance(of, list) and len(of) == value["epochs"] and are_losses(of) for of in losses
    )


def check_result(study: Mapping[str, Any], result: Mapping[str, Any], where: str) -> None:
    """RunError unless a training's result is one of this study."""
    kind = task_options(study["task"])
    try:
        options = result["options"]
        check_types(kind, options)
        fits = (
            result["difficulty"] in study["difficulties"]
            and options[difficulty_of(kind)[0]] == result["difficulty"]
            and options["horizon"] >= 1
            and _is_tried(study, result["gradient"], result["learning_rate"])
            and result["clipping"] in [clipping_named(text).text for text in study["clippings"]]
            and result["epochs"] == study["epochs"]
            and result["member"] >= 0
            and result["seed"] in _seeds(study, result["phase"])
        )
    except (KeyError, TypeError, AttributeError, SettingError) as error:
        raise RunError(f"Expected a training of the study in {where}, got values that make no sense in one.") from error
    if not fits:
        raise RunError(f"Expected a training of the study in {where}, got one of another.")


def _seeds(study: Mapping[str, Any], phase: Any) -> range:
    """The seeds of a phase of the study."""
    if phase == "tuning":
        return range(TUNING_SEED, TUNING_SEED + study["tuning_seeds"])
    return range(study["seeds"] if phase == "report" else 0)


def _is_tried(study: Mapping[str, Any], gradient: str, rate: float) -> bool:
    """Whether the study trains this gradient at this learning rate."""
    if study.get("trials"):
        return searched(study, gradient, rate)
    return gradient in [gradient_named(text).text for text in study["gradients"]] and rate in study["learning_rates"]


def _tuples(value: Any) -> Any:
    """Lists as the tuples that they were."""
    return tuple(value) if isinstance(value, list) else value
