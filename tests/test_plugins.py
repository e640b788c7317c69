"""Registries and plug-ins: where things come from, and what is said of plug-ins that fail."""

import itertools
import shlex
import sys
import types
from importlib.metadata import EntryPoint

import pytest

from engine import SettingError
from engine.registry import SHIPPED, Registry, registering
from training.plugins import blamed, load_installed, load_plugin, loaded, words_again
from training.run import resuming

pytestmark = pytest.mark.float64

_names = (f"plug{number}" for number in itertools.count())


@pytest.fixture
def registry():
    registry = Registry("task")
    with registering(SHIPPED):
        registry.register("cart-pole", 1)
    return registry


@pytest.fixture
def load(registry, tmp_path, monkeypatch):
    """Write a plug-in that can see the registry as `plug_registry.registry`, and load it."""
    module = types.ModuleType("plug_registry")
    module.registry = registry  # pyright: ignore[reportAttributeAccessIssue]
    monkeypatch.setitem(sys.modules, "plug_registry", module)

    def write_and_load(source, name=None):
        file = tmp_path / f"{name or next(_names)}.py"
        file.write_text("from plug_registry import registry\n" + source)
        return load_plugin(str(file), [registry])

    return write_and_load


def test_a_registry_knows_what_is_there_and_where_it_comes_from(registry):
    with registering("mine.py"):
        registry.register("two", 2)
    registry.register("three", 3)
    assert dict(registry) == {"cart-pole": 1, "two": 2, "three": 3}
    assert [registry.origin(name) for name in registry] == [SHIPPED, "mine.py", "this program"]
    registry.withdraw("mine.py")
    assert "two" not in registry
    with pytest.raises(SettingError, match=r"Expected a task among cart-pole, three, got 'two'"):
        registry["two"]
    with pytest.raises(SettingError, match=r"got 'cart-pol' \(perhaps cart-pole\)\."):
        registry["cart-pol"]


@pytest.mark.parametrize("name", ["cart-pole", "Cart-Pole"])
def test_names_that_are_taken_are_refused(registry, name):
    with pytest.raises(SettingError, match="which evenflow has registered; choose another"):
        registry.register(name, 2)


@pytest.mark.parametrize("name", ["", "a b", "-a", "7", "a(b)", "a,b", "a/b", None])
def test_what_is_no_name_is_refused(registry, name):
    with pytest.raises(SettingError, match="Expected a name for a task of letters"):
        registry.register(name, 2)


def test_a_plugin_registers_and_is_known_by_its_hash(load, registry, tmp_path):
    plugin = load("registry.register('mine', 5)", "own")
    assert registry["mine"] == 5
    assert registry.origin("mine") == plugin.name == "own.py"
    assert plugin.version.startswith("sha256 ")
    assert len(plugin.version) == 7 + 64
    assert load_plugin(str(tmp_path / "own.py"), [registry]) is plugin is loaded("own.py")
    assert loaded("other.py") is None


def test_the_command_that_continues_a_run_names_the_plugins_that_do_not_load_by_themselves(
    load, registry, monkeypatch, tmp_path
):
    monkeypatch.setattr("training.plugins._loaded", {})
    monkeypatch.setattr("training.plugins._installed", set())
    assert resuming("runs/one") == "evenflow train --resume runs/one"
    given = load("registry.register('mine', 5)", "my own").given
    (tmp_path / "installed_plugin.py").write_text("from plug_registry import registry\nregistry.register('its', 1)")
    monkeypatch.syspath_prepend(tmp_path)
    entry = EntryPoint("its", "installed_plugin:it", "evenflow.plugins")
    monkeypatch.setattr("importlib.metadata.entry_points", lambda group: [entry])
    load_installed([registry])
    assert loaded("installed_plugin") is not None
    assert shlex.split(words_again()) == ["--plugin", given]
    assert resuming("one run") == f"evenflow train --resume 'one run' --plugin '{given}'"


def test_a_plugin_may_import_its_neighbours_and_look_its_own_module_up(load, registry, tmp_path):
    (tmp_path / "neighbour_of_plug.py").write_text("VALUE = 7\n")
    load(
        "import neighbour_of_plug\nfrom dataclasses import dataclass\nfrom typing import get_type_hints\n"
        "@dataclass\nclass Options:\n    a: 'int' = 1\n"
        "assert get_type_hints(Options) == {'a': int}\nregistry.register('nine', neighbour_of_plug.VALUE)"
    )
    assert registry["nine"] == 7


