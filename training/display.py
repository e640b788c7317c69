"""How a training looks in a terminal: progress with the losses of every group, and the final table."""

import errno
import threading
import time

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from training.summary import loss_text, summaries
from training.trainer import EpochRecord, Trainer
from training.variant import Label

_LINES = 10
_SILENCE = 8.0  # seconds that a log may be silent; 10 s are promised


class TrainingProgress:
    """A progress bar with each group's median test loss; where nothing can be redrawn, lines of a log.

    A log gets a line for every tenth of the epochs and, whatever an epoch takes, one at least every 10 s.

    Use as a context manager; call it with the trainer and the record of every epoch. BrokenPipeError if nobody reads
    the log any more.

    Args:
        labels: what sets the members apart.
        epochs: the total.
        console: where to write.
    """

    def __init__(self, labels: list[Label], epochs: int, console: Console):
        self._labels, self._epochs, self._console = labels, epochs, console
        columns = (TextColumn("epoch"), MofNCompleteColumn(), BarColumn(20), TextColumn("{task.description}"))
        self._progress = Progress(*columns, TimeRemainingColumn(), console=console, disable=not console.is_terminal)
        self._task = self._progress.add_task("test loss", total=epochs)
        self._diverged: set[int] = set()
        self._trainer: Trainer | None = None
        self._began = self._spoke = time.monotonic()
        self._ended = threading.Event()
        self._clock: threading.Thread | None = None
        self._unheard: OSError | None = None

    def __enter__(self) -> "TrainingProgress":
        self._progress.start()
        if not self._console.is_terminal:
            self._clock = threading.Thread(target=self._fill_silence, daemon=True)
            self._clock.start()
        return self

    def __exit__(self, *_) -> None:
        self._progress.stop()
        self._ended.set()
        if self._clock is not None:
            self._clock.join()

    def follow(self, trainer: Trainer) -> None:
        """Look at a trainer between its epochs too."""
        self._trainer = trainer

    def __call__(self, trainer: Trainer, record: EpochRecord) -> None:
        if self._unheard is not None:
            raise self._unheard
        rows = summaries(self._labels, record.test_loss, trainer.task.success)
        text = "  ".join(f"{row.group.name} {loss_text(row.median)}" for row in rows)
        self._progress.update(self._task, completed=record.epoch, description=f"test loss  {text}")
        due = record.epoch % max(1, self._epochs // _LINES) == 0 or record.epoch == self._epochs
        if not self._console.is_terminal and (due or time.monotonic() - self._spoke >= _SILENCE / 2):
            self._say(f"epoch {record.epoch}/{self._epochs}  test loss  {text}")
        for member, divergence in trainer.divergences.items():
            if member not in self._diverged:
                self._diverged.add(member)
                label = self._labels[member]
                self._say(
                    f"{label.gradient} with seed {label.seed} diverged in update {divergence.update} of epoch "
                    f"{divergence.epoch}: {divergence.cause}; it is frozen, the others go on."
                )

    def _say(self, text: str) -> None:
        self._spoke = time.monotonic()
        try:
            self._console.print(text, highlight=False, soft_wrap=not self._console.is_terminal)
        except SystemExit as error:  # rich's answer to a closed pipe
            raise BrokenPipeError(errno.EPIPE, "nobody reads the progress any more") from error

    def _fill_silence(self) -> None:
        """Say where the training is whenever nothing was said for a while, until it ends."""
        while not self._ended.wait(max(self._spoke + _SILENCE - time.monotonic(), 0.01)):
            if time.monotonic() - self._spoke >= _SILENCE:
                try:
                    self._say(self._where())
                except OSError as error:
                    self._unheard = error
                    return

    def _where(self) -> str:
        trainer, seconds = self._trainer, f"{time.monotonic() - self._began:.0f} s"
        if trainer is None:
            return f"preparing, {seconds}"
        place = f"epoch {min(trainer.epoch + 1, self._epochs)}/{self._epochs}"
        return f"{place}  update {trainer.updates} of {trainer.updates_per_epoch}, {seconds}"


def summary_table(labels: list[Label], test_loss: list[float | None], threshold: float | None) -> Table:
    """Each group's final test loss over its seeds."""
    table = Table("gradient", "seeds", "median", "lowest", "highest", title="Final test loss")
    if threshold is not None:
        table.add_column(f"below {threshold:g}")
    table.add_column("diverged")
    for row in summaries(labels, test_loss, threshold):
        cells = [row.group.name, str(len(row.group.members))]
        cells += [loss_text(value) for value in (row.median, row.lowest, row.highest)]
        table.add_row(*cells, *([] if row.solved is None else [str(row.solved)]), str(row.diverged))
    return table
