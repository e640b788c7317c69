"""The packs of a study as tasks of Ray: on the cores of this machine, or on nodes of a cluster that share a disk."""

import os
import secrets
import signal
import socket
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from benchmarks.apart import surroundings
from benchmarks.studies.orders import TRIES, Order, fulfil
from benchmarks.studies.pack import Pack, Watch
from benchmarks.studies.workers import Lines, Trained, done_with, in_order, lines_of, name_of
from engine import LibraryError, SettingError, current, format_bytes
from engine.checks import whole
from training.errors import RunError
from training.files import write_whole
from training.stopping import Stopping

LOCAL, AUTO = "local", "auto"
"""Addresses: a cluster of this machine alone, for as long as the study trains; the cluster that runs on it already."""
_POLL_SECONDS = 0.2
_CONNECT_SECONDS = 10.0
_STORE_BYTES = 2**27  # results are small
_TOKEN = ".shared"


@dataclass(frozen=True)
class OnRay:
    """As many packs at once as a cluster has room for, each with its threads and its memory declared.

    A pack has the numbers that it has in one process with as many threads, on like processors. One whose worker or node
    dies goes on elsewhere: every node has to see the directory of the study.

    Args:
        address: "local", "auto" or HOST:PORT, as Ray has them.
        threads: of each pack.
        tell: called with a sentence whenever a pack is done.

    Raises:
        SettingError: an address of another form, or threads below 1.
        LibraryError: Ray is not installed.
    """

    address: str = LOCAL
    threads: int = 1
    tell: Callable[[str], None] = lambda sentence: None

    def __post_init__(self):
        whole("at least 1 thread", self.threads)
        if self.address not in (LOCAL, AUTO):
            _host_and_port(self.address)
        _ray()

    @property
    def at_once(self) -> int:
        """Nodes have memory of their own, of which Ray keeps account."""
        return 1

    def train(self, packs: Sequence[Pack], out: Path, watch: Watch, stopping: Stopping) -> Trained:
        return in_order(self._as_done(packs, out, stopping))

    def _as_done(
        self, packs: Sequence[Pack], out: Path, stopping: Stopping
    ) -> Generator[tuple[int, Lines], None, None]:
        ray = _ray()
        if not packs:
            return
        with _connected(self.address), _token(out.absolute() / _TOKEN) as token:
            self._check_room(packs)
            tasks = {self._begin(pack, token): number for number, pack in enumerate(packs)}
            self.tell(f"{len(packs)} {'pack goes' if len(packs) == 1 else 'packs go'} to Ray")
            asked = False
            while tasks:
                if stopping.requested is not None and not asked:
                    asked = True
                    for task in tasks:
                        ray.cancel(task)
                for task in ray.wait(list(tasks), timeout=_POLL_SECONDS)[0]:
                    number = tasks.pop(task)
                    lines = _lines(task, packs[number], asked)
                    if lines:
                        self.tell(done_with(packs[number], lines, len(tasks)))
                        yield number, lines

    def _begin(self, pack: Pack, token: tuple[Path, str]) -> Any:
        """A task that trains a pack; one whose worker dies is begun again by Ray."""
        task = (
            _ray()
            .remote(on_a_node)
            .options(
                **self._claim(pack),
                max_retries=TRIES - 1,
                retry_exceptions=[EndedEarlyError],
                runtime_env={"env_vars": {"PYTHONPATH": surroundings()["PYTHONPATH"]}},
            )
        )
        return task.remote(Order.of(pack, self.threads), *token)

    def _claim(self, pack: Pack) -> dict[str, float]:
        """What a pack takes of a node, by Ray's names."""
        needed: dict[str, float] = {"num_cpus": self.threads, "memory": max(1, pack.needed)}
        return needed | ({"num_gpus": 1} if current().backend == "cuda" else {})

    def _check_room(self, packs: Sequence[Pack]) -> None:
        """RunError where a pack would wait for ever for a node that is large enough."""
        nodes = [node["Resources"] for node in _ray().nodes() if node["Alive"]]
        kinds = {"num_cpus": "CPU", "num_gpus": "GPU", "memory": "memory"}
        for pack in packs:
            claim = self._claim(pack)
            if not any(all(node.get(kinds[name], 0) >= much for name, much in claim.items()) for node in nodes):
                cores, room = (max((node.get(kind, 0) for node in nodes), default=0) for kind in ("CPU", "memory"))
                raise RunError(
                    f"Expected a node with {self.threads} CPUs and {format_bytes(pack.needed)} for "
                    f"{name_of(pack)}, got {len(nodes)} with at most {cores:g} and {format_bytes(int(room))}; take "
                    "fewer --threads, or other nodes."
                )


