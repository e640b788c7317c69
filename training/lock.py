"""One writer at a time for each directory."""

import errno
import os
import socket
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, SoftFileLock, Timeout

from training.errors import RunError
from training.files import reason

LOCK = ".lock"
_POLL_SECONDS = 0.2


# What file systems answer that have no locks, some of them over a network.
_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP}


@contextmanager
def only_writer(folder: Path, what: str = "run") -> Iterator[None]:
    """Hold the right to write in a directory; the system takes it back from a process that dies.

    Readers need none. A second one is refused within one process too. Where the file system has no locks there is a
    warning instead.

    Raises:
        RunError: another process, or another part of this one, writes there; or the directory cannot be written.
    """
    path = folder / LOCK
    if not folder.is_dir():
        raise RunError(f"Expected the directory of a {what}, got {folder}, which is none.")
    lock = FileLock(path, timeout=0, thread_local=False)
    try:
        lock.acquire()
    except Timeout as error:
        raise RunError(
            f"Expected to be the only one who writes the {what} in {folder}, got another writer{_holder(path)}; wait "
            "until it ends, or stop it."
        ) from error
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise RunError(f"Expected a directory that can be written, got {folder}: {reason(error)}.") from error
        warnings.warn(f"{folder} is on a file system without locks; write it from one process alone", stacklevel=3)
        yield
        return
    native = not isinstance(lock, SoftFileLock)
    try:
        if native:
            with suppress(OSError):  # only to name the holder
                path.write_text(f"process {os.getpid()} on {socket.gethostname()}\n")
        yield
    finally:
        # Removed while it is held: nobody waits for it, and who has just opened it sees that it is gone.
        if native:
            with suppress(OSError):
                path.unlink(missing_ok=True)
        lock.release()


def wait_for_writer(folder: Path, seconds: float) -> None:
    """Return once nobody writes in a directory any more, or after so many seconds; it need not be there."""
    deadline = time.monotonic() + seconds
    while folder.is_dir():
        with suppress(RunError), only_writer(folder):
            return
        if time.monotonic() > deadline:  # whoever writes next is told by whom it is held
            return
        time.sleep(_POLL_SECONDS)


def _holder(path: Path) -> str:
    """Who holds the lock, as it wrote there."""
    try:
        text = " ".join(path.read_text(errors="replace").split())[:200]
    except OSError:
        return ""
    return f", {text}" if text else ""
