"""One optimiser for all members against a torch optimiser for each, and clipping against torch's own."""

import pytest
import torch
from conftest import uniform

from training import OPTIMISERS, Clipping, EnsembleOptimiser

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


def test_clipping_by_norm_is_torchs_for_every_member():
    gradient = uniform(2, 4, 30) * torch.tensor([[0.01], [1.0], [10.0], [1e6]], dtype=torch.float64)
    clipped = Clipping("norm", 1.0)(gradient)
    for row, found in zip(gradient, clipped, strict=True):
        parameter = torch.nn.Parameter(row.clone())
        parameter.grad = row.clone()
        torch.nn.utils.clip_grad_norm_([parameter], 1.0)
        # Torch divides by norm + 1e-6.
        torch.testing.assert_close(found, parameter.grad, rtol=2e-6, atol=0.0)
    assert torch.equal(clipped[0], gradient[0])


def test_clipping_by_value_is_torchs():
    gradient = 3 * uniform(2, 4, 30)
    parameter = torch.nn.Parameter(gradient.clone())
    parameter.grad = gradient.clone()
    torch.nn.utils.clip_grad_value_([parameter], 1.0)
    assert torch.equal(Clipping("value", 1.0)(gradient), parameter.grad)


def test_no_clipping_changes_nothing():
    gradient = 1e6 * uniform(2, 4, 30)
    assert torch.equal(Clipping()(gradient), gradient)
