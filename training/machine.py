"""Where a command of the command line runs, and where it prints."""

from dataclasses import dataclass, replace

from rich.console import Console

from engine import current, init
from training.ranks import Ranks, ranks_of_environment

console = Console(markup=False)


@dataclass(frozen=True)
class Machine:
    """Where the engine runs."""

    backend: str = "auto"
    """auto, cpu, cuda or vulkan."""
    precision: str = "float32"
    """float32 or float64."""
    threads: int | None = None
    """CPU threads; every core by default, shared by the ranks of torchrun."""

    def start(self) -> None:
        """Start the engine and say on what."""
        runtime = init(self.backend, self.precision, self.threads)
        note = f" ({runtime.note})" if runtime.note else ""
        console.print(
            f"{runtime.backend}, {runtime.precision}, {runtime.threads} threads{note}", style="dim", highlight=False
        )

    def start_ranks(self) -> Ranks:
        """The same as one of the ranks that torchrun started, if it did, on this one's device; only the first prints.

        Raises:
            SettingError: an environment that does not say which rank this is, or fewer devices than ranks.
            RankError: ranks that do not meet.
        """
        ranks = ranks_of_environment()
        console.quiet = not ranks.first
        ranks.take_device(self.backend)
        replace(self, threads=ranks.threads(self.threads)).start()
        if ranks.size > 1:
            console.print(f"{ranks.size} ranks, of which this is the first", style="dim", highlight=False)
            ranks.join(current().device)
        return ranks
