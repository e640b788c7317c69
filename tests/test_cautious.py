"""Steps of an optimiser that are taken only where they descend, against the formula in plain Python numbers."""

import math

import pytest
import torch
from conftest import uniform

from engine import FULL, PHYSICS_ONLY, SettingError
from training import Backpropagation, EnsembleOptimiser, Member, SignAgreement, Trainer, TrainingSettings, build_task
from training.combinations import Bisect, Cautious, MaskRandom, Unit, WhereSignsAgree
from training.gradients import gradient_named, text_of

pytestmark = pytest.mark.float64

R, M = Backpropagation(FULL), Backpropagation(PHYSICS_ONLY)
STEPS, WIDTH, RATE = 15, 30, 0.01


def masked_adam(start, gradients):
    """Adam as Keras has it, its step u masked by u g > 0 and divided by the mean of the mask, in Python numbers."""
    theta, m, v = list(start), [0.0] * len(start), [0.0] * len(start)
    for t, row in enumerate(gradients, 1):
        m = [0.9 * old + 0.1 * g for old, g in zip(m, row, strict=True)]
        v = [0.999 * old + 0.001 * g * g for old, g in zip(v, row, strict=True)]
        rate = math.sqrt(1 - 0.999**t) / (1 - 0.9**t)
        steps = [rate * mean / (math.sqrt(square) + 1e-7) for mean, square in zip(m, v, strict=True)]
        mask = [1.0 if u * g > 0 else 0.0 for u, g in zip(steps, row, strict=True)]
        density = max(sum(mask) / len(mask), 1e-3)
        theta = [x - RATE * u * keep / density for x, u, keep in zip(theta, steps, mask, strict=True)]
    return theta


def test_cautious_steps_equal_the_formula_and_leave_other_members_alone():
    start, gradients = uniform(0, 2, WIDTH), uniform(1, STEPS, 2, WIDTH)
    found, plain = (EnsembleOptimiser(start.clone(), torch.full((2,), RATE, dtype=start.dtype)) for _ in range(2))

    def adjust(displacement, gradient):
        displacement[:1] = Cautious(R).adjust_step(displacement[:1], gradient[:1])

    for gradient in gradients:
        found.step(gradient, adjust)
        plain.step(gradient)
    expected = torch.tensor(masked_adam(start[0].tolist(), gradients[:, 0].tolist()), dtype=start.dtype)
    torch.testing.assert_close(found.theta[0], expected, rtol=1e-12, atol=1e-14)
    assert torch.equal(found.theta[1], plain.theta[1])
    assert (found.theta[0] - plain.theta[0]).abs().max() > RATE


@pytest.mark.parametrize("size", [1e-200, 1.0, 1e200])
def test_signs_decide_whatever_the_size_and_a_mask_of_nothing_moves_nothing(size):
    displacement = torch.tensor([[-1.0, 1.0, -1.0, 0.0], [1.0, 1.0, 0.0, 1.0]], dtype=torch.float64)
    found = Cautious(R).adjust_step(displacement * size, torch.ones(2, 4, dtype=torch.float64) / size)
    assert found[0].tolist() == pytest.approx([-1.5 * size, 0.0, -1.5 * size, 0.0], rel=1e-12, abs=0.0)
    assert not found[1].any()


def test_what_does_not_move_does_not_count_for_the_density():
    displacement, gradient = uniform(2, 3, 40), uniform(3, 3, 40)
    still = torch.cat([displacement, torch.zeros(3, 200, dtype=torch.float64)], dim=1)
    found = Cautious(R).adjust_step(still, torch.cat([gradient, uniform(4, 3, 200)], dim=1))
    assert torch.equal(found[:, :40], Cautious(R).adjust_step(displacement, gradient))
    assert not found[:, 40:].any()


def test_the_first_step_is_that_of_the_plain_optimiser():
    # The policy's last layer starts at zero, so all other layers have no gradient yet, and the mask is full.
    def moved(estimator):
        task = build_task("cart-pole", poles=1, horizon=20)
        trainer = Trainer(task, [Member(estimator)], TrainingSettings(train_samples=16, test_samples=8))
        trainer.update(*next(trainer.batches()))
        return trainer.policy.theta.detach()

    torch.testing.assert_close(moved(Cautious(R)), moved(R), rtol=1e-12, atol=0.0)


def test_a_step_can_be_acted_on_outside_only():
    assert gradient_named("cautious(agree(M, R))").text == "cautious(C)" == text_of(Cautious(SignAgreement(M, R)))
    inner = Cautious(R)
    wrong = [
        lambda: SignAgreement(M, inner),
        lambda: SignAgreement(inner, M),
        lambda: Bisect(inner, M),
        lambda: Unit(inner),
        lambda: MaskRandom(M, inner),
        lambda: WhereSignsAgree(M, R, inner),
        lambda: Cautious(inner),
        lambda: gradient_named("bisect(M, cautious(R))"),
    ]
    for build in wrong:
        with pytest.raises(SettingError, match=r"got a Cautious, which acts on .*; put it outside\."):
            build()
