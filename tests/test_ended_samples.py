"""Samples that an objective ends early: the gradient is that of a rollout that stops, whatever becomes of the state."""

# pyright: reportIncompatibleMethodOverride=false

import math
import warnings
from typing import Any

import pytest
import taichi as ti
import torch
from conftest import BySteps, relative_error, tensor_options, uniform

import engine
from engine import (
    FULL,
    PHYSICS_ONLY,
    POLICY_ONLY,
    ClipNorm,
    EvenflowWarning,
    Integrator,
    KernelSystem,
    Observation,
    Rollout,
    VectorSystem,
)
from engine.systems import Held
from policies import MLP, Linear, ModulePolicy
from training import Member, Objective, Task, Trainer, TrainingSettings

END, HORIZON = 5, 30


@ti.data_oriented
class Cubic(VectorSystem):
    """x' = x + dt (x³ + u), y' = y + dt x: it blows up from 2 on within 20 steps."""

    name, state_shape, control_shape = "cubic", (2,), (1,)

    def __init__(self, dt=0.1):
        self.dt = dt

    @ti.func
    def advance(self, state, control):
        x = state[0]
        return ti.Vector([x + self.dt * (x * x * x + control[0]), state[1] + self.dt * x])

    @ti.func
    def pull_back_sample(self, state, control, next_adjoint):
        x = state[0]
        along = (1.0 + 3.0 * self.dt * x * x) * next_adjoint[0] + self.dt * next_adjoint[1]
        return ti.Vector([along, next_adjoint[1]]), ti.Vector([self.dt * next_adjoint[0]])


class Launched(Cubic):
    """With a step of its own, of which nothing is launched together."""

    def prepare_step(self, *arrays):
        return super().prepare_step(*arrays)


@ti.kernel
def cubic(x: ti.types.ndarray(ndim=2), u: ti.types.ndarray(ndim=2), y: ti.types.ndarray(ndim=2)):
    for b in range(x.shape[0]):
        y[b, 0] = x[b, 0] + 0.1 * (x[b, 0] * x[b, 0] * x[b, 0] + u[b, 0])
        y[b, 1] = x[b, 1] + 0.1 * x[b, 0]


SYSTEMS = {
    "fused": Cubic(),
    "taichi's adjoint": KernelSystem(cubic, (2,), (1,)),
    "held": Held(Cubic(0.03), 2),
    "held, launch by launch": Held(Launched(0.03), 2),
}


class Until(Objective):
    """Σ |x|² + .1 u² up to each sample's end, and no final cost for those that end before the horizon."""

    def __init__(self, ends):
        self.ends = torch.tensor(ends, device=engine.current().device)

    def running(self, states, controls, steps):
        cost = states.square().sum(-1) + 0.1 * controls.square().sum(-1)
        return torch.where(steps[:, None] < self.ends, cost, torch.zeros_like(cost))

    def final(self, state):
        return torch.where(self.ends > HORIZON, state[:, 0].square(), torch.zeros_like(state[:, 0]))


def build_policy(kind, members=1):
    if kind == "module":
        layers = torch.nn.Linear(2, 4), torch.nn.Tanh(), torch.nn.Linear(4, 1)
        policy = ModulePolicy(torch.nn.Sequential(*layers).to(**tensor_options()), (2,), (1,))
    elif kind == "linear":
        policy = Linear((2,), (1,), members=members, **tensor_options())
    else:
        policy = MLP((2,), (1,), (5, 4), members=members, **tensor_options())
    policy.theta.data.copy_(uniform(3, *policy.theta.shape, low=-0.1, high=0.1))
    return policy


def swept(system, policy, rules, horizon, states, ends, **cut):
    initial = torch.tensor(states, **tensor_options())
    rollout = Rollout(system, policy, horizon, len(initial), **cut)
    losses = rollout.forward(initial, Until(ends))
    assert losses is not None
    return rollout, losses, rollout.backward(rules, Until(ends))


BLOWN, CALM = [[2.0, 0.3], [1.8, -0.2]], [[0.2, 0.1], [-0.3, 0.5]]
NEVER = HORIZON + 1


