"""Policies are judged by what they do: each of these is refused for its own reason, or welcome under every rule."""

import random
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from conftest import relative_error, tensor_options, uniform
from three_states import COST, ROWS, RULES, STEPS, M, N, three_states
from torch import nn
from torch.nn import functional as F

from engine import FULL, ONE_STEP, PHYSICS_ONLY, POLICY_ONLY, Integrator, Rollout, Trajectory
from policies import ModulePolicy, Policy, PolicyError
from policies.policy import AutogradTrace


@pytest.fixture(scope="module")
def system():
    return three_states()


class Net(nn.Module):
    """W₂ tanh(W₁ x + b₁) + b₂, with `changed(x, net)` in place of x, and whatever `made` puts on it."""

    def __init__(self, changed=lambda net, x: x, after=lambda net, u: u, made=lambda net: None):
        super().__init__()
        first, second = uniform(0, 5, N), uniform(1, M, 5)
        self.first, self.second = nn.Linear(N, 5, **tensor_options()), nn.Linear(5, M, **tensor_options())
        self.first.weight.data, self.second.weight.data = first, second
        self.first.bias.data.fill_(0.1)
        self.second.bias.data.fill_(-0.2)
        self.changed, self.after = changed, after
        made(self)

    def forward(self, x):
        return self.after(self, self.second(torch.tanh(self.first(self.changed(self, x)))))


def learning(net, x):
    net.scale.mul_(0.9).add_(0.1 * x.detach().abs().mean())
    return x / net.scale


def with_scale(net):
    net.register_buffer("scale", torch.ones(1, **tensor_options()))


def counting(net, u):
    net.calls = getattr(net, "calls", 0) + 1
    return u * 0.999**net.calls


def remembering(net, x):
    before, net.before = getattr(net, "before", torch.zeros_like(x[:1])), x[:1].detach().clone()
    return x - before


def rarely(net, x):
    return x + (torch.rand(()) < 1e-6).to(x.dtype)


def own_draw(net, x):
    return x + 1e-3 * torch.randn(x.shape, generator=net.generator, dtype=torch.float64).to(x)


