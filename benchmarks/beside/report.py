"""The table of Evenflow beside its peers, on the terminal and in Markdown, and the figure of ensembles."""

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from benchmarks.apart import DONE
from benchmarks.beside.plan import SECONDS, START, TOGETHER, Sizes, goal, parts_of
from benchmarks.parts import REPORT, Found, Part, PartStudy, why_not
from benchmarks.peers.peer import OURS
from benchmarks.tables import table_lines
from benchmarks.timing import this_machine
from training.files import write_ours
from training.style import legend_below, panel_figure, plain_log, save_ours

BESIDE_FORMAT = 1
_HEAD = ("", "", "ours ms", "peer", "ms", "ours/theirs", "of least", "goal", "met", "differs")
_NOTE = (
    "Medians over turns in one process; ours/theirs below 1: Evenflow is faster. `of least`: the same of the least "
    "times. `differs`: gradient, or step and adjoint, from ours as a share of its norm, before anything is timed. Of "
    "ensembles the ms are those of one member. Their peers map over members: `jax.vmap`, `torch.func.vmap`. "
    "Warp computes with one thread on CPUs, whatever the cores; neighbour lists of jax-md, hash grids of Warp and our "
    "cells are made anew in every step; of Warp and torch the adjoint is the backward pass alone, elsewhere it starts "
    "from the state."
)
_MARKERS, _COLOURS = "osD^v", ("tab:blue", "tab:orange", "tab:green", "tab:red", "tab:purple")


def beside(console: Console, out: Path | None, sizes: Sizes | None = None) -> list[Path]:
    """Measure what is missing of a study in the directory `out`, print its tables, and write them there."""
    parts = parts_of(sizes or Sizes())
    study = PartStudy(
        "a study beside peers", "benchmarks.beside.worker", BESIDE_FORMAT, this_machine(), out, SECONDS
    )  # fmt: skip
    found: Found = {}
    for part, found in study.take(parts, console):
        record = found[part.name]
        told = f"{record['seconds']:.0f} s" if record["status"] == DONE else why_not(record)
        console.print(f"{part.name}: {told}", style="dim", highlight=False, soft_wrap=True)
    tables = list(tables_of(parts, found))
    for title, head, rows in tables:
        table = Table(*head, title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 0, 0, 1))
        for row in rows:
            table.add_row(*row)
        console.print(table)
    console.print(_NOTE, style="dim")
    if out is None:
        return []
    figure = _figure(parts, found, out / "members.png")
    return [write_ours(out / "report.md", _markdown(tables, study.machine, figure)), out / REPORT, figure]


def tables_of(parts: Sequence[Part], found: Found) -> Iterator[tuple[str, Sequence[str], list[list[str]]]]:
    """(title, head, rows) of every section; a peer that is missing or differs, and a part that failed, is a row."""
    for section in dict.fromkeys(part.section for part in parts):
        rows = []
        for part in (part for part in parts if part.section == section and part.name in found):
            rows += _starts(part, found[part.name]) if section == START else _rows(part, found[part.name])
        if section == START:
            yield section, ("", "", "s", "MiB"), rows
        else:
            yield section, _HEAD, rows


def _starts(part: Part, record: dict[str, Any]) -> list[list[str]]:
    if record["status"] != DONE:
        return [[part.name, why_not(record), "", ""]]
    memory = record.get("MiB", {})
    rows = [
        [part.name, name, f"{seconds:.2f}", f"{memory[name]:.0f}" if name in memory else ""]
        for name, seconds in record["starts"].items()
    ]
    return rows + [[part.name, f"{name}: not installed", "", ""] for name in record.get("absent", ())]


def _rows(part: Part, record: dict[str, Any]) -> list[list[str]]:
    blank = [""] * (len(_HEAD) - 4)
    if record["status"] != DONE:
        return [[part.name, "", "", why_not(record), *blank]]
    rows = []
    for label, times in record["times"].items():
        ours = times[OURS]
        for peer, theirs in times.items():
            if peer == OURS:
                continue
            ratio, bound = ours["median"] / theirs["median"], goal(part, label, peer)
            wanted = ("", "") if math.isinf(bound) else (f"{bound:g}", "yes" if ratio <= bound else "no")
            rows.append([
                part.name, label, f"{ours['median']:.3g}", peer, f"{theirs['median']:.3g}", f"{ratio:.2f}",
                f"{ours['least'] / theirs['least']:.2f}", *wanted, f"{record['differs'][peer]:.0e}",
            ])  # fmt: skip
    timed = {peer for times in record["times"].values() for peer in times}
    for peer, error in record["differs"].items():
        if peer not in timed:
            rows.append([part.name, "", "", f"{peer}: computes something else", *blank[1:], f"{error:.0e}"])
    return rows + [[part.name, "", "", f"{peer}: not installed", *blank] for peer in record["absent"]]


def _figure(parts: Sequence[Part], found: Found, path: Path) -> Path:
    """ms of an update for each member against members, of cart-pole on all cores, a panel for each gradient."""
    ensembles = [part for part in parts if part.section == TOGETHER and not part.arguments["options"].get("poles")]
    ensembles = [part for part in ensembles if part.arguments["task"] == "cart-pole" and part.arguments["threads"] > 1]
    records = {part.arguments["members"]: found[part.name] for part in ensembles if found[part.name]["status"] == DONE}
    labels = list(dict.fromkeys(label for record in records.values() for label in record["times"]))
    sides = list(
        dict.fromkeys(side for record in records.values() for times in record["times"].values() for side in times)
    )
    figure, panels = panel_figure(max(1, len(labels)), "ms of an update, for each member")
    for axes, label in zip(panels, labels, strict=False):
        for index, side in enumerate(sides):
            points = {count: record["times"][label].get(side) for count, record in sorted(records.items())}
            shown = {count: times["median"] for count, times in points.items() if times}
            look = {
                "marker": _MARKERS[index % len(_MARKERS)],
                "color": _COLOURS[index % len(_COLOURS)],
                "markersize": 4,
            }
            axes.plot(list(shown), list(shown.values()), label=side, **look)
        axes.set(title=label, xlabel="members", xscale="log", yscale="log")
        plain_log(axes.xaxis)
        plain_log(axes.yaxis)
        axes.grid(alpha=0.25)
    legend_below(figure, panels)
    return save_ours(figure, path)


def _markdown(
    tables: Sequence[tuple[str, Sequence[str], list[list[str]]]], machine: dict[str, Any], figure: Path
) -> str:
    about = ", ".join(f"{name} {value}" for name, value in machine.items())
    lines = ["# Beside peers", "", f"{about}; float32, batch 8, Adam.", "", _NOTE, "", f"![Members]({figure.name})"]
    for title, head, rows in tables:
        lines += ["", f"## {title}", ""]
        lines += table_lines(head, rows)
    return "\n".join([*lines, ""])
