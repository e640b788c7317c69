"""What users write by mistake and what used to give wrong numbers without a word: parts, kernels, tapes, constants."""

# pyright: reportIncompatibleMethodOverride=false

import math
from dataclasses import replace
from typing import Any, NamedTuple

import pytest
import taichi as ti
import torch
from conftest import StepCost, relative_error, tensor_options, uniform
from test_tape import build_rollout, no_loss
from users_kernels import A, each

from engine import (
    FULL,
    AdjointError,
    KernelError,
    KernelSystem,
    LinearSystem,
    Observation,
    Rollout,
    RolloutTape,
    SettingError,
    VectorSystem,
)
from policies import Linear
from training import (
    Member,
    Objective,
    Trainer,
    TrainingSettings,
    build_task,
    differentiable,
    gradient_named,
)
from training.starts import policy_for

pytestmark = pytest.mark.float64

LINEAR = LinearSystem([[1.0, 0.1], [-0.2, 0.97]], [[0.0], [0.1]])
COST = StepCost(None, lambda state: state.square().sum(1))


def policy_of(width=2):
    policy = Linear((width,), (1,), **tensor_options())
    policy.theta.data.copy_(uniform(5, *policy.theta.shape))
    return policy


def swept(**parts):
    rollout = Rollout(LINEAR, policy_of(), 4, 3, **parts)
    rollout.forward(uniform(1, 3, 2), COST)
    return rollout.backward([FULL], COST).parameters[FULL]


def by_numpy(states, steps, parameters):
    return torch.from_numpy(2.0 * states.detach().numpy())


def normalised(states, steps, parameters):
    return states - states.mean(1, keepdim=True)


@pytest.mark.parametrize(
    ("see", "told"),
    [
        (by_numpy, "that torch can differentiate, got one that depends on the states but has no gradient"),
        (lambda states, *_: (2.0 * states).detach(), "that torch can differentiate"),
        (normalised, "of each sample by itself, got one in which another sample shows"),
        (lambda states, *_: states.add_(1.0), "that leaves states and controls as they are"),
    ],
    ids=["numpy", "detach", "mean", "in place"],
)
def test_an_observation_whose_gradient_would_be_another_is_refused(see, told):
    with pytest.raises(AdjointError, match=f"^Expected an observation {told}.*\\.$"):
        swept(observation=Observation(see, (2,)))


def test_what_has_no_gradient_and_does_not_depend_on_the_state_is_seen():
    clock = Observation(lambda states, steps, _: (states * 0.0 + steps.view(-1, 1, 1)).detach(), (2,))
    assert bool(swept(observation=clock).any())


def test_an_end_that_writes_to_the_states_is_refused():
    with pytest.raises(AdjointError, match=r"^Expected an end that leaves states and controls as they are, got"):
        swept(end=lambda states: states.sub_(0.1)[:, 0] > 1e9)


@ti.kernel
def first_eight(x: A, u: A, y: A):
    for b in range(8):
        if b < x.shape[0]:
            y[b, 0] = x[b, 0] + 0.1 * u[b, 0]


@ti.kernel
def pull_first_eight(x: A, u: A, g: A, a: A, c: A):
    for b in range(8):
        if b < x.shape[0]:
            a[b, 0] = g[b, 0] * (1.0 - 0.1 * u[b, 0] * ti.sin(x[b, 0]))
            c[b, 0] += 0.1 * ti.cos(x[b, 0]) * g[b, 0]


@ti.kernel
def pull_at_first(x: A, u: A, g: A, a: A, c: A):
    for b in range(x.shape[0]):
        a[b, 0] = g[b, 0] * (1.0 - 0.1 * u[b, 0] * ti.sin(x[0, 0]))
        c[b, 0] += 0.1 * ti.cos(x[b, 0]) * g[b, 0]


def run(system, batch):
    rollout = Rollout(system, policy_of(1), 3, batch)
    rollout.forward(uniform(1, batch, 1), COST)
    return rollout.backward([FULL], COST).initial[FULL]


