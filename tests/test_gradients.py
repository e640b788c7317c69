"""Gradients as text: parsing and printing are inverse, names are registered once, nonsense ends in a sentence."""

from dataclasses import dataclass

import pytest
import torch

from engine import FULL, PHYSICS_ONLY, AdjointRule, ClipNorm, Decay, PathRule, SettingError, Truncate
from engine.registry import registering
from training import gradients
from training.estimators import Backpropagation, GradientEstimator, SignAgreement
from training.gradients import GRADIENTS, gradient_named, rank_of, register_gradient, text_of
from training.grammar import Call, parse

pytestmark = pytest.mark.float64

R, M = Backpropagation(FULL), Backpropagation(PHYSICS_ONLY)
MEANT = {
    "R": ("R", R),
    " full ": ("R", R),
    "c": ("C", SignAgreement(M, R)),
    "agree(M, R)": ("C", SignAgreement(M, R)),
    "agree(R,M)": ("agree(R, M)", SignAgreement(R, M)),
    "clip-norm(R, 1)": ("clip-norm(R, 1)", Backpropagation(ClipNorm(FULL, 1.0))),
    "clip-norm(limit=2e-3, of=M)": ("clip-norm(M, 0.002)", Backpropagation(ClipNorm(PHYSICS_ONLY, 0.002))),
    "Decay(full,.5)": ("decay(R, 0.5)", Backpropagation(Decay(FULL, 0.5))),
    "truncate(R, 20)": ("truncate(R, 20)", Backpropagation(Truncate(FULL, 20))),
    "truncate": ("truncate(R, 10)", Backpropagation(Truncate())),
    "paths(1, 0.5)": ("paths(1, 0.5)", Backpropagation(PathRule(1.0, 0.5))),
    "paths(1, 0)": ("M", M),
    "paths(-1e30, +3)": ("paths(-1e+30, 3)", Backpropagation(PathRule(-1e30, 3.0))),
    "agree(clip-norm(decay(M, .9), 2), paths(0.1, 0.2))": (
        "agree(clip-norm(decay(M, 0.9), 2), paths(0.1, 0.2))",
        SignAgreement(Backpropagation(ClipNorm(Decay(PHYSICS_ONLY, 0.9), 2.0)), Backpropagation(PathRule(0.1, 0.2))),
    ),
    "agree(C, S)": ("agree(C, S)", SignAgreement(SignAgreement(M, R), Backpropagation(PathRule(0.0, 0.0)))),
}


@pytest.mark.parametrize("text", MEANT)
def test_a_text_means_its_estimator_and_has_one_canonical_form(text):
    canonical, estimator = MEANT[text]
    found = gradient_named(text)
    assert found.text == canonical
    assert found.estimator == estimator
    assert gradient_named(canonical) == found
    assert text_of(estimator) == canonical


@pytest.mark.parametrize(("text", "rule"), [("R", FULL), ("clip-norm(M, 3)", ClipNorm(PHYSICS_ONLY, 3.0))])
def test_a_rule_is_printed_as_the_gradient_of_one_sweep_with_it(text, rule):
    assert text_of(rule) == text_of(Backpropagation(rule)) == text


NONSENSE = {
    "": "a name",
    "X": "among R, M, S, N, C",
    "agre(M, R)": "(perhaps agree)",
    "R M": "goes on with 'M'",
    "R, M": "separate gradients by spaces",
    "((": "a name",
    "R)": "goes on with ')'",
    "clip-norm(R, 1": "',' or ')'",
    "clip-norm(R 1)": "',' or ')'",
    "clip-norm(, 1)": "a name",
    "clip-norm(R, 1, 2)": "3 arguments",
    "clip-norm(R, limit=1, 2)": "3 arguments",
    "clip-norm(limit=1, limit=2)": "limit twice",
    "clip-norm(R, size=1)": "an argument size",
    "clip-norm(C, 1)": "which combines whole sweeps",
    "clip-norm(1, R)": "a rule as of in clip-norm(of, limit), got 1",
    "clip-norm(R, nan)": "a number as limit in clip-norm(of, limit), got nan",
    "clip-norm(R, -inf)": "a number as limit in clip-norm(of, limit), got -inf",
    "inf": "a name in the gradient",
    "clip-norm(R, NaN)": "a number as limit in clip-norm(of, limit), got nan",
    "clip-norm(R, Inf)": "a number as limit in clip-norm(of, limit), got inf",
    "information(R)": "a gradient among",
    "clip-norm(R, 1e999)": "a number as limit",
    "clip-norm(R, -1)": "limit",
    "truncate(R, 2.5)": "a whole number as window",
    "agree(M)": "agree without reference",
    "agree(M, 1)": "a gradient as reference",
    "paths(R, 1)": "a number as physics_weight",
    "R(1)": "1 arguments",
    "__import__('os')": "a name",
    "R; import os": "goes on with",
    "λ": "a name",
    "clip-norm(" * 40 + "R" + ")" * 40: "nested at most",
    "agree(" * 90: "at most 500 characters",
}


@pytest.mark.parametrize("text", NONSENSE)
def test_nonsense_is_refused_in_one_sentence(text):
    with pytest.raises(SettingError) as error:
        gradient_named(text)
    message = str(error.value)
    assert message.startswith("Expected ")
    assert message.endswith(".")
    assert "\n" not in message
    assert NONSENSE[text] in message


