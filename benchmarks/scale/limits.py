"""A Python module run in a process of its own, and stopped at a time or a memory limit."""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

DONE, OUT_OF_MEMORY, OVER_TIME, FAILED = "done", "out of memory", "over time", "failed"
_POLL_SECONDS = 0.05
_ROOT = Path(__file__).resolve().parents[2]
# How the libraries say that there is no memory.
_NO_MEMORY = ("MemoryError", "RESOURCE_EXHAUSTED", "Out of memory", "can't allocate memory", "bad_alloc")


@dataclass(frozen=True)
class Outcome:
    """How a process ended.

    Attributes:
        status: "done", "out of memory", "over time" or "failed".
        output: its last line on standard output if done; if failed its last line on standard error.
        seconds: how long it ran.
    """

    status: str
    output: str
    seconds: float


def run_module(module: str, arguments: Sequence[str], seconds: float, memory: int) -> Outcome:
    """Run `python -m module arguments` with limits on seconds and on bytes of resident memory."""
    inherited = os.environ.get("PYTHONPATH")
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, [str(_ROOT), inherited]))}
    command, started = [sys.executable, "-m", module, *arguments], time.monotonic()
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(command, stdout=out, stderr=errors, env=environment)
        try:
            stopped = _watch(process, started + seconds, memory)
        finally:
            process.kill()
            process.wait()
        spent = time.monotonic() - started
        printed, complaint = _last_line(out), _last_line(errors)
        errors.seek(0)
        no_memory = any(sign in errors.read() for sign in _NO_MEMORY)
    if stopped is not None:
        return Outcome(stopped, "", spent)
    if process.returncode == 0:
        return Outcome(DONE, printed, spent)
    # The system kills processes only for want of memory.
    if no_memory or process.returncode == -9:
        return Outcome(OUT_OF_MEMORY, "", spent)
    return Outcome(FAILED, complaint or f"exit status {process.returncode}", spent)


def _watch(process: subprocess.Popen, deadline: float, memory: int) -> str | None:
    """The limit at which the process has to be stopped, or None once it has ended by itself."""
    while process.poll() is None:
        if _resident(process.pid) > memory:
            return OUT_OF_MEMORY
        if time.monotonic() > deadline:
            return OVER_TIME
        time.sleep(_POLL_SECONDS)
    return None


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


def _last_line(file) -> str:
    file.seek(0)
    lines = file.read().strip().splitlines()
    return lines[-1] if lines else ""