@pytest.mark.parametrize("segment", [None, 4, 7])
@pytest.mark.parametrize("kind", ["linear", "mlp", "module"])
@pytest.mark.parametrize("name", SYSTEMS)
def test_the_gradient_is_that_of_rollouts_that_stop(name, kind, segment):
    system, policy = SYSTEMS[name], build_policy(kind)
    rules = [FULL, PHYSICS_ONLY, POLICY_ONLY, ClipNorm(FULL, limit=5.0), BySteps(FULL)]
    rollout, losses, found = swept(
        system, policy, rules, HORIZON, [*BLOWN, *CALM], [END, END + 1, NEVER, NEVER], segment=segment
    )
    assert not rollout.final_state[:2].isfinite().all(1).any()
    assert rollout.final_state[2:].isfinite().all()
    parts = [
        swept(system, policy, rules, END, BLOWN[:1], [END]),
        swept(system, policy, rules, END + 1, BLOWN[1:], [END + 1]),
        swept(system, policy, rules, HORIZON, CALM, [NEVER, NEVER]),
    ]
    accuracy = 1e-12 if engine.current().precision == "float64" else 1e-4
    expected = torch.cat([part[1] for part in parts])
    assert relative_error(losses, expected) < accuracy
    assert relative_error(found.losses, expected) < accuracy
    for rule in rules:
        gradient = sum(part[2].parameters[rule] * len(part[1]) for part in parts) / 4
        assert relative_error(found.parameters[rule], gradient) < accuracy
        assert relative_error(found.initial[rule], torch.cat([part[2].initial[rule] for part in parts])) < accuracy


@pytest.mark.parametrize("kind", ["linear", "mlp"])
def test_members_do_not_see_each_others_ends(kind):
    together, alone = build_policy(kind, members=2), build_policy(kind)
    _, _, found = swept(SYSTEMS["fused"], together, [FULL], HORIZON, [*BLOWN, *CALM], [END, END, NEVER, NEVER])
    accuracy = 1e-12 if engine.current().precision == "float64" else 1e-4
    for member, (states, ends, horizon) in enumerate(((BLOWN, [END] * 2, END), (CALM, [NEVER] * 2, HORIZON))):
        alone.theta.data.copy_(together.theta.data[member : member + 1])
        _, _, expected = swept(SYSTEMS["fused"], alone, [FULL], horizon, states, ends)
        assert relative_error(found.parameters[FULL][member], expected.parameters[FULL][0]) < accuracy


@pytest.mark.parametrize("name", SYSTEMS)
def test_what_a_cost_that_goes_on_meets_is_not_mended(name):
    rules = [FULL, PHYSICS_ONLY, BySteps(FULL)]
    _, losses, found = swept(SYSTEMS[name], build_policy("mlp"), rules, HORIZON, [*BLOWN[:1], *CALM], [NEVER] * 3)
    assert losses.isfinite().tolist() == [False, True, True]
    for rule in rules:
        assert not found.parameters[rule].isfinite().all()
        assert found.initial[rule].isfinite().all(1).tolist() == [False, True, True]


@pytest.mark.parametrize("name", SYSTEMS)
def test_segments_change_no_bit_of_what_passes_on_the_way(name):
    def passed(segment):
        initial = torch.tensor([*BLOWN, *CALM], **tensor_options())
        rollout, pieces = Rollout(SYSTEMS[name], build_policy("mlp"), HORIZON, 4, segment=segment), []
        cost = Until([END, END + 1, NEVER, NEVER])
        rollout.forward(initial)
        rollout.backward([FULL], cost, inspect=lambda _, part, a, u: pieces.insert(0, (a[:-1].clone(), u.clone())))
        # What was shown to the controller in the stead of ended samples is taken back.
        states = rollout.states.clone()
        rollout.restored = None
        rollout.forward(initial)
        if segment is None:
            assert torch.equal(states.nan_to_num(7.0), rollout.states.nan_to_num(7.0))
        return [torch.cat(parts) for parts in zip(*pieces, strict=True)]

    for found, expected in zip(passed(4), passed(None), strict=True):
        assert torch.equal(found, expected)


@ti.kernel
def root(x: ti.types.ndarray(ndim=2), u: ti.types.ndarray(ndim=2), y: ti.types.ndarray(ndim=2)):
    for b in range(x.shape[0]):
        y[b, 0] = ti.sqrt(x[b, 0]) * u[b, 0]


@ti.kernel
def root_adjoint(
    x: ti.types.ndarray(ndim=2),
    u: ti.types.ndarray(ndim=2),
    following: ti.types.ndarray(ndim=2),
    adjoint: ti.types.ndarray(ndim=2),
    cotangent: ti.types.ndarray(ndim=2),
):
    for b in range(x.shape[0]):
        adjoint[b, 0] = following[b, 0] * u[b, 0] * 0.5 / ti.sqrt(x[b, 0])
        cotangent[b, 0] += following[b, 0] * ti.sqrt(x[b, 0])


class Root(torch.nn.Module):
    """u = w √|x|, whose Jacobians are infinite at 0."""

    def __init__(self):
        super().__init__()
        self.weight, self.offset = (torch.nn.Parameter(torch.tensor(value, **tensor_options())) for value in (0.0, 0.0))

    def forward(self, state):
        return (self.weight * state + self.offset).abs().sqrt()


class StopAtFirst(Objective):
    def running(self, states, controls, steps):
        cost = (states[..., 0] - 1.0).square() + (controls[..., 0] - 1.0).square()
        return torch.where(steps[:, None] < 1, cost, torch.zeros_like(cost))


