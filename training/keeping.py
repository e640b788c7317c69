"""What a training leaves in its run directory whatever ends it."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from training.errors import RunError
from training.files import reason
from training.ranks import RankError
from training.run import RunDirectory, epoch_of, resuming
from training.trainer import Trainer


@contextmanager
def kept(run: RunDirectory, trainer: Trainer, milestones: Sequence[int] | None) -> Iterator[None]:
    """A checkpoint of the last whole epoch where something fails; where a rank is gone, the word how to go on."""
    try:
        yield
    except RankError as error:
        keep(run, trainer, milestones)
        raise RankError(
            f"{str(error).partition(';')[0]}; continue with the same torchrun and: {resuming(run.path)}."
        ) from error
    except RunError:  # it may be that nothing can be written
        raise
    except Exception:
        keep(run, trainer, milestones)
        raise


def keep(run: RunDirectory, trainer: Trainer, milestones: Sequence[int] | None) -> None:
    """Have a checkpoint of the last epoch."""
    with writes(run):
        found = run.checkpoints()
        if not found or epoch_of(found[-1]) != trainer.epoch:
            run.save(trainer, milestones)


@contextmanager
def writes(run: RunDirectory) -> Iterator[None]:
    """RunError where a run cannot be written."""
    try:
        yield
    except OSError as error:
        raise RunError(f"Expected to write the run in {run.path}, got: {reason(error)}.") from error
