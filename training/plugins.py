"""Plug-ins: files and modules of the user's that register tasks, systems, gradients and drawings as they are imported.

A run stores which plug-ins its task and gradients come from, by name, with the hash of a file or the version of a
package. Nothing stored is ever imported: who opens such a run gives the plug-in again.
"""

import hashlib
import importlib
import importlib.metadata
import importlib.util
import shlex
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from engine import EvenflowError, SettingError
from engine.registry import Registry, registering
from training.files import as_path

ENTRY_POINTS = "evenflow.plugins"
"""Installed packages that declare an entry point of this group are loaded by the command line by themselves."""
_loaded: dict[str, "Plugin"] = {}
_under_way: list[str] = []
_installed: set[str] = set()
_PACKAGES = Path(__file__).resolve().parents[1]
_OURS = [_PACKAGES / name for name in ("engine", "policies", "training", "benchmarks", "evenflow.py")]


@dataclass(frozen=True)
class Plugin:
    """A plug-in that was loaded.

    Attributes:
        name: of its file, such as own_task.py, or of its module.
        given: as it was asked for: what a command line has to repeat.
        version: "sha256 " and the hash of the file, or the version of the installed package; empty if there is none.
        file: where its code begins; None of a folder without one.
    """

    name: str
    given: str
    version: str
    file: Path | None = None

    def stored(self) -> dict[str, str]:
        """What a run keeps of it."""
        return {"name": self.name, "version": self.version}

    def holds(self, code: Path) -> bool:
        """Whether a file of code is its own or a neighbour's: in its folder, or anywhere below that of a package."""
        if self.file is None or any(ours == code or ours in code.parents for ours in _OURS):
            return False
        folder = self.file.parent
        return code.parent == folder or (self.file.name == "__init__.py" and folder in code.parents)


def load_plugin(given: str, registries: Sequence[Registry]) -> Plugin:
    """Import a plug-in, once per process; what it registers then is there by name.

    Args:
        given: a Python file, or the name of a module that can be imported.
        registries: those that it may fill; a plug-in that fails leaves nothing in them.

    Raises:
        SettingError: it is not there, does not import, or registers nothing.
    """
    path = as_path("a plug-in", given).expanduser()
    is_file = path.suffix == ".py"
    key = str(path.resolve()) if is_file else given
    if key in _loaded:
        return _loaded[key]
    _check_address(given, path)
    name = path.name if is_file else given
    taken = next((one for one in _loaded.values() if one.name == name), None)
    if taken is not None:
        raise SettingError(f"Expected plug-ins of different names, got {given} after {taken.given}; rename one.")
    if name in _under_way:
        raise SettingError(f"Expected plug-in {given} to load others at the most, got itself; drop that line.")
    before = sum(map(len, registries))
    module = _import(Plugin(name, given, "", path.resolve() if is_file else None), registries)
    if sum(map(len, registries)) == before:
        raise SettingError(
            f"Expected plug-in {given} to register something, got nothing; call ef.register_task or its like."
        )
    file = getattr(module, "__file__", None)
    _loaded[key] = plugin = Plugin(
        name, given, _version(path if is_file else None, given), None if file is None else Path(file).resolve()
    )
    return plugin


def load_installed(registries: Sequence[Registry]) -> list[Plugin]:
    """Load the plug-ins of installed packages."""
    found = importlib.metadata.entry_points(group=ENTRY_POINTS)
    modules = [entry.value.partition(":")[0] for entry in found]
    _installed.update(modules)
    return [load_plugin(module, registries) for module in modules]


def words_again() -> str:
    """Words of a command line that load those again that do not load by themselves, each after a space."""
    return "".join(f" --plugin {shlex.quote(one.given)}" for key, one in _loaded.items() if key not in _installed)


def to_load_again() -> list[str]:
    """What another process has to load for the same: paths of files, whole, and names of modules."""
    return list(_loaded)


def loaded(origin: str) -> Plugin | None:
    """The plug-in of this name, if it was loaded."""
    return next((plugin for plugin in _loaded.values() if plugin.name == origin), None)


