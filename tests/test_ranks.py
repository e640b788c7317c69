"""Several ranks train what one process trains, to rounding, and what ends one of them ends all in good order."""

import shutil
import signal
import subprocess
import sys
import time
from datetime import timedelta

import pytest
import torch
from children import HANGS, Child, inherited, run_evenflow
from conftest import relative_error
from test_experiment import outcome
from torch.distributed import TCPStore  # pyright: ignore[reportPrivateImportUsage]

import engine
from engine import SettingError
from engine.runtime import cores
from training import Experiment, Member, RunDirectory, Trainer, TrainingSettings, build_task, gradient_named, train
from training import resume as go_on
from training.doors import load
from training.ranks import ALONE, Together, ranks_of_environment

PLUGIN = """
from dataclasses import dataclass, replace
import evenflow as ef

@dataclass(frozen=True)
class ShakenOptions:
    '''A cart with a pole that is shaken.'''

    horizon: int = 6

    def build(self):
        task = ef.build_task("cart-pole", poles=1, horizon=self.horizon)
        return replace(task, name="shaken", noise=ef.Noise(0.01, 0.1))

ef.register_task("shaken", ShakenOptions)
"""
KILLED = """
import os, signal, sys
import evenflow
from training.trainer import Trainer

update = Trainer.update

def killed(self, states, parameters, number):
    if self.epoch == 1 and number == 1 and os.environ["RANK"] == "1":
        os.kill(os.getpid(), signal.SIGKILL)
    return update(self, states, parameters, number)

Trainer.update = killed
sys.exit(evenflow.main(sys.argv[1:]))
"""
# Three samples of a batch for one rank, two for the other; of two learning rates the second lets all diverge.
SETTINGS = TrainingSettings(batch_size=5, train_samples=15, test_samples=7, validation_samples=3, shuffle=True)
SIGNED = "agree(M, score(0.1, 4))"  # which differ in sign, so that those of parts of a batch would be others
GRADIENTS = ("R", "M", "C", "score(0.1, 4)", SIGNED, "mix(R, score(0.1, 4))", "random-cut(R, 0.3)")
OPTIONS = ["--batch-size", "5", "--train-samples", "15", "--test-samples", "7", "--validation-samples", "3",
           "--shuffle", "--seeds", "1", "--backend", "cpu", "--threads", "1"]  # fmt: skip
GONE = "evenflow: Expected 2 ranks until the training ends, got one that is gone; continue with the same torchrun and: "


class Ranks:
    """Two processes with what torchrun tells its own; `commands` are the words of each after python's.

    Attributes:
        said: lines of all of them on standard error that are ours.
    """

    def __init__(self, folder, *commands, module=("-m", "evenflow")):
        self.store = TCPStore("127.0.0.1", 0, None, True, timedelta(seconds=HANGS), False)
        self.files = [[(folder / f"{kind}.{rank}").open("w+") for kind in ("out", "errors")] for rank in range(2)]
        self.processes = [
            Child([sys.executable, *module, *command], out, errors, self._environment(rank), folder)
            for rank, (command, (out, errors)) in enumerate(zip(commands, self.files, strict=True))
        ]

    def _environment(self, rank):
        told = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": self.store.port, "TORCHELASTIC_USE_AGENT_STORE": True}  # fmt: skip
        return inherited(**{name: str(value) for name, value in told.items()})

    def wait(self):
        """Their exit statuses."""
        try:
            return [process.wait(HANGS) for process in self.processes]
        finally:
            for process in self.processes:
                process.kill()

    def text(self, kind):
        texts = []
        for files in self.files:
            files[kind].seek(0)
            texts.append(files[kind].read())
        return texts

    @property
    def said(self):
        return [line for text in self.text(1) for line in text.splitlines() if line.startswith("evenflow: ")]


