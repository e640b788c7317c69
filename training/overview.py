"""What there is to choose from, in a terminal: commands, benchmarks and tasks with a line each."""

from collections.abc import Mapping

from rich.table import Table

from training.machine import console
from training.tasks import TASKS


def print_overview(usage: str, about: str, **sections: Mapping[str, str]) -> None:
    """Print how to call a command, what it is about, and the names of each section with what they mean."""
    for text in filter(None, (f"usage: {usage}", about)):
        console.print(text, "", sep="\n", highlight=False)
    for title, entries in sections.items():
        table = Table.grid(padding=(0, 2))
        for name, text in entries.items():
            table.add_row(f"  {name}", text)
        console.print(f"{title}:", table, "", sep="\n", highlight=False)


def task_summaries() -> dict[str, str]:
    """What each task is."""
    return {name: first_paragraph(kind) for name, kind in TASKS.items()}


def first_paragraph(kind: type) -> str:
    """The first paragraph of a docstring, in one line."""
    return " ".join((kind.__doc__ or "").split("\n\n")[0].split())
