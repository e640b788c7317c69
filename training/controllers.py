"""Trained controllers: which there are in a run, and a policy that holds one of them."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import torch

from engine import SettingError, current
from engine.checks import whole
from policies import Policy, PolicyError, policy_from
from policies.architecture import is_ours
from training import constants
from training.checkpoint import Checkpoint, load_checkpoint
from training.errors import RunError
from training.experiment import Experiment
from training.gradients import gradient_named
from training.grammar import parts
from training.run import RunDirectory, epoch_of
from training.starts import built
from training.task import Task
from training.variant import Label


@dataclass(frozen=True)
class Trained:
    """A trained controller.

    Attributes:
        policy: of one member, in the runtime's precision and on its device.
        label: its gradient and seed.
        epoch: that it was trained for.
        config: of its run.
    """

    policy: Policy
    label: Label
    epoch: int
    config: Mapping[str, Any]

    @property
    def task(self) -> Task:
        """What it was trained for."""
        return Experiment.from_config(dict(self.config)).build_task()


def load_controller(
    run: str | Path | RunDirectory,
    gradient: str | None = None,
    seed: int | None = None,
    epoch: int | None = None,
) -> Policy:
    """A trained controller of a run: a policy of one member, ready to be called or rolled out.

    Needs a runtime; parameters are in its precision and on its device, whatever the run's. `load_task` gives the task
    that it was trained for, and the policy's `module()` a plain torch module.

    Args:
        run: the run directory, or one of its checkpoints, which by itself says what it holds.
        gradient: its text, such as C or clip-norm(R, 1).
        seed: of the training. Of those that fit, that with the lowest test loss at that epoch.
        epoch: one with a checkpoint; by default the last.

    Raises:
        RunError: nothing there, damaged or of another kind; or a controller that had diverged by then.
        SettingError: a gradient, seed or epoch that is not there, with those that are.
    """
    return trained(run, gradient, seed, epoch).policy


def trained(
    run: str | Path | RunDirectory,
    gradient: str | None = None,
    seed: int | None = None,
    epoch: int | None = None,
) -> Trained:
    """`load_controller` with what it was trained as; arguments and errors are its."""
    if not isinstance(run, (str, PathLike, RunDirectory)):
        raise SettingError(f"Expected a run as a path or a RunDirectory, got {run!r}.")
    path = run.path if isinstance(run, RunDirectory) else Path(run)
    if path.is_file():
        return _from_file(path, gradient, seed, epoch)
    run = RunDirectory.open(path)
    run.check_settings()
    experiment = Experiment.from_config(run.config)
    file = checkpoint_at(run, epoch)
    found, labels = load_checkpoint(file), experiment.labels()
    fitting = fitting_members(labels, gradient, seed, f"a controller of {path}")
    alive = _alive(found, labels, fitting, file)
    records = {record["epoch"]: record["test_loss"] for record in run.metrics()}
    member = best_member(alive, records.get(found.epoch, ()))
    described = found.description.get("policy") if found.description else None
    if isinstance(described, dict) and is_ours(described):
        policy = _policy(found, member, file)
    else:  # one of the user's, which the task alone can build, or a checkpoint of before they said what they hold
        one = built(experiment.build_task().policy, 1)
        policy = filled(one, found, [member], file)
    return Trained(policy, labels[member], found.epoch, run.config)


def addressed(address: str) -> tuple[str, str | None, int | None]:
    """(run, gradient, seed) of an address such as RUN, RUN@C or RUN@clip-norm(R, 1),3; SettingError for a bad seed."""
    run, member = address, ""
    if "@" in address and not Path(address).exists():  # a directory may have one in its name, a gradient has none
        run, _, member = address.rpartition("@")
    gradient, *rest = parts(member)
    seed = ",".join(rest)
    if seed and not seed.isdecimal():
        raise SettingError(f"Expected a seed after the comma, got {seed!r} in {member!r}.")
    return run, gradient or None, int(seed) if seed else None


def load_task(run: str | Path | RunDirectory) -> Task:
    """The task that a run was trained for, with its options; RunError if there is none."""
    opened = run if isinstance(run, RunDirectory) else RunDirectory.open(run)
    return Experiment.from_config(opened.config).build_task()


def checkpoint_at(run: RunDirectory, epoch: int | None = None) -> Path:
    """The checkpoint of an epoch, by default the last; RunError if there are none, SettingError if not this one."""
    files = {epoch_of(file): file for file in run.checkpoints()}
    if not files:
        raise RunError(f"Expected a run with checkpoints, got {run.path}, which has none; train it first.")
    if epoch is not None and epoch not in files:
        raise SettingError(f"Expected an epoch of {run.path} with a checkpoint, {_listed(files)}, got {epoch!r}.")
    return files[max(files) if epoch is None else epoch]


def fitting_members(labels: Sequence[Label], gradient: str | None, seed: int | None, what: str) -> list[int]:
    """Indices of the members with a gradient and a seed, where those are given; SettingError if there are none."""
    if gradient is not None and not isinstance(gradient, str):
        raise SettingError(f"Expected a gradient as text such as C, got {gradient!r}.")
    seed = None if seed is None else whole("a seed as a whole number of at least 0", seed, least=0)
    text = None if gradient is None else gradient_named(gradient).text
    found = [
        index for index, label in enumerate(labels) if text in (None, label.gradient) and seed in (None, label.seed)
    ]
    if not found:
        wanted = ",".join(str(part) for part in (text, seed) if part is not None)
        raise SettingError(f"Expected {what} among {_named(labels)}, got {wanted!r}.")
    return found


def best_member(members: Sequence[int], losses: Sequence[float | None]) -> int:
    """The one with the lowest test loss; the first of equals, and where there are no losses."""
    known = lambda index: losses[index] if index < len(losses) and losses[index] is not None else float("inf")  # noqa: E731
    return min(members, key=known)


def parameters_of(checkpoint: Checkpoint, member: int, like: torch.Tensor, file: Path) -> torch.Tensor:
    """One member's parameters [1, n] in the dtype and on the device of `like` [1, n]; RunError if they do not fit."""
    theta = checkpoint.tensors.get("theta")
    if theta is None or theta.dim() != 2 or theta.shape[1] != like.shape[1] or len(theta) <= member:
        shape = None if theta is None else list(theta.shape)
        raise RunError(
            f"Expected theta of at least {member + 1} members with {like.shape[1]} parameters in {file}, got {shape}; "
            "train the run again."
        )
    return theta[member : member + 1].to(like)


