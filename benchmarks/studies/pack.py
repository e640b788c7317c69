"""One pack of a study: trainings that share an ensemble and its run directory, and what is written of each."""

import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks.studies.study import STUDY_FORMAT
from engine import current
from training import Experiment, RunDirectory, resume, train
from training.errors import RunError
from training.experiment import Progress
from training.optimisers import settings_to_file
from training.stopping import Stopping
from training.trainer import Trainer


@dataclass(frozen=True)
class Pack:
    """Trainings that share one ensemble and its run directory.

    Attributes:
        path: of the run directory.
        phase: "report", or "tuning" on seeds that are not reported.
        experiment: at this difficulty.
        needed: bytes that its buffers take, as planned.
    """

    path: Path
    phase: str
    difficulty: Any
    experiment: Experiment
    needed: int = 0


Watch = Callable[[Pack, int], Progress | None]
"""Called before each pack with the number of packs left; of one trained in this process, what it returns sees every
epoch."""


def train_pack(pack: Pack, progress: Progress | None, stopping: Stopping) -> list[dict[str, Any]]:
    """Train what is left of a pack, from its last checkpoint if it was begun.

    Returns:
        What is written of each training; nothing where a signal stopped it before its end.

    Raises:
        RunError: its run has more epochs than the study, since it was trained on by itself.
    """
    epochs = pack.experiment.epochs
    if (pack.path / "config.yaml").exists():
        done = len(RunDirectory.open(pack.path).metrics())
        if done > epochs:
            raise RunError(
                f"Expected a run of at most the {epochs} epochs of its study, got {pack.path} with {done}; move it "
                "away, or choose another --out."
            )
        trainer = resume(pack.path, progress, epochs, stopping)
    else:
        trainer = train(pack.experiment, pack.path, progress, stopping)
    return list(_results(pack, trainer)) if trainer.epoch >= epochs else []


def identities(pack: Pack) -> Iterator[dict[str, Any]]:
    """What identifies each training, by member."""
    experiment = pack.experiment
    for label in experiment.labels():
        yield {
            "format": STUDY_FORMAT,
            "task": experiment.task,
            "phase": pack.phase,
            "options": asdict(experiment.task_options),
            "difficulty": pack.difficulty,
            **label.to_file(),
            "epochs": experiment.epochs,
        }


def key_of(line: Mapping[str, Any]) -> tuple:
    """What no two trainings of a study have in common."""
    names = ("phase", "difficulty", "gradient", "clipping", "learning_rate", "seed", "epochs")
    return tuple(line[name] for name in names)


def _results(pack: Pack, trainer: Trainer) -> Iterator[dict[str, Any]]:
    """What is written of each member of a pack that is done."""
    experiment, runtime = pack.experiment, current()
    records = RunDirectory.open(pack.path).metrics()
    packages = {name: version(name) for name in ("taichi", "torch")}
    for member, identity in enumerate(identities(pack)):
        divergence = trainer.divergences.get(member)
        yield identity | {
            "settings": settings_to_file(asdict(experiment.settings)),
            "backend": runtime.backend,
            "precision": runtime.precision,
            "versions": {"python": platform.python_version(), **packages},
            "members": len(trainer.members),
            "seconds": records[-1]["seconds"],
            "run": str(pack.path.name),
            "member": member,
            "train_loss": [record["train_loss"][member] for record in records],
            "test_loss": [record["test_loss"][member] for record in records],
            **_validation(records, member),
            "diverged": None if divergence is None else asdict(divergence),
        }


def _validation(records: Sequence[Mapping[str, Any]], member: int) -> dict[str, Any]:
    """The losses on the validation states, where there are any."""
    losses = [record["validation_loss"][member] for record in records if "validation_loss" in record]
    return {"validation_loss": losses} if len(losses) == len(records) else {}
