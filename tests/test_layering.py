"""Imports run one way, Taichi is started in one place, and its private launch path is used in one file."""

import ast

import pytest
from children import ROOT

pytestmark = pytest.mark.float64

# evenflow → benchmarks → training → policies, engine; what a package may import besides itself and the world.
BELOW = {
    "evenflow": {"benchmarks", "training", "policies", "engine"},
    "benchmarks": {"training", "policies", "engine"},
    "training": {"policies", "engine"},
    "policies": set(),
    "engine": set(),
}
SOURCES = sorted(path for package in BELOW for path in (*ROOT.glob(f"{package}.py"), *ROOT.glob(f"{package}/**/*.py")))
NAMES = [path.relative_to(ROOT).as_posix() for path in SOURCES]


def package_of(name):
    """The package that a path such as engine/systems/linear.py or evenflow.py belongs to."""
    return name.split("/")[0].removesuffix(".py")


def imported_modules(source):
    """Full names of all modules that `source` imports anywhere, `from . import x` as '.'."""
    modules = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            modules.add("." * node.level + (node.module or ""))
    return modules


def upward_imports(name, source):
    """Modules of the project that the file `name` imports and may not."""
    package = package_of(name)
    forbidden = set(BELOW) - BELOW[package] - {package}
    return {module for module in imported_modules(source) if module.split(".")[0] in forbidden | {"tests"}}


def calls_of_init(source):
    """Lines on which Taichi is started: `ti.init(...)` under any alias, or `init` imported from it."""
    tree, aliases, lines = ast.parse(source), set(), []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            aliases |= {alias.asname or alias.name for alias in node.names if alias.name == "taichi"}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "taichi":
            lines += [node.lineno for alias in node.names if alias.name == "init"]
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "init":
            owner = node.func.value
            if isinstance(owner, ast.Name) and owner.id in aliases:
                lines.append(node.lineno)
    return lines


def uses_private_launches(source):
    return any(
        isinstance(node, ast.Attribute) and node.attr == "make_launch_context" for node in ast.walk(ast.parse(source))
    )


def test_every_package_below_the_command_line_is_read():
    assert {package_of(name) for name in NAMES} >= {"engine", "policies"}
    assert {"engine/runtime.py", "engine/launch.py", "engine/systems/cart_pole.py"} <= set(NAMES)


@pytest.mark.parametrize("path", SOURCES, ids=NAMES)
def test_imports_run_downward(path):
    name = path.relative_to(ROOT).as_posix()
    assert upward_imports(name, path.read_text(encoding="utf-8")) == set()


def test_taichi_is_started_in_one_place():
    starts = {name: calls_of_init(path.read_text(encoding="utf-8")) for name, path in zip(NAMES, SOURCES, strict=True)}
    assert {name for name, lines in starts.items() if lines} == {"engine/runtime.py"}
    assert len(starts["engine/runtime.py"]) == 1


def test_the_private_launch_path_is_used_in_one_file():
    users = {
        name
        for name, path in zip(NAMES, SOURCES, strict=True)
        if uses_private_launches(path.read_text(encoding="utf-8"))
    }
    assert users == {"engine/launch.py"}


BAD_SOURCE = """
import torch, training.trainer as trainer
from engine import Rollout

def late():
    from policies.mlp import MLP
    import evenflow
    from tests import reference
    from enginery import policies
    return kernel.make_launch_context()
"""


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("engine/sweep.py", {"training.trainer", "policies.mlp", "evenflow", "tests"}),
        ("engine/systems/linear.py", {"training.trainer", "policies.mlp", "evenflow", "tests"}),
        ("policies/mlp.py", {"training.trainer", "engine", "evenflow", "tests"}),
        ("training/tasks/lqr.py", {"evenflow", "tests"}),
        ("benchmarks/run.py", {"evenflow", "tests"}),
        ("evenflow.py", {"tests"}),
    ],
)
def test_upward_imports_are_found(name, found):
    assert upward_imports(name, BAD_SOURCE) == found


@pytest.mark.parametrize(
    ("source", "lines"),
    [
        ("import taichi as ti\n\ndef late():\n    ti.init(arch=ti.cpu)", [4]),
        ("import taichi\ntaichi.init()", [2]),
        ("from taichi import init, func\ninit()", [1]),
        ("import taichi as ti\nimport engine\nengine.init()\nti.sync()", []),
    ],
)
def test_starts_of_taichi_are_found(source, lines):
    assert calls_of_init(source) == lines


def test_private_launches_are_found():
    assert uses_private_launches(BAD_SOURCE)
    assert not uses_private_launches("from engine.launch import prepare")
