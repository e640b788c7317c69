"""One training in several processes, as torchrun starts them: every rank has its part of each member's samples.

All ranks draw the same states, noise and weights, take their own samples of them and add up what they find, so that
each has the mean over the whole batch before estimators combine it and before it is clipped or judged; from equal
numbers they go equal ways. Only the first rank writes and prints. What is said of an error is said once.
"""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from importlib.metadata import PackageNotFoundError, version
from typing import Any, TypeVar

import torch
from torch import distributed
from torch.distributed import TCPStore  # pyright: ignore[reportPrivateImportUsage]

from engine import EvenflowError, SettingError
from engine.runtime import cores
from training.checks import difference

Value = TypeVar("Value")
_NEEDED = ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
_VERSIONED = ("evenflow", "torch", "taichi")
_START = "start it with torchrun --nproc-per-node 2 -m evenflow train TASK, or unset WORLD_SIZE"
# A rank may have kernels to compile, or a large checkpoint to write, while the others wait.
_PATIENCE = timedelta(minutes=30)
_STORE_SECONDS = 5
_NOWHERE = 2**62


class RankError(EvenflowError):
    """Ranks of one training that do not find each other, or of which one is gone."""


class Ranks:
    """One process, which has all samples: nothing is divided, and nobody is asked.

    Attributes:
        size: how many processes train together; rank: which of them this is, from 0.
    """

    size, rank = 1, 0

    @property
    def first(self) -> bool:
        """Whether this is the one that writes and prints."""
        return self.rank == 0

    def threads(self, asked: int | None) -> int | None:
        """CPU threads of this process where so many were asked for."""
        return asked

    def take_device(self, backend: str) -> None:
        """Leave this process one device of its own, before any library looks for some."""

    def join(self, device: torch.device) -> None:
        """Meet the others, to add up what is on such a device."""

    def leave(self) -> None:
        """Part from them, once all have done what they had to."""

    def part(self, count: int, what: str = "samples") -> slice:
        """Which of `count` samples of a member are this rank's; SettingError if there are fewer than ranks."""
        return slice(0, count)

    def own(self, rows: torch.Tensor, members: int) -> torch.Tensor:
        """This rank's samples of `rows` [P·count, ...]."""
        return rows

    def mean(self, count: int, *means: torch.Tensor) -> list[torch.Tensor]:
        """Means over all `count` samples from those over this rank's."""
        return list(means)

    def gathered(self, count: int, rows: torch.Tensor) -> torch.Tensor:
        """[P, count, n] of all samples from [P, own, n]."""
        return rows

    def earliest(self, place: tuple[int, int] | None) -> tuple[int, int] | None:
        """The first of all ranks' (step, sample), of which some may be none."""
        return place

    def signalled(self, number: int | None) -> int | None:
        """A signal that any rank was sent, where this one was sent `number`."""
        return number

    def told(self, value: Value) -> Value:
        """The first rank's value."""
        return value

    def agree(self, facts: Mapping[str, Any], *numbers: torch.Tensor) -> None:
        """SettingError, which names what differs, unless all have these facts, versions and numbers to the bit."""


ALONE = Ranks()


