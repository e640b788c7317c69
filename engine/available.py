"""How much memory this process can still have, so that what cannot fit is refused before it is tried."""

import os
from collections.abc import Iterator
from pathlib import Path

import torch

from engine.errors import BudgetError
from engine.memory import format_bytes

_PROC = Path("/proc")
_OWN_GROUPS = _PROC / "self" / "cgroup"
_CGROUPS = {
    "v1": ("/sys/fs/cgroup/memory", ("memory.limit_in_bytes", "memory.usage_in_bytes", "memory.stat")),
    "v2": ("/sys/fs/cgroup", ("memory.max", "memory.current", "memory.stat")),
}
_CACHED = "inactive_file"
_LESS = "lower the batch or the horizon, or give a memory budget"
TRIAL_COPIES = 10
"""Of a controller's parameters, as measured, that are held while its trial looks what controls depend on."""


def check_available(predicted: int, what: str, device: torch.device, remedy: str = _LESS) -> None:
    """BudgetError if `what` needs more bytes than `device` can give now."""
    there = available_bytes(device)
    if there is not None and predicted > there:
        raise BudgetError(
            f"Expected what fits the {format_bytes(there)} of free memory on {device.type}, got {what}, which needs "
            f"{format_bytes(predicted)}; {remedy}."
        )


def check_parameters(members: int, parameters: int, copies: int, dtype: torch.dtype, device: torch.device) -> None:
    """BudgetError if `device` cannot hold so many copies of a controller's parameters now."""
    what = f"a policy with {parameters} parameters for each of {members} members"
    remedy = "make its layers, the system or the number of members smaller"
    check_available(copies * members * parameters * dtype.itemsize, what, device, remedy)


def available_bytes(device: torch.device | str) -> int | None:
    """Bytes that can still be had on a device: of a CPU those of the machine or of this process's share of it.

    On a CUDA device what torch holds without using it can be had, too. None where the system does not say.
    """
    if torch.device(device).type == "cuda":
        held = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + held
    found = [_available_in_system(), *_available_in_groups()]
    return min((value for value in found if value is not None), default=None)


def _available_in_system() -> int | None:
    try:
        lines = (line.split() for line in (_PROC / "meminfo").read_text().splitlines())
        sizes = {line[0]: int(line[1]) * 1024 for line in lines}
        return sizes["MemAvailable:"] + sizes.get("SwapFree:", 0)
    except (OSError, KeyError, ValueError, IndexError):
        pass
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):
        return None


def _available_in_groups() -> Iterator[int]:
    """Of every Linux control group around this process that has a limit, what it leaves; file caches can be freed."""
    try:
        groups = [line.split(":", 2) for line in _OWN_GROUPS.read_text().splitlines()]
    except OSError:
        return
    for _, controllers, path in groups:
        if controllers not in ("", "memory") and "memory" not in controllers.split(","):
            continue
        root, files = _CGROUPS["v1" if controllers else "v2"]
        for folder in [Path(root + path), *Path(root + path).parents]:
            if not str(folder).startswith(root):
                break
            try:
                limit, used, statistics = ((folder / name).read_text() for name in files)
                cached = [line.split()[1] for line in statistics.splitlines() if line.split()[0].endswith(_CACHED)]
                yield int(limit) - int(used) + int(cached[-1])
            except (OSError, ValueError, IndexError):  # "max", or a group without these files
                continue