@pytest.mark.float64
@pytest.mark.parametrize("rule", [FULL, POLICY_ONLY])
def test_infinite_jacobians_at_finite_states_pass_on_zero(rule):
    # A policy of weight 0 sends the state to 0, where the root's derivative is infinite.
    system = KernelSystem(root, (1,), (1,), pull_back=root_adjoint)
    policy = Linear((1,), (1,), bias=False, **tensor_options())
    found = []
    for horizon in (1, 6):
        rollout = Rollout(system, policy, horizon, 1)
        rollout.forward(torch.full((1, 1), 0.25, **tensor_options()))
        found.append(rollout.backward([rule], StopAtFirst()).parameters[rule])
    assert found[1].isfinite().all()
    torch.testing.assert_close(*found)


@pytest.mark.float64
def test_infinite_jacobians_of_a_policy_add_nothing_where_the_cotangent_is_zero():
    found = []
    for horizon in (1, 4):
        module = Root()
        module.weight.data.fill_(1.0)
        policy = ModulePolicy(module, (1,), (1,))
        rollout = Rollout(engine.LinearSystem([[0.0]], [[0.0]]), policy, horizon, 1)  # every later state is 0
        rollout.forward(torch.full((1, 1), 0.25, **tensor_options()))
        found.append(rollout.backward([FULL], StopAtFirst()).parameters[FULL])
    assert found[1].isfinite().all()
    torch.testing.assert_close(*found)


@pytest.mark.float64
def test_a_gradient_that_is_nan_at_a_finite_cost_and_state_is_told():
    class Masked(Objective):
        def running(self, states, controls, steps):
            radius = states.square().sum(-1).sqrt()  # at 0 its derivative is infinite
            return torch.where(radius > 0, radius, torch.zeros_like(radius))

    policy = Linear((1,), (1,), **tensor_options())
    rollout = Rollout(engine.LinearSystem([[0.5]], [[1.0]]), policy, 3, 1)
    rollout.forward(torch.zeros(1, 1, **tensor_options()))
    with pytest.warns(EvenflowWarning, match="a finite cost to have a gradient that is a number, got nan with respect"):
        gradient = rollout.backward([FULL], Masked()).parameters[FULL]
    assert gradient.isnan().any()


class UntilOut(Objective):
    """A sample ends for good once it leaves |x| < 3."""

    def running(self, states, controls, steps):
        alive = (states[..., 0].detach().abs() < 3.0).to(states.dtype).cumprod(0) > 0
        return torch.where(alive, states[..., 0].square(), torch.zeros_like(states[..., 0]))


def test_a_member_whose_loss_and_gradient_are_finite_goes_on():
    def starts(count, generator):
        return torch.linspace(-2.0, 2.0, count, dtype=torch.float64)[:, None].expand(-1, 2).contiguous()

    def policy(members, dtype, device):
        return MLP((2,), (1,), (4,), members=members, dtype=dtype, device=device)

    task = Task("cubic", SYSTEMS["fused"], UntilOut(), starts, HORIZON, policy)
    trainer = Trainer(task, [Member(seed=0), Member(seed=1)], TrainingSettings(8, 8, 8))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        record = trainer.run_epoch()
    assert not trainer.rollout.states[-1].isfinite().all()
    assert not trainer.divergences
    assert all(math.isfinite(loss) for loss in (*record.train_loss, *record.test_loss))


class Masked(Objective):
    """p x² where x is finite."""

    def __init__(self, p: Any = 1.0):
        self.p = p

    def given(self, parameters):
        return Masked(parameters["p"])

    def running(self, states, controls, steps):
        return self.final(states)

    def final(self, state):
        return torch.where(state[..., 0].isfinite(), self.p * state[..., 0].square(), 0.0)


@pytest.mark.parametrize("segment", [None, 2])
def test_a_masked_sample_has_no_part_in_the_gradient_of_what_cost_and_observation_read(segment):
    seen = Observation(lambda states, steps, parameters: parameters["p"].unsqueeze(-1) * states, (1,))
    policy = Linear((1,), (1,), **tensor_options())
    policy.theta.data.fill_(0.3)
    rollout = Rollout(Integrator(1), policy, 5, 2, observation=seen, parameters=("p",), segment=segment)
    rows, found = torch.tensor([[0.7], [0.8]], **tensor_options()), {}
    for first in (torch.inf, 1.0):
        rollout(torch.tensor([[first], [0.5]], **tensor_options()), parameters=rows)
        found[first] = rollout.backward([FULL], Masked()).physical[FULL].flatten().tolist()
    assert found[torch.inf][0] == 0.0
    assert found[torch.inf][1] == pytest.approx(found[1.0][1], rel=1e-5)
