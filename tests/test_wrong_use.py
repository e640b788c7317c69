"""What users hand over by mistake: objectives, rules, estimators, systems and policies, each named in a sentence."""

# pyright: reportArgumentType=false

import dataclasses
import warnings

import numpy as np
import pytest
import torch
from conftest import tensor_options, uniform

from engine import (
    FULL,
    ONE_STEP,
    PHYSICS_ONLY,
    AdjointError,
    ClipNorm,
    EvenflowWarning,
    LinearSystem,
    Rollout,
    ShapeError,
)
from engine.tape import RolloutTape
from policies import Linear
from training import (
    Backpropagation,
    Objective,
    Quadratic,
    build_task,
)

BATCH, HORIZON = 3, 4
SYSTEM = LinearSystem([[0.9, 0.1], [0.0, 0.8]], [[0.0], [1.0]])
GOOD = Quadratic((1.0, 0.5), 0.1)


def rolled(segment=None):
    policy = Linear((2,), (1,), **tensor_options())
    policy.theta.data.copy_(uniform(0, *policy.theta.shape))
    rollout = Rollout(SYSTEM, policy, HORIZON, BATCH, segment=segment)
    rollout.forward(uniform(1, BATCH, 2))
    return rollout


def used(way, cost):
    """A rollout with a cost, forward or backward."""
    rollout = rolled()
    return rollout.forward(uniform(1, BATCH, 2), cost) if way == "forward" else rollout.backward([FULL], cost)


class Costs(Objective):
    """Running and final costs from two functions."""

    def __init__(self, running=None, final=None):
        self._running, self._final = running, final

    def running(self, states, controls, steps):
        return None if self._running is None else self._running(states)

    def final(self, state):
        return None if self._final is None else self._final(state)


def energy(states):
    return states.square().sum(-1)


WRONG_RUNNING = {
    "mean": (lambda x: energy(x).mean(), r"of shape \[4, 3\] on cpu, got shape \[\]\.$"),
    "sum over time": (lambda x: energy(x).sum(0), r"got shape \[3\]\.$"),
    "sum over samples": (lambda x: energy(x).sum(1), r"got shape \[4\]\.$"),
    "kept axis": (lambda x: x.square().sum(-1, keepdim=True), r"got shape \[4, 3, 1\]\.$"),
    "transposed": (lambda x: energy(x).t(), r"got shape \[3, 4\]\.$"),
    "other float": (
        lambda x: energy(x).to(torch.float32 if x.dtype == torch.float64 else torch.float64),
        r"got torch\.float(32|64)\.$",
    ),
    "integers": (lambda x: energy(x).long(), r"got torch\.int64\.$"),
    "booleans": (lambda x: energy(x) > 1.0, r"got torch\.bool\.$"),
    "another device": (lambda x: energy(x).to("meta"), "got a tensor on meta"),
    "number": (lambda x: 1.0, r"got 1\.0\.$"),
    "array": (lambda x: np.ones((HORIZON, BATCH)), r"got an? ndarray\.$"),
    "tuple": (lambda x: (energy(x), None), r"got a tuple\.$"),
}


@pytest.mark.parametrize("way", ["forward", "backward"])
@pytest.mark.parametrize("case", WRONG_RUNNING)
def test_running_costs_of_another_kind_are_refused_at_the_first_use(case, way):
    function, message = WRONG_RUNNING[case]
    with pytest.raises(ShapeError, match="Expected running costs for 4 steps and 3 samples as .*" + message):
        used(way, Costs(function))


@pytest.mark.parametrize("way", ["forward", "backward"])
@pytest.mark.parametrize("function", [lambda x: energy(x).mean(), lambda x: x.square(), lambda x: 2.0, lambda x: x > 0])
def test_final_costs_of_another_kind_are_refused_at_the_first_use(function, way):
    with pytest.raises(ShapeError, match=r"Expected a final cost for each sample as .* of shape \[3\] on cpu, got "):
        used(way, Costs(None, function))


