"""What every system promises, as checks that the tests of one and of all systems share."""

import math

import pytest
import torch
from conftest import relative_error, uniform

from engine import ClipNorm, Decay, PathRule, SettingError, Truncate
from engine.fused import Law, SweepArrays

RULES = [PathRule(1.0, 1.0), PathRule(1.0, 0.0), PathRule(0.0, 0.0), PathRule(0.0, 1.0), PathRule(0.5, -2.0)]
ON_A_SAMPLE = ClipNorm(Decay(Truncate(PathRule(0.5, -2.0), window=3), factor=0.8), limit=0.3)
"""A rule that is no sum of paths, and that sweeps in one launch by what it says of one sample."""
START = 4
"""The step at which the segment of a sweep begins."""


def check_refusal(build, settings, message):
    """These settings end in one sentence that begins so."""
    with pytest.raises(SettingError) as refusal:
        build(**settings)
    said = str(refusal.value)
    assert said.startswith(f"Expected {message}")
    assert said.endswith(".")
    assert "\n" not in said


def check_oracle(system, step, state, control, next_adjoint, accuracy, of_pull_back=None):
    """Step and pull-back equal `step` and torch's derivatives of it, in float64 on the CPU.

    Every launch runs twice, the second time on the samples in another order.
    """
    given = state.clone(), control.clone(), next_adjoint.clone()
    following, adjoint, cotangent = torch.empty_like(state), torch.empty_like(state), torch.empty_like(control)
    launches = system.prepare_step(*given[:2], following), system.prepare_pull_back(*given, adjoint, cotangent)
    order = torch.arange(len(state), device=state.device)
    for samples in (order, order.roll(1)):
        for buffer, values in zip(given, (state, control, next_adjoint), strict=True):
            buffer.copy_(values[samples])
        for found in (following, adjoint):
            found.fill_(math.nan)
        cotangent.zero_()
        for launch in launches:
            launch()
        leaves = [tensor.detach().cpu().double().requires_grad_() for tensor in given[:2]]
        expected = step(*leaves)
        assert relative_error(following, expected) < accuracy
        derivatives = torch.autograd.grad(expected, leaves, given[2].cpu().double())
        for found, wanted in zip((adjoint, cotangent), derivatives, strict=True):
            assert relative_error(found, wanted) < (of_pull_back or accuracy)


def check_buffers(system, state, control, next_adjoint):
    """A pull-back leaves `next_adjoint` alone, writes `adjoint` and adds to `cotangent`."""
    given = next_adjoint.clone()
    adjoint, cotangent = torch.full_like(state, math.nan), torch.ones_like(control)
    launch = system.prepare_pull_back(state, control, next_adjoint, adjoint, cotangent)
    launch()
    launch()
    expected_adjoint, expected_cotangent = system.pull_back(state, control, given)
    assert torch.equal(next_adjoint, given)
    assert torch.equal(adjoint, expected_adjoint)
    torch.testing.assert_close(cotangent, 1 + 2 * expected_cotangent)


def sweep_buffers(system, states, controls):
    """Random derivatives, adjoints and cotangents beside states [S+1, B, ...] and controls [S, B, ...]."""
    steps, batch = controls.shape[:2]
    n, m = math.prod(system.state_shape), math.prod(system.control_shape)
    return (
        states, controls, uniform(3, steps, batch, *system.state_shape), uniform(4, steps, batch, m, n),
        uniform(5, steps + 1, batch, *system.state_shape), uniform(6, steps, batch, *system.control_shape),
    )  # fmt: skip


def simulated(system, state, controls):
    """All states [S+1, B, ...] under controls [S, B, ...], by one launch: preparing costs more than small steps do."""
    now, control, after = state.clone(), controls[0].clone(), torch.empty_like(state)
    step, states = system.prepare_step(now, control, after), [state]
    for given in controls:
        control.copy_(given)
        step()
        now.copy_(after)
        states.append(after.clone())
    return torch.stack(states)


def prepare_sweep(system, buffers, samples, rule):
    """What the engine makes of a rule for a system: a launch, or None."""
    law = Law(rule.uses_physics, rule.uses_policy, None if isinstance(rule, PathRule) else rule)
    weights = rule.path_weights if isinstance(rule, PathRule) else (0.0, 0.0)
    start = torch.tensor([START], dtype=torch.int32, device=buffers[0].device)
    return system.prepare_sweep(SweepArrays(*buffers, samples=samples, start=start, law=law, weights=weights))


def check_sweep(system, buffers, samples, rule, accuracy):
    """A sweep in one launch equals the rule applied step by step; False where the system has none."""
    states, controls, direct, jacobian, adjoints, cotangents = buffers
    expected_adjoints, expected_cotangents = adjoints.clone(), cotangents.clone()
    for t in reversed(range(len(controls))):
        physics, pulled = system.pull_back(states[t], controls[t], expected_adjoints[t + 1])
        expected_cotangents[t, samples] += pulled[samples]
        policy = torch.einsum("bm,bmn->bn", expected_cotangents[t].flatten(1), jacobian[t]).view_as(physics)
        expected_adjoints[t, samples] = rule(direct[t], physics, policy, START + t)[samples]
    launch = prepare_sweep(system, buffers, samples, rule)
    if launch is None:
        return False
    launch()
    assert relative_error(adjoints, expected_adjoints) < accuracy
    assert relative_error(cotangents, expected_cotangents) < accuracy
    return True
