"""What passes through a tape beside one rollout: kernels on controls, chained rollouts, torch; and what cannot pass."""

from typing import Any, cast

import pytest
import taichi as ti
import torch
from conftest import StepCost, relative_error, swing_up_states, tensor_options, uniform
from test_tape import BATCH, EFFORT, HORIZON, SYSTEM, add_squares, build_rollout, no_loss

from engine import FULL, AdjointError, Rollout, RolloutTape, ShapeError
from training import differentiable

pytestmark = pytest.mark.float64

LAST = StepCost(None, lambda x: x[:, 0].square() + x[:, 2])


@ti.kernel
def add_effort(controls: ti.types.ndarray(ndim=3), loss: ti.types.ndarray(ndim=1)):
    for t, b in ti.ndrange(controls.shape[0], controls.shape[1]):
        loss[0] += 0.1 * controls[t, b, 0] ** 2


@ti.kernel
def add_final(state: ti.types.ndarray(ndim=2), loss: ti.types.ndarray(ndim=1)):
    for b in range(state.shape[0]):
        loss[0] += state[b, 0]


def theta(rollout):
    return rollout.controller.theta


def refused(said, body, loss=None):
    """Check that a tape with this body ends in an AdjointError that says so."""

    def record():
        with RolloutTape(loss=loss):
            body()

    with pytest.raises(AdjointError, match=said):
        record()


@pytest.fixture
def initial():
    return swing_up_states(1, BATCH, 1)


@pytest.mark.parametrize("on_states", [False, True])
def test_a_kernel_on_the_controls_equals_the_same_cost(on_states, initial):
    rollout, loss = build_rollout(), no_loss()
    rollout.controls.requires_grad_()
    if on_states:
        rollout.states.requires_grad_()
    with RolloutTape(FULL, loss=loss) as tape:
        rollout(initial)
        add_effort(rollout.controls, loss)
        if on_states:
            add_squares(rollout.states, loss)
    found = tape.gradients(rollout)
    running = lambda x, u, t: 0.1 * u.square().sum(1) + (0.5 * (t + 1) * x.square().sum(1) if on_states else 0.0)  # noqa: E731
    cost = StepCost(running, lambda x: (0.5 * (HORIZON + 1) if on_states else 0.0) * x.square().sum(1))
    other = build_rollout()
    other.forward(initial, cost)
    expected = other.backward([FULL], cost)
    assert relative_error(found.parameters[FULL] * BATCH, expected.parameters[FULL] * BATCH) < 1e-12
    assert relative_error(found.initial[FULL], expected.initial[FULL]) < 1e-12
    rollout.forward(initial, EFFORT)
    later = rollout.backward([FULL], EFFORT).parameters[FULL]  # what kernels added is in no later sweep
    other.forward(initial, EFFORT)
    assert torch.equal(later, other.backward([FULL], EFFORT).parameters[FULL])


def test_kernels_on_controls_without_a_gradient_or_in_segments_are_refused(initial):
    loss, rollout = no_loss(), build_rollout()
    reads = lambda: add_effort(rollout(initial).controls, loss)  # noqa: E731
    refused(r"call rollout\.controls\.requires_grad_\(\) before it\.$", reads, loss)
    cut = build_rollout(segment=4)
    cut.controls.requires_grad_()
    refused(r"^Expected every state in memory where kernels read rollout\.controls", lambda: cut(initial, EFFORT))


@pytest.mark.parametrize("part", ["final_state", "made"])
def test_a_part_whose_gradient_would_go_nowhere_is_refused(part, initial):
    loss, rollout = no_loss(), build_rollout()
    rollout.states.requires_grad_()

    def body():
        rollout(initial)
        add_final(rollout.final_state if part == "final_state" else 2.0 * rollout.states[-1], loss)

    refused(r"^Expected argument 'state' of kernel 'add_final' as a tensor with a gradient of its own", body, loss)


