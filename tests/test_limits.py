"""No file over 350 lines and no function longer than a screen, tests included; physics may be longer with a reason."""

import ast

import pytest
from children import ROOT

pytestmark = pytest.mark.float64

LINES, PHYSICS_LINES, SCREEN = 350, 400, 50
REASON = "Longer than other files:"
"""How the docstring of a system of more than LINES lines begins the sentence that says why."""
SOURCES = sorted(
    path
    for place in ("*.py", "engine/**/*.py", "policies/**/*.py", "training/**/*.py", "benchmarks/**/*.py",
                  "examples/**/*.py", "tests/**/*.py")
    for path in ROOT.glob(place)
)  # fmt: skip
NAMES = [path.relative_to(ROOT).as_posix() for path in SOURCES]


def too_long(name, source):
    """What of a file is longer than it may be."""
    tree, lines = ast.parse(source), len(source.splitlines())
    reason = name.startswith("engine/systems/") and REASON in (ast.get_docstring(tree) or "")
    found = ["the file"] if lines > (PHYSICS_LINES if reason else LINES) else []
    functions = (node for node in ast.walk(tree) if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)))
    return found + [node.name for node in functions if (node.end_lineno or 0) - node.lineno >= SCREEN]


def test_every_part_of_the_project_is_read():
    assert {name.split("/")[0] for name in NAMES} >= {
        "engine", "policies", "training", "benchmarks", "examples", "tests", "evenflow.py", "setup.py",
    }  # fmt: skip


@pytest.mark.parametrize("path", SOURCES, ids=NAMES)
def test_files_and_functions_are_short(path):
    assert too_long(path.relative_to(ROOT).as_posix(), path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    ("name", "source", "found"),
    [
        ("engine/tape.py", "x = 1\n" * 350, []),
        ("engine/tape.py", "x = 1\n" * 351, ["the file"]),
        ("engine/systems/fluid.py", "x = 1\n" * 351, ["the file"]),
        ("engine/systems/fluid.py", f'"""A.\n\n{REASON} so.\n"""\n' + "x = 1\n" * 396, []),
        ("engine/systems/fluid.py", f'"""A.\n\n{REASON} so.\n"""\n' + "x = 1\n" * 397, ["the file"]),
        ("engine/tape.py", f'"""A.\n\n{REASON} so.\n"""\n' + "x = 1\n" * 396, ["the file"]),
        ("tests/test_a.py", "def screen():\n" + "    x = 1\n" * 49, []),
        ("tests/test_a.py", "class A:\n    def more(self):\n" + "        x = 1\n" * 50, ["more"]),
    ],
)
def test_what_is_too_long_is_found(name, source, found):
    assert too_long(name, source) == found
