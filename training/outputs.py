"""Files that a command is told to write: refused before it has worked for them, not after."""

import os
from collections.abc import Sequence
from pathlib import Path

from engine import SettingError
from training.errors import RunError

PICTURES = (".png", ".pdf", ".svg", ".jpg")


def check_new_file(path: Path, endings: Sequence[str], what: str) -> None:
    """See that a file can be written to `path`; nothing is written.

    Args:
        endings: of its name, in small letters; the file is of the kind that its own says, in whatever letters.
        what: what it holds, for the message.

    Raises:
        SettingError: another ending, or a place that cannot be written.
        RunError: something is there already.
    """
    if path.suffix.lower() not in endings:
        known = f"{', '.join(endings[:-1])} or {endings[-1]}" if len(endings) > 1 else endings[0]
        raise SettingError(f"Expected {what} as a file that ends in {known}, got {path}.")
    if os.path.lexists(path):
        raise RunError(f"Expected a new file for {what}, got {path}, which exists; choose another --out.")
    check_place(path, what)


def check_place(path: Path, what: str) -> None:
    """SettingError unless `path` could be made, file or directory; nothing is."""
    try:
        os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        pass
    except OSError as error:  # a name too long, a loop of links, a directory that may not be looked into
        raise SettingError(f"Expected a place for {what} that can be written, got {path}: {error.strerror}.") from error
    folder = next(parent for parent in path.absolute().parents if os.path.lexists(parent))
    if not folder.is_dir():
        raise SettingError(f"Expected a place for {what} that can be written, got {path} below the file {folder}.")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise SettingError(f"Expected a place for {what} that can be written, got {path}: no permission in {folder}.")


def check_folder(path: Path, what: str) -> None:
    """SettingError unless `path` is a directory that can be written, or could be made; nothing is."""
    if os.path.lexists(path) and not path.is_dir():
        raise SettingError(f"Expected a directory for {what}, got the file {path}; choose another --out.")
    check_place(path / "file", what)
