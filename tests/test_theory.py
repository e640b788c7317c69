"""Numbers that theory gives: the zeros of each gradient on linear systems, and where the combined one stalls.

The values are those of exact sweeps (R is the derivative of the loss): scalar LQR, and feedback restricted to one
parameter, where M's fixed point is not R's.
"""

import pytest
import torch
from scipy.optimize import brentq

from engine import FULL, ONE_STEP, PHYSICS_ONLY, LinearSystem, Rollout
from policies import Linear, Policy
from training import Backpropagation, Member, Quadratic, SignAgreement, Task, Trainer, TrainingSettings, gradient_named

pytestmark = pytest.mark.float64

RULES = {"R": FULL, "M": PHYSICS_ONLY, "S": ONE_STEP}


class Restricted(Policy):
    """u = θ (x₁ + ½ x₂)."""

    def __init__(self, members=1):
        super().__init__((2,), (1,), 1, members, torch.float64)

    def forward(self, state):
        return self.theta.view(self.members, 1, 1) * (state[..., :1] + 0.5 * state[..., 1:])

    def initialise(self, member, generator):
        self.theta.data[member] = 0.0


@pytest.fixture(scope="module")
def scalar():
    def gradient(horizon, rule):
        policy = Linear((1,), (1,), bias=False, dtype=torch.float64)
        rollout = Rollout(LinearSystem([[1.1]], [[1.0]]), policy, horizon, 1)

        def at(theta):
            policy.theta.data.fill_(theta)
            rollout.forward(torch.ones(1, 1, dtype=torch.float64))
            return float(rollout.backward([rule], Quadratic((1.0,), 1.0)).parameters[rule])

        return at

    return gradient


@pytest.mark.parametrize(
    ("letter", "horizon", "zero"),
    [
        ("R", 2, -0.66544),
        ("M", 2, -0.64450),
        ("S", 2, -0.55),
        ("R", 20, -0.70343),
        ("M", 20, -0.70343),
        ("S", 20, -0.55),
    ],
)
def test_zeros_of_scalar_lqr(letter, horizon, zero, scalar):
    assert brentq(scalar(horizon, RULES[letter]), -0.9, -0.3, xtol=1e-12) == pytest.approx(zero, abs=6e-6)


COMBINED = SignAgreement(Backpropagation(PHYSICS_ONLY), Backpropagation(FULL))
A, B = [[1.0, 0.1], [-0.02, 0.97]], [[0.0], [0.1]]
COST = Quadratic((1.0, 0.1), 0.05)
STARTS = torch.eye(2, dtype=torch.float64)


@pytest.fixture(scope="module")
def restricted():
    """θ -> (loss, R, M) of the loss summed over both starts."""
    policy = Restricted()
    rollout = Rollout(LinearSystem(A, B), policy, 200, 2)

    def at(theta):
        policy.theta.data.fill_(theta)
        rollout.forward(STARTS)
        found = rollout.backward([FULL, PHYSICS_ONLY], COST)
        full, physics = (2 * float(found.parameters[rule]) for rule in (FULL, PHYSICS_ONLY))
        return float(found.losses.sum()), full, physics

    return at


def test_restricted_feedback_starts_with_equal_gradients(restricted):
    _, full, physics = restricted(0.0)
    assert full == pytest.approx(310.104, abs=5e-4)
    assert physics == pytest.approx(full, rel=1e-12)


def test_full_backpropagation_finds_the_minimum_of_restricted_feedback(restricted):
    zero = brentq(lambda theta: restricted(theta)[1], -6, -2, xtol=1e-10)
    assert zero == pytest.approx(-4.05694, abs=1e-5)
    assert restricted(zero)[0] == pytest.approx(4.98976, abs=1e-5)


def test_the_physics_path_alone_vanishes_far_from_the_minimum(restricted):
    zero = brentq(lambda theta: restricted(theta)[2], -1, -0.1, xtol=1e-10)
    assert zero == pytest.approx(-0.29892, abs=1e-5)
    assert restricted(zero)[0] == pytest.approx(21.68572, abs=1e-4)


MINIMUM, ZERO_OF_M = -4.05694, -0.29892


def test_between_the_zeros_the_signs_differ_and_the_combined_gradient_is_exactly_zero():
    inside = torch.linspace(MINIMUM + 1e-3, ZERO_OF_M - 1e-3, 20, dtype=torch.float64)
    outside = torch.tensor([-6.0, -5.0, MINIMUM - 1e-3, ZERO_OF_M + 1e-3, -0.1, 0.0], dtype=torch.float64)
    policy = Restricted(len(inside) + len(outside))
    policy.theta.data.copy_(torch.cat([inside, outside]).unsqueeze(1))
    rollout = Rollout(LinearSystem(A, B), policy, 200, 2 * policy.members)
    rollout.forward(STARTS.repeat(policy.members, 1))
    gradients = rollout.backward(COMBINED.rules, COST).parameters
    found = COMBINED.combine(gradients)
    assert not found[: len(inside)].any()
    assert gradients[PHYSICS_ONLY][: len(inside)].all()
    assert torch.equal(found[len(inside) :], gradients[PHYSICS_ONLY][len(inside) :])
    # Of a single parameter the bisector is twice that.
    assert torch.equal(gradient_named("bisect(M, R)").estimator.combine(gradients), 2 * found)


def descend(start, step, updates):
    """Where gradient descent along C on the summed loss ends. Momentum would coast across the zeros; this stops."""
    system = LinearSystem(A, B)

    def sample(count, generator):
        return STARTS.repeat(count // 2, 1)

    def make(members, dtype, device):
        return Restricted(members)

    task = Task("restricted", system, COST, sample, 200, make)
    settings = TrainingSettings(batch_size=2, train_samples=2, test_samples=2, optimiser="sgd")
    trainer = Trainer(task, [Member(COMBINED, learning_rate=2 * step)], settings)  # 2: the trainer takes the mean
    trainer.policy.theta.data.fill_(start)
    for _ in range(updates):
        trainer.update(STARTS)
    return float(trainer.policy.theta.detach())


def test_descent_along_the_combined_gradient_from_0_stalls_at_the_zero_of_m():
    assert descend(0.0, 5e-4, 300) == pytest.approx(ZERO_OF_M, abs=1e-5)


def test_descent_along_the_combined_gradient_from_below_stops_at_the_minimum(restricted):
    # C does not shrink as it nears R's zero but is M until it drops to 0: the last step may go past by step · |M|.
    # From further below C is M too, as above, and the way only longer.
    step, theta = 1e-3, descend(-4.4, 1e-3, 500)
    _, full, physics = restricted(theta)
    assert 0 <= theta - MINIMUM < 1.1 * step * abs(physics)
    assert full * physics < 0