def close(one, other, tolerance):
    """Metrics and last checkpoints are the same to a tolerance, relative to the largest number of each row."""
    (lines, (epoch, tensors, divergences)), (other_lines, (other_epoch, other_tensors, other_divergences)) = one, other
    assert (epoch, divergences) == (other_epoch, other_divergences)
    assert tensors.keys() == other_tensors.keys()
    for name, expected in other_tensors.items():
        found = tensors[name]
        if found.is_floating_point():
            size = expected.double().abs().amax(-1 if expected.dim() else (), keepdim=True).clamp_min(1.0)
            assert float(((found.double() - expected.double()) / size).abs().max()) <= tolerance, name
        else:
            assert torch.equal(found, expected), name
    assert len(lines) == len(other_lines)
    for line, wanted in zip(lines, other_lines, strict=True):
        assert line.keys() == wanted.keys()
        for name in line:
            found, expected = (
                torch.tensor([float("nan") if number is None else number for number in values], dtype=torch.float64)
                for values in (each[name] if isinstance(each[name], list) else [each[name]] for each in (line, wanted))
            )
            torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance, equal_nan=True)


def test_ranks_train_what_one_process_trains_and_go_on_from_where_one_was_killed(tmp_path):
    precision, tolerance = engine.current().precision, {"float64": 1e-12, "float32": 1e-6}[engine.current().precision]
    rates, plugin = (1e-3, {"float64": 1e308, "float32": 1e38}[precision]), tmp_path / "shaken.py"
    plugin.write_text(PLUGIN)
    load(str(plugin))
    crossed = {"gradients": GRADIENTS, "learning_rates": rates, "clippings": ("norm(0.01)",), "epochs": 3}
    experiment = Experiment("shaken", seeds=(0,), settings=SETTINGS, randomise=("pole_mass=0.08:0.12",), **crossed)
    train(experiment, tmp_path / "whole")
    whole = outcome(tmp_path / "whole")
    assert len(whole[1][2]) == len(GRADIENTS)  # each at its large rate
    signed = [label.gradient for label in experiment.labels()].index(SIGNED)
    assert whole[0][0]["sign_agreement"][signed] < 0.95
    words = ["train", "shaken", "--plugin", "shaken.py", "--gradients", *GRADIENTS, "--clippings", "norm(0.01)",
             "--learning-rates", *map(str, rates), "--randomise", "pole_mass=0.08:0.12", "--epochs", "3",
             "--precision", precision, *OPTIONS, "--out", "run"]  # fmt: skip
    ranks = Ranks(tmp_path, words, words, module=("-c", KILLED))
    assert ranks.wait() == [2, -signal.SIGKILL]
    assert ranks.said == [GONE + "evenflow train --resume run --plugin shaken.py."]
    run = RunDirectory.open(tmp_path / "run")
    assert run.epoch == len(run.metrics()) == 1
    shutil.copytree(tmp_path / "run", tmp_path / "alone")
    go_on(tmp_path / "alone")
    close(outcome(tmp_path / "alone"), whole, tolerance)
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "evenflow", "train"]
    done = subprocess.run(
        [*command, "--resume", "run", "--plugin", "shaken.py", "--threads", "1"],
        cwd=tmp_path, env=inherited(), capture_output=True, text=True, timeout=HANGS, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Final test loss") == done.stdout.count("2 ranks, of which this is the first") == 1
    close(outcome(tmp_path / "run"), whole, tolerance)
    assert (tmp_path / "run" / "losses.png").exists()
    assert not (tmp_path / "run" / ".lock").exists()


SMALL = ["--gradients", "R", "--seeds", "1", "--train-samples", "8", "--test-samples", "2", "--horizon", "2",
         "--backend", "cpu", "--threads", "1"]  # fmt: skip


@pytest.mark.float64
def test_a_signal_to_one_rank_ends_all_after_the_same_epoch(tmp_path):
    words = ["train", "cart-pole", *SMALL, "--epochs", "1000000", "--out", "run"]
    ranks, metrics = Ranks(tmp_path, words, words), tmp_path / "run" / "metrics.jsonl"
    deadline = time.monotonic() + HANGS
    while time.monotonic() < deadline and not (metrics.exists() and metrics.read_text().count("\n") >= 3):
        time.sleep(0.02)
    ranks.processes[1].send_signal(signal.SIGTERM)
    assert ranks.wait() == [128 + signal.SIGTERM] * 2
    assert ranks.said == ["evenflow: stopped by SIGTERM; continue with: evenflow train --resume run."]
    run = RunDirectory.open(tmp_path / "run")
    assert run.epoch == len(run.metrics()) >= 3
    assert "Final test loss" in ranks.text(0)[0]
    assert ranks.text(0)[1] == ""


@pytest.mark.float64
@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ((["--epochs", "1"], ["--epochs", "2"]), "Expected ranks that train the same, got epochs 1 on rank 0 and 2"),
        ((["--backend", "abacus"],) * 2, "Expected a backend among auto, cpu, cuda, vulkan, got 'abacus'."),
        ((["--out", "full"],) * 2, "Expected an empty or new run directory, got full, which holds files; choose"),
        ((["--batch-size", "1"],) * 2, "Expected at least one of the samples of a batch for each of 2 ranks, got 1;"),
    ],
    ids=["settings", "backend", "directory", "batch"],
)
def test_what_ranks_cannot_do_is_said_once_and_nothing_is_written(words, sentence, tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").write_text("mine")
    ranks = Ranks(tmp_path, *(["train", "cart-pole", *SMALL, "--out", "run", *own] for own in words))
    assert ranks.wait() == [2, 2]
    assert len(ranks.said) == 1, ranks.text(1)
    assert ranks.said[0].startswith(f"evenflow: {sentence}")
    assert not any("Traceback" in text for text in ranks.text(1))
    assert not (tmp_path / "run").exists()
    assert [file.name for file in (tmp_path / "full").iterdir()] == ["mine"]


@pytest.mark.float64
def test_other_commands_are_for_one_process(tmp_path):
    ranks = Ranks(tmp_path, ["view", "cart-pole"], ["view", "cart-pole"])
    assert ranks.wait() == [2, 2]
    sentence = "Expected evenflow train under torchrun, got view, which is for one process; start it without."
    assert ranks.said == [f"evenflow: {sentence}"]
    assert ranks.text(0) == ["", ""]
    done = run_evenflow("list", cwd=tmp_path, env=inherited(WORLD_SIZE="2"))
    assert (done.returncode, done.stderr) == (0, "")


FULL = {"WORLD_SIZE": "2", "RANK": "1", "LOCAL_RANK": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}


@pytest.mark.float64
@pytest.mark.parametrize(
    ("environment", "sentence"),
    [
        ({"WORLD_SIZE": "2"}, "Expected RANK, LOCAL_RANK, MASTER_ADDR, MASTER_PORT beside WORLD_SIZE=2, got no RANK"),
        ({**FULL, "MASTER_PORT": ""}, "Expected RANK, .* beside WORLD_SIZE=2, got no MASTER_PORT; start it with"),
        ({**FULL, "WORLD_SIZE": "two"}, "Expected WORLD_SIZE in the environment from 1 to .*, got 'two'"),
        ({**FULL, "RANK": "2"}, "Expected RANK in the environment from 0 to 1, got '2'"),
    ],
)
def test_an_environment_that_is_no_ranks_is_refused(environment, sentence, monkeypatch):
    for name in FULL:
        monkeypatch.delenv(name, raising=False)
    assert ranks_of_environment() is ALONE
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SettingError, match=sentence):
        ranks_of_environment()
    for name, value in FULL.items():
        monkeypatch.setenv(name, value)
    found = ranks_of_environment()
    assert (found.size, found.rank, found.first) == (2, 1, False)


@pytest.mark.float64
@pytest.mark.parametrize("text", ["short(R, 2)", "mask-random(M, R)", "cautious(mask-random(M, R))"])
def test_gradients_that_ranks_cannot_share_are_refused(text):
    settings, member = TrainingSettings(train_samples=8, test_samples=2), Member(gradient_named(text).estimator)
    with pytest.raises(SettingError, match="Expected gradients that several ranks can share, got a"):
        Trainer(build_task("cart-pole", horizon=2), [member], settings, ranks=Together(2, 0, 0, 2))


@pytest.mark.float64
def test_every_sample_has_one_rank():
    for size, count in ((1, 1), (2, 5), (3, 8), (4, 4)):
        parts = [Together(size, rank, rank, size).part(count) for rank in range(size)]
        assert [number for part in parts for number in range(count)[part]] == list(range(count))
        rows = torch.arange(2.0 * count).view(-1, 1)
        own = torch.cat([Together(size, rank, rank, size).own(rows, 2) for rank in range(size)])
        assert relative_error(own.sort(0).values, rows) == 0.0
    assert Together(64, 0, 0, 64).threads(None) == max(1, cores() // 64)
    assert Together(2, 0, 0, 2).threads(3) == 3
