"""All parts of `evenflow bench device`, each once, and the report that holds what was found so far."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from benchmarks import apart
from benchmarks.device.plan import SECONDS, Part, Sizes, parts_of
from benchmarks.timing import this_machine
from engine import BackendError, available_backends
from engine.start import NEEDS
from training.errors import RunError
from training.files import write_ours
from training.lock import LOCK, only_writer

DEVICE_FORMAT = 1
_REPORT = "report.json"
Found = dict[str, dict[str, Any]]


def device(out: Path, console: Console, sizes: Sizes | None = None, backend: str = "cuda") -> list[Path]:
    """Measure what is missing of a study in the directory `out`, and write the report there after every part.

    Raises:
        BackendError: this machine has no such backend.
        RunError: the directory holds something else, or figures of another machine; or launches do not repeat.
    """
    if backend not in available_backends():
        raise BackendError(f"Expected a machine with {NEEDS[backend]}, got one without, on which nothing is measured.")
    machine = this_machine() | {"device": torch.cuda.get_device_name(0) if backend == "cuda" else backend}
    found, parts, written = _found_before(out, machine), parts_of(sizes or Sizes()), []
    with only_writer(out, "study"):
        for part in parts:
            if found.get(part.name, {}).get("status") != apart.DONE:
                with console.status(part.name):
                    found[part.name] = _take(part, backend)
            console.print(f"{part.name}: {in_words(found[part.name])}", highlight=False, soft_wrap=True)
            written = _write(out, machine, parts, found)
            if part.kind == "launches" and not found[part.name].get("repeats"):
                raise RunError(
                    f"Expected launches that can be repeated on {machine['device']}, got "
                    f"{in_words(found[part.name])}; nothing else can be measured."
                )
    return written


def _take(part: Part, backend: str) -> dict[str, Any]:
    arguments = [backend, part.kind, json.dumps(part.arguments)]
    ended = apart.run_module("benchmarks.device.worker", arguments, SECONDS)
    record: dict[str, Any] = {"status": ended.status, "seconds": round(ended.seconds, 1)}
    if ended.status == apart.DONE:
        return record | ended.result
    return record | ({"reason": ended.output} if ended.output else {})


def _found_before(out: Path, machine: dict[str, Any]) -> Found:
    """What an earlier study of this machine has found."""
    path = out / _REPORT
    if not path.exists():
        if out.exists() and (not out.is_dir() or any(entry.name != LOCK for entry in out.iterdir())):
            raise RunError(f"Expected a new directory or a study to continue, got {out}; choose another --out.")
        out.mkdir(parents=True, exist_ok=True)
        return {}
    try:
        before = json.loads(path.read_text())
        known = before["format"] == DEVICE_FORMAT and isinstance(before["parts"], dict)
    except (ValueError, KeyError, TypeError):
        known, before = False, {}
    if not known:
        raise RunError(f"Expected a study of a device in {path}, got something else; choose another --out.")
    if before["machine"] != machine:
        raise RunError(f"Expected the machine and the versions of {path}, got others; choose another --out.")
    return before["parts"]


def in_words(record: dict[str, Any]) -> str:
    """What came of a part, in a line."""
    if record["status"] != apart.DONE:
        return f"{record['status']}{': ' + record['reason'] if 'reason' in record else ''}"
    shown = {name: value for name, value in record.items() if name not in ("status", "seconds")}
    return ", ".join(f"{name} {_value(value)}" for name, value in shown.items())


def _value(value: Any) -> str:
    if isinstance(value, dict):
        return "(" + ", ".join(f"{name} {_value(one)}" for name, one in value.items()) + ")"
    if isinstance(value, list):
        return "; ".join(map(str, value)) or "none"
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _write(out: Path, machine: dict[str, Any], parts: list[Part], found: Found) -> list[Path]:
    plain = {"format": DEVICE_FORMAT, "machine": machine, "parts": found, "shares": shares(found)}
    lines = [f"# {machine['device']}", "", ", ".join(f"{name} {value}" for name, value in machine.items()), ""]
    for section in dict.fromkeys(part.section for part in parts):
        rows = [part.name for part in parts if part.section == section and part.name in found]
        if rows:
            lines += [f"## {section}", "", "| part | found | s |", "| --- | --- | --- |"]
            lines += [f"| {name} | {in_words(found[name])} | {found[name]['seconds']} |" for name in rows] + [""]
    if plain["shares"]:
        lines += ["## Shares of what the device can do", "", "| part | share |", "| --- | --- |"]
        lines += [f"| {name} | {share:.2%} |" for name, share in plain["shares"].items()] + [""]
    data = write_ours(out / _REPORT, json.dumps(plain, indent=1) + "\n")
    return [write_ours(out / "report.md", "\n".join(lines)), data]


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
