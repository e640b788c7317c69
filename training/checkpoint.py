"""Checkpoints: one safetensors file with what a training continues from, and in words what was trained.

The metadata hold JSON: the epoch, who diverged, and a description from which a controller can be built again without
anything else: each member's gradient, seed, learning rate and clipping, the policy's architecture, the task with its
options and the settings. A checksum tells whether all is as it was written; nothing that is read can run code.
"""

import json
import zlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from engine import SettingError
from training import constants
from training.checks import check_types, difference
from training.divergence import Divergence
from training.errors import RunError
from training.estimators import GradientEstimator
from training.files import as_path, write_whole
from training.gradients import gradient_named, text_of
from training.optimisers import settings_from_file, settings_to_file
from training.trainer import Trainer
from training.variant import Label, Variant

CHECKPOINT_FORMAT = 1
_KIND = "evenflow checkpoint"
_REQUIRED = {"kind", "format", "epoch", "divergences"}
# What a run may change between two trainings without another meaning: where and how long, not what.
_FREE = {"epochs", "checkpoint_every", "milestones"}


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint file holds.

    Attributes:
        epoch: epochs completed.
        tensors: by name; theta [P, n] among them.
        divergences: by member.
        description: of what was trained; empty in files from before there were any.
    """

    epoch: int
    tensors: dict[str, torch.Tensor]
    divergences: dict[int, Divergence]
    description: dict[str, Any]

    @property
    def members(self) -> list[Label]:
        """Gradient, seed, learning rate and clipping of each member, in order; none in older files."""
        return [Label.from_file(values) for values in self.description.get("members", [])]


def settings_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a run's configuration that its numbers depend on, as plain values."""
    kept = {name: value for name, value in config.items() if name not in _FREE}
    if isinstance(kept.get("runtime"), dict):
        kept["runtime"] = {"precision": kept["runtime"].get("precision")}  # another backend may go on
    if isinstance(kept.get("settings"), dict):
        told = settings_to_file(settings_from_file(kept["settings"]))  # whose Adam it is, also where it is from before
        kept["settings"] = {name: value for name, value in told.items() if name != "memory"}
    return json.loads(json.dumps(kept, default=str))


def describe(trainer: Trainer, config: Mapping[str, Any]) -> dict[str, Any]:
    """What a trainer trains, as plain values; `config` is its run's."""
    texts = [*config.get("gradients", ()), *(variant[0] for variant in config.get("variants", ()))]
    named = {gradient_named(text).estimator: text for text in texts}
    members = [
        Label(
            Variant(named.get(member.estimator) or _text(member.estimator), member.clipping.text, member.learning_rate),
            member.seed,
        ).to_file()
        for member in trainer.members
    ]
    return {"members": members, "policy": trainer.policy.architecture, "config": settings_of(config)}


def _text(estimator: GradientEstimator) -> str:
    """What a gradient is called: its text, or the name of a class that nobody has registered."""
    try:
        return text_of(estimator)
    except SettingError:
        return type(estimator).__name__


def write_checkpoint(path: Path, trainer: Trainer, config: Mapping[str, Any]) -> None:
    """Write all that the trainer continues from after its last completed epoch."""
    tensors = {name: value.detach().cpu().contiguous() for name, value in trainer.state().items()}
    metadata = {
        "kind": _KIND,
        "format": str(CHECKPOINT_FORMAT),
        "epoch": str(trainer.epoch),
        "divergences": json.dumps([asdict(entry) for entry in trainer.divergences.values()]),
        "description": json.dumps(describe(trainer, config), default=str),
    }
    metadata["checksum"] = _checksum(tensors, metadata)
    write_whole(path, save(tensors, metadata))


def read_checkpoint(path: str | Path) -> tuple[int, dict[str, torch.Tensor], dict[int, Divergence]]:
    """(epoch, tensors, divergences) of a checkpoint file; RunError if it is damaged or not ours."""
    found = load_checkpoint(as_path("a checkpoint", path))
    return found.epoch, found.tensors, found.divergences


def load_checkpoint(path: Path) -> Checkpoint:
    """All of a checkpoint file; RunError if it is damaged or not ours."""
    metadata, tensors = _read(path)
    if metadata.get("kind") != _KIND or metadata.get("format") != str(CHECKPOINT_FORMAT):
        raise RunError(f"Expected an Evenflow checkpoint of format {CHECKPOINT_FORMAT}, got other tensors in {path}.")
    checksum = metadata.pop("checksum", None)  # absent from the first checkpoints of this format
    if checksum is not None and checksum != _checksum(tensors, metadata):
        raise RunError(
            f"Expected a checkpoint as it was written, got {path}, which is damaged; "
            "remove it to continue from the one before."
        )
    try:
        entries = json.loads(metadata["divergences"])
        for entry in entries:
            check_types(Divergence, entry)
        divergences = {entry["member"]: Divergence(**entry) for entry in entries}
        epoch = int(metadata["epoch"])
        description = json.loads(metadata.pop("description", "{}"))
        if epoch < 0 or set(metadata) != _REQUIRED or not _describes(description):
            raise ValueError(metadata)
    except (AttributeError, KeyError, TypeError, ValueError, RecursionError, SettingError) as error:
        raise RunError(f"Expected epoch and divergences in checkpoint {path}, got damaged metadata.") from error
    return Checkpoint(epoch, tensors, divergences, description)