def test_rollouts_that_start_where_others_end_are_one(initial):
    start = initial.clone().requires_grad_()
    first, second = build_rollout(), build_rollout()
    first.states.requires_grad_()
    with RolloutTape() as tape:
        first(start, EFFORT)
        second(first.states[-1], LAST)
    x = initial.clone().requires_grad_()
    one, two = build_rollout(), build_rollout()
    states, controls = differentiable(one)(x)
    both = (
        0.1 * controls.square().sum()
        + states[-1].square().sum()
        + differentiable(two, objective=LAST)(states[-1]).sum()
    )
    both.backward()
    assert start.grad is not None
    assert relative_error(start.grad, x.grad) < 1e-12
    for rollout, other in ((first, one), (second, two)):
        found = tape.gradients(rollout).parameters[FULL] * BATCH
        assert relative_error(found, theta(other).grad) < 1e-12
    first.states.requires_grad_(False)
    again = lambda: second(first(start, EFFORT).states[-1].detach(), LAST)  # noqa: E731
    refused(r"^Expected rollout\.states with a gradient where another rollout starts from them", again)


def test_what_torch_makes_a_start_and_parameters_of_is_reached(initial):
    scale = torch.tensor(0.7, **tensor_options(), requires_grad=True)

    def rollouts():
        return [
            Rollout(SYSTEM, build_rollout().controller, HORIZON, BATCH, parameters=("pole_mass",)) for _ in range(2)
        ]

    given = initial * scale, (0.2 * scale).expand(BATCH, 1).contiguous()
    one, two = rollouts()
    with RolloutTape():
        one(given[0], LAST, given[1])
        two(given[0], EFFORT, given[1])  # the same graph of torch twice
    found, scale.grad = scale.grad, None
    losses = [differentiable(rollout, objective=cost) for rollout, cost in zip(rollouts(), (LAST, EFFORT), strict=True)]
    for loss in losses:
        loss(initial * scale, (0.2 * scale).expand(BATCH, 1)).sum().backward()
    assert relative_error(found, scale.grad) < 1e-12


def test_a_recorded_rollout_that_runs_again_in_its_tape_is_refused(initial):
    rollout = build_rollout()
    again = lambda: rollout(initial, EFFORT).forward(2.0 * initial, EFFORT)  # noqa: E731
    refused(r"^Expected a rollout as the tape recorded it, got one that has run again inside of it", again)


def test_a_step_by_itself_in_a_tape_is_refused(initial):
    control, start = uniform(2, BATCH, 1), initial.clone().requires_grad_()
    with RolloutTape():
        SYSTEM.step(initial, control)  # nothing is asked of it
        with pytest.raises(AdjointError, match=r"^Expected rollouts inside a tape, got a step by itself"):
            SYSTEM.step(start, control)


def test_a_controller_that_has_changed_is_not_differentiated_as_another(initial):
    rollout = build_rollout()
    loss = differentiable(rollout, objective=EFFORT)
    kept, changed = (loss(initial.clone().requires_grad_()).sum() for _ in range(2))
    kept.backward()  # computed anew, since the other has run in between
    theta(rollout).data.mul_(3.0)
    loss(initial)
    with pytest.raises(
        AdjointError, match=r"^Expected the adjoint of a rollout whose controller is as it was, got ano"
    ):
        changed.backward()


def test_what_is_no_tensor_is_told(initial):
    rollout, wrong = build_rollout(), cast("Any", 3.0)
    for use in (
        lambda: rollout(initial.numpy()),
        lambda: RolloutTape(loss=wrong),
        lambda: differentiable(rollout)([1.0]),
    ):
        with pytest.raises(ShapeError, match=r"^Expected .* got .*\.$"):
            use()
    with pytest.raises(ShapeError, match=r"^Expected state of shape \[1, 4\], got \[0, 4\]\.$"):
        SYSTEM.step(initial[:0], uniform(0, 0, 1))
    with pytest.raises(AdjointError, match=r"^Expected a rollout that stores its states, got forward_only=True"):
        differentiable(build_rollout(forward_only=True))
