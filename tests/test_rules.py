"""Adjoint rules: what each one means; test_rule_contract.py has what all of them promise."""

import math
import struct

import pytest
import torch
from conftest import uniform

import engine
from engine import (
    FULL,
    ONE_STEP,
    PHYSICS_ONLY,
    POLICY_ONLY,
    Balance,
    ClipNorm,
    ClipValue,
    Decay,
    DecayRate,
    EveryStep,
    KeepSize,
    PathRule,
    RandomCut,
    StepAgreement,
    Truncate,
)
from engine.draws import keys_of
from engine.draws import uniform as drawn_by
from engine.rules import Place, placed

RULES = {
    "full": FULL,
    "physics only": PHYSICS_ONLY,
    "one step": ONE_STEP,
    "policy only": POLICY_ONLY,
    "weighted": PathRule(0.5, -2.0),
    "clipped": ClipNorm(limit=0.1),
    "decayed": Decay(PHYSICS_ONLY, factor=0.9),
    "truncated, cut": Truncate(window=3),
    "truncated, open": Truncate(POLICY_ONLY, window=4),
    "signs agreeing": StepAgreement(),
    "size kept": KeepSize(),
    "components clipped": ClipValue(POLICY_ONLY, limit=0.1),
    "balanced": Balance(ratio=0.5),
    "randomly cut": placed(RandomCut(probability=0.5), Place(None, lambda: torch.arange(1))),
    "decayed by time": placed(ClipNorm(DecayRate(PHYSICS_ONLY, rate=3.0)), Place(0.1, lambda: torch.zeros(0))),
    "all together": ClipNorm(Decay(Truncate(FULL, window=4), factor=0.8), limit=0.5),
}
T = 6
"""The step at which rules are called: a multiple of 3, not of 4."""


@pytest.fixture(params=RULES)
def rule(request):
    return RULES[request.param]


def test_the_named_rules_open_the_paths_of_the_paper(terms):
    direct, physics, policy = terms
    assert torch.equal(FULL(*terms, t=T), direct + physics + policy)
    assert torch.equal(PHYSICS_ONLY(*terms, t=T), direct + physics)
    assert torch.equal(ONE_STEP(*terms, t=T), direct)
    assert torch.equal(POLICY_ONLY(*terms, t=T), direct + policy)


@pytest.mark.parametrize("weights", [(1.0, 1.0), (0.5, -2.0), (0.0, 3.0)])
def test_a_path_rule_is_its_weighted_sum(weights, terms):
    direct, physics, policy = terms
    rule = PathRule(*weights)
    assert rule.path_weights == weights
    torch.testing.assert_close(rule(*terms, t=T), direct + weights[0] * physics + weights[1] * policy)


def test_clipping_keeps_direction_and_limits_each_samples_norm(terms):
    terms = [term * torch.linspace(0, 3, 7).to(term).view(-1, *[1] * (term.dim() - 1)) for term in terms]
    free, clipped = FULL(*terms, t=T).flatten(1), ClipNorm(limit=2.0)(*terms, t=T).flatten(1)
    norms = free.norm(dim=1)
    assert (norms > 2.0).any()
    assert (norms < 2.0).any()
    torch.testing.assert_close(clipped.norm(dim=1), norms.clamp_max(2.0))
    assert torch.equal(clipped[norms <= 2.0], free[norms <= 2.0])
    torch.testing.assert_close(clipped * norms[:, None], free * clipped.norm(dim=1, keepdim=True))


@pytest.mark.parametrize("limit", [1e30, math.inf])
def test_a_huge_clip_changes_nothing(limit, terms):
    assert torch.equal(ClipNorm(limit=limit)(*terms, t=T), FULL(*terms, t=T))


@pytest.mark.parametrize("size", [1e-30, 1e30])
def test_clipping_limits_adjoints_whose_squares_overflow(size):
    """Squares of these are beyond float32, where a norm taken plainly is 0 or infinite."""
    explosion = uniform(0, 7, 4) * size
    clipped = ClipNorm(limit=1.0)(explosion, None, None, t=T)
    expected = explosion if size < 1 else torch.nn.functional.normalize(uniform(0, 7, 4), dim=1)
    torch.testing.assert_close(clipped, expected)


def test_clipping_leaves_what_is_not_finite_to_be_found():
    broken = torch.stack([uniform(0, 4), uniform(1, 4)])
    broken[0, 1], broken[1, 2] = math.inf, math.nan
    clipped = ClipNorm(ONE_STEP, limit=0.1)(broken, None, None, t=T)
    assert clipped[0, 1].isinf()
    assert clipped[1, 2].isnan()


def test_decay_shrinks_what_comes_from_later_steps_and_not_the_direct_term(terms):
    direct, physics, policy = terms
    torch.testing.assert_close(Decay(factor=0.7)(*terms, t=T), direct + 0.7 * (physics + policy))
    torch.testing.assert_close(Decay(POLICY_ONLY, factor=0.7)(*terms, t=T), direct + 0.7 * policy)


