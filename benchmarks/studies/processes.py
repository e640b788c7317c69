"""The packs of a study in several processes of this machine, each with its share of the threads."""

import json
import pickle
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter, deque
from collections.abc import Callable, Generator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path

from benchmarks.apart import HOME, last_line, surroundings
from benchmarks.studies.orders import TRIES, Order
from benchmarks.studies.pack import Pack, Watch
from benchmarks.studies.workers import Lines, Trained, done_with, in_order, lines_of, name_of
from engine import current
from engine.checks import whole
from training.errors import RunError
from training.stopping import Stopping

_POLL_SECONDS = 0.05


@dataclass(frozen=True)
class Processes:
    """So many processes at once, a new one for each pack.

    A pack has the numbers that it has in one process with as many threads. One whose process is killed goes on in
    another; where this process is killed, they end by themselves.

    Args:
        at_once: how many, at least 1.
        tell: called with a sentence whenever a pack is done, or its process has died.
    """

    at_once: int
    tell: Callable[[str], None] = lambda sentence: None

    def __post_init__(self):
        whole("at least 1 job", self.at_once)

    @property
    def threads(self) -> int:
        """Threads of each: its share of this process's, at least 1."""
        return max(1, current().threads // self.at_once)

    def train(self, packs: Sequence[Pack], out: Path, watch: Watch, stopping: Stopping) -> Trained:
        return in_order(self._as_done(packs, watch, stopping))

    def _as_done(
        self, packs: Sequence[Pack], watch: Watch, stopping: Stopping
    ) -> Generator[tuple[int, Lines], None, None]:
        waiting, running, deaths = deque(range(len(packs))), dict[int, _Process](), Counter[int]()
        left = len(packs)
        try:
            while running or (waiting and stopping.requested is None):
                while waiting and len(running) < self.at_once and stopping.requested is None:
                    number = waiting.popleft()
                    if not deaths[number]:
                        watch(packs[number], left)
                    running[number] = _Process(Order.of(packs[number], self.threads))
                if stopping.requested is not None:
                    for process in running.values():
                        process.stop()
                ended = [number for number, process in running.items() if process.ended]
                for number in ended:
                    lines, cause = running.pop(number).outcome()
                    if lines:
                        left -= 1
                        self.tell(done_with(packs[number], lines, left))
                        yield number, lines
                    elif stopping.requested is None:
                        deaths[number] += 1
                        self._mourn(packs[number], cause, deaths[number])
                        waiting.appendleft(number)
                if not ended:
                    time.sleep(_POLL_SECONDS)
        finally:
            for process in running.values():
                process.kill()

    def _mourn(self, pack: Pack, cause: str, deaths: int) -> None:
        """Tell of a process that died; RunError if it was one too many."""
        if deaths == TRIES:
            raise RunError(
                f"Expected {name_of(pack)} to be trained, got {TRIES} processes that ended before it was, the last by "
                f"{cause}; take fewer --jobs if memory is short, and give the same command again to go on."
            )
        self.tell(f"{name_of(pack)}: its process ended by {cause}; another goes on")


class _Process:
    """A process that trains one pack, in a session of its own: Ctrl-C reaches it through this one alone."""

    def __init__(self, order: Order):
        self._files, self._asked = ExitStack(), False
        self._out = self._files.enter_context(tempfile.TemporaryFile("w+"))  # noqa: SIM115
        self._errors = self._files.enter_context(tempfile.TemporaryFile("w+"))  # noqa: SIM115
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.studies.worker"],
            stdin=subprocess.PIPE,
            stdout=self._out,
            stderr=self._errors,
            env=surroundings(),
            cwd=HOME,
            start_new_session=True,
        )
        written = pickle.dumps(order)
        self._send(len(written).to_bytes(8, "big") + written)

    @property
    def ended(self) -> bool:
        return self._process.poll() is not None

    def stop(self) -> None:
        """Ask it to end after the update under way, with a checkpoint."""
        if not self._asked:
            self._asked = True
            self._send(b".")

    def kill(self) -> None:
        """End it at once; the epoch under way is lost."""
        self._process.kill()
        self._process.wait()
        self._close()

    def outcome(self) -> tuple[Lines, str]:
        """(lines, what ended it early) of a process that has ended; RunError with the sentence of one that says one."""
        printed, complaint, status = last_line(self._out), last_line(self._errors), self._process.returncode
        self._close()
        if status == 0:
            return lines_of(json.loads(printed)), "a signal"
        if status < 0:
            return [], signal.Signals(-status).name
        return [], complaint or f"exit status {status}"

    def _send(self, message: bytes) -> None:
        assert self._process.stdin is not None
        with suppress(OSError):  # it has died, which is seen elsewhere
            self._process.stdin.write(message)
            self._process.stdin.flush()

    def _close(self) -> None:
        assert self._process.stdin is not None
        with suppress(OSError):
            self._process.stdin.close()
        self._files.close()