def seeded_draw(net, x):
    return x + torch.randn(x.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(x)


def zero_first(net, x):
    x[:, 0] = 0.0
    return x


IMPURE = {
    "functional dropout": (
        partial(Net, changed=lambda net, x: F.dropout(x, 0.5, training=True)),
        "draws random numbers",
    ),
    "noise on controls": (partial(Net, after=lambda net, u: u + 1e-3 * torch.randn_like(u)), "draws random numbers"),
    "a draw that rarely counts": (partial(Net, changed=rarely), "draws random numbers"),
    "NumPy's generator": (partial(Net, after=lambda net, u: u + np.random.randn()), "draws random numbers"),  # noqa: NPY002
    "Python's generator": (partial(Net, after=lambda net, u: u * random.random()), "draws random numbers"),
    "a generator of its own": (
        partial(Net, changed=own_draw, made=lambda net: setattr(net, "generator", torch.Generator())),
        "differ by .* in two calls",
    ),
    "the same draw for each place": (partial(Net, changed=seeded_draw), "the sample's place in the batch"),
    "dropout module": (
        partial(Net, made=lambda net: setattr(net, "drop", nn.Dropout()), changed=lambda net, x: net.drop(x)),
        "Dropout at 'drop' in training mode",
    ),
    "learning normaliser": (
        partial(Net, changed=learning, made=with_scale),
        "changes buffer 'scale' when it is called",
    ),
    "a counter": (partial(Net, after=counting), "differ by .* in two calls"),
    "memory of the last state": (partial(Net, changed=remembering), "differ by"),
    "states changed in place": (partial(Net, changed=zero_first), "changes them in place"),
    "states scaled in place": (partial(Net, changed=lambda net, x: x.mul_(0.5)), "changes them in place"),
    "batch mean": (
        partial(Net, changed=lambda net, x: x - x.mean(0)),
        "with the other samples of the batch|with the sample's",
    ),
    "batch norm": (partial(Net, changed=lambda net, x: x / x.norm()), "with the other samples of the batch"),
    "softmax over the batch": (
        partial(Net, after=lambda net, u: torch.softmax(u, 0)),
        "with the other samples of the batch",
    ),
    "batch statistics": (
        partial(Net, changed=lambda net, x: F.batch_norm(x, None, None, training=True)),
        "Expected more than 1 value per channel",
    ),
    "divided by the batch": (partial(Net, after=lambda net, u: u / len(u)), "with the other samples of the batch"),
    "relative to the first row": (partial(Net, changed=lambda net, x: x - x[:1]), "place in the batch"),
    "its number in the batch": (
        partial(Net, after=lambda net, u: u * torch.arange(1, len(u) + 1).view(-1, 1)),
        "place in the batch",
    ),
    "controls detached": (partial(Net, after=lambda net, u: u.detach()), "change with the state and no gradient to it"),
    "states detached": (partial(Net, changed=lambda net, x: x.detach()), "change with the state and no gradient to it"),
    "states through NumPy": (
        partial(Net, changed=lambda net, x: torch.from_numpy(x.detach().cpu().numpy()).to(x)),
        "change with the state and no gradient to it",
    ),
    "a weight's data": (
        partial(
            Net,
            after=lambda net, u: u + net.second.bias.data * net.gain.data,
            made=lambda net: setattr(net, "gain", nn.Parameter(torch.ones(1, **tensor_options()))),
        ),
        "change with parameters and no gradient to those",
    ),
    "another control with gradients": (
        partial(Net, after=lambda net, u: u * (2.0 if torch.is_grad_enabled() else 1.0)),
        "with gradients and without",
    ),
    "half precision": (partial(Net, after=lambda net, u: u.half()), "Expected policy output as"),
    "a tuple": (partial(Net, after=lambda net, u: (u, u)), "Expected policy output as a tensor, got tuple"),
    "an array": (
        partial(Net, after=lambda net, u: u.detach().numpy()),
        "Expected policy output as a tensor, got ndarray",
    ),
    "one control for all": (
        partial(Net, after=lambda net, u: u.mean(0, keepdim=True)),
        "Expected policy output of shape",
    ),
    "a control too many": (partial(Net, after=lambda net, u: torch.cat([u, u], 1)), "Expected policy output of shape"),
    "an error": (partial(Net, after=lambda net, u: u @ u), "to controls .* got RuntimeError"),
    "sparse controls": (partial(Net, after=lambda net, u: u.to_sparse()), "sparse"),
}


@pytest.mark.parametrize(("build", "message"), IMPURE.values(), ids=IMPURE)
def test_policies_that_are_no_functions_of_each_state_are_refused(build, message, system):
    net = build()
    arrays: Any = np.random.get_state
    states = torch.random.get_rng_state(), random.getstate(), arrays()
    with pytest.raises(PolicyError, match=message) as error:
        Rollout(system, ModulePolicy(net, (N,), (M,)), STEPS, ROWS)
    assert str(error.value).startswith("Expected ")
    assert str(error.value).count(". ") == 0
    assert torch.equal(states[0], torch.random.get_rng_state())
    assert states[1] == random.getstate()
    assert np.array_equal(states[2][1], arrays()[1])


def test_trying_a_policy_leaves_its_buffers_and_parameters_as_they_were(system):
    net: Any = Net(changed=learning, made=with_scale)
    policy = ModulePolicy(net, (N,), (M,))
    before = policy.theta.detach().clone()
    with pytest.raises(PolicyError):
        Rollout(system, policy, STEPS, ROWS)
    assert torch.equal(net.scale, torch.ones_like(net.scale))
    assert torch.equal(policy.theta, before)


@pytest.mark.float64
def test_a_module_that_is_switched_to_training_afterwards_is_refused_at_the_next_rollout(system):
    net: Any = Net(changed=lambda net, x: net.drop(x), made=lambda net: setattr(net, "drop", nn.Dropout().eval()))
    policy = ModulePolicy(net, (N,), (M,))
    rollout = Rollout(system, policy, STEPS, ROWS)
    rollout.forward(uniform(0, ROWS, N))
    policy.train()
    assert net.drop.training
    with pytest.raises(PolicyError, match="draws random numbers"):
        rollout.forward(uniform(0, ROWS, N))
    policy.eval()
    rollout.forward(uniform(0, ROWS, N))


@pytest.mark.float64
def test_what_a_policy_learns_beyond_its_trial_is_noticed_before_the_sweep(system):
    """Its buffer moves only at states larger than those it is tried on."""

    def far(net, x):
        net.scale.add_(0.1 * (x.detach().abs().max() > 1e3))
        return x / net.scale

    rollout = Rollout(system, ModulePolicy(Net(changed=far, made=with_scale), (N,), (M,)), STEPS, ROWS)
    rollout.forward(1e4 + uniform(0, ROWS, N))
    with pytest.raises(Exception, match=r"got another buffer 'scale' since"):
        rollout.backward([FULL], COST)


@pytest.mark.float64
def test_what_cannot_be_differentiated_may_act(system):
    detached = ModulePolicy(Net(after=lambda net, u: u.detach().sign()), (N,), (M,))
    Trajectory(system, detached, STEPS, ROWS, forward_only=True).forward(uniform(0, ROWS, N))
    noisy = ModulePolicy(Net(after=lambda net, u: u + torch.randn_like(u)), (N,), (M,))
    with pytest.raises(PolicyError, match="draws"):
        Trajectory(system, noisy, STEPS, ROWS, forward_only=True)


# ---- policies that ignore the state or some of their parameters


class OpenLoop(nn.Module):
    """The same control whatever the state, and a parameter that does nothing."""

    def __init__(self, controls=M):
        super().__init__()
        self.control, self.idle = nn.Parameter(uniform(4, controls)), nn.Parameter(uniform(5, 3))

    def forward(self, state):
        return self.control.expand(len(state), -1)


class Half(nn.Module):
    """Sees the state in one component of its control."""

    def __init__(self):
        super().__init__()
        self.gain, self.bias = nn.Parameter(uniform(4, N)), nn.Parameter(uniform(5, 1))

    def forward(self, state):
        return torch.stack([state @ self.gain, self.bias.expand(len(state))], 1)


@pytest.mark.parametrize("segment", [None, 2], ids=["stored", "segments"])
@pytest.mark.parametrize("build", [OpenLoop, Half])
def test_policies_that_ignore_the_state_work_under_every_rule(build, segment, system):
    module, initial = build(), uniform(0, ROWS, N)
    policy = ModulePolicy(module, (N,), (M,))
    rollout = Rollout(system, policy, STEPS, ROWS, segment=segment)
    rollout.forward(initial)
    found = rollout.backward(RULES, COST)
    A = torch.tensor([[0.9, 0.1, 0.0], [0.0, 0.8, 0.1], [0.1, 0.0, 0.7]], **tensor_options())
    B = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.5, 0.5]], **tensor_options())
    for rule, (physics, through) in zip(RULES, ((1, 1), (1, 0), (0, 1), (0, 0)), strict=True):
        state, loss = initial, 0.0
        for _ in range(STEPS):
            control = module(state if through else state.detach())
            loss = loss + state.square().sum(1) + control.square().sum(1)
            state = (state if physics else state.detach()) @ A.T + control @ B.T
        loss = (loss + state.square().sum(1)).mean()
        expected = torch.autograd.grad(loss, list(module.parameters()), allow_unused=True, materialize_grads=True)
        expected = torch.cat([one.flatten() for one in expected])
        assert relative_error(found.parameters[rule][0], expected) < (1e-12 if initial.dtype == torch.float64 else 1e-5)
    if build is OpenLoop:
        assert not found.parameters[FULL][0, M:].any()


