"""Run directories: configuration, metrics and checkpoints of one training, from which it can be resumed exactly.

    config.yaml                          everything needed to repeat the run
    metrics.jsonl                        one line an epoch
    checkpoints/epoch-000010.safetensors parameters, optimiser, random generators
    *.png, report.html                   figures and reports; .written.json remembers which of them are ours
    tensorboard/, mlflow.db, ...         of trackers, which tracking.json remembers
    .lock                                while somebody writes

Files are written whole, under a temporary name, and then renamed, by one writer at a time. Readers need no lock, and
reading writes nothing. Tensors are read as safetensors and settings as plain YAML: nothing that is read can run code.
"""

import json
import os
import re
import shlex
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from training.checkpoint import check_settings, continue_from, load_checkpoint, read_checkpoint, write_checkpoint
from training.divergence import Divergence
from training.errors import RunError
from training.files import as_path, reason, remove_parts, write_whole
from training.lock import LOCK, only_writer
from training.metrics import MEASURED, METRICS, first_lines, for_json, read_metrics
from training.plugins import words_again
from training.trainer import EpochRecord, Trainer

__all__ = ["RUN_FORMAT", "RunDirectory", "read_checkpoint"]

RUN_FORMAT = 1
_KIND = "evenflow run"
_CONFIG, _CHECKPOINTS = "config.yaml", "checkpoints"


class StoredRuntime(NamedTuple):
    """What a run or a study was trained on."""

    backend: str
    precision: str


