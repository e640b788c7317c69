"""Parameters, states and buffers that are changed between a rollout and its sweep."""

from typing import Any

import pytest
import torch
from conftest import tensor_options, uniform
from replacing import (
    COST,
    KINDS,
    ROWS,
    SHIPPED,
    STEPS,
    N,
    a_system,
    filled,
    found_by,
    replace_data,
    replace_parameter,
)
from torch import nn

from engine import FULL, AdjointError, Rollout
from policies import ModulePolicy


@pytest.fixture(scope="module")
def system():
    return a_system()


def another_weight(policy):
    if not isinstance(policy, ModulePolicy):
        pytest.skip("has no module")
    policy._module[0][0].weight = nn.Parameter(policy._module[0][0].weight.detach() * 0.5)


def a_modules_data(policy):
    if not isinstance(policy, ModulePolicy):
        pytest.skip("has no module")
    policy._module[0][2].bias.data[0] += 1e-9


CHANGES = {
    "in place": lambda policy: policy.theta.data.add_(1e-3),
    "one by little": lambda policy: policy.theta.data[-1, -1:].mul_(1 + 1e-6),
    "replaced": lambda policy: replace_data(policy, policy.theta.data * 0.5),
    "another Parameter": lambda policy: replace_parameter(policy, policy.theta.data * 0.5),
    "NaN": lambda policy: policy.theta.data[0, 0].fill_(torch.nan),
    "a module's weight": another_weight,
    "a module's data": a_modules_data,
    "another dtype": lambda policy: policy.half(),
}


@pytest.mark.parametrize("segment", [None, 2], ids=["stored", "segments"])
@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
@pytest.mark.parametrize("build", [KINDS["2 mlp"], KINDS["1 linear"], KINDS["module"]], ids=["mlp", "linear", "module"])
def test_parameters_changed_between_rollout_and_sweep_are_refused(build, change, segment, system):
    policy = filled(build()).to(torch.float64) if change is CHANGES["a module's data"] else filled(build())
    if policy.dtype != tensor_options()["dtype"]:
        pytest.skip("less than float32 sees")
    rollout = Rollout(system, policy, STEPS, ROWS * policy.members, segment=segment)
    initial, kept = uniform(9, rollout.batch, N), policy.theta.detach().clone()
    rollout.forward(initial)
    expected = rollout.backward([FULL], COST).parameters[FULL].clone()
    change(policy)
    with pytest.raises(AdjointError, match="got other parameters since; call the rollout again first"):
        rollout.backward([FULL], COST)
    # As they were, they are welcome again, wherever they are by now.
    policy.to(kept.dtype).theta.data.copy_(kept)
    assert torch.equal(rollout.backward([FULL], COST).parameters[FULL], expected)


@pytest.mark.parametrize("segment", [None, 2], ids=["stored", "segments"])
@pytest.mark.parametrize("name", ["states", "controls"])
def test_states_and_controls_written_to_are_refused(name, segment, system):
    rollout = Rollout(system, filled(SHIPPED["mlp"](1)), STEPS, ROWS, segment=segment)
    initial = uniform(9, ROWS, N)
    rollout.forward(initial)
    initial.mul_(3.0)
    gradient = rollout.backward([FULL], COST).parameters[FULL]
    getattr(rollout, name)[0].mul_(2.0)
    with pytest.raises(AdjointError, match="got states or controls that were written to since"):
        rollout.backward([FULL], COST)
    rollout.forward(uniform(9, ROWS, N))
    assert torch.equal(rollout.backward([FULL], COST).parameters[FULL], gradient)


@pytest.mark.float64
def test_a_buffer_changed_between_rollout_and_sweep_is_refused(system):
    net: Any = nn.Sequential(nn.BatchNorm1d(N), nn.Linear(N, N)).double().eval()
    rollout = Rollout(system, ModulePolicy(net, (N,), (N,)), STEPS, ROWS)
    found_by(rollout)
    net[0].running_mean.add_(1.0)
    with pytest.raises(AdjointError, match=r"got another buffer '0\.running_mean' since"):
        rollout.backward([FULL], COST)
    found_by(rollout)
    net.train()
    with pytest.raises(AdjointError, match="got modules in another mode since"):
        rollout.backward([FULL], COST)


@pytest.mark.float64
def test_parameters_that_are_not_numbers_are_as_they_were(system):
    policy = filled(SHIPPED["mlp"](2))
    policy.theta.data[1] = torch.nan
    rollout = Rollout(system, policy, STEPS, 2 * ROWS)
    rollout.forward(uniform(9, 2 * ROWS, N))
    assert torch.isfinite(rollout.backward([FULL], COST).parameters[FULL][0]).all()
