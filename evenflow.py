"""Evenflow: train controllers through differentiable physics, and choose how the gradient flows back through time.

`import evenflow as ef` for the library, `evenflow --help` for the command line.
"""

# ruff: noqa: E402  # nothing may be imported before it is known to be Evenflow's own

import importlib.util
import os
import signal
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

__version__ = "0.1.0"
_IS_COMMAND = __name__ == "__main__" or Path(sys.argv[0]).stem == "evenflow"


def _stop_at_once(number: int, frame: object) -> None:
    """Ctrl-C while libraries are loaded, when there is nothing yet to put in order."""
    with suppress(OSError):
        os.write(2, b"evenflow: stopped.\n")
    os._exit(128 + number)


if _IS_COMMAND and sys.argv[1:] == ["--version"]:  # which needs none of what follows
    with suppress(OSError):  # main says what is wrong with where it prints
        print(f"evenflow {__version__}", flush=True)
        sys.exit(0)
_LISTENS = _IS_COMMAND and signal.getsignal(signal.SIGINT) is signal.default_int_handler
if _LISTENS:
    signal.signal(signal.SIGINT, _stop_at_once)


def _check_packages() -> None:
    """ImportError where a file or folder of the user's is found in place of one of Evenflow's packages."""
    here = Path(__file__).resolve().parent
    for name in ("engine", "policies", "training", "benchmarks"):
        try:
            spec = importlib.util.find_spec(name)
        except ValueError:  # somebody's module that was made by hand
            spec = None
        found = spec.origin if spec is not None else getattr(sys.modules.get(name), "__file__", None)
        if found is None or Path(found).resolve() != here / name / "__init__.py":
            got = "nothing" if found is None else found
            raise ImportError(
                f"Expected Evenflow's own package {name} in {here}, got {got}; rename what stands in the way.",
                name=name,
            )


try:
    _check_packages()
    import engine  # noqa: F401
except ImportError as missing:  # that, or what Taichi lacks on this machine, told to whoever typed a command
    if _IS_COMMAND:
        sys.exit(str(missing))
    raise

from benchmarks import commands as _measured
from benchmarks.commands import ReportPage, Variants  # noqa: F401
from engine import (
    FULL,
    ONE_STEP,
    PHYSICS_ONLY,
    POLICY_ONLY,
    AdjointError,
    AdjointRule,
    BackendError,
    Balance,
    BudgetError,
    ClipNorm,
    ClipValue,
    Controller,
    ControllerRecord,
    ControllerTrace,
    Cost,
    Decay,
    DecayRate,
    EvenflowError,
    EvenflowWarning,
    EveryStep,
    Gradients,
    KeepSize,
    KernelError,
    KernelSystem,
    LibraryError,
    MemoryPlan,
    Noise,
    Observation,
    PathRule,
    PeakMemory,
    PerSample,
    RandomCut,
    Rollout,
    RolloutTape,
    Runtime,
    Segment,
    SettingError,
    ShapeError,
    StepAgreement,
    System,
    Trajectory,
    Truncate,
    VectorSystem,
    available_backends,
    current,
    format_bytes,
    gradcheck,
    init,
)
from engine.systems import (
    SYSTEMS,
    BallWall,
    CartPendulum,
    CartPole,
    Fluid,
    Guidance,
    Held,
    Hopper,
    Integrator,
    KuramotoSivashinsky,
    LinearSystem,
    NBody,
    QuantumBox,
    Swarm,
    register_system,
)
from policies import (
    MLP,
    Convolutional,
    DeepSets,
    Linear,
    ModulePolicy,
    Moments,
    OpenLoop,
    Policy,
    PolicyError,
    PolicyRecord,
    PolicyTrace,
    Polynomial,
    policy_from,
)
from training import (
    OPTIMISERS,
    Backpropagation,
    Clipping,
    Divergence,
    EnsembleOptimiser,
    EpochRecord,
    Experiment,
    GradientEstimator,
    Label,
    Member,
    Objective,
    PolicyFactory,
    Quadratic,
    RunDirectory,
    RunError,
    SignAgreement,
    Task,
    Tracking,
    Trainer,
    TrainingSettings,
    Variant,
    clipping_named,
    describe_checkpoint,
    differentiable,
    export_controller,
    load_controller,
    load_task,
    read_checkpoint,
    resume,
    train,
)
from training import commands as _trained
from training.commands import Resume, Train, View, ViewTask  # noqa: F401
from training.dispatch import CommandLine as _CommandLine
from training.doors import load as load_plugin
from training.environments import to_gymnasium
from training.gradients import GRADIENTS, Gradient, gradient_named, register_gradient, text_of
from training.machine import Machine  # noqa: F401
from training.program import run_program
from training.starts import policy_for, uniform_states
from training.tasks import (
    TASKS,
    TaskOptions,
    build_task,
    register_task,
    task_options,
)
from training.viewing.drawings import (
    Drawing,
    Frame,
    Moment,
    Scene,
    register_drawing,
)

