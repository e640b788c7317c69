"""Users' kernels inside a tape: what would lose their gradient is refused when they are launched."""

import pytest
import taichi as ti
import torch
from conftest import relative_error, tensor_options, uniform

from engine import FULL, AdjointError, Integrator, Rollout, RolloutTape, SettingError, ShapeError
from engine.trials.isolation import available
from policies import Linear

BATCH, HORIZON = 3, 5


@ti.kernel
def squares(states: ti.types.ndarray(ndim=3), loss: ti.types.ndarray(ndim=1)):
    for t, b, i in ti.ndrange(states.shape[0], states.shape[1], states.shape[2]):
        loss[0] += states[t, b, i] ** 2


@ti.kernel
def other_precision(states: ti.types.ndarray(dtype=ti.f16, ndim=3), loss: ti.types.ndarray(ndim=1)):
    for t in range(states.shape[0]):
        loss[0] += states[t, 0, 0]


@ti.kernel
def flat(states: ti.types.ndarray(ndim=2), loss: ti.types.ndarray(ndim=1)):
    for t in range(states.shape[0]):
        loss[0] += states[t, 0]


@ti.kernel
def skips(states: ti.types.ndarray(ndim=3), loss: ti.types.ndarray(ndim=1)):
    for t in range(states.shape[0]):
        if t == 2:
            continue
        loss[0] += states[t, 0, 0]


@ti.kernel
def decays(states: ti.types.ndarray(ndim=3), loss: ti.types.ndarray(ndim=1), repeats: int):
    for b in range(states.shape[1]):
        total = 0.0
        for t in range(states.shape[0]):
            for _ in range(repeats):
                total = 0.99 * total + states[t, b, 0] * states[t, b, 1]
        loss[0] += total


@ti.kernel
def sine(latent: ti.types.ndarray(ndim=2), initial: ti.types.ndarray(ndim=2)):
    for b, i in ti.ndrange(latent.shape[0], latent.shape[1]):
        initial[b, i] = ti.sin(latent[b, i])


def build_rollout():
    system = Integrator(2)
    policy = Linear(system.state_shape, system.control_shape, **tensor_options())
    policy.theta.data.copy_(uniform(0, *policy.theta.shape))
    return Rollout(system, policy, HORIZON, BATCH)


def no_loss():
    return torch.zeros(1, **tensor_options(), requires_grad=True)


def launch(kernel, *arguments, gradient=True):
    """A tape of one rollout and one kernel on its states; its gradients and the loss."""
    rollout, loss = build_rollout(), no_loss()
    rollout.states.requires_grad_(gradient)
    with RolloutTape(loss=loss) as tape:
        rollout(uniform(1, BATCH, *rollout.system.state_shape))
        kernel(rollout.states, *(loss if value is None else value for value in arguments or (None,)))
    return tape.gradients(rollout), loss, rollout


@pytest.mark.float64
@pytest.mark.parametrize(
    ("kernel", "arguments", "kind", "words"),
    [
        (
            other_precision,
            (None,),
            ShapeError,
            "argument 'states' of kernel 'other_precision' annotated without a dtype",
        ),
        (flat, (None,), ShapeError, "argument 'states' of kernel 'flat' annotated with ndim=3, got ndim=2"),
        (skips, (None,), AdjointError, "kernel 'skips' to be differentiable by Taichi, got `continue` in its line 5"),
        (squares, ("loss",), SettingError, "argument 'loss' of kernel 'squares' as a torch tensor, got 'loss'"),
        (squares, (torch.zeros(1).double(),), AdjointError, "argument 'loss', which kernel 'squares' writes"),
        (squares, (torch.zeros(4).double()[::2],), ShapeError, "argument 'loss' of kernel 'squares' to be contiguous"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_kernels_that_do_not_fit_a_tape_are_refused_at_their_launch(kernel, arguments, kind, words):
    with pytest.raises(kind) as error:
        launch(kernel, *arguments)
    assert words in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.float64
def test_states_that_would_get_no_gradient_are_refused():
    with pytest.raises(AdjointError, match=r"call rollout\.states\.requires_grad_\(\) before it"):
        launch(squares, gradient=False)


@pytest.mark.float64
def test_an_initial_state_that_would_pass_no_gradient_on_is_refused():
    rollout, latent = build_rollout(), uniform(2, BATCH, *build_rollout().system.state_shape).requires_grad_()
    with (
        pytest.raises(AdjointError, match="argument 'initial', which kernel 'sine' writes"),
        RolloutTape(loss=no_loss()),
    ):
        sine(latent, torch.zeros_like(latent, requires_grad=False))
    assert rollout.states.grad is None


@pytest.mark.parametrize("repeats", [1, 60])
def test_loops_of_a_kernel_in_a_tape_have_the_slope_of_their_loss(repeats):
    found, loss, rollout = launch(decays, None, repeats)
    states = rollout.states.detach().clone().double().requires_grad_()
    total = torch.zeros(BATCH).double()
    for t in range(HORIZON + 1):
        for _ in range(repeats):
            total = 0.99 * total + states[t, :, 0] * states[t, :, 1]
    total.sum().backward()
    accuracy = 1e-12 if loss.dtype == torch.float64 else 1e-4
    assert relative_error(loss, total.sum().view(1)) < accuracy
    # The gradient of the loss with respect to the states is what the sweep begins with.
    assert relative_error(rollout.states.grad, states.grad) < accuracy
    assert torch.isfinite(found.parameters[FULL]).all()


@pytest.mark.float64
def test_loops_beyond_the_stacks_are_refused_and_the_process_lives():
    if not available():
        pytest.skip("asks for children of the process")
    with pytest.raises(AdjointError, match=r"loops of kernel 'decays' .* larger ef\.init\(ad_stack_size"):
        launch(decays, None, 200_000)