@pytest.mark.parametrize("text", [None, 3, ["R"], R])
def test_what_is_no_text_is_refused(text):
    with pytest.raises(SettingError, match="as text such as C"):
        gradient_named(text)


def test_the_grammar_itself_looks_nothing_up():
    inner = Call("g", ((None, 1.0), ("b_c", Call("h"))))
    assert parse(" f( g(1, b-c = h()), -.5e1 ) ") == Call("f", ((None, inner), (None, -5.0)))


@dataclass(frozen=True)
class Halved:
    """A rule of a user's."""

    of: AdjointRule
    times: int = 1

    @property
    def uses_physics(self) -> bool:
        return self.of.uses_physics

    @property
    def uses_policy(self) -> bool:
        return self.of.uses_policy

    def __call__(self, direct, physics, policy, t):
        return self.of(direct, physics, policy, t) / 2**self.times


@dataclass(frozen=True)
class Mean:
    """An estimator of a user's."""

    one: GradientEstimator
    weight: float

    @property
    def rules(self):
        return self.one.rules

    def combine(self, found):
        return self.weight * self.one.combine(found)


@pytest.fixture
def registered():
    """A user's rule, estimator, constant and function."""
    with registering("test"):
        register_gradient("halved", Halved, "half of it")
        register_gradient("mean", Mean, "some of it")
        register_gradient("tenth", Mean(R, 0.1), "a tenth of R", aliases=["zehntel"])

        def twice(of: AdjointRule, limit: float) -> AdjointRule:
            return Halved(ClipNorm(of, limit), 2)

        register_gradient("twice", twice, "a function")
    yield
    GRADIENTS.withdraw("test")


@pytest.mark.usefixtures("registered")
def test_what_is_registered_joins_the_grammar():
    assert gradient_named("halved(M)").estimator == Backpropagation(Halved(PHYSICS_ONLY, 1))
    assert gradient_named("mean(halved(R, 2), .5)").text == "mean(halved(R, 2), 0.5)"
    assert gradient_named("Zehntel").text == gradient_named("mean(R, 0.1)").text == text_of(Mean(R, 0.1)) == "tenth"
    assert gradient_named("twice(M, 3)").text == "twice(M, 3)"
    assert gradient_named("twice(M, 3)").estimator == Backpropagation(Halved(ClipNorm(PHYSICS_ONLY, 3.0), 2))
    assert torch.equal(gradient_named("tenth").estimator.combine({FULL: torch.ones(2, 3)}), torch.full((2, 3), 0.1))
    assert GRADIENTS.origin("halved") == "test"
    assert rank_of("R") < rank_of("C") < rank_of("clip-norm(R, 1)") < rank_of("halved(R)") < rank_of("tenth")


@pytest.mark.usefixtures("registered")
@pytest.mark.parametrize(
    ("name", "make", "aliases", "message"),
    [
        ("R", FULL, (), "which evenflow has registered"),
        ("FULL", FULL, (), "which evenflow has registered"),
        ("new", FULL, ("combined",), "which evenflow has registered"),
        ("halved", Halved, (), "which test has registered"),
        ("a b", FULL, (), "letters, digits and hyphens"),
        ("2x", FULL, (), "letters, digits and hyphens"),
        (3, FULL, (), "letters, digits and hyphens"),
        ("new", "R", (), "or what makes one, got str"),
        ("new", lambda a: FULL, (), "annotated as AdjointRule"),
        ("new", lambda *rules: FULL, (), "annotated as AdjointRule"),
        ("new", lambda: "R", (), "Expected gradient 'new' to make a rule or an estimator, got str"),
    ],
)
def test_what_cannot_be_registered_is_refused(name, make, aliases, message):
    before = list(GRADIENTS)
    with pytest.raises(SettingError, match=message):
        register_gradient(name, make, "nonsense", aliases)
    assert list(GRADIENTS) == before


@pytest.mark.usefixtures("registered")
def test_a_name_of_ones_own_may_stand_for_a_text():
    """Its maker names a gradient itself, which asks every maker without parameters for its object: this one too."""
    with registering("test"):
        register_gradient("mine", lambda: gradient_named("clip-norm(decay(R, 0.8), 2)").estimator, "a long text, short")
    found = gradient_named("mine")
    assert found.estimator == gradient_named("clip-norm(decay(R, 0.8), 2)").estimator
    assert found.text == gradient_named("clip-norm(decay(R, 0.8), 2)").text == text_of(found.estimator) == "mine"
    assert gradient_named("clip-norm(R, 2)").text == "clip-norm(R, 2)"


@pytest.mark.usefixtures("registered")
def test_what_makes_no_gradient_is_told_when_it_is_used():
    def nothing(of: AdjointRule) -> AdjointRule:
        return None  # pyright: ignore[reportReturnType]

    with registering("test"):
        register_gradient("nothing", nothing, "a mistake")
    with pytest.raises(SettingError, match=r"Expected nothing\(of\) to make a rule or an estimator, got NoneType\."):
        gradient_named("nothing(R)")


def test_what_no_text_stands_for_is_refused():
    with pytest.raises(SettingError, match="offer its class by register_gradient"):
        text_of(Mean(R, 0.5))
    assert gradients.text_of(R) == "R"
