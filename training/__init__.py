"""Training: tasks, objectives, gradient estimators, the ensemble trainer, run directories."""

from training.checkpoint import describe_checkpoint
from training.clipping import Clipping, clipping_named
from training.controllers import load_controller, load_task
from training.differentiable import differentiable
from training.divergence import Divergence
from training.errors import RunError
from training.estimators import Backpropagation, GradientEstimator, SignAgreement
from training.experiment import Experiment, resume, train
from training.export import ControllerModule, export_controller
from training.gradients import GRADIENTS, Gradient, gradient_named, register_gradient
from training.objectives import Objective, Quadratic
from training.optimisers import OPTIMISERS, EnsembleOptimiser
from training.run import RunDirectory, read_checkpoint
from training.settings import TrainingSettings
from training.task import PolicyFactory, Task
from training.tasks import TASKS, TaskOptions, build_task, task_options
from training.tracking import Tracking
from training.trainer import EpochRecord, Member, Trainer
from training.variant import Label, Variant

__all__ = [
    "GRADIENTS",
    "OPTIMISERS",
    "TASKS",
    "Backpropagation",
    "Clipping",
    "ControllerModule",
    "Divergence",
    "EnsembleOptimiser",
    "EpochRecord",
    "Experiment",
    "Gradient",
    "GradientEstimator",
    "Label",
    "Member",
    "Objective",
    "PolicyFactory",
    "Quadratic",
    "RunDirectory",
    "RunError",
    "SignAgreement",
    "Task",
    "TaskOptions",
    "Tracking",
    "Trainer",
    "TrainingSettings",
    "Variant",
    "build_task",
    "clipping_named",
    "describe_checkpoint",
    "differentiable",
    "export_controller",
    "gradient_named",
    "load_controller",
    "load_task",
    "read_checkpoint",
    "register_gradient",
    "resume",
    "task_options",
    "train",
]
