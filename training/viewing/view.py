"""`evenflow view`: in a window where there is a display, else into a recording."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from engine import BackendError, SettingError, available_backends
from engine.checks import whole
from training.files import free_beside
from training.viewing.drawings import has_display
from training.viewing.film import check_film, write_film
from training.viewing.show import Show
from training.viewing.watching import Watched


@dataclass(frozen=True)
class ViewSettings:
    """How to watch."""

    seed: int = 0
    """Of the initial state."""
    gradient: tuple[str, ...] = ()
    """Gradients, such as C or "clip-norm(R, 1)", whose adjoints are played backwards after the rollout."""
    speed: float = 1.0
    """1 is real time where steps have a length in seconds, else 25 steps a second."""
    record: Path | None = None
    """FILE.mp4, FILE.gif or a directory for pictures, instead of a window."""
    window: bool = False
    """Insist on a window; without one and without a display, the view is recorded."""
    size: int = 480
    """Pixels of a panel's side."""

    def __post_init__(self):
        whole("a size from 100 to 2000 pixels", self.size, 100, 2000)
        if self.window and self.record is not None:
            raise SettingError("Expected a window or a recording, got both --window and --record; drop one of them.")


def view(controllers: Sequence[Watched], settings: ViewSettings, console: Console) -> Path | None:
    """Show controllers side by side, or one with its gradients; returns the recording, if that is what it became."""
    if settings.window and not has_display():
        raise BackendError("Expected a display for --window, got none; record with --record FILE.mp4.")
    if settings.record is not None:
        check_film(settings.record)  # before anything is compiled for it
    show = Show(controllers, settings.gradient, settings.seed, settings.speed)
    if settings.record is None and has_display():
        _open(show, settings)
        return None
    out = settings.record or free_beside(Path(f"{controllers[0].task.name}-seed-{settings.seed}.gif"))
    if settings.record is None:
        console.print("no display, so the view is recorded", style="dim")
    return write_film(show, out, settings.size // 2 * 2, console)


def _open(show: Show, settings: ViewSettings) -> None:
    """A window of three dimensions for what has them, where Vulkan is there; else, and for gradients, a flat one."""
    # The profile of a gradient stands beside its bodies, in the plane.
    if not settings.gradient and show.solids() and "vulkan" in available_backends():
        from training.viewing.space_window import SpaceWindow

        SpaceWindow(show, settings.size).run()
    else:
        from training.viewing.window import Window

        Window(show, settings.size).run()