class EndedEarlyError(Exception):
    """A signal has stopped a worker that nobody here has asked to stop; another goes on."""


def on_a_node(order: Order, place: Path, token: str) -> Lines:
    """Train a pack in a worker of Ray, which finds the token in its place if its node shares the directory."""
    with Stopping() as stopping:  # Ray cancels a task as Ctrl-C would
        if not place.is_file() or place.read_text() != token:
            raise RunError(
                f"Expected {place.parent} to be shared by every node, got {socket.gethostname()}, which does not see "
                "it as this machine does; choose an --out on a disk that all have."
            )
        answer = fulfil(order, stopping)
    if answer.get("lines") == []:
        raise EndedEarlyError(f"stopped by signal {stopping.requested}")
    return lines_of(answer)


def _lines(task: Any, pack: Pack, asked: bool) -> Lines:
    """What a task that has ended returns; nothing of one that was asked to stop."""
    ray = _ray()
    try:
        return ray.get(task)
    except ray.exceptions.RayTaskError as error:
        cause = error.cause
        if asked and isinstance(cause, EndedEarlyError):
            return []
        if isinstance(cause, RunError):
            raise RunError(str(cause)) from None
        got = " ".join(f"{type(cause).__name__} ({cause})".split())
    except ray.exceptions.TaskCancelledError:
        return []
    except ray.exceptions.RayError as error:
        if asked:
            return []
        got = f"workers that died {TRIES} times, the last by {type(error).__name__}"
    raise RunError(
        f"Expected {name_of(pack)} to be trained on Ray, got {got[:300]}; every node has to have Evenflow and its "
        "plug-ins, and memory enough; then the same command goes on."
    )


@contextmanager
def _token(place: Path) -> Iterator[tuple[Path, str]]:
    """A file by which a node knows that it sees this very directory, for as long as this lasts."""
    token = secrets.token_hex(16)
    write_whole(place, token)
    try:
        yield place, token
    finally:
        place.unlink(missing_ok=True)


@contextmanager
def _connected(address: str) -> Iterator[None]:
    """Be connected to a cluster, one's own that ends with this where the address is local.

    A connection that is there already is used and left as it is.
    """
    ray = _ray()
    if ray.is_initialized():
        yield
        return
    if address not in (LOCAL, AUTO):
        _check_reached(address)
    own = {"include_dashboard": False, "object_store_memory": _STORE_BYTES} if address == LOCAL else {}
    listener = signal.getsignal(signal.SIGTERM)
    main = threading.current_thread() is threading.main_thread()
    try:
        try:
            ray.init(address=address, log_to_driver=False, logging_level="error", **own)
        finally:
            if main:
                signal.signal(signal.SIGTERM, listener)  # Ray takes it for itself
    except (RuntimeError, ConnectionError, ValueError, OSError, ray.exceptions.RayError) as error:
        ray.shutdown()  # of what it has begun
        said = " ".join(str(error).split())
        raise RunError(
            f"Expected a cluster of Ray {ray.__version__} at {address}, with this Python, got: "
            f"{said[:300].rstrip('.')}; start one with ray start, or leave the address out."
        ) from error
    try:
        yield
    finally:
        ray.shutdown()


def _check_reached(address: str) -> None:
    """RunError unless somebody listens there: Ray itself would try for minutes."""
    try:
        socket.create_connection(_host_and_port(address), timeout=_CONNECT_SECONDS).close()
    except OSError as error:
        raise RunError(
            f"Expected a cluster of Ray at {address}, got {error.strerror or error}; start one with ray start, or "
            "leave the address out."
        ) from error


def _host_and_port(address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    if not host or "/" in host or not port.isdecimal() or not 0 < int(port) < 2**16:
        raise SettingError(f"Expected the address of a cluster of Ray as HOST:PORT, auto or local, got {address!r}.")
    try:
        host.encode("idna")
    except UnicodeError:
        raise SettingError(f"Expected the name of a host before the port, got {address!r}.") from None
    return host.strip("[]"), int(port)


def _ray() -> ModuleType:
    """Ray; LibraryError where it is not installed."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_NUM_REDIS_GET_RETRIES", "1")  # of 20, each of half a minute where no Ray answers
    try:
        import ray
    except ImportError as error:
        raise LibraryError(
            f"Expected the package ray for --ray, got: {error}; install it with pip install 'evenflow[ray]'."
        ) from error
    return ray