def test_wide_controls_that_ignore_the_state_work_under_every_rule():
    """More controls than K is kept for."""
    rollout = Rollout(Integrator(9), ModulePolicy(OpenLoop(9), (9,), (9,)), STEPS, ROWS)
    rollout.forward(uniform(0, ROWS, 9))
    gradients = rollout.backward(RULES, COST).parameters
    assert torch.equal(gradients[FULL], gradients[PHYSICS_ONLY])
    assert torch.equal(gradients[POLICY_ONLY], gradients[ONE_STEP])
    assert gradients[FULL].any()


@pytest.mark.float64
def test_a_policy_without_parameters_is_refused():
    with pytest.raises(PolicyError, match=r"Expected a policy with at least 1 parameter, got 0\."):
        Empty()


class Empty(Policy):
    def __init__(self):
        super().__init__((N,), (M,), 0)

    def forward(self, state):
        return torch.zeros_like(state[..., :M])

    def initialise(self, member, generator):
        pass


WELCOME = {
    "layer norm": lambda: nn.Sequential(nn.LayerNorm(N), nn.Linear(N, M)),
    "batch norm in evaluation": lambda: nn.Sequential(nn.BatchNorm1d(N), nn.Linear(N, M)).eval(),
    "relu": lambda: nn.Sequential(nn.Linear(N, 8), nn.ReLU(), nn.Linear(8, M)),
    "zero last layer": lambda: nn.Sequential(nn.Linear(N, 8), nn.Tanh(), zeroed(nn.Linear(8, M))),
    "a last bias behind zeros": lambda: nn.Sequential(zeroed(nn.Linear(N, 8)), nn.Tanh(), zeroed(nn.Linear(8, M))),
    "softmax over controls": lambda: nn.Sequential(nn.Linear(N, M), nn.Softmax(1)),
    "attention between components": lambda: Attentive(),
    "a transformer's layer": lambda: nn.Sequential(
        nn.Unflatten(1, (1, N)), nn.TransformerEncoderLayer(N, 1, 8, 0.0, batch_first=True), nn.Flatten(),
        nn.Linear(N, M),
    ).eval(),
    "sign": lambda: Net(after=lambda net, u: u.sign() * net.second.bias),
    "NaN outside of its domain": lambda: Net(after=lambda net, u: u.sqrt()),
    "an error outside of its domain": lambda: Net(changed=within),
    "a view": lambda: Net(after=lambda net, u: u.t().contiguous().t()),
    "the state itself": lambda: Net(after=lambda net, u: u, changed=lambda net, x: x.requires_grad_(x.requires_grad)),
}  # fmt: skip


def zeroed(layer):
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer


def within(net, x):
    if x.abs().max() > 5.0:
        raise ValueError("outside of the table")
    return x


class Attentive(nn.Module):
    def __init__(self):
        super().__init__()
        self.attention, self.out = nn.MultiheadAttention(4, 2, batch_first=True), nn.Linear(N * 4, M)
        self.embed = nn.Parameter(torch.ones(4))

    def forward(self, state):
        tokens = state.unsqueeze(2) * self.embed
        return self.out(self.attention(tokens, tokens, tokens)[0].flatten(1))


@pytest.mark.parametrize("build", WELCOME.values(), ids=WELCOME)
def test_functions_of_each_state_are_welcome(build, system):
    torch.manual_seed(0)
    policy = ModulePolicy(build().to(**tensor_options()), (N,), (M,))
    rollout = Rollout(system, policy, STEPS, ROWS)
    rollout.forward(0.1 * uniform(0, ROWS, N))
    assert isinstance(rollout.trace, AutogradTrace)
    rollout.backward([FULL], COST)
