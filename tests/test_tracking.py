"""Trackers: each holds what metrics.jsonl says, every epoch once, whatever becomes of the training or of a tracker."""

import json
import struct
import warnings

import numpy as np
import pytest

import evenflow
from engine import EvenflowWarning
from training import Experiment, RunDirectory, TrainingSettings, resume, train
from training.errors import RunError
from training.stopping import Stopping
from training.trackers import missing
from training.tracking import Tracking, member_names

pytestmark = pytest.mark.float64

EPOCHS = 5
EXPERIMENT = Experiment(
    "lqr",
    {"horizon": 10},
    gradients=("R", "config(M, R)"),
    clippings=("none", "norm(0.5)"),
    seeds=(0, 3),
    epochs=EPOCHS,
    checkpoint_every=2,
    settings=TrainingSettings(train_samples=16, test_samples=8),
)


class Kept:
    """A tracker that keeps what it is told, and raises from one epoch on."""

    def __init__(self, run, told, fails):
        self.identity, self.log_of, self._fails = run.identity or run.path.name, told, fails
        told.append(f"opened as {run.identity}")

    def log(self, epoch, numbers):
        if epoch >= self._fails:
            raise OSError(28, "No space\nleft on device")
        self.log_of.append((epoch, dict(numbers)))

    def close(self):
        self.log_of.append("closed")


@pytest.fixture
def told(monkeypatch):
    """What the trackers `sound` and `fails` were told; the second one raises from the epoch "at" on."""
    found = {"sound": [], "fails": [], "at": EPOCHS + 1}
    trackers = {
        "sound": lambda run: Kept(run, found["sound"], EPOCHS + 2),
        "fails": lambda run: Kept(run, found["fails"], found["at"]),
    }
    for module in ("trackers", "tracking"):
        monkeypatch.setattr(f"training.{module}.TRACKERS", trackers)
    monkeypatch.setattr("training.trackers.missing", lambda name: "")
    monkeypatch.setattr("training.tracking.missing", lambda name: "")
    return found


def interrupted(path, names, later=()):
    """A run whose epochs 3 and 4 were made twice, since its checkpoint was lost after trackers had been told of them.

    Trackers `later` follow it from its resumption on.
    """
    with Stopping() as stopping:

        def stop(trainer, record):
            stopping.requested = 15 if record.epoch == 4 else None

        with Tracking(names, path, stop) as tracking:
            train(EXPERIMENT, path, tracking, stopping)
    RunDirectory.open(path).checkpoints()[-1].unlink()
    assert RunDirectory.open(path).epoch == 2
    with Tracking(later, path) as tracking:
        resume(path, tracking)
    return path


def expected(path):
    """What metrics.jsonl says as {name: [(epoch, number), ...]}, made here from the file and the labels alone."""
    names = [f"{of.gradient}, clipping {of.variant.clipping} seed {of.seed}" for of in EXPERIMENT.labels()]
    found = {}
    for line in map(json.loads, (path / "metrics.jsonl").read_text().splitlines()):
        epoch, diverged = line.pop("epoch"), line.pop("diverged")
        line["diverged"] = [1.0 if index in diverged else 0.0 for index in range(len(names))]
        for kind, values in line.items():
            many = isinstance(values, list)
            for name, value in (
                zip([f"{kind}/{name}" for name in names], values, strict=True) if many else [(kind, values)]
            ):
                if value is not None:
                    found.setdefault(name, []).append((epoch, value))
    return found


def by_name(told):
    """What a tracker was told, as `expected` has it."""
    found = {}
    for epoch, numbers in (entry for entry in told if isinstance(entry, tuple)):
        for name, value in numbers.items():
            found.setdefault(name, []).append((epoch, value))
    return found


