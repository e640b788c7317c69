"""Whether a policy is what a rollout takes it for: a differentiable function of each sample's own state.

What a module is called does not tell. It is called on a few random states, twice, in another order, among other
samples, one at a time, with and without gradients; what it gives must fit together.
"""

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from policies.checks import PolicyError
from policies.watch import same_bits

if TYPE_CHECKING:
    from policies.policy import Policy, PolicyTrace

_ROWS = 4
"""States of each member that a policy is tried on."""
_SCALES = (1.0, 10.0, 0.1)
"""Of these states, drawn from a normal distribution."""
_PURE = "Expected the same control whenever a state is the same"
_REMEDY = (
    "let forward depend on the state and the parameters alone (.eval() switches modules' noise off) and put noise for "
    "exploration into the initial states"
)


def check_fit(policy: "Policy", control_shape: tuple[int, ...]) -> None:
    """PolicyError unless controls of one and of several states at 0 come in this shape, as the parameters are."""
    with _undisturbed(policy), torch.inference_mode():
        _check_fit(policy, control_shape)


def _check_fit(policy: "Policy", control_shape: tuple[int, ...]) -> None:
    theta = policy.theta
    for rows in (1, 3):
        expected = (policy.members, rows, *control_shape)
        state = torch.zeros(policy.members, rows, *policy.state_shape, dtype=theta.dtype, device=theta.device)
        try:
            control = policy(state)
        except PolicyError:
            raise
        except Exception as error:
            raise PolicyError(
                f"Expected a policy that maps states {list(state.shape)} to controls {list(expected)}, got "
                f"{_of(error)}."
            ) from error
        if not isinstance(control, torch.Tensor):
            raise PolicyError(f"Expected policy output as a tensor, got {type(control).__name__}.")
        if tuple(control.shape) != expected:
            raise PolicyError(
                f"Expected policy output of shape {list(expected)} (members, batch, control), got "
                f"{list(control.shape)}."
            )
        if control.dtype != theta.dtype:
            raise PolicyError(f"Expected policy output as {theta.dtype}, got {control.dtype}.")
        if control.device != theta.device or control.layout != torch.strided:
            raise PolicyError(
                f"Expected policy output on {theta.device} as torch.strided, got it on {control.device} as "
                f"{control.layout}."
            )


def check_behaviour(policy: "Policy", differentiated: bool) -> None:
    """PolicyError, saying what is wrong, unless controls are a function of each sample's own state.

    If the policy is to be differentiated, torch must find the derivatives of all that it depends on, and a trace of
    its own must agree with them.
    """
    generator = torch.Generator().manual_seed(0)
    with _undisturbed(policy):
        for scale in _SCALES:
            states = _normal(generator, policy, policy.state_shape, scale)
            try:
                with torch.inference_mode():
                    controls = policy(states.clone())
            except Exception:
                # States that the system never takes, perhaps; with those that it takes, the rollout will say it.
                continue
            with torch.inference_mode():
                _check_purity(policy, states, controls)
            if scale == _SCALES[0]:
                _check_derivatives(policy, states, controls, generator, differentiated)


def _check_purity(policy: "Policy", states: torch.Tensor, controls: torch.Tensor) -> None:
    tensors = {"policy.theta": policy.theta, **policy.constants()}
    before = {name: value.detach().clone() for name, value in tensors.items()}
    given, draws = states.clone(), _drawn()
    again = policy(given)
    if _drawn() != draws:
        raise PolicyError(f"{_PURE}, got a policy that draws random numbers; {_REMEDY}.")
    for name, value in tensors.items():
        if not same_bits(value, before[name]):
            raise PolicyError(
                f"Expected a policy that does not learn while it acts, got one that changes {name} when it is called; "
                "hold its statistics still (.eval()) and update them between rollouts."
            )
    if not torch.equal(given.nan_to_num(), states.nan_to_num()):
        raise PolicyError(
            "Expected a policy that leaves states as they are, got one that changes them in place; let it work on a "
            "clone."
        )
    _check_same(again, controls, _tight(policy), f"{_PURE}, got controls that differ by {{}} in two calls; {_REMEDY}.")
    order = [*range(1, _ROWS), 0]
    _check_same(
        policy(states[:, order].contiguous()), controls[:, order], _loose(policy),
        "Expected each sample's control to follow from its own state, got one that changes by {} with the sample's "
        "place in the batch; treat all rows alike.",
    )  # fmt: skip
    mixed = (
        "Expected each sample's control to follow from its own state, got one that changes by {} with the other "
        "samples of the batch (a mean, norm or softmax over them?); take such statistics over a sample's own "
        "components, or fix them between rollouts."
    )
    repeated = states[:1, :1].expand_as(states).clone()
    _check_same(policy(repeated)[0, 0], controls[0, 0], _loose(policy), mixed)
    try:
        alone = policy(states[:, -1:].clone())
    except Exception as error:
        raise PolicyError(f"Expected a control for a batch of any size, got {_of(error)} from one sample.") from error
    _check_same(alone, controls[:, -1:], _loose(policy), mixed)
    _check_same(
        policy(states.clone()), controls, _tight(policy),
        f"{_PURE}, got controls that differ by {{}} after other calls (memory, a counter?); {_REMEDY}.",
    )  # fmt: skip


