"""Neighbour search by cells: the pairs of brute force, whatever the positions, at a cost that grows with N."""

import math

import pytest
import torch
from conftest import tensor_options, uniform

import engine
from engine import SettingError
from engine.particles.neighbours import Neighbours

BATCH = 3


def by_brute_force(positions, radius, period=None):
    """All (sample, i, k), i ≠ k, with |x_i - x_k| ≤ radius, in the running precision."""
    away = positions.unsqueeze(3) - positions.unsqueeze(2)
    periods = period if isinstance(period, tuple) else (period,) * positions.shape[1]
    for axis, length in enumerate(periods):
        if length is not None:
            away[:, axis] -= length * (away[:, axis] / length).round()
    near = away.square().sum(1) <= radius**2
    near &= ~torch.eye(positions.shape[2], dtype=torch.bool, device=near.device)
    return near.nonzero()


def assert_pairs(positions, radius, period=None):
    """The same pairs as brute force; returns how many."""
    dim, particles = positions.shape[1:]
    neighbours = Neighbours(dim, particles, radius, period)
    found = neighbours.pairs(positions)
    assert torch.equal(found, by_brute_force(positions, radius, period))
    assert neighbours.count(positions) == len(found)
    return len(found)


SPACES = {
    "plane": (2, None),
    "space": (3, None),
    "torus": (2, 2.0),
    "3-torus": (3, 2.0),
    "tube": (2, (None, 2.0)),
    "slab": (3, (2.0, 2.0, None)),
    "oblong": (3, (2.0, 0.7, 5.0)),
}


def check_random_positions(space, radius):
    dim, period = SPACES[space]
    positions = uniform(0, BATCH, dim, 200)
    found = assert_pairs(positions, radius, period)
    assert radius < 0.2 or found > 200
    # The same places, counted from elsewhere and some of them a period away.
    shifted = positions + 2.0 * uniform(1, BATCH, dim, 200).round() + 17.3
    assert_pairs(shifted, radius, period)


@pytest.mark.cuda
@pytest.mark.vulkan
@pytest.mark.parametrize("radius", [0.03, 0.2, 0.5, 0.66, 0.99, 5.0])
@pytest.mark.parametrize("space", SPACES)
def test_pairs_are_those_of_brute_force(space, radius):
    check_random_positions(space, radius)


@pytest.mark.cuda
@pytest.mark.vulkan
@pytest.mark.parametrize("space", SPACES)
def test_particles_on_the_borders_of_cells_and_domain_lose_no_neighbour(space):
    dim, period = SPACES[space]
    # A lattice of halves, whose neighbours lie exactly at the radius, its ends on the ends of the period.
    axes = [torch.linspace(-1.0, 1.0, 5, **tensor_options())] * dim
    positions = torch.stack([axis.flatten() for axis in torch.meshgrid(*axes, indexing="ij")]).unsqueeze(0)
    for radius in (0.5, 1.0):
        assert assert_pairs(positions, radius, period) > 0


@pytest.mark.cuda
@pytest.mark.vulkan
@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize("particles", [1, 2, 3, 5])
def test_few_particles_have_few_neighbours(space, particles):
    dim, period = SPACES[space]
    positions = uniform(0, BATCH, dim, particles, low=-0.3, high=0.3)
    for radius in (0.1, 10.0):
        assert_pairs(positions, radius, period)
    assert len(Neighbours(dim, 1, 1.0, period).pairs(positions[:, :, :1].contiguous())) == 0


@pytest.mark.cuda
@pytest.mark.vulkan
@pytest.mark.parametrize("space", SPACES)
def test_coincident_particles_are_all_neighbours(space):
    dim, period = SPACES[space]
    positions = torch.full((2, dim, 40), 0.3, **tensor_options())
    assert assert_pairs(positions, 1e-3, period) == 2 * 40 * 39


@pytest.mark.cuda
@pytest.mark.vulkan
def test_a_radius_above_the_domain_makes_every_pair_neighbours():
    positions = uniform(0, BATCH, 2, 30)
    for period in (None, 2.0):
        assert assert_pairs(positions, 100.0, period) == BATCH * 30 * 29


@pytest.mark.cuda
@pytest.mark.vulkan
def test_far_and_stray_particles_are_found():
    positions = uniform(0, BATCH, 2, 100)
    positions[:, :, ::7] += 1e4
    positions[:, 0, ::5] -= 1e30
    assert_pairs(positions, 0.3)
    positions[:, 1, 3] = torch.finfo(positions.dtype).max
    assert_pairs(positions, 0.3)