@contextmanager
def blamed() -> Iterator[None]:
    """A block in which whatever a plug-in's code raises ends in a SettingError that names its line.

    Evenflow's own errors, Ctrl-C and what comes from no plug-in pass as they are.
    """
    try:
        yield
    except (EvenflowError, KeyboardInterrupt):
        raise
    except BaseException as error:
        plugin = _at_fault(error)
        if plugin is None:
            raise
        raise SettingError(f"Expected plug-in {plugin.given} to work, got {_told(error, plugin)}") from error


def is_of_plugin(error: BaseException) -> bool:
    """Whether an error comes from the code of a plug-in."""
    return _at_fault(error) is not None


def _at_fault(error: BaseException) -> Plugin | None:
    """The plug-in through whose code an error came last, if any."""
    for code, _ in reversed(_lines(error)):
        for plugin in _loaded.values():
            if plugin.holds(code):
                return plugin
    return None


def _check_address(given: str, path: Path) -> None:
    """SettingError unless this is a Python file that is there, or may be the name of a module."""
    is_module = not (path.suffix == ".py" or path.is_file()) and all(map(str.isidentifier, given.split(".")))
    if is_module or (path.suffix == ".py" and path.is_file()):
        return
    what = ", a folder" if path.is_dir() else ", whose name does not end in .py" if path.exists() else ""
    shown = given if given.isprintable() else repr(given)
    raise SettingError(
        f"Expected a plug-in that is there, got {shown}{what}; give a Python file or an installed module."
    )


def _import(plugin: Plugin, registries: Sequence[Registry]) -> ModuleType:
    """Import a plug-in; SettingError, and nothing of it in the registries, where that fails."""
    _under_way.append(plugin.name)
    try:
        with registering(plugin.name):
            return importlib.import_module(plugin.given) if plugin.file is None else _import_file(plugin.file)
    except BaseException as error:
        for registry in registries:
            registry.withdraw(plugin.name)
        if isinstance(error, KeyboardInterrupt):
            raise
        wanted = f"Expected plug-in {plugin.given} to"
        if isinstance(error, EvenflowError):
            raise SettingError(f"{wanted} register what is its own, got: {error}") from error
        raise SettingError(f"{wanted} import, got {_told(error, plugin)}") from error
    finally:
        _under_way.remove(plugin.name)


def _import_file(path: Path) -> ModuleType:
    """Import a file as a module of its own name, as if its folder were where Python was started."""
    name = path.stem if path.stem not in sys.modules else f"evenflow_plugin_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module, folder = importlib.util.module_from_spec(spec), str(path.parent)
    sys.modules[name] = module  # dataclasses look their module up
    sys.path.append(folder)
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        sys.path.remove(folder)
        raise
    return module


def _lines(error: BaseException) -> list[tuple[Path, int]]:
    """(file, line) that an error came through, the last one where it was raised."""
    frames = traceback.extract_tb(error.__traceback__)
    lines = [(Path(frame.filename).resolve(), frame.lineno or 0) for frame in frames]
    if isinstance(error, SyntaxError) and error.lineno and error.filename:
        lines.append((Path(error.filename).resolve(), error.lineno))
    return lines


def _told(error: BaseException, plugin: Plugin) -> str:
    """What went wrong, in which line of the plug-in or of a neighbour of it, and what to do."""
    try:
        text = " ".join(str(error).split()).rstrip(".") or "no message"
    except Exception:  # somebody else's __str__
        text = "no message"
    where = ""
    for file, line in _lines(error):
        if plugin.holds(file):
            where = f" in line {line}" + (f" of {file.name}" if file != plugin.file else "")
    return f"{type(error).__name__} ({text}){where}; mend it."


def _version(path: Path | None, given: str) -> str:
    if path is not None:
        return f"sha256 {hashlib.sha256(path.read_bytes()).hexdigest()}"
    try:
        return importlib.metadata.version(given.partition(".")[0])
    except importlib.metadata.PackageNotFoundError:
        return ""
