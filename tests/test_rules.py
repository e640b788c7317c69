"""Adjoint rules: one contract for all of them, and what each one means."""

import math

import pytest
import torch
from conftest import uniform

import engine
from engine import (
    FULL,
    ONE_STEP,
    PHYSICS_ONLY,
    POLICY_ONLY,
    ClipNorm,
    Decay,
    KeepSize,
    PathRule,
    StepAgreement,
    Truncate,
)

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
    "all together": ClipNorm(Decay(Truncate(FULL, window=4), factor=0.8), limit=0.5),
}
T = 6
"""The step at which rules are called: a multiple of 3, not of 4."""


@pytest.fixture(params=RULES)
def rule(request):
    return RULES[request.param]


@pytest.fixture(params=[(4,), (2, 3)], ids=["vector", "matrix"])
def terms(request):
    """The terms ∂ℓ_t/∂x, Aᵀλ and Kᵀμ of 7 samples; the first sample's are zero."""
    terms = tuple(uniform(seed, 7, *request.param) for seed in range(3))
    for term in terms:
        term[0] = 0.0
    return terms


def used(rule, terms):
    """The terms as a sweep hands them over: None for those that the rule says it does not use."""
    direct, physics, policy = terms
    return direct, physics if rule.uses_physics else None, policy if rule.uses_policy else None


def test_a_rule_is_an_adjoint_rule_and_can_be_a_key(rule):
    assert isinstance(rule, engine.AdjointRule)
    assert {rule: 1}[rule] == 1


def test_a_rule_returns_a_new_tensor_and_leaves_its_inputs_alone(rule, terms):
    given = [term.clone() for term in terms]
    adjoint = rule(*used(rule, terms), t=T)
    assert (adjoint.shape, adjoint.dtype) == (terms[0].shape, terms[0].dtype)
    assert adjoint.isfinite().all()
    adjoint.add_(1.0)
    for term, before in zip(terms, given, strict=True):
        assert torch.equal(term, before)


def test_a_rule_ignores_what_it_says_it_does_not_use(rule, terms):
    assert torch.equal(rule(*terms, t=T), rule(*used(rule, terms), t=T))


def test_a_rule_acts_on_each_sample_by_itself(rule, terms):
    together = rule(*terms, t=T)
    order = torch.tensor([3, 0, 6, 1, 5, 2, 4])
    assert torch.equal(rule(*(term[order] for term in terms), t=T), together[order])
    for sample in range(len(together)):
        alone = rule(*(term[sample : sample + 1] for term in terms), t=T)
        torch.testing.assert_close(alone[0], together[sample])


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


def test_rules_leave_what_is_not_finite_to_be_found(terms):
    for rule in (StepAgreement(), KeepSize()):
        for index in range(3):
            broken = [term.clone() for term in terms]
            broken[index][2].fill_(math.nan if index else math.inf)
            found = rule(*broken, t=T)
            if index < 2 or rule == KeepSize():
                assert not found[2].isfinite().any()
            assert found[[0, 1, 3, 4, 5, 6]].isfinite().all()


def test_wrappers_compose_from_the_inside_out(terms):
    direct, physics, policy = terms
    decayed = direct + 0.5 * (2.0 * physics - policy)
    rule = ClipNorm(Decay(PathRule(2.0, -1.0), factor=0.5), limit=0.3)
    expected = decayed / (decayed.flatten(1).norm(dim=1) / 0.3).clamp_min(1).view(-1, *[1] * (direct.dim() - 1))
    torch.testing.assert_close(rule(*terms, t=T), expected)


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
        (lambda: Truncate(window=0), "Expected Truncate with a window of at least 1 step, got 0."),
    ],
)
def test_settings_out_of_range_are_refused(build, message):
    with pytest.raises(engine.SettingError) as error:
        build()
    assert str(error.value) == message
