"""The fluid's step and adjoint against an oracle that sums over all pairs and images, and its bad input."""

import itertools
import math
from functools import partial

import pytest
import torch
from conftest import tensor_options, uniform
from oracles import ROUNDING, Case, OracleTests

import engine
from engine.systems import Fluid
from engine.systems.fluid import lattice_sum

BATCH = 2


def images(size):
    """(mirror, offset) of the box's image in itself and in every choice of its walls, as mirror · x + offset."""
    for choice in itertools.product((None, 0.0, 1.0), repeat=len(size)):
        mirror = torch.tensor([1.0 if wall is None else -1.0 for wall in choice], dtype=torch.float64)
        offset = [0.0 if wall is None else 2 * wall * length for wall, length in zip(choice, size, strict=True)]
        yield mirror, torch.tensor(offset, dtype=torch.float64)


def accelerations(x, v, places, pushes, system):
    """The equations as they are written, for x, v [N, dim], jets at `places` [J, dim] with `pushes` [J, dim]."""
    dim, radius = len(system.size), 2.6 * system.spacing
    alpha = {2: 7 / (math.pi * radius**2), 3: 21 / (2 * math.pi * radius**3)}[dim]
    volume = 1 / (alpha * lattice_sum(dim))
    pairs, z = [], torch.zeros(len(x), dtype=x.dtype)
    for mirror, offset in images(system.size):
        image = mirror * x + offset
        i, k = (torch.cdist(x.detach(), image.detach()) < radius).nonzero().T
        r = x[i] - image[k]
        distance = (r.square().sum(1) + 1e-30).sqrt()
        pairs.append((i, k, r, distance, 1 - distance / radius, v[i] - mirror * v[k]))
    for i, _, _, distance, w, _ in pairs:
        z = z.index_add(0, i, volume * alpha * w**4 * (1 + 4 * distance / radius))
    pressure = (system.sound_speed**2 / 7 * (z**5 - z**-2)).clamp(min=0)
    total = torch.zeros_like(x)
    for i, k, r, _, w, apart in pairs:
        friction = (apart * r).sum(1) / (r.square().sum(1) + radius**2 / 400)
        stress = pressure[i] + pressure[k] - 2 * (dim + 2) * system.viscosity * friction
        slope = -20 * alpha / radius**2 * w**3  # ∇W = slope r
        total = total.index_add(0, i, -volume * (stress * slope).unsqueeze(1) * r)
    total = total - system.gravity * torch.eye(dim, dtype=x.dtype)[-1]
    depth = system.spacing / 4
    inside = (depth - x).clamp(min=0) - (x - x.new_tensor(system.size) + depth).clamp(min=0)
    total = total + (2 * system.sound_speed / system.spacing) ** 2 * inside
    for place, push in zip(places, pushes, strict=True):
        reach = (1 - (x - place).square().sum(1, keepdim=True) / system.jet_radius**2).clamp(min=0)
        total = total + system.jet_strength * reach**3 * push
    return total


def fluid_step(state, control, system):
    """The oracle: state [B, 2·dim, J + N], control [B, dim or 2·dim, J]."""
    dim, jets = state.shape[1] // 2, control.shape[2]
    ends = []
    for sample, pushes in zip(state, control, strict=True):
        velocity = sample[dim:].T
        half = sample[:dim].T + 0.5 * system.dt * velocity
        moved = torch.zeros_like(velocity[:jets])
        if len(pushes) > dim:
            moved = pushes[dim:].T - velocity[:jets]
        found = accelerations(half[jets:], velocity[jets:], half[:jets], pushes[:dim].T, system)
        velocity = velocity + system.dt * torch.cat([moved, found])
        ends.append(torch.cat([half + 0.5 * system.dt * velocity, velocity], dim=1).T)
    return torch.stack(ends)


def lattice(counts):
    """The points of a lattice with spacing 1 from 0 on, the last axis slowest: [dim, points]."""
    axes = [torch.arange(count, **tensor_options()) for count in reversed(counts)]
    return torch.stack(torch.meshgrid(*axes, indexing="ij")).flatten(1).flip(0)


