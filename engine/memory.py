"""Sizes in bytes: as text, as the C library keeps them, and as this process has taken them."""

import ctypes
import math
import re
import sys

import torch

from engine import runtime
from engine.errors import BudgetError

_UNITS = {"": 1, "b": 1, "kib": 2**10, "mib": 2**20, "gib": 2**30, "kb": 10**3, "mb": 10**6, "gb": 10**9}
_M_MMAP_THRESHOLD = -3  # malloc.h


def parse_bytes(text: str | int) -> int:
    """Bytes of "512MiB", "2 GB" or a plain number."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-zA-Z]*)\s*", str(text))
    unit = _UNITS.get(match[2].lower()) if match else None
    if match is None or unit is None or float(match[1]) == 0:
        raise BudgetError(f"Expected a memory budget such as 512MiB or 2GiB, got {text!r}.")
    return int(float(match[1]) * unit)


def format_bytes(count: float) -> str:
    """ "1.5 MiB" for people, rounded up, so that what is written suffices."""
    units = (("B", 0), ("KiB", 1), ("MiB", 1), ("GiB", 2))
    power = next((power for power in range(3) if abs(count) < 1024 ** (power + 1)), 3)
    unit, digits = units[power]
    return f"{math.ceil(count / 1024**power * 10**digits) / 10**digits:.{digits}f} {unit}"


def return_freed_memory() -> None:
    """Have the C library give freed tensors of 1 MiB and more back to the system at once, from now on.

    By default glibc keeps blocks of up to 32 MiB, and small objects that stay split what it keeps: processes of three
    times the memory in use were seen. Policies that torch's autograd differentiates take up to 1.7 times as long with
    it on large batches, since every such tensor is mapped anew; elsewhere no cost was seen. Only glibc has the switch.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, 2**20)


class PeakMemory:
    """Growth of the memory that is computed in, in bytes: `with PeakMemory() as peak: ...; peak.bytes`.

    On a CUDA device it is that of torch's tensors, where all of a rollout lies; else this process's resident memory.

    On Linux the kernel's high-water mark is reset first, so that earlier peaks do not count; elsewhere only growth
    beyond an earlier peak is seen.
    """

    bytes: int = 0

    def __enter__(self) -> "PeakMemory":
        self._device = runtime.device_in_use()
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)
            self._start = torch.cuda.memory_allocated(self._device)
            return self
        try:
            with open("/proc/self/clear_refs", "w") as handle:
                handle.write("5")
        except OSError:
            pass
        self._start = _resident("VmRSS")
        return self

    def __exit__(self, *_) -> None:
        on_device = self._device.type == "cuda"
        peak = torch.cuda.max_memory_allocated(self._device) if on_device else _resident("VmHWM")
        self.bytes = max(0, peak - self._start)


def _resident(field: str) -> int:
    try:
        with open("/proc/self/status") as handle:
            for line in handle:
                if line.startswith(field + ":"):
                    return int(line.split()[1]) * 1024
    except OSError:
        pass
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
