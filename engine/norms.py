"""Euclidean norms that neither overflow nor underflow before the values do: gradients explode and die.

Squares of a float32 overflow from 2e19 on and are 0 below 3e-23, while the numbers themselves reach from 1e-45 to 3e38.
Rows are therefore scaled by a power of two, which rounds nothing: where a plain norm is right, these have its bits.
"""

import numpy as np
import taichi as ti
import torch

# Above what n numbers whose squares are too small for full precision add up to, for any n that fits into memory.
_SMALL = {torch.float32: 1e-10, torch.float64: 1e-140}


def norm(values: torch.Tensor, dim: int = -1, keepdim: bool = False) -> torch.Tensor:
    """|values| along `dim`: infinite only if a value, or the norm itself, is; NaN if a value is."""
    scale, length, largest = _scaled(values, dim)
    found = torch.where(torch.isfinite(largest), length / scale, largest)
    return found if keepdim else found.squeeze(dim)


def wide_norm(values: torch.Tensor, dim: int = -1) -> torch.Tensor:
    """`norm` as float64; of float32 in one pass, since squares of those neither overflow nor underflow there."""
    if values.dtype == torch.float32:
        return torch.linalg.vector_norm(values, 2, dim, dtype=torch.float64)
    return norm(values, dim)


def limited(rows: torch.Tensor, limit: float) -> torch.Tensor:
    """Rows [B, n], those longer than `limit` scaled to that length; rows that are not finite are left as they are."""
    # Where a square is 0 that should not be, the norm is far below any such limit, whatever it is.
    if limit > _SMALL[rows.dtype] and at_hand(rows):
        length = torch.linalg.vector_norm(rows, 2, 1, keepdim=True)
        if bool(torch.isfinite(length).all()):
            return rows * (limit / length).clamp_max(1.0)
    scale, length, _ = _scaled(rows, 1)
    # Comparisons with NaN, which a row that is not finite has as its length, are false.
    longer = length > scale * limit
    # Two factors, since their product may be too small for full precision; by 1 they change nothing.
    return (rows * torch.where(longer, scale, 1.0)).mul_(torch.where(longer, limit / length, 1.0))


def at_hand(tensor: torch.Tensor) -> bool:
    """Whether the host may look at a tensor without waiting for a device that is still busy with it."""
    return tensor.device.type == "cpu"


@ti.func
def vector_norm(vector):
    """`norm` of one vector in a kernel; NaN where that is infinite because a number is."""
    largest = abs(vector).max()
    length = largest
    if largest > 0.0:
        length = largest * (vector / largest).norm()
    return length


@ti.func
def limited_vector(vector, limit):
    """`limited` for one vector in a kernel."""
    largest = abs(vector).max()
    # Of 0, and of what is not finite, the length is NaN, with which comparisons are false.
    scaled = vector / largest
    length = scaled.norm()
    result = vector
    if length > limit / largest:
        result = scaled * (limit / length)
    return result


def norm_of_array(values: np.ndarray, axis: int = -1) -> np.ndarray:
    """`norm` of a NumPy array of floats."""
    return norm(torch.from_numpy(np.ascontiguousarray(values)), axis).numpy()


def _scaled(values: torch.Tensor, dim: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """A power of two that brings the largest value below 4; the norm of the values times it; the largest |value|."""
    # A maximum and a minimum take a twentieth of the time of torch's norm of order infinity.
    largest = torch.maximum(values.amax(dim, keepdim=True), -values.amin(dim, keepdim=True))
    # Threads that Taichi has used take numbers below `tiny` for 0; the scale must be none of them.
    tiny = torch.finfo(values.dtype).tiny
    bounded = largest.clamp_min(tiny)
    scale = (torch.frexp(bounded).mantissa / bounded).clamp_min(tiny)
    return scale, torch.linalg.vector_norm(values * scale, 2, dim, keepdim=True), largest
