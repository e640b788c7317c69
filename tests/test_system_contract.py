"""The contract of a system, for every system that is registered: a newcomer is tested by being listed."""

import math
from functools import partial

import pytest
import reference
import torch
from conftest import relative_error, uniform
from contract import ON_A_SAMPLE, RULES, check_buffers, check_oracle, check_sweep, simulated, sweep_buffers
from test_cart_pendulum import cart_pendulum_step
from test_fluid import fluid_step
from test_guidance import guidance_step
from test_hopper import following
from test_n_body import n_body_step
from test_quantum import dense_step
from test_swarm import swarm_step

import engine
from engine import SYSTEMS, CartPendulum, CartPole, Guidance, Hopper, NBody, QuantumBox, Swarm
from engine.registry import SHIPPED

BATCH = 3
FUSED = {"ball-wall", "cart-pendulum", "cart-pole", "guidance", "hopper", "integrator", "linear", "quantum", "swarm"}
"""Of those that ship, the ones that sweep a segment in one launch."""


def ball_step(state, control, dt=0.02, wall=2.0, height=1.0, gravity=9.8):
    """The equations of `BallWall` once more, in torch."""
    x, y, v_x, v_y, clock = state.unbind(1)
    launched = clock < 0.5
    v_x, v_y = torch.where(launched, control[:, 0], v_x), torch.where(launched, control[:, 1], v_y - gravity * dt)
    landed = y + dt * v_y < 0
    part = torch.where(landed, y / torch.where(landed, -dt * v_y, 1.0), 1.0)
    reached = x + part * dt * v_x
    crossing = (x < wall) & (reached >= wall)
    stuck = crossing & (y + (wall - x) / torch.where(crossing, v_x, 1.0) * v_y < height)
    ends = torch.where(stuck, wall, reached), torch.where(landed, 0.0, y + dt * v_y)
    speeds = torch.where(stuck | landed, 0.0, v_x), torch.where(landed, 0.0, v_y)
    return torch.stack([*ends, *speeds, clock + 1.0], 1)


ORACLES = {
    "ball-wall": lambda system: ball_step,
    "cart-pendulum": lambda system: cart_pendulum_step,
    "cart-pole": lambda system: reference.cart_pole_step,
    "fluid": lambda system: partial(fluid_step, system=system),
    "guidance": lambda system: guidance_step,
    "hopper": lambda system: following,
    "integrator": lambda system: reference.integrator_step,
    "linear": lambda system: reference.linear_step(
        *(torch.tensor(m, dtype=torch.float64) for m in (system.A, system.B))
    ),
    "n-body": lambda system: partial(n_body_step, masses=system.masses, thrusters=system.thrusters),
    "quantum": lambda system: dense_step,
    "swarm": lambda system: swarm_step,
}
"""Of those that ship, another's way to write the step, in torch, of the small instance."""
OWN_ORACLE = {"kuramoto-sivashinsky"}
"""Those compared with an independent integrator, their order too, in tests of their own."""
ORDERS = {
    "cart-pendulum": [(4, partial(CartPendulum, links), 0.025) for links in (1, 2, 3, 4)],
    "cart-pole": [(1, partial(CartPole, poles), 0.0125) for poles in (1, 3)],
    "guidance": [(1, partial(Guidance, 2, 4), 0.002)],
    "hopper": [(1, partial(Hopper, stiffness=50.0, softness=0.2), 0.0002)],
    "n-body": [(2, partial(NBody, (1.0, 0.3, 0.2), (0, 2), dim, softening=0.3), 0.01) for dim in (2, 3)],
    "quantum": [(2, partial(QuantumBox, 5), 0.005)],
    "swarm": [(1, partial(Swarm, 2, 12, radius=1.5, flocking=0.02, mean_centre=True), 0.002)],
}
"""Of those that state an order of convergence, it, what builds the system with a time step, and a time step."""


