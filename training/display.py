"""How a training looks in a terminal: progress with the losses of every group, and the final table."""

from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from training.summary import outcomes
from training.trainer import EpochRecord, Trainer

_LINES = 10


class TrainingProgress:
    """A progress bar with each group's median test loss; where nothing can be redrawn, a line now and then.

    Use as a context manager; call it with the trainer and the record of every epoch.

    Args:
        labels: what sets the members apart.
        epochs: the total.
        console: where to write.
    """

    def __init__(self, labels: list[dict[str, Any]], epochs: int, console: Console):
        self._labels, self._epochs, self._console = labels, epochs, console
        columns = (TextColumn("epoch"), MofNCompleteColumn(), BarColumn(20), TextColumn("{task.description}"))
        self._progress = Progress(*columns, TimeRemainingColumn(), console=console, disable=not console.is_terminal)
        self._task = self._progress.add_task("test loss", total=epochs)
        self._diverged: set[int] = set()

    def __enter__(self) -> "TrainingProgress":
        self._progress.start()
        return self

    def __exit__(self, *_) -> None:
        self._progress.stop()

    def __call__(self, trainer: Trainer, record: EpochRecord) -> None:
        rows = outcomes(self._labels, record.test_loss, trainer.task.success)
        text = "  ".join(f"{row.group.name} {_number(row.median)}" for row in rows)
        self._progress.update(self._task, completed=record.epoch, description=f"test loss  {text}")
        every = max(1, self._epochs // _LINES)
        if not self._console.is_terminal and (record.epoch % every == 0 or record.epoch == self._epochs):
            self._console.print(f"epoch {record.epoch}/{self._epochs}  test loss  {text}", highlight=False)
        for member, divergence in trainer.divergences.items():
            if member not in self._diverged:
                self._diverged.add(member)
                label = self._labels[member]
                self._console.print(
                    f"{label['gradient']} with seed {label['seed']} diverged in update {divergence.update} of epoch "
                    f"{divergence.epoch}: {divergence.cause}; it is frozen, the others go on.",
                    highlight=False,
                )


def outcome_table(labels: list[dict[str, Any]], test_loss: list[float | None], threshold: float | None) -> Table:
    """Each group's final test loss over its seeds."""
    table = Table("gradient", "seeds", "median", "lowest", "highest", title="Final test loss")
    if threshold is not None:
        table.add_column(f"below {threshold:g}")
    table.add_column("diverged")
    for row in outcomes(labels, test_loss, threshold):
        cells = [row.group.name, str(len(row.group.members))]
        cells += [_number(value) for value in (row.median, row.lowest, row.highest)]
        table.add_row(*cells, *([] if row.solved is None else [str(row.solved)]), str(row.diverged))
    return table


def _number(value: float | None) -> str:
    return "diverged" if value is None else f"{value:.3g}"
