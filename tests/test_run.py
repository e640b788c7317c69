"""Run directories: nothing is overwritten, half a file is no file, and nothing that is read runs code."""

import json
import pickle
import random
from dataclasses import replace

import pytest
import torch
import yaml
from safetensors.torch import save_file

from training import Experiment, RunDirectory, TrainingSettings, read_checkpoint
from training.divergence import Divergence
from training.errors import RunError
from training.metrics import MEASURED
from training.trainer import EpochRecord

pytestmark = pytest.mark.float64

EXPERIMENT = Experiment(
    "cart-pole",
    {"horizon": 10},
    seeds=(0,),
    epochs=4,
    settings=TrainingSettings(train_samples=16, test_samples=8),
)


@pytest.fixture
def run(tmp_path):
    return RunDirectory.create(tmp_path / "run", EXPERIMENT.to_config())


@pytest.fixture
def trained(run):
    """A run of two epochs with a checkpoint after each, and its trainer."""
    trainer = EXPERIMENT.trainer()
    for _ in range(2):
        run.append(trainer.run_epoch(), 0.5, trainer.divergences)
        run.save(trainer)
    return run, trainer


def contents(path):
    return {str(file.relative_to(path)): file.read_bytes() for file in sorted(path.rglob("*")) if file.is_file()}


def refused(path, call):
    """Call, expect a RunError of one sentence, and no change below `path`; returns the sentence."""
    before = contents(path)
    with pytest.raises(RunError) as error:
        call()
    assert contents(path) == before
    sentence = str(error.value)
    assert sentence.startswith("Expected ")
    assert sentence.endswith(".")
    assert "\n" not in sentence
    return sentence


def test_the_configuration_is_read_back_as_it_was(run):
    found = Experiment.from_config(RunDirectory.open(run.path).config)
    order = ("R", "C")  # of the members, which checkpoints hold by place
    assert found == replace(EXPERIMENT, options={"poles": 1, "horizon": 10, "dt": 0.01}, order=order)


