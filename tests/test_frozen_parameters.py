"""Parameters that are frozen, and training after parameters were replaced."""

import pytest
import torch
from conftest import tensor_options, uniform
from replacing import COST, KINDS, REPLACED, ROWS, SHIPPED, STEPS, N, a_system, filled, found_with
from torch import nn

from engine import FULL, POLICY_ONLY, Rollout
from policies import ModulePolicy, PolicyError
from training import Clipping, Member, Quadratic, Task, Trainer, TrainingSettings
from training.optimisers import OPTIMISERS

# Nothing is said of gradients that are zero because parameters are frozen.
pytestmark = pytest.mark.filterwarnings("error")


@pytest.fixture(scope="module")
def system():
    return a_system()


# ---- frozen


class Parts(nn.Module):
    """Two layers, of which one or the other can be frozen."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(N, 6, **tensor_options()), nn.Linear(6, N, **tensor_options())
        for index, parameter in enumerate(self.parameters()):
            parameter.data.copy_(uniform(index, *parameter.shape, low=-0.5, high=0.5))
        self.a.bias.data[0] = -0.0

    def forward(self, x):
        return self.b(torch.tanh(self.a(x)))


def task_of(system):
    sample = lambda count, generator: torch.randn(count, N, generator=generator, dtype=torch.float64)  # noqa: E731
    policy = lambda members, dtype, device: filled(SHIPPED["mlp"](members))  # noqa: E731
    return Task("parts", system, Quadratic((1.0,) * N, 1.0), sample, STEPS, policy)


def trainer_of(system, policy, optimiser="adam", clipping="none"):
    settings = TrainingSettings(batch_size=4, train_samples=8, test_samples=4, optimiser=optimiser)
    member = Member(learning_rate=1e-2, clipping=Clipping(clipping, 1e-2))
    return Trainer(task_of(system), [member], settings, lambda members, dtype, device: policy)


def test_frozen_parameters_have_no_gradient_and_the_others_have_theirs(system):
    free, part = Parts(), Parts()
    part.a.requires_grad_(False)
    expected, found = (found_with(ModulePolicy(net, (N,), (N,)), system) for net in (free, part))
    count = 7 * 4 + 2
    for rule in (FULL, POLICY_ONLY):
        assert not found[1][rule][0, :count].any()
        assert torch.equal(found[1][rule][0, count:], expected[1][rule][0, count:])


@pytest.mark.parametrize("optimiser", OPTIMISERS)
def test_frozen_parameters_stay_to_the_bit_under_every_optimiser(optimiser, system):
    net = Parts()
    trainer = trainer_of(system, ModulePolicy(net, (N,), (N,)), optimiser)
    list(trainer.fit(1))
    net.a.requires_grad_(False)
    weights, bias, free = net.a.weight.clone(), net.a.bias.clone(), net.b.weight.clone()
    list(trainer.fit(3))
    integers = torch.int64 if bias.dtype == torch.float64 else torch.int32
    assert torch.equal(net.a.weight.view(integers), weights.view(integers))
    assert torch.equal(net.a.bias.view(integers), bias.view(integers))
    assert not torch.equal(net.b.weight, free)
    net.a.requires_grad_(True)
    list(trainer.fit(4))
    assert not torch.equal(net.a.weight, weights)


def test_frozen_parameters_do_not_count_in_the_norm(system):
    net = Parts()
    trainer = trainer_of(system, ModulePolicy(net, (N,), (N,)), clipping="norm")
    net.a.requires_grad_(False)
    _, gradient = trainer.gradient(*next(trainer.batches()))
    assert not gradient[0, :30].any()
    assert abs(float(gradient.norm()) - 1e-2) < 1e-6


@pytest.mark.float64
@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("what", ["module", "theta"])
def test_a_policy_of_which_nothing_is_trained_is_refused_by_a_trainer_alone(what, when, system):
    net = Parts()
    policy = ModulePolicy(net, (N,), (N,))
    freeze = (lambda: net.requires_grad_(False)) if what == "module" else (lambda: policy.requires_grad_(False))
    if when == "before":
        freeze()
        with pytest.raises(PolicyError, match="all have requires_grad=False"):
            trainer_of(system, policy)
    else:
        trainer = trainer_of(system, policy)
        freeze()
        before = policy.theta.detach().clone()
        with pytest.raises(PolicyError, match="all have requires_grad=False"):
            list(trainer.fit(1))
        assert torch.equal(policy.theta, before)
    # Its adjoints are there all the same.
    rollout = Rollout(system, policy, STEPS, ROWS)
    rollout.forward(uniform(9, ROWS, N))
    found = rollout.backward([FULL], COST)
    assert not found.parameters[FULL].any()
    assert found.initial[FULL].any()


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_policy_that_is_frozen_has_no_gradient(name, system):
    policy = filled(SHIPPED[name](2))
    policy.requires_grad_(False)
    controls, gradients = found_with(policy, system)
    expected = found_with(filled(SHIPPED[name](2)), system)
    assert torch.equal(controls, expected[0])
    assert not gradients[FULL].any()


# ---- training goes on with what was replaced


@pytest.mark.parametrize("replace", REPLACED, ids=lambda one: one.__name__)
@pytest.mark.parametrize("build", [KINDS["1 mlp"], KINDS["module"]], ids=["mlp", "module"])
def test_a_trainer_moves_the_parameters_that_are_there_now(build, replace, system):
    """An update from replaced parameters equals that of a trainer that had them written in place."""
    found = []
    for change in (replace, lambda policy, theta: policy.theta.data.copy_(theta)):
        trainer = trainer_of(system, build())
        list(trainer.fit(1))
        change(trainer.policy, uniform(5, *trainer.policy.theta.shape, low=-0.5, high=0.5))
        list(trainer.fit(2))
        found.append(trainer.policy.theta.detach().clone())
    assert torch.equal(*found)


@pytest.mark.float64
def test_a_trainer_moves_a_weight_that_was_replaced(system):
    net = Parts()
    trainer = trainer_of(system, ModulePolicy(net, (N,), (N,)))
    list(trainer.fit(1))
    given = uniform(7, 6, N, low=-0.5, high=0.5)
    net.a.weight = nn.Parameter(given.clone())
    list(trainer.fit(2))
    moved = (net.a.weight - given).abs()
    assert moved.all()
    assert moved.max() < 0.05