class OnlyRunning:
    def running(self, states, controls, steps):
        return energy(states)


@pytest.mark.parametrize(
    ("cost", "message"),
    [
        (object(), "methods running and final, got an object without running and final; derive it from Objective"),
        (OnlyRunning(), "got an OnlyRunning without final"),
        (energy, "got function energy without running and final"),
        ("quadratic", "got 'quadratic' without"),
        (Quadratic, r"Expected an objective, got the class Quadratic; make one: Quadratic\(\.\.\.\)"),
    ],
)
def test_what_is_no_objective_is_named(cost, message):
    rollout = rolled()
    for use in (lambda: rollout.forward(uniform(1, BATCH, 2), cost), lambda: rollout.backward([FULL], cost)):
        with pytest.raises(AdjointError, match=message):
            use()
    with pytest.raises(AdjointError, match=message):
        dataclasses.replace(build_task("integrator"), objective=cost)


DETACHED = {
    "detach": lambda x: energy(x).detach(),
    "item": lambda x: x.new_tensor([[float(v.sum()) for v in row] for row in x.detach()]),
    "numpy": lambda x: torch.from_numpy((x.detach().cpu().numpy() ** 2).sum(-1)),
    "no_grad": torch.no_grad()(energy),
}


@pytest.mark.parametrize("case", DETACHED)
def test_costs_without_a_gradient_are_refused(case):
    message = "a Costs whose running costs depend on states or controls but have no gradient; look for detach"
    with pytest.raises(AdjointError, match=message):
        rolled().backward([FULL], Costs(DETACHED[case]))
    # Beside costs that can be differentiated they are told, once.
    rollout, cost = rolled(segment=3), Costs(DETACHED[case], energy)
    with pytest.warns(EvenflowWarning, match=message):
        rollout.backward([FULL], cost)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        rollout.backward([FULL], cost)


@pytest.mark.parametrize(
    "cost",
    [
        Costs(lambda x: x.new_ones(x.shape[:2])),
        Costs(lambda x: energy(x) * 0.0 + 1.0, lambda x: x.new_full((len(x),), 2.0)),
        Costs(None, lambda x: x.new_tensor(3.0).expand(len(x)) + 0.0 * x[:, 0]),
    ],
)
def test_a_cost_with_a_zero_gradient_is_told_once(cost):
    rollout = rolled()
    with pytest.warns(EvenflowWarning, match="a Costs with losses up to [2-6] whose gradient is exactly zero under"):
        found = rollout.backward([FULL, PHYSICS_ONLY], cost)
    assert not any(gradient.any() for gradient in found.parameters.values())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        rollout.backward([FULL], cost)
        rolled().backward([FULL], GOOD)
        rolled().backward([ONE_STEP], cost)  # through which alone a cost of later states may be unreachable
        with pytest.raises(AdjointError, match="got an Objective whose methods both return None; return the cost"):
            rolled().backward([FULL], Objective())


@pytest.mark.parametrize(
    "function",
    [
        lambda x: energy(x.mul_(2.0)),
        lambda x: energy(x.detach().mul_(2.0)) + energy(x),
    ],
)
def test_an_objective_that_changes_the_states_is_refused(function):
    rollout = rolled()
    for use in (
        lambda: rollout.backward([FULL], Costs(function)),
        lambda: rollout.backward([FULL], Costs(None, function)),
        lambda: rollout.forward(uniform(1, BATCH, 2), Costs(function)),
        lambda: rollout.forward(uniform(1, BATCH, 2), Costs(None, function)),
    ):
        with pytest.raises(AdjointError, match="leaves states and controls as they are, got a Costs, which changes"):
            use()
        rollout.forward(uniform(1, BATCH, 2))


