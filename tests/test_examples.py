"""What users bring works at every door: the examples, copied out of the tree, through the command line."""

import ast
import json
import shutil

import pytest
import yaml
from children import ROOT, run_python

pytestmark = pytest.mark.float64

EXAMPLES = sorted(path.name for path in (ROOT / "examples").glob("own_*.py"))
TASKS = {"own_task.py": "docking", "own_system.py": "pendulum", "own_policy.py": "cart-pole-residual",
         "own_gradient.py": "cart-pole"}  # fmt: skip
SMALL = "--epochs 1 --train-samples 4 --test-samples 4 --batch-size 4 --backend cpu"
CHILD = """
import json, os, sys
os.chdir({folder!r})
import benchmarks.check, benchmarks.timing
import evenflow
benchmarks.check.PAIRS = (("cpu", "float64"),)
benchmarks.timing._IN_A_ROW = 1
done = {{}}
for name, commands in json.loads({commands!r}).items():
    for command in commands:
        print("RUN", " ".join(command))
        sys.stdout.flush()
        done[" ".join(command)] = evenflow.main(command)
print(json.dumps(done))
"""


def commands(example):
    """Every door, for one example; all of one process, so that plug-ins of one are there for the next too."""
    task, plugin = TASKS[example], ["--plugin", example]
    gradients = ["R", "damped(0.5)"] if example == "own_gradient.py" else ["R", "C"]
    small = [*SMALL.split(), "--gradients", *gradients]
    # Without another difficulty a task's first option is it.
    varied = ["--difficulties", "6"] if task in ("docking", "pendulum") else ["--horizon", "6", "--difficulties", "1"]
    return [
        ["train", *plugin, task, *small, "--horizon", "6", "--seeds", "2", "--out", f"run-{task}"],
        ["train", "--resume", f"run-{task}", "--epochs", "2", *plugin],
        ["view", f"run-{task}", f"--plugin={example}", "--record", f"{task}.gif", "--size", "100", "--speed", "16"],
        ["report", *plugin, f"run-{task}"],
        [*plugin, "bench", "variants", task, *small, *varied, "--seeds", "2", "--out", f"study-{task}"],
        ["bench", "outcome", f"run-{task}", "--out", f"{task}.png", *plugin],
        ["list", *plugin],
    ]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("user")
    for name in EXAMPLES:
        shutil.copy(ROOT / "examples" / name, folder)
    return folder


@pytest.fixture(scope="module")
def done(folder):
    """(status of every command, what they printed)."""
    asked = {name: commands(name) for name in EXAMPLES}
    asked["check"] = [["check", *(word for name in EXAMPLES for word in ("--plugin", name))]]
    source = CHILD.format(folder=str(folder), commands=json.dumps(asked))
    child = run_python(source)
    *printed, last = child.stdout.splitlines()
    print(child.stderr)  # shown where a test fails
    return json.loads(last), "\n".join(printed)


def test_there_is_an_example_of_each_kind():
    assert set(EXAMPLES) == set(TASKS)


def test_a_users_task_takes_at_most_15_lines():
    tree = ast.parse((ROOT / "examples" / "own_task.py").read_text())
    told = {id(node.body[0]) for node in ast.walk(tree) if isinstance(node, (ast.Module, ast.ClassDef))}
    lines = {node.lineno for node in ast.walk(tree) if isinstance(node, ast.stmt) and id(node) not in told}
    assert len(lines) <= 15


@pytest.mark.parametrize("example", EXAMPLES)
def test_an_example_works_at_every_door(example, done, folder):
    statuses, printed = done
    task = TASKS[example]
    assert {command: statuses[command] for command in map(" ".join, commands(example))} == {
        " ".join(command): 0 for command in commands(example)
    }
    config = yaml.safe_load((folder / f"run-{task}" / "config.yaml").read_text())
    assert [entry["name"] for entry in config["plugins"]] == [example]
    study = yaml.safe_load((folder / f"study-{task}" / "study.yaml").read_text())
    assert study["plugins"] == config["plugins"]
    lines = [json.loads(line) for line in (folder / f"run-{task}" / "metrics.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [1, 2]
    assert all(loss is not None for line in lines for loss in line["test_loss"])
    for name in (f"{task}.gif", f"{task}.png", f"run-{task}/report.html", f"study-{task}/report.md"):
        assert (folder / name).stat().st_size > 500
    assert example in printed


def test_members_of_a_users_policy_have_weights_of_their_own(done, folder):
    lines = (folder / "run-cart-pole-residual" / "metrics.jsonl").read_text().splitlines()
    source = f"""
import os
os.chdir({str(folder)!r})
import evenflow as ef
ef.load_plugin("own_policy.py")
ef.init("cpu")
thetas = [ef.load_controller("run-cart-pole-residual", "C", seed).theta for seed in (0, 1)]
print(float((thetas[0] - thetas[1]).abs().max()))
"""
    assert float(run_python(source).stdout.splitlines()[-1]) > 0.01
    of_seeds = json.loads(lines[0])["test_loss"][:2]
    assert of_seeds[0] != of_seeds[1]


def test_every_system_and_task_of_a_user_is_checked(done):
    statuses, printed = done
    (command,) = [command for command in statuses if command.startswith("check")]
    assert statuses[command] == 0
    table = printed[printed.index("RUN check") :]
    assert "pendulum (system)" in table
    assert "docking" in table
    assert "kuramoto-sivashinsky" in table


def test_a_run_without_its_plugin_says_which_to_give_and_a_changed_one_is_told(done, folder):
    source = f"""
import os, shutil
os.chdir({str(folder)!r})
import evenflow
assert evenflow.main(["report", "run-docking", "--out", "a.html"]) == 2
assert evenflow.main(["report", "study-docking", "--out", "a.html"]) == 2
assert evenflow.main(["view", "run-cart-pole", "--record", "a.gif"]) == 2
os.mkdir("changed")
shutil.copy("own_task.py", "changed")
with open("changed/own_task.py", "a") as file:
    file.write("# later\\n")
assert evenflow.main(["report", "run-docking", "--out", "b.html", "--plugin", "changed/own_task.py"]) == 0
"""
    said = [line for line in run_python(source).stderr.splitlines() if line.startswith("evenflow: ")]
    assert len(said) == 4
    for line, name in zip(said, ("own_task.py", "own_task.py", "own_gradient.py", None), strict=True):
        if name is not None:
            assert line.endswith(f"got a command without it; give --plugin {name} with the path to it.")
    assert "own_task.py of sha256" in said[3]
    assert not (folder / "a.html").exists()
