"""Chance without a state: numbers in [0, 1) that are hashes of bits, the same wherever and however often one asks."""

import torch

_MASK = 0xFFFFFFFF


def hashed(rows: torch.Tensor, *counters: int) -> torch.Tensor:
    """For each of rows [B, n] of floats a number in [0, 1) from its bits, their places and the counters: [B].

    Other bits or counters give numbers that are as good as independent.
    """
    words = rows.contiguous().view(torch.int32).to(torch.int64)
    places = torch.arange(1, words.shape[1] + 1, device=rows.device)
    found = _mixed(words ^ _mixed(places)).sum(1)
    for counter in counters:
        found = _mixed(found ^ (counter * 0x9E3779B9 & _MASK))
    return found / 2.0**32


def _mixed(values: torch.Tensor) -> torch.Tensor:
    """The last step of MurmurHash3 for 32 bits, of Austin Appleby, who gave it to the public domain."""
    values = values & _MASK
    values = ((values ^ (values >> 16)) * 0x85EBCA6B) & _MASK
    values = ((values ^ (values >> 13)) * 0xC2B2AE35) & _MASK
    return values ^ (values >> 16)
