"""What users hand to a rollout, and what it must be: systems, controllers, objectives, rules and what they return."""

import inspect
from collections.abc import Iterable
from contextlib import contextmanager
from typing import Any

import torch

from engine import runtime
from engine.available import TRIAL_COPIES, check_parameters
from engine.checks import is_whole
from engine.errors import AdjointError, SettingError, ShapeError
from engine.system import System

_COST_METHODS = ("running", "final")
_CONTROLLER = ("members", "parameter_count", "trace", "trace_bytes", "scratch_bytes")


def check_system(system: Any) -> None:
    """SettingError unless this is a system, of shapes that are shapes."""
    if not isinstance(system, System):
        hint = "; give its .system" if isinstance(getattr(system, "system", None), System) else ""
        raise SettingError(f"Expected a system such as CartPole(1), got {described(system)}{hint}.")
    for name in ("state_shape", "control_shape"):
        shape = getattr(system, name, None)
        if not isinstance(shape, (tuple, list)) or not shape or not all(is_whole(size) and size > 0 for size in shape):
            raise SettingError(
                f"Expected {name} of {type(system).__name__} as sizes of at least 1, such as (4,), got {shape!r}."
            )
    kind = type(system).__name__
    check_call(f"prepare_step of {kind} to take state, control and next_state", system.prepare_step, 3)
    check_call(
        f"prepare_pull_back of {kind} to take state, control, next_adjoint, adjoint and cotangent",
        system.prepare_pull_back, 5,
    )  # fmt: skip


def check_call(wanted: str, function: Any, positional: int, *names: str, advice: str = "") -> None:
    """SettingError unless this can be called with so many arguments, and with these by name."""
    try:
        inspect.signature(function).bind(*[None] * positional, **dict.fromkeys(names))
    except TypeError as error:
        raise SettingError(f"Expected {wanted}, got {described(function)} ({error}){advice}.") from None
    except ValueError:  # some of C's functions do not tell what they take
        return


def check_launch(of: str, launch: Any) -> Any:
    """What a system has prepared, if it can be called; SettingError if not."""
    if not callable(launch):
        raise SettingError(f"Expected {of} to return a launch, a function without arguments, got {described(launch)}.")
    return launch


def check_controller(controller: Any) -> None:
    """SettingError unless this is a policy, or anything else that has what the engine asks of one."""
    if not isinstance(controller, type) and all(hasattr(controller, name) for name in _CONTROLLER):
        return
    hint = ""
    if isinstance(controller, torch.nn.Module):
        hint = "; wrap it as ModulePolicy(module, state_shape, control_shape)"
    raise SettingError(f"Expected a policy such as MLP or Linear, got {described(controller)}{hint}.")


def check_fit(system: System, controller: Any, batch: int) -> None:
    """An error unless a batch is of whole members, a controller as the runtime is, and both of a size that fits."""
    members = controller.members
    if batch % members:
        raise ShapeError(f"Expected a batch that is a multiple of the {members} members, got {batch} samples.")
    kind = runtime.current().dtype, runtime.current().device
    if (controller.dtype, controller.device) != kind:
        raise ShapeError(
            f"Expected a policy as {kind[0]} on {kind[1]}, as the runtime is, got {controller.dtype} on "
            f"{controller.device}; build it with dtype and device."
        )
    system.check_size()
    check_parameters(members, controller.parameter_count, TRIAL_COPIES, controller.dtype, controller.device)


def check_cost(cost: Any) -> None:
    """AdjointError unless this has both methods of an objective."""
    if isinstance(cost, type):
        raise AdjointError(f"Expected an objective, got the class {cost.__name__}; make one: {cost.__name__}(...).")
    missing = [name for name in _COST_METHODS if not callable(getattr(cost, name, None))]
    if missing:
        raise AdjointError(
            f"Expected an objective with methods running and final, got {described(cost)} without "
            f"{' and '.join(missing)}; derive it from Objective."
        )


def check_rules(rules: Iterable[Any]) -> None:
    """AdjointError unless all are adjoint rules."""
    if isinstance(rules, str) or not isinstance(rules, Iterable):
        raise AdjointError(f"Expected a list of adjoint rules such as [FULL], got {described(rules)}.")
    for rule in rules:
        check_rule(rule)


def check_rule(rule: Any) -> None:
    """AdjointError unless this is an adjoint rule."""
    if isinstance(rule, type):
        raise AdjointError(f"Expected an adjoint rule, got the class {rule.__name__}; make one: {rule.__name__}().")
    missing = [name for name in ("uses_physics", "uses_policy") if not hasattr(rule, name)]
    if missing or not callable(rule):
        rules = getattr(rule, "rules", None)
        hint = "; give its .rules" if isinstance(rules, tuple) else ""
        raise AdjointError(
            f"Expected an adjoint rule such as FULL, a callable with uses_physics and uses_policy, got "
            f"{described(rule)}{hint}."
        )
    try:
        hash(rule)
    except TypeError:
        raise AdjointError(
            "Expected an adjoint rule that can be hashed, since gradients are looked up by rule, got "
            f"{described(rule)}; make it a dataclass with frozen=True."
        ) from None


def check_tensor(what: str, value: Any, shape: torch.Size | tuple[int, ...], like: torch.Tensor) -> None:
    """ShapeError unless `value` is a tensor of this shape, in the dtype and on the device of `like`."""
    if isinstance(value, torch.Tensor):
        if value.shape == shape and value.dtype == like.dtype and value.device == like.device:
            return
        if value.shape != tuple(shape):
            came = f"shape {list(value.shape)}"
        elif value.dtype != like.dtype:
            came = f"{value.dtype}"
        else:
            came = f"a tensor on {value.device}"
    else:
        came = described(value)
    raise ShapeError(f"Expected {what} as {like.dtype} of shape {list(shape)} on {like.device}, got {came}.")


@contextmanager
def differentiating(cost: Any):
    """A block that differentiates an objective."""
    try:
        yield
    except RuntimeError as error:
        if "in-place" not in str(error) and "inplace" not in str(error):
            raise
        raise modified(cost) from error


def modified(given: Any, kind: str = "an objective") -> AdjointError:
    """What is said of an objective, or of another `kind` of function, that writes to what it is given."""
    return AdjointError(
        f"Expected {kind} that leaves states and controls as they are, got {described(given)}, which changes them "
        "in place; work on a copy or use operations without a trailing underscore."
    )


def unchanged(given: Any, kind: str, states: torch.Tensor, *others: Any) -> Any:
    """`given(states, *others)`; AdjointError if it writes to the states."""
    version = None if states.is_inference() else states._version
    found = given(states, *others)
    if version is not None and states._version != version:
        raise modified(given, kind)
    return found


def described(value: Any) -> str:
    """A value in a message: numbers and short texts as they are, everything else by its type."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return repr(value)
    if isinstance(value, type):
        return f"the class {value.__name__}"
    kind = type(value).__name__
    name = getattr(value, "__name__", None)
    return f"{kind} {name}" if isinstance(name, str) else f"{'an' if kind[0] in 'AEIOaeio' else 'a'} {kind}"
