"""The contract of a physical system, x_{t+1} = S(x_t, u_t), and the systems a user writes with Taichi kernels."""

import abc
import contextlib
import math
from collections.abc import Iterable, Sequence

import torch
from taichi.lang import impl

from engine import runtime
from engine.checks import is_whole, several
from engine.errors import AdjointError, SettingError, ShapeError
from engine.fused import SweepArrays
from engine.launch import Launch, prepare, prepare_adjoint
from engine.plan import MOST_ELEMENTS
from engine.sharing import check_compiled
from engine.trials.trial import Trial

# Points of the user's own at which the first trial looks: typical states, or of those of a launch.
_TYPICAL, _OF_LAUNCH = 64, 2

# Seen: prepared launches of 3 and of 5 arrays, each with the views of its arrays.
STEP_LAUNCH_BYTES = 4600
PULL_BACK_LAUNCH_BYTES = 6000


class System(abc.ABC):
    """One step of physics and its pull-back, on batches of samples.

    Tensors are batch first and contiguous, in the runtime's dtype and on its device: states
    `[B, *state_shape]`, controls `[B, *control_shape]`. Implementations bind them once, in the `prepare_*`
    methods, and return launches that allocate nothing.

    Attributes:
        name: what tables and errors call the system.
        state_shape, control_shape: shapes of one sample's state and control.
        constants: a NamedTuple of its physical parameters, which may differ from sample to sample; empty without any.
        positive_parameters: names of those that are above 0.
        not_negative_parameters: names of those that are 0 or more.
    """

    name: str
    state_shape: tuple[int, ...]
    control_shape: tuple[int, ...]
    constants: tuple = ()
    positive_parameters: tuple[str, ...] = ()
    not_negative_parameters: tuple[str, ...] = ()
    _buffers: dict[tuple, torch.Tensor] | None = None

    @property
    def step_time(self) -> float | None:
        """How long a step is in the system's unit of time: its `dt`, or None where it has none."""
        found = getattr(self, "dt", None)
        return float(found) if isinstance(found, (int, float)) else None

    @abc.abstractmethod
    def prepare_step(self, state: torch.Tensor, control: torch.Tensor, next_state: torch.Tensor) -> Launch:
        """A launch that writes `next_state` = S(state, control).

        A system with `constants` takes `parameters=None` besides: [B, q], a row for each sample in place of them.
        """

    @abc.abstractmethod
    def prepare_pull_back(
        self,
        state: torch.Tensor,
        control: torch.Tensor,
        next_adjoint: torch.Tensor,
        adjoint: torch.Tensor,
        cotangent: torch.Tensor,
    ) -> Launch:
        """A launch that writes `adjoint` = Aᵀ next_adjoint and adds Bᵀ next_adjoint to `cotangent`.

        A = ∂S/∂x and B = ∂S/∂u at (state, control); `next_adjoint` is left as it is. Rollouts launch under
        `torch.inference_mode()`: what asks autograd leaves it for that, and clones what it is given. A system with
        `constants` takes `parameters=None, parameter_adjoint=None` besides: of the step, and [B, q], to which (∂S/∂p)ᵀ
        next_adjoint is added, or None where that is not asked for.
        """

    def prepare_sweep(self, arrays: SweepArrays) -> Launch | None:
        """A launch that sweeps a whole segment at once, or None where the system has none."""
        return None

    def advances_in_kernel(self) -> bool:
        """Whether it has a `ti.func` `advance_at(states, controls, t, b, parameters, varied)` that does in another
        kernel what its step does to sample b: from `states[t]` [B, *state_shape] and `controls[t]` to `states[t + 1]`,
        with the row b of `parameters` where they are `varied`.
        """
        return False

    @property
    def parameters(self) -> dict[str, float]:
        """The physical parameters that may differ from sample to sample, with the values they have otherwise."""
        return dict(zip(getattr(self.constants, "_fields", ()), self.constants, strict=True))

    def sample(self, count: int, generator: torch.Generator) -> torch.Tensor:
        """States [count, *state_shape] inside its domain, at which it is smooth, for those who try it without a task.

        By default every component is uniform between -1/2 and 1/2; a system of another domain says its own.
        """
        return self._as_here(torch.rand(count, *self.state_shape, generator=generator, dtype=torch.float64) - 0.5)

    def _as_here(self, states: torch.Tensor) -> torch.Tensor:
        return states.to(dtype=runtime.current().dtype, device=runtime.current().device)

    def scratch(self, name: str, *shape: int) -> torch.Tensor:
        """A buffer for what a launch needs only while it runs: launches take turns, so those of one system share it."""
        if self._buffers is None:
            self._buffers = {}
        key = (name, *shape)
        if key not in self._buffers:
            with torch.inference_mode(False):  # launches of any mode may write to it
                self._buffers[key] = torch.zeros(shape, dtype=runtime.current().dtype, device=runtime.current().device)
        return self._buffers[key]

    def rows_or_none(self, parameters: torch.Tensor | None) -> torch.Tensor:
        """The parameters of the samples, or without any an array that stands for them in a kernel's arguments."""
        return self.scratch("no parameters", 1, 1) if parameters is None else parameters

    def scratch_bytes(self, batch: int) -> int:
        """Bytes of `scratch` that launches on `batch` samples use, for planning; a system that has any says so."""
        return 0

    def launch_bytes(self) -> int:
        """Bytes of the launches that a rollout keeps for every step, for planning: its step's and its pull-back's.

        A system that sweeps path rules in one launch says what its step takes alone, and so does `counts_pull_backs`.
        """
        return STEP_LAUNCH_BYTES + PULL_BACK_LAUNCH_BYTES

    def counts_pull_backs(self) -> bool:
        """Whether `launch_bytes` counts those of a pull-back, too."""
        return True

    def doubts(self, states: torch.Tensor) -> str | None:
        """A sentence if states [T, B, *state_shape] of a rollout, finite as they may be, are beyond what the physics
        holds for; None otherwise, and of a system that does not say.
        """
        return None

    def versions(self) -> tuple[int, ...]:
        """Versions of the tensors that its launches read besides, so that a sweep sees whether they were written to."""
        return ()

    def compiled(self) -> tuple:
        """Numbers that its kernels are compiled with; SettingError if one changed, which they would not see."""
        return check_compiled(self)

    def check_size(self) -> None:
        """SettingError if kernels of this size cannot be had; asked before any is compiled."""
        numbers = max(math.prod(self.state_shape), math.prod(self.control_shape))
        if numbers > MOST_ELEMENTS:
            raise SettingError(
                f"Expected {self.name} with at most {MOST_ELEMENTS} numbers in a state and in a control, which is what "
                f"kernels can index, got {numbers}; make it smaller."
            )

    def step(self, state: torch.Tensor, control: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:
        """S(state, control) for tensors [B, *state_shape], [B, *control_shape]; for rollouts use `Rollout`."""
        self.compiled()
        self._check_batch(state, control)
        if impl.get_runtime().target_tape is not None and (state.requires_grad or control.requires_grad):
            raise AdjointError(
                "Expected rollouts inside a tape, got a step by itself, through which no gradient passes; use a "
                "Rollout of one step, or take the step outside."
            )
        if out is None:
            out = torch.empty_like(state)
        runtime.current().check("out", out, tuple(state.shape))
        if any(out.untyped_storage().data_ptr() == one.untyped_storage().data_ptr() for one in (state, control)):
            raise SettingError("Expected out in memory of its own, got that of the state or the control; copy one.")
        self.prepare_step(state, control, out)()
        return out

    def pull_back(
        self, state: torch.Tensor, control: torch.Tensor, next_adjoint: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """(Aᵀλ, Bᵀλ) for λ = `next_adjoint` [B, *state_shape]."""
        self.compiled()
        self._check_batch(state, control)
        runtime.current().check("next_adjoint", next_adjoint, tuple(state.shape))
        adjoint, cotangent = torch.zeros_like(state), torch.zeros_like(control)
        self.prepare_pull_back(state, control, next_adjoint, adjoint, cotangent)()
        return adjoint, cotangent

    def _check_batch(self, state: torch.Tensor, control: torch.Tensor) -> None:
        check = runtime.current().check
        batch = state.shape[:1] if isinstance(state, torch.Tensor) and state.dim() and len(state) else (1,)
        check("state", state, (*batch, *self.state_shape))
        check("control", control, (*batch, *self.control_shape))


class KernelSystem(System):
    """A system given by Taichi kernels that the user wrote.

    When the system is first prepared its step is tried, and when its adjoint is, that is compared with central
    differences; both at random points, at zero and at points of the user's own. On Linux this happens in a child of
    the process, which leaves nothing behind; elsewhere fields that the kernels write are written. Elsewhere, too, an
    adjoint by Taichi whose loops overflow its stacks is found only if it does not end the process.

    Args:
        step: `@ti.kernel step(state, control, next_state, *constants)` on arrays `[B, *state_shape]`,
            `[B, *control_shape]`, `[B, *state_shape]`; it assigns every element of `next_state` and writes nothing
            else, and depends on nothing else.
        state_shape, control_shape: shapes of one sample.
        constants: floats and ints, or tensors for parameters that are `ti.types.ndarray`, handed to the kernels after
            the arrays; the same for every sample. What is to vary between samples, or to be differentiated by, is a
            component of the state that the step hands on as it is, or a parameter of a `VectorSystem`.
        pull_back: `@ti.kernel pull_back(state, control, next_adjoint, adjoint, cotangent, *constants)`, which
            assigns `adjoint` = Aᵀ next_adjoint and adds Bᵀ next_adjoint to `cotangent`. Without it the
            adjoint comes from Taichi's automatic differentiation of `step`, on CPU and CUDA. That knows no `while`,
            `break`, `continue` or `ti.random`, and loses what passes through fields; on the CPU its stacks are sized
            to the kernel's loops, up to a million values of each local.
        name: what tables and errors call the system; by default the kernel's name.
        typical_states: [N, *state_shape], where the adjoint is compared besides, of more than 64 at so many of them; a
            trainer may set it before the first launch.
        checked: False leaves the trial out, for an adjoint that is not the step's derivative on purpose.

    Raises, when first prepared:
        SettingError: constants missing, too many, or of another kind than the kernel takes.
        ShapeError: arrays annotated with another number of dimensions, or a dtype that is not the runtime's.
        KernelError: a step that does not compile, leaves a component unassigned, adds to it, changes its inputs,
            carries something from launch to launch, mixes samples, or leaves its arrays.
        AdjointError: an adjoint that cannot be had, is not finite where it should be, or is not the derivative.
    """

    def __init__(
        self,
        step,
        state_shape: Sequence[int],
        control_shape: Sequence[int],
        constants: Sequence = (),
        pull_back=None,
        name: str | None = None,
        typical_states: torch.Tensor | None = None,
        checked: bool = True,
    ):
        self.name = name or getattr(step, "__name__", "kernel system")
        self.state_shape = positive_shape("state_shape", state_shape)
        self.control_shape = positive_shape("control_shape", control_shape)
        self.typical_states, self.checked = typical_states, checked
        self._step, self._pull_back, self._constants = (
            step,
            pull_back,
            several("constants of kernels in a tuple", constants),
        )
        for constant in self._constants:
            if isinstance(constant, torch.Tensor) and constant.requires_grad:
                raise SettingError(
                    f"Expected constants of system {self.name!r} without a gradient, got a tensor that requires one, "
                    "which nothing would reach; hand it on as a component of the state, or write a VectorSystem."
                )
        self._trial = Trial(self)

    def versions(self):
        tensors = [constant for constant in self._constants if isinstance(constant, torch.Tensor)]
        return tuple(tensor._version for tensor in tensors if not tensor.is_inference())

    def prepare_step(self, state, control, next_state):
        if self.checked:
            self._trial.step(len(state), self._given(state, control))
        else:
            self._trial.arguments()
        return self._bind_step(state, control, next_state)

    def prepare_pull_back(self, state, control, next_adjoint, adjoint, cotangent):
        self._refuse_automatic_adjoint()
        if self.checked:
            self._trial.pull_back(len(state), self._given(state, control))
        else:
            self._trial.assume()
        return self._bind_pull_back(state, control, next_adjoint, adjoint, cotangent)

    def prepare_unchecked(self, state: torch.Tensor, control: torch.Tensor):
        """`prepare_step` and `prepare_pull_back` for a gradcheck, which shows what the trial refuses."""
        self._refuse_automatic_adjoint()
        if self.checked:
            with contextlib.suppress(AdjointError):  # sizes the stacks, too
                self._trial.pull_back(len(state), self._given(state, control))
        self._trial.assume()
        return self._bind_step, self._bind_pull_back

    def _given(self, state: torch.Tensor, control: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """A few points of the user's own: typical states, or what a launch is prepared with unless that is all zero."""
        if self.typical_states is not None:
            if not isinstance(self.typical_states, torch.Tensor):
                raise ShapeError(f"Expected typical_states as a tensor, got {type(self.typical_states).__name__}.")
            shape = (*self.typical_states.shape[:1], *self.state_shape)
            given = runtime.current().check("typical_states", self.typical_states, shape)
            chosen = given[torch.linspace(0, len(given) - 1, min(len(given), _TYPICAL)).round().long()]
            return chosen, control.new_zeros(len(chosen), *self.control_shape)
        used = state.flatten(1).any(1) | control.flatten(1).any(1)
        at = used.nonzero().flatten()[:_OF_LAUNCH]
        return state[at].clone(), control[at].clone()

    def _bind_step(self, state, control, next_state):
        settings = {name: value for name, value in self._trial.settings.items() if name != "ad_stack_size"}
        owner = f" of system {self.name!r}"
        return prepare(self._step, state, control, next_state, *self._constants, owner=owner, settings=settings)

    def _bind_pull_back(self, state, control, next_adjoint, adjoint, cotangent):
        owner, settings = f" of system {self.name!r}", self._trial.settings
        if self._pull_back is not None:
            arrays = state, control, next_adjoint, adjoint, cotangent
            return prepare(self._pull_back, *arrays, *self._constants, owner=owner, settings=settings)
        # The adjoint kernel zeroes the gradient of what the step assigns, and may repeat the step.
        incoming, repeated = self.scratch("incoming", *state.shape), self.scratch("repeated", *state.shape)
        differentiate = prepare_adjoint(
            self._step,
            (state, control, repeated, *self._constants),
            (adjoint, cotangent, incoming, *(None for _ in self._constants)),
            owner,
            settings,
        )

        def launch() -> None:
            incoming.copy_(next_adjoint)
            adjoint.zero_()
            differentiate()

        return launch

    def _refuse_automatic_adjoint(self) -> None:
        if self._pull_back is None and runtime.current().backend == "vulkan":
            raise AdjointError(
                f"Expected a pull_back kernel for {self.name!r} on Vulkan, where Taichi's automatic differentiation is "
                "silently wrong, got only a step; write the adjoint or use the CPU or CUDA."
            )

    def scratch_bytes(self, batch):
        if self._pull_back is not None:
            return 0
        return 2 * batch * math.prod(self.state_shape) * runtime.current().dtype.itemsize


def positive_shape(name: str, shape: Sequence[int]) -> tuple[int, ...]:
    """`shape` as a tuple of positive ints, else ShapeError."""
    result = tuple(shape) if isinstance(shape, Iterable) and not isinstance(shape, str) else ()
    if not result or not all(is_whole(size) and size > 0 for size in result):
        raise ShapeError(f"Expected {name} as positive integers such as (4,), got {shape!r}.")
    return tuple(int(size) for size in result)
