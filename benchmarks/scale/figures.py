"""Figures of a scaling study, log-log."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes

from benchmarks.apart import DONE
from benchmarks.peers.peer import OURS
from benchmarks.peers.table import peers_of_particles
from benchmarks.scale.cases import case_named
from benchmarks.scale.findings import PARTS, memory_taken, milliseconds, per_pair, steps_of, systems_of
from benchmarks.scale.study import Record
from engine.memory import parse_bytes
from training.style import WIDEST, legend_below, new_figure, panel_figure, plain_log, save_ours
from training.viewing.palette import styles_of

# Sides differ in colour and marker, parts in dashes.
_COLOURS = [style.colour for style in styles_of("RMSNC").values()]
_MARKERS = "osD^vPX*"
_LINE_OF = dict(zip(PARTS, ("-", "--"), strict=True))


def draw(found: Sequence[Record], out: Path) -> list[Path]:
    """Write the figures that something was measured for; returns their paths."""
    written = []
    if any(steps_of(found, system) for system in systems_of(found)):
        written.append(_by_system(found, out / "cost.png", "ms", milliseconds))
        counted = [record for record in found if record.get("pairs")]
        if counted:
            written.append(_by_system(counted, out / "pair.png", "ns for each pair", per_pair))
        written.append(_memory(found, out / "memory.png"))
    horizons = [record for record in found if record["kind"] == "horizon" and record["status"] == DONE]
    if horizons:
        written.append(_horizon(horizons, out / "horizon.png"))
    return written


def _look(side: str) -> dict[str, Any]:
    place = (OURS, *peers_of_particles()).index(side)
    marker = _MARKERS[place % len(_MARKERS)]
    return {"color": _COLOURS[place % len(_COLOURS)], "marker": marker, "markersize": 4}


def _by_system(found: Sequence[Record], path: Path, label: str, value: Callable[[Record, str], float]) -> Path:
    systems = systems_of(found)
    figure, panels = panel_figure(len(systems), label)
    for axes, system in zip(panels, systems, strict=True):
        for side, records in _sides(found, system):
            for part in PARTS:
                axes.plot(
                    [record["particles"] for record in records], [value(record, part) for record in records],
                    _LINE_OF[part], **_look(side), label=f"{side}, {part}",
                )  # fmt: skip
        case = case_named(system)
        _finish(axes, case.title, case.counted)
    legend_below(figure, panels)
    return save_ours(figure, path)


def _memory(found: Sequence[Record], path: Path) -> Path:
    systems = systems_of(found)
    figure, panels = panel_figure(len(systems), "MiB, step and adjoint")
    for axes, system in zip(panels, systems, strict=True):
        for side, records in _sides(found, system):
            sizes = [record["particles"] for record in records]
            taken = [memory_taken(record) / 2**20 for record in records]
            axes.plot(sizes, taken, **_look(side), label=side)
        case = case_named(system)
        _finish(axes, case.title, case.counted)
    legend_below(figure, panels)
    return save_ours(figure, path)


def _horizon(records: Sequence[Record], path: Path) -> Path:
    figure, (times, memory) = new_figure(WIDEST, 3.6, 2)
    steps = [record["horizon"] for record in records]
    for name, line in (("forward", "-"), ("backward", "--")):
        times.plot(steps, [record[f"{name}_s"] for record in records], line, **_look(OURS), label=name)
    stored = [record["state_bytes"] * (record["horizon"] + 1) / 2**20 for record in records]
    memory.plot(steps, stored, ":", color="0.4", marker="o", markersize=3, label="all states")
    for name, line in (("predicted", "--"), ("peak", "-")):
        shown = [record[f"{name}_bytes"] / 2**20 for record in records]
        label = "measured" if name == "peak" else name
        memory.plot(steps, shown, line, **_look(OURS), label=label)
    memory.axhline(parse_bytes(records[0]["memory"]) / 2**20, color="0.7", linewidth=2.0, label="budget")
    case = case_named(records[0]["system"])
    title = f"{case.title}, {records[0]['particles']:,} {case.counted}"
    for axes, label in ((times, "s"), (memory, "MiB")):
        _finish(axes, title, "steps")
        axes.set_ylabel(label)
    legend_below(figure, [times, memory])
    return save_ours(figure, path)


def _sides(found: Sequence[Record], system: str) -> list[tuple[str, list[Record]]]:
    sides = [(side, steps_of(found, system, side)) for side in (OURS, *peers_of_particles())]
    return [(side, records) for side, records in sides if records]


def _finish(axes: Axes, title: str, label: str) -> None:
    axes.set(title=title, xlabel=label, xscale="log", yscale="log")
    for axis in (axes.xaxis, axes.yaxis):
        plain_log(axis)
    axes.grid(alpha=0.25)
