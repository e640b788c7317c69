"""The command line: what it prints, what it writes, and one sentence for a user's mistake."""

import inspect
import json
import os
import re
import signal
import subprocess
import sys
import time

import pytest
from children import HANGS, ROOT, Child, inherited, run_evenflow

import evenflow

pytestmark = pytest.mark.float64

SMALL = ["--epochs", "2", "--train-samples", "16", "--test-samples", "8", "--horizon", "20", "--precision", "float64"]


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """`evenflow ARGUMENTS` typed in a new directory, in this process, which has its imports and kernels already."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "120")

    def typed(*arguments):
        command = [str(argument) for argument in arguments]
        try:
            status = evenflow.main(command)
        except SystemExit as stop:
            status = int(stop.code or 0)
        return subprocess.CompletedProcess(command, status, *capsys.readouterr())

    return typed


def sentence(done):
    """The one line of a failed command's standard error."""
    assert done.returncode == 2, done.stdout + done.stderr
    (line,) = [line for line in done.stderr.splitlines() if not line.startswith("[Taichi]")]
    assert line.startswith("evenflow: Expected ")
    assert line.endswith(".")
    return line


def test_list_names_every_task_gradient_and_optimiser(tmp_path):
    # In a fresh process, as a user far from the repository has it.
    command = [sys.executable, "-m", "evenflow", "list"]
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=tmp_path, env=inherited(), timeout=HANGS, check=False
    )
    assert done.returncode == 0
    for name in (*evenflow.TASKS, *evenflow.OPTIMISERS, *evenflow.GRADIENTS, *evenflow.GRADIENTS["M"].aliases):
        assert name in done.stdout


@pytest.mark.parametrize("arguments", [[], ["train"], ["bench"], ["train", "cart-pole"]], ids=" ".join)
def test_help_is_there_at_every_level(arguments, run):
    done = run(*arguments, "--help")
    assert done.returncode == 0
    assert "usage: evenflow" in done.stdout


def test_every_option_of_a_training_has_a_description(tmp_path):
    text = run_evenflow("train", "cart-pole", "--help", cwd=tmp_path, env=inherited(COLUMNS="120")).stdout
    options = re.findall(r"│ (--[a-z-]+)", text)
    assert {"--gradients", "--seeds", "--poles", "--optimiser", "--backend"} <= set(options)
    described = re.findall(r"│ --[^│]*(?:│\n│ {10,}[^│]*)*\(default", text)
    assert len(described) == len(options)
    assert not re.search(r"│ --[a-z-]+ [A-Z|{}\[\] .a-z]*│\n│ +\(default", text)


def test_training_prints_the_table_and_draws_the_figure(run, tmp_path):
    done = run("train", "cart-pole", "--gradients", "full", "c", "--seeds", 2, *SMALL, "--out", "run")
    assert done.returncode == 0, done.stderr
    assert "Final test loss" in done.stdout
    assert "figure: run/losses.png" in done.stdout
    assert (tmp_path / "run" / "losses.png").read_bytes().startswith(b"\x89PNG")
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [1, 2]
    assert all(len(line["test_loss"]) == 4 for line in lines)


def test_a_run_resumed_for_longer_equals_one_that_never_stopped(run, tmp_path):
    common = ["cart-pole", "--seeds", 1, *SMALL]
    assert run("train", *common, "--out", "parts").returncode == 0
    assert run("train", "--resume", "parts", "--epochs", 4).returncode == 0
    assert run("train", *common, "--epochs", 4, "--out", "whole").returncode == 0

    def losses(name):
        lines = (tmp_path / name / "metrics.jsonl").read_text().splitlines()
        return [(line["epoch"], line["train_loss"], line["test_loss"]) for line in map(json.loads, lines)]

    assert len(losses("parts")) == 4
    assert losses("parts") == losses("whole")


def test_ctrl_c_keeps_what_is_done_and_says_how_to_go_on(tmp_path):
    options = ["--seeds", "1", "--train-samples", "16", "--test-samples", "8", "--epochs", "100000"]
    command = [sys.executable, "-m", "evenflow", "train", "cart-pole", *options, "--out", "run"]
    with (tmp_path / "printed").open("w") as out, Child(command, out, cwd=tmp_path) as process:
        metrics = tmp_path / "run" / "metrics.jsonl"
        deadline = time.monotonic() + HANGS
        while not (metrics.exists() and metrics.read_text().count("\n") >= 3) and time.monotonic() < deadline:
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        assert process.wait(HANGS) == 128 + signal.SIGINT
    assert "continue with: evenflow train --resume run" in (tmp_path / "printed").read_text()
    last = metrics.read_text().splitlines()[-1]
    assert (tmp_path / "run" / "checkpoints" / f"epoch-{json.loads(last)['epoch']:06d}.safetensors").exists()


