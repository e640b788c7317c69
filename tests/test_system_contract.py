"""The contract of a system, for every system that is registered: a newcomer is tested by being listed."""

import pytest
import torch
from conftest import relative_error, uniform
from contract import ON_A_SAMPLE, RULES, check_buffers, check_sweep, simulated, sweep_buffers

import engine
from engine import SYSTEMS
from engine.registry import SHIPPED

BATCH = 3
FUSED = {"ball-wall", "cart-pendulum", "cart-pole", "guidance", "hopper", "integrator", "linear", "quantum", "swarm"}
"""Of those that ship, the ones that sweep a segment in one launch."""


@pytest.fixture(scope="module", params=SYSTEMS)
def case(request):
    """A small instance and points of its domain; kernels are compiled once for all tests."""
    system = SYSTEMS[request.param]()
    state = system.sample(BATCH, torch.Generator().manual_seed(0))
    return request.param, system, state, 0.5 * uniform(1, BATCH, *system.control_shape), uniform(2, *state.shape)


@pytest.mark.vulkan
def test_states_of_its_domain_are_drawn_from_the_generator_and_stay_finite(case):
    _, system, state, control, _ = case
    assert state.shape == (BATCH, *system.state_shape)
    assert torch.equal(state, system.sample(BATCH, torch.Generator().manual_seed(0)))
    assert not torch.equal(state, system.sample(BATCH, torch.Generator().manual_seed(1)))
    assert torch.isfinite(simulated(system, state, control.expand(5, *control.shape).contiguous())).all()


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


@pytest.mark.vulkan
def test_samples_are_apart(case):
    _, system, state, control, adjoint = case
    whole, pulled = system.step(state, control), system.pull_back(state, control, adjoint)
    one = slice(1, 2)
    accuracy = 1e-12 if engine.current().precision == "float64" else 1e-5
    assert relative_error(system.step(state[one].clone(), control[one].clone()), whole[one]) < accuracy
    alone = system.pull_back(state[one].clone(), control[one].clone(), adjoint[one].clone())
    for found, wanted in zip(alone, pulled, strict=True):
        assert relative_error(found, wanted[one]) < accuracy


@pytest.mark.float64
def test_the_pull_back_equals_central_differences(case):
    _, system, state, control, _ = case
    assert engine.gradcheck(system, state[:2].clone(), control[:2].clone())


@pytest.mark.vulkan
def test_a_sweep_in_one_launch_equals_the_rule_applied_step_by_step(case):
    name, system, state, control, _ = case
    controls = control.expand(4, *control.shape).contiguous()
    states, accuracy = simulated(system, state, controls), 1e-12 if state.dtype == torch.float64 else 1e-4
    found = {
        check_sweep(system, sweep_buffers(system, states, controls), samples, rule, accuracy)
        for rule in (*RULES, ON_A_SAMPLE)
        for samples in (slice(0, BATCH), slice(1, 3))
    }
    if SYSTEMS.origin(name) == SHIPPED:
        assert found == {name in FUSED}
