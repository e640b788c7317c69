"""Chance without a state: numbers that are hashes of counters, the same wherever and however often one asks."""

import torch

_MASK, _SPREAD = 0xFFFFFFFF, 0x9E3779B9


def keys_of(rows: torch.Tensor, counter: int) -> torch.Tensor:
    """For each of rows [B, n] of floats a whole number below 2³² from its bits, their places and a counter: [B]."""
    words = rows.contiguous().view(torch.int32).to(torch.int64)
    places = torch.arange(1, words.shape[1] + 1, device=rows.device)
    return _mixed(_mixed(words ^ _mixed(places)).sum(1) ^ (counter * _SPREAD & _MASK))


def uniform(keys: torch.Tensor, *counters: int) -> torch.Tensor:
    """For each of `keys` [B] a number in [0, 1); other keys or counters give numbers as good as independent."""
    for counter in counters:
        keys = _mixed(keys ^ (counter * _SPREAD & _MASK))
    return keys / 2.0**32


def _mixed(values: torch.Tensor) -> torch.Tensor:
    """The last step of MurmurHash3 for 32 bits, of Austin Appleby, who gave it to the public domain."""
    values = values & _MASK
    values = ((values ^ (values >> 16)) * 0x85EBCA6B) & _MASK
    values = ((values ^ (values >> 13)) * 0xC2B2AE35) & _MASK
    return values ^ (values >> 16)
