"""One contract over every registered gradient: one that is added to the registry is tested here by being listed."""

import inspect
import math

import numpy as np
import pytest
import torch
from conftest import uniform

import engine
from engine import FULL, PHYSICS_ONLY, AdjointRule, PerSample
from engine.registry import SHIPPED
from training import GRADIENTS, Member, Trainer, TrainingSettings, build_task, gradient_named
from training.estimators import Backpropagation, GradientEstimator, check_estimator, combined, is_sweep
from training.gradients import text_of
from training.task import generator

pytestmark = pytest.mark.float64

PARTS = ("M", "R", "S")
"""What a gradient made of others is made of, in the order of its arguments."""


SPECIAL = {"each-sample": "each-sample(bisect(M, R))", "mix": "mix(M, score(0.5, 4))"}
"""Of gradients that take only some kind of others."""


def text(name):
    """A gradient of this name, with arguments of the kinds that it takes."""
    if name in SPECIAL:
        return SPECIAL[name]
    parts, arguments = iter(PARTS), []
    for parameter in GRADIENTS[name].parameters:
        if parameter.kind in (AdjointRule, GradientEstimator):
            arguments.append(next(parts))
        elif parameter.default is inspect.Parameter.empty:
            arguments.append("1" if parameter.kind is int else "0.5")
        else:
            arguments.append(repr(parameter.default))
    return f"{name}({', '.join(arguments)})" if arguments else name


def sweeps(estimator, members=5, parameters=40, samples=8):
    """Gradients [members, parameters] of each of its sources, of sizes from 0.01 to 100; of samples where it asks."""
    found = {}
    for seed, source in enumerate(estimator.rules):
        shape = (members, samples, parameters) if isinstance(source, PerSample) else (members, parameters)
        scale = torch.logspace(-2, 2, members, dtype=torch.float64).view(-1, *[1] * (len(shape) - 1))
        found[source] = scale * uniform(seed, *shape)
    return found


@pytest.fixture(params=list(GRADIENTS))
def name(request):
    return request.param


@pytest.fixture
def estimator(name):
    return gradient_named(text(name)).estimator


def test_it_asks_for_different_rules_and_can_be_a_key(name, estimator):
    check_estimator(estimator)
    assert isinstance(estimator, GradientEstimator)
    assert len(estimator.rules) == len(set(estimator.rules)) >= 1
    assert all(isinstance(source, AdjointRule) for source in estimator.rules if is_sweep(source))
    again = gradient_named(text(name)).estimator
    assert again == estimator
    assert {estimator: 1}[again] == 1
    assert again.rules == estimator.rules


def test_its_text_is_read_back_as_itself(name, estimator):
    found = gradient_named(text(name))
    printed = text_of(estimator)
    assert printed == found.text
    assert gradient_named(printed) == found
    assert gradient_named(f"  {printed.upper()} ").estimator == estimator


def test_it_combines_to_rows_of_finite_numbers_and_changes_no_part(estimator):
    given = sweeps(estimator)
    before = {rule: part.clone() for rule, part in given.items()}
    result = combined(estimator, given)
    assert (result.shape, result.dtype) == ((5, 40), torch.float64)
    assert torch.isfinite(result).all()
    assert result.abs().amax(1).min() > 0
    assert all(torch.equal(part, before[rule]) for rule, part in given.items())
    assert torch.equal(result, combined(estimator, before))


def test_a_member_depends_on_no_companion(estimator):
    given = sweeps(estimator)
    together = combined(estimator, given)
    for member in range(5):
        alone = combined(estimator, {rule: part[member : member + 1] for rule, part in given.items()})
        torch.testing.assert_close(alone[0], together[member], rtol=1e-13, atol=0.0)
    order = torch.tensor([3, 0, 4, 2, 1])
    turned = combined(estimator, {rule: part[order] for rule, part in given.items()})
    torch.testing.assert_close(turned, together[order], rtol=1e-13, atol=0.0)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_never_passes_for_a_number_and_stays_in_its_member(estimator, value):
    given = sweeps(estimator)
    sound = combined(estimator, given)
    for part in given.values():
        part[2, ..., 7] = value
    result = combined(estimator, given)
    others = torch.arange(5) != 2
    torch.testing.assert_close(result[others], sound[others], rtol=1e-13, atol=0.0)
    assert not torch.isfinite(result[2, 7]) or result[2, 7] == 0


def test_parts_that_are_zero_make_zero(estimator):
    given = {rule: torch.zeros_like(part) for rule, part in sweeps(estimator).items()}
    assert torch.equal(combined(estimator, given), torch.zeros(5, 40, dtype=torch.float64))


# The formulas again, in NumPy and for one member: of the parts in the order in which they are written.
def unit(a):
    return a / math.sqrt(float(np.dot(a, a)))


def bisect(a, b):
    return a + b * math.sqrt(float(np.dot(a, a) / np.dot(b, b)))