def on_a_lattice(system, state):
    """Jets anywhere in the box; particles on a lattice, each moved by up to a third of the spacing.

    So some touch walls and none is at the foot of a wall of pressure, where finite differences see nothing.
    """
    sizes = torch.tensor(system.size, **tensor_options()).view(1, -1, 1)
    state[:, : system.dim, : system.jets] = 0.5 * sizes * (1 + state[:, : system.dim, : system.jets])
    places = lattice([int(length / system.spacing) for length in system.size])[:, : system.particles]
    moved = state[:, : system.dim, system.jets :] / 3
    state[:, : system.dim, system.jets :] = system.spacing * (0.5 + places + moved)
    return state


def build(particles, jets, size, **options):
    system, (exact, single) = Fluid(particles, jets, size, 0.1, **options), ROUNDING
    return Case(
        system, partial(fluid_step, system=system), BATCH, place=on_a_lattice, of_pull_back=(5 * exact, 5 * single)
    )


CASES = {
    "plane": build(60, 2, (1.2, 1.3), viscosity=0.05, jet_radius=0.5, jet_strength=3.0),
    "space": build(40, 2, (1.1, 1.2, 1.05), viscosity=0.05, jet_radius=0.5, steered=True),
    "one": build(1, 1, (1.2, 1.3), jet_radius=2.0),
    "without friction": build(121, 1, (1.1, 1.1), viscosity=0.0, gravity=0.0, steered=True),
    "many": build(800, 3, (3.2, 3.7), viscosity=0.02, sound_speed=3.0, jet_radius=1.0),
}


class TestOracle(OracleTests):
    # The last has every thread at work and the jets' sums in two chunks.
    cases = CASES


@pytest.mark.float64
@pytest.mark.parametrize("name", CASES)
def test_pull_back_equals_differences(name):
    system, state, control, next_adjoint = CASES[name].points()
    to_state, to_control = system.pull_back(state, control, next_adjoint)
    for seed in range(10, 15):
        # Pressure is so stiff that larger differences are far from linear.
        state_step, control_step = 1e-6 * uniform(seed, *state.shape), 1e-6 * uniform(-seed, *control.shape)
        ahead = system.step(state + state_step, control + control_step)
        behind = system.step(state - state_step, control - control_step)
        expected = (next_adjoint * (ahead - behind)).sum() / 2
        found = (to_state * state_step).sum() + (to_control * control_step).sum()
        assert abs(found - expected) < 1e-8 * (to_state * state_step).abs().sum()


@pytest.mark.cuda
@pytest.mark.vulkan
@pytest.mark.parametrize(("name", "dim"), [("plane", 2), ("many", 2), ("space", 3)])
def test_momentum_far_from_walls_is_kept_to_rounding(name, dim):
    system, state, control, _ = CASES[name].points()
    middle = torch.tensor(system.size, **tensor_options()).view(1, -1, 1) / 2
    state[:, :dim] = middle + 0.35 * (state[:, :dim] - middle)
    before, after = (x[:, dim:, system.jets :] for x in (state, system.step(state, torch.zeros_like(control))))
    kicks = after - before
    kicks[:, -1] += system.dt * system.gravity
    assert kicks.abs().sum(2).min() > 0.1
    assert kicks.sum(2).abs().max() < 10 * torch.finfo(state.dtype).eps * kicks.abs().sum(2).max()


@pytest.mark.cuda
@pytest.mark.vulkan
def test_one_particle_falls_freely_and_has_the_density_of_its_own_kernel():
    system, state, control, _ = CASES["one"].points()
    state[:, :, 1] = torch.tensor([0.6, 0.7, 0.3, -0.2], **tensor_options())
    after, dt = system.step(state, torch.zeros_like(control)), system.dt
    expected = torch.tensor([0.6 + 0.3 * dt, 0.7 - 0.2 * dt - 0.5 * dt**2, 0.3, -0.2 - dt], **tensor_options())
    torch.testing.assert_close(after[:, :, 1], expected.expand(BATCH, 4))
    torch.testing.assert_close(system.densities(state), torch.full((BATCH, 1), 1 / lattice_sum(2), **tensor_options()))


