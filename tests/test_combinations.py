"""Combinations of two gradients against their formulas in float64, at every size, and each member by itself."""

import math

import pytest
import torch
from conftest import relative_error, tensor_options, uniform

import engine
from engine import FULL, PHYSICS_ONLY, SettingError
from training.combinations import (
    Bisect,
    BisectSmaller,
    BisectUnit,
    ConflictFree,
    MaskRandom,
    ProjectConflicts,
    Unit,
    WhereSignsAgree,
)
from training.estimators import Backpropagation, SignAgreement
from training.gradients import gradient_named, text_of

R, M = Backpropagation(FULL), Backpropagation(PHYSICS_ONLY)
C = SignAgreement(M, R)


def unit(vector):
    return vector / vector.norm()


def conflict_free(a, b):
    along = unit(unit(a) + unit(b))
    return (a @ along + b @ along) * along


def without_conflict(a, b):
    overlap = min(float(a @ b), 0.0)
    return a - overlap * b / (b @ b) + b - overlap * a / (a @ a)


FORMULAS = {
    "unit(M)": (Unit(M), lambda a, b: unit(a)),
    "bisect(M, R)": (Bisect(M, R), lambda a, b: a + b * a.norm() / b.norm()),
    "bisect-smaller(M, R)": (BisectSmaller(M, R), lambda a, b: (unit(a) + unit(b)) * min(a.norm(), b.norm())),
    "bisect-unit(M, R)": (BisectUnit(M, R), lambda a, b: unit(a) + unit(b)),
    "config(M, R)": (ConflictFree(M, R), conflict_free),
    "pcgrad(M, R)": (ProjectConflicts(M, R), without_conflict),
    "where-agree(M, R, R)": (WhereSignsAgree(M, R, R), lambda a, b: torch.where(a.sign() == b.sign(), b, 0.0)),
}


def found(estimator, one, other):
    return estimator.combine({PHYSICS_ONLY: one, FULL: other})


@pytest.mark.parametrize("text", FORMULAS)
def test_combinations_equal_their_formulas_and_have_names(text):
    estimator, formula = FORMULAS[text]
    one, other = uniform(0, 5, 40), 1e3 * uniform(1, 5, 40)
    other[4] = -other[4] * torch.sign(one[4] @ other[4])  # at least one pair in conflict
    expected = torch.stack([formula(a, b) for a, b in zip(one.double(), other.double(), strict=True)])
    assert relative_error(found(estimator, one, other), expected) < (1e-13 if one.dtype == torch.float64 else 1e-5)
    assert gradient_named(text).estimator == estimator
    assert text_of(estimator) == text


@pytest.mark.parametrize("text", FORMULAS)
def test_a_member_depends_on_no_other_member(text):
    one, other = uniform(2, 4, 17), uniform(3, 4, 17)
    together = found(FORMULAS[text][0], one, other)
    for member in range(4):
        alone = found(FORMULAS[text][0], one[member : member + 1], other[member : member + 1])
        torch.testing.assert_close(alone[0], together[member])


@pytest.mark.parametrize("size", [1e-30, 1e30])
def test_directions_hold_for_gradients_whose_squares_leave_the_range(size):
    one, other = uniform(4, 3, 20) * size, uniform(5, 3, 20)
    expected = torch.nn.functional.normalize(one.double() / size, dim=1)
    torch.testing.assert_close(found(Unit(M), one, other).double(), expected, rtol=1e-5, atol=1e-6)
    bisected = found(Bisect(M, R), one, other).double() / size
    sides = [torch.cosine_similarity(bisected, rows) for rows in (one.double() / size, other.double())]
    torch.testing.assert_close(*sides, rtol=1e-4, atol=1e-5)


def unit_rows(rows):
    return torch.nn.functional.normalize(rows, dim=1)


