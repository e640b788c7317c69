"""Clipping, member by member, against torch's own."""

import pytest
import torch
from conftest import uniform

from engine import SettingError
from engine.rule_variants import ClipValue
from engine.rules import ClipNorm
from training import Clipping, clipping_named

pytestmark = pytest.mark.float64


def test_clipping_by_norm_is_torchs_for_every_member():
    gradient = uniform(2, 4, 30) * torch.tensor([[0.01], [1.0], [10.0], [1e6]], dtype=torch.float64)
    clipped = Clipping("norm", 1.0)(gradient)
    for row, found in zip(gradient, clipped, strict=True):
        parameter = torch.nn.Parameter(row.clone())
        parameter.grad = row.clone()
        torch.nn.utils.clip_grad_norm_([parameter], 1.0)
        # Torch divides by norm + 1e-6.
        torch.testing.assert_close(found, parameter.grad, rtol=2e-6, atol=0.0)
    assert torch.equal(clipped[0], gradient[0])


def test_clipping_by_value_is_torchs():
    gradient = 3 * uniform(2, 4, 30)
    parameter = torch.nn.Parameter(gradient.clone())
    parameter.grad = gradient.clone()
    torch.nn.utils.clip_grad_value_([parameter], 1.0)
    assert torch.equal(Clipping("value", 1.0)(gradient), parameter.grad)


def test_no_clipping_changes_nothing():
    gradient = 1e6 * uniform(2, 4, 30)
    assert torch.equal(Clipping()(gradient), gradient)


def test_a_member_is_clipped_whatever_its_companions_are():
    gradient = uniform(3, 2, 30)
    wild = gradient * torch.tensor([[1.0], [1e100]], dtype=torch.float64)
    assert torch.equal(Clipping("norm", 0.5)(gradient)[0], Clipping("norm", 0.5)(wild)[0])


@pytest.mark.parametrize("kind", ["none", "value", "norm"])
def test_a_gradient_that_is_not_finite_never_passes_for_a_finite_one(kind):
    clipped = Clipping(kind)(torch.tensor([[1.0, torch.nan], [0.1, 0.2]], dtype=torch.float64))
    assert not torch.isfinite(clipped[0]).all()
    assert torch.isfinite(clipped[1]).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_limit_beyond_the_precision_limits_nothing(dtype):
    gradient = torch.tensor([[1.0, -3e38, 0.0], [torch.inf, 1.0, 2.0]], dtype=dtype)
    for limit in (1e300, float("inf")):
        for kind in ("value", "norm"):
            assert torch.equal(Clipping(kind, limit)(gradient)[0], gradient[0])
    for rule in (ClipValue(limit=1e300), ClipNorm(limit=1e300)):
        zero = torch.zeros_like(gradient)
        assert torch.equal(rule(gradient, zero, zero, 0)[0], gradient[0])


def test_an_unknown_kind_is_refused_with_those_there_are():
    with pytest.raises(SettingError, match=r"^Expected clipping among none, value, norm, got 'hard'\.$"):
        Clipping("hard")


@pytest.mark.parametrize("limit", [0.0, -1.0, float("nan")])
def test_a_limit_that_leaves_nothing_is_refused(limit):
    with pytest.raises(SettingError, match=r"^Expected a clipping limit above 0, got .*\.$"):
        Clipping("norm", limit)


@pytest.mark.parametrize(
    ("text", "clipping", "canonical"),
    [
        ("none", Clipping(), "none"),
        ("norm", Clipping("norm", 1.0), "norm"),
        ("norm(1.0)", Clipping("norm", 1.0), "norm"),
        (" norm ( .5 ) ", Clipping("norm", 0.5), "norm(0.5)"),
        ("value(10)", Clipping("value", 10.0), "value(10)"),
        ("value(1e-3)", Clipping("value", 1e-3), "value(0.001)"),
        ("norm(2.5e+10)", Clipping("norm", 2.5e10), "norm(25000000000)"),
        ("norm(1e300)", Clipping("norm", 1e300), "norm(1e+300)"),
        ("norm(inf)", Clipping("norm", float("inf")), "norm(inf)"),
    ],
)
def test_a_text_and_its_clipping_lead_to_one_another(text, clipping, canonical):
    assert clipping_named(text) == clipping
    assert clipping.text == canonical
    assert clipping_named(canonical) == clipping


@pytest.mark.parametrize("limit", [1 / 3, 0.1 + 0.2, 1e-300, 1e-7, 123456789.25])
def test_a_limit_survives_its_text_to_the_last_bit(limit):
    assert clipping_named(Clipping("norm", limit).text).limit == limit


@pytest.mark.parametrize(
    "text",
    [
        "",
        "hard",
        "norm()",
        "norm(",
        "norm(0)",
        "norm(-1)",
        "norm(nan)",
        "none(1)",
        "norm(1, 2)",
        "norm 1",
        "1",
        None,
        3,
    ],
)
def test_what_is_no_clipping_is_refused_in_a_sentence(text):
    with pytest.raises(SettingError, match=r"^Expected .*clipping.*, got [^\n]*\.$"):
        clipping_named(text)
