"""Trajectories: losses and states of the forward pass, and what is refused before it runs."""

from functools import partial

import pytest
import reference
import torch
from conftest import relative_error, tensor_options
from test_rollout import BATCH, CART_POLES, TRACKING, accuracy, cart_pole, mlp, quadratic

import engine
from engine import FULL, LinearSystem, Rollout
from engine import trajectory as trajectory_module
from policies import MLP, Linear


def test_losses_of_both_passes_equal_the_oracle():
    policy, rollout, initial = cart_pole(2)
    losses = rollout.forward(initial, TRACKING)
    oracle = partial(mlp, policy.widths, [policy.theta.detach().flatten().double()])
    expected = reference.rollout_loss(
        reference.cart_pole_step, oracle, initial.double(), 100, quadratic, reference.swing_up_cost
    )
    assert relative_error(losses, expected) < accuracy()
    torch.testing.assert_close(rollout.backward([FULL], TRACKING).losses, losses)


@pytest.mark.cuda
@pytest.mark.vulkan
def test_evaluation_stores_no_states_and_finds_the_same_losses(monkeypatch):
    monkeypatch.setattr(trajectory_module, "_BLOCK_ROWS", 16 * BATCH)
    _, stored, initial = cart_pole(2)
    evaluation = Rollout(stored.system, stored.controller, 100, BATCH, forward_only=True)
    torch.testing.assert_close(evaluation.forward(initial, TRACKING), stored.forward(initial, TRACKING))
    assert torch.equal(evaluation.final_state, stored.final_state)
    assert len(evaluation.states) == 17
    assert evaluation.trace.augmented[1].shape[1] == 1  # type: ignore[attr-defined]
    with pytest.raises(engine.AdjointError, match="Expected a rollout that stores its states"):
        evaluation.backward([FULL], TRACKING)


@pytest.mark.float64
@pytest.mark.parametrize("segment", [None, 2, 3])
def test_first_state_that_is_not_finite_is_found(segment):
    policy = Linear((1,), (1,), **tensor_options())
    rollout = Rollout(LinearSystem([[1e100]], [[1.0]]), policy, 8, 3, segment=segment)
    with pytest.raises(engine.AdjointError, match="Expected a forward rollout"):
        rollout.first_nonfinite(slice(0, 3))
    rollout.forward(torch.tensor([[0.0], [1.0], [1e100]], **tensor_options()))
    assert rollout.first_nonfinite(slice(0, 3)) == (3, 2)
    assert rollout.first_nonfinite(slice(0, 2)) == (4, 1)
    assert rollout.first_nonfinite(slice(0, 1)) is None


@pytest.mark.float64
@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"horizon": 0}, engine.SettingError, "Expected a horizon of at least 1, got 0."),
        ({"horizon": 2.0}, engine.SettingError, "Expected a horizon of at least 1, got 2.0."),
        ({"batch": -1}, engine.SettingError, "Expected a batch of at least 1, got -1."),
        ({"segment": 0}, engine.SettingError, "Expected a segment of at least 1, got 0."),
        ({"batch": 7}, engine.ShapeError, "Expected a batch that is a multiple of the 2 members, got 7 samples."),
    ],
)
def test_impossible_rollouts_are_refused(settings, error, message):
    policy = Linear((4,), (1,), members=2, **tensor_options())
    with pytest.raises(error) as refusal:
        Rollout(CART_POLES[1], policy, **{"horizon": 5, "batch": 8, **settings})
    assert str(refusal.value) == message


@pytest.mark.float64
def test_an_initial_state_that_does_not_fit_is_refused():
    _, rollout, initial = cart_pole(1, horizon=2)
    with pytest.raises(engine.ShapeError, match=r"Expected initial state of shape \[8, 4\], got \[7, 4\]"):
        rollout.forward(initial[:7])


@pytest.mark.float64
@pytest.mark.parametrize("kind", [MLP, Linear])
@pytest.mark.parametrize(
    ("options", "came"),
    [
        ({"dtype": torch.float32}, "torch.float32 on cpu"),
        ({"dtype": torch.float64, "device": "meta"}, "torch.float64 on meta"),
    ],
    ids=["precision", "device"],
)
def test_a_policy_of_another_precision_or_device_is_refused(kind, options, came):
    with pytest.raises(engine.ShapeError) as error:
        Rollout(CART_POLES[1], kind((4,), (1,), **options), 2, BATCH)
    expected = "Expected a policy as torch.float64 on cpu, as the runtime is, got "
    assert str(error.value) == f"{expected}{came}; build it with dtype and device."
