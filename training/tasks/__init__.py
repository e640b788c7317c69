"""Tasks by name: for each the dataclass of its options, whose `build()` returns the Task."""

import inspect
from dataclasses import MISSING, fields, is_dataclass
from typing import Any, ClassVar, Protocol, get_type_hints

from engine import SettingError
from engine.registry import SHIPPED, Registry, registering
from training.task import Task
from training.tasks.ball_wall import BallWallOptions
from training.tasks.cart_pendulum import CartPendulumOptions
from training.tasks.cart_pole import CartPoleOptions
from training.tasks.fluid import FluidOptions
from training.tasks.guidance import GuidanceOptions
from training.tasks.hopper import HopperOptions
from training.tasks.integrator import IntegratorOptions
from training.tasks.kuramoto_sivashinsky import KuramotoSivashinskyOptions
from training.tasks.lqr import LQROptions
from training.tasks.n_body import NBodyOptions
from training.tasks.quantum import QuantumOptions
from training.tasks.swarm import SwarmOptions

_PLAIN = (bool, int, float, str)


class TaskOptions(Protocol):
    """A frozen dataclass of plain values, each with a default.

    A class attribute `difficulty` may name the option that makes the task harder and the values that benchmarks use,
    such as ("poles", (1, 2, 3, 4)); without it that is the first option, at its default.
    """

    __dataclass_fields__: ClassVar[dict[str, Any]]

    def build(self) -> Task:
        """The task with these options."""
        ...


TASKS: Registry[Any] = Registry("task")


def register_task(name: str, options: Any) -> None:
    """Offer a task under a name, at every door: list, train, view, report, bench, check.

    Args:
        name: of letters, digits and hyphens.
        options: as `TaskOptions` describes them. Its docstring's first paragraph and its fields' docstrings are what
            the command line says of it.

    Raises:
        SettingError: a name that is taken, or options of another form.
    """
    whole = f"Expected options of task {name!r} as a dataclass with build() and plain values that have defaults, got "
    if not (isinstance(options, type) and is_dataclass(options) and callable(getattr(options, "build", None))):
        raise SettingError(f"{whole}{options!r}.")
    try:
        hints = get_type_hints(options)
    except NameError as error:
        raise SettingError(f"{whole}one where {error}.") from error
    for entry in fields(options):
        if entry.default is MISSING:
            raise SettingError(f"{whole}{entry.name} without one.")
        if hints[entry.name] not in _PLAIN:
            raise SettingError(f"{whole}{entry.name} as {inspect.formatannotation(hints[entry.name])}.")
    known = [entry.name for entry in fields(options)]
    if not known:
        raise SettingError(f"{whole}one without any value.")
    difficulty = difficulty_of(options)
    if not isinstance(difficulty, tuple) or len(difficulty) != 2 or not isinstance(difficulty[1], (tuple, list)):
        raise SettingError(
            f"Expected the difficulty of task {name!r} as an option and its values, such as ({known[0]!r}, (1, 2)), "
            f"got {difficulty!r}."
        )
    if difficulty[0] not in known:
        raise SettingError(f"Expected a difficulty of task {name!r} among {', '.join(known)}, got {difficulty[0]!r}.")
    TASKS.register(name, options)


def task_options(name: str) -> Any:
    """The options of the task with this name; SettingError if there is none."""
    return TASKS[name]


def task_name(options: Any) -> str:
    """The name under which options of exactly this class are registered."""
    for name, kind in TASKS.items():
        if type(options) is kind:
            return name
    raise SettingError(f"Expected options of a registered task, got {options!r}; call register_task.")


def difficulty_of(options: Any) -> tuple[str, tuple[Any, ...]]:
    """(the option that makes a task harder, values that benchmarks use)."""
    first = fields(options)[0]
    return getattr(options, "difficulty", (first.name, (first.default,)))


def build_task(name: str, **options: Any) -> Task:
    """The task with this name; options as in its dataclass, e.g. `build_task("cart-pole", poles=2)`."""
    kind = task_options(name)
    known = [entry.name for entry in fields(kind)]
    for option in options:
        if option not in known:
            raise SettingError(f"Expected options of {name} among {', '.join(known)}, got {option!r}.")
    return kind(**options).build()


with registering(SHIPPED):
    register_task("cart-pole", CartPoleOptions)
    register_task("cart-pendulum", CartPendulumOptions)
    register_task("guidance", GuidanceOptions)
    register_task("quantum", QuantumOptions)
    register_task("fluid", FluidOptions)
    register_task("n-body", NBodyOptions)
    register_task("swarm", SwarmOptions)
    register_task("hopper", HopperOptions)
    register_task("kuramoto-sivashinsky", KuramotoSivashinskyOptions)
    register_task("ball-wall", BallWallOptions)
    register_task("lqr", LQROptions)
    register_task("integrator", IntegratorOptions)
