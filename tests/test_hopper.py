"""The hopper: its equations, an independent integrator, gradients in air and contact, conservation laws, standing."""

import math

import numpy as np
import pytest
import torch
from conftest import gradcheck, relative_error, tensor_options, uniform
from scipy.integrate import solve_ivp

import engine
from engine.systems.hopper import Hopper

SYSTEM = Hopper()
STANDING = (0.0, 0.4755, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0)


def states(heights, seed=0):
    """States near standing, with the foot at the given heights."""
    count = len(heights)
    result = torch.tensor(STANDING, **tensor_options()).repeat(count, 1) + 0.2 * uniform(seed, count, 10)
    result[:, 4] = torch.tensor(heights, **tensor_options())
    result[:, 5:] *= 5.0
    return result


HEIGHTS = (0.3, 0.004, 0.001, -0.001, -0.01, -0.05)


def accelerations(state, control):
    """The docstring's equations in torch, with another form of the soft ground; states [..., 10]."""
    x, y, _, p, q, vx, vy, _, vp, vq = state.unbind(-1)
    length = torch.hypot(p - x, q - y)
    n_x, n_y = (p - x) / length, (q - y) / length
    torque = 2.0 * torch.tanh(control[..., 0])
    rate = n_x * (vp - vx) + n_y * (vq - vy)
    force = 400.0 * (0.5 - length) - 4.0 * rate + 20.0 * torch.tanh(control[..., 1])
    leg_x, leg_y = force * n_x - torque / length * n_y, force * n_y + torque / length * n_x
    normal = 5000.0 * 0.002 * torch.logaddexp(torch.zeros_like(q), -q / 0.002) * (1 - torch.tanh(vq / 0.5))
    grip = -0.8 * normal * torch.tanh(vp / 0.1)
    foot = (leg_x + grip) / 0.1, (leg_y + normal) / 0.1 - 9.8
    return torch.stack([-leg_x, -leg_y - 9.8, -torque / 0.02, *foot], -1)


def following(state, control):
    velocity = state[..., 5:] + 0.002 * accelerations(state, control)
    return torch.cat([state[..., :5] + 0.002 * velocity, velocity], -1)


def simulate(system, state, duration, control=None):
    control = torch.zeros(len(state), 2, **tensor_options()) if control is None else control
    for _ in range(round(duration / system.dt)):
        state = system.step(state, control)
    return state


@pytest.mark.cuda
@pytest.mark.vulkan
def test_step_and_pull_back_equal_the_equations_and_their_derivatives():
    state, control, adjoint = states(HEIGHTS), uniform(1, len(HEIGHTS), 2), uniform(2, len(HEIGHTS), 10)
    leaves = [tensor.double().requires_grad_() for tensor in (state, control)]
    expected = following(*leaves)
    accuracy = 1e-12 if engine.current().precision == "float64" else 1e-5
    assert relative_error(SYSTEM.step(state, control), expected) < accuracy
    derivatives = torch.autograd.grad(expected, leaves, adjoint.double())
    for found, wanted in zip(SYSTEM.pull_back(state, control, adjoint), derivatives, strict=True):
        assert relative_error(found, wanted) < accuracy


@pytest.mark.float64
def test_pull_back_passes_gradcheck_in_the_air_and_in_the_ground():
    """On softer ground: differences over 1e-5 m do not resolve 2 mm to eight digits."""
    assert gradcheck(Hopper(stiffness=50.0, softness=0.2), states(HEIGHTS), uniform(1, len(HEIGHTS), 2))


@pytest.mark.float64
def test_a_landing_converges_to_an_independent_integrator_with_first_order():
    state = torch.tensor([[0.0, 0.6, 0.1, 0.03, 0.1, 0.3, -0.5, 0.2, 0.3, -0.5]], **tensor_options())
    control = torch.tensor([[0.2, -0.1]], **tensor_options())
    expected = solve_ivp(
        lambda _, s: np.concatenate([s[5:], accelerations(torch.from_numpy(s), control[0]).numpy()]),
        (0.0, 0.3), state[0].numpy(), method="Radau", rtol=1e-9, atol=1e-11,
    ).y[:, -1]  # fmt: skip
    errors = [
        float((simulate(Hopper(dt), state, 0.3, control)[0] - torch.as_tensor(expected)).abs().max())
        for dt in (2e-4, 1e-4)
    ]
    assert math.log2(errors[0] / errors[1]) > 1 - 0.25
    assert errors[1] < 0.05