if _LISTENS:
    signal.signal(signal.SIGINT, signal.default_int_handler)

__all__ = [
    "FULL",
    "GRADIENTS",
    "MLP",
    "ONE_STEP",
    "OPTIMISERS",
    "PHYSICS_ONLY",
    "POLICY_ONLY",
    "SYSTEMS",
    "TASKS",
    "AdjointError",
    "AdjointRule",
    "BackendError",
    "Backpropagation",
    "Balance",
    "BallWall",
    "BudgetError",
    "CartPendulum",
    "CartPole",
    "ClipNorm",
    "ClipValue",
    "Clipping",
    "Controller",
    "ControllerRecord",
    "ControllerTrace",
    "Convolutional",
    "Cost",
    "Decay",
    "DecayRate",
    "DeepSets",
    "Divergence",
    "Drawing",
    "EnsembleOptimiser",
    "EpochRecord",
    "EvenflowError",
    "EvenflowWarning",
    "EveryStep",
    "Experiment",
    "Fluid",
    "Frame",
    "Gradient",
    "GradientEstimator",
    "Gradients",
    "Guidance",
    "Held",
    "Hopper",
    "Integrator",
    "KeepSize",
    "KernelError",
    "KernelSystem",
    "KuramotoSivashinsky",
    "Label",
    "LibraryError",
    "Linear",
    "LinearSystem",
    "Member",
    "MemoryPlan",
    "ModulePolicy",
    "Moment",
    "Moments",
    "NBody",
    "Noise",
    "Objective",
    "Observation",
    "OpenLoop",
    "PathRule",
    "PeakMemory",
    "PerSample",
    "Policy",
    "PolicyError",
    "PolicyFactory",
    "PolicyRecord",
    "PolicyTrace",
    "Polynomial",
    "Quadratic",
    "QuantumBox",
    "RandomCut",
    "Rollout",
    "RolloutTape",
    "RunDirectory",
    "RunError",
    "Runtime",
    "Scene",
    "Segment",
    "SettingError",
    "ShapeError",
    "SignAgreement",
    "StepAgreement",
    "Swarm",
    "System",
    "Task",
    "TaskOptions",
    "Tracking",
    "Trainer",
    "TrainingSettings",
    "Trajectory",
    "Truncate",
    "Variant",
    "VectorSystem",
    "available_backends",
    "build_task",
    "clipping_named",
    "current",
    "describe_checkpoint",
    "differentiable",
    "export_controller",
    "format_bytes",
    "gradcheck",
    "gradient_named",
    "init",
    "load_controller",
    "load_plugin",
    "load_task",
    "policy_for",
    "policy_from",
    "read_checkpoint",
    "register_drawing",
    "register_gradient",
    "register_system",
    "register_task",
    "resume",
    "task_options",
    "text_of",
    "to_gymnasium",
    "train",
    "uniform_states",
]

_LINE = _CommandLine(
    "evenflow",
    (__doc__ or "").partition("\n")[0],
    __version__,
    {**_trained.PLAIN, **_measured.PLAIN},
    {**_trained.WITH_TASK, **_measured.WITH_TASK},
    {"bench": _measured.BENCHMARKS},
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status. A user's mistake ends in one sentence on standard error."""
    return run_program(_LINE, sys.argv[1:] if arguments is None else arguments)


if __name__ == "__main__":
    sys.exit(main())
