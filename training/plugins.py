"""Plug-ins: files and modules of the user's that register tasks, systems, gradients and drawings as they are imported.

A run stores which plug-ins its task and gradients come from, by name, with the hash of a file or the version of a
package. Nothing stored is ever imported: who opens such a run gives the plug-in again.
"""

import hashlib
import importlib
import importlib.metadata
import importlib.util
import sys
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from engine import SettingError
from engine.registry import Registry, registering

ENTRY_POINTS = "evenflow.plugins"
"""Installed packages that declare an entry point of this group are loaded by the command line by themselves."""
_loaded: dict[str, "Plugin"] = {}


@dataclass(frozen=True)
class Plugin:
    """A plug-in that was loaded.

    Attributes:
        name: of its file, such as own_task.py, or of its module.
        given: as it was asked for: what a command line has to repeat.
        version: "sha256 " and the hash of the file, or the version of the installed package; empty if there is none.
    """

    name: str
    given: str
    version: str

    def stored(self) -> dict[str, str]:
        """What a run keeps of it."""
        return {"name": self.name, "version": self.version}


def load_plugin(given: str, registries: Sequence[Registry]) -> Plugin:
    """Import a plug-in, once per process; what it registers then is there by name.

    Args:
        given: a Python file, or the name of a module that can be imported.
        registries: those that it may fill; a plug-in that fails leaves nothing in them.

    Raises:
        SettingError: it is not there, does not import, or registers nothing.
    """
    path = Path(given).expanduser()
    is_file = path.suffix == ".py" or path.is_file()
    key = str(path.resolve()) if is_file else given
    if key in _loaded:
        return _loaded[key]
    if is_file and not path.is_file():
        raise SettingError(f"Expected a plug-in that is there, got {given}; give a Python file or an installed module.")
    name = path.name if is_file else given
    taken = next((one for one in _loaded.values() if one.name == name), None)
    if taken is not None:
        raise SettingError(f"Expected plug-ins of different names, got {given} after {taken.given}; rename one.")
    before = sum(map(len, registries))
    try:
        with registering(name):
            _import_file(path) if is_file else importlib.import_module(given)
    except SettingError as error:
        _undo(name, registries)
        raise SettingError(f"Expected plug-in {given} to register what is its own, got: {error}") from error
    except (Exception, SystemExit) as error:
        _undo(name, registries)
        raise SettingError(f"Expected plug-in {given} to import, got {_said(error, path)}; mend it.") from error
    if sum(map(len, registries)) == before:
        raise SettingError(
            f"Expected plug-in {given} to register something, got nothing; call ef.register_task or its like."
        )
    _loaded[key] = plugin = Plugin(name, given, _version(path if is_file else None, given))
    return plugin


def load_installed(registries: Sequence[Registry]) -> list[Plugin]:
    """Load the plug-ins of installed packages."""
    found = importlib.metadata.entry_points(group=ENTRY_POINTS)
    return [load_plugin(entry.value.partition(":")[0], registries) for entry in found]


def to_load_again() -> list[str]:
    """What another process has to load for the same: paths of files, whole, and names of modules."""
    return list(_loaded)


def loaded(origin: str) -> Plugin | None:
    """The plug-in of this name, if it was loaded."""
    return next((plugin for plugin in _loaded.values() if plugin.name == origin), None)


def _import_file(path: Path) -> ModuleType:
    """Import a file as a module of its own name, as if its folder were where Python was started."""
    name = path.stem if path.stem not in sys.modules else f"evenflow_plugin_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    sys.path.append(str(path.resolve().parent))
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _undo(origin: str, registries: Sequence[Registry]) -> None:
    for registry in registries:
        registry.withdraw(origin)


def _said(error: BaseException, path: Path) -> str:
    """What went wrong, and in which line of the plug-in."""
    lines = [
        frame.lineno for frame in traceback.extract_tb(error.__traceback__) if Path(frame.filename).name == path.name
    ]
    if isinstance(error, SyntaxError) and error.lineno:
        lines.append(error.lineno)
    text = " ".join(str(error).split()) or "no message"
    return f"{type(error).__name__} ({text.rstrip('.')})" + (f" in line {lines[-1]}" if lines else "")


def _version(path: Path | None, given: str) -> str:
    if path is not None:
        return f"sha256 {hashlib.sha256(path.read_bytes()).hexdigest()}"
    try:
        return importlib.metadata.version(given.partition(".")[0])
    except importlib.metadata.PackageNotFoundError:
        return ""
