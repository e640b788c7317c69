"""The Kuramoto-Sivashinsky equation: an independent integrator, spectral accuracy, its states of rest, its chaos."""

import math

import numpy as np
import pytest
import torch
from conftest import Products, gradcheck, relative_error, tensor_options, uniform
from scipy.integrate import solve_ivp

import engine
from engine.loops import torch_threads
from engine.systems.kuramoto_sivashinsky import KuramotoSivashinsky

SYSTEM = KuramotoSivashinsky()


def on_attractor(count, seed=0, system=SYSTEM):
    states = system.attractor(count, torch.Generator().manual_seed(seed), duration=60.0)
    return states.to(**tensor_options())


def simulate(system, state, duration, control=None):
    control = torch.zeros(len(state), system.actuators, **tensor_options()) if control is None else control
    for _ in range(round(duration / system.dt)):
        state = system.step(state, control)
    return state


def exact(state, control, duration, points=64, length=22.0):
    """Radau's method on the same equation in Fourier space, written anew."""
    waves = 2j * math.pi * np.fft.fftfreq(points, length / points)
    derivative = np.where(np.arange(points) == points // 2, 0.0, waves)
    x = length * np.arange(points) / points
    force = np.zeros(points)
    for index, amplitude in enumerate(control):
        away = np.abs(x - index * length / len(control))
        force += amplitude * np.exp(-(np.minimum(away, length - away) ** 2) / (2 * 0.4**2))

    def rate(_, u):
        spectrum = np.fft.fft(u)
        linear = np.fft.ifft((-(waves**2) - waves**4) * spectrum).real
        return linear - 0.5 * np.fft.ifft(derivative * np.fft.fft(u * u)).real + force

    return solve_ivp(rate, (0.0, duration), state, method="Radau", rtol=1e-10, atol=1e-11).y[:, -1]


@pytest.mark.float64
def test_a_unit_of_time_agrees_with_an_independent_integrator():
    state, control = on_attractor(1), uniform(1, 1, 4)
    expected = exact(state[0].numpy(), control[0].numpy(), 1.0)
    found = [simulate(KuramotoSivashinsky(dt=dt), state, 1.0, control)[0].numpy() for dt in (0.1, 0.05, 0.025)]
    errors = [float(np.abs(one - expected).max()) for one in found]
    assert errors[0] < 5e-5
    assert math.log2(errors[0] / errors[1]) > 3 - 0.25
    assert math.log2(errors[1] / errors[2]) > 3 - 0.25


@pytest.mark.float64
def test_accuracy_in_space_is_spectral():
    """Against 128 points: forces at the highest wave of 64 are 1e-3 of those at the lowest and damped by k⁴."""
    state, control = on_attractor(2)[:, ::2], uniform(1, 2, 4)

    def after(points):
        refined = torch.fft.irfft(torch.fft.rfft(state), points) * points / 32
        return simulate(KuramotoSivashinsky(points=points), refined, 2.0, control)[:, :: points // 32]

    finest = after(128)
    errors = [float((after(points) - finest).abs().max()) for points in (32, 64)]
    assert errors[1] < 1e-7
    assert errors[0] > 1e2 * errors[1]


@pytest.mark.float64
def test_pull_back_passes_gradcheck():
    assert gradcheck(KuramotoSivashinsky(points=16, actuators=3), uniform(0, 2, 16, low=-2, high=2), uniform(1, 2, 3))


@pytest.mark.cuda
@pytest.mark.vulkan
def test_pull_back_equals_autograd_of_the_steps_formula():
    state, control, adjoint = on_attractor(3), uniform(1, 3, 4), uniform(2, 3, 64)
    half, whole, inner, first, middle, last, forced_stage, forced_step = (
        torch.from_numpy(matrix).to(state.device) for matrix in SYSTEM._exact
    )

    def formula(v, f):
        a = v @ half + v**2 @ inner + f @ forced_stage
        b = v @ half + a**2 @ inner + f @ forced_stage
        c = a @ half + (2 * b**2 - v**2) @ inner + f @ forced_stage
        return v @ whole + v**2 @ first + (a**2 + b**2) @ middle + c**2 @ last + f @ forced_step

    leaves = [tensor.double().requires_grad_() for tensor in (state, control)]
    following = formula(*leaves)
    accuracy = 1e-12 if engine.current().precision == "float64" else 1e-5
    assert relative_error(SYSTEM.step(state, control), following) < accuracy
    expected = torch.autograd.grad(following, leaves, adjoint.double())
    kept = adjoint.clone()
    for found, wanted in zip(SYSTEM.pull_back(state, control, adjoint), expected, strict=True):
        assert relative_error(found, wanted) < accuracy
    assert torch.equal(adjoint, kept)


@pytest.mark.float64
def test_the_mean_is_kept_and_rest_stays_rest():
    state = on_attractor(2) + 0.3
    after = simulate(SYSTEM, state, 5.0)
    assert (after.mean(1) - state.mean(1)).abs().max() < 1e-12
    rest = torch.zeros(1, 64, **tensor_options())
    assert torch.equal(simulate(SYSTEM, rest, 1.0), rest)


@pytest.mark.float64
@pytest.mark.parametrize(("waves", "energy"), [(1, 0.2609), (2, 0.4382), (3, 1.5876)])
def test_equilibria_stand_still_and_have_the_published_energies(waves, energy):
    state = torch.from_numpy(SYSTEM.equilibrium(waves)).unsqueeze(0)
    assert float(state.square().mean()) / 2 == pytest.approx(energy, abs=5e-5)
    assert (simulate(SYSTEM, state, 1.0) - state).abs().max() < 1e-8


@pytest.mark.float64
def test_errors_grow_at_the_published_rate():
    """The largest Lyapunov exponent, by two neighbours brought together again after every unit of time."""
    state, apart = on_attractor(64), 1e-7
    other = state + apart * torch.nn.functional.normalize(uniform(3, 64, 64), dim=1)
    growth = []
    with torch_threads(False):
        for _ in range(100):
            state, other = simulate(SYSTEM, state, 1.0), simulate(SYSTEM, other, 1.0)
            away = other - state
            growth.append(torch.log(away.norm(dim=1) / apart))
            other = state + apart * torch.nn.functional.normalize(away, dim=1)
    rates = torch.stack(growth[20:]).mean(0)
    error = float(rates.std()) / math.sqrt(len(rates))
    assert 0.043 - 3 * error < float(rates.mean()) < 0.05 + 3 * error
    assert error < 0.005


@pytest.mark.float64
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"points": 63}, "an even number of points on the ring, got 63"),
        ({"points": 4}, "at least 8 points"),
        ({"actuators": 0}, "at least 1 actuators"),
        ({"dt": math.nan}, "a finite time step dt above 0, got nan"),
        ({"length": math.inf}, "a finite length above 0, got inf"),
        ({"width": -1.0}, "a finite width above 0"),
    ],
)
def test_impossible_rings_are_refused(options, message):
    with pytest.raises(engine.SettingError, match=message):
        KuramotoSivashinsky(**options)


@pytest.mark.float64
def test_equilibria_that_do_not_exist_are_refused():
    with pytest.raises(engine.SettingError, match="found none"):
        SYSTEM.equilibrium(7)
    with pytest.raises(engine.SettingError, match="of 0 to 15 waves"):
        SYSTEM.equilibrium(16)


def test_where_controls_lie_shows_in_no_product():
    rows, slots = 3, 5
    controls, cotangents = (uniform(seed, rows, 4).expand(slots, -1, -1).clone() for seed in (1, 2))
    states, adjoints = uniform(3, 1, rows, 64).expand(slots + 1, -1, -1).clone(), uniform(4, slots + 1, rows, 64)
    assert controls[1].data_ptr() % 64 != 0 or controls.element_size() == 8
    found = []
    for slot in range(slots):
        step = SYSTEM.prepare_step(states[slot], controls[slot], states[slot + 1])
        pull_back = SYSTEM.prepare_pull_back(
            states[slot], controls[slot], adjoints[slot + 1], adjoints[slot], cotangents[slot]
        )
        with Products() as products:
            step()
            pull_back()
        found.append(products.seen)
    assert len(found[0]) > 10
    assert all(seen == found[0] for seen in found)