def config(a, b):
    middle = unit(unit(a) + unit(b))
    return (np.dot(a, middle) + np.dot(b, middle)) * middle


def pcgrad(a, b):
    overlap = min(float(np.dot(a, b)), 0.0)
    return (a - overlap / np.dot(b, b) * b) + (b - overlap / np.dot(a, a) * a)


def mask_random(a, b):
    draw = torch.Generator().manual_seed(int(a.view(np.int64).sum()) % 2**63)
    density = np.count_nonzero(b) / len(b)
    return np.where(torch.rand(len(a), generator=draw, dtype=torch.float64).numpy() < density, a, 0.0)


def itself(a):
    return a


def agree(a, b):
    return np.where(np.sign(a) == np.sign(b), a, 0.0)


def and_mask(samples):
    agreeing = np.abs(np.sign(samples).mean(0)) >= 0.5
    return np.where(agreeing, samples.mean(0), 0.0) / (np.count_nonzero(agreeing) / len(agreeing))


def each_sample(others, ones):
    return np.mean([bisect(one, other) for one, other in zip(ones, others, strict=True)], 0)


def clip_samples(samples):
    sizes = [math.sqrt(float(np.dot(row, row))) for row in samples]
    most = sorted(sizes)[(len(sizes) - 1) // 2]
    return np.mean([row * min(1.0, most / size) for row, size in zip(samples, sizes, strict=True)], 0)


def mix(swept, scored):
    spread, other = (np.square(rows - rows.mean(0)).sum() for rows in (swept, scored))
    return (other * swept.mean(0) + spread * scored.mean(0)) / (spread + other)


FORMULAS = {
    "and-mask": and_mask,
    "each-sample": each_sample,
    "clip-samples": clip_samples,
    "mix": mix,
    "adaptive-clip": itself,  # until it has seen 25 updates, see test_samples.py
    "score": itself,  # the copies' loss tells it, see test_scores.py
    "score-physics": itself,
    "short": itself,  # see test_short_horizons.py
    "cautious": itself,  # it acts on the optimiser's step; see test_cautious.py
    "C": agree,
    "agree": agree,
    "unit": unit,
    "bisect": bisect,
    "bisect-smaller": lambda a, b: (unit(a) + unit(b)) * math.sqrt(min(float(np.dot(a, a)), float(np.dot(b, b)))),
    "bisect-unit": lambda a, b: unit(a) + unit(b),
    "config": config,
    "pcgrad": pcgrad,
    "where-agree": lambda a, b, of: np.where(np.sign(a) == np.sign(b), of, 0.0),
    "mask-random": mask_random,
}


def formula(name, estimator):
    """What a gradient is of its parts; that of one sweep with a rule is what the sweep finds."""
    return itself if isinstance(estimator, Backpropagation) else FORMULAS[name]


def parts_of(name, estimator):
    """The sources that a gradient's formula is written in."""
    if formula(name, estimator) in (itself, and_mask, each_sample, clip_samples, mix):
        return estimator.rules
    rules = [gradient_named(part).estimator.rules[0] for part in PARTS]
    return (PHYSICS_ONLY, FULL) if name == "C" else rules[: len(inspect.signature(formula(name, estimator)).parameters)]


def test_it_equals_its_formula(name, estimator):
    if GRADIENTS.origin(name) != SHIPPED:
        pytest.skip("of a plug-in, whose formula is not known here")
    given = sweeps(estimator)
    first, *others = list(given.values())
    for part in others:  # components that agree in sign, disagree, and are zero in one part
        part[..., :10] = part[..., :10].abs() * first[..., :10].sign()
        part[..., 10:20] = -part[..., 10:20].abs() * first[..., 10:20].sign()
        part[..., 20:23] = 0.0
    found = combined(estimator, given).numpy()
    for member in range(5):
        parts = [given[rule][member].numpy() for rule in parts_of(name, estimator)]
        np.testing.assert_allclose(found[member], formula(name, estimator)(*parts), rtol=1e-12, atol=1e-12)


def test_in_a_mixed_ensemble_it_is_what_it_is_alone():
    task, settings = build_task("cart-pole", horizon=6), TrainingSettings(train_samples=8, test_samples=8)
    estimators = [gradient_named(text(name)).estimator for name in GRADIENTS]

    def gradients(members):
        trainer = Trainer(task, members, settings)
        vars(trainer.policy)["zero_last"] = False  # so that every path carries a gradient
        for index, member in enumerate(members):
            trainer.policy.initialise(index, generator(member.seed, "policy"))
        return trainer.gradient(*next(trainer.batches()))[1]

    members = [Member(estimator, seed=index % 3) for index, estimator in enumerate(estimators)]
    together = gradients(members)
    assert engine.current().precision == "float64"
    for index, member in enumerate(members):
        torch.testing.assert_close(together[index], gradients([member])[0], rtol=1e-9, atol=0.0)
    assert len({tuple(row.tolist()) for row in together}) > len(estimators) // 2
