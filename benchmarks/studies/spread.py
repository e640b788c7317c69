"""The options of studies that say who trains their packs."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from engine import SettingError
from training.arguments import MAY_BE_EMPTY
from training.machine import Machine, console

if TYPE_CHECKING:
    from benchmarks.studies.workers import Workers


@dataclass(frozen=True)
class Spread:
    """Who trains the packs of a study; this process, one after another, where nothing is said."""

    jobs: int | None = None
    """Train so many packs at once, each in a process of its own with its share of --threads."""
    ray: Annotated[tuple[str, ...] | None, MAY_BE_EMPTY] = None
    """Train packs on Ray, each with --threads, by default 1: on this machine, or on the cluster at HOST:PORT or auto,
    whose nodes share the directory of the study."""

    def workers(self, machine: Machine) -> "Workers | None":
        """Who trains, and tells of it on the console; None for this process.

        Raises:
            SettingError: --jobs below 1, or with --ray; more than one address, or one of another form.
            LibraryError: Ray is not installed.
        """
        from benchmarks.studies.on_ray import LOCAL, OnRay
        from benchmarks.studies.processes import Processes

        if self.jobs is not None and self.ray is not None:
            raise SettingError("Expected --jobs or --ray, got both; Ray trains as many packs as it has room for.")
        if self.ray is not None and len(self.ray) > 1:
            raise SettingError(f"Expected one address after --ray, or none, got {' '.join(self.ray)}.")
        if self.jobs is not None:
            return Processes(self.jobs, _say)
        if self.ray is not None:
            return OnRay((*self.ray, LOCAL)[0], machine.threads or 1, _say)
        return None


def _say(sentence: str) -> None:
    """Print a line; BrokenPipeError if nobody reads any more."""
    try:
        console.print(sentence, highlight=False, soft_wrap=True)
    except SystemExit as error:  # rich's answer to a closed pipe
        raise BrokenPipeError("nobody reads the progress any more") from error