def test_decay_by_one_is_the_rule_itself_and_by_zero_is_one_step(rule, terms):
    torch.testing.assert_close(Decay(rule, factor=1.0)(*terms, t=T), rule(*terms, t=T))
    torch.testing.assert_close(Decay(rule, factor=0.0)(*terms, t=T), ONE_STEP(*terms, t=T))


def test_truncation_cuts_at_multiples_of_its_window_only(terms):
    rule = Truncate(PHYSICS_ONLY, window=4)
    for t in range(12):
        expected = ONE_STEP if t % 4 == 0 else PHYSICS_ONLY
        assert torch.equal(rule(*terms, t=t), expected(*terms, t=t))


def test_truncation_to_one_step_is_one_step(terms):
    for t in range(3):
        assert torch.equal(Truncate(window=1)(*terms, t=t), ONE_STEP(*terms, t=t))


def test_steps_agree_where_both_paths_have_one_sign(terms):
    direct, physics, policy = terms
    found, expected = StepAgreement()(*terms, t=T), direct + physics
    for place in torch.nonzero(physics * policy > 0).tolist():
        expected[tuple(place)] += policy[tuple(place)]
    assert torch.equal(found, expected)
    assert 0 < int((found != direct + physics).sum()) < physics.numel() / 2 + 12


@pytest.mark.parametrize("size", [1e-30, 1.0, 1e30])
def test_a_size_is_kept_along_the_full_adjoint(size, terms):
    direct, physics, policy = (size * term.flatten(1) for term in terms)
    found = KeepSize()(direct, physics, policy, t=T).double() / size
    short, whole = ((term / size).double() for term in (direct + physics, direct + physics + policy))
    expected = whole[1:] * (short[1:].square().sum(1) / whole[1:].square().sum(1)).sqrt()[:, None]
    torch.testing.assert_close(found[1:], expected, rtol=1e-5, atol=1e-6)
    assert not found[0].any()
    assert not KeepSize()(direct, -direct, torch.zeros_like(direct), t=T).any()


def test_components_are_clipped_each_by_itself(terms):
    found, free = ClipValue(limit=0.375)(*terms, t=T), FULL(*terms, t=T)
    assert found.flatten().tolist() == [max(-0.375, min(0.375, value)) for value in free.flatten().tolist()]


@pytest.mark.parametrize("size", [1e-30, 1.0, 1e30])
def test_the_policy_path_is_balanced_against_the_physics_path(size, terms):
    direct, physics, policy = (size * term.flatten(1) for term in terms)
    policy = policy * torch.linspace(0.0, 1.5, 7).to(policy).view(-1, 1)
    found = (Balance(ratio=0.8)(direct, physics, policy, t=T) - direct - physics).double() / size
    factors = 0.8 * (physics / size).norm(dim=1) / (policy / size).norm(dim=1).clamp_min(1e-9)
    assert 1 < int((factors < 1).sum()) < 6  # of samples 1 to 6; sample 0 is zero
    expected = (policy / size).double() * factors.double().clamp_max(1.0).view(-1, 1)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    assert torch.equal(Balance(ratio=0.0)(*terms, t=T), PHYSICS_ONLY(*terms, t=T))


def mixed(value):
    """The last step of MurmurHash3 in Python integers."""
    value = (value ^ value >> 16) * 0x85EBCA6B % 2**32
    value = (value ^ value >> 13) * 0xC2B2AE35 % 2**32
    return value ^ value >> 16


KINDS = {"float32": "f", "float64": "d"}


def drawn(numbers, turn, t, seed):
    """A sample's draw from the bits of the numbers that it started from."""
    words = struct.iter_unpack("<I", struct.pack(f"<{len(numbers)}{KINDS[engine.current().precision]}", *numbers))
    found = sum(mixed(word ^ mixed(place)) for place, (word,) in enumerate(words, 1)) % 2**32
    for counter in (turn, t, seed):
        found = mixed((found ^ counter * 0x9E3779B9) % 2**32)
    return found / 2**32


@pytest.mark.parametrize("seed", [0, 1, 123_456_789_012])
def test_random_cuts_are_drawn_from_where_a_sample_started(seed, terms):
    direct, rest, starts, cut = terms[0], terms[1] + terms[2], uniform(9, 7, 4), 0
    rule = placed(RandomCut(probability=0.4, seed=seed), Place(None, lambda: keys_of(starts, 12)))
    found = rule(*terms, t=T)
    for index, row in enumerate(starts.tolist()):
        if drawn(row, 12, T, seed) < 0.4:
            cut += 1
            assert torch.equal(found[index], direct[index])
        else:
            torch.testing.assert_close(found[index], direct[index] + rest[index] / 0.6)
    assert 0 < cut < 7