@pytest.mark.cuda
@pytest.mark.vulkan
@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_particles_that_are_not_finite_have_no_neighbours_and_disturb_no_others(space, value):
    dim, period = SPACES[space]
    positions = uniform(0, BATCH, dim, 60)
    positions[0, 0, 5], positions[1, dim - 1, 9], positions[2] = value, value, value
    neighbours = Neighbours(dim, 60, 0.4, period)
    found = neighbours.pairs(positions)
    finite = positions.isfinite().all(1)
    expected = by_brute_force(positions.nan_to_num(0.0, 0.0, 0.0), 0.4, period)
    kept = finite[expected[:, 0], expected[:, 1]] & finite[expected[:, 0], expected[:, 2]]
    assert len(found) > 0
    assert torch.equal(found, expected[kept])


@pytest.mark.float64
@pytest.mark.parametrize("dim", [2, 3])
@pytest.mark.parametrize("periodic", [False, True])
def test_cost_is_linear_in_the_number_of_particles(dim, periodic):
    costs = []
    for particles in (1000, 8000, 64000):
        # Two particles for each radius^dim.
        length = (particles / 2) ** (1 / dim)
        positions = uniform(0, 1, dim, particles, low=0, high=length)
        costs.append(Neighbours(dim, particles, 1.0, length if periodic else None).candidates(positions) / particles)
    # Candidates of each particle: as many as fill 3^dim cells, which are up to 1 / 7 too wide, and what shares them.
    assert max(costs) < 2 * 3**dim * (8 / 7) ** dim + 3**dim / 2
    assert costs[2] < 1.1 * costs[1]


@pytest.mark.float64
def test_samples_do_not_mix_and_the_order_is_stable():
    positions = uniform(0, BATCH, 2, 50)
    neighbours = Neighbours(2, 50, 0.3)
    together = neighbours.pairs(positions)
    for sample in range(BATCH):
        alone = neighbours.pairs(positions[sample : sample + 1])
        assert torch.equal(together[together[:, 0] == sample, 1:], alone[:, 1:])
    cells = neighbours.cells(BATCH)
    cells.build(torch.zeros_like(positions))
    assert torch.equal(cells.order.long(), torch.arange(50, device=positions.device).expand(BATCH, 50))


@pytest.mark.float64
def test_positions_may_be_rows_of_a_state():
    state = uniform(0, BATCH, 4, 60)
    cells = Neighbours(2, 50, 0.3).cells(BATCH)
    cells.build(state[:, :2, 10:])
    out = torch.zeros(BATCH, 2, 50, **tensor_options())
    cells.sort(state[:, 2:, 10:], out)
    index = cells.order.long().unsqueeze(1).expand(-1, 2, -1)
    assert torch.equal(out, state[:, 2:, 10:].gather(2, index))
    assert (cells.cell.diff() >= 0).all()


@pytest.mark.float64
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ((4, 10, 1.0), "Expected neighbours in 2 or 3 dimensions, got 4."),
        ((2, 0, 1.0), "Expected neighbours among at least 1 particle, got 0."),
        ((2, 10, 0.0), "Expected a finite radius above 0, got 0.0."),
        ((2, 10, math.nan), "Expected a finite radius above 0, got nan."),
        ((2, 10, math.inf), "Expected a finite radius above 0, got inf."),
        ((2, 10, 1.0, -1.0), "Expected 2 finite periods above 0, or None for axes without end, got -1.0."),
        ((2, 10, 1.0, (1.0,)), "Expected 2 finite periods above 0, or None for axes without end, got (1.0,)."),
    ],
)
def test_impossible_settings_are_refused(settings, message):
    with pytest.raises(SettingError) as refusal:
        Neighbours(*settings)
    assert str(refusal.value) == message


@pytest.mark.float64
def test_positions_of_another_shape_are_refused():
    with pytest.raises(engine.ShapeError, match=r"Expected positions of shape \[3, 2, 10\], got \[3, 2, 11\]"):
        Neighbours(2, 10, 1.0).pairs(uniform(0, BATCH, 2, 11))


@pytest.mark.parametrize("space", SPACES)
def test_counting_and_torch_sort_alike(space):
    dim, period = SPACES[space]
    positions = uniform(0, BATCH, dim, 200)
    positions[0, 0, :3] = math.nan
    cells = Neighbours(dim, 200, 0.2, period).cells(BATCH)
    cells.build(positions)
    arrays = cells.order, cells.cell, cells.starts, cells._indices
    counted = [array.clone() for array in arrays]
    cells._order_by(cells._keys)()
    assert all(torch.equal(array, before) for array, before in zip(arrays, counted, strict=True))
