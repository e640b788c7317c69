"""Tensors that begin where every instruction set likes them to, for work that must not depend on where they lie."""

import torch

_BYTES = 64  # as torch aligns what it allocates


def aligned(tensor: torch.Tensor) -> torch.Tensor:
    """`tensor` if it begins at a multiple of 64 bytes or lies on a device, else a copy that does.

    A matrix product on a CPU may sum in another order at another alignment, and how slots of time lie depends on the
    segment.
    """
    return tensor if tensor.device.type != "cpu" or tensor.data_ptr() % _BYTES == 0 else tensor.clone()