@pytest.fixture(scope="module", params=SYSTEMS)
def case(request):
    """A small instance and points of its domain; kernels are compiled once for all tests."""
    system = SYSTEMS[request.param]()
    state = system.sample(BATCH, torch.Generator().manual_seed(0))
    return request.param, system, state, 0.5 * uniform(1, BATCH, *system.control_shape), uniform(2, *state.shape)


def accuracy():
    return 1e-12 if engine.current().precision == "float64" else 1e-5


@pytest.mark.cuda
@pytest.mark.vulkan
def test_states_of_its_domain_are_drawn_from_the_generator_and_stay_finite(case):
    _, system, state, control, _ = case
    assert state.shape == (BATCH, *system.state_shape)
    assert torch.equal(state, system.sample(BATCH, torch.Generator().manual_seed(0)))
    assert not torch.equal(state, system.sample(BATCH, torch.Generator().manual_seed(1)))
    assert torch.isfinite(simulated(system, state, control.expand(5, *control.shape).contiguous())).all()


@pytest.mark.cuda
@pytest.mark.vulkan
def test_a_launch_writes_its_outputs_and_nothing_else(case):
    _, system, state, control, adjoint = case
    given, pushed = state.clone(), control.clone()
    after = torch.full_like(state, torch.nan)
    system.step(state, control, after)
    assert torch.isfinite(after).all()
    check_buffers(system, state, control, adjoint)
    assert torch.equal(state, given)
    assert torch.equal(control, pushed)


@pytest.mark.cuda
@pytest.mark.vulkan
def test_samples_are_apart(case):
    _, system, state, control, adjoint = case
    whole, pulled = system.step(state, control), system.pull_back(state, control, adjoint)
    one = slice(1, 2)
    assert relative_error(system.step(state[one].clone(), control[one].clone()), whole[one]) < accuracy()
    alone = system.pull_back(state[one].clone(), control[one].clone(), adjoint[one].clone())
    for found, wanted in zip(alone, pulled, strict=True):
        assert relative_error(found, wanted[one]) < accuracy()


@pytest.mark.float64
def test_the_pull_back_equals_central_differences(case):
    _, system, state, control, _ = case
    assert engine.gradcheck(system, state[:2].clone(), control[:2].clone())


@pytest.mark.cuda
@pytest.mark.vulkan
def test_a_sweep_in_one_launch_equals_the_rule_applied_step_by_step(case):
    name, system, state, control, _ = case
    controls = control.expand(4, *control.shape).contiguous()
    states, bound = simulated(system, state, controls), 1e-12 if state.dtype == torch.float64 else 1e-5
    found = {
        check_sweep(system, sweep_buffers(system, states, controls), samples, rule, bound)
        for rule in (*RULES, ON_A_SAMPLE)
        for samples in (slice(0, BATCH), slice(1, 3))
    }
    if SYSTEMS.origin(name) == SHIPPED:
        fused = FUSED if engine.current().backend == "cpu" else FUSED - {"swarm"}  # 52 particles: many for one thread
        assert found == {name in fused}


def check_against_the_oracle(case):
    name, system, state, control, next_adjoint = case
    if name in ORACLES:
        check_oracle(system, ORACLES[name](system), state, control, next_adjoint, 10 * accuracy())
    else:
        assert name in OWN_ORACLE or SYSTEMS.origin(name) != SHIPPED


@pytest.mark.cuda
@pytest.mark.vulkan
def test_step_and_pull_back_equal_the_oracle_in_every_precision(case):
    check_against_the_oracle(case)


@pytest.mark.float64
@pytest.mark.parametrize("name", ORDERS)
def test_a_system_converges_with_its_stated_order(name):
    steps = 20
    for order, build, dt in ORDERS[name]:
        ends = []
        for finer in (1, 2, 32):
            system = build(dt=dt / finer)
            state = system.sample(BATCH, torch.Generator().manual_seed(0))
            control = 0.5 * uniform(1, BATCH, *system.control_shape)
            ends.append(simulated(system, state, control.expand(steps * finer, *control.shape).contiguous())[-1])
        errors = [relative_error(end, ends[2]) for end in ends[:2]]
        assert abs(math.log2(errors[0] / errors[1]) - order) < 0.25
