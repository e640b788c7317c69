"""Files that are there whole or not at all, and that never take the place of a user's."""

import errno
import hashlib
import itertools
import json
import os
import secrets
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from engine import SettingError
from training.errors import RunError

_WRITTEN = ".written.json"
_PART = ".part"


def as_path(wanted: str, value: Any) -> Path:
    """`value`, text or a path, as a path; SettingError for anything else, with what was wanted."""
    if not isinstance(value, (str, os.PathLike)):
        raise SettingError(f"Expected {wanted} as a path, got {value!r}.")
    return Path(value)


def write_whole(path: Path, content: str | bytes) -> Path:
    """Write a file so that it is there whole or not at all; one that was there is replaced. Returns `path`."""
    data = content.encode() if isinstance(content, str) else content
    part = path.with_name(f".{path.name}.{secrets.token_hex(6)}{_PART}")
    try:
        with open(part, "xb") as handle:
            handle.write(data)
            handle.flush()
            os.fsync(handle.fileno())
        os.replace(part, path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    return path


def complete_lines(path: Path) -> list[bytes]:
    """The lines of a file without the one that a kill has cut off; none of a file that is not there. OSError else."""
    try:
        return path.read_bytes().split(b"\n")[:-1]
    except FileNotFoundError:
        return []


def add_lines(path: Path, lines: Iterable[str]) -> None:
    """Add all of these lines or none, after the complete ones that are there."""
    there = b"".join(line + b"\n" for line in complete_lines(path))
    write_whole(path, there + "".join(f"{line}\n" for line in lines).encode())


def remove_parts(folder: Path, pattern: str) -> None:
    """Remove what a kill in the middle of `write_whole` left of files named like `pattern`."""
    for part in folder.glob(f".{pattern}.*{_PART}"):
        part.unlink(missing_ok=True)


def is_ours(path: Path) -> bool:
    """Whether the file is as `write_ours` wrote it: not a user's, and not changed by one."""
    try:
        digest = _written(path.parent).get(path.name)
        return digest is not None and not path.is_symlink() and digest == _digest(path.read_bytes())
    except OSError:
        return False


def write_ours(path: Path, content: str | bytes) -> Path:
    """Write a result in place of an earlier one of ours; returns where it stands.

    A file in the way that is not as we wrote it stays, and the result stands beside it, as name-2 and so on. What we
    wrote is remembered by its digest, in a file of the same directory, which is made if it is not there.

    Raises:
        RunError: a directory that cannot be written.
    """
    data = content.encode() if isinstance(content, str) else content
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path = free_beside(path, may_replace=is_ours)
        write_whole(path, data)
        remembered = _written(path.parent) | {path.name: _digest(data)}
        write_whole(path.parent / _WRITTEN, json.dumps(remembered, indent=1) + "\n")
    except OSError as error:
        raise RunError(f"Expected a file that can be written, got {path}: {reason(error)}.") from error
    return path


def free_beside(path: Path, may_replace: Callable[[Path], bool] = lambda path: False) -> Path:
    """`path`, or one like it, name-2 and so on, that nothing has yet or that may be replaced."""
    numbered = (path.with_stem(f"{path.stem}-{number}") for number in itertools.count(2))
    candidates = itertools.chain([path], numbered)
    return next(found for found in candidates if not os.path.lexists(found) or may_replace(found))


def reason(error: OSError) -> str:
    """What went wrong, in words."""
    return error.strerror or str(error) or errno.errorcode.get(error.errno or 0, type(error).__name__)


def _written(folder: Path) -> dict[str, str]:
    try:
        found = json.loads((folder / _WRITTEN).read_text())
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
