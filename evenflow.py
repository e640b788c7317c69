"""Evenflow: train controllers through differentiable physics, and choose how the gradient flows back through time.

`import evenflow as ef` for the library, `evenflow --help` for the command line.
"""

# ruff: noqa: E402  # nothing may be imported before it is known to be Evenflow's own

import importlib.util
import io
import os
import sys
import warnings
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

_IS_COMMAND = __name__ == "__main__" or Path(sys.argv[0]).stem == "evenflow"


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
    BudgetError,
    ClipNorm,
    Controller,
    ControllerRecord,
    ControllerTrace,
    Cost,
    Decay,
    EvenflowError,
    EvenflowWarning,
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
    clock,
    components,
    current,
    format_bytes,
    gradcheck,
    init,
)
from engine.systems import (
    SYSTEMS,
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
    Trainer,
    TrainingSettings,
    Variant,
    clipping_named,
    describe_checkpoint,
    differentiable,
    load_controller,
    load_task,
    read_checkpoint,
    resume,
    train,
)
from training import commands as _trained
from training.commands import Resume, Train, View, ViewTask  # noqa: F401
from training.dispatch import CommandLine as _CommandLine
from training.dispatch import flush
from training.doors import load as load_plugin
from training.gradients import (
    GRADIENTS,
    Gradient,
    gradient_named,
    register_gradient,
    text_of,
)
from training.machine import Machine  # noqa: F401
from training.starts import policy_for, uniform_states
from training.stopping import Stopped
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

__version__ = "0.1.0"
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
    "BudgetError",
    "CartPendulum",
    "CartPole",
    "ClipNorm",
    "Clipping",
    "Controller",
    "ControllerRecord",
    "ControllerTrace",
    "Convolutional",
    "Cost",
    "Decay",
    "DeepSets",
    "Divergence",
    "Drawing",
    "EnsembleOptimiser",
    "EpochRecord",
    "EvenflowError",
    "EvenflowWarning",
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
    "Policy",
    "PolicyError",
    "PolicyFactory",
    "PolicyRecord",
    "PolicyTrace",
    "Polynomial",
    "Quadratic",
    "QuantumBox",
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
    "Trainer",
    "TrainingSettings",
    "Trajectory",
    "Truncate",
    "Variant",
    "VectorSystem",
    "available_backends",
    "build_task",
    "clipping_named",
    "clock",
    "components",
    "current",
    "describe_checkpoint",
    "differentiable",
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


def _say(message: Warning | str, *where: object) -> None:
    """A warning as one sentence, without the place in the code that it comes from."""
    print(f"evenflow: {message}", file=sys.stderr)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status. A user's mistake ends in one sentence on standard error."""
    warnings.showwarning = _say
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal that has no θ still shows the rest
    try:
        _LINE.parse(list(sys.argv[1:] if arguments is None else arguments)).run()
        flush()
    except (EvenflowError, PolicyError) as error:
        print(f"evenflow: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as stop:
        with suppress(OSError):  # who ended it may have closed this too
            print(f"evenflow: {stop if isinstance(stop, Stopped) else 'stopped'}.", file=sys.stderr)
        return 128 + (stop.number if isinstance(stop, Stopped) else 2)
    except BrokenPipeError:  # the reader of a pipe has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:  # whatever a file system can refuse: a full disk, a name too long, no permission
        where = f" at {error.filename}" if error.filename is not None else ""
        print(f"evenflow: Expected files that can be read and written, got{where}: {error.strerror}.", file=sys.stderr)
        return 2
    except SystemExit as end:  # after help
        return end.code if isinstance(end.code, int) else 0
    return 0


if __name__ == "__main__":
    sys.exit(main())