class Together(Ranks):
    """One of several processes.

    Args:
        size, rank: as above.
        local: which it is on its machine; on_machine: how many there are.
    """

    def __init__(self, size: int, rank: int, local: int, on_machine: int):
        self.size, self.rank, self._local, self._on_machine = size, rank, local, on_machine

    def threads(self, asked):
        if asked is not None:
            return asked
        return max(1, cores() // self._on_machine)

    def take_device(self, backend):
        there = torch.cuda.device_count() if backend in ("auto", "cuda") else 0
        if there and self._local >= there:
            raise SettingError(
                f"Expected a CUDA device for each rank of a machine, got {there} for {self._on_machine}; start at "
                f"most {there} on it, or give --backend cpu."
            )
        if there:
            listed = os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(there)))
            os.environ["CUDA_VISIBLE_DEVICES"] = listed.split(",")[self._local].strip()

    def join(self, device):
        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
        try:
            distributed.init_process_group(backend, world_size=self.size, rank=self.rank, timeout=_PATIENCE)
        except (RuntimeError, ValueError) as error:
            where = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
            reason = str(error).partition("\n")[0].rstrip(".")
            raise RankError(f"Expected {self.size} ranks that meet at {where}, got: {reason}.") from error

    def leave(self):
        self.signalled(None)
        distributed.destroy_process_group()

    def part(self, count, what="samples"):
        if count < self.size:
            raise SettingError(
                f"Expected at least one of the {what} for each of {self.size} ranks, got {count}; take more, or start "
                "fewer ranks."
            )
        return slice(count * self.rank // self.size, count * (self.rank + 1) // self.size)

    def own(self, rows, members):
        whole = rows.unflatten(0, (members, -1))
        return whole[:, self.part(whole.shape[1])].flatten(0, 1).contiguous()

    def mean(self, count, *means):
        part = self.part(count)
        flat = torch.cat([each.reshape(-1) for each in means]) * ((part.stop - part.start) / count)
        self._sum(flat)
        pieces = flat.split([each.numel() for each in means])
        return [piece.view_as(each).clone() for piece, each in zip(pieces, means, strict=True)]

    def gathered(self, count, rows):
        whole = rows.new_zeros(rows.shape[0], count, *rows.shape[2:])
        whole[:, self.part(count)] = rows
        self._sum(whole)
        return whole

    def earliest(self, place):
        mine = _NOWHERE if place is None else place[0] << 32 | place[1]
        found = self._extreme(mine, distributed.ReduceOp.MIN)
        return None if found == _NOWHERE else (found >> 32, found & 0xFFFFFFFF)

    def signalled(self, number):
        return self._extreme(number or 0, distributed.ReduceOp.MAX) or None

    def told(self, value):
        values = [value]
        with self._all_there():
            distributed.broadcast_object_list(values, 0)
        return values[0]

    def agree(self, facts, *numbers):
        mine = json.loads(json.dumps({**facts, "versions": _versions(), "numbers to start from": _digest(numbers)}))
        found: list[Any] = [None] * self.size
        with self._all_there():
            distributed.all_gather_object(found, mine)
        for rank, theirs in enumerate(found):
            differs = difference(found[0], theirs)
            if differs is not None:
                name, one, other = differs
                raise SettingError(
                    f"Expected ranks that train the same, got {name} {one!r} on rank 0 and {other!r} on rank {rank}; "
                    "start all with one command, one installation and equal files."
                )

    def _sum(self, tensor: torch.Tensor) -> None:
        with self._all_there():
            distributed.all_reduce(tensor)

    def _extreme(self, number: int, operation: Any) -> int:
        found = torch.tensor([number], dtype=torch.int64)
        with self._all_there():
            distributed.all_reduce(found, operation)
        return int(found)

    @contextmanager
    def _all_there(self):
        """RankError where one of the others is gone."""
        try:
            yield
        except RuntimeError as error:
            raise RankError(
                f"Expected {self.size} ranks until the training ends, got one that is gone; start all of them again."
            ) from error


def ranks_of_environment() -> Ranks:
    """What torchrun tells this process by its environment; one process without.

    Raises:
        SettingError: WORLD_SIZE without the rest, or numbers that are none.
    """
    size = _number("WORLD_SIZE", 1, least=1)
    if size == 1:
        return ALONE
    missing = [name for name in _NEEDED if not os.environ.get(name)]
    if missing:
        wanted = ", ".join(_NEEDED)
        raise SettingError(f"Expected {wanted} beside WORLD_SIZE={size}, got no {' and no '.join(missing)}; {_START}.")
    _number("MASTER_PORT", 0, most=2**16 - 1)
    on_machine = _number("LOCAL_WORLD_SIZE", 1, least=1)
    return Together(size, _number("RANK", 0, most=size - 1), _number("LOCAL_RANK", 0, most=size - 1), on_machine)


def check_alone(command: str) -> None:
    """SettingError if torchrun started several processes of a command that is for one."""
    if os.environ.get("RANK") and ranks_of_environment().size > 1:
        raise SettingError(
            f"Expected evenflow train under torchrun, got {command}, which is for one process; start it without."
        )


def says(what: str) -> bool:
    """Whether this process is the first of all ranks that wants to say this; each of them may ask once."""
    if os.environ.get("WORLD_SIZE", "1") == "1" or not all(os.environ.get(name) for name in _NEEDED):
        return True
    try:
        host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        store = TCPStore(host, port, None, False, timedelta(seconds=_STORE_SECONDS))
        key = hashlib.sha256(what.encode()).hexdigest()
        return store.add(f"evenflow/{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}/{key}", 1) == 1
    except (RuntimeError, ValueError, OverflowError):  # nobody to ask
        return True


def _number(name: str, otherwise: int, least: int = 0, most: int = 2**31 - 1) -> int:
    text = os.environ.get(name) or str(otherwise)
    if not text.isdecimal() or not least <= int(text) <= most:
        raise SettingError(f"Expected {name} in the environment from {least} to {most}, got {text!r}; {_START}.")
    return int(text)


def _versions() -> dict[str, str]:
    found = {}
    for name in _VERSIONED:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = ""
    return found


def _digest(numbers: Sequence[torch.Tensor]) -> str:
    total = hashlib.sha256()
    for tensor in numbers:
        total.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return total.hexdigest()[:16]
