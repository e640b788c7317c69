"""Gradients by name: registered constructors, and the one canonical text of whatever is made of them.

A name is looked up, its arguments are checked against the types of its constructor. A rule between steps stands
wherever an estimator may, as the gradient of one sweep with it. `paths(1, 0)`, `physics-only` and `M` are one gradient;
its canonical text, the one that files, tables and legends hold, is `M`.
"""

import inspect
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

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
    SettingError,
    StepAgreement,
    Truncate,
)
from engine.checks import perhaps
from engine.registry import SHIPPED, Registry, check_name, registering
from training.combinations import (
    Bisect,
    BisectSmaller,
    BisectUnit,
    Cautious,
    ConflictFree,
    MaskRandom,
    ProjectConflicts,
    Unit,
    WhereSignsAgree,
)
from training.constructors import KINDS, Constructor, Parameter, check_made, is_estimator, is_rule, parameters_of
from training.estimators import Backpropagation, GradientEstimator, SignAgreement, check_part
from training.grammar import NUMBERS, Call, parse
from training.plugins import blamed
from training.samples import AdaptiveClip, AndMask, ClipSamples, EachSample, Mix
from training.scores import PhysicsScore, Score
from training.short_horizons import Short


@dataclass(frozen=True)
class Gradient:
    """An estimator with the canonical text that stands for it.

    Attributes:
        text: as files, tables and legends hold it, such as clip-norm(R, 1).
        estimator: what a `Member` is given.
    """

    text: str
    estimator: GradientEstimator


GRADIENTS: Registry[Constructor] = Registry("gradient")


def register_gradient(name: str, make: Any, description: str, aliases: Sequence[str] = ()) -> None:
    """Offer a gradient under a name: on the command line, in configurations, tables and figures.

    Args:
        name: as it is written, of letters, digits and hyphens.
        make: a rule or an estimator, or what makes one: a frozen dataclass or a function whose parameters are
            annotated as AdjointRule, GradientEstimator, float or int. Equal arguments have to make equal objects. A
            function without parameters is called once, now: gradients that it names are registered before it.
        description: one line for `evenflow list`.
        aliases: other names for it.

    Raises:
        SettingError: a name that is taken, parameters without such annotations, or a function without parameters that
            makes neither.
    """
    constant = _is_gradient(make)
    if not constant and not callable(make):
        raise SettingError(
            f"Expected gradient {name!r} as a rule, an estimator or what makes one, got {type(make).__name__}."
        )
    if not isinstance(description, str):
        raise SettingError(f"Expected the description of gradient {name!r} as a line of text, got {description!r}.")
    if isinstance(aliases, str) or len({str(one).lower() for one in (name, *aliases)}) <= len(aliases):
        raise SettingError(f"Expected aliases of gradient {name!r} as a list of other names, got {aliases!r}.")
    for one in (name, *aliases):
        check_name("gradient", one)
        if str(one).lower() in NUMBERS:
            raise SettingError(
                f"Expected a name for a gradient, got {one!r}, which is read as a number; choose another."
            )
        known = _constructor(str(one))
        if known is not None and not (known.name == name and GRADIENTS.replaces(known.name, name)):
            raise SettingError(
                f"Expected a new name for a gradient, got {one!r}, which {GRADIENTS.origin(known.name)} has "
                "registered; choose another."
            )
    parameters = () if constant else tuple(parameters_of(name, make))
    if not (constant or parameters or isinstance(make, type)):
        # Once, since whoever names an object asks all that take no parameters, and this one may name others.
        with blamed():
            make, constant = make(), True
        if not _is_gradient(make):
            raise SettingError(f"Expected gradient {name!r} to make a rule or an estimator, got {type(make).__name__}.")
    constructor = Constructor(name, (lambda: make) if constant else make, description, parameters, tuple(aliases))
    if constant:
        check_made(constructor, make)
    GRADIENTS.register(name, constructor)


def _is_gradient(value: Any) -> bool:
    return not isinstance(value, type) and (is_rule(value) or is_estimator(value))


def gradient_named(text: str) -> Gradient:
    """The gradient that a text describes, such as `C` or `clip-norm(R, 1)`; SettingError if it describes none."""
    made, canonical = _built(parse(text))
    return Gradient(canonical, _as_estimator(made))


def lettered() -> list[str]:
    """Texts of the paper's gradients, in their order."""
    return [name for name in GRADIENTS.of(SHIPPED) if len(name) == 1]


