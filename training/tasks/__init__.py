"""The tasks that ship: for each name the dataclass of its options, with a `build()` that returns the Task.

`difficulty` of an options class names the option that makes the task harder, and the values that the benchmarks use.
"""

from dataclasses import fields

from engine import SettingError
from training.checks import perhaps
from training.task import Task
from training.tasks.cart_pendulum import CartPendulumOptions
from training.tasks.cart_pole import CartPoleOptions
from training.tasks.fluid import FluidOptions
from training.tasks.guidance import GuidanceOptions
from training.tasks.integrator import IntegratorOptions
from training.tasks.lqr import LQROptions
from training.tasks.n_body import NBodyOptions
from training.tasks.quantum import QuantumOptions
from training.tasks.swarm import SwarmOptions

TaskOptions = (
    CartPoleOptions
    | CartPendulumOptions
    | GuidanceOptions
    | FluidOptions
    | NBodyOptions
    | SwarmOptions
    | QuantumOptions
    | LQROptions
    | IntegratorOptions
)

TASKS: dict[str, type[TaskOptions]] = {
    "cart-pole": CartPoleOptions,
    "cart-pendulum": CartPendulumOptions,
    "guidance": GuidanceOptions,
    "quantum": QuantumOptions,
    "fluid": FluidOptions,
    "n-body": NBodyOptions,
    "swarm": SwarmOptions,
    "lqr": LQROptions,
    "integrator": IntegratorOptions,
}


def task_options(name: str) -> type[TaskOptions]:
    """The options of the task with this name; SettingError if there is none."""
    if name not in TASKS:
        raise SettingError(f"Expected a task among {', '.join(TASKS)}, got {name!r}{perhaps(str(name), TASKS)}.")
    return TASKS[name]


def name_of(options: object) -> str:
    """The name of the task that these are options of."""
    return next(name for name, kind in TASKS.items() if isinstance(options, kind))


def build_task(name: str, **options) -> Task:
    """The task with this name; options as in its dataclass, e.g. `build_task("cart-pole", poles=2)`."""
    kind = task_options(name)
    known = [entry.name for entry in fields(kind)]
    for option in options:
        if option not in known:
            raise SettingError(f"Expected options of {name} among {', '.join(known)}, got {option!r}.")
    return kind(**options).build()
