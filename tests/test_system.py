"""The contract of a system, and the systems that users write with Taichi kernels."""

import pytest
import taichi as ti
import torch
from conftest import gradcheck, relative_error, uniform
from test_systems import accuracy, reference_pull_back
from users_kernels import damped_pendulum

import engine
from engine import CartPole, KernelSystem

BATCH = 5


def damped_pendulum_step(state, control, dt=0.05, damping=0.3):
    angle, rate = state.unbind(1)
    rate = rate + dt * (control[:, 0] - angle.sin() - damping * rate)
    return torch.stack([angle + dt * rate, rate], dim=1)


@ti.kernel
def damped_pendulum_pull_back(
    state: ti.types.ndarray(ndim=2),
    control: ti.types.ndarray(ndim=2),
    next_adjoint: ti.types.ndarray(ndim=2),
    adjoint: ti.types.ndarray(ndim=2),
    cotangent: ti.types.ndarray(ndim=2),
    dt: float,
    damping: float,
):
    for b in range(state.shape[0]):
        rate_bar = next_adjoint[b, 1] + dt * next_adjoint[b, 0]
        adjoint[b, 0] = next_adjoint[b, 0] - dt * ti.cos(state[b, 0]) * rate_bar
        adjoint[b, 1] = (1.0 - dt * damping) * rate_bar
        cotangent[b, 0] += dt * rate_bar


@pytest.mark.float64
def test_a_step_is_written_into_memory_of_its_own_shape_and_place():
    system, state, control = CartPole(1), uniform(0, BATCH, 4), uniform(1, BATCH, 1)
    out = torch.empty_like(state)
    assert system.step(state, control, out=out) is out
    assert torch.equal(out, system.step(state, control))
    for wrong in (out[:2], out.float(), out.t()):
        with pytest.raises(engine.ShapeError, match="out"):
            system.step(state, control, out=wrong)
    with pytest.raises(engine.SettingError, match="Expected out in memory of its own"):
        system.step(state, control, out=state)


def by_hand():
    return KernelSystem(damped_pendulum, (2,), (1,), (0.05, 0.3), damped_pendulum_pull_back, "pendulum")


def by_taichi():
    return KernelSystem(damped_pendulum, (2,), (1,), constants=(0.05, 0.3))


def check_pendulum(system):
    state, control, next_adjoint = uniform(0, BATCH, 2), uniform(1, BATCH, 1), uniform(2, BATCH, 2)
    expected = damped_pendulum_step(state.double(), control.double())
    assert relative_error(system.step(state, control), expected) < accuracy()
    pulled = system.pull_back(state, control, next_adjoint)
    for found, wanted in zip(
        pulled, reference_pull_back(damped_pendulum_step, state, control, next_adjoint), strict=True
    ):
        assert relative_error(found, wanted) < accuracy()


@pytest.mark.cuda
def test_a_users_forward_kernel_gets_its_adjoint_from_taichi():
    system = by_taichi()
    check_pendulum(system)
    assert system.name == "damped_pendulum"


@pytest.mark.cuda
@pytest.mark.vulkan
def test_a_users_own_pull_back_kernel_is_used_everywhere():
    check_pendulum(by_hand())


@pytest.mark.cuda
@pytest.mark.float64
@pytest.mark.parametrize("build", [by_taichi, by_hand])
def test_a_users_kernels_pass_gradcheck(build):
    assert gradcheck(build(), uniform(0, BATCH, 2), uniform(1, BATCH, 1))


@pytest.mark.float64
def test_launches_of_one_system_share_their_scratch():
    system, states = by_taichi(), uniform(0, 3, BATCH, 2)
    controls, adjoints, cotangents = uniform(1, 2, BATCH, 1), uniform(2, 3, BATCH, 2), torch.zeros(2, BATCH, 1).double()
    given = adjoints[2].clone()
    launches = [
        system.prepare_pull_back(states[t], controls[t], adjoints[t + 1], adjoints[t], cotangents[t]) for t in (0, 1)
    ]
    for launch in reversed(launches):
        launch()
    for t in (1, 0):
        given, cotangent = reference_pull_back(damped_pendulum_step, states[t], controls[t], given)
        assert relative_error(adjoints[t], given) < accuracy()
        assert relative_error(cotangents[t], cotangent) < accuracy()
    assert system._buffers is not None
    assert sum(buffer.nbytes for buffer in system._buffers.values()) == system.scratch_bytes(BATCH)
    assert by_hand().scratch_bytes(BATCH) == CartPole(1).scratch_bytes(BATCH) == 0


@pytest.mark.float64
def test_whole_numbers_serve_as_constants():
    system = KernelSystem(damped_pendulum, (2,), (1,), constants=(1, 0))
    state, control = uniform(0, BATCH, 2), uniform(1, BATCH, 1)
    torch.testing.assert_close(system.step(state, control), damped_pendulum_step(state, control, 1.0, 0.0))


@pytest.mark.vulkan
def test_vulkan_refuses_taichis_derivatives_with_a_sentence():
    if engine.current().backend != "vulkan":
        pytest.skip("asks for --backend vulkan")
    system, state = by_taichi(), uniform(0, BATCH, 2)
    with pytest.raises(engine.AdjointError, match="pull_back kernel for 'damped_pendulum' on Vulkan"):
        system.pull_back(state, uniform(1, BATCH, 1), state)


@pytest.mark.float64
@pytest.mark.parametrize("shape", [(), (0,), (2.0,)], ids=str)
def test_shapes_of_a_kernel_system_are_positive_integers(shape):
    with pytest.raises(engine.ShapeError, match="Expected state_shape as positive integers"):
        KernelSystem(damped_pendulum, shape, (1,))
    with pytest.raises(engine.ShapeError, match="Expected control_shape as positive integers"):
        KernelSystem(damped_pendulum, (2,), shape)


@pytest.mark.float64
def test_step_and_pull_back_check_what_they_are_given():
    system, state, control = CartPole(1), uniform(0, BATCH, 4), uniform(1, BATCH, 1)
    with pytest.raises(engine.ShapeError, match=r"Expected control of shape \[5, 1\], got \[4, 1\]"):
        system.step(state, control[:4])
    with pytest.raises(engine.ShapeError, match=r"Expected state of shape \[5, 4\], got \[5, 3\]"):
        system.step(state[:, :3].contiguous(), control)
    with pytest.raises(engine.ShapeError, match=r"Expected next_adjoint of shape \[5, 4\]"):
        system.pull_back(state, control, control)