class RunDirectory:
    """A directory that holds one run. Use `create` for a new run and `open` for one that exists."""

    def __init__(self, path: Path, config: dict[str, Any]):
        self.path, self.config = path, config
        self._writing = False

    @classmethod
    def create(cls, path: str | Path, config: dict[str, Any]) -> "RunDirectory":
        """A new run in an empty or absent directory; RunError if it holds anything or cannot be written."""
        path = as_path("a run directory", path)
        cls.check_new(path)
        run = cls(path, config)
        try:
            made = _first_to_make(path)
            path.mkdir(parents=True, exist_ok=True)
            try:
                with run.writing():
                    _check_empty(path)
                    (path / _CHECKPOINTS).mkdir(exist_ok=True)
                    head = {"kind": _KIND, "format": RUN_FORMAT}
                    write_whole(path / _CONFIG, yaml.safe_dump({**head, **config}, sort_keys=False))
            except BaseException:
                _remove_empty(path / _CHECKPOINTS, made)
                raise
        except OSError as error:
            raise RunError(f"Expected a run directory that can be written, got {path}: {reason(error)}.") from error
        return run

    @staticmethod
    def check_new(path: str | Path) -> None:
        """RunError unless nothing is in the way of a new run in this directory; nothing is made."""
        path = as_path("a run directory", path)
        try:
            _check_empty(path)
        except OSError as error:
            raise RunError(f"Expected a run directory that can be written, got {path}: {reason(error)}.") from error

    @classmethod
    def open(cls, path: str | Path) -> "RunDirectory":
        """The run in this directory; RunError if there is none or it is of a newer format."""
        path = as_path("a run directory", path)
        file = path / _CONFIG
        try:
            config = yaml.safe_load(file.read_text(encoding="utf-8"))
        except (FileNotFoundError, NotADirectoryError) as error:
            note = ", a study of several runs" if (path / "study.yaml").is_file() else ""
            raise RunError(f"Expected a run directory with a config.yaml, got {path}{note}, which has none.") from error
        except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
            raise RunError(f"Expected {file} as plain YAML, got something that cannot be read as such.") from error
        if not isinstance(config, dict) or config.pop("kind", None) != _KIND:
            raise RunError(f"Expected {file} to describe a run, got other content.")
        version = config.pop("format", None)
        if version != RUN_FORMAT:
            raise RunError(
                f"Expected a run of format {RUN_FORMAT}, got format {version!r} in {file}; use its own version."
            )
        return cls(path, config)

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Be the only one who writes this run, for as long as this lasts; RunError if somebody else does."""
        if self._writing:
            yield
            return
        with only_writer(self.path):
            self._writing = True
            try:
                yield
            finally:
                self._writing = False

    def append(self, record: EpochRecord, seconds: float, divergences: Mapping[int, Divergence]) -> None:
        """Add one line to the metrics; numbers that are not finite are written as null."""
        line = {
            "epoch": record.epoch,
            "seconds": round(seconds, 4),
            "train_loss": record.train_loss,
            "test_loss": record.test_loss,
            "diverged": sorted(divergences),
        }
        found = {name: getattr(record, name) for name in ("validation_loss", *MEASURED, "update_seconds")}
        line = for_json(line | {name: value for name, value in found.items() if value is not None})
        with self.writing(), open(self.path / METRICS, "a") as handle:
            handle.write(json.dumps(line) + "\n")

    def metrics(self) -> list[dict[str, Any]]:
        """All complete lines of the metrics; a line cut off by a kill is left out, a damaged one is a RunError."""
        return read_metrics(self.path / METRICS, _member_count(self.config))

    def save(self, trainer: Trainer, milestones: Collection[int] | None = None) -> Path:
        """Write a checkpoint of the trainer after its last completed epoch.

        With `milestones`, checkpoints of other epochs are removed but for the last two.
        """
        path = self.path / _CHECKPOINTS / f"epoch-{trainer.epoch:06d}.safetensors"
        with self.writing():
            _settle(self.path / METRICS)  # so that a checkpoint never knows more epochs than the metrics
            write_checkpoint(path, trainer, self.config)
            if milestones is not None:
                for old in self.checkpoints()[:-2]:
                    if epoch_of(old) not in milestones:
                        old.unlink()
        return path

    def checkpoints(self) -> list[Path]:
        """Complete checkpoints, oldest first."""
        files = (self.path / _CHECKPOINTS).glob("epoch-*.safetensors")
        return sorted((file for file in files if file.stem[len("epoch-") :].isdecimal()), key=epoch_of)

    @property
    def runtime(self) -> StoredRuntime:
        """The backend and the precision that it was trained with; RunError if config.yaml does not say."""
        return stored_runtime(self.config, self.path / _CONFIG)

    @property
    def epoch(self) -> int:
        """Epoch of the last checkpoint; 0 without any."""
        found = self.checkpoints()
        return epoch_of(found[-1]) if found else 0

    def check_settings(self) -> None:
        """RunError, which says what differs, if config.yaml has other settings than the last checkpoint."""
        found = self.checkpoints()
        trained = load_checkpoint(found[-1]).description if found else {}
        if trained:
            check_settings(trained["config"], self.config, found[-1])

    def restore(self, trainer: Trainer, checkpoint: Path | None = None) -> int:
        """Load a checkpoint (the last by default) into a trainer of the same configuration; returns its epoch.

        Nothing is written. To train on from there, `rewind` to that epoch first.
        """
        found, records = self.checkpoints(), self.metrics()
        if checkpoint is None and not found:
            if records:
                raise RunError(
                    f"Expected a checkpoint to continue from in {self.path}, got {len(records)} epochs of metrics and "
                    "none; train anew in another directory."
                )
            return 0
        return continue_from(checkpoint or found[-1], trainer, self.config)

    def rewind(self, epoch: int, epochs: int | None = None) -> None:
        """Make ready to train on after `epoch`: metrics of later epochs go, and so do the remains of a kill.

        Args:
            epochs: the new total, which is recorded in config.yaml.

        Raises:
            RunError: metrics of fewer epochs, or a directory that cannot be written; then all is as it was.
        """
        file, records = self.path / METRICS, self.metrics()
        if len(records) < epoch:
            raise RunError(
                f"Expected metrics of {epoch} epochs in {file}, as many as the checkpoint has, got {len(records)}; "
                "restore the file, or remove later checkpoints to train those epochs again."
            )
        try:
            with self.writing():
                remove_parts(self.path / _CHECKPOINTS, "epoch-*")
                remove_parts(self.path, METRICS)
                remove_parts(self.path, _CONFIG)
                kept = first_lines(file, epoch)
                if file.exists() and file.read_bytes() != kept:
                    write_whole(file, kept)
                if epochs is not None and epochs != self.config.get("epochs"):
                    self._record_total(epochs)
        except OSError as error:
            raise RunError(f"Expected to write the run in {self.path}, got: {reason(error)}.") from error

    def _record_total(self, epochs: int) -> None:
        """Change the total of epochs in config.yaml, and nothing else of it: comments stay where they are."""
        file = self.path / _CONFIG
        wanted = {**self.config, "epochs": epochs}
        text = re.sub(r"^epochs:[^\n]*", f"epochs: {epochs}", file.read_text(encoding="utf-8"), flags=re.MULTILINE)
        whole = {"kind": _KIND, "format": RUN_FORMAT, **wanted}
        if yaml.safe_load(text) != whole:
            text = yaml.safe_dump(whole, sort_keys=False)
        write_whole(file, text)
        self.config = wanted


class RunOfOthers(RunDirectory):
    """A run that another process writes: it is read as any, and what would be written is left to that one."""

    @classmethod
    def create(cls, path: str | Path, config: dict[str, Any]) -> "RunDirectory":
        return cls(Path(path), config)

    @contextmanager
    def writing(self) -> Iterator[None]:
        yield

    def append(self, record: EpochRecord, seconds: float, divergences: Mapping[int, Divergence]) -> None:
        pass

    def save(self, trainer: Trainer, milestones: Collection[int] | None = None) -> Path:
        return self.path

    def rewind(self, epoch: int, epochs: int | None = None) -> None:
        pass


def resuming(path: str | Path) -> str:
    """The command that continues a run, with the plug-ins that are loaded."""
    return f"evenflow train --resume {shlex.quote(str(path))}{words_again()}"


def stored_runtime(config: Mapping[str, Any], file: Path) -> StoredRuntime:
    """The runtime that a configuration names; RunError if it names none."""
    found = config.get("runtime")
    backend, precision = (found.get("backend"), found.get("precision")) if isinstance(found, dict) else (None, None)
    if precision not in ("float32", "float64"):
        raise RunError(f"Expected a precision in {file}, got {precision!r}; train the run again.")
    if not isinstance(backend, str):
        raise RunError(f"Expected a backend in {file}, got {backend!r}; train the run again.")
    return StoredRuntime(backend, precision)


def epoch_of(checkpoint: Path) -> int:
    """The epoch that a checkpoint's name gives."""
    return int(checkpoint.stem[len("epoch-") :])


