"""`ti.ad.Tape` for rollouts: recorded like any kernel, replayed with a rule between any two steps."""

from collections.abc import Mapping, Sequence
from typing import Protocol

import taichi as ti
import torch
from taichi.ad import clear_all_gradients
from taichi.lang.enums import AutodiffMode
from taichi.lang.kernel_impl import Kernel

from engine import runtime
from engine.contracts import check_rules
from engine.errors import AdjointError, ShapeError
from engine.modes import plain_torch
from engine.plan import MemoryPlan
from engine.recorded import RecordedKernel, overlap
from engine.rules import FULL, AdjointRule
from engine.sweep import Gradients, Inspect
from engine.trajectory import Cost


class Replayable(Protocol):
    """What the tape asks of a rollout."""

    states: torch.Tensor
    controls: torch.Tensor
    plan: MemoryPlan
    turn: int

    def backward(
        self,
        rules: Sequence[AdjointRule],
        cost: Cost | None = None,
        samples: Mapping[AdjointRule, slice] | None = None,
        inspect: Inspect | None = None,
        physical: bool = True,
    ) -> Gradients: ...


class RolloutTape(ti.ad.Tape):
    """Records rollouts and the user's own Taichi kernels; on exit replays them in reverse.

    Args:
        rules: the adjoint rules; each sweeps every recorded rollout once, over one and the same forward pass.
        loss: a scalar torch tensor with `requires_grad=True` that kernels inside the tape add to; its gradient
            is set to 1 before the replay. Not needed if the loss is the `Cost` a rollout is called with.
        samples: for a rule the contiguous samples (whole members) that need it; all by default.

    A kernel launched after a rollout may read `rollout.states` after `rollout.states.requires_grad_()` (everything must
    be stored); what it adds to `states.grad` joins ∂ℓ_t/∂x_t, and so with `rollout.controls`. If the initial state
    requires a gradient, the first rule's λ_0 is added to its gradient, or goes on through what torch made it of, and so
    reaches kernels, torch and rollouts before this one; so is ∂L/∂p to that of `parameters` that require one, and of
    others it is not found. Gradients of fields, and of arrays that a kernel here writes, begin at 0; those of arrays
    that kernels only read are added to, as torch does. What an array held is kept where a later kernel writes to it,
    and put back for the adjoint of those that read it before; what torch writes to an array that a kernel read is
    refused.

    Kernels are differentiated by Taichi, on CPU and CUDA; what it says that it cannot differentiate, and a path that
    ends in an array without a gradient, is refused with an AdjointError when the kernel is launched. Some it
    differentiates wrongly without a word, as elements that are read and written again, and atomics other than `+=`: on
    the CPU of Linux a kernel's first adjoint, and that of arrays of other shapes, is compared with central differences
    of its results, in a child of the process, and refused if it is not the derivative by its arrays; in float32, where
    differences may err, there is a warning once. Fields are neither kept nor compared.

    After exit `tape.gradients(rollout)` holds losses, parameter gradients and λ_0. If the body raises, nothing is
    replayed.
    """

    @plain_torch
    def __init__(
        self,
        *rules: AdjointRule,
        loss: torch.Tensor | None = None,
        samples: Mapping[AdjointRule, slice] | None = None,
    ):
        check_rules(rules)
        self._rules = rules or (FULL,)
        self._samples = samples
        self._results: dict[int, Gradients] = {}
        self._written: list[torch.Tensor] = []
        self._readers: dict[int, list[RecordedKernel]] = {}  # by memory that nothing has written to since
        device, dtype = runtime.current().device, runtime.current().dtype
        if loss is not None and not isinstance(loss, torch.Tensor):
            raise ShapeError(f"Expected a loss as a tensor of one element with requires_grad=True, got {loss!r}.")
        if loss is not None and (loss.numel() != 1 or not loss.requires_grad):
            raise ShapeError(
                f"Expected a loss of one element with requires_grad=True, got shape {list(loss.shape)} with "
                f"requires_grad={loss.requires_grad}."
            )
        if loss is not None and loss.device != device:
            raise ShapeError(f"Expected a loss on {device}, where kernels add to it, got {loss.device}; make it there.")
        scalar = loss
        if scalar is None:  # nobody adds to it, and Taichi fills it and its gradient
            scalar = torch.empty(1, dtype=dtype, device=device, requires_grad=True)
            scalar.grad = torch.empty_like(scalar)
        self._scalar = scalar
        super().__init__(loss=scalar, clear_gradients=False)

    @plain_torch
    def __enter__(self):
        # Kernels would make it where it is missing, in whatever mode they are launched.
        if self._scalar.grad is None:
            self._scalar.grad = torch.zeros_like(self._scalar)
        return super().__enter__()

    @plain_torch
    def __exit__(self, kind, value, traceback) -> None:
        if kind is not None:
            self.eval_on_exit = False
        elif any(isinstance(call, RecordedKernel) for call, _ in self.calls):
            self.runtime.target_tape = None  # which would record what follows
            clear_all_gradients()  # of fields, as Taichi's own tape does
        kept = [array for call, _ in self.calls if isinstance(call, RecordedKernel) for array, _ in call.kept]
        final = [(array, array.detach().clone()) for array in {id(array): array for array in kept}.values()]
        try:
            super().__exit__(kind, value, traceback)
        finally:
            for array, held in final:
                array.data.copy_(held)

    def insert(self, func, args) -> None:
        """Record a kernel; Taichi calls this for every kernel launched inside the tape."""
        if runtime.current().backend == "vulkan" and not isinstance(func, _RecordedRollout):
            raise AdjointError(
                f"Expected only rollouts inside a RolloutTape on Vulkan, where Taichi's automatic differentiation is "
                f"silently wrong, got kernel {getattr(func, 'func', func).__name__}; use the CPU or CUDA."
            )
        if isinstance(func, Kernel):
            rollouts = [call.rollout for call, _ in self.calls if isinstance(call, _RecordedRollout)]
            func = RecordedKernel(func, args, rollouts)
            for changed in func.changes:  # once: what was kept is not to be kept again
                for reader in self._readers.pop(changed.untyped_storage().data_ptr(), ()):
                    reader.keep(changed)
            for array in func.reads:
                self._readers.setdefault(array.untyped_storage().data_ptr(), []).append(func)
            for written in func.written:
                if not any(written is one for one in self._written):
                    self._written.append(written)
                    if written.grad is not None and written is not self._scalar:
                        written.grad.zero_()  # of an earlier tape: what is written here has no gradient but this one's
        super().insert(func, args)

    @plain_torch
    def record_rollout(
        self, rollout: Replayable, initial: torch.Tensor, cost: Cost | None, parameters: torch.Tensor | None = None
    ) -> None:
        """Record a rollout that is about to run; a rollout calls this itself."""
        if any(isinstance(call, _RecordedRollout) and call.rollout is rollout for call, _ in self.calls):
            raise AdjointError(
                "Expected each rollout once in a tape, since it keeps one trajectory, got the same one twice; "
                "build a second Rollout."
            )
        for name, kept in (("states", rollout.states), ("controls", rollout.controls)):
            if kept.requires_grad:
                if len(rollout.plan.segments) > 1:
                    raise AdjointError(
                        f"Expected every state in memory where kernels read rollout.{name}, got a rollout cut into "
                        "segments; drop its memory budget."
                    )
                kept.grad = torch.zeros_like(kept, requires_grad=False)
        earlier = [call.rollout for call, _ in self.calls if isinstance(call, _RecordedRollout)]
        if not initial.requires_grad and any(overlap(initial, other.states) for other in earlier):
            raise AdjointError(
                "Expected rollout.states with a gradient where another rollout starts from them, got none, so that "
                "nothing would reach the first; call rollout.states.requires_grad_() before it, or clone them."
            )
        self.insert(_RecordedRollout(self, rollout, initial, cost, parameters), ())

    def gradients(self, rollout: Replayable) -> Gradients:
        """What the replay found for `rollout`."""
        if id(rollout) not in self._results:
            raise AdjointError(
                "Expected a rollout that this tape recorded and replayed, got another; leave the tape first."
            )
        return self._results[id(rollout)]

    def _replay(
        self, rollout: Replayable, initial: torch.Tensor, cost: Cost | None, parameters: torch.Tensor | None
    ) -> None:
        asked = parameters is not None and parameters.requires_grad
        result = rollout.backward(self._rules, cost, self._samples, physical=asked)
        self._results[id(rollout)] = result
        _pass_on(initial, result.initial[self._rules[0]])
        if parameters is not None and asked:
            _pass_on(parameters, result.physical[self._rules[0]])


def _pass_on(reached: torch.Tensor, found: torch.Tensor) -> None:
    """Add a gradient to that of a leaf, or of the leaves that torch made `reached` of."""
    if reached.requires_grad and not reached.is_leaf:
        torch.autograd.backward(reached, found.clone(), retain_graph=True)
    elif reached.requires_grad:
        reached.grad = found.clone() if reached.grad is None else reached.grad + found


class _RecordedRollout:
    """The entry of a rollout in a tape's list of calls."""

    def __init__(
        self,
        tape: RolloutTape,
        rollout: Replayable,
        initial: torch.Tensor,
        cost: Cost | None,
        parameters: torch.Tensor | None,
    ):
        self.autodiff_mode = AutodiffMode.NONE
        self.rollout, self._turn = rollout, rollout.turn + 1  # that of the run that follows
        self._replay = lambda: tape._replay(rollout, initial, cost, parameters)

    def grad(self) -> None:
        if self.rollout.turn != self._turn:
            raise AdjointError(
                "Expected a rollout as the tape recorded it, got one that has run again inside of it by forward; "
                "build a second Rollout."
            )
        self._replay()