@pytest.mark.parametrize("before", [(), (8,), (1, 4)], ids=str)
@pytest.mark.parametrize(
    ("step", "pull_back", "error", "what"),
    [(first_eight, None, KernelError, "step"), (each, pull_first_eight, AdjointError, "pull_back")],
    ids=["step", "pull-back"],
)
def test_samples_that_a_kernel_leaves_out_are_found_in_a_batch_that_has_them(before, step, pull_back, error, what):
    system = KernelSystem(step, (1,), (1,), pull_back=pull_back)
    for batch in before:
        run(system, batch)
    told = rf"^Expected the {what} kernel of system '{step.__name__}' to do the same to every sample of a batch, got "
    with pytest.raises(error, match=told + "sample 8 of 16 apart from an equal one"):
        run(system, 16)


def test_what_one_sample_cannot_show_of_a_pull_back_is_found_with_several():
    system = KernelSystem(each, (1,), (1,), pull_back=pull_at_first)
    run(system, 1)
    with pytest.raises(AdjointError, match="to be the derivative of its step"):
        run(system, 8)


def test_a_right_system_of_many_samples_passes():
    system = KernelSystem(each, (1,), (1,))
    assert bool(run(system, 1).any())
    assert bool(run(system, 100).all())


def test_every_typical_state_is_looked_at():
    @ti.kernel
    def kinked(x: A, u: A, y: A):
        for b in range(x.shape[0]):
            y[b, 0] = x[b, 0] + u[b, 0]
            if x[b, 0] > 5.0:
                y[b, 0] = x[b, 0] * x[b, 0] + u[b, 0]

    @ti.kernel
    def pull(x: A, u: A, g: A, a: A, c: A):
        for b in range(x.shape[0]):
            a[b, 0] = g[b, 0]
            c[b, 0] += g[b, 0]

    for states in (torch.arange(8.0).view(-1, 1), torch.arange(800.0).div(100.0).view(-1, 1)):
        system = KernelSystem(kinked, (1,), (1,), pull_back=pull, typical_states=states.to(**tensor_options()))
        with pytest.raises(AdjointError, match="to be the derivative of its step"):
            run(system, 4)


@ti.kernel
def add_last(states: ti.types.ndarray(ndim=3), into: ti.types.ndarray(ndim=1)):
    for b in range(states.shape[1]):
        into[b] += states[states.shape[0] - 1, b, 0] ** 2


@ti.kernel
def add_all(values: ti.types.ndarray(ndim=1), loss: ti.types.ndarray(ndim=1)):
    for b in range(values.shape[0]):
        loss[0] += 2.0 * values[b]


def test_what_a_tape_writes_begins_each_tape_without_a_gradient():
    """Arrays, fields and a rollout's start; what is only read goes on to add up, as torch does."""
    scale, sums = ti.field(ti.f64, (), needs_grad=True), ti.field(ti.f64, (), needs_grad=True)
    scale[None] = 3.0

    @ti.kernel
    def add_up(values: ti.types.ndarray(ndim=1)):
        for b in range(values.shape[0]):
            sums[None] += values[b]

    @ti.kernel
    def weigh(loss: ti.types.ndarray(ndim=1)):
        loss[0] += scale[None] * sums[None]

    @ti.kernel
    def start(p: ti.types.ndarray(ndim=1), x: ti.types.ndarray(ndim=2)):
        for b, i in x:
            x[b, i] += p[0]

    rollout = build_rollout()
    rollout.states.requires_grad_()
    batch, kind = rollout.batch, tensor_options()
    middle = torch.zeros(batch, **kind, requires_grad=True)
    x, p = torch.zeros(batch, *rollout.system.state_shape, **kind, requires_grad=True), torch.ones(1, **kind)
    p.requires_grad_()
    found = []
    for _ in range(3):
        sums.fill(0.0)
        middle.data.zero_()
        x.data.copy_(uniform(1, *x.shape))
        loss = no_loss()
        with RolloutTape(FULL, loss=loss) as tape:
            start(p, x)
            rollout(x)
            add_last(rollout.states, middle)
            add_all(middle, loss)
            add_up(middle)
            weigh(loss)
        assert p.grad is not None
        found.append((tape.gradients(rollout).initial[FULL].clone(), scale.grad[None], p.grad.clone()))
    for initial, slope, reached in found[1:]:
        assert relative_error(initial, found[0][0]) < 1e-14
        assert slope == found[0][1]
        assert not torch.equal(reached, found[0][2])
    assert relative_error(found[2][2], 3 * found[0][2]) < 1e-12


