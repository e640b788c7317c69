"""Physical parameters of systems: steps and their three derivatives beside independent torch, sweeps, bad input."""

import pytest
import taichi as ti
import torch
from conftest import StepCost, relative_error, tensor_options, uniform

import engine
from engine import FULL, CartPole, Observation, Rollout, SettingError
from engine.systems import CartPendulum
from policies import Linear
from training.objectives import Quadratic

BATCH = 4
POLES = {poles: CartPole(poles) for poles in (1, 3)}
CHAINS = {links: CartPendulum(links) for links in (1, 2)}


def accuracy():
    return 1e-10 if engine.current().precision == "float64" else 3e-5


def varied(system, batch=BATCH, seed=7):
    """Every parameter between 0.8 and 1.2 times its value; friction, which is 0, between 0 and 0.4."""
    usual = torch.tensor(list(system.parameters.values()), **tensor_options())
    draw = uniform(seed, batch, len(usual), low=0.8, high=1.2)
    return torch.where(usual == 0, draw - 0.8, usual * draw)


def poles_step(state, control, parameters, dt=0.01):
    """The release's equations with friction, in torch; parameters [B, 5]."""
    gravity, cart, mass, length, friction = (column.unsqueeze(1) for column in parameters.unbind(1))
    poles = (state.shape[1] - 2) // 2
    position, velocity, angle, rate = state.split([1, 1, poles, poles], dim=1)
    force, total = control - friction * velocity, cart + mass
    push = (force + mass * length * angle.sin() * rate**2) / total
    turning = (gravity * angle.sin() - angle.cos() * push) / (length * (4 / 3 - mass / total * angle.cos() ** 2))
    swing = (angle.sin() * rate**2 - turning * angle.cos()).sum(1, keepdim=True)
    velocity = velocity + dt * (force + mass * length * swing) / total
    rate = rate + dt * turning
    return torch.cat([position + dt * velocity, velocity, angle + dt * rate, rate], 1)


def chain_accelerations(angle, rate, push, gravity, cart, mass, length):
    """Newton's law for each rod's centre, by sums over rods; each argument but the angles is [B, 1]."""
    links = angle.shape[1]
    reach = 2 * length.unsqueeze(2) * (torch.ones(links, links).tril(-1) + 0.5 * torch.eye(links)).to(angle)
    across, up = reach * angle.cos().unsqueeze(1), -reach * angle.sin().unsqueeze(1)
    across = torch.cat([torch.ones_like(across[..., :1]), across], 2)
    up = torch.cat([torch.zeros_like(up[..., :1]), up], 2)
    own = torch.cat([cart, (mass * length**2 / 3).expand(-1, links)], 1)  # and mass (2 length)² / 12 about its centre
    inertia = own.diag_embed() + mass.unsqueeze(2) * (across.mT @ across + up.mT @ up)
    spin = torch.cat([torch.zeros_like(push), rate**2], 1).unsqueeze(2)
    inward = torch.cat([torch.zeros_like(across[..., :1]), across[..., 1:]], 2)
    load = torch.cat([push, torch.zeros_like(angle)], 1).unsqueeze(2)
    load = load - mass.unsqueeze(2) * (across.mT @ (up @ spin) + up.mT @ (gravity.unsqueeze(2) - inward @ spin))
    return torch.linalg.solve(inertia, load).squeeze(2)


def chain_step(state, control, parameters, dt=0.01):
    """Classical Runge-Kutta; parameters [B, 5]."""
    gravity, cart, mass, length, friction = (column.unsqueeze(1) for column in parameters.unbind(1))
    links = (state.shape[1] - 2) // 2

    def slope(state):
        _, velocity, angle, rate = state.split([1, 1, links, links], dim=1)
        found = chain_accelerations(angle, rate, control - friction * velocity, gravity, cart, mass, length)
        return torch.cat([velocity, found[:, :1], rate, found[:, 1:]], 1)

    first = slope(state)
    second = slope(state + dt / 2 * first)
    third = slope(state + dt / 2 * second)
    return state + dt / 6 * (first + 2 * second + 2 * third + slope(state + dt * third))


CASES = [(system, poles_step) for system in POLES.values()] + [(system, chain_step) for system in CHAINS.values()]
NAMES = [f"{system.name}-{system.state_shape[0]}" for system, _ in CASES]


def launch_step(system, state, control, parameters):
    after = torch.empty_like(state)
    system.prepare_step(state, control, after, parameters)()
    return after


def launch_pull_back(system, state, control, adjoint, parameters):
    found = torch.zeros_like(state), torch.zeros_like(control), torch.zeros_like(parameters)
    system.prepare_pull_back(state, control, adjoint, found[0], found[1], parameters, found[2])()
    return found


