"""Whatever ends a training leaves a run that goes on to the same numbers: signals, closed pipes, kills, full disks."""

import os
import signal
import sys
import threading
import time
from dataclasses import replace

import pytest
from children import HANGS, ROOT, Child, run_child
from test_experiment import equal, outcome

from benchmarks.studies.directory import StudyDirectory
from benchmarks.studies.packs import run_study
from benchmarks.studies.study import Study
from training import Experiment, RunDirectory, TrainingSettings, load_controller, resume, train
from training.errors import RunError
from training.stopping import Stopped, Stopping

pytestmark = pytest.mark.float64

SETTINGS = TrainingSettings(train_samples=16, test_samples=8, shuffle=True)
EXPERIMENT = Experiment("cart-pole", {"horizon": 5}, seeds=(0,), epochs=6, checkpoint_every=4, settings=SETTINGS)


def trained_whole(tmp_path_factory):
    """The outcome of the experiment where nothing stops it."""
    path = tmp_path_factory.mktemp("whole") / "run"
    train(EXPERIMENT, path)
    return outcome(path)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return trained_whole(tmp_path_factory)


def at(epoch, act):
    """A progress that acts after an epoch."""
    return lambda trainer, record: act() if record.epoch == epoch else None


def send(*names):
    return lambda: [os.kill(os.getpid(), getattr(signal, name)) for name in names]


def closed_pipe():
    raise BrokenPipeError


@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP", "SIGINT"])
def test_a_signal_ends_after_the_epoch_under_way_with_a_checkpoint(name, whole, tmp_path):
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]
    with Stopping() as stopping:
        trainer = train(EXPERIMENT, tmp_path / "run", at(2, send(name)), stopping)
    assert (trainer.epoch, stopping.requested) == (2, getattr(signal, name))
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)] == before
    assert RunDirectory.open(tmp_path / "run").epoch == 2
    resume(tmp_path / "run")
    equal(outcome(tmp_path / "run"), whole)


@pytest.mark.parametrize("names", [("SIGTERM", "SIGTERM"), ("SIGINT", "SIGTERM"), ("SIGHUP", "SIGINT")], ids="-".join)
def test_a_second_signal_interrupts_at_once(names, whole, tmp_path):
    with pytest.raises(Stopped, match=f"stopped by {names[1]}") as stop:
        train(EXPERIMENT, tmp_path / "run", at(2, send(*names)))
    assert stop.value.number == getattr(signal, names[1])
    resume(tmp_path / "run")
    equal(outcome(tmp_path / "run"), whole)


def test_what_a_process_was_started_to_ignore_stays_ignored(tmp_path, monkeypatch):
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        assert train(EXPERIMENT, tmp_path / "run", at(2, send("SIGHUP"))).epoch == EXPERIMENT.epochs
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_other_threads_train_without_listening(tmp_path):
    found = []
    thread = threading.Thread(target=lambda: found.append(train(EXPERIMENT, tmp_path / "run").epoch))
    thread.start()
    thread.join()
    assert found == [EXPERIMENT.epochs]


def test_what_the_progress_raises_ends_the_training_with_a_checkpoint(whole, tmp_path):
    with pytest.raises(BrokenPipeError):
        train(EXPERIMENT, tmp_path / "run", at(2, closed_pipe))
    assert RunDirectory.open(tmp_path / "run").epoch == 2
    resume(tmp_path / "run")
    equal(outcome(tmp_path / "run"), whole)


def test_a_study_stops_with_its_signal_and_goes_on(tmp_path):
    study = Study("cart-pole", {"horizon": 5}, (1, 2), gradients=("R",), seed_count=1, epochs=2, settings=SETTINGS)
    with pytest.raises(Stopped, match="stopped by SIGTERM"):
        run_study(study, tmp_path / "study", lambda pack, left: at(1, send("SIGTERM")))
    assert StudyDirectory(tmp_path / "study").lines == []
    run_study(study, tmp_path / "study")
    run_study(study, tmp_path / "whole")
    results = [[result["test_loss"] for result in StudyDirectory(tmp_path / name).lines] for name in ("study", "whole")]
    assert results[0] == results[1]


def full(count):
    """`os.replace` on a disk that is full from the write of this number on."""
    left, real = [count], os.replace

    def replace_(source, target):
        left[0] -= 1
        if left[0] < 0:
            raise OSError(28, "No space left on device")
        real(source, target)

    return replace_


@pytest.mark.parametrize("writes", range(5))  # the configuration, and checkpoints of epochs 0, 4 and 6
def test_a_full_disk_is_told_and_leaves_a_run_that_goes_on(writes, whole, tmp_path, monkeypatch):
    path = tmp_path / "below" / "run"
    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", full(writes))
        if writes < 4:
            with pytest.raises(RunError, match=r"^Expected .*: No space left on device\.$"):
                train(EXPERIMENT, path)
        else:
            train(EXPERIMENT, path)
    assert not [file for file in tmp_path.rglob("*") if file.suffix == ".part"]
    if writes == 0:
        assert list(tmp_path.iterdir()) == []
        train(EXPERIMENT, path)
    resume(path)
    equal(outcome(path), whole)


