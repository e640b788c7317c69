"""Norms of exploding and dying gradients, in both precisions whatever the runtime's, against exact ones."""

import math

import numpy as np
import pytest
import torch

from benchmarks.studies.diagnostics import _exploded, _scaled
from engine import ClipNorm
from engine.norms import limited, norm, norm_of_array, wide_norm
from engine.systems import NBody
from training import Clipping
from training.viewing.drawings import drawing_of
from training.viewing.profile import Profile

pytestmark = pytest.mark.float64

SIZES = {
    torch.float32: (1e-37, 1e-30, 1e-22, 1e-19, 1e-3, 1.0, 1e10, 1e19, 3e19, 1e25, 1e38, 3e38),
    torch.float64: (1e-307, 1e-200, 1e-160, 1e-30, 1.0, 1e100, 1e160, 1e200, 1e300, 1e308),
}
CASES = [(dtype, size) for dtype, sizes in SIZES.items() for size in sizes]
BROKEN = ([math.inf, 1.0, 0.0], [1.0, -math.inf, 0.5], [math.nan, 2.0, 1e30], [math.inf, math.nan, 0.0])


def rows(dtype, size):
    """Rows of numbers up to `size`, and their exact norms and unit vectors as float64 over `size`."""
    draw = torch.rand(5, 40, generator=torch.Generator().manual_seed(0), dtype=torch.float64) - 0.5
    draw[1, 7:] = 0.0
    draw[2] *= torch.logspace(0, -30, 40, dtype=torch.float64)
    given = (2.0 * draw * size).to(dtype)
    exact = given.double() / size
    lengths = torch.tensor([math.sqrt(math.fsum(v * v for v in row.tolist())) for row in exact], dtype=torch.float64)
    return given, lengths, exact / lengths.unsqueeze(1)


@pytest.mark.parametrize(("dtype", "size"), CASES)
def test_norms_are_right_at_every_size(dtype, size):
    given, lengths, _ = rows(dtype, size)
    eps = torch.finfo(dtype).eps
    for found in (
        norm(given),
        norm(given.T, 0),
        norm(given, keepdim=True)[:, 0],
        torch.tensor(norm_of_array(given.numpy())),
    ):
        found = found.double()
        there = lengths <= torch.finfo(dtype).max / size
        torch.testing.assert_close(found[there] / size, lengths[there], rtol=20 * eps, atol=0.0)
        assert found[~there].isinf().all()
    wide = wide_norm(given)
    assert wide.dtype == torch.float64
    torch.testing.assert_close((wide / size)[wide.isfinite()], lengths[wide.isfinite()], rtol=20 * eps, atol=0.0)
    assert wide.isfinite().all() or (dtype == torch.float64 and bool(wide[there].isfinite().all()))


@pytest.mark.parametrize(("dtype", "size"), CASES)
@pytest.mark.parametrize("limit", [1e-35, 1.0, 1e30])
def test_clipping_gives_the_limit_along_the_gradient_at_every_size(dtype, size, limit):
    given, lengths, unit = rows(dtype, size)
    longer = lengths > limit / size
    eps = torch.finfo(dtype).eps
    zeros = torch.zeros_like(given)
    rule = ClipNorm(limit=limit)(given.view(5, 8, 5), zeros.view(5, 8, 5), zeros.view(5, 8, 5), 0).view(5, 40)
    for found in (limited(given, limit), Clipping("norm", limit)(given), rule):
        assert found.dtype == dtype
        assert torch.equal(found[~longer], given[~longer])
        # What is below the smallest number of full precision may be 0.
        atol = torch.finfo(dtype).tiny / limit
        torch.testing.assert_close(found[longer].double() / limit, unit[longer], rtol=20 * eps, atol=atol)


@pytest.mark.parametrize("dtype", SIZES)
def test_where_a_plain_norm_is_right_these_have_its_bits(dtype):
    given = rows(dtype, 100.0)[0]
    assert torch.equal(norm(given), given.norm(dim=1))
    plain = given * (1.0 / given.norm(dim=1, keepdim=True)).clamp_max(1.0)
    assert torch.equal(limited(given, 1.0), plain)
    # A companion that overflows sends all rows the long way, which changes no bit of the others.
    wild = torch.cat([given, torch.full_like(given[:1], 0.9 * torch.finfo(dtype).max)])
    assert torch.equal(limited(wild, 1.0)[:-1], plain)


@pytest.mark.parametrize("dtype", SIZES)
def test_rows_of_zeros_stay_zeros(dtype):
    zeros = torch.zeros(3, 4, dtype=dtype)
    assert torch.equal(norm(zeros), torch.zeros(3, dtype=dtype))
    assert torch.equal(limited(zeros, 1.0), zeros)
    assert torch.equal(limited(zeros, 1e-40), zeros)


@pytest.mark.parametrize("dtype", SIZES)
@pytest.mark.parametrize("row", BROKEN)
def test_what_is_not_finite_is_told_and_left_as_it_is(dtype, row):
    given = torch.tensor([row, [3.0, 4.0, 0.0]], dtype=dtype)
    found = norm(given)
    assert found[1] == 5.0
    assert found[0].isnan() if any(map(math.isnan, row)) else found[0] == math.inf
    for kind in ("none", "value", "norm"):
        clipped = Clipping(kind)(given)
        torch.testing.assert_close(clipped[0], given[0], equal_nan=True, rtol=0.0, atol=0.0)
        assert clipped[1].isfinite().all()
    ruled = ClipNorm()(given, torch.zeros_like(given), torch.zeros_like(given), 0)
    assert not ruled[0].isfinite().all()
    torch.testing.assert_close(ruled[1], given[1] / 5.0)


def test_diagnostics_compare_gradients_of_any_size():
    one, other = torch.tensor([[3.0, 4.0]], dtype=torch.float64), torch.tensor([[4.0, 3.0]], dtype=torch.float64)
    for size in (1e-200, 1.0, 1e200, 1e307):
        assert float((_scaled(size * one) * _scaled(other / size)).sum()) == pytest.approx(0.96)
    assert _exploded(torch.tensor([1e308, 1e305, 1e300], dtype=torch.float64)) == 1
    assert _exploded(torch.tensor([1e-200, 1e-250, 1e-250], dtype=torch.float64)) == 0
    assert _exploded(torch.ones(3, dtype=torch.float64)) is None


def test_pictures_know_adjoints_of_any_size():
    drawing = drawing_of(NBody())
    for size in (1e-200, 1.0, 1e200):
        adjoints = size * np.ones((4, *NBody().state_shape))
        profile = Profile({"R": adjoints}, drawing)
        assert profile.norms["R"] == pytest.approx(size * math.sqrt(adjoints[0].size), rel=1e-12)
        assert drawing.sizes(adjoints) == pytest.approx(2.0 * size, rel=1e-12)
