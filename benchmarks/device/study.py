"""All parts of `evenflow bench device`, each once, and the report that holds what was found so far."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from benchmarks import apart
from benchmarks.device.plan import SECONDS, Sizes, parts_of
from benchmarks.parts import REPORT, Found, Part, PartStudy, why_not
from benchmarks.timing import this_machine
from engine import BackendError, available_backends
from engine.start import NEEDS
from training.errors import RunError
from training.files import write_ours

DEVICE_FORMAT = 1


def device(out: Path, console: Console, sizes: Sizes | None = None, backend: str = "cuda") -> list[Path]:
    """Measure what is missing of a study in the directory `out`, and write the report there after every part.

    Raises:
        BackendError: this machine has no such backend.
        RunError: the directory holds something else, or figures of another machine; or launches do not repeat.
    """
    if backend not in available_backends():
        raise BackendError(f"Expected a machine with {NEEDS[backend]}, got one without, on which nothing is measured.")
    machine = this_machine() | {"device": torch.cuda.get_device_name(0) if backend == "cuda" else backend}
    study = PartStudy(
        "a study of a device",
        "benchmarks.device.worker",
        DEVICE_FORMAT,
        machine,
        out,
        SECONDS,
        lambda found: {"shares": shares(found)},
    )
    parts, written = parts_of(sizes or Sizes()), []
    for part, found in study.take(parts, console, [backend]):
        console.print(f"{part.name}: {in_words(found[part.name])}", highlight=False, soft_wrap=True)
        written = [_write(out / "report.md", machine, parts, found), out / REPORT]
        if part.kind == "launches" and not found[part.name].get("repeats"):
            raise RunError(
                f"Expected launches that can be repeated on {machine['device']}, got "
                f"{in_words(found[part.name])}; nothing else can be measured."
            )
    return written


def in_words(record: dict[str, Any]) -> str:
    """What came of a part, in a line."""
    if record["status"] != apart.DONE:
        return why_not(record)
    shown = {name: value for name, value in record.items() if name not in ("status", "seconds")}
    return ", ".join(f"{name} {_value(value)}" for name, value in shown.items())


def _value(value: Any) -> str:
    if isinstance(value, dict):
        return "(" + ", ".join(f"{name} {_value(one)}" for name, one in value.items()) + ")"
    if isinstance(value, list):
        return "; ".join(map(str, value)) or "none"
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _write(path: Path, machine: dict[str, Any], parts: list[Part], found: Found) -> Path:
    lines = [f"# {machine['device']}", "", ", ".join(f"{name} {value}" for name, value in machine.items()), ""]
    for section in dict.fromkeys(part.section for part in parts):
        rows = [part.name for part in parts if part.section == section and part.name in found]
        if rows:
            lines += [f"## {section}", "", "| part | found | s |", "| --- | --- | --- |"]
            lines += [f"| {name} | {in_words(found[name])} | {found[name]['seconds']} |" for name in rows] + [""]
    if of_ceilings := shares(found):
        lines += ["## Shares of what the device can do", "", "| part | share |", "| --- | --- |"]
        lines += [f"| {name} | {share:.2%} |" for name, share in of_ceilings.items()] + [""]
    return write_ours(path, "\n".join(lines))


def shares(found: Found) -> dict[str, float]:
    """Of every part with a figure of its own how much of the measured ceiling that is: of arithmetic, or of traffic."""
    ceiling = found.get("ceilings", {})
    kinds: dict[str, Callable[[dict[str, Any]], bool]] = {
        "float32 operations per s": lambda record: "operations" in record,
        "bytes per s": lambda record: "bytes" in record,
    }
    return {
        name: record["achieved per s"] / ceiling[limit]
        for name, record in found.items()
        for limit, applies in kinds.items()
        if "achieved per s" in record and applies(record) and ceiling.get(limit)
    }
