"""Where a command of the command line runs, and where it prints."""

from dataclasses import dataclass

from rich.console import Console

from engine import init

console = Console()


@dataclass(frozen=True)
class Machine:
    """Where the engine runs."""

    backend: str = "auto"
    """auto, cpu, cuda or vulkan."""
    precision: str = "float32"
    """float32 or float64."""
    threads: int | None = None
    """CPU threads; every core by default."""

    def start(self) -> None:
        """Start the engine and say on what."""
        runtime = init(self.backend, self.precision, self.threads)
        note = f" ({runtime.note})" if runtime.note else ""
        console.print(
            f"{runtime.backend}, {runtime.precision}, {runtime.threads} threads{note}", style="dim", highlight=False
        )
