"""Trained controllers as files that other programs read: ONNX, torch.export and safetensors.

A file holds u = π(O(x)), from states [b, *state_shape] to controls [b, *control_shape] for any b, and says under the
key "evenflow", as JSON, what it is: task, gradient, seed, epoch, shapes and precision.
"""

import importlib.util
import io
import json
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import nn

from engine import Observation, SettingError, current
from training.controllers import Trained, trained
from training.files import write_whole
from training.outputs import check_new_file
from training.run import RunDirectory
from training.task import Task

_KEY = "evenflow"


class ControllerModule(nn.Module):
    """u = π(O(x)): what a policy gives for states [b, *state_shape] that it sees through an observation.

    Args:
        policy: a module of observations [b, *observation_shape].
        observation: O, of the state alone; None if the policy sees the state itself.
    """

    def __init__(self, policy: nn.Module, observation: Observation | None = None):
        super().__init__()
        self.policy, self._observation = policy, observation

    def forward(self, state: torch.Tensor) -> torch.Tensor:
        if self._observation is None:
            return self.policy(state)
        step = torch.zeros(1, dtype=torch.int64, device=state.device)
        return self.policy(self._observation.function(state.unsqueeze(0), step, {}).squeeze(0))


def export_controller(
    run: str | Path | RunDirectory,
    path: str | Path,
    gradient: str | None = None,
    seed: int | None = None,
    epoch: int | None = None,
) -> Path:
    """Write a trained controller to a new file; returns its path.

    Args:
        run, gradient, seed, epoch: which, as in `load_controller`; errors are its too.
        path: ends in .onnx (ONNX, needs the extra `export`), .pt2 (a program of torch.export) or .safetensors (its
            parameters by name, for a module built by hand).

    Raises:
        SettingError: another ending, a missing package, or a controller that cannot be exported.
        RunError: something is there already.
    """
    if not isinstance(path, (str, PathLike)):
        raise SettingError(f"Expected a file as a path, got {path!r}.")
    path = Path(path).expanduser()
    check_new_file(path, tuple(_WRITERS), "a controller")
    write = _WRITERS[path.suffix.lower()]
    found = trained(run, gradient, seed, epoch)
    task = found.task
    _check_observation(task)
    module = ControllerModule(found.policy.module(), task.observation).eval()
    state = torch.zeros(2, *task.system.state_shape, dtype=found.policy.dtype, device=found.policy.device)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, write(module, state, {_KEY: json.dumps(_described(found, task), default=str)}))
    return path


def _described(found: Trained, task: Task) -> dict[str, Any]:
    shapes = {"state_shape": list(task.system.state_shape), "control_shape": list(task.system.control_shape)}
    if task.observation is not None:
        shapes["observation_shape"] = list(task.observation.shape)
    return {
        "task": task.name,
        "options": found.config.get("options", {}),
        **found.label.to_file(),
        "epoch": found.epoch,
        "policy": found.policy.architecture,
        **shapes,
        "precision": str(found.policy.dtype).removeprefix("torch."),
        "observes": "state" if task.observation is None else "an observation of the state, which is part of this",
    }


def _check_observation(task: Task) -> None:
    """SettingError unless what the policy sees is a function of the state alone."""
    if task.observation is None:
        return
    states = task.initial_states(2, 0, "train", current().dtype).unsqueeze(0).to(current().device)
    first, *later = (torch.full((1,), step, device=states.device) for step in range(task.horizon))
    try:
        seen = task.observation.function(states, first, {})
        others = [task.observation.function(states, step, {}) for step in later]
        alone = all(torch.allclose(seen, other, rtol=0.0, atol=0.0, equal_nan=True) for other in others)
    except KeyError as missing:
        raise SettingError(
            f"Expected an observation of the state alone, got one of the parameter {missing} too; keep that controller "
            "with load_controller."
        ) from missing
    if not alone:
        raise SettingError(
            "Expected an observation of the state alone, got one of the time too; keep that controller with "
            "load_controller."
        )


def _onnx(module: nn.Module, state: torch.Tensor, metadata: Mapping[str, str]) -> bytes:
    for package in ("onnx", "onnxscript"):
        if importlib.util.find_spec(package) is None:
            raise SettingError(
                f"Expected the package {package} to write .onnx, got none; pip install 'evenflow[export]'."
            )
    shapes = {"state": {0: torch.export.Dim("samples")}}
    with _told(".onnx"):
        program = torch.onnx.export(
            module,
            (state,),
            input_names=["state"],
            output_names=["control"],
            dynamo=True,
            dynamic_shapes=shapes,
            verbose=False,
        )
    assert program is not None
    program.model.metadata_props.update(metadata)
    return program.model_proto.SerializeToString()


def _program(module: nn.Module, state: torch.Tensor, metadata: Mapping[str, str]) -> bytes:
    with _told(".pt2"):
        program = torch.export.export(module, (state,), dynamic_shapes={"state": {0: torch.export.Dim("samples")}})
    file = io.BytesIO()
    torch.export.save(program, file, extra_files=dict(metadata))
    return file.getvalue()


def _parameters(module: nn.Module, state: torch.Tensor, metadata: Mapping[str, str]) -> bytes:
    tensors = {name.removeprefix("policy."): value for name, value in module.state_dict().items()}
    # Tied weights share memory, which the format does not have.
    return save({name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}, dict(metadata))


@contextmanager
def _told(ending: str) -> Iterator[None]:
    """What torch cannot follow, in a sentence, and nothing of what it says besides."""
    before = logging.root.manager.disable
    with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)
        try:
            yield
        except Exception as error:
            said = next(iter(str(error).strip().splitlines()), "").rstrip(".")
            raise SettingError(
                f"Expected a controller that torch can write as {ending}, got {type(error).__name__} ({said}); write "
                "it without branches on values, or export .safetensors."
            ) from error
        finally:
            logging.disable(before)


_WRITERS: dict[str, Callable[[nn.Module, torch.Tensor, Mapping[str, str]], bytes]] = {
    ".onnx": _onnx,
    ".pt2": _program,
    ".safetensors": _parameters,
}
