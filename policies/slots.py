"""Buffers of time slots in which every slot begins at the same alignment.

A matrix product may peel its loops to the alignment of its operands and of its result, and then sums in another order:
Intel's MKL does so where it finds neither AVX2 nor AVX-512, and on processors of other makers. Which slot a step lies
in depends on how a rollout is cut into segments, so slots that begin at multiples of ALIGNMENT are what lets a step
come out the same to the bit in any segment.
"""

import math
from collections.abc import Sequence

import torch

ALIGNMENT = 64
"""Bytes to which torch aligns every tensor it allocates, and beyond which no instruction set looks."""


def padded_width(rows: int, width: int, element_size: int) -> int:
    """The least row length from `width` on with which `rows` rows take a multiple of ALIGNMENT bytes."""
    unit = ALIGNMENT // element_size
    unit //= math.gcd(unit, rows)
    return -(-width // unit) * unit


def aligned_slots(like: torch.Tensor, members: int, slots: int, rows: int, width: int) -> torch.Tensor:
    """Zeros [members, slots, rows, width] in rows that are padded, so that slots flatten with rows into a view."""
    return like.new_zeros(members, slots, rows, padded_width(rows, width, like.element_size()))[..., :width]


def together(
    like: torch.Tensor, members: int, slots: int, rows: int, widths: Sequence[int]
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """`aligned_slots` of several widths, and the one row of numbers in which they follow each other."""
    lengths = [padded_width(rows, width, like.element_size()) for width in widths]
    memory = like.new_zeros(members * slots * rows * sum(lengths))
    parts = memory.split([members * slots * rows * length for length in lengths])
    shaped = (part.view(members, slots, rows, -1) for part in parts)
    return memory, [part[..., :width] for part, width in zip(shaped, widths, strict=True)]


def aligned_rows(rows: torch.Tensor) -> torch.Tensor:
    """A copy of rows [P, n] each of which begins at a multiple of ALIGNMENT, as that of one member alone does."""
    members, width = rows.shape
    copy = aligned_slots(rows, members, 1, 1, width)[:, 0, 0]
    return copy.copy_(rows)


def padded_rows(rows: torch.Tensor) -> torch.Tensor:
    """`aligned_rows` with what pads each, which together are contiguous, as kernels take them."""
    return rows.as_strided((len(rows), rows.stride(0)), rows.stride())


def on_cpu(tensor: torch.Tensor) -> bool:
    """Whether it is the CPU's, whose products a copy may make faster, or the same; on a device one takes a kernel."""
    return tensor.device.type == "cpu"


def is_aligned(tensor: torch.Tensor) -> bool:
    """Whether it begins at a multiple of ALIGNMENT, or on a device, where products do not look at it."""
    return not on_cpu(tensor) or tensor.data_ptr() % ALIGNMENT == 0


def aligned(tensor: torch.Tensor) -> torch.Tensor:
    """`tensor` if it begins at a multiple of ALIGNMENT, else a copy that does."""
    return tensor if is_aligned(tensor) else tensor.clone()