def test_a_directory_that_holds_anything_is_left_alone(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    sentence = refused(tmp_path, lambda: RunDirectory.create(tmp_path, {}))
    assert "empty or new run directory" in sentence


def test_a_file_in_the_place_of_a_directory_is_left_alone(tmp_path):
    (tmp_path / "run").write_text("mine")
    refused(tmp_path, lambda: RunDirectory.create(tmp_path / "run", {}))
    refused(tmp_path, lambda: RunDirectory.create(tmp_path / "run" / "below", {}))


def test_an_empty_directory_may_become_a_run(tmp_path):
    assert RunDirectory.create(tmp_path, EXPERIMENT.to_config()).checkpoints() == []


def check_continuation(run, trainer):
    other = EXPERIMENT.trainer()
    assert run.restore(other) == 2
    assert {name: value.tolist() for name, value in other.state().items()} == {
        name: value.tolist() for name, value in trainer.state().items()
    }
    assert other.run_epoch() == trainer.run_epoch()


def test_a_checkpoint_holds_everything_a_trainer_continues_from(trained):
    check_continuation(*trained)


def test_losses_that_are_not_finite_are_written_as_null(run):
    run.append(EpochRecord(1, [1.0, float("nan")], [float("inf"), 2.0]), 0.1, {1: Divergence(1, 1, 3, "why")})
    (line,) = run.metrics()
    assert line["train_loss"] == [1.0, None]
    assert line["test_loss"] == [None, 2.0]
    assert line["diverged"] == [1]


def test_divergences_are_kept_in_checkpoints(trained):
    run, trainer = trained
    trainer.divergences[1] = Divergence(1, 2, 3, "the loss is not finite")
    path = run.save(trainer)
    assert read_checkpoint(path)[2] == trainer.divergences


def test_a_line_of_metrics_cut_off_by_a_kill_is_left_out(trained):
    run, _ = trained
    file = run.path / "metrics.jsonl"
    file.write_text(file.read_text()[:-10])
    assert [line["epoch"] for line in run.metrics()] == [1]


def test_epochs_count_as_numbers_and_other_files_are_no_checkpoints(run):
    folder = run.path / "checkpoints"
    for name in ("epoch-1000000", "epoch-000009", "epoch-000009-best", "epoch-000009 (copy)", "epoch-", "best"):
        (folder / f"{name}.safetensors").touch()
    assert [file.stem for file in run.checkpoints()] == ["epoch-000009", "epoch-1000000"]


def test_loading_writes_nothing_and_going_on_cuts_off_later_metrics(trained):
    run, _ = trained
    before = contents(run.path)
    assert run.restore(EXPERIMENT.trainer(), run.checkpoints()[0]) == 1
    assert contents(run.path) == before
    run.rewind(1)
    assert [line["epoch"] for line in run.metrics()] == [1]


def test_a_half_written_checkpoint_is_never_picked_up(trained):
    run, _ = trained
    last = run.checkpoints()[-1]
    # What a kill in the middle of writing leaves behind.
    (last.parent / ".epoch-000003.safetensors.x1").write_bytes(last.read_bytes()[:100])
    assert run.checkpoints()[-1] == last
    assert run.restore(EXPERIMENT.trainer()) == 2


def full(descriptor):
    raise OSError(28, "No space left on device")


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(trained, monkeypatch):
    run, trainer = trained
    before = contents(run.path)

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        run.save(trainer)
    assert contents(run.path) == before


def test_going_on_where_nothing_can_be_written_says_so_and_changes_nothing(trained, monkeypatch):
    run, _ = trained
    run.restore(EXPERIMENT.trainer(), run.checkpoints()[0])

    monkeypatch.setattr("os.fsync", full)
    assert "No space left" in refused(run.path, lambda: run.rewind(1))


def test_metrics_without_any_checkpoint_are_kept(trained):
    run, _ = trained
    for file in run.checkpoints():
        file.unlink()
    sentence = refused(run.path, lambda: run.restore(EXPERIMENT.trainer()))
    assert "got 2 epochs of metrics and none" in sentence


def test_a_run_that_was_killed_before_its_first_checkpoint_starts_anew(run):
    assert run.restore(EXPERIMENT.trainer()) == 0


class Hostile:
    def __reduce__(self):
        return (open, ("pwned", "w"))


def damaged(kind, data):
    middle = len(data) // 2
    return {
        "empty": b"",
        "cut off": data[:-100],
        "header cut off": data[:40],
        "header flipped": data[:12] + bytes([data[12] ^ 0xFF]) + data[13:],
        "a header of 2^60 bytes": (2**60).to_bytes(8, "little") + data[8:],
        "a pickle": pickle.dumps(Hostile()),
        "longer than it says": data + b"\0" * 64,
        "text": b"checkpoint" * middle,
    }[kind]


DAMAGE = ("empty", "cut off", "header cut off", "header flipped", "a header of 2^60 bytes", "a pickle",
          "longer than it says", "text")  # fmt: skip


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_checkpoint_is_refused(kind, trained, monkeypatch):
    run, _ = trained
    monkeypatch.chdir(run.path)
    path = run.checkpoints()[-1]
    path.write_bytes(damaged(kind, path.read_bytes()))
    trainer = EXPERIMENT.trainer()
    assert "damaged or not one" in refused(run.path, lambda: run.restore(trainer))
    assert trainer.epoch == 0


def test_a_flipped_bit_anywhere_in_a_checkpoint_is_refused(trained):
    run, _ = trained
    path, draw = run.checkpoints()[-1], random.Random(0)
    data = path.read_bytes()
    header = 8 + int.from_bytes(data[:8], "little")
    for place in [draw.randrange(header) for _ in range(150)] + [draw.randrange(header, len(data)) for _ in range(50)]:
        flipped = bytearray(data)
        flipped[place] ^= 1 << draw.randrange(8)
        path.write_bytes(flipped)
        with pytest.raises(RunError, match=r"^Expected .*\.$"):
            read_checkpoint(path)


def test_a_checkpoint_from_before_there_were_checksums_is_read(trained):
    run, trainer = trained
    save_file(trainer.state(), run.checkpoints()[-1], OURS)
    assert run.restore(EXPERIMENT.trainer()) == 2


OURS = {"kind": "evenflow checkpoint", "format": "1", "epoch": "2", "divergences": "[]"}
DIVERGED = {"member": 0, "epoch": 1, "update": 2, "cause": "the loss is not finite"}


@pytest.mark.parametrize(
    ("change", "metadata", "message"),
    [
        ({}, {"kind": "something else"}, "an Evenflow checkpoint"),
        ({}, {"format": "2"}, "format 1"),
        ({}, {"epoch": "two"}, "damaged metadata"),
        ({}, {"divergences": '[{"member": 0}]'}, "damaged metadata"),
        ({}, {"divergences": "7"}, "damaged metadata"),
        ({}, {"divergences": "[[0]]"}, "damaged metadata"),
        ({}, {"divergences": "[" * 100_000}, "damaged metadata"),
        ({}, {"divergences": json.dumps([{**DIVERGED, "member": "0"}])}, "damaged metadata"),
        ({}, {"divergences": json.dumps([{**DIVERGED, "member": 99}])}, "members [] as diverged"),
        ({"active": torch.tensor([False, True])}, {}, "members [0] as diverged"),
        ({}, {"epoch": "-1"}, "damaged metadata"),
        ({}, {"epoch": "9" * 5000}, "damaged metadata"),
        ({}, {"unknown": "7"}, "damaged metadata"),
        ({"theta": torch.zeros(1, 3).double()}, {}, "'theta'"),
        ({"theta": torch.zeros(2, 10801)}, {}, "'theta'"),
        ({"theta": None}, {}, "without it"),
        ({"extra": torch.zeros(2)}, {}, "'extra'"),
        ({"optimiser.exp_avg": torch.zeros(5)}, {}, "'optimiser.exp_avg'"),
        ({"optimiser.exp_avg": torch.zeros(())}, {}, "'optimiser.exp_avg'"),
        ({"optimiser.exp_avg": None}, {}, "without it"),
        ({"optimiser.step": None, "optimiser.exp_avg": None, "optimiser.exp_avg_sq": None}, {}, "without it"),
        ({"optimiser.extra": torch.zeros(())}, {}, "'optimiser.extra'"),
        ({"order.0": torch.zeros(5056, dtype=torch.uint8)}, {}, "random generators"),
    ],
)
def test_tensors_that_are_not_this_runs_are_refused(change, metadata, message, trained):
    run, trainer = trained
    tensors = {name: value.detach().clone() for name, value in trainer.state().items()} | change
    path = run.checkpoints()[-1]
    save_file({name: value for name, value in tensors.items() if value is not None}, path, {**OURS, **metadata})
    fresh = EXPERIMENT.trainer()
    theta = fresh.policy.theta.detach().clone()
    assert message in refused(run.path, lambda: run.restore(fresh))
    assert torch.equal(fresh.policy.theta, theta)
    assert fresh.epoch == 0


@pytest.mark.parametrize(
    "text",
    [
        "!!python/object/apply:os.system ['touch pwned']",
        "kind: !!python/object/new:os.system ['touch pwned']",
        "kind: [unclosed",
        "just text",
        "kind: something else",
        "kind: evenflow run\nformat: 2\n",
        "kind: evenflow run\nformat: '1'\n",
        "\x00\x01",
        "[" * 10_000,
        "day: 2020-13-45",
        "number: " + "9" * 5000,
        "? [a]\n: b",
    ],
)
def test_a_configuration_that_is_not_ours_is_refused_and_runs_nothing(text, run, monkeypatch):
    monkeypatch.chdir(run.path)
    (run.path / "config.yaml").write_text(text)
    refused(run.path, lambda: RunDirectory.open(run.path))
    assert not (run.path / "pwned").exists()


@pytest.mark.parametrize("missing", ["task", "settings", "gradients", "seeds"])
def test_an_incomplete_configuration_is_refused(missing, run):
    config = yaml.safe_load((run.path / "config.yaml").read_text())
    del config[missing]
    (run.path / "config.yaml").write_text(yaml.safe_dump(config))
    opened = RunDirectory.open(run.path)
    refused(run.path, lambda: Experiment.from_config(opened.config))


@pytest.mark.parametrize(
    "line",
    [
        "not json",
        "",
        "5",
        "null",
        "[" * 100_000,
        "9" * 5000,
        "{}",
        '{"epoch": 2, "seconds": 1.0}',
        '{"epoch": "2", "seconds": 1.0, "train_loss": [1.0], "test_loss": [1.0], "diverged": []}',
        '{"epoch": 2, "seconds": null, "train_loss": [1.0], "test_loss": [1.0], "diverged": []}',
        '{"epoch": 2, "seconds": 1.0, "train_loss": 1.0, "test_loss": [1.0], "diverged": []}',
    ],
    ids=lambda line: line[:40] or "empty",
)
def test_metrics_that_are_not_an_epochs_losses_are_refused(line, trained):
    run, _ = trained
    file = run.path / "metrics.jsonl"
    first, second = file.read_text().splitlines()
    file.write_text(f"{first}\n{line}\n{second}\n")
    assert "line 2" in refused(run.path, lambda: run.restore(EXPERIMENT.trainer()))


def test_metrics_that_cannot_be_read_are_refused(run):
    (run.path / "metrics.jsonl").mkdir()
    assert "Is a directory" in refused(run.path, lambda: run.restore(EXPERIMENT.trainer()))


def test_metrics_are_plain_json(trained):
    run, _ = trained
    for line in (run.path / "metrics.jsonl").read_text().splitlines():
        found = {"epoch", "seconds", "train_loss", "test_loss", "diverged", *MEASURED, "update_seconds"}
        assert set(json.loads(line)) == found
