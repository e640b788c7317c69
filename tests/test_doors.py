"""Mistakes at the doors for what users bring, and a user's files that stand in the way of Evenflow's packages."""

import itertools
import os
import subprocess
import sys

import pytest
from children import HANGS, ROOT, inherited, run_evenflow

import evenflow

pytestmark = pytest.mark.float64

_names = (f"doors{number}" for number in itertools.count())
HEAD = "import evenflow as ef\nfrom dataclasses import dataclass\n"
OPTIONS = "@dataclass(frozen=True)\nclass Options:\n    horizon: int = 3\n    def build(self): pass\n"
FAILING = {
    "import not_there_at_all": "got ModuleNotFoundError (No module named 'not_there_at_all') in line 3; mend it.",
    "def (": "to import, got SyntaxError",
    "": "to register something, got nothing",
    OPTIONS + "ef.register_task('one', Options); ef.register_task('one', Options)": "has registered; choose another",
    OPTIONS + "ef.register_task('Cart-Pole', Options)": "'Cart-Pole', which evenflow has registered",
    OPTIONS + "ef.register_task('a task', Options)": "Expected a name for a task of letters, digits and hyphens",
    OPTIONS + "Options.difficulty = 'a'; ef.register_task('one', Options)": "Expected the difficulty of task 'one'",
    OPTIONS + "Options.difficulty = ('b', (1,)); ef.register_task('one', Options)": "Expected a difficulty of task",
    "ef.register_task('one', 5)": "as a dataclass with build() and plain values that have defaults, got 5",
    "ef.register_gradient('full', ef.FULL, 'x')": "'full', which evenflow has registered",
    "ef.register_gradient('Inf', ef.FULL, 'x')": "a name for a gradient, got 'Inf', which is read as a number",
    "ef.register_gradient('mine', 'R', 'x')": "as a rule, an estimator or what makes one, got str",
    "ef.register_gradient('mine', lambda a: a, 'x')": "annotated as AdjointRule, GradientEstimator, float or int",
    "ef.register_system('cart-pole', ef.CartPole)": "'cart-pole', which evenflow has registered",
    "ef.register_system('mine', ef.LinearSystem)": "to be called without arguments",
    "ef.register_system('mine', 5)": "to be called without arguments",
    "ef.register_drawing(ef.CartPole, ef.Drawing)": "got CartPole, which evenflow draws",
    "ef.register_drawing(5, ef.Drawing)": "Expected a class of systems to draw",
}  # fmt: skip


def spoken(text):
    lines = [line for line in text.splitlines() if not line.startswith("[Taichi]")]
    assert len(lines) == 1, text
    assert lines[0].startswith("evenflow: Expected ")
    assert lines[0].endswith(".")
    return lines[0]


@pytest.mark.parametrize("source", FAILING, ids=lambda source: source.splitlines()[-1] if source else "nothing")
def test_a_plugin_that_fails_is_one_sentence_and_leaves_nothing(source, tmp_path, capsys):
    tables = (evenflow.TASKS, evenflow.GRADIENTS, evenflow.SYSTEMS)
    before = [list(table) for table in tables]
    file = tmp_path / f"{next(_names)}.py"
    file.write_text(HEAD + source)
    assert evenflow.main(["list", "--plugin", str(file)]) == 2
    assert FAILING[source] in spoken(capsys.readouterr().err)
    assert [list(table) for table in tables] == before