def _from_file(file: Path, gradient: str | None, seed: int | None, epoch: int | None) -> Trained:
    found = load_checkpoint(file)
    if epoch not in (None, found.epoch):
        raise SettingError(f"Expected epoch {found.epoch}, which {file} holds, got {epoch!r}.")
    if not found.description:
        raise RunError(f"Expected a checkpoint that says what it holds, got the older {file}; give its run directory.")
    labels = found.members
    fitting = fitting_members(labels, gradient, seed, f"a controller in {file}")
    if len(fitting) > 1:
        raise SettingError(
            f"Expected the gradient and the seed of one controller in {file}, got {len(fitting)} that fit among "
            f"{_named(labels)}; its run directory knows the best."
        )
    (member,) = _alive(found, labels, fitting, file)
    return Trained(_policy(found, member, file), labels[member], found.epoch, found.description.get("config") or {})


def _alive(found: Checkpoint, labels: Sequence[Label], members: Sequence[int], file: Path) -> list[int]:
    """Those that have not diverged by then; RunError if none is left, with when and why."""
    left = [member for member in members if member not in found.divergences]
    if not left:
        member = members[0]
        label, why = labels[member], found.divergences[member]
        raise RunError(
            f"Expected a controller that had not diverged by epoch {found.epoch}, got {label.gradient} with seed "
            f"{label.seed} in {file}, which did in update {why.update} of epoch {why.epoch}: {why.cause}; ask for "
            "an earlier epoch."
        )
    return left


def _policy(found: Checkpoint, member: int, file: Path) -> Policy:
    runtime = current()
    try:
        policy = policy_from(found.description.get("policy") or {}, 1, runtime.dtype, runtime.device)
    except PolicyError as error:
        raise RunError(f"{str(error).removesuffix('.')} in {file}.") from error
    return filled(policy, found, [member], file)


def filled(policy: Policy, found: Checkpoint, members: Sequence[int], file: Path) -> Policy:
    """A policy of so many members with their parameters, and the constants beside; RunError if they do not fit."""
    kept = constants.from_tensors(found.tensors)
    try:
        if kept:
            policy.take_constants(kept)
    except PolicyError as error:
        raise RunError(f"{str(error).removesuffix('.')} in {file}.") from error
    with torch.no_grad():
        for row, member in zip(policy.theta.split(1), members, strict=True):
            row.copy_(parameters_of(found, member, row, file))
    return policy


def _named(labels: Iterable[Label]) -> str:
    return ", ".join(dict.fromkeys(label.name for label in labels))


def _listed(values: Iterable[Any]) -> str:
    """Values in a sentence; of many the first and the last."""
    names = [str(value) for value in values]
    return ", ".join(names if len(names) <= 12 else [*names[:5], "...", *names[-3:]])
