"""Recording what is shown, without a display: a film, an animated picture, or numbered pictures."""

import io
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import track

from engine import BackendError, SettingError
from training.outputs import check_place
from training.viewing.drawings import GuiCanvas
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


def write_film(show: Show, out: Path, size: int = 480, console: Console | None = None) -> Path:
    """Record to FILE.mp4, FILE.gif or a new or empty directory of PNGs.

    Raises:
        SettingError: another ending, a file or directory that holds something, or one that cannot be written.
        BackendError: no encoder for mp4.
    """
    check_film(out)
    try:
        with _writer(out) as write:
            shown = track(frames(show, size), "recording", frame_count(show), console=console, disable=console is None)
            for picture in shown:
                write(picture)
    except OSError as error:
        # An encoder that ends early says so at length, or not at all.
        reason = error.strerror or "the encoder could not write it all, as where the disk is full"
        raise SettingError(f"Expected a place to record to that can be written, got {out}: {reason}.") from error
    return out


def check_film(out: Path) -> None:
    """SettingError unless a recording can be written to FILE.mp4, FILE.gif or a new or empty directory."""
    kind = out.suffix.lower()
    if kind not in (".mp4", ".gif", ""):
        raise SettingError(f"Expected FILE.mp4, FILE.gif or a directory to record to, got {out}.")
    filled = out.is_dir() and (kind or any(out.iterdir()))
    if filled or (os.path.lexists(out) and not out.is_dir()):
        raise SettingError(f"Expected a new file or directory to record to, got {out}, which exists; choose another.")
    check_place(out, "a recording")


@contextmanager
def _writer(out: Path):
    """A function that takes pictures; what it makes is there when all are written, or not at all."""
    kind = out.suffix.lower()
    if kind == ".mp4":
        _check_encoder()
    out.parent.mkdir(parents=True, exist_ok=True)
    part = out.with_name(f".{out.stem}.{secrets.token_hex(6)}.part{kind}")
    try:
        with {".mp4": _film, ".gif": _animation, "": _pictures}[kind](part) as write:
            yield write
        if kind and os.path.lexists(out):  # made by somebody else in the meantime
            raise SettingError(f"Expected a new file to record to, got {out}, which exists by now; choose another.")
        os.replace(part, out)  # an empty directory may be in the place of a new one
    finally:
        if part.is_dir():
            shutil.rmtree(part)
        part.unlink(missing_ok=True)


@contextmanager
def _pictures(folder: Path):
    import imageio.v2 as imageio  # a tenth of a second that only recordings need wait for

    folder.mkdir()
    taken = iter(range(10**6))

    def write(picture: np.ndarray) -> None:
        buffer = io.BytesIO()
        imageio.imwrite(buffer, picture, format="png")  # pyright: ignore[reportArgumentType, reportCallIssue]
        (folder / f"frame-{next(taken):05d}.png").write_bytes(buffer.getvalue())

    yield write


@contextmanager
def _animation(path: Path):
    import imageio.v2 as imageio

    # All pictures are held until the end anyway, and a file that cannot be written is tried once, not at every close.
    buffer = io.BytesIO()
    with imageio.get_writer(buffer, format="GIF", mode="I", duration=1000 / FRAMES_PER_SECOND, loop=0) as file:  # type: ignore[arg-type]
        yield file.append_data  # type: ignore[attr-defined]
    path.write_bytes(buffer.getvalue())


@contextmanager
def _film(path: Path):
    import imageio.v2 as imageio
    import imageio_ffmpeg

    count = 0
    # Sides of a panel are even, as the usual colour format of films wants them.
    options = {"fps": FRAMES_PER_SECOND, "macro_block_size": 2, "quality": 7, "ffmpeg_log_level": "quiet"}
    with imageio.get_writer(path, **options) as file:  # type: ignore[arg-type]

        def write(picture: np.ndarray) -> None:
            nonlocal count
            file.append_data(picture)  # type: ignore[attr-defined]
            count += 1

        yield write
    try:  # an encoder that could not write its last part does not say so
        found, _ = imageio_ffmpeg.count_frames_and_secs(str(path))
    except RuntimeError:
        found = 0
    if found != count:
        raise OSError(f"{found} of {count} pictures arrived")


def _check_encoder() -> None:
    try:
        import imageio_ffmpeg

        imageio_ffmpeg.get_ffmpeg_exe()
    except (ImportError, RuntimeError) as error:
        raise BackendError(
            "Expected an encoder for mp4, got none; pip install imageio-ffmpeg, or record to FILE.gif or a directory."
        ) from error