def _member_count(config: Mapping[str, Any]) -> int | None:
    """P of a configuration, as `Experiment.labels` has it; None of one that does not say."""
    try:
        grid = len(config["gradients"]) * len(config["clippings"]) * len(config["learning_rates"])
        return (len(config.get("variants") or ()) or grid) * len(config["seeds"])
    except (KeyError, TypeError):
        return None


def _check_empty(path: Path) -> None:
    """RunError if a run cannot be made here since something stands there; a run that was hardly begun does not."""
    if path.exists() and not path.is_dir():
        raise RunError(f"Expected a directory for the run, got the file {path}; choose another --out.")
    for entry in path.iterdir() if path.exists() else ():
        hardly_begun = entry.name == _CHECKPOINTS and entry.is_dir() and not any(entry.iterdir())
        if entry.name != LOCK and not hardly_begun:
            raise RunError(
                f"Expected an empty or new run directory, got {path}, which holds files; choose another (--out), or "
                "continue it (--resume, or ef.resume)."
            )


def _first_to_make(path: Path) -> Path | None:
    """The outermost directory that has to be made for `path`; None if all are there."""
    missing = [folder for folder in (path, *path.parents) if not folder.exists()]
    return missing[-1] if missing else None


def _remove_empty(path: Path, outermost: Path | None) -> None:
    """Remove `path`, if nothing is in it, and those above it that were made for it, `outermost` the last of them."""
    with suppress(OSError):
        path.rmdir()
        for folder in path.parents if outermost is not None else ():
            folder.rmdir()
            if folder == outermost:
                return


def _settle(file: Path) -> None:
    """Have the system write down what a file holds."""
    if file.exists():
        with open(file, "rb+") as handle:
            os.fsync(handle.fileno())
