"""Torch's own switches, which callers set for work of theirs and which must not reach ours."""

import functools
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import ParamSpec, TypeVar

import torch

from engine.errors import BackendError, no_room

_DEVICES = ("cpu", "cuda")
_P = ParamSpec("_P")
_R = TypeVar("_R")


def plain_torch(function: Callable[_P, _R]) -> Callable[_P, _R]:
    """`function`, run in a `plain_block`; asks for less time than the block where nothing is switched.

    Raises:
        BackendError: torch finds no memory on the device.
    """

    @functools.wraps(function)
    def run(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        try:
            if torch.is_grad_enabled() and not torch.is_inference_mode_enabled() and not _casting():
                return function(*args, **kwargs)
            with plain_block():
                return function(*args, **kwargs)
        except torch.OutOfMemoryError as error:
            raise BackendError(no_room("what torch computes")) from error

    return run


@contextmanager
def plain_block() -> Iterator[None]:
    """Torch as a process starts with it: gradients recorded, no inference mode, no autocast.

    Around a rollout or a sweep, `torch.no_grad()` would lose the derivative of the objective, `inference_mode()` would
    make buffers that nothing else may write to, and autocast would round matrix products.
    """
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        for device in _casting():
            stack.enter_context(torch.autocast(device, enabled=False))
        yield


def _casting() -> list[str]:
    return [device for device in _DEVICES if torch.is_autocast_enabled(device)]