def test_a_rollout_of_which_nothing_is_differentiated_is_told():
    rollout = build_rollout()
    tape = RolloutTape(FULL)

    def record():
        with tape:
            rollout(uniform(1, rollout.batch, *rollout.system.state_shape))

    with pytest.raises(AdjointError, match=r"^Expected an objective, or kernels that add to .*; call the rollout with"):
        record()


@ti.kernel
def drifting(x: A, u: A, y: A, k: ti.types.ndarray(ndim=1)):
    for b in range(x.shape[0]):
        y[b, 0] = x[b, 0] + 0.1 * (u[b, 0] - k[0] * ti.sin(x[b, 0]))


def test_a_constant_that_changes_between_rollout_and_sweep_is_told():
    constant = torch.ones(1, **tensor_options())
    system = KernelSystem(drifting, (1,), (1,), constants=(constant,))
    rollout = Rollout(system, policy_of(1), 3, 2)
    told = "another constant of drifting since"
    rollout.forward(uniform(1, 2, 1), COST)
    constant.fill_(2.0)
    with pytest.raises(AdjointError, match=told):
        rollout.backward([FULL], COST)
    simulate = differentiable(rollout, objective=COST)
    losses = [simulate(uniform(1, 2, 1))]
    constant.fill_(3.0)
    losses.append(simulate(uniform(1, 2, 1)))
    losses[1].sum().backward()
    with pytest.raises(AdjointError, match=told):
        losses[0].sum().backward()
    with pytest.raises(SettingError, match=r"^Expected constants of system 'drifting' without a gradient, got .*\.$"):
        KernelSystem(drifting, (1,), (1,), constants=(constant.clone().requires_grad_(),))


class Gravity(NamedTuple):
    g: float = 9.8


class Without(VectorSystem):
    """Constants that its functions do not take."""

    name, state_shape, control_shape, constants = "without", (1,), (1,), Gravity()

    @ti.func
    def advance(self, state, control):
        return state + control

    @ti.func
    def pull_back_sample(self, state, control, next_adjoint):
        return next_adjoint, next_adjoint


@ti.data_oriented
class WithoutParameters(Without):
    pass


def test_functions_of_a_sample_that_lack_the_parameters_are_told():
    with pytest.raises(SettingError, match=r"^Expected advance of without to take state, control and parameters"):
        replace(build_task("integrator"), system=WithoutParameters())
    found: Any = WithoutParameters()
    found.constants = ()
    found.check_size()


def test_tables_of_every_step_are_never_asked_beyond_the_horizon():
    """Whatever the windows; what is seen also at the end, which the critic is shown."""
    path = torch.linspace(0.0, 1.0, 10 + 1, **tensor_options())

    class Tracking(Objective):
        def running(self, states, controls, steps):
            return (states[..., 0] - path[:10][steps].view(-1, 1)).square()

    def ahead(states, steps, parameters):
        return torch.cat([states, path[steps].view(-1, 1, 1).expand(*states.shape[:2], 1)], -1)

    like, observation = build_task("cart-pole", horizon=10), Observation(ahead, (5,))
    policy = policy_for(like.system, observation=observation, hidden=(3,))
    task = replace(like, objective=Tracking(), observation=observation, policy=policy)
    chosen = [gradient_named(text).estimator for text in ("short(R, 4)", "short(M, 3)", "short(R, 5)")]
    settings = TrainingSettings(batch_size=2, train_samples=4, test_samples=2)
    trainer = Trainer(task, [Member(estimator) for estimator in chosen], settings)
    assert all(map(math.isfinite, trainer.run_epoch().test_loss))
