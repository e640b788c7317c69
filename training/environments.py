"""The way to other people's learning algorithms: a task as an environment of Gymnasium."""

from typing import TYPE_CHECKING, overload

from engine import LibraryError
from engine.checks import whole
from training.task import Task

if TYPE_CHECKING:
    from training.gymnasium_environments import TaskEnv, TaskVectorEnv


@overload
def to_gymnasium(task: Task, num_envs: None = None) -> "TaskEnv": ...


@overload
def to_gymnasium(task: Task, num_envs: int) -> "TaskVectorEnv": ...


def to_gymnasium(task: Task, num_envs: int | None = None) -> "TaskEnv | TaskVectorEnv":
    """A task as a `gymnasium.vector.VectorEnv` of `num_envs` environments, or as one `gymnasium.Env` without a number.

    Rewards are minus the task's costs, so that an episode's return is minus its loss; the task's end is termination,
    its horizon truncation. Actions are limited to the task's `control_bounds`.

    Raises:
        SettingError: a task without bounds of its controls.
        LibraryError: Gymnasium is not installed, or older than 1.1.
    """
    try:
        from training.gymnasium_environments import TaskEnv, TaskVectorEnv
    except ImportError as error:
        raise LibraryError(
            f"Expected the package gymnasium, 1.1 or newer, got: {error}; install it with pip install 'evenflow[gym]'."
        ) from error
    if num_envs is None:
        return TaskEnv(task)
    return TaskVectorEnv(task, whole("at least 1 environment", num_envs))
