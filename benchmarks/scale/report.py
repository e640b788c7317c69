"""The report of a scaling study: tables on the terminal, in Markdown and JSON, and figures."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table

from benchmarks.apart import DONE
from benchmarks.peers.peer import OURS
from benchmarks.scale import findings
from benchmarks.scale.cases import case_named
from benchmarks.scale.figures import draw
from benchmarks.scale.findings import memory_taken, milliseconds, per_pair
from benchmarks.scale.settings import ScaleSettings
from benchmarks.scale.study import SCALE_FORMAT, Record, in_words, take_all
from benchmarks.tables import table_lines
from engine.memory import parse_bytes
from training.files import write_ours

_STEP_HEAD = ("N", "side", "step ms", "adjoint", "pairs", "ns/pair", "adjoint", "MiB", "adjoint", "step ×", "adjoint ×")
_HORIZON_HEAD = ("N", "T", "forward s", "backward", "ms/step", "cuts", "all states MiB", "budget", "predicted",
                 "measured", "compiler")  # fmt: skip
_NOTE = (
    "Medians of repeated calls, each measurement in a process of its own; a pair is an ordered pair of particles that "
    "interact, and × is a peer's time over ours. MiB are the growth of the process's resident memory at its peak, for "
    "step and adjoint together and for the adjoint alone, beyond the interpreter with its libraries; compiling the "
    "kernels is in them. Of torch eager the step records the graph and the adjoint is the backward pass through it; "
    "elsewhere the adjoint starts from the state alone. Of a long rollout the measured memory is what it takes once "
    "kernels are compiled; what the compiler took before it stands beside."
)


def scale(settings: ScaleSettings, out: Path, console: Console) -> list[Path]:
    """Take what is missing of a study in the directory `out`, print the tables and write report and figures there."""
    found, records = take_all(settings, out, console)
    tables = tables_of(found)
    for title, head, rows in tables:
        table = Table(*head, title=title, box=box.SIMPLE_HEAD)
        for row in rows:
            table.add_row(*row)
        console.print(table)
    plain = {
        "format": SCALE_FORMAT,
        "machine": records.machine,
        "settings": asdict(settings),
        "measurements": found,
        "fits": {
            system: {part: asdict(line) for part, line in by.items()} for system, by in findings.fits(found).items()
        },
        "goals": [asdict(goal) | {"met": goal.met} for goal in findings.goals(found)],
    }
    data = write_ours(out / "report.json", json.dumps(plain, indent=1) + "\n")
    figures = draw(found, out)
    return [write_ours(out / "report.md", _markdown(tables, records.machine, figures)), data, *figures]


def tables_of(found: Sequence[Record]) -> list[tuple[str, Sequence[str], list[list[str]]]]:
    """(title, head, rows) of every table that something was measured for."""
    result = []
    for system in findings.systems_of(found):
        result.append((f"{case_named(system).title}", _STEP_HEAD, _step_rows(found, system)))
    checks = [record for record in found if record["kind"] == "check"]
    rows = [[case_named(record["system"]).title, record["side"], in_words(record)] for record in checks]
    alone = [case_named(system) for system in findings.systems_of(found)]
    rows += [[case.title, "no peer", "none here computes this step"] for case in alone if case.peer_step is None]
    if rows:
        result.append(("Peers compared with ours", ("system", "side", "next state and adjoint"), rows))
    lines = [
        [case_named(system).title, part, f"{line.slope:.3f} ± {line.error:.3f}", str(line.sizes)]
        for system, by in findings.fits(found).items()
        for part, line in by.items()
    ]
    if lines:
        result.append(("Cost = constant · N^exponent", ("system", "", "exponent", "sizes"), lines))
    horizons = [record for record in found if record["kind"] == "horizon"]
    if horizons:
        result.append(("Long rollouts, forward and backward", _HORIZON_HEAD, [_horizon_row(r) for r in horizons]))
    goals = [
        [goal.what, f"{goal.measured:.3g}", f"{'at least' if goal.larger else 'at most'} {goal.bound:g}",
         "yes" if goal.met else "no"]
        for goal in findings.goals(found)
    ]  # fmt: skip
    if goals:
        result.append(("Goals", ("figure", "measured", "goal", "met"), goals))
    return result


def _step_rows(found: Sequence[Record], system: str) -> list[list[str]]:
    ours = {record["particles"]: record for record in findings.steps_of(found, system)}
    rows = []
    for record in found:
        if record["kind"] != "step" or record["system"] != system:
            continue
        row = [f"{record['particles']:,}", record["side"]]
        if record["status"] != DONE:
            rows.append([*row, in_words(record), *[""] * (len(_STEP_HEAD) - 3)])
            continue
        row += [f"{milliseconds(record, part):.3g}" for part in findings.PARTS]
        pairs = record["pairs"]  # None where they are not counted
        row += [f"{pairs:.2e}" if pairs else ""]
        row += [f"{per_pair(record, part):.2f}" if pairs else "" for part in findings.PARTS]
        row += [_mebibytes(memory_taken(record)), _mebibytes(record["adjoint_bytes"])]
        mine = ours.get(record["particles"])
        compared = mine is not None and record["side"] != OURS
        row += [
            f"{milliseconds(record, part) / milliseconds(mine, part):.1f}" if compared and mine is not None else ""
            for part in findings.PARTS
        ]
        rows.append(row)
    return rows


def _horizon_row(record: Record) -> list[str]:
    row = [f"{record['particles']:,}", f"{record['horizon']:,}"]
    if record["status"] != DONE:
        return [*row, in_words(record), *[""] * (len(_HORIZON_HEAD) - 3)]
    spent = record["forward_s"] + record["backward_s"]
    return [
        *row,
        f"{record['forward_s']:.2f}",
        f"{record['backward_s']:.2f}",
        f"{spent / record['horizon'] * 1e3:.2f}",
        str(record["segments"]),
        _mebibytes(record["state_bytes"] * (record["horizon"] + 1)),
        _mebibytes(parse_bytes(record["memory"])),
        *(_mebibytes(record[name]) for name in ("predicted_bytes", "peak_bytes", "warm_bytes")),
    ]


def _mebibytes(count: int) -> str:
    return f"{count / 2**20:.1f}"


def _markdown(
    tables: Sequence[tuple[str, Sequence[str], list[list[str]]]], machine: Record, figures: list[Path]
) -> str:
    about = ", ".join(f"{name} {value}" for name, value in machine.items())
    lines = ["# What a step costs at scale", "", f"{about}; float32.", "", _NOTE, ""]
    lines += [f"![{figure.stem} against size]({figure.name})" for figure in figures]
    for title, head, rows in tables:
        lines += ["", f"## {title}", ""]
        lines += table_lines(head, rows)
    return "\n".join([*lines, ""])
