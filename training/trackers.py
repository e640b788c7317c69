"""Trackers of experiments, which draw the numbers of a training while it goes on: each a thin way to one package.

All of them write into the run directory and send nothing, unless the user's environment says otherwise by the
variables that the package itself reads.
"""

import importlib.util
import io
import logging
import os
import re
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from engine import SettingError
from engine.checks import perhaps

_PROJECT = "evenflow"


class Tracker(Protocol):
    """Takes the numbers of each epoch by name, which are kept when `log` returns as far as the package can tell.

    Attributes:
        identity: finds the same tracked run again.
    """

    identity: str

    def log(self, epoch: int, numbers: Mapping[str, float]) -> None: ...

    def close(self) -> None: ...


@dataclass(frozen=True)
class Tracked:
    """The run that a tracker is opened for.

    Attributes:
        path: the run directory.
        settings: its configuration, as texts by name.
        identity: of the tracker that followed it before; None where none has.
    """

    path: Path
    settings: Mapping[str, str]
    identity: str | None = None


class TensorBoard:
    """Event files in tensorboard/."""

    def __init__(self, run: Tracked):
        from torch.utils.tensorboard import SummaryWriter

        self.identity = "tensorboard"
        self._writer = SummaryWriter(str(run.path / self.identity))
        if run.identity is None:
            self._writer.add_text("settings", "\n".join(f"    {name}: {text}" for name, text in run.settings.items()))

    def log(self, epoch: int, numbers: Mapping[str, float]) -> None:
        for name, number in numbers.items():
            self._writer.add_scalar(name, number, epoch)
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


class MLflow:
    """A run in mlflow.db, or where MLFLOW_TRACKING_URI says; signs that MLflow refuses in names are _ there."""

    def __init__(self, run: Tracked):
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        from mlflow import MlflowClient  # pyright: ignore[reportMissingImports]
        from mlflow.entities import Metric, Param  # pyright: ignore[reportMissingImports]

        logging.getLogger("mlflow").setLevel(logging.WARNING)  # it tells of each table that it makes
        logging.getLogger("alembic").setLevel(logging.WARNING)
        store = os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{run.path.resolve() / 'mlflow.db'}"
        self._client, self._metric = MlflowClient(store), Metric
        if run.identity is not None:
            self.identity = run.identity
            self._client.update_run(self.identity, "RUNNING")
            return
        found = self._client.get_experiment_by_name(_PROJECT)
        experiment = self._client.create_experiment(_PROJECT) if found is None else found.experiment_id
        self.identity = self._client.create_run(experiment, run_name=run.path.name).info.run_id
        settings = [Param(name, text[:_LONGEST]) for name, text in run.settings.items()]
        self._client.log_batch(self.identity, params=settings)

    def log(self, epoch: int, numbers: Mapping[str, float]) -> None:
        now = int(time.time() * 1000)
        found = [self._metric(_REFUSED.sub("_", name), value, now, epoch) for name, value in numbers.items()]
        for first in range(0, len(found), _AT_ONCE):
            self._client.log_batch(self.identity, metrics=found[first : first + _AT_ONCE])

    def close(self) -> None:
        self._client.set_terminated(self.identity)


# What MLflow takes: numbers at once, characters of a setting, signs in a name.
_AT_ONCE, _LONGEST = 1000, 500
_REFUSED = re.compile(r"[^\w\-. :/]", re.ASCII)


class WeightsAndBiases:
    """An offline run in wandb/, to be sent by `wandb sync`; online where WANDB_MODE says so."""

    def __init__(self, run: Tracked):
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        import wandb  # pyright: ignore[reportMissingImports]

        self.identity = run.identity or secrets.token_hex(4)
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", _PROJECT),
            name=run.path.name,
            id=self.identity,
            resume="allow",
            dir=os.environ.get("WANDB_DIR", str(run.path)),
            mode=os.environ.get("WANDB_MODE", "offline"),  # type: ignore[arg-type]
            config=dict(run.settings),
            settings=wandb.Settings(silent=True, console="off", disable_git=True, save_code=False),
        )

    def log(self, epoch: int, numbers: Mapping[str, float]) -> None:
        self._run.log(dict(numbers), step=epoch)

    def close(self) -> None:
        self._run.finish()


class Trackio:
    """A database in trackio/, or where TRACKIO_DIR, TRACKIO_SPACE_ID or TRACKIO_SERVER_URL say.

    RuntimeError for a second run in one process: Trackio keeps to the folder that it was imported with.
    """

    def __init__(self, run: Tracked):
        given, own = os.environ.get("TRACKIO_DIR"), (run.path / "trackio").resolve()
        os.environ["TRACKIO_DIR"] = given or str(own)
        try:
            import trackio  # pyright: ignore[reportMissingImports]
        finally:
            if given is None:
                del os.environ["TRACKIO_DIR"]
        if given is None and Path(trackio.utils.TRACKIO_DIR) != own:
            raise RuntimeError(f"it keeps to {trackio.utils.TRACKIO_DIR} in this process; set TRACKIO_DIR to share one")
        self.identity, self._trackio = run.identity or run.path.name, trackio
        with redirect_stdout(io.StringIO()):
            self._run = trackio.init(
                project=_PROJECT,
                name=self.identity,
                resume="never" if run.identity is None else "allow",
                config=dict(run.settings),
                embed=False,
                auto_log_gpu=False,
                auto_log_cpu=False,
            )

    def log(self, epoch: int, numbers: Mapping[str, float]) -> None:
        self._run.log(dict(numbers), step=epoch)

    def close(self) -> None:
        with redirect_stdout(io.StringIO()):
            self._trackio.finish()


TRACKERS: dict[str, Callable[[Tracked], Tracker]] = {
    "tensorboard": TensorBoard,
    "mlflow": MLflow,
    "wandb": WeightsAndBiases,
    "trackio": Trackio,
}
"""By the name of the package that each needs, and of the extra that brings it."""


def check_trackers(names: Sequence[str]) -> None:
    """SettingError unless all of these are trackers whose packages are installed."""
    for name in names:
        if name not in TRACKERS:
            raise SettingError(f"Expected trackers among {', '.join(TRACKERS)}, got {name!r}{perhaps(name, TRACKERS)}.")
        fault = missing(name)
        if fault:
            raise SettingError(fault)


def missing(name: str) -> str:
    """What to say where the package of a tracker is not installed; nothing where it is."""
    if importlib.util.find_spec(name) is not None:
        return ""
    return f"Expected the package {name} to track with it, got none; pip install 'evenflow[{name}]'."