def describe_checkpoint(path: str | Path) -> dict[str, Any]:
    """What a checkpoint says of itself: epoch, members, policy and the run's configuration. Errors as of reading it."""
    found = load_checkpoint(as_path("a checkpoint", path))
    return {"epoch": found.epoch, **found.description}


def _describes(value: Any) -> bool:
    """Whether it is a description, or none at all."""
    if value == {}:
        return True
    return (
        isinstance(value, dict)
        and all(isinstance(value.get(name), dict) for name in ("policy", "config"))
        and isinstance(value.get("members"), list)
        and all(isinstance(label, dict) and {"gradient", "seed"} <= set(label) for label in value["members"])
    )


def _read(path: Path) -> tuple[dict[str, str], dict[str, torch.Tensor]]:
    if path.is_dir():
        raise RunError(
            f"Expected a checkpoint, got the directory {path}; give one of the files in its checkpoints, or use "
            "load_controller."
        )
    if path.exists() and path.suffix != ".safetensors":
        raise RunError(f"Expected a checkpoint in safetensors, got {path}; give a file of that kind.")
    try:
        with safe_open(str(path), framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            return file.metadata() or {}, tensors
    except FileNotFoundError as error:
        raise RunError(f"Expected a checkpoint at {path}, got no such file.") from error
    except (OSError, SafetensorError, RuntimeError) as error:
        raise RunError(
            f"Expected a checkpoint in safetensors, got {path}, which is damaged or not one; "
            "remove it to continue from the one before."
        ) from error


def continue_from(path: Path, trainer: Trainer, config: Mapping[str, Any]) -> int:
    """Load a checkpoint into a trainer that it fits; returns its epoch. Writes nothing.

    Raises:
        RunError: a file that is damaged, or of other settings than the trainer's and its run's.
    """
    found = load_checkpoint(path)
    if found.description:
        check_settings(found.description["config"], config, path)
    expected = trainer.state()
    tensors = _with_draws(found.tensors, expected)
    if not constants.from_tensors(tensors):  # as before these were kept
        tensors |= constants.as_tensors(trainer.policy)
    for name, value in expected.items():
        if name not in tensors:
            raise RunError(f"Expected tensor {name!r} in checkpoint {path}, got a file without it.")
        if tensors[name].shape != value.shape or tensors[name].dtype != value.dtype:
            raise RunError(
                f"Expected tensor {name!r} as {list(value.shape)} {value.dtype} in {path}, "
                f"got {list(tensors[name].shape)} {tensors[name].dtype}."
            )
    for name, value in tensors.items():
        if name not in expected:
            raise RunError(f"Expected only this run's tensors in {path}, got {name!r} of shape {list(value.shape)}.")
    frozen = (~tensors["active"]).nonzero().flatten().tolist()
    if sorted(found.divergences) != frozen:
        raise RunError(f"Expected members {frozen} as diverged in {path}, got {sorted(found.divergences)}.")
    try:
        trainer.load(found.epoch, tensors, found.divergences)
    except RuntimeError as error:
        raise RunError(f"Expected states of random generators in {path}, got something else.") from error
    return found.epoch


def _with_draws(tensors: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Its tensors; checkpoints of before have one generator for all scores of a member: noise.3 but no noise.3.1."""
    first = {name: name.rpartition(".")[0] for name in expected if name.startswith("noise.") and name.count(".") == 2}
    return {name: tensors[of] for name, of in first.items() if of in tensors} | dict(tensors)


def check_settings(trained: dict[str, Any], config: Mapping[str, Any], path: Path) -> None:
    """RunError, which names what differs, unless a run's settings are those that a checkpoint was trained with."""
    differs = difference(settings_of(trained), settings_of(config))
    if differs is not None:
        name, before, now = differs
        raise RunError(
            f"Expected {name} {before!r} in config.yaml, as {path} was trained with, got {now!r}; put it back, or "
            "train anew into another directory."
        )


def _checksum(tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str]) -> str:
    """CRC-32 of a checkpoint's metadata and tensors; safetensors itself has none."""
    total = zlib.crc32(json.dumps(sorted(metadata.items())).encode())
    for name, value in sorted(tensors.items()):
        total = zlib.crc32(name.encode(), total)
        total = zlib.crc32(value.reshape(-1).view(torch.uint8).numpy().data, total)
    return f"{total:08x}"