def _check_derivatives(
    policy: "Policy",
    states: torch.Tensor,
    controls: torch.Tensor,
    generator: torch.Generator,
    differentiated: bool,
) -> None:
    trace = policy.trace(1, policy.members * _ROWS, policy.state_shape, policy.control_shape)
    weights = _normal(generator, policy, policy.control_shape, 1.0)
    if not trace.reads_policy:
        _check_acting(trace, states, controls)
    if not differentiated:
        return
    by_state, by_theta = _gradients(policy, states, controls, weights)
    _check_reached(policy, states, controls, by_state, by_theta, generator)
    if not trace.reads_policy:
        _check_trace(trace, states, weights, by_state, by_theta if policy.theta.requires_grad else None)


def _gradients(
    policy: "Policy", states: torch.Tensor, controls: torch.Tensor, weights: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Gradients of weights · controls by torch, zeros where there is no way."""
    leaves = [states.clone().requires_grad_(), policy.theta]
    wanted = [leaf for leaf in leaves if leaf.requires_grad]
    found = {}
    try:
        with torch.inference_mode(False), torch.enable_grad():
            differentiable = policy(leaves[0])
            if differentiable.requires_grad:
                gradients = torch.autograd.grad(differentiable, wanted, weights, allow_unused=True)
                found = {id(leaf): gradient for leaf, gradient in zip(wanted, gradients, strict=True)}
    except Exception as error:
        raise PolicyError(
            f"Expected a policy that torch can differentiate, got {_of(error)}; for evaluation alone build a "
            "Trajectory with forward_only=True."
        ) from error
    _check_same(
        differentiable, controls, _loose(policy),
        "Expected the same controls with gradients and without, got a difference of {}; do not branch on "
        "torch.is_grad_enabled().",
    )  # fmt: skip
    by_state, by_theta = (found.get(id(leaf)) for leaf in leaves)
    zeros = lambda leaf: torch.zeros_like(leaf, requires_grad=False)  # noqa: E731
    return zeros(leaves[0]) if by_state is None else by_state, zeros(leaves[1]) if by_theta is None else by_theta


def _check_reached(
    policy: "Policy",
    states: torch.Tensor,
    controls: torch.Tensor,
    by_state: torch.Tensor,
    by_theta: torch.Tensor,
    generator: torch.Generator,
) -> None:
    """What controls depend on must have a gradient: neither detached nor computed outside of torch."""
    step, theta = _eps(policy) ** 0.4, policy.theta.detach()
    wrong = (
        "Expected a gradient for all that controls depend on, got controls that change with {} and no gradient to "
        "{} (.detach(), .data, torch.no_grad() or NumPy in forward?); let torch see the whole computation, or build a "
        "Trajectory with forward_only=True for evaluation alone."
    )
    with torch.inference_mode():
        if not by_state.any():
            direction = _normal(generator, policy, policy.state_shape, 1.0)
            if _moves(lambda move: policy(states + move * direction), controls, step):
                raise PolicyError(wrong.format("the state", "it"))
        if not policy.theta.requires_grad or by_theta.all():
            return
        before = theta.clone()
        draw = torch.randn(theta.shape, generator=generator, dtype=torch.float64).to(theta)
        blind = draw * (1.0 + theta.abs()) * (by_theta == 0)

        def moved(move: float) -> torch.Tensor:
            theta.copy_(before + move * blind)
            return policy(states.clone())

        try:
            if _moves(moved, controls, step):
                raise PolicyError(wrong.format("parameters", "those"))
        finally:
            theta.copy_(before)


def _moves(at: Callable[[float], torch.Tensor], controls: torch.Tensor, step: float) -> bool:
    """Whether most samples' controls at(±step) differ, and in proportion to the step.

    They do not where a product of two zeros moves, or where something was rounded.
    """
    change = lambda step: (at(step) - at(-step)).abs().flatten(2).amax(2)  # noqa: E731
    scale = controls.abs().flatten(2).amax(2).clamp_min(1e-3)
    whole = change(step)
    if (whole > 1e-2 * step * scale).double().mean() <= 0.5:
        return False
    ratio = whole / change(0.5 * step)
    return bool(((ratio > 1.5) & (ratio < 3.0)).double().mean() > 0.5)


def _check_acting(trace: "PolicyTrace", states: torch.Tensor, controls: torch.Tensor) -> None:
    acted = torch.zeros_like(controls).flatten(0, 1)
    with torch.inference_mode():
        trace.prepare_act(0, states.flatten(0, 1), acted)()
        _check_same(
            acted, controls.flatten(0, 1), torch.finfo(states.dtype).eps ** 0.5,
            f"Expected {type(trace).__name__} to act as the policy's forward (hooks included) does, got controls that "
            "differ by {}; override Policy.trace along with forward, or wrap the policy's module in a ModulePolicy.",
        )  # fmt: skip


def _check_trace(
    trace: "PolicyTrace",
    states: torch.Tensor,
    weights: torch.Tensor,
    by_state: torch.Tensor,
    by_theta: torch.Tensor | None,
) -> None:
    rows, everyone = states.flatten(0, 1), slice(0, states.shape[0] * states.shape[1])
    cotangent = weights.flatten(0, 1)
    tolerance = torch.finfo(states.dtype).eps ** 0.4
    with torch.inference_mode():
        trace.linearise(0, 1, rows.unsqueeze(0), everyone, None)
        found = [("state", trace.pull_back_state(0, rows, cotangent, everyone), by_state.flatten(0, 1))]
        if by_theta is not None:
            gradient = torch.zeros_like(by_theta)
            trace.pull_back_parameters(0, 1, rows.unsqueeze(0), cotangent.unsqueeze(0), everyone, gradient)
            found.append(("parameters", gradient, by_theta))
        for name, ours, expected in found:
            _check_same(
                ours, expected, tolerance,
                f"Expected {type(trace).__name__} to differentiate the policy's forward, got a gradient of the {name} "
                "that is off by {}; mend its pull_back_state and pull_back_parameters.",
            )  # fmt: skip


def _check_same(found: torch.Tensor, expected: torch.Tensor, tolerance: float, message: str) -> None:
    """PolicyError, with the largest difference put into `message`, unless equal to `tolerance` times the largest."""
    found, expected = found.detach(), expected.detach()
    if found.shape != expected.shape:
        raise PolicyError(
            f"Expected controls for every sample of a batch of any size, got shape {list(found.shape)} where "
            f"{list(expected.shape)} was due."
        )
    finite = torch.isfinite(expected)
    scale = float(expected[finite].abs().max()) if finite.any() else 0.0
    if not torch.isclose(found, expected, rtol=0.0, atol=tolerance * scale, equal_nan=True).all():
        raise PolicyError(message.format(f"{float((found - expected).abs().max()):.2g}"))


@contextmanager
def _undisturbed(policy: "Policy") -> Iterator[None]:
    """Random generators, parameters and buffers afterwards as they were before."""
    held = [policy.theta, *policy.constants().values()]
    before = [value.detach().clone() for value in held]
    python, arrays = random.getstate(), np.random.get_state()  # noqa: NPY002
    devices = [policy.device] if policy.device.type == "cuda" else []
    try:
        with torch.random.fork_rng(devices):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(arrays)  # noqa: NPY002
        with torch.no_grad():
            for value, content in zip(held, before, strict=True):
                if not same_bits(value, content):
                    value.copy_(content)


def _drawn() -> tuple:
    """The state of every random generator that code can draw from without owning it."""
    state: Any = np.random.get_state()  # noqa: NPY002
    cuda = torch.cuda.get_rng_state().numpy().tobytes() if torch.cuda.is_initialized() else b""
    return (
        torch.random.get_rng_state().numpy().tobytes(), cuda, random.getstate(), state[1].tobytes(), state[2], state[3]
    )  # fmt: skip


def _normal(generator: torch.Generator, policy: "Policy", shape: tuple[int, ...], scale: float) -> torch.Tensor:
    draw = torch.randn(policy.members, _ROWS, *shape, generator=generator, dtype=torch.float64)
    return (scale * draw).to(policy.theta.detach())


def _eps(policy: "Policy") -> float:
    return torch.finfo(policy.dtype).eps


def _tight(policy: "Policy") -> float:
    return 16.0 * _eps(policy)


def _loose(policy: "Policy") -> float:
    return _eps(policy) ** 0.5


def _of(error: Exception) -> str:
    """An exception in the middle of a sentence."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__} ({lines[0].rstrip('.')})" if lines else type(error).__name__
