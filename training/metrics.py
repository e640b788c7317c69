"""The lines of metrics.jsonl: one for each epoch, checked as they are read."""

import json
import math
from pathlib import Path
from typing import Any

from training.errors import RunError
from training.files import complete_lines, reason

Record = dict[str, Any]
METRICS = "metrics.jsonl"
MEASURED = ("gradient_norm", "clipped_norm", "adjoint_norm", "sign_agreement")
"""What a line says of each member besides its losses, as `EpochRecord` explains; lines of old runs do without."""


def read_metrics(file: Path, members: int | None = None) -> list[Record]:
    """All complete lines; one cut off by a kill is left out, and none are there without a file.

    Args:
        members: P, how many losses a line holds; by default as many as the first.

    Raises:
        RunError: what cannot be read, and lines that are not those of epochs 1, 2, 3, ... with P losses each.
    """
    return [record for record, _ in _read(file, members)]


def first_lines(file: Path, count: int) -> bytes:
    """The first `count` lines as they stand."""
    return b"".join(line for _, line in _read(file, None)[:count])


def are_losses(values: list[Any]) -> bool:
    """Whether these are losses as they are written: numbers, and null where they are not finite."""
    return all(value is None or is_number(value) for value in values)


def is_number(value: Any) -> bool:
    """Whether it is a finite number that JSON has."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:
        return False


def from_json(line: str | bytes) -> Any:
    """What a line of JSON says, None if it is none; NaN and infinities are not JSON."""
    try:
        return json.loads(line, parse_constant=_refuse)
    except (ValueError, RecursionError):
        return None


def for_json(value: Any) -> Any:
    """The same with null for numbers that JSON does not have; tuples are lists there."""
    if isinstance(value, dict):
        return {key: for_json(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [for_json(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def json_lines(file: Path, what: str) -> list[tuple[Any, bytes]]:
    """What each complete line of a file says, None where that is not JSON, and how it stands; RunError if unreadable.

    One cut off by a kill is left out, and none are there without a file.
    """
    try:
        return [(from_json(line), line + b"\n") for line in complete_lines(file)]
    except OSError as error:
        raise RunError(f"Expected {what} that can be read, got {file}: {reason(error)}.") from error


def _refuse(name: str) -> None:
    raise ValueError(name)


def _read(file: Path, members: int | None) -> list[tuple[Record, bytes]]:
    found = []
    for number, (record, line) in enumerate(json_lines(file, "metrics"), start=1):
        fault = _fault(record, number, members)
        if fault:
            raise RunError(f"Expected an epoch's losses as JSON in line {number} of {file}, got {fault}.")
        members = len(record["test_loss"])
        found.append((record, line))
    return found


def _fault(record: Any, number: int, members: int | None) -> str:
    """What is wrong with a line, in words; nothing if it is as it should be."""
    if not isinstance(record, dict):
        return "something else"
    if type(record.get("epoch")) is not int or record["epoch"] != number:
        return f"epoch {record.get('epoch')!r} where epoch {number} is due"
    if not is_number(record.get("seconds")):
        return f"{record.get('seconds')!r} as seconds"
    if not is_number(record.get("update_seconds", 0.0)):
        return f"{record['update_seconds']!r} as update_seconds"
    for name in ("train_loss", "test_loss", *(name for name in ("validation_loss", *MEASURED) if name in record)):
        values = record.get(name)
        if not isinstance(values, list) or not are_losses(values):
            return f"{name} that is no list of numbers"
        if members not in (None, len(values)):
            return f"{len(values)} values of {name} for {members} members"
        members = len(values)
    diverged, possible = record.get("diverged"), range(members or 0)
    known = isinstance(diverged, list) and all(type(member) is int and member in possible for member in diverged)
    return "" if known else "diverged members that are none of the run's"
