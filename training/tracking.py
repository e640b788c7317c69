"""A training whose epochs trackers of experiments draw too: they are told what metrics.jsonl says, line by line."""

import json
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from engine import EvenflowWarning
from training.errors import RunError
from training.experiment import Experiment, Follower, Progress
from training.files import reason, write_whole
from training.measures import EpochRecord
from training.metrics import METRICS, from_json
from training.run import RunDirectory
from training.summary import groups
from training.trackers import TRACKERS, Tracked, Tracker, check_trackers, missing
from training.trainer import Trainer
from training.variant import Label

_KEPT = "tracking.json"
_LONGEST = 200  # characters of what another program says of its error


class _Told(NamedTuple):
    """What is known of a tracker from one process to the next: how it is found again, and the last epoch it has."""

    identity: str | None = None
    epoch: int = 0


class Tracking:
    """A progress, as `train` and `resume` take one, that has trackers draw each epoch.

    Those that followed the run before go on. Each gets every epoch once: of a run that is resumed what it lacks, and
    nothing that it has, since epochs that are made again come out the same. One that fails is told of in a warning,
    and the training goes on without it. Use as a context manager, which closes them:

        with Tracking(["tensorboard"], out) as tracking:
            train(experiment, out, tracking)

    Args:
        names: of trackers.
        path: of the run, which need not be there yet.
        progress: that sees every epoch first.

    Raises:
        SettingError: no tracker of such a name, or one whose package is not installed.
        RunError: a run whose tracking.json cannot be read.
    """

    def __init__(self, names: Sequence[str], path: str | Path, progress: Progress | None = None):
        check_trackers(names)
        self._path, self._progress = Path(path), progress
        self._told = _read(self._path / _KEPT)
        for name in names:
            self._told.setdefault(name, _Told())
        self._open: dict[str, Tracker] = {}
        self._members: list[str] = []
        self._place = 0  # in metrics.jsonl: what stands before it was told

    def __enter__(self) -> "Tracking":
        return self

    def __exit__(self, *_) -> None:
        for name, tracker in list(self._open.items()):
            self._try(name, tracker.close)
        self._open.clear()

    def follow(self, trainer: Trainer) -> None:
        """Open the trackers of a run that is about to be trained, and tell them the epochs that they lack."""
        self._begin()
        self._tell()
        if isinstance(self._progress, Follower):
            self._progress.follow(trainer)

    def __call__(self, trainer: Trainer, record: EpochRecord) -> None:
        if self._progress is not None:
            self._progress(trainer, record)
        self._tell()

    def _begin(self) -> None:
        """Open the trackers."""
        if not self._told:
            return
        config = RunDirectory.open(self._path).config
        self._members, settings = member_names(Experiment.from_config(config).labels()), _texts(config)
        for name, told in self._told.items():
            if missing(name):
                _warn(f"{missing(name).removesuffix('.')}; the training goes on without it.")
                continue
            run = Tracked(self._path, settings, told.identity)
            tracker = self._try(name, lambda make=TRACKERS[name], run=run: make(run))
            if tracker is not None:
                self._open[name] = tracker
                self._told[name] = told._replace(identity=tracker.identity)

    def _tell(self) -> None:
        """Have the trackers draw what metrics.jsonl says and they do not have yet."""
        if not self._open:
            return
        for line in self._lines():
            epoch, found = line["epoch"], numbers(line, self._members)
            for name, tracker in list(self._open.items()):
                if epoch > self._told[name].epoch:
                    self._try(name, lambda tracker=tracker, at=epoch, found=found: tracker.log(at, found))
                    if name in self._open:
                        self._told[name] = self._told[name]._replace(epoch=epoch)
        kept = {name: told._asdict() for name, told in self._told.items() if told.identity is not None}
        with suppress(OSError):  # a full disk ends the training by what it writes itself
            write_whole(self._path / _KEPT, json.dumps(kept) + "\n")

    def _lines(self) -> Iterator[dict[str, Any]]:
        """Complete lines that were not told yet."""
        with suppress(FileNotFoundError), open(self._path / METRICS, "rb") as file:
            file.seek(self._place)
            for line in file:
                if line.endswith(b"\n"):
                    self._place += len(line)
                    yield from_json(line)

    def _try(self, name: str, work: Callable[[], Any]) -> Any:
        """What `work()` returns; None, and a warning, where a tracker fails, which is left out from then on."""
        try:
            return work()
        except Exception as error:  # of somebody else's program, which may raise anything
            failed = self._open.pop(name, None)
            if failed is not None:
                with suppress(Exception):
                    failed.close()
            text = " ".join(str(error).split())[:_LONGEST].rstrip(".") or "no message"
            _warn(f"{name} failed with {type(error).__name__} ({text}); the training goes on without it.")
            return None


def numbers(line: Mapping[str, Any], members: Sequence[str]) -> dict[str, float]:
    """What a line of metrics.jsonl says, by names such as "test_loss/C seed 3"; 1 for who has diverged, else 0.

    None are left out, and the epoch, which all of them are numbers of.
    """
    found: dict[str, float | None] = {}
    for name, value in line.items():
        if name == "diverged":
            value = [float(member in value) for member in range(len(members))]
        if isinstance(value, list):
            found |= {f"{name}/{member}": one for member, one in zip(members, value, strict=True)}
        elif name != "epoch":
            found[name] = value
    return {name: value for name, value in found.items() if value is not None}


def member_names(labels: Sequence[Label]) -> list[str]:
    """Members as charts call them, such as "C seed 3": by the group that a summary shows them in."""
    of = {member: group.name for group in groups(labels) for member in group.members}
    return [f"{of[index]} seed {label.seed}" for index, label in enumerate(labels)]


def _texts(values: Mapping[str, Any], above: str = "") -> dict[str, str]:
    """Settings as texts, those of what is inside another by both names."""
    found: dict[str, str] = {}
    for key, value in values.items():
        inside = isinstance(value, Mapping)
        found |= _texts(value, f"{above}{key}.") if inside else {f"{above}{key}": str(value)}
    return found


def _read(file: Path) -> dict[str, _Told]:
    """The trackers that followed a run so far; RunError if that cannot be read."""
    try:
        found = from_json(file.read_bytes())
        told = {name: _Told(**kept) for name, kept in found.items()}
        if all(name in TRACKERS and type(of.identity) is str and type(of.epoch) is int for name, of in told.items()):
            return told
        why = "other content"
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except OSError as error:
        why = reason(error)
    except (AttributeError, TypeError):
        why = "other content"
    raise RunError(f"Expected the trackers of the run in {file}, got {why}; remove it to track anew.")


def _warn(sentence: str) -> None:
    warnings.warn(sentence, EvenflowWarning, stacklevel=2)
