"""`evenflow view`: its options, of a run and of a task."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

import tyro

from engine import SettingError
from training.machine import Machine, console
from training.viewing.view import ViewSettings, view
from training.viewing.watching import Watched, untrained, watched

Options = TypeVar("Options")


def _view(controllers: Sequence[Watched], settings: ViewSettings) -> None:
    Machine("cpu", controllers[0].precision).start()
    out = view(controllers, settings, console)
    if out is not None:
        console.print(f"recorded: {out}", highlight=False, soft_wrap=True)


@dataclass(frozen=True)
class View:
    """Watch a trained controller, compare two, or see how their gradients flow back.

    `evenflow view TASK` watches a task without a controller; `evenflow view TASK --help` shows its options.
    """

    run_or_task: tyro.conf.Positional[str | None] = None
    """RUN, or one of its controllers as RUN@C or RUN@C,3 (gradient, seed); by default that with the lowest loss."""
    compare: tuple[str, str] | None = None
    """Two controllers from the same start, side by side: RUN@R RUN@C."""
    settings: tyro.conf.OmitArgPrefixes[ViewSettings] = field(default_factory=ViewSettings)

    def run(self) -> None:
        if (self.run_or_task is None) == (self.compare is None):
            raise SettingError(
                "Expected evenflow view RUN_OR_TASK, or evenflow view --compare RUN@R RUN@C, got "
                f"{'neither' if self.compare is None else 'both'}."
            )
        addresses = self.compare or (self.run_or_task,)
        _view([watched(address) for address in addresses if address is not None], self.settings)


@dataclass(frozen=True)
class ViewTask(Generic[Options]):
    """Watch a task without a controller."""

    options: tyro.conf.OmitArgPrefixes[Options]
    settings: tyro.conf.OmitArgPrefixes[ViewSettings] = field(default_factory=ViewSettings)

    def run(self) -> None:
        _view([untrained(self.options)], self.settings)  # pyright: ignore[reportArgumentType]
