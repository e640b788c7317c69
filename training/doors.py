"""Everything that a plug-in may fill, and how one is loaded into it."""

from engine.registry import Registry
from engine.systems import SYSTEMS
from training.gradients import GRADIENTS
from training.plugins import Plugin, load_installed, load_plugin
from training.tasks import TASKS
from training.viewing.drawings import DRAWINGS

REGISTRIES: tuple[Registry, ...] = (TASKS, GRADIENTS, SYSTEMS, DRAWINGS)


def load(plugin: str) -> Plugin:
    """Load a plug-in, as `--plugin` does: what it registers then is there by name. Once per process.

    Args:
        plugin: a Python file, or the name of a module that can be imported.

    Raises:
        SettingError: it is not there, does not import, registers nothing, or a name that is taken.
    """
    return load_plugin(plugin, REGISTRIES)


def load_all_installed() -> None:
    """Load the plug-ins of installed packages, those that declare the entry point `evenflow.plugins`."""
    load_installed(REGISTRIES)
