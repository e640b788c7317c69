"""Policies that users write, with and without a record of their own, are judged by what they do."""

import pytest
import torch
from conftest import relative_error, tensor_options, uniform
from three_states import COST, ROWS, RULES, STEPS, M, N, three_states
from torch import nn

from engine import FULL, Rollout
from policies import MLP, ModulePolicy, Policy, PolicyError, PolicyRecord


@pytest.fixture(scope="module")
def system():
    return three_states()


class Gain(Policy):
    """u = θ x on the first components, times whatever `change` makes of it."""

    def __init__(self, members=2, record=None, forward=None):
        super().__init__((N,), (M,), M, members, **tensor_options())
        self.theta.data.copy_(uniform(3, members, M))
        self._record, self._forward = record, forward

    def forward(self, state):
        control = self.theta.unsqueeze(1) * state[..., :M]
        return control if self._forward is None else self._forward(self, state, control)

    def initialise(self, member, generator):
        self.theta.data[member] = 0.5

    def record(self, slots, batch, state_shape, control_shape):
        if self._record is None:
            return super().record(slots, batch, state_shape, control_shape)
        return self._record(self, batch)


class ByHand(PolicyRecord):
    """Gain's derivatives by hand; `acting`, `state` and `parameters` are factors that should be 1."""

    def __init__(self, policy, batch, acting=1.0, state=1.0, parameters=1.0):
        self.gains = policy.theta.detach().repeat_interleave(batch // policy.members, 0)
        self.members, self.factors = policy.members, (acting, state, parameters)

    def prepare_act(self, slot, state, control):
        def act():
            control.copy_(self.factors[0] * self.gains * state[:, :M])

        return act

    def linearise(self, first, last, states, samples, jacobian):
        if jacobian is not None:
            jacobian.zero_()
            for c in range(M):
                jacobian[:, :, c, c] = self.factors[1] * self.gains[:, c]

    def pull_back_state(self, slot, state, cotangent, samples):
        pulled = torch.zeros_like(state)
        pulled[:, :M] = self.factors[1] * self.gains[samples] * cotangent
        return pulled

    def pull_back_parameters(self, first, last, states, cotangents, samples, gradient):
        rows = (cotangents * states[..., :M]).sum(0)[samples]
        members = slice(samples.start * self.members // states.shape[1], samples.stop * self.members // states.shape[1])
        gradient[members] += self.factors[2] * rows.unflatten(0, (-1, states.shape[1] // self.members)).sum(1)


def faulty(**factors):
    return lambda policy, batch: ByHand(policy, batch, **factors)


class Net2(Gain):
    """A policy with parameters besides theta."""

    def __init__(self):
        super().__init__()
        self.extra = nn.Linear(N, M, **tensor_options())

    def forward(self, state):
        return super().forward(state) + self.extra(state)


class Squashed(MLP):
    def forward(self, state):
        return torch.tanh(super().forward(state))


BY_USERS = {
    "noise": (lambda: Gain(forward=lambda p, x, u: u + 0.1 * torch.randn_like(u)), "draws random numbers"),
    "mean over members": (lambda: Gain(forward=lambda p, x, u: u - u.mean(0)), "other samples of the batch"),
    "mean over samples": (lambda: Gain(forward=lambda p, x, u: u - u.mean(1, keepdim=True)), "of the batch"),
    "parameters learn": (lambda: Gain(forward=lambda p, x, u: (p.theta.data.mul_(0.9), u)[1]), "changes policy.theta"),
    "theta's data": (lambda: Gain(forward=lambda p, x, u: p.theta.data.unsqueeze(1) * x[..., :M]), "with parameters"),
    "parameters besides theta": (Net2, "a parameter 'extra.weight' besides it"),
    "a forward that its record does not know": (lambda: Squashed((N,), (M,), (5,), **tensor_options()), "MLPTrace"),
    "a record that acts otherwise": (lambda: Gain(record=faulty(acting=1.01)), "ByHand to act as"),
    "a record with another K": (lambda: Gain(record=faulty(state=1.01)), "gradient of the state that is off"),
    "a record with another Π": (lambda: Gain(record=faulty(parameters=-1.0)), "gradient of the parameters that is off"),
}


@pytest.mark.parametrize(("build", "message"), BY_USERS.values(), ids=BY_USERS)
def test_policies_of_users_are_judged_alike(build, message, system):
    policy = build()
    with torch.no_grad():
        for member in range(policy.members):
            policy.initialise(member, torch.Generator().manual_seed(0))
        policy.theta.add_(0.1)
    with pytest.raises(PolicyError, match=message):
        Rollout(system, policy, STEPS, 2 * ROWS)


def test_a_record_written_by_hand_is_used_if_it_agrees(system):
    found = []
    for record in (None, faulty()):
        rollout = Rollout(system, Gain(record=record), STEPS, 2 * ROWS)
        rollout.forward(uniform(0, 2 * ROWS, N))
        found.append(rollout.backward(RULES, COST).parameters)
    for rule in RULES:
        assert relative_error(found[1][rule], found[0][rule]) < 1e-4


@pytest.mark.float64
def test_a_class_of_modules_is_no_function_that_builds_one():
    with pytest.raises(PolicyError, match=r"from nothing, got .*Linear.*, which takes arguments; wrap it as lambda"):
        ModulePolicy(torch.nn.Linear, (4,), (1,), members=2)  # type: ignore[arg-type]
    with pytest.raises(PolicyError, match=r"^Expected a dtype such as torch\.float32, got 'float64'\.$"):
        ModulePolicy(torch.nn.Linear(4, 1), (4,), (1,), dtype="float64")  # type: ignore[arg-type]


def test_a_record_of_views_is_refused_once_theta_is_elsewhere(system):
    policy = Gain(record=faulty())
    rollout = Rollout(system, policy, STEPS, 2 * ROWS)
    policy.theta.data = policy.theta.data.clone()
    with pytest.raises(PolicyError, match="ByHand does not follow"):
        rollout.forward(uniform(0, 2 * ROWS, N))


@pytest.mark.float64
def test_a_frozen_part_besides_theta_is_a_constant(system):
    policy = Net2()
    policy.extra.requires_grad_(False)
    rollout = Rollout(system, policy, STEPS, 2 * ROWS)
    rollout.forward(uniform(0, 2 * ROWS, N))
    rollout.backward([FULL], COST)
    policy.extra.weight.data.mul_(2.0)
    with pytest.raises(Exception, match=r"got another parameter 'extra.weight' since"):
        rollout.backward([FULL], COST)