def test_trackers_are_told_what_the_metrics_say_once(told, tmp_path):
    path = interrupted(tmp_path / "run", ["sound", "sound"], ["fails"])
    found = expected(path)
    names = {name.partition("/")[0] for name in found}
    assert names == {"seconds", "train_loss", "test_loss", "diverged", "gradient_norm", "clipped_norm", "adjoint_norm",
                     "sign_agreement", "update_seconds"}  # fmt: skip
    assert "test_loss/config(M, R), clipping norm(0.5) seed 3" in found
    assert [epoch for epoch, _ in found["seconds"]] == [1, 2, 3, 4, 5]
    # Times of epochs that were made again are those of the first time.
    timed = {"seconds", "update_seconds"}
    for name in found.keys() - timed:
        assert by_name(told["sound"])[name] == found[name]
    assert by_name(told["sound"]).keys() == found.keys()
    assert by_name(told["fails"]) == found
    marks = [entry for entry in told["sound"] if isinstance(entry, str)]
    assert marks == ["opened as None", "closed", "opened as run", "closed"]
    assert json.loads((path / "tracking.json").read_text())["fails"] == {"identity": "run", "epoch": 5}


def test_a_tracker_that_fails_is_told_of_once_and_the_training_goes_on(told, tmp_path):
    told["at"] = 2
    said = r"^fails failed with OSError \(\[Errno 28\] No space left on device\); the training goes on without it\.$"
    with (
        pytest.warns(EvenflowWarning, match=said) as warned,
        Tracking(["fails", "sound"], tmp_path / "run") as tracking,
    ):
        trainer = train(EXPERIMENT, tmp_path / "run", tracking)
    assert len(warned) == 1
    assert trainer.epoch == EPOCHS
    assert told["fails"][-1] == "closed"
    assert by_name(told["sound"]) == expected(tmp_path / "run")
    assert [epoch for epoch, _ in by_name(told["fails"])["seconds"]] == [1]
    told["at"] = EPOCHS + 2  # sound again, it gets what it lacks
    with Tracking([], tmp_path / "run") as tracking:
        resume(tmp_path / "run", tracking, EPOCHS + 1)
    assert by_name(told["fails"]) == expected(tmp_path / "run")


def test_a_tracker_that_cannot_be_opened_leaves_the_run_as_it_would_be(tmp_path, monkeypatch):
    def refuse(run):
        raise RuntimeError

    monkeypatch.setattr("training.tracking.TRACKERS", {"tensorboard": refuse})
    with (
        pytest.warns(EvenflowWarning, match=r"^tensorboard failed with RuntimeError \(no message\); the training goes"),
        Tracking(["tensorboard"], tmp_path / "run") as tracking,
    ):
        assert train(EXPERIMENT, tmp_path / "run", tracking).epoch == EPOCHS
    assert not (tmp_path / "run" / "tracking.json").exists()


def of_tensorboard(path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(path / "tensorboard"), size_guidance={"scalars": 0})
    events.Reload()
    assert "settings/text_summary" in events.Tags()["tensors"]
    return {name: [(event.step, event.value) for event in events.Scalars(name)] for name in events.Tags()["scalars"]}


def of_mlflow(path):
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{path / 'mlflow.db'}")
    (experiment,) = (found for found in client.search_experiments() if found.name == "evenflow")
    (run,) = client.search_runs([experiment.experiment_id])
    assert (run.info.status, run.data.params["settings.batch_size"]) == ("FINISHED", "8")
    return {
        name: [(metric.step, metric.value) for metric in client.get_metric_history(run.info.run_id, name)]
        for name in run.data.metrics
    }