@pytest.mark.cuda
@pytest.mark.vulkan
@pytest.mark.parametrize("dim", [2, 3])
def test_a_lattice_that_fills_its_box_has_density_one_and_stays_at_rest(dim):
    system = CASES["without friction"].system if dim == 2 else Fluid(12 * 11 * 11, 1, (1.2, 1.1, 1.1), 0.1, gravity=0.0)
    state = torch.zeros(1, *system.state_shape, **tensor_options())
    state[0, :dim, 1:] = 0.1 * (0.5 + lattice([round(10 * length) for length in system.size]))
    densities = system.densities(state)
    torch.testing.assert_close(densities, torch.ones_like(densities))
    after = system.step(state, torch.zeros(1, *system.control_shape, **tensor_options()))
    assert after[:, dim:].abs().max() < 1e3 * torch.finfo(state.dtype).eps


@pytest.mark.cuda
@pytest.mark.vulkan
@pytest.mark.parametrize("name", ["plane", "space", "many"])
def test_coincident_particles_exert_no_force_and_no_nan_comes_of_them(name):
    system, state, control, next_adjoint = CASES[name].points()
    state[:, : system.dim] = 0.5 * torch.tensor(system.size, **tensor_options()).view(1, -1, 1)
    state[:, system.dim :] = 0.0
    after = system.step(state, torch.zeros_like(control))
    fallen = torch.zeros_like(after[:, system.dim :, system.jets :])
    fallen[:, -1] = -system.dt * system.gravity
    torch.testing.assert_close(after[:, system.dim :, system.jets :], fallen)
    assert all(tensor.isfinite().all() for tensor in system.pull_back(state, control, next_adjoint))


@pytest.mark.cuda
@pytest.mark.vulkan
def test_a_sample_that_is_not_finite_leaves_the_others_alone():
    system, state, control, next_adjoint = CASES["many"].points()
    step, pulled = system.step(state, control), system.pull_back(state, control, next_adjoint)
    state[1, 0, 700] = math.nan
    assert torch.equal(system.step(state, control)[0], step[0])
    for found, expected in zip(system.pull_back(state, control, next_adjoint), pulled, strict=True):
        assert torch.equal(found[0], expected[0])


def outside(name):
    """The points of a case with every third particle moved out of the box: across one wall or, where two meet, both."""
    system, state, control, next_adjoint = CASES[name].points()
    dim, radius = system.dim, 2.6 * system.spacing
    for index, i in enumerate(range(system.jets, state.shape[2], 3)):
        for axis in range(dim) if index % 4 == 3 else [index % dim]:
            depth = radius * (0.05 + 0.4 * (index % 3)) + 0.2 * system.spacing * state[:, dim + axis, i]
            upper = (index + axis) % 2
            state[:, axis, i] = system.size[axis] + depth if upper else -depth
    return system, state, control, next_adjoint


@pytest.mark.cuda
@pytest.mark.vulkan
@pytest.mark.parametrize("name", ["plane", "space"])
def test_particles_outside_the_box_see_the_images_of_every_neighbour(name):
    system, state, control, next_adjoint = outside(name)
    places = state[:, : system.dim, system.jets :]
    edge = torch.tensor(system.size, **tensor_options()).view(1, -1, 1)
    assert ((places < 0) | (places > edge)).any(1).sum() >= BATCH * 10
    CASES[name].check(state, control, next_adjoint)


