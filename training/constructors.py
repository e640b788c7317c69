"""What a registered gradient is: how one is made, of which arguments, and what it has to be."""

import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, get_type_hints

from engine import AdjointRule, SettingError
from engine.contracts import check_call, check_rule, described
from training.estimators import GradientEstimator, check_estimator

KINDS = {AdjointRule: "a rule", GradientEstimator: "a gradient", float: "a number", int: "a whole number"}


@dataclass(frozen=True)
class Parameter:
    """One argument of a constructor; `default` is `inspect.Parameter.empty` where it has none."""

    name: str
    kind: type
    default: Any


@dataclass(frozen=True)
class Constructor:
    """A registered gradient: `make(*arguments)` returns a rule or an estimator; without parameters it is a constant."""

    name: str
    make: Callable[..., Any]
    description: str
    parameters: tuple[Parameter, ...] = ()
    aliases: tuple[str, ...] = ()

    @property
    def usage(self) -> str:
        """As one writes it: `clip-norm(of, limit)`."""
        return f"{self.name}({', '.join(entry.name for entry in self.parameters)})" if self.parameters else self.name


def parameters_of(name: str, make: Callable) -> Iterator[Parameter]:
    """The annotated parameters of what makes a gradient; SettingError for any without."""
    try:
        hints = get_type_hints(make.__init__ if isinstance(make, type) else make)
        signature = inspect.signature(make)
    except (TypeError, ValueError, NameError) as error:
        raise SettingError(f"Expected gradient {name!r} with annotated parameters, got one where {error}.") from error
    for parameter in signature.parameters.values():
        kind = hints.get(parameter.name)
        if kind is None or kind not in KINDS or parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            raise SettingError(
                f"Expected parameters of gradient {name!r} annotated as AdjointRule, GradientEstimator, float or int, "
                f"got {parameter}."
            )
        yield Parameter(parameter.name, kind, parameter.default)


def check_made(entry: Constructor, made: Any) -> None:
    """SettingError unless a rule or an estimator takes what it is called with, and keeps what its text is read from."""
    if is_estimator(made):
        check_estimator(made)
        check_call(f"combine of {entry.usage} to take the gradients of its rules", made.combine, 1)
    else:
        check_rule(made)
        check_call(f"{entry.usage} to take direct, physics, policy and t", made, 4)
    missing = [parameter.name for parameter in entry.parameters if not hasattr(made, parameter.name)]
    if isinstance(entry.make, type) and missing:
        raise SettingError(
            f"Expected {entry.usage} to keep {missing[0]} under that name, from which its text is read, got "
            f"{described(made)} without; make its class a frozen dataclass."
        )


def is_rule(value: Any) -> bool:
    """Whether this looks like an adjoint rule."""
    return hasattr(value, "uses_physics") and hasattr(value, "uses_policy") and callable(value)


def is_estimator(value: Any) -> bool:
    """Whether this looks like an estimator."""
    return hasattr(value, "rules") and callable(getattr(value, "combine", None))
