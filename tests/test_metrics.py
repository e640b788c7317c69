"""metrics.jsonl: every damaged line is told with its number, whoever reads it."""

import json
import shutil

import pytest

import evenflow
from training import Experiment, RunDirectory, TrainingSettings, resume, train
from training.errors import RunError
from training.metrics import MEASURED, first_lines, for_json, from_json, read_metrics
from training.viewing import watched

pytestmark = pytest.mark.float64

OLD = {"epoch": 2, "seconds": 1.5, "train_loss": [1.0, None], "test_loss": [2, 0.5], "diverged": [1]}
MEASURES = {**{name: [0.5, None] for name in MEASURED}, "update_seconds": 0.01}
GOOD = {**OLD, **MEASURES}
BAD = {
    "losses too few": ({"train_loss": [1.0]}, "1 values of train_loss for 2 members"),
    "losses too many": ({"test_loss": [1.0] * 3}, "3 values of test_loss for 2 members"),
    "no losses": ({"train_loss": [], "test_loss": []}, "0 values of train_loss for 2 members"),
    "a loss in words": ({"test_loss": [1.0, "0.5"]}, "test_loss that is no list of numbers"),
    "a loss that is a truth": ({"test_loss": [1.0, True]}, "test_loss that is no list of numbers"),
    "a list of lists": ({"test_loss": [[1.0], [1.0]]}, "test_loss that is no list of numbers"),
    "a number for a list": ({"train_loss": 1.0}, "train_loss that is no list of numbers"),
    "a loss beyond any float": ({"train_loss": [1.0, 10**400]}, "train_loss that is no list of numbers"),
    "an epoch twice": ({"epoch": 1}, "epoch 1 where epoch 2 is due"),
    "an epoch left out": ({"epoch": 3}, "epoch 3 where epoch 2 is due"),
    "an epoch that is a float": ({"epoch": 2.0}, "epoch 2.0 where epoch 2 is due"),
    "an epoch that is a truth": ({"epoch": True}, "epoch True where epoch 2 is due"),
    "no time": ({"seconds": None}, "None as seconds"),
    "no time of an update": ({"update_seconds": None}, "None as update_seconds"),
    "norms too few": ({"gradient_norm": [1.0]}, "1 values of gradient_norm for 2 members"),
    "an agreement in words": ({"sign_agreement": "all"}, "sign_agreement that is no list of numbers"),
    "diverged nobody": ({"diverged": [2]}, "diverged members that are none of the run's"),
    "diverged half": ({"diverged": [0.5]}, "diverged members that are none of the run's"),
    "diverged in words": ({"diverged": "none"}, "diverged members that are none of the run's"),
}
NOT_JSON = {
    "NaN": json.dumps({**GOOD, "test_loss": [float("nan"), 1.0]}),
    "infinity": json.dumps({**GOOD, "seconds": float("inf")}),
    "cut off": json.dumps(GOOD)[:-9],
    "two lines in one": json.dumps(GOOD) * 2,
    "nothing": "",
}


def file_with(folder, line):
    file = folder / "metrics.jsonl"
    first = {**GOOD, "epoch": 1, "diverged": []}
    file.write_text(f"{json.dumps(first)}\n{line}\n{json.dumps({**GOOD, 'epoch': 3})}\n")
    return file


def test_good_lines_are_read_as_they_are(tmp_path):
    file = file_with(tmp_path, json.dumps(GOOD))
    assert read_metrics(file)[1] == GOOD
    assert read_metrics(file, members=2) == read_metrics(file)
    assert first_lines(file, 2) == b"".join(file.read_bytes().splitlines(keepends=True)[:2])
    assert read_metrics(tmp_path / "nowhere") == []
    assert read_metrics(file_with(tmp_path, json.dumps(OLD)))[1] == OLD


@pytest.mark.parametrize("name", BAD)
def test_a_line_of_the_wrong_length_or_type_is_named_with_what_is_wrong(name, tmp_path):
    change, words = BAD[name]
    file = file_with(tmp_path, json.dumps({**GOOD, **change}))
    with pytest.raises(RunError, match=r"^Expected an epoch's losses as JSON in line 2 of .*\.$") as error:
        read_metrics(file)
    assert str(error.value).endswith(f"got {words}.")


@pytest.mark.parametrize("name", NOT_JSON)
def test_what_is_no_line_of_json_is_refused(name, tmp_path):
    with pytest.raises(RunError, match="got something else"):
        read_metrics(file_with(tmp_path, NOT_JSON[name]))


def test_the_first_line_is_held_against_the_members_of_the_run(tmp_path):
    with pytest.raises(RunError, match=r"line 1 of .*, got 2 values of train_loss for 3 members"):
        read_metrics(file_with(tmp_path, json.dumps(GOOD)), members=3)


def test_a_run_whose_lines_have_nothing_but_losses_goes_on(run, tmp_path):
    path = shutil.copytree(run, tmp_path / "run")
    file = path / "metrics.jsonl"
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    old = [{name: value for name, value in line.items() if name not in MEASURES} for line in lines]
    file.write_text("".join(json.dumps(line) + "\n" for line in old))
    resume(path, epochs=3)
    *kept, new = RunDirectory.open(path).metrics()
    assert kept == old
    assert set(new) == set(GOOD)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    path = tmp_path_factory.mktemp("metrics") / "run"
    settings = TrainingSettings(batch_size=4, train_samples=4, test_samples=4)
    train(Experiment("guidance", {"horizon": 3}, gradients=("R", "M"), seeds=(0,), epochs=2, settings=settings), path)
    return path


def test_every_reader_tells_the_same(run, tmp_path, capsys, monkeypatch):
    path = shutil.copytree(run, tmp_path / "run")
    file = path / "metrics.jsonl"
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    three = {"test_loss": [1.0] * 3, "train_loss": [1.0] * 3}
    file.write_text("".join(json.dumps({**line, **three}) + "\n" for line in lines))
    words = f"line 1 of {file}, got 3 values of train_loss for 2 members."
    for read in (lambda: RunDirectory.open(path).metrics(), lambda: resume(path), lambda: watched(str(path))):
        with pytest.raises(RunError) as error:
            read()
        assert str(error.value).endswith(words)
    monkeypatch.setattr(evenflow.Machine, "start", lambda machine: None)
    name = str(path)
    for command in (
        ["train", "--resume", name],
        ["train", "--resume", name, "--epochs", "5"],
        ["report", name],
        ["bench", "outcome", name, "--out", str(tmp_path / "outcome.png")],
    ):
        assert evenflow.main(command) == 2
        error = capsys.readouterr().err
        assert error.endswith(words + "\n")
        assert error.count("\n") == 1


def test_numbers_that_json_does_not_have_are_null():
    told = for_json(
        {"a": [1.5, float("inf")], "b": (float("nan"), {"c": -float("inf")}), "d": [True, None, "x", 10**400]}
    )
    assert told == {"a": [1.5, None], "b": [None, {"c": None}], "d": [True, None, "x", 10**400]}
    assert from_json(json.dumps(told)) == told