@pytest.mark.float64
def test_a_free_hopper_keeps_momentum_angular_momentum_and_energy():
    """In the air with an undamped leg only gravity acts; energy errs in proportion to the step and does not drift."""
    state = states((3.0, 4.0))
    state[:, 1] += state[:, 4]

    def quantities(s):
        x, y, _, p, q, vx, vy, spin, vp, vq = s.unbind(1)
        length = torch.hypot(p - x, q - y)
        energy = 0.5 * (vx**2 + vy**2 + 0.02 * spin**2 + 0.1 * (vp**2 + vq**2)) + 9.8 * (y + 0.1 * q)
        centre = (x + 0.1 * p) / 1.1, (y + 0.1 * q) / 1.1
        drift = (vx + 0.1 * vp) / 1.1, (vy + 0.1 * vq) / 1.1
        turning = 0.02 * spin
        for mass, one, velocity in ((1.0, (x, y), (vx, vy)), (0.1, (p, q), (vp, vq))):
            away = [a - c for a, c in zip(one, centre, strict=True)]
            relative = [v - w for v, w in zip(velocity, drift, strict=True)]
            turning = turning + mass * (away[0] * relative[1] - away[1] * relative[0])
        return drift[0], drift[1], turning, energy + 0.5 * 400.0 * (0.5 - length) ** 2

    before = quantities(state)
    errors = []
    for dt in (2e-4, 1e-4):
        after = quantities(simulate(Hopper(dt, damping=0.0), state, 0.4))
        assert torch.allclose(after[0], before[0], atol=1e-11)
        assert torch.allclose(after[1], before[1] - 9.8 * 0.4, atol=1e-10)
        assert torch.allclose(after[2], before[2], atol=1e-12)
        errors.append(float((after[3] - before[3]).abs().max()))
    assert 1.8 < errors[0] / errors[1] < 2.2
    # Torque and thrust are between body and foot, so they turn the whole by nothing either.
    pushed = quantities(simulate(Hopper(1e-4), state, 0.1, torch.ones(2, 2, **tensor_options())))
    assert torch.allclose(pushed[2], before[2], atol=1e-12)
    assert (pushed[3] - before[3]).abs().min() > 0.1


@pytest.mark.float64
def test_a_hopper_stands_two_millimetres_deep_and_its_friction_holds():
    state = torch.tensor([STANDING], **tensor_options())
    rested = simulate(Hopper(damping=40.0), state, 2.0)
    assert rested[:, 5:].abs().max() < 1e-6
    assert float(rested[0, 4]) == pytest.approx(-1.1 * 9.8 / 5000, abs=1e-3)
    assert float(rested[0, 1] - rested[0, 4]) == pytest.approx(0.5 - 9.8 / 400, abs=1e-6)
    sliding = state.clone()
    sliding[0, 5] = sliding[0, 8] = 0.5
    assert abs(float(simulate(SYSTEM, sliding, 0.3)[0, 8])) < 0.5
    smooth = simulate(Hopper(friction=0.0), sliding, 0.1)
    assert float(smooth[0, 5] + 0.1 * smooth[0, 8]) == pytest.approx(0.55, abs=1e-9)


@pytest.mark.float64
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dt": 0.0}, "a finite time step dt above 0, got 0.0"),
        ({"dt": math.nan}, "a finite time step dt above 0, got nan"),
        ({"stiffness": -1.0}, "a finite stiffness above 0"),
        ({"softness": 0.0}, "a finite softness above 0"),
        ({"friction": math.inf}, "a finite friction of at least 0"),
        ({"spring": -1.0}, "a finite spring of at least 0"),
    ],
)
def test_impossible_hoppers_are_refused(options, message):
    with pytest.raises(engine.SettingError, match=message):
        Hopper(**options)
