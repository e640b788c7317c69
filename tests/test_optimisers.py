"""One optimiser for all members against a torch optimiser for each."""

import pytest
import torch
from conftest import uniform

from engine import SettingError
from training import OPTIMISERS, EnsembleOptimiser

pytestmark = pytest.mark.float64

RATES = torch.tensor([0.1, 0.003, 1.0], dtype=torch.float64)
MAKERS = {
    "adam": lambda p, lr: torch.optim.Adam(p, lr=lr, eps=1e-7),
    "sgd": lambda p, lr: torch.optim.SGD(p, lr=lr),
    "momentum": lambda p, lr: torch.optim.SGD(p, lr=lr, momentum=0.9),
    "adagrad": lambda p, lr: torch.optim.Adagrad(p, lr=lr),
    "adadelta": lambda p, lr: torch.optim.Adadelta(p, lr=lr),
    "rmsprop": lambda p, lr: torch.optim.RMSprop(p, lr=lr),
}
STEPS = 12
GRADIENTS = uniform(1, STEPS, 3, 20)


def separate(make):
    start = uniform(0, 3, 20)
    rows = []
    for member in range(3):
        row = start[member].clone().requires_grad_()
        optimiser = make([row], float(RATES[member]))
        for step in range(STEPS):
            row.grad = GRADIENTS[step, member].clone()
            optimiser.step()
        rows.append(row.detach())
    return torch.stack(rows)


def ensemble(name, momentum=0.9, stop=STEPS):
    theta, active = uniform(0, 3, 20), torch.ones(3, dtype=torch.bool)
    optimiser = EnsembleOptimiser(theta, RATES, name, momentum)
    for step in range(stop):
        optimiser.step(GRADIENTS[step], active)
    return theta, optimiser


def test_every_optimiser_on_offer_is_tested():
    assert set(MAKERS) == set(OPTIMISERS)


@pytest.mark.parametrize("name", OPTIMISERS)
def test_every_member_moves_as_its_own_torch_optimiser_would(name):
    torch.testing.assert_close(ensemble(name)[0], separate(MAKERS[name]), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("momentum", [0.8, 0.9, 0.95])
def test_momentum_may_be_chosen(momentum):
    expected = separate(lambda p, lr: torch.optim.SGD(p, lr=lr, momentum=momentum))
    torch.testing.assert_close(ensemble("momentum", momentum)[0], expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", OPTIMISERS)
def test_frozen_members_stay_where_they_are_whatever_their_gradient(name):
    theta, optimiser = ensemble(name, stop=3)
    before, other = theta.clone(), ensemble(name, stop=4)[0]
    gradient = GRADIENTS[3].clone()
    gradient[1] = torch.nan
    optimiser.step(gradient, torch.tensor([True, False, True]))
    assert torch.equal(theta[1], before[1])
    assert torch.equal(theta[[0, 2]], other[[0, 2]])


@pytest.mark.parametrize("name", OPTIMISERS)
def test_loading_an_optimisers_tensors_continues_it(name):
    theta, optimiser = ensemble(name, stop=5)
    second = EnsembleOptimiser(theta.clone(), RATES, name)
    second.load({key: value.clone() for key, value in optimiser.tensors().items()})
    active = torch.ones(3, dtype=torch.bool)
    for step in range(5, STEPS):
        second.step(GRADIENTS[step], active)
    assert torch.equal(second.theta, ensemble(name)[0])


def test_loaded_tensors_move_to_where_the_parameters_are():
    # Checkpoints are read on the CPU; "meta" stands in for a device that is not.
    optimiser = EnsembleOptimiser(torch.zeros(3, 20, device="meta"), RATES, "momentum")
    optimiser.load({"momentum_buffer": torch.ones(3, 20)})
    assert optimiser.tensors()["momentum_buffer"].device.type == "meta"


@pytest.mark.parametrize("name", OPTIMISERS)
def test_a_fresh_optimiser_has_all_its_tensors_and_they_are_zero(name):
    fresh, stepped = ensemble(name, stop=0)[1].tensors(), ensemble(name, stop=1)[1].tensors()
    assert {key: value.shape for key, value in fresh.items()} == {key: value.shape for key, value in stepped.items()}
    assert not any(value.any() for value in fresh.values())


def test_an_unknown_optimiser_is_refused_with_those_there_are():
    with pytest.raises(SettingError, match=r"^Expected an optimiser among adam, .*, rmsprop, got 'adamw'\.$"):
        ensemble("adamw")


@pytest.mark.parametrize("momentum", [-0.1, 1.0, float("nan")])
def test_a_momentum_that_does_not_decay_is_refused(momentum):
    with pytest.raises(SettingError, match=r"^Expected a momentum in \[0, 1\), got .*\.$"):
        ensemble("momentum", momentum)


@pytest.mark.parametrize("rate", [float("inf"), 1e39])
def test_rates_beyond_the_precision_are_refused(rate):
    rates = torch.tensor([1e-3, rate], dtype=torch.float32)
    with pytest.raises(SettingError, match=r"^Expected learning rates that are finite as torch\.float32, got .*\.$"):
        EnsembleOptimiser(torch.zeros(2, 5), rates)
