"""Torch's own switches, which callers set for work of theirs and which must not reach ours."""

import functools
from collections.abc import Callable
from contextlib import ExitStack
from typing import ParamSpec, TypeVar

import torch

_DEVICES = ("cpu", "cuda")
_P = ParamSpec("_P")
_R = TypeVar("_R")


def plain_torch(function: Callable[_P, _R]) -> Callable[_P, _R]:
    """`function`, run as a process starts torch: gradients recorded, no inference mode, no autocast.

    Around a rollout or a sweep, `torch.no_grad()` would lose the derivative of the objective, `inference_mode()` would
    make buffers that nothing else may write to, and autocast would round matrix products.
    """

    @functools.wraps(function)
    def run(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        casting = [device for device in _DEVICES if torch.is_autocast_enabled(device)]
        if torch.is_grad_enabled() and not torch.is_inference_mode_enabled() and not casting:
            return function(*args, **kwargs)
        with ExitStack() as stack:
            stack.enter_context(torch.inference_mode(False))
            stack.enter_context(torch.enable_grad())
            for device in casting:
                stack.enter_context(torch.autocast(device, enabled=False))
            return function(*args, **kwargs)

    return run