def of_wandb(path):
    from wandb.proto.wandb_internal_pb2 import Record  # pyright: ignore[reportAttributeAccessIssue]

    found, runs = {}, set()
    for file in sorted(path.glob("wandb/offline-run-*/*.wandb")):
        for content in leveldb_records(file.read_bytes()[7:]):
            record = Record.FromString(content)
            runs |= {record.run.run_id} - {""}
            items = {"/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in record.history.item}
            for name in items.keys() - {"_step", "_runtime", "_timestamp"}:
                found.setdefault(name, []).append((items["_step"], items[name]))
    assert len(runs) == 1
    return found


def leveldb_records(data):
    """The records of a log in LevelDB's format: blocks of 32 KiB, of chunks with crc, length and kind before them."""
    place, record = 0, b""
    while place + 7 <= len(data):
        left = 32768 - (place + 7) % 32768
        if left < 7:
            place += left
            continue
        _, length, kind = struct.unpack_from("<IHB", data, place)
        record += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield record
            record = b""


def of_trackio(path):
    from trackio.sqlite_storage import SQLiteStorage

    (run,) = SQLiteStorage.get_runs("evenflow")
    assert list(path.glob("trackio/evenflow*.db"))
    found = {}
    for line in SQLiteStorage.get_logs("evenflow", run):
        for name in line.keys() - {"step", "timestamp"}:
            found.setdefault(name, []).append((line["step"], line[name]))
    return found


@pytest.mark.parametrize(
    ("name", "read"),
    [("tensorboard", of_tensorboard), ("mlflow", of_mlflow), ("wandb", of_wandb), ("trackio", of_trackio)],
)
def test_a_tracker_holds_what_the_metrics_say_after_an_interruption(name, read, tmp_path, monkeypatch):
    if missing(name):  # not by importing it: Trackio keeps to the folder that it is first imported for
        pytest.skip(f"needs {name}, which the extra {name} brings")
    for variable in ("MLFLOW_TRACKING_URI", "WANDB_MODE", "WANDB_DIR", "WANDB_PROJECT", "TRACKIO_DIR"):
        monkeypatch.delenv(variable, raising=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error", EvenflowWarning)
        path = interrupted(tmp_path / "run", [name])
    found = read(path)
    wanted = expected(path)
    if name == "mlflow":  # which refuses brackets and commas in names
        wanted = {key.translate(str.maketrans("(),", "___")): values for key, values in wanted.items()}
    assert found.keys() == wanted.keys()
    for key, values in wanted.items():
        assert [epoch for epoch, _ in found[key]] == [epoch for epoch, _ in values], key
        if "seconds" not in key:
            numbers, wanted_numbers = (np.array([value for _, value in of], np.float32) for of in (found[key], values))
            assert numbers == pytest.approx(wanted_numbers, rel=1e-7), key
    assert {entry.name for entry in tmp_path.iterdir()} == {"run"}


@pytest.mark.parametrize(
    ("names", "sentence"),
    [
        (["tensorbord"], "Expected trackers among tensorboard, mlflow, wandb, trackio, got 'tensorbord' "
                         "(perhaps tensorboard)."),
        (["wandb"], "Expected the package wandb to track with it, got none; pip install 'evenflow[wandb]'."),
    ],
)  # fmt: skip
@pytest.mark.parametrize("words", [["lqr", "--out", "new"], ["--resume", "new"]])
def test_what_cannot_track_is_told_before_anything_is_written(names, sentence, words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert evenflow.main(["train", *words, "--track", *names]) == 2
    assert capsys.readouterr().err == f"evenflow: {sentence}\n"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("content", ["", "[]", '{"tensorboard": 1}', '{"tensorboard": {"identity": null}}',
                                     '{"mine": {"identity": "a", "epoch": 1}}'])  # fmt: skip
def test_a_damaged_list_of_trackers_is_told(content, tmp_path):
    (tmp_path / "tracking.json").write_text(content)
    with pytest.raises(RunError, match=r"tracking\.json, got other content; remove it to track anew\.$"):
        Tracking([], tmp_path)


def test_members_are_named_by_what_sets_them_apart():
    alike = Experiment("lqr", gradients=("R", "M"), seeds=(4,), epochs=1)
    assert sorted(member_names(alike.labels())) == ["M seed 4", "R seed 4"]
