"""Torch's own switches, which callers set for work of theirs and which must not reach ours."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch

_DEVICES = ("cpu", "cuda")


@contextmanager
def plain_torch() -> Iterator[None]:
    """Torch as a process starts with it: gradients recorded, no inference mode, no autocast.

    Around a rollout or a sweep, `torch.no_grad()` would lose the derivative of the objective, `inference_mode()` would
    make buffers that nothing else may write to, and autocast would round matrix products.
    """
    casting = [device for device in _DEVICES if torch.is_autocast_enabled(device)]
    if torch.is_grad_enabled() and not torch.is_inference_mode_enabled() and not casting:
        yield
        return
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        for device in casting:
            stack.enter_context(torch.autocast(device, enabled=False))
        yield