def test_a_cost_that_is_nan_at_the_first_state_is_refused():
    cost = Costs(lambda x: (x[..., 0] - 10.0).log())
    message = "a cost of the first state that is a number, got nan at sample 0, whose state and control are finite"
    rollout = rolled()
    for use in (lambda: rollout.forward(uniform(1, BATCH, 2), cost), lambda: rolled(2).backward([FULL], cost)):
        with pytest.raises(AdjointError, match=message):
            use()


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_gradients_are_the_same_inside_modes_of_torch(mode):
    expected, policy = rolled().backward([FULL], GOOD), rolled().controller
    with mode():
        rollout = Rollout(SYSTEM, policy, HORIZON, BATCH, segment=2)
        rollout.forward(uniform(1, BATCH, 2))
        inside = rollout.backward([FULL], GOOD)
    outside = rollout.backward([FULL], GOOD)
    for found in (inside, outside):
        assert torch.equal(found.initial[FULL], expected.initial[FULL])
        torch.testing.assert_close(found.parameters[FULL], expected.parameters[FULL])
        assert not found.parameters[FULL].is_inference()


class Rule:
    """A rule made of a function."""

    uses_physics, uses_policy = True, True

    def __init__(self, function):
        self.function = function

    def __call__(self, direct, physics, policy, t):
        return self.function(direct, physics, policy)


WRONG_RULES = {
    "column": (lambda d, p, k: (d + p + k).sum(1, keepdim=True), r"got shape \[3, 1\]"),
    "vector": (lambda d, p, k: (d + p + k)[0], r"got shape \[2\]"),
    "nothing": (lambda d, p, k: None, "got None"),
    "half": (lambda d, p, k: (d + p).half(), r"got torch\.float16"),
    "number": (lambda d, p, k: 0.0, r"got 0\.0"),
}


@pytest.mark.parametrize("case", WRONG_RULES)
def test_a_rule_that_returns_something_else_is_refused(case):
    function, message = WRONG_RULES[case]
    with pytest.raises(ShapeError, match=r"Expected an adjoint from rule a Rule at step 3 as .* \[3, 2\] .*" + message):
        rolled().backward([Rule(function)], GOOD)


def test_a_rule_that_writes_to_its_arguments_is_refused_where_it_would_do_harm():
    with pytest.raises(AdjointError, match="Expected a rule that leaves its arguments as they are, got a Rule"):
        rolled().backward([Rule(lambda d, p, k: d.add_(p).add_(k))], GOOD)
    # What is computed anew at every step may be written to, and returned.
    rollout, physics = rolled(), Rule(lambda d, p, k: p.add_(d).add_(k))
    found = rollout.backward([physics, FULL], GOOD)
    torch.testing.assert_close(found.parameters[physics], found.parameters[FULL])


class Mutable(Rule):
    __hash__ = None  # type: ignore[assignment]


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ("R", "Expected an adjoint rule such as FULL, .* got 'R'"),
        (Backpropagation(FULL), r"got a Backpropagation; give its \.rules"),
        (lambda d, p, k, t: d, "got function <lambda>"),
        (ClipNorm, r"got the class ClipNorm; make one: ClipNorm\(\)"),
        (Mutable(None), "an adjoint rule that can be hashed, .* got a Mutable; make it a dataclass with frozen=True"),
        (None, "got None"),
    ],
)
def test_what_is_no_rule_is_named(rule, message):
    with pytest.raises(AdjointError, match=message):
        rolled().backward([rule], GOOD)
    with pytest.raises(AdjointError, match=message):
        RolloutTape(rule)
    with pytest.raises(AdjointError, match=message):
        Backpropagation(rule)


def test_rules_that_are_no_list_are_named():
    for rules, came in ((FULL, "got a PathRule"), ("RC", "got 'RC'")):
        with pytest.raises(AdjointError, match=rf"Expected a list of adjoint rules such as \[FULL\], {came}"):
            rolled().backward(rules, GOOD)  # type: ignore[arg-type]