def text_of(gradient: Any) -> str:
    """The canonical text of a rule or an estimator made of registered constructors; SettingError for any other."""
    made = gradient.rule if isinstance(gradient, Backpropagation) else gradient
    constant = _constant(made)
    if constant is not None:
        return constant
    for entry in GRADIENTS.values():
        if isinstance(entry.make, type) and type(made) is entry.make:
            parts = [_argument_text(getattr(made, parameter.name)) for parameter in entry.parameters]
            return f"{entry.name}({', '.join(parts)})"
    raise SettingError(
        f"Expected a gradient made of registered ones, got {made!r}; offer its class by register_gradient."
    )


def constructors_of(text: str) -> set[str]:
    """Names under which what a text is made of was registered; SettingError as for `gradient_named`."""
    gradient_named(text)
    return set(_names(parse(text)))


def rank_of(text: str) -> int:
    """Rank in tables and legends: by the order in which outermost names were registered, unknown ones last."""
    entry = _constructor(text.partition("(")[0].strip())
    return list(GRADIENTS).index(entry.name) if entry is not None else len(GRADIENTS)


def _names(call: Call) -> Iterator[str]:
    entry = _constructor(call.name)
    if entry is not None:
        yield entry.name
    for _, value in call.arguments:
        if isinstance(value, Call):
            yield from _names(value)


def _built(call: Call) -> tuple[Any, str]:
    """(rule or estimator, canonical text) of a call."""
    entry = _constructor(call.name)
    if entry is None:
        raise SettingError(_unknown(call.name))
    given = _named(call, entry)
    values, texts = [], []
    for parameter in entry.parameters:
        value = given.get(parameter.name, parameter.default)
        if value is inspect.Parameter.empty:
            raise SettingError(f"Expected {entry.usage}, got {call.name} without {parameter.name}.")
        made, text = _built(value) if isinstance(value, Call) else (value, _argument_text(value))
        values.append(_converted(made, text, parameter, entry))
        texts.append(text)
    with blamed():  # before tyro takes a ValueError for one of its own
        made = entry.make(*values)
    if not (is_rule(made) or is_estimator(made)):
        raise SettingError(f"Expected {entry.usage} to make a rule or an estimator, got {type(made).__name__}.")
    if entry.parameters:
        check_made(entry, made)
    return made, _constant(made) or (f"{entry.name}({', '.join(texts)})" if texts else entry.name)


def _named(call: Call, entry: Constructor) -> dict[str, Any]:
    """A call's arguments by the names of the constructor's parameters."""
    names = [parameter.name for parameter in entry.parameters]
    if len(call.arguments) > len(names):
        raise SettingError(f"Expected {entry.usage}, got {len(call.arguments)} arguments.")
    given: dict[str, Any] = {}
    for keyword, value in call.arguments:
        name = keyword or next(name for name in names if name not in given)
        if name not in names:
            raise SettingError(f"Expected {entry.usage}, got an argument {name}.")
        if name in given:
            raise SettingError(f"Expected {entry.usage}, got {name} twice.")
        given[name] = value
    return given


def _converted(made: Any, text: str, parameter: Parameter, entry: Constructor) -> Any:
    """An argument as its parameter wants it."""
    wanted = f"Expected {KINDS[parameter.kind]} as {parameter.name} in {entry.usage}, got {text}"
    number = isinstance(made, (int, float))
    if parameter.kind in (int, float):
        if not number or not math.isfinite(made) or (parameter.kind is int and made != int(made)):
            raise SettingError(f"{wanted}.")
        return parameter.kind(made)
    if number:
        raise SettingError(f"{wanted}.")
    if parameter.kind is GradientEstimator:
        estimator = _as_estimator(made)
        check_part(estimator)
        return estimator
    rule = made.rule if isinstance(made, Backpropagation) else made
    if not is_rule(rule):
        raise SettingError(f"{wanted}, which combines whole sweeps.")
    return rule


def _constructor(name: str) -> Constructor | None:
    """The constructor of this name or alias, in upper or lower case."""
    for entry in GRADIENTS.values():
        if name.lower() in (known.lower() for known in (entry.name, *entry.aliases)):
            return entry
    return None