@pytest.mark.cuda
@pytest.mark.vulkan
@pytest.mark.parametrize(("system", "step"), CASES, ids=NAMES)
def test_step_and_derivatives_equal_those_of_torch_at_every_sample_s_own_parameters(system, step):
    state, control = 2.0 * uniform(1, BATCH, *system.state_shape), 5.0 * uniform(2, BATCH, 1)
    adjoint, parameters = uniform(3, *state.shape), varied(system)
    leaves = [tensor.double().requires_grad_() for tensor in (state, control, parameters)]
    expected = step(*leaves)
    assert relative_error(launch_step(system, state, control, parameters), expected) < accuracy()
    derivatives = torch.autograd.grad(expected, leaves, adjoint.double())
    for found, wanted in zip(launch_pull_back(system, state, control, adjoint, parameters), derivatives, strict=True):
        for column in range(wanted.shape[1]):  # a parameter that matters little is looked at by itself
            assert relative_error(found[:, column], wanted[:, column]) < accuracy()


@pytest.mark.vulkan
@pytest.mark.parametrize(("system", "step"), CASES, ids=NAMES)
def test_values_given_to_a_system_are_those_given_to_every_sample(system, step):
    values = dict(zip(system.parameters, (9.0, 1.2, 0.15, 0.4, 0.3), strict=True))
    (size,) = system.state_shape
    other = type(system)((size - 2) // 2, system.dt, **values)
    assert other.parameters == values
    state, control = uniform(1, BATCH, size), uniform(2, BATCH, 1)
    rows = torch.tensor([list(values.values())] * BATCH, **tensor_options())
    assert relative_error(other.step(state, control), launch_step(system, state, control, rows)) < accuracy() * 1e-2
    adjoint = uniform(3, BATCH, size)
    of_rows = launch_pull_back(system, state, control, adjoint, rows)
    for found, wanted in zip(other.pull_back(state, control, adjoint), of_rows[:2], strict=True):
        assert relative_error(found, wanted) < accuracy()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: CartPole(mass=0.1), "a parameter of cart-pole among gravity, cart_mass, .*, got 'mass'"),
        (lambda: CartPole(pole_mass=0.0), "pole_mass of cart-pole above 0, got 0.0"),
        (lambda: CartPendulum(gravity=float("nan")), "gravity of cart-pendulum, got nan"),
    ],
)  # fmt: skip
def test_parameters_that_a_system_cannot_have_are_refused(make, message):
    with pytest.raises(SettingError, match=rf"^Expected {message}.*\.$"):
        make()


@pytest.mark.parametrize("cost", [Quadratic((1.0, 1.0, 1.0, 1.0), 1.0), StepCost(None, None)], ids=["own", "bare"])
def test_a_misspelt_parameter_that_nothing_reads_is_refused(cost):
    linear, initial = Linear((4,), (1,), **tensor_options()), uniform(1, BATCH, 4)
    rollout = Rollout(POLES[1], linear, 3, BATCH, parameters=("pole_mass", "pole_mas"))
    ways = (lambda: rollout.backward([FULL], cost), lambda: rollout.forward(initial, cost, initial[:, :2].abs()))
    rollout.forward(initial, parameters=initial[:, :2].abs())
    for way in ways:
        with pytest.raises(
            SettingError, match=r"^Expected parameters that .*, got 'pole_mas' \(perhaps pole_mass\)\.$"
        ):
            way()


@ti.kernel
def decay(x: ti.types.ndarray(ndim=2), u: ti.types.ndarray(ndim=2), y: ti.types.ndarray(ndim=2)):
    for b, i in ti.ndrange(x.shape[0], 4):
        y[b, i] = 0.9 * x[b, i] + u[b, 0]


@pytest.mark.parametrize("name", ["mass", "stiffness"])
def test_a_system_of_a_user_s_kernels_has_no_parameters_that_vary(name):
    class OfMass(StepCost):
        def given(self, parameters):
            mass = parameters.get("mass", 1.0)
            return StepCost(None, lambda state: mass * state.square().sum(1))

    system = engine.KernelSystem(decay, (4,), (1,))
    linear, initial, cost = Linear((4,), (1,), **tensor_options()), uniform(1, BATCH, 4), OfMass(None, None)
    rollout = Rollout(system, linear, 3, BATCH, parameters=(name,))
    if name == "mass":  # which the objective reads
        losses = rollout.forward(initial, cost, initial[:, :1].abs().contiguous())
        assert losses is not None
        assert losses.isfinite().all()
        return
    with pytest.raises(SettingError, match=r"since decay has the same constants for every sample, got 'stiffness'; "):
        rollout.forward(initial, cost, initial[:, :1])


def test_a_parameter_that_an_observation_reads_may_be_called_like_another():
    seen = Observation(lambda states, steps, parameters: parameters["pole_mas"].unsqueeze(-1), (1,))
    linear, initial = Linear((1,), (1,), **tensor_options()), uniform(1, BATCH, 4)
    rollout = Rollout(POLES[1], linear, 3, BATCH, observation=seen, parameters=("pole_mas",))
    assert rollout.forward(initial, Quadratic((1.0,) * 4, 1.0), initial[:, :1]).isfinite().all()