def test_draws_are_spread_evenly_and_depend_on_every_bit_and_counter():
    rows = uniform(5, 40_000, 3)
    keys, turned = keys_of(rows, 1), rows.clone()
    turned[:, 1] = torch.nextafter(turned[:, 1], torch.full_like(turned[:, 1], 2.0))
    draws = [drawn_by(keys, 1, 0), drawn_by(keys, 2, 0), drawn_by(keys, 1, 1)]
    draws += [drawn_by(keys_of(other, turn), 1, 0) for other, turn in ((rows, 2), (turned, 1), (rows.flip(1), 1))]
    for found in draws:
        counts = torch.histc(found.double(), 16, 0.0, 1.0)
        assert ((counts - 2500).square() / 2500).sum() < 38  # χ² of 15 degrees of freedom, p = 0.001
    correlations = torch.corrcoef(torch.stack(draws).double()) - torch.eye(6)
    assert correlations.abs().max() < 4 / math.sqrt(40_000)


def test_a_rule_that_depends_on_its_place_says_so_elsewhere(terms):
    for rule in (RandomCut(), DecayRate(), ClipNorm(DecayRate())):
        with pytest.raises(engine.SettingError, match="in a sweep, which places it, got it called by itself"):
            rule(*terms, t=T)
    with pytest.raises(engine.SettingError, match="Expected a system with a time step dt for a decay by time"):
        placed(DecayRate(), Place(None, lambda: torch.zeros(0)))


def test_a_decay_by_time_is_one_by_steps_of_that_time():
    found = placed(ClipNorm(DecayRate(PHYSICS_ONLY, rate=3.0)), Place(0.1, lambda: torch.zeros(0)))
    assert found == ClipNorm(Decay(PHYSICS_ONLY, math.exp(-0.3)))


def test_rules_leave_what_is_not_finite_to_be_found(terms):
    for rule in (StepAgreement(), KeepSize(), ClipValue(), Balance()):
        for index in range(3):
            broken = [term.clone() for term in terms]
            broken[index][2].fill_(math.nan if index else math.inf)
            found = rule(*broken, t=T)
            if index < 2 or rule != StepAgreement():
                assert not found[2].isfinite().any()
            assert found[[0, 1, 3, 4, 5, 6]].isfinite().all()


def test_wrappers_compose_from_the_inside_out(terms):
    direct, physics, policy = terms
    decayed = direct + 0.5 * (2.0 * physics - policy)
    rule = ClipNorm(Decay(PathRule(2.0, -1.0), factor=0.5), limit=0.3)
    expected = decayed / (decayed.flatten(1).norm(dim=1) / 0.3).clamp_min(1).view(-1, *[1] * (direct.dim() - 1))
    torch.testing.assert_close(rule(*terms, t=T), expected)


def test_a_rule_for_every_step_stands_outside_others():
    with pytest.raises(engine.AdjointError) as error:
        ClipNorm(EveryStep(Decay()))
    assert str(error.value) == (
        "Expected EveryStep around the other rules, and once, got ClipNorm(EveryStep(...)); write "
        "EveryStep(ClipNorm(...))."
    )
    with pytest.raises(
        engine.AdjointError, match=r"got EveryStep\(EveryStep\(\.\.\.\)\); write EveryStep\(\.\.\.\)\.$"
    ):
        EveryStep(EveryStep(Decay()))


def test_wrappers_need_the_paths_of_the_rule_they_wrap():
    for wrap in (ClipNorm, Decay, Truncate):
        assert (wrap(PHYSICS_ONLY).uses_physics, wrap(PHYSICS_ONLY).uses_policy) == (True, False)
        assert (wrap(POLICY_ONLY).uses_physics, wrap(POLICY_ONLY).uses_policy) == (False, True)
        assert not hasattr(wrap(FULL), "path_weights")


@pytest.mark.float64
@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: ClipNorm(limit=0.0), "Expected ClipNorm with a limit above 0, got 0.0."),
        (lambda: ClipNorm(limit=math.nan), "Expected ClipNorm with a limit above 0, got nan."),
        (lambda: Decay(factor=1.1), r"Expected Decay with a factor in [0, 1], got 1.1."),
        (lambda: Decay(factor=-0.1), r"Expected Decay with a factor in [0, 1], got -0.1."),
        (lambda: ClipValue(limit=0.0), "Expected ClipValue with a finite limit above 0, got 0.0."),
        (lambda: Balance(ratio=-1.0), "Expected Balance with a finite ratio of at least 0, got -1.0."),
        (lambda: DecayRate(rate=-1.0), "Expected DecayRate with a finite rate of at least 0, got -1.0."),
        (lambda: RandomCut(probability=1.0), "Expected RandomCut with a probability in [0, 1), got 1.0."),
        (lambda: RandomCut(seed=-1), "Expected RandomCut with a seed of at least 0, got -1."),
        (lambda: Truncate(window=0), "Expected Truncate with a window of at least 1 step and below 2³¹, got 0."),
    ],
)
def test_settings_out_of_range_are_refused(build, message):
    with pytest.raises(engine.SettingError) as error:
        build()
    assert str(error.value) == message
