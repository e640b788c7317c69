"""How a training is asked to stop: Ctrl-C, SIGTERM from a scheduler, SIGHUP from a closed terminal."""

import signal
from types import FrameType, TracebackType

_SIGNALS = ("SIGINT", "SIGTERM", "SIGHUP")


# What a process is told that writes where nobody reads; absent on Windows.
CLOSED_PIPE = int(getattr(signal, "SIGPIPE", signal.SIGTERM))


class Stopped(KeyboardInterrupt):
    """A training ended by a signal, or by a pipe that nobody reads any more.

    Args:
        number: the signal's.
        note: how to go on, for instance.
    """

    def __init__(self, number: int, note: str = ""):
        why = f" by {signal.Signals(number).name}"
        if number == CLOSED_PIPE != signal.SIGTERM:
            why = ", since nobody reads what it prints"
        super().__init__(f"stopped{why}" + (f"; {note}" if note else ""))
        self.number = number


class Stopping:
    """Turns the first signal into a question that can be asked between updates; the next one interrupts at once.

    Use as a context manager, in the main thread; in others nothing is listened to. A signal that the process was
    started to ignore, as SIGHUP under nohup, stays ignored; Ctrl-C does not.

    Attributes:
        requested: the number of the signal that came; None as long as none has.
    """

    def __init__(self):
        self.requested: int | None = None
        self._heard = False
        self._before: dict[int, object] = {}

    def __enter__(self) -> "Stopping":
        for name in _SIGNALS:
            if not hasattr(signal, name):  # Windows has no SIGHUP
                continue
            number = int(getattr(signal, name))
            before = signal.getsignal(number)
            if before is None or (before is signal.SIG_IGN and number != signal.SIGINT):
                continue
            try:
                self._before[number] = signal.signal(number, self._note)
            except ValueError:  # only the main thread may set handlers
                break
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        while self._before:
            number, handler = self._before.popitem()
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self._heard:
            raise Stopped(number)
        self._heard = True
        self.requested = number if self.requested is None else self.requested  # another may have asked before
