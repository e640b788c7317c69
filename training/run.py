"""Run directories: configuration, metrics and checkpoints of one training, from which it can be resumed exactly.

    config.yaml                          everything needed to repeat the run
    metrics.jsonl                        one line an epoch
    checkpoints/epoch-000010.safetensors parameters, optimiser, random generators
    *.png                                figures

Files are written whole, under a temporary name, and then renamed. Tensors are read as safetensors and settings as
plain YAML: nothing that is read can run code. A checksum in a checkpoint tells whether it is as it was written.
"""

import json
import math
import os
import tempfile
import zlib
from collections.abc import Collection, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from engine import RunError, SettingError
from training.checks import check_types
from training.trainer import Divergence, EpochRecord, Trainer

FORMAT = 1
_KIND = "evenflow run"
_CHECKPOINT_KIND = "evenflow checkpoint"


class RunDirectory:
    """A directory that holds one run. Use `create` for a new run and `open` for one that exists."""

    def __init__(self, path: Path, config: dict[str, Any]):
        self.path, self.config = path, config

    @classmethod
    def create(cls, path: str | Path, config: dict[str, Any]) -> "RunDirectory":
        """A new run in an empty or absent directory; RunError if it holds anything or cannot be written."""
        path = Path(path)
        try:
            if path.exists() and not path.is_dir():
                raise RunError(f"Expected a directory for the run, got the file {path}; choose another --out.")
            if path.exists() and any(path.iterdir()):
                raise RunError(
                    f"Expected an empty or new run directory, got {path}, which holds files; choose another --out or "
                    "continue it with --resume."
                )
            (path / "checkpoints").mkdir(parents=True)
            _write(path / "config.yaml", yaml.safe_dump({"kind": _KIND, "format": FORMAT, **config}, sort_keys=False))
        except OSError as error:
            raise RunError(f"Expected a run directory that can be written, got {path}: {error.strerror}.") from error
        return cls(path, config)

    @classmethod
    def open(cls, path: str | Path) -> "RunDirectory":
        """The run in this directory; RunError if there is none or it is of a newer format."""
        path = Path(path)
        file = path / "config.yaml"
        try:
            config = yaml.safe_load(file.read_text())
        except FileNotFoundError as error:
            raise RunError(f"Expected a run directory with a config.yaml, got {path}, which has none.") from error
        except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
            raise RunError(f"Expected {file} as plain YAML, got something that cannot be read as such.") from error
        if not isinstance(config, dict) or config.pop("kind", None) != _KIND:
            raise RunError(f"Expected {file} to describe a run, got other content.")
        version = config.pop("format", None)
        if version != FORMAT:
            raise RunError(f"Expected a run of format {FORMAT}, got format {version!r} in {file}; use its own version.")
        return cls(path, config)

    def append(self, record: EpochRecord, seconds: float, divergences: dict[int, Divergence]) -> None:
        """Add one line to the metrics; losses that are not finite are written as null."""
        line = {
            "epoch": record.epoch,
            "seconds": round(seconds, 4),
            "train_loss": [_finite(value) for value in record.train_loss],
            "test_loss": [_finite(value) for value in record.test_loss],
            "diverged": sorted(divergences),
        }
        with open(self.path / "metrics.jsonl", "a") as handle:
            handle.write(json.dumps(line) + "\n")

    def metrics(self) -> list[dict[str, Any]]:
        """All complete lines of the metrics; a line cut off by a kill is left out."""
        file = self.path / "metrics.jsonl"
        try:
            lines = file.read_text(errors="replace").splitlines(keepends=True)
        except FileNotFoundError:
            return []
        except OSError as error:
            raise RunError(f"Expected metrics that can be read, got {file}: {error.strerror}.") from error
        records = []
        for number, line in enumerate(lines):
            if not line.endswith("\n"):
                break
            try:
                record = json.loads(line)
            except (ValueError, RecursionError):
                record = None
            if not _is_record(record):
                raise RunError(
                    f"Expected an epoch's losses as JSON in line {number + 1} of {file}, got something else."
                )
            records.append(record)
        return records

    def save(self, trainer: Trainer, milestones: Collection[int] | None = None) -> Path:
        """Write a checkpoint of the trainer after its last completed epoch.

        With `milestones`, checkpoints of other epochs are removed but for the last two.
        """
        tensors = {name: value.detach().cpu().contiguous() for name, value in trainer.state().items()}
        metadata = {
            "kind": _CHECKPOINT_KIND,
            "format": str(FORMAT),
            "epoch": str(trainer.epoch),
            "divergences": json.dumps([asdict(entry) for entry in trainer.divergences.values()]),
        }
        metadata["checksum"] = _checksum(tensors, metadata)
        path = self.path / "checkpoints" / f"epoch-{trainer.epoch:06d}.safetensors"
        _write(path, save(tensors, metadata))
        if milestones is not None:
            for old in self.checkpoints()[:-2]:
                if _epoch(old) not in milestones:
                    old.unlink()
        return path

    def checkpoints(self) -> list[Path]:
        """Complete checkpoints, oldest first."""
        files = (self.path / "checkpoints").glob("epoch-*.safetensors")
        return sorted((file for file in files if file.stem[len("epoch-") :].isdecimal()), key=_epoch)

    def restore(self, trainer: Trainer, checkpoint: Path | None = None) -> int:
        """Load a checkpoint (the last by default) into a trainer of the same configuration; returns its epoch.

        Metrics of later epochs are cut off: the continued run writes the same lines again.
        """
        found, records = self.checkpoints(), self.metrics()
        if checkpoint is None and not found:
            if records:
                raise RunError(
                    f"Expected a checkpoint to continue from in {self.path}, got {len(records)} epochs of metrics and "
                    "none; train anew in another directory."
                )
            return 0
        epoch = _load(checkpoint or found[-1], trainer)
        kept = [record for record in records if record["epoch"] <= epoch]
        try:
            _write(self.path / "metrics.jsonl", "".join(json.dumps(record) + "\n" for record in kept))
        except OSError as error:
            raise RunError(f"Expected to write the run in {self.path}, got: {error.strerror}.") from error
        return epoch