def test_a_disk_that_fills_within_a_line_of_metrics_loses_that_line_alone(whole, tmp_path, monkeypatch):
    class Full:
        def __init__(self, file, mode):
            self.file = open(file, mode)  # noqa: SIM115

        def __enter__(self):
            return self

        def write(self, text):
            self.file.write(text[:20])

        def __exit__(self, *_):
            self.file.close()
            raise OSError(28, "No space left on device")

    def after(trainer, record):
        if record.epoch == 2:
            monkeypatch.setattr("training.run.open", lambda file, mode: Full(file, mode), raising=False)

    with pytest.raises(RunError, match=r"^Expected to write the run in .*: No space left on device\.$"):
        train(replace(EXPERIMENT, checkpoint_every=1), tmp_path / "run", after)
    monkeypatch.undo()
    assert [record["epoch"] for record in RunDirectory.open(tmp_path / "run").metrics()] == [1, 2]
    resume(tmp_path / "run")
    lines, checkpoint = outcome(tmp_path / "run")
    assert lines == whole[0]
    equal(([], checkpoint), ([], whole[1]))


OPTIONS = ["--seeds", "1", "--train-samples", "16", "--test-samples", "8", "--horizon", "5", "--backend", "cpu",
           "--precision", "float64", "--shuffle"]  # fmt: skip


def command(*arguments):
    return [sys.executable, "-m", "evenflow", *arguments]


def waited_for(check, process):
    deadline = time.monotonic() + HANGS
    while not check() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    return check()


def test_sigterm_ends_the_command_in_good_order(tmp_path):
    line = command("train", "cart-pole", *OPTIONS, "--epochs", "1000000", "--out", "run")
    out, errors = (tmp_path / name for name in ("printed", "errors"))
    with out.open("w") as stdout, errors.open("w") as stderr, Child(line, stdout, stderr, cwd=tmp_path) as process:
        run = tmp_path / "run"
        metrics = run / "metrics.jsonl"
        assert waited_for(lambda: metrics.exists() and metrics.read_text().count("\n") >= 3, process)
        with pytest.raises(RunError, match=rf"got another writer, process {process.pid} on "):
            resume(run)
        assert load_controller(run).members == 1
        process.send_signal(signal.SIGTERM)
        assert process.wait(HANGS) == 128 + signal.SIGTERM
    last = errors.read_text().splitlines()[-1]
    assert last == "evenflow: stopped by SIGTERM; continue with: evenflow train --resume run."
    assert "Final test loss" in out.read_text()
    opened = RunDirectory.open(run)
    assert opened.epoch == len(opened.metrics()) >= 3
    assert not (run / ".lock").exists()


def test_a_pipe_that_nobody_reads_any_more_loses_nothing(tmp_path):
    line = command("train", "cart-pole", *OPTIONS, "--epochs", "200", "--out", "run")
    reading, writing = (os.fdopen(end, mode) for end, mode in zip(os.pipe(), "rw", strict=True))
    with (tmp_path / "errors").open("w+") as stderr:
        process = Child(line, writing, stderr, cwd=tmp_path)
        writing.close()
        assert reading.readline().startswith("cpu, float64")
        reading.close()
        assert process.wait(HANGS) == 128 + signal.SIGPIPE
    errors = (tmp_path / "errors").read_text()
    assert errors.splitlines()[-1].startswith("evenflow: stopped, since nobody reads what it prints; continue with: ")
    assert "Traceback" not in errors
    opened = RunDirectory.open(tmp_path / "run")
    assert 1 <= opened.epoch == len(opened.metrics()) < 200
    assert (tmp_path / "run" / "losses.png").exists()


KILLED = """
import os, signal, sys
sys.path.insert(0, {tests!r})
import engine
engine.init("cpu", "float64")
from test_signals import EXPERIMENT
from training import train
real, left = os.fsync, [{count}]
def fsync(descriptor):
    left[0] -= 1
    if left[0] == 0:
        os.ftruncate(descriptor, 1000)
        os.kill(os.getpid(), signal.SIGKILL)
    real(descriptor)
os.fsync = fsync
train(EXPERIMENT, {out!r})
"""


def test_a_kill_in_the_middle_of_writing_a_checkpoint_loses_no_number(whole, tmp_path):
    path = tmp_path / "run"
    # The configuration, the checkpoint of epoch 0, the metrics, and then the checkpoint of epoch 4.
    source = KILLED.format(tests=str(ROOT / "tests"), out=str(path), count=4)
    assert run_child([sys.executable, "-c", source]).returncode == -signal.SIGKILL
    run = RunDirectory.open(path)
    assert (run.epoch, len(run.metrics())) == (0, 4)
    assert len(list((path / "checkpoints").glob(".epoch-000004.*.part"))) == 1
    resume(path)
    equal(outcome(path), whole)
    assert sorted(file.name for file in path.iterdir()) == ["checkpoints", "config.yaml", "metrics.jsonl"]
    assert not list((path / "checkpoints").glob(".*"))
