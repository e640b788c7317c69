"""Studies of many short measurements: each part once, in a process of its own, and a file of what was found so far."""

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks import apart
from training.errors import RunError
from training.files import write_ours
from training.lock import LOCK, only_writer

REPORT = "report.json"
Found = dict[str, dict[str, Any]]
"""By name of the part its status, seconds, and what it found; "reason" where it failed."""


@dataclass(frozen=True)
class Part:
    """One measurement, in a process of its own.

    Attributes:
        name: in the report's file; no two parts share one.
        section: of the report, in which it is a row.
        kind: function of the worker that takes it; arguments: what that is called with.
    """

    name: str
    section: str
    kind: str
    arguments: dict[str, Any] = field(default_factory=dict)


def _is_found(record: Any) -> bool:
    return isinstance(record, dict) and isinstance(record.get("status"), str)


def why_not(record: dict[str, Any]) -> str:
    """Why a part that is not done is not."""
    return f"{record['status']}{': ' + record['reason'] if 'reason' in record else ''}"


@dataclass(frozen=True)
class PartStudy:
    """Parts that are measured by one module, and where what they find is kept.

    Attributes:
        what: in words, for messages: "a study of ...".
        worker: `python -m worker KIND ARGUMENTS PLUGIN...` prints what a part found as JSON.
        format: of the file.
        machine: what it was measured with.
        out: a new or an empty directory, or that of a study to continue on the same machine; None to keep no file.
        seconds: after which a part is stopped.
        further: what else the file says of all that was found.
    """

    what: str
    worker: str
    format: int
    machine: dict[str, Any]
    out: Path | None
    seconds: float
    further: Callable[[Found], dict[str, Any]] = lambda found: {}

    def take(
        self, parts: Sequence[Part], console: Console, given: Sequence[str] = (), plugins: Sequence[str] = ()
    ) -> Iterator[tuple[Part, Found]]:
        """Measure what is missing, part by part; after each its part and what all have found so far, as it is stored.

        Args:
            given: arguments of the worker before the part's kind.

        Raises:
            RunError: the directory holds something else, or figures of another machine.
        """
        found = self._before()
        with nullcontext() if self.out is None else only_writer(self.out, "study"):
            for part in parts:
                if found.get(part.name, {}).get("status") != apart.DONE:
                    with console.status(part.name):
                        found[part.name] = self._measure([*given, part.kind, json.dumps(part.arguments), *plugins])
                if self.out is not None:
                    stored = {"format": self.format, "machine": self.machine, "parts": found}
                    write_ours(self.out / REPORT, json.dumps(stored | self.further(found), indent=1) + "\n")
                yield part, found

    def _measure(self, arguments: Sequence[str]) -> dict[str, Any]:
        ended = apart.run_module(self.worker, arguments, self.seconds)
        record: dict[str, Any] = {"status": ended.status, "seconds": round(ended.seconds, 1)}
        if ended.status == apart.DONE:
            return record | ended.result
        return record | ({"reason": ended.output} if ended.output else {})

    def _before(self) -> Found:
        """What an earlier study of this machine has found."""
        if self.out is None:
            return {}
        path = self.out / REPORT
        if not path.exists():
            if self.out.exists() and (not self.out.is_dir() or any(entry.name != LOCK for entry in self.out.iterdir())):
                raise RunError(
                    f"Expected a new directory or a study to continue, got {self.out}; choose another --out."
                )
            self.out.mkdir(parents=True, exist_ok=True)
            return {}
        try:
            before = json.loads(path.read_text())
            parts = before["parts"]
            known = before["format"] == self.format and "machine" in before and all(map(_is_found, parts.values()))
        except (ValueError, KeyError, TypeError, AttributeError):
            known, before = False, {}
        if not known:
            raise RunError(f"Expected {self.what} in {path}, got something else; choose another --out.")
        if before["machine"] != self.machine:
            raise RunError(f"Expected the machine and the versions of {path}, got others; choose another --out.")
        return before["parts"]