MISTAKES = {
    "unknown task": ("train", "cart-pool"),
    "unknown gradient": ("train", "cart-pole", "--gradients", "Q"),
    "the same gradient twice": ("train", "cart-pole", "--gradients", "R", "full"),
    "unknown backend": ("train", "cart-pole", "--backend", "gpu"),
    "unknown precision": ("train", "cart-pole", "--precision", "half"),
    "unknown optimiser": ("train", "cart-pole", "--optimiser", "adamw"),
    "unknown clipping": ("train", "cart-pole", "--clippings", "hard"),
    "negative time step": ("train", "cart-pole", "--dt", "-0.1"),
    "no steps": ("train", "cart-pole", "--horizon", "0"),
    "no poles": ("train", "cart-pole", "--poles", "0"),
    "no seeds": ("train", "cart-pole", "--seeds", "0"),
    "no epochs": ("train", "cart-pole", "--epochs", "0"),
    "no threads": ("train", "cart-pole", "--threads", "0"),
    "negative seed": ("train", "cart-pole", "--first-seed", "-1"),
    "negative learning rate": ("train", "cart-pole", "--learning-rates", "-1"),
    "batch above the data": ("train", "cart-pole", "--batch-size", "300"),
    "budget that is no size": ("train", "cart-pole", "--memory", "lots"),
    "budget too small": ("train", "cart-pole", "--memory", "1KiB"),
    "run that is not there": ("train", "--resume", "nowhere"),
    "run directory with files": ("train", "cart-pole", "--out", "full"),
    "run directory that is a file": ("train", "cart-pole", "--out", "full/notes.txt"),
    "run directory below a file": ("train", "cart-pole", "--out", "full/notes.txt/run"),
    "benchmark without rounds": ("bench", "speed", "--rounds", "0"),
    "benchmark over an old result": ("bench", "speed", "--out", "full/notes.txt"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_ends_in_one_sentence_and_overwrites_nothing(name, tmp_path, capsys, monkeypatch):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    monkeypatch.chdir(tmp_path)
    assert evenflow.main(MISTAKES[name]) == 2
    error = capsys.readouterr().err
    assert error.startswith("evenflow: Expected ")
    assert error.count("\n") == 1
    assert (tmp_path / "full" / "notes.txt").read_text() == "mine"
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["full", "notes.txt"]


def test_an_absent_backend_is_named_with_those_that_are_there(tmp_path):
    if "cuda" in evenflow.available_backends():
        pytest.skip("this machine has CUDA")
    line = sentence(run_evenflow("train", "cart-pole", "--backend", "cuda", cwd=tmp_path))
    assert "cpu" in line
    assert "'cuda'" in line


def test_a_value_of_the_wrong_type_is_explained_without_a_traceback(run):
    done = run("train", "cart-pole", "--poles", "many")
    assert done.returncode == 2
    assert "--poles" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_front_door_names_everything_once():
    assert len(set(evenflow.__all__)) == len(evenflow.__all__)
    assert all(hasattr(evenflow, name) for name in evenflow.__all__)


@pytest.mark.parametrize("name", sorted({*evenflow.__all__} - {"OPTIMISERS"}))  # a dict
def test_what_the_front_door_names_says_what_it_is(name):
    thing = getattr(evenflow, name)
    kind = thing if inspect.isclass(thing) or inspect.isfunction(thing) else type(thing)
    told = vars(kind).get("__doc__") if inspect.isclass(kind) else kind.__doc__
    assert told
    assert not told.startswith(f"{kind.__name__}(")  # a dataclass's own signature
    assert told.strip().partition("\n\n")[0].endswith((".", ".)", ":")), told


def test_the_version_is_the_distributions():
    assert f'version="{evenflow.__version__}"' in (ROOT / "setup.py").read_text()


EARLY = """
import atexit, os, signal, sys

class Interrupting:
    @staticmethod
    def find_spec(name, *_):
        if name == "torch":
            os.kill(os.getpid(), signal.SIGINT)

signal.signal(signal.SIGINT, signal.default_int_handler)  # whatever those who run the tests do with it
sys.argv = ["evenflow", {word!r}]
{given}
atexit.register(lambda: print(sorted({{"taichi", "torch", "training"}} & set(sys.modules))))
from evenflow import main
sys.exit(main())
"""


def test_the_version_loads_nothing():
    done = subprocess.run([sys.executable, "-c", EARLY.format(word="--version", given="")], capture_output=True,
                          text=True, env=os.environ | {"PYTHONPATH": str(ROOT)}, check=True)  # fmt: skip
    assert done.stdout == f"evenflow {evenflow.__version__}\n[]\n"


def test_ctrl_c_while_libraries_are_loaded_is_one_sentence():
    source = EARLY.format(word="list", given="sys.meta_path.insert(0, Interrupting)")
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, env=environment, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (128 + signal.SIGINT, "", "evenflow: stopped.\n")