def _load(path: Path, trainer: Trainer) -> int:
    """Load a checkpoint into a trainer that it fits; returns its epoch."""
    epoch, tensors, divergences = read_checkpoint(path)
    expected = trainer.state()
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
    if sorted(divergences) != frozen:
        raise RunError(f"Expected members {frozen} as diverged in {path}, got {sorted(divergences)}.")
    try:
        trainer.load(epoch, tensors, divergences)
    except RuntimeError as error:
        raise RunError(f"Expected states of random generators in {path}, got something else.") from error
    return epoch


def read_checkpoint(path: Path) -> tuple[int, dict[str, torch.Tensor], dict[int, Divergence]]:
    """(epoch, tensors, divergences) of a checkpoint file; RunError if it is damaged or not ours."""
    try:
        with safe_open(str(path), framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError, RuntimeError) as error:
        raise RunError(
            f"Expected a checkpoint in safetensors, got {path}, which is damaged or not one; "
            "remove it to continue from the one before."
        ) from error
    if metadata.get("kind") != _CHECKPOINT_KIND or metadata.get("format") != str(FORMAT):
        raise RunError(f"Expected an Evenflow checkpoint of format {FORMAT}, got other tensors in {path}.")
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
        if epoch < 0 or set(metadata) != {"kind", "format", "epoch", "divergences"}:
            raise ValueError(metadata)
    except (AttributeError, KeyError, TypeError, ValueError, RecursionError, SettingError) as error:
        raise RunError(f"Expected epoch and divergences in checkpoint {path}, got damaged metadata.") from error
    return epoch, tensors, divergences


def _checksum(tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str]) -> str:
    """CRC-32 of a checkpoint's metadata and tensors; safetensors itself has none."""
    total = zlib.crc32(json.dumps(sorted(metadata.items())).encode())
    for name, value in sorted(tensors.items()):
        total = zlib.crc32(name.encode(), total)
        total = zlib.crc32(value.reshape(-1).view(torch.uint8).numpy().data, total)
    return f"{total:08x}"


def _epoch(path: Path) -> int:
    """The epoch that a checkpoint's name gives."""
    return int(path.stem[len("epoch-") :])


def _is_record(value: Any) -> bool:
    """Whether a line of the metrics is what `append` writes."""
    return (
        isinstance(value, dict)
        and isinstance(value.get("epoch"), int)
        and isinstance(value.get("seconds"), (int, float))
        and all(isinstance(value.get(name), list) for name in ("train_loss", "test_loss", "diverged"))
    )


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _write(path: Path, content: str | bytes) -> None:
    """Write a file so that it is there whole or not at all."""
    data = content.encode() if isinstance(content, str) else content
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "wb") as handle:
            handle.write(data)
            handle.flush()
            os.fsync(handle.fileno())
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
