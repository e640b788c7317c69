"""What a worker elsewhere is told to train, and what it answers."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.studies.pack import Pack, train_pack
from engine import EvenflowError, current, init
from training.doors import load, load_all_installed
from training.lock import wait_for_writer
from training.plugins import blamed, to_load_again
from training.stopping import Stopping

TRIES = 4
"""How often a pack is begun or gone on with, in all, before workers that die end the study."""
_PATIENCE = 60.0  # seconds until a worker whose machine or whose command was killed is gone


@dataclass(frozen=True)
class Order:
    """A pack to train, and the engine and the plug-ins to train it with.

    Attributes:
        pack: its path is whole.
        runtime: arguments of `engine.init`; plugins: as `load_plugin` takes them.
    """

    pack: Pack
    runtime: dict[str, Any]
    plugins: tuple[str, ...]

    @classmethod
    def of(cls, pack: Pack, threads: int) -> "Order":
        """The pack with so many threads, on an engine that is else as this process's."""
        here = current()
        same = ("backend", "precision", "fast_math", "debug", "ad_stack_size")
        runtime = {name: getattr(here, name) for name in same} | {"threads": threads}
        return cls(replace(pack, path=pack.path.absolute()), runtime, tuple(to_load_again()))


def fulfil(order: Order, stopping: Stopping) -> dict[str, Any]:
    """Train what is left of the pack of an order, in a process of which nothing is known.

    Returns:
        {"lines": what is written of each training}, without any where it was stopped; or {"error": one sentence}.
    """
    try:
        load_all_installed()
        for plugin in order.plugins:
            load(plugin)
        init(**order.runtime)
        wait_for_writer(Path(order.pack.path), _PATIENCE)
        with blamed():
            return {"lines": train_pack(order.pack, None, stopping)}
    except EvenflowError as error:
        return {"error": str(error)}
