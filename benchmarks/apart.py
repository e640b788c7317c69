"""A Python module run in a process of its own, and stopped at a time or a memory limit."""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

DONE, OUT_OF_MEMORY, OVER_TIME, FAILED = "done", "out of memory", "over time", "failed"
_POLL_SECONDS = 0.05
HOME = Path(__file__).resolve().parents[1]
"""Evenflow's folder."""
# How the libraries say that there is no memory.
_NO_MEMORY = ("MemoryError", "RESOURCE_EXHAUSTED", "Out of memory", "can't allocate memory", "bad_alloc")


@dataclass(frozen=True)
class Ended:
    """How a process ended.

    Attributes:
        status: "done", "out of memory", "over time" or "failed".
        output: its last line on standard output if done; if failed its last line on standard error.
        seconds: how long it ran.
    """

    status: str
    output: str
    seconds: float

    @property
    def result(self) -> dict[str, Any]:
        """What it printed last, of a process that is done."""
        return json.loads(self.output)


def run_module(
    module: str,
    arguments: Sequence[str],
    seconds: float | None = None,
    memory: int | None = None,
    environment: Mapping[str, str] | None = None,
) -> Ended:
    """Run `python -m module arguments`, with limits on seconds and on bytes of resident memory if there are any.

    It runs in Evenflow's folder, so that no file of a user's where we are is taken for one of ours, and finds the
    modules that this process finds. `environment` is added to this process's own.
    """
    command, started = [sys.executable, "-m", module, *arguments], time.monotonic()
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(
            command, stdout=out, stderr=errors, env=surroundings() | dict(environment or {}), cwd=HOME
        )
        try:
            stopped = _watch(process, seconds, memory)
        finally:
            process.kill()
            process.wait()
        spent = time.monotonic() - started
        printed, complaint = last_line(out), last_line(errors)
        errors.seek(0)
        no_memory = any(sign in errors.read() for sign in _NO_MEMORY)
    if stopped is not None:
        return Ended(stopped, "", spent)
    if process.returncode == 0:
        return Ended(DONE, printed, spent)
    # The system kills processes only for want of memory.
    if no_memory or process.returncode == -9:
        return Ended(OUT_OF_MEMORY, "", spent)
    return Ended(FAILED, complaint or f"exit status {process.returncode}", spent)


def _watch(process: subprocess.Popen, seconds: float | None, memory: int | None) -> str | None:
    """The limit at which the process has to be stopped, or None once it has ended by itself."""
    deadline = None if seconds is None else time.monotonic() + seconds
    while True:
        # Without limit on memory nothing has to be looked at meanwhile.
        wait = _POLL_SECONDS if memory is not None else seconds
        try:
            process.wait(wait)
            return None
        except subprocess.TimeoutExpired:
            if memory is not None and _resident(process.pid) > memory:
                return OUT_OF_MEMORY
            if deadline is not None and time.monotonic() > deadline:
                return OVER_TIME


def _resident(pid: int) -> int:
    """Bytes of resident memory of a process; 0 if it has just ended."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (FileNotFoundError, ProcessLookupError):
        pass
    if sys.platform == "linux":
        return 0
    shown = subprocess.run(["ps", "-o", "rss=", "-p", str(pid)], capture_output=True, text=True, check=False)
    return int(shown.stdout.strip() or 0) * 1024


def surroundings() -> dict[str, str]:
    """This process's environment, for a Python that is to find the modules that this one finds."""
    places = [str(HOME), *(str(Path(path).resolve()) for path in sys.path)]
    return os.environ | {"PYTHONPATH": os.pathsep.join(dict.fromkeys(places))}


def last_line(file: IO[str]) -> str:
    """The last line of what a process wrote; empty if it wrote nothing."""
    file.seek(0)
    lines = file.read().strip().splitlines()
    return lines[-1] if lines else ""