FAILING = {
    "raise ValueError('no\\nluck')": "to import, got ValueError (no luck) in line 2; mend it.",
    "1 / 0": "got ZeroDivisionError (division by zero) in line 2",
    "import not_there_at_all": "got ModuleNotFoundError (No module named 'not_there_at_all') in line 2",
    "def f(:": "got SyntaxError",
    "raise SystemExit(3)": "got SystemExit (3)",
    "x = 1": "to register something, got nothing",
    "registry.register('cart-pole', 2)": "which evenflow has registered",
    "registry.register('one', 1); registry.register('one', 2)": "has registered; choose another",
    "registry.register('one', 1); oops": "got NameError (name 'oops' is not defined) in line 2",
}


@pytest.mark.parametrize("source", FAILING)
def test_a_plugin_that_fails_says_why_in_one_sentence_and_leaves_nothing(load, registry, source):
    with pytest.raises(SettingError) as error:
        load(source)
    message = str(error.value)
    assert message.startswith("Expected plug-in ")
    assert "\n" not in message
    assert FAILING[source] in message
    assert list(registry) == ["cart-pole"]


def test_what_is_not_there_is_refused(registry, tmp_path):
    with pytest.raises(SettingError, match=r"Expected a plug-in that is there"):
        load_plugin(str(tmp_path / "none.py"), [registry])
    with pytest.raises(SettingError, match=r"got ModuleNotFoundError"):
        load_plugin("no_such_module_of_anyone", [registry])


def test_two_plugins_of_one_name_are_refused(load, registry, tmp_path):
    load("registry.register('first', 1)", "same")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "same.py").write_text("from plug_registry import registry\nregistry.register('second', 2)")
    with pytest.raises(SettingError, match="of different names"):
        load_plugin(str(tmp_path / "other" / "same.py"), [registry])
    assert "second" not in registry


class Unspeakable(BaseException):
    def __str__(self):
        raise ValueError


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("class Odd(BaseException): pass\nraise Odd('odd')", "to import, got Odd (odd) in line 3; mend it."),
        ("raise GeneratorExit", "to import, got GeneratorExit (no message) in line 2; mend it."),
        ("from test_plugins import Unspeakable\nraise Unspeakable", "got Unspeakable (no message) in line 3; mend it."),
        ("import broken_neighbour", "got ZeroDivisionError (division by zero) in line 2 of broken_neighbour.py; mend"),
        ("from training.plugins import load_plugin\nload_plugin(__file__, [registry])", "got itself; drop that line."),
    ],
)
def test_whatever_a_plugin_raises_is_told(source, said, load, registry, tmp_path):
    (tmp_path / "broken_neighbour.py").write_text("x = 1\n1 / 0\n")
    with pytest.raises(SettingError) as error:
        load(source)
    assert said in str(error.value)
    assert "\n" not in str(error.value)
    assert str(tmp_path) not in sys.path


def test_a_stop_while_a_plugin_is_imported_leaves_nothing_of_it(load, registry):
    with pytest.raises(KeyboardInterrupt):
        load("registry.register('half', 1); raise KeyboardInterrupt")
    assert "half" not in registry


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("folder/", "got folder/, a folder; give a Python file or an installed module."),
        ("..", "got .., a folder;"),
        ("folder.py", "got folder.py, a folder;"),
        ("data.json", "got data.json, whose name does not end in .py;"),
        ("a b", "got a b; give"),
        ("../nowhere", "got ../nowhere; give"),
        ("two\nlines", r"got 'two\nlines'; give"),
    ],
)
def test_what_can_be_no_plugin_is_refused_before_it_is_imported(given, said, registry, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder.py").mkdir()
    (tmp_path / "data.json").write_text("{}")
    with pytest.raises(SettingError, match="Expected a plug-in that is there") as error:
        load_plugin(given, [registry])
    assert said in str(error.value)


def test_what_a_plugins_code_raises_later_is_told_with_its_line(load, registry):
    plugin = load("def f(kind):\n    raise kind('no\\nluck')\nregistry.register('later', f)")
    for kind in (ValueError, SystemExit, OSError):
        with pytest.raises(SettingError) as error, blamed():
            registry["later"](kind)
        assert str(error.value) == (
            f"Expected plug-in {plugin.given} to work, got {kind.__name__} (no luck) in line 3; mend it."
        )
    with pytest.raises(KeyboardInterrupt), blamed():
        registry["later"](KeyboardInterrupt)
    with pytest.raises(ZeroDivisionError), blamed():  # what is not a plug-in's passes
        raise ZeroDivisionError
    with pytest.raises(SettingError, match=r"^mine$"), blamed():
        raise SettingError("mine")
