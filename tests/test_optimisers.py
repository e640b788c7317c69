"""One optimiser for all members against a torch optimiser for each, and all of them against their formulas."""

import math

import pytest
import torch
from conftest import uniform

from engine import SettingError
from training import OPTIMISERS, EnsembleOptimiser

pytestmark = pytest.mark.float64


class KerasAdam:
    """Adam with ε beside √v as it is."""

    def __init__(self, parameters, lr):
        (self.row,), self.lr, self.t, self.m, self.v = parameters, lr, 0, 0.0, 0.0

    @torch.no_grad()
    def step(self):
        g, self.t = self.row.grad, self.t + 1
        self.m, self.v = 0.9 * self.m + 0.1 * g, 0.999 * self.v + 0.001 * g * g
        rate = self.lr * math.sqrt(1 - 0.999**self.t) / (1 - 0.9**self.t)
        self.row -= rate * self.m / (self.v.sqrt() + 1e-7)


RATES = torch.tensor([0.1, 0.003, 1.0], dtype=torch.float64)
MAKERS = {
    "adam": KerasAdam,
    "adam-torch": lambda p, lr: torch.optim.Adam(p, lr=lr, eps=1e-7),
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
    theta = uniform(0, 3, 20)
    optimiser = EnsembleOptimiser(theta, RATES, name, momentum)
    for step in range(stop):
        optimiser.step(GRADIENTS[step])
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
    optimiser.only(torch.tensor([True, False, True]))
    optimiser.step(gradient)
    assert torch.equal(theta[1], before[1])
    assert torch.equal(theta[[0, 2]], other[[0, 2]])


@pytest.mark.parametrize("name", OPTIMISERS)
def test_loading_an_optimisers_tensors_continues_it(name):
    theta, optimiser = ensemble(name, stop=5)
    second = EnsembleOptimiser(theta.clone(), RATES, name)
    second.load({key: value.clone() for key, value in optimiser.tensors().items()})
    for step in range(5, STEPS):
        second.step(GRADIENTS[step])
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


SIZES = torch.logspace(-10, 2, 97, dtype=torch.float64)
# Factors of g, update by update: steady, turning, and with a pause.
COURSES = {
    "steady": lambda t: 1.0,
    "turning": lambda t: math.cos(0.7 * t) + 0.3,
    "paused": lambda t: 0.0 if 3 <= t < 40 else 1.0,
}


def formula(name, course, updates, size):
    """The displacement at the last of so many updates, for a learning rate of 1, in plain Python numbers."""
    m = v = s = a = b = moved = 0.0
    for t in range(1, updates + 1):
        g = size * course(t - 1)
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
        if name == "adam":
            moved = math.sqrt(1 - 0.999**t) / (1 - 0.9**t) * m / (math.sqrt(v) + 1e-7)
        elif name == "adam-torch":
            moved = m / (1 - 0.9**t) / (math.sqrt(v / (1 - 0.999**t)) + 1e-7)
        elif name == "sgd":
            moved = g
        elif name == "momentum":
            b = 0.9 * b + g
            moved = b
        elif name == "adagrad":
            s += g * g
            moved = g / (math.sqrt(s) + 1e-10)
        elif name == "adadelta":
            s = 0.9 * s + 0.1 * g * g
            moved = math.sqrt(a + 1e-6) / math.sqrt(s + 1e-6) * g
            a = 0.9 * a + 0.1 * moved * moved
        elif name == "rmsprop":
            s = 0.99 * s + 0.01 * g * g
            moved = g / (math.sqrt(s) + 1e-8)
    return -moved


def displacement(name, course, updates, sizes):
    optimiser = EnsembleOptimiser(torch.zeros(1, len(sizes), dtype=sizes.dtype), torch.ones(1, dtype=sizes.dtype), name)
    for t in range(updates):
        optimiser.theta.zero_()
        optimiser.step((sizes * course(t)).unsqueeze(0))
    return optimiser.theta[0]


@pytest.mark.parametrize("updates", [1, 10, 200])
@pytest.mark.parametrize("name", OPTIMISERS)
def test_steps_are_those_of_the_formula_whatever_the_gradients_size(name, updates):
    for course in COURSES.values():
        expected = torch.tensor([formula(name, course, updates, float(size)) for size in SIZES], dtype=torch.float64)
        found = displacement(name, course, updates, SIZES)
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=0.0)
        torch.testing.assert_close(displacement(name, course, updates, -SIZES), -expected, rtol=1e-12, atol=0.0)
        # Each of 200 updates of a running mean rounds it by up to 6e-8; steady ones round alike.
        single = displacement(name, course, updates, SIZES.float())
        rounded = torch.tensor([formula(name, course, updates, float(s)) for s in SIZES.float()], dtype=torch.float64)
        torch.testing.assert_close(single.double(), rounded, rtol=2e-5, atol=1e-12)


def test_the_first_steps_of_both_adams_differ_by_the_start_of_v():
    sizes = torch.tensor([1e-12, 1e-8, 1e-7, 1e-6, 1e-5, 1.0], dtype=torch.float64)
    ratio = displacement("adam-torch", lambda t: 1.0, 1, sizes) / displacement("adam", lambda t: 1.0, 1, sizes)
    # (ε + √0.001 g) / (√0.001 (ε + g)), from 1/√0.001 for the smallest to 1 for the largest.
    expected = torch.tensor([31.62, 28.84, 16.31, 3.784, 1.303, 1.0], dtype=torch.float64)
    torch.testing.assert_close(ratio, expected, rtol=1e-3, atol=0.0)


@pytest.mark.parametrize("size", [1e-12, 1e-20, 1e-30])
def test_a_square_below_float32_changes_no_step(size):
    sizes = torch.tensor([size], dtype=torch.float32)
    found = displacement("adam", lambda t: 1.0, 3, sizes)
    assert float(found) == pytest.approx(formula("adam", lambda t: 1.0, 3, float(sizes)), rel=1e-5)


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
