"""Recording what is shown, without a display: a film, an animated picture, or numbered pictures."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import track

from engine import BackendError, SettingError
from engine.drawing import GuiCanvas
from training.viewing.show import Show

FRAMES_PER_SECOND = 25
_HOLD = 20  # frames at the end


def frames(show: Show, size: int) -> Iterator[np.ndarray]:
    """Pictures [height, width, 3], uint8, from the present position to the end, and the last one held a while.

    They depend on the show alone: the same seed gives the same pictures.
    """
    canvas = GuiCanvas(show.title, show.panels, size)
    for _ in range(frame_count(show)):
        canvas.clear()
        canvas.paint(show.scenes())
        yield canvas.image()
        show.player.advance(1 / FRAMES_PER_SECOND)


def frame_count(show: Show) -> int:
    """How many pictures `frames` gives."""
    a_frame = show.player.steps_per_second * show.player.speed / FRAMES_PER_SECOND
    return int(np.ceil((show.player.end - show.player.position) / a_frame)) + 1 + _HOLD


def record(show: Show, out: Path, size: int = 480, console: Console | None = None) -> Path:
    """Record to FILE.mp4, FILE.gif or a new or empty directory of PNGs.

    Raises:
        SettingError: another ending, a file or directory that holds something, or one that cannot be written.
        BackendError: no encoder for mp4.
    """
    _check(out)
    try:
        with _writer(out) as write:
            shown = track(frames(show, size), "recording", frame_count(show), console=console, disable=console is None)
            for picture in shown:
                write(picture)
    except OSError as error:
        raise SettingError(
            f"Expected a place to record to that can be written, got {out}: {error.strerror}."
        ) from error
    return out


def _check(out: Path) -> None:
    if out.suffix not in (".mp4", ".gif", ""):
        raise SettingError(f"Expected FILE.mp4, FILE.gif or a directory to record to, got {out}.")
    filled = out.is_dir() and (out.suffix or any(out.iterdir()))
    if filled or (out.exists() and not out.is_dir()):
        raise SettingError(f"Expected a new file or directory to record to, got {out}, which exists; choose another.")


@contextmanager
def _writer(out: Path):
    """A function that takes pictures; a file is there when all are written, or not at all."""
    import imageio.v2 as imageio  # a tenth of a second that only recordings need wait for

    out.parent.mkdir(parents=True, exist_ok=True)
    if not out.suffix:
        out.mkdir(exist_ok=True)
        taken = iter(range(10**6))
        yield lambda picture: imageio.imwrite(out / f"frame-{next(taken):05d}.png", picture)
        return
    part = out.with_name(f".{out.stem}.part{out.suffix}")
    try:
        file = _open_film(part) if out.suffix == ".mp4" else imageio.get_writer(
            part, mode="I", duration=1000 / FRAMES_PER_SECOND, loop=0
        )  # fmt: skip
        with file:
            yield file.append_data  # type: ignore[attr-defined]
        os.replace(part, out)
    finally:
        part.unlink(missing_ok=True)


def _open_film(path: Path):
    try:
        import imageio.v2 as imageio
        import imageio_ffmpeg

        imageio_ffmpeg.get_ffmpeg_exe()
    except (ImportError, RuntimeError) as error:
        raise BackendError(
            "Expected an encoder for mp4, got none; pip install imageio-ffmpeg, or record to FILE.gif or a directory."
        ) from error
    # Sides of a panel are even, as the usual colour format of films wants them.
    return imageio.get_writer(path, fps=FRAMES_PER_SECOND, macro_block_size=2, quality=7)