@pytest.mark.parametrize("words", ["list --plugin", "--plugin= list", "train --plugin --epochs 2", "list --plugin ''"])
def test_a_plugin_has_to_be_named(words, capsys):
    assert evenflow.main([word.replace("''", "") for word in words.split()]) == 2
    assert "Expected a Python file or an installed module after --plugin, got none." in spoken(capsys.readouterr().err)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--plugin nowhere.py list", "Expected a plug-in that is there, got nowhere.py"),
        ("list --plugin no_such_module_of_anyone", "got ModuleNotFoundError"),
        ("list --plugins own.py", "got --plugins (perhaps --plugin)."),
    ],
)
def test_what_is_no_plugin_is_told(words, said, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert evenflow.main(words.split()) == 2
    assert said in spoken(capsys.readouterr().err)


def test_a_plugin_by_its_place_in_the_home_directory(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HOME", str(tmp_path))
    name = next(_names)
    (tmp_path / f"{name}.py").write_text(HEAD + "ef.register_gradient('of-home', ef.FULL, 'x')")
    try:
        assert evenflow.main(["list", f"--plugin=~/{name}.py"]) == 0
        assert "of-home" in capsys.readouterr().out
        assert evenflow.GRADIENTS.origin("of-home") == f"{name}.py"
    finally:
        evenflow.GRADIENTS.withdraw(f"{name}.py")


def test_what_installed_packages_declare_is_loaded(tmp_path):
    (tmp_path / "their_plugin.py").write_text(HEAD + "ef.register_gradient('theirs', ef.FULL, 'x')")
    info = tmp_path / "their_plugin-2.5.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: their_plugin\nVersion: 2.5\n")
    (info / "entry_points.txt").write_text("[evenflow.plugins]\ntheirs = their_plugin\n")
    done = run_evenflow("list", cwd=tmp_path, env=inherited(COLUMNS="200"))
    assert done.returncode == 0, done.stderr
    (line,) = [line for line in done.stdout.splitlines() if "theirs" in line]
    assert "their_plugin" in line


def started(words, folder):
    environment = inherited(PYTHONPATH=os.pathsep.join([str(folder), str(ROOT)]))
    return subprocess.run(
        [sys.executable, *words],
        capture_output=True,
        text=True,
        cwd=folder,
        env=environment,
        timeout=HANGS,
        check=False,
    )


@pytest.mark.parametrize("mine", ["training.py", "engine/__init__.py", "policies.py", "benchmarks/__init__.py"])
def test_a_users_file_in_the_way_is_named(mine, tmp_path):
    file = tmp_path / mine
    file.parent.mkdir(exist_ok=True)
    file.write_text("raise AssertionError('imported')\n")
    for words in (["-c", "import evenflow"], ["-m", "evenflow", "list"]):
        done = started(words, tmp_path)
        assert done.returncode == 1
        last = done.stderr.splitlines()[-1]
        assert str(file) in last
        assert "stands in the way" in last
        assert "imported" not in done.stderr
        assert ("Traceback" in done.stderr) == (words[0] == "-c")


def test_a_users_folder_without_python_is_not_in_the_way(tmp_path):
    (tmp_path / "training").mkdir()
    (tmp_path / "training" / "data.csv").write_text("1,2\n")
    assert started(["-c", "import evenflow"], tmp_path).returncode == 0


def test_the_helpers_of_tasks_say_what_is_wrong():
    with pytest.raises(evenflow.ShapeError, match=r"got \[2\] and \[3\]"):
        evenflow.uniform_states((0, 0), (1, 1, 1))
    with pytest.raises(evenflow.ShapeError, match="one number for all"):
        evenflow.uniform_states(0, 1)
    with pytest.raises(evenflow.SettingError, match="low first"):
        evenflow.uniform_states((0, 2), (1, 1))


RULE = "class Rule:\n    uses_physics = uses_policy = True\n"
TAKEN = "    def __call__(self, direct, physics, policy, t): return direct\n"
WRONG = {
    RULE + TAKEN + "    __hash__ = None\nef.register_gradient('mine', Rule(), 'x')": "that can be hashed",
    RULE + "    def __call__(self, direct): pass\nef.register_gradient('mine', Rule(), 'x')": "mine to take direct",
    "ef.register_gradient('mine', ef.FULL, 'x', ['a b'])": "Expected a name for a gradient of letters",
    "ef.register_gradient('mine', ef.FULL, 'x', 'its')": "as a list of other names, got 'its'",
    "ef.register_gradient('mine', ef.FULL, 'x', ['Mine'])": "as a list of other names, got ['Mine']",
    "ef.register_gradient('mine', ef.FULL, None)": "the description of gradient 'mine' as a line of text, got None",
}  # fmt: skip


@pytest.mark.parametrize("source", WRONG, ids=lambda source: WRONG[source])
def test_a_gradient_that_does_not_fit_is_refused_as_it_is_registered(source, tmp_path, capsys):
    before = list(evenflow.GRADIENTS)
    file = tmp_path / f"{next(_names)}.py"
    file.write_text(HEAD + source)
    assert evenflow.main(["list", "--plugin", str(file)]) == 2
    assert WRONG[source] in spoken(capsys.readouterr().err)
    assert list(evenflow.GRADIENTS) == before


FAULTY = (
    HEAD
    + RULE
    + """    def __init__(self, size: float = 1.0):
        if size > 1: raise ValueError("too large")
        self.hidden = size
    def __call__(self, direct, physics, policy, t): return direct
ef.register_gradient('faulty', Rule, 'x')
@dataclass(frozen=True)
class Options:
    '''Faulty.'''
    horizon: int = 3
    way: str = "raises"
    def __post_init__(self):
        if self.horizon < 3: raise ValueError("too short")
    def build(self):
        if self.way == "raises": return 1 / 0
        if self.way == "ends": raise SystemExit(0)
        return ef.build_task("lqr", horizon=self.horizon)
ef.register_task("faulty", Options)
"""
)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("train faulty", "to work, got ZeroDivisionError (division by zero) in line 18; mend it."),
        ("train faulty --way ends", "to work, got SystemExit (0) in line 19; mend it."),
        ("train faulty --horizon 2", "to work, got ValueError (too short) in line 16; mend it."),
        ("train faulty --horizon two", "Expected a whole number for --horizon"),
        ("train lqr --gradients faulty(2)", "to work, got ValueError (too large) in line 6; mend it."),
        ("train lqr --gradients faulty(0.5)", "Expected faulty(size) to keep size under that name"),
        ("view faulty --record a.gif", "to work, got ZeroDivisionError"),
        ("doctor faulty", "to work, got ZeroDivisionError"),
        ("bench variants faulty --out study", "to work, got ZeroDivisionError"),
    ],
)
def test_what_a_plugin_does_wrong_at_work_is_a_sentence_at_every_door(words, said, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(evenflow.Machine, "start", lambda machine: None)
    file = tmp_path / f"{next(_names)}.py"
    file.write_text(FAULTY)
    try:
        assert evenflow.main([*words.split(), "--plugin", str(file)]) == 2
        assert said in spoken(capsys.readouterr().err)
    finally:
        for table in (evenflow.TASKS, evenflow.GRADIENTS):
            table.withdraw(file.name)