@pytest.mark.cuda
@pytest.mark.vulkan
@pytest.mark.parametrize("name", ["plane", "space"])
def test_a_particle_outside_has_the_density_and_the_forces_of_its_image_inside(name):
    system, state, control, _ = CASES[name].points()
    dim, jets, dt = system.dim, system.jets, system.dt
    control = torch.zeros_like(control)
    # Positions count at half the step; springs, which pull outside particles back, stand still for velocities alone.
    state[:, dim:] *= 0.1
    turned = state.clone()
    for axis, (i, wall) in enumerate([(jets, 0.0), (jets + 1, system.size[1])] + [(jets + 2, 0.0)] * (dim - 2)):
        turned[:, axis, i] = 2 * wall - state[:, axis, i]
        turned[:, dim + axis, i] *= -1
    ours, theirs = system.densities(state), system.densities(turned)
    torch.testing.assert_close(ours, theirs, rtol=1e3 * torch.finfo(ours.dtype).eps, atol=0.0)
    near, far = (system.step(given, control)[:, dim:, jets + 3 :] for given in (state, turned))
    scale = (near - state[:, dim:, jets + 3 :]).abs().max() + dt
    assert (near - far).abs().max() < 1e3 * torch.finfo(near.dtype).eps * scale


@pytest.mark.cuda
@pytest.mark.vulkan
def test_densities_have_no_jump_where_a_neighbour_leaves_the_kernel_or_a_particle_the_box():
    system, dim, radius = CASES["plane"].system, 2, 2.6 * 0.1
    state = torch.zeros(1, *system.state_shape, **tensor_options())
    state[0, :dim, system.jets :] = 0.5 * torch.tensor(system.size, **tensor_options()).view(2, 1)
    first, second = system.jets, system.jets + 1
    kernel = lambda d: max(0.0, 1 - d / radius) ** 4 * (1 + 4 * d / radius) / lattice_sum(2)  # noqa: E731
    for out in (-0.02, -1e-6, 0.0, 1e-6, 0.01, 0.1, 0.3):  # beyond the lower wall, and beyond the upper one
        for away in (0.5 * radius, radius - 1e-6, radius + 1e-6, radius + 0.5 * abs(out)):
            for wall, inwards in ((0.0, 1.0), (system.size[0], -1.0)):
                place, other = -out, away - out
                state[0, 0, first], state[0, 0, second] = wall + inwards * place, wall + inwards * other
                state[0, 1, first] = state[0, 1, second] = 0.3
                found = system.densities(state)[0, :2].tolist()
                apart, across = kernel(abs(place - other)), kernel(abs(place + other))
                expected = [kernel(0) + kernel(2 * abs(x)) + apart + across for x in (place, other)]
                assert found == pytest.approx(expected, rel=2e-5 if state.dtype == torch.float32 else 1e-12)


@pytest.mark.float64
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"particles": 0}, "a fluid with at least 1 particle, got 0."),
        ({"jets": 0}, "a fluid with at least 1 jet, got 0."),
        ({"jets": 1.5}, "a fluid with at least 1 jet, got 1.5."),
        ({"size": (1.0,)}, "the size of a box as 2 or 3 lengths, got (1.0,)."),
        ({"spacing": 0.0}, "a finite spacing above 0, got 0.0."),
        ({"spacing": math.nan}, "a finite spacing above 0, got nan."),
        ({"sound_speed": math.inf}, "a finite sound speed above 0, got inf."),
        ({"jet_radius": -1.0}, "a finite jet radius above 0, got -1.0."),
        ({"jet_strength": 0.0}, "a finite jet strength above 0, got 0.0."),
        ({"viscosity": -1.0}, "a finite viscosity of at least 0, got -1.0."),
        ({"gravity": -1.0}, "a finite gravity of at least 0, got -1.0."),
        (
            {"size": (1.2, 0.5)},
            "a box of at least 2 kernel radii, 0.52, along each axis, got (1.2, 0.5); lower the spacing.",
        ),
        ({"dt": 0.0}, "a time step dt above 0 and at most 0.0052, got 0.0."),
        ({"dt": 0.006}, "a time step dt above 0 and at most 0.0052, got 0.006."),
        ({"dt": math.nan}, "a time step dt above 0 and at most 0.0052, got nan."),
    ],
)
def test_impossible_settings_are_refused(settings, message):
    given = {"particles": 5, "jets": 1, "size": (1.2, 1.3), "spacing": 0.1} | settings
    with pytest.raises(engine.SettingError) as refusal:
        Fluid(**given)
    assert str(refusal.value) == f"Expected {message}"
