"""Which plug-ins a training's task and gradients come from: kept in runs and studies, looked at when they are opened.

Only names and versions are kept, and none is ever imported because of a file: whoever opens a run gives them again.
"""

import functools
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from engine import EvenflowWarning, SettingError
from training.errors import RunError
from training.gradients import GRADIENTS, constructors_of, gradient_named
from training.plugins import loaded
from training.tasks import TASKS

FIELD = "plugins"
"""Where a configuration keeps them; one without plug-ins has no such field."""


def with_plugins(config: dict[str, Any]) -> dict[str, Any]:
    """A configuration with the plug-ins that its task and its gradients come from."""
    texts = [*config["gradients"], *(variant[0] for variant in config.get("variants", ()))]
    names = {name for text in texts for name in constructors_of(text)}
    origins = dict.fromkeys([TASKS.origin(config["task"]), *(GRADIENTS.origin(name) for name in sorted(names))])
    found = [plugin.stored() for plugin in map(loaded, origins) if plugin is not None]
    return {**config, FIELD: found} if found else config


def check_plugins(config: Mapping[str, Any], where: Path | str) -> None:
    """See that what a configuration needs is registered; a warning where a plug-in is another than it was.

    Raises:
        RunError: its task or one of its gradients is of a plug-in that was not given, which the message names.
    """
    stored = config.get(FIELD, [])
    if not (isinstance(stored, list) and all(_is_plugin(entry) for entry in stored)):
        raise RunError(f"Expected plug-ins with their names and versions in {where}, got {stored!r}.")
    for entry in stored:
        plugin = loaded(entry["name"])
        if plugin is None:
            if not _is_known(config):
                raise RunError(
                    f"Expected the plug-in {entry['name']}, of which {where} is made, got a command without it; give "
                    f"--plugin {entry['name']} with the path to it."
                )
        elif plugin.version != entry["version"]:
            _tell(entry["name"], _short(entry["version"]), _short(plugin.version))


@functools.cache  # a command opens a run several times
def _tell(name: str, before: str, now: str) -> None:
    warnings.warn(
        f"This was made with {name} of {before}, and {name} of {now} is given; what it computes may differ.",
        EvenflowWarning,
        stacklevel=3,
    )


def _is_plugin(entry: Any) -> bool:
    return isinstance(entry, dict) and all(isinstance(entry.get(name), str) for name in ("name", "version"))


def _is_known(config: Mapping[str, Any]) -> bool:
    """Whether the task and every gradient are registered, by whomever."""
    gradients = config.get("gradients")
    texts: Iterable[Any] = gradients if isinstance(gradients, (list, tuple)) else ()
    try:
        for text in texts:
            gradient_named(text)
    except SettingError:
        return False
    return config.get("task") in TASKS


def _short(version: str) -> str:
    """A version for people: of a hash, its first digits."""
    kind, _, digits = version.partition(" ")
    return f"{kind} {digits[:12]}" if digits else version or "no version"