@pytest.mark.float64
@pytest.mark.parametrize("estimator", [Bisect(M, R), BisectUnit(M, R), ConflictFree(M, R), ProjectConflicts(M, R)])
def test_a_part_that_is_zero_leaves_the_direction_of_the_other(estimator):
    one, nothing = uniform(6, 2, 9), torch.zeros(2, 9, **tensor_options())
    for pair in ((one, nothing), (nothing, one)):
        result = found(estimator, *pair)
        assert torch.isfinite(result).all()
        if estimator == Bisect(M, R) and pair[0] is nothing:
            assert torch.equal(result, nothing)  # at the size of M, which is 0
        else:
            torch.testing.assert_close(unit_rows(result), unit_rows(one))


@pytest.mark.float64
def test_neither_part_ascends_along_the_smaller_bisector_which_ends_where_one_is_zero():
    one, other = uniform(9, 50, 3), 10 ** uniform(10, 50, 1, low=-3, high=3) * uniform(11, 50, 3)
    result = found(BisectSmaller(M, R), one, other)
    for part in (one, other):
        assert ((result * part).sum(1) >= -1e-12 * part.norm(dim=1) * result.norm(dim=1)).all()
    for pair in ((one, torch.zeros_like(one)), (torch.zeros_like(one), other)):
        assert torch.equal(found(BisectSmaller(M, R), *pair), torch.zeros_like(one))


@pytest.mark.float64
@pytest.mark.parametrize("text", FORMULAS)
def test_what_is_not_finite_stays_so(text):
    one, other = uniform(7, 2, 9), uniform(8, 2, 9)
    one[0, 3] = math.nan
    other[1, 2] = math.inf
    other[0, 3] = 1.0
    result = found(FORMULAS[text][0], one, other)
    if text == "where-agree(M, R, R)":  # a NaN agrees with nothing
        assert result[0, 3] == 0
    else:
        assert not torch.isfinite(result[0]).all()


def test_a_random_mask_has_the_density_of_its_model_and_draws_again_for_every_gradient():
    one, other = uniform(9, 3, 20_000), uniform(10, 3, 20_000)
    estimator = MaskRandom(M, C)
    density = (found(C, one, other) != 0).double().mean(1)
    kept = found(estimator, one, other)
    share = (kept != 0).double().mean(1)
    assert (share - density).abs().max() < 5 * math.sqrt(0.25 / 20_000)
    assert torch.equal(kept[kept != 0], one[kept != 0])
    assert torch.equal(kept, found(estimator, one, other))
    agreeing = found(C, one, other) != 0
    both = ((kept != 0) & agreeing).double().mean(1)
    assert (both - density**2).abs().max() < 5 * math.sqrt(0.25 / 20_000)
    for changed in (found(estimator, one * 1.0001, other), found(MaskRandom(M, C, seed=1), one, other)):
        assert ((changed != 0) != (kept != 0)).double().mean() > 0.3
    alone = found(estimator, one[1:2], other[1:2])
    assert torch.equal(alone[0], kept[1])
    mean = found(MaskRandom(M, C, divided=1), one, other).double()
    torch.testing.assert_close(mean[mean != 0], (one.double() / density[:, None])[mean != 0], rtol=1e-6, atol=0.0)


@pytest.mark.float64
def test_random_masks_are_read_and_refused_as_text():
    assert gradient_named("mask-random(M, C)").text == "mask-random(M, C, 0, 0)"
    assert gradient_named("mask-random(M, C, divided=1)").estimator == MaskRandom(M, C, 1)
    with pytest.raises(
        SettingError, match=r"Expected a random mask divided by its density \(1\) or not \(0\), got 2\."
    ):
        gradient_named("mask-random(M, C, 2)")
    for seed in (1.5, "1", -1):
        with pytest.raises(SettingError, match=r"^Expected a seed of a random mask of at least 0, got .*\.$"):
            MaskRandom(M, C, 0, seed)  # type: ignore[arg-type]


@pytest.mark.float64
def test_sweeps_that_two_parts_share_are_made_once():
    assert set(gradient_named("where-agree(M, R, bisect(M, R))").estimator.rules) == {FULL, PHYSICS_ONLY}
    assert engine.current().precision == "float64"