def _constant(made: Any) -> str | None:
    """The name of the constant that is this very gradient, if there is one."""
    wanted = _as_estimator(made)
    for entry in GRADIENTS.values():
        if not entry.parameters:
            known = _as_estimator(entry.make())
            if type(known) is type(wanted) and known == wanted:
                return entry.name
    return None


def _unknown(name: str) -> str:
    known = ", ".join(entry.name for entry in GRADIENTS.values())
    names = [alias for entry in GRADIENTS.values() for alias in (entry.name, *entry.aliases)]
    return f"Expected a gradient among {known}, got {name!r}{perhaps(name, names)}."


def _argument_text(value: Any) -> str:
    return repr(float(value)).removesuffix(".0") if isinstance(value, (int, float)) else text_of(value)


def _as_estimator(value: Any) -> GradientEstimator:
    return Backpropagation(value) if is_rule(value) else value


with registering(SHIPPED):
    register_gradient("R", FULL, "full backpropagation, through physics and policy", ["full"])
    register_gradient(
        "M", PHYSICS_ONLY, "through the physics; the state entering the policy is stopped", ["physics-only"]
    )
    register_gradient("S", ONE_STEP, "one step deep; both paths are stopped", ["one-step"])
    register_gradient("N", POLICY_ONLY, "through the policy; the simulator is stopped", ["policy-only"])
    combined = SignAgreement(Backpropagation(PHYSICS_ONLY), Backpropagation(FULL))
    register_gradient("C", combined, "M where its sign agrees with R's, else 0", ["combined"])
    register_gradient("paths", PathRule, "the physics path and the policy path, each with a weight of its own")
    register_gradient(
        "clip-norm", ClipNorm, "each sample's adjoint scaled to a norm of at most the limit at every step"
    )
    register_gradient("decay", Decay, "what arrives from later steps times the factor at every step")
    register_gradient("decay-rate", DecayRate, "what arrives from later steps times exp(-rate Δt) at every step of Δt")
    register_gradient("truncate", Truncate, "nothing passes from one window of steps to the one before")
    register_gradient("every-step", EveryStep, "a rule between the steps for which a control is held, too")
    register_gradient("agree", SignAgreement, "the base where its sign agrees with the reference's, else 0")
    register_gradient("unit", Unit, "a gradient's direction at length 1")
    register_gradient("bisect", Bisect, "two gradients, the second at the size of the first, added")
    register_gradient("bisect-smaller", BisectSmaller, "two gradients, both at the size of the smaller, added")
    register_gradient("bisect-unit", BisectUnit, "the directions of two gradients, added")
    register_gradient("config", ConflictFree, "along both directions at once, free of conflict")
    register_gradient("pcgrad", ProjectConflicts, "two gradients, each without what is against the other, added")
    register_gradient("where-agree", WhereSignsAgree, "a third gradient where the signs of two agree, else 0")
    register_gradient("mask-random", MaskRandom, "a gradient under a random mask as dense as another's")
    register_gradient(
        "step-agreement",
        StepAgreement(),
        "the policy path only where both paths agree in sign, at every step",
    )
    register_gradient("keep-size", KeepSize(), "along R's adjoint at the size without the policy path, at every step")
    register_gradient("cautious", Cautious, "the optimiser's step only where it descends along the gradient")
    register_gradient("clip-value", ClipValue, "each component of the adjoint within the limit at every step")
    register_gradient(
        "balance", Balance, "the policy path at most `ratio` times the size of the physics path, at every step"
    )
    register_gradient("random-cut", RandomCut, "cut at random, what passes divided by its probability: R in the mean")
    register_gradient("and-mask", AndMask, "the mean where samples agree in sign, divided by the share of parameters")
    register_gradient("each-sample", EachSample, "the mean of what another makes of each sample's gradients by itself")
    register_gradient(
        "clip-samples", ClipSamples, "the mean, each sample's gradient at most `ratio` times as large as the median one"
    )
    register_gradient("adaptive-clip", AdaptiveClip, "clipped where its norm stands out from those of earlier updates")
    register_gradient("score", Score, "of zeroth order, from copies with noise on their controls; R in the mean")
    register_gradient(
        "score-physics", PhysicsScore, "as score, the policy shown the states without noise; M in the mean"
    )
    register_gradient("mix", Mix, "a sweep and a score, weighted by the inverse of their variances over samples")
    register_gradient(
        "short", Short, "over windows of so many steps, with a learned value of what follows; with R it is SHAC"
    )
