"""Ensembles of a torch module: every member trains as it would alone."""

import copy
from typing import Any

import pytest
import torch
from conftest import relative_error, tensor_options, uniform
from replacing import COST, ROWS, STEPS, N, a_system, found_with
from torch import nn

from engine import FULL, POLICY_ONLY, Rollout
from policies import ModulePolicy, PolicyError
from training import Member, Quadratic, Task, Trainer, TrainingSettings

SEEDS = (3, 11, 3)


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner, self.outer = nn.Linear(N, 6), nn.Linear(6, N)

    def forward(self, state):
        return state + self.outer(torch.tanh(self.inner(state)))


class Tied(nn.Module):
    """Two layers that are one, whose name in the module comes twice."""

    def __init__(self):
        super().__init__()
        self.first = self.second = nn.Linear(N, N)

    def forward(self, state):
        return self.second(torch.tanh(self.first(state)))


class Scaled(nn.Module):
    """A parameter that no part draws anew."""

    def __init__(self):
        super().__init__()
        self.scale, self.layer = nn.Parameter(torch.rand(N)), nn.Linear(N, N)

    def forward(self, state):
        return self.scale * self.layer(state)


class Mapped(nn.Module):
    """What torch.vmap cannot do for several members."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(N, N)

    def forward(self, state):
        return self.layer(state) if self.layer.bias[0].item() < 9 else state


def tied_weights():
    net: Any = nn.Sequential(nn.Linear(N, N), nn.Tanh(), nn.Linear(N, N))
    net[2].weight = net[0].weight
    return net


def convolution():
    return nn.Sequential(
        nn.Unflatten(1, (1, N)), nn.Conv1d(1, 2, 3, padding=1, padding_mode="circular"), nn.Tanh(), nn.Conv1d(2, 1, 1),
        nn.Flatten(),
    )  # fmt: skip


MODULES = {
    "layer norm": lambda: nn.Sequential(nn.Linear(N, 6), nn.LayerNorm(6), nn.GELU(), nn.Linear(6, N)),
    "residual": Residual,
    "convolution": convolution,
    "tied": Tied,
    "tied weights": tied_weights,
    "batch norm": lambda: nn.Sequential(nn.BatchNorm1d(N), nn.Linear(N, N), nn.Dropout()).eval(),
}


@pytest.fixture(scope="module")
def system():
    return a_system()


def trained(system, build, seeds):
    """Parameters before and after three epochs of training."""

    def sample(count, generator):
        return torch.rand(count, N, generator=generator, dtype=torch.float64)

    def policy(members, dtype, device):
        return ModulePolicy(build(), (N,), (N,), members, dtype, device)

    task = Task("module", system, Quadratic((1.0,) * N, 1.0), sample, STEPS, policy)
    settings = TrainingSettings(batch_size=4, train_samples=8, test_samples=4)
    trainer = Trainer(task, [Member(seed=seed, learning_rate=1e-2) for seed in seeds], settings)
    start = trainer.policy.theta.detach().clone()
    list(trainer.fit(3))
    return start, trainer.policy.theta.detach().clone()


@pytest.mark.parametrize(
    "given", [*MODULES.values(), lambda: MODULES["residual"]], ids=[*MODULES, "built for each member"]
)
def test_a_member_is_its_training_alone(given, system):
    start, end = trained(system, given, SEEDS)
    assert torch.equal(start[0], start[2])
    assert not torch.equal(start[0], start[1])
    assert not torch.equal(start, end)
    for member, seed in enumerate(SEEDS[:2]):
        alone_start, alone_end = trained(system, given, [seed])
        assert torch.equal(start[member], alone_start[0])
        assert relative_error(end[member], alone_end[0]) < (1e-12 if end.dtype == torch.float64 else 1e-4)


@pytest.mark.parametrize("build", MODULES.values(), ids=MODULES)
def test_controls_and_gradients_are_those_of_the_modules_themselves(build, system):
    policy = ModulePolicy(build(), (N,), (N,), 2, **tensor_options())
    for member in range(2):
        policy.initialise(member, torch.Generator().manual_seed(member))
    controls, gradients = found_with(policy, system)
    for member in range(2):
        net = build().to(**tensor_options())
        torch.nn.utils.vector_to_parameters(policy.theta[member].detach(), net.parameters())
        alone = ModulePolicy(net, (N,), (N,))
        rollout = Rollout(system, alone, STEPS, ROWS)
        rollout.forward(uniform(9, 2 * ROWS, N)[member * ROWS : (member + 1) * ROWS])
        assert relative_error(controls.unflatten(1, (2, ROWS))[:, member], rollout.controls) < 1e-5
        expected = rollout.backward([FULL, POLICY_ONLY], COST).parameters
        for rule in (FULL, POLICY_ONLY):
            assert relative_error(gradients[rule][member], expected[rule][0]) < 1e-5


@pytest.mark.float64
def test_the_draw_is_the_same_in_every_precision_and_disturbs_no_other():
    build, before = MODULES["layer norm"], torch.random.get_rng_state()
    module = build()
    state = torch.random.get_rng_state()
    policies = [ModulePolicy(copy.deepcopy(module), (N,), (N,), 2, dtype) for dtype in (torch.float32, torch.float64)]
    for policy in policies:
        policy.initialise(1, torch.Generator().manual_seed(0))
    assert torch.equal(policies[0].theta, policies[1].theta.float())
    assert torch.equal(torch.random.get_rng_state(), state)
    assert not torch.equal(before, state)


@pytest.mark.float64
def test_frozen_parameters_are_every_members_and_stay(system):
    net: Any = MODULES["layer norm"]().double()
    net[0].requires_grad_(False)
    policy = ModulePolicy(net, (N,), (N,), 2)
    policy.initialise(1, torch.Generator().manual_seed(0))
    count = net[0].weight.numel() + net[0].bias.numel()
    assert torch.equal(policy.theta[1, :count].detach(), torch.nn.utils.parameters_to_vector(net[0].parameters()))
    assert not torch.equal(policy.theta[0], policy.theta[1])
    gradient = found_with(policy, system)[1][FULL]
    assert not gradient[:, :count].any()
    assert gradient[:, count:].any(1).all()
    net[0].requires_grad_(True)
    assert found_with(policy, system)[1][FULL][:, :count].any()


@pytest.mark.float64
def test_a_module_without_members_keeps_its_parameters():
    net = MODULES["residual"]().double()
    policy = ModulePolicy(net, (N,), (N,))
    before = policy.theta.detach().clone()
    policy.initialise(0, torch.Generator().manual_seed(0))
    assert torch.equal(policy.theta, before)


@pytest.mark.float64
def test_a_part_that_serves_twice_keeps_its_parameters(system):
    net = Tied().double()
    found_with(ModulePolicy(net, (N,), (N,)), system)
    assert isinstance(net.second.weight, nn.Parameter)
    assert torch.isfinite(net(uniform(0, 2, N))).all()


@pytest.mark.float64
def test_copies_of_an_ensemble_are_independent(system):
    policy = ModulePolicy(MODULES["residual"]().double(), (N,), (N,), 2)
    other = copy.deepcopy(policy)
    other.theta.data.mul_(0.5)
    other.initialise(0, torch.Generator().manual_seed(0))
    assert not torch.equal(policy.theta, other.theta)
    assert torch.equal(policy.theta[0], policy.theta[1])


def with_random_buffer():
    net = nn.Sequential(nn.Linear(N, N))
    net.register_buffer("centres", torch.rand(3))
    return net


def with_noise():
    return nn.Sequential(nn.Linear(N, N), Noise())


class Noise(nn.Module):
    def forward(self, state):
        return state + torch.randn_like(state)


class Mixing(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(N, N)

    def forward(self, state):
        return self.layer(state - state.mean(0))


REFUSED = {
    "not drawn": (Scaled, "got scale left as before"),
    "old weight norm": (lambda: nn.utils.weight_norm(nn.Linear(N, N)), "cannot be copied|left as before"),
    "weight norm": (lambda: nn.utils.parametrizations.weight_norm(nn.Linear(N, N)), "left as before"),
    "branch": (Mapped, "Expected a module that torch.vmap maps over 2 members, got RuntimeError"),
    "buffer": (lambda: with_random_buffer, "got another buffer 'centres' each time one is built"),
    "no module": (lambda: lambda: 3, "Expected a torch module from the function that builds it, got int"),
    "noise": (with_noise, "draws random numbers"),
    "samples mixed": (Mixing, "with the other samples of the batch"),
    "memory": (lambda: nn.LSTM(N, N), "Expected a policy without memory, got LSTM"),
    "another size": (lambda: varying(), "got others at bias, weight each time one is built"),
}


def varying():
    sizes = iter((N, N + 1, N))
    return lambda: nn.Linear(N, next(sizes))


@pytest.mark.float64
@pytest.mark.filterwarnings("ignore:.*weight_norm.*")
@pytest.mark.parametrize(("build", "message"), REFUSED.values(), ids=REFUSED)
def test_what_no_ensemble_can_be_made_of_is_refused(build, message, system):
    def use():
        policy = ModulePolicy(build(), (N,), (N,), 2, **tensor_options())
        policy.initialise(0, torch.Generator().manual_seed(0))
        Rollout(system, policy, STEPS, 2 * ROWS)

    with pytest.raises(PolicyError, match=message) as refusal:
        use()
    assert str(refusal.value).startswith("Expected ")
    assert str(refusal.value).count(". ") == 0


@pytest.mark.float64
def test_a_factory_serves_what_cannot_be_drawn_again(system):
    policy = ModulePolicy(Scaled, (N,), (N,), 2, torch.float64)
    for member in range(2):
        policy.initialise(member, torch.Generator().manual_seed(member))
    assert not torch.equal(policy.theta[0, :N], policy.theta[1, :N])
    found_with(policy, system)
