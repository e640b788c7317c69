"""A training under somebody's eyes: progress on a console, and signals and closed pipes that end it in good order."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console

from training.display import TrainingProgress
from training.run import RunDirectory, resuming
from training.stopping import CLOSED_PIPE, Stopped, Stopping
from training.variant import Label


@contextmanager
def shown(labels: list[Label], epochs: int, console: Console) -> Iterator[tuple[TrainingProgress, Stopping]]:
    """What to hand to `train` or `resume`: a progress on the console, and who listens to signals.

    A closed pipe ends the training inside as a signal does, and nothing is printed any more. After all is written,
    `ended` says how.
    """
    with Stopping() as stopping:
        try:
            with TrainingProgress(labels, epochs, console) as progress:
                yield progress, stopping
        except BrokenPipeError:
            stopping.requested = CLOSED_PIPE
            console.quiet = True
        if stopping.requested == getattr(signal, "SIGHUP", None):
            console.quiet = True  # its terminal is gone


def ended(stopping: Stopping, path: Path, epochs: int) -> None:
    """Stopped, if something has ended the training in `path` before its time: what follows `&&` is not to run then."""
    if stopping.requested is not None and RunDirectory.open(path).epoch < epochs:
        raise Stopped(stopping.requested, f"continue with: {resuming(path)}")
