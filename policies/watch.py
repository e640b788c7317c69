"""What a rollout ran with: the parameters and constants of a policy, taken before it and compared after it."""

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch

from policies.checks import PolicyError

if TYPE_CHECKING:
    from policies.policy import Policy, PolicyTrace


class Watch:
    """Keeps one trace in step with its policy; the engine's `ControllerWatch`.

    Args:
        policy: whose parameters anyone may replace at any time.
        trace: of one trajectory. If it computes with a copy of the parameters of its own, `trace.theta`, that copy
            is renewed before every rollout.
        differentiated: whether the trajectory is swept.
    """

    def __init__(self, policy: "Policy", trace: "PolicyTrace", differentiated: bool):
        self._policy, self._trace, self._differentiated = policy, trace, differentiated
        policy.bind()
        theta = policy.theta.detach()
        self._layout, self._address = _layout(theta), theta.data_ptr()
        with torch.inference_mode(False):
            self._theta = theta.clone() if trace.theta is None else trace.theta
        self._constants: dict[str, torch.Tensor] = {}
        self._switches = policy.switches()

    def begin(self) -> None:
        """Have the trace compute with the policy as it is now, or say why it cannot; before every rollout."""
        policy, trace = self._policy, self._trace
        policy.bind()
        theta = policy.theta.detach()
        if _layout(theta) != self._layout:
            raise PolicyError(
                f"Expected parameters {_in_words(*self._layout)}, as when the rollout was built, got "
                f"{_in_words(*_layout(theta))}; build another rollout with this policy."
            )
        if trace.theta is None and not trace.reads_policy and theta.data_ptr() != self._address:
            raise PolicyError(
                f"Expected policy.theta where it was when the rollout was built, got it replaced, which "
                f"{type(trace).__name__} does not follow; write to it with policy.theta.data.copy_(), or build "
                "another rollout."
            )
        if policy.switches() != self._switches:
            policy.check_behaviour(self._differentiated)
            self._switches = policy.switches()
        self._theta.copy_(theta)
        constants = policy.constants() if self._differentiated else {}
        if constants or self._constants:
            with torch.inference_mode(False):
                self._constants = {name: value.detach().clone() for name, value in constants.items()}

    def changed(self, equal: Callable[[torch.Tensor, torch.Tensor], bool] = torch.equal) -> str | None:
        """What the policy no longer has as it had at `begin`, in words; None if nothing has changed.

        `equal` compares tensors of one shape, or takes them for equal to ask later.
        """
        policy = self._policy
        policy.bind()
        if not same_bits(policy.theta.detach(), self._theta, equal):
            return "other parameters"
        constants = policy.constants()
        for name in self._constants.keys() | constants.keys():
            pair = self._constants.get(name), constants.get(name)
            if pair[0] is None or pair[1] is None or not same_bits(pair[0], pair[1], equal):
                return f"another {name}"
        return "modules in another mode" if policy.switches() != self._switches else None

    def frozen(self) -> torch.Tensor | None:
        """`Policy.frozen`: which parameters [n] have no gradient; None if all have one."""
        return self._policy.frozen()


def same_bits(
    one: torch.Tensor, other: torch.Tensor, equal: Callable[[torch.Tensor, torch.Tensor], bool] = torch.equal
) -> bool:
    """Whether two tensors are equal, NaN to itself included."""
    if one.shape != other.shape or one.dtype != other.dtype or one.device != other.device:
        return False
    if equal(one, other):
        return True
    kind = _INTEGERS.get(one.element_size())
    return kind is not None and torch.equal(one.detach().view(kind), other.detach().view(kind))


_INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


def _layout(tensor: torch.Tensor) -> tuple[tuple[int, ...], torch.dtype, torch.device]:
    return tuple(tensor.shape), tensor.dtype, tensor.device


def _in_words(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> str:
    return f"of shape {list(shape)} as {dtype} on {device}"
