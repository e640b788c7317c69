"""All measurements of a scaling study: each taken once, in a process of its own, and appended to the study's file."""

import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks import apart
from benchmarks.peers.peer import OURS
from benchmarks.peers.table import peers_of_particles
from benchmarks.scale.cases import Case, case_named
from benchmarks.scale.settings import ScaleSettings
from benchmarks.scale.worker import Job, job_text
from benchmarks.timing import this_machine
from engine import SettingError
from engine.memory import parse_bytes
from engine.runtime import cores
from training.errors import RunError
from training.files import add_lines, reason
from training.lock import LOCK, only_writer
from training.metrics import json_lines
from training.plugins import to_load_again

SCALE_FORMAT = 1
# A peer whose next state or adjoint differs from ours by more of its norm computes something else.
TOLERANCE = 1e-4
# Particles with which peers are compared; no multiple of what they cut their rows into.
_CHECKED_PARTICLES = 300
_NAME = "measurements.jsonl"

Record = dict[str, Any]


class Records:
    """The measurements of a study, one JSON line each, after a line that names the machine.

    Args:
        out: a new or an empty directory, or that of a study to continue on the same machine.

    Raises:
        RunError: the directory holds something else, or figures of another machine.
    """

    def __init__(self, out: Path):
        self.path, self.machine = out / _NAME, this_machine()
        if out.exists() and not out.is_dir():
            raise RunError(f"Expected a directory for the study, got {out}, which is a file; choose another --out.")
        if self.path.exists():
            self.all = self._read()
            return
        if out.exists() and any(entry.name != LOCK for entry in out.iterdir()):
            raise RunError(
                f"Expected a new directory or a scaling study to continue, got {out}, which holds other files; choose "
                "another --out."
            )
        try:
            out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RunError(f"Expected a directory that can be made, got {out}: {reason(error)}.") from error
        self.all: list[Record] = []
        self._add({"format": SCALE_FORMAT, "machine": self.machine})

    def find(self, job: Job, settings: ScaleSettings) -> Record | None:
        """What is known of a job; a measurement that failed, or hit lower limits than now, is not."""
        for record in reversed(self.all):
            if all(record.get(name) == value for name, value in asdict(job).items()):
                stopped = record["status"] in (apart.OUT_OF_MEMORY, apart.OVER_TIME)
                final = stopped and (
                    record["limit"] >= settings.limit and record["memory_limit"] >= parse_bytes(settings.memory_limit)
                )
                return record if record["status"] == apart.DONE or final else None
        return None

    def take(self, job: Job, settings: ScaleSettings) -> Record:
        """Measure, and append what was found."""
        memory = parse_bytes(settings.memory_limit)
        ended = apart.run_module("benchmarks.scale.worker", [job_text(job), *to_load_again()], settings.limit, memory)
        record = asdict(job) | {
            "status": ended.status,
            "seconds": round(ended.seconds, 3),
            "limit": settings.limit,
            "memory_limit": memory,
        }
        if ended.status == apart.DONE:
            record |= ended.result
        elif ended.status == apart.FAILED:
            record["reason"] = ended.output
        self._add(record)
        self.all.append(record)
        return record

    def _add(self, entry: Record) -> None:
        try:
            add_lines(self.path, [json.dumps(entry)])
        except OSError as error:
            raise RunError(f"Expected measurements that can be written, got {self.path}: {reason(error)}.") from error

    def _read(self) -> list[Record]:
        head, *records = [entry for entry, _ in json_lines(self.path, "measurements")] or [None]
        known = isinstance(head, dict) and head.get("format") == SCALE_FORMAT and all(map(_is_record, records))
        if not known:
            raise RunError(
                f"Expected measurements of a scaling study in {self.path}, got something else; choose another --out."
            )
        if head.get("machine") != self.machine:
            raise RunError(
                f"Expected the machine and the versions that {self.path} was measured with, got others; choose "
                "another --out."
            )
        return records


def _is_record(value: Any) -> bool:
    return isinstance(value, dict) and isinstance(value.get("status"), str)


def take_all(settings: ScaleSettings, out: Path, console: Console) -> tuple[list[Record], Records]:
    """Every measurement that the settings ask for, taken or found; returns those, and the study's file.

    A side that ran out of memory or time with N particles is not tried with more.
    """
    cases, threads = [case_named(name) for name in settings.systems], _threads(settings)
    horizon_case = case_named(settings.horizon_system)
    records = Records(out)
    jobs = [*_steps(settings, cases, threads), *_horizons(settings, horizon_case, threads)]
    with only_writer(out, "study"):
        return _take_each(settings, records, jobs, console), records


def _take_each(settings: ScaleSettings, records: Records, jobs: Iterable[Job], console: Console) -> list[Record]:
    found, stopped, refused = [], set(), set()
    for job in jobs:
        if (job.system, job.side) in refused or (job.kind, job.system, job.side) in stopped:
            continue
        record = records.find(job, settings)
        if record is None:
            with console.status(_describe(job)):
                record = records.take(job, settings)
        console.print(f"{_describe(job)}: {in_words(record)}", style="dim", highlight=False, soft_wrap=True)
        found.append(record)
        if record["status"] != apart.DONE:
            stopped.add((job.kind, job.system, job.side))
        if job.kind == "check" and not record.get("disagreement", TOLERANCE) < TOLERANCE:
            refused.add((job.system, job.side))
    return found


def in_words(record: Record) -> str:
    """What came of a measurement, in a few words."""
    if record["status"] == apart.OVER_TIME:
        return f"over {record['limit']:g} s"
    if record["status"] == apart.OUT_OF_MEMORY:
        return f"out of memory at {record['memory_limit'] / 2**30:.3g} GiB"
    if record["status"] == apart.FAILED:
        return f"failed: {record['reason']}"
    if record["kind"] == "check":
        note = "" if record["disagreement"] < TOLERANCE else ", and so is not timed"
        return f"differs from ours by {record['disagreement']:.0e}{note}"
    if record["kind"] == "horizon":
        return f"forward {record['forward_s']:.1f} s, backward {record['backward_s']:.1f} s"
    return f"step {record['forward_ms']['median']:.3g} ms, adjoint {record['adjoint_ms']['median']:.3g} ms"


def _steps(settings: ScaleSettings, cases: list[Case], threads: int) -> Iterator[Job]:
    """Sides take turns at every size; each peer is compared with us before its first."""
    for case in cases:
        sides = [OURS, *(sides_of(case) if settings.peers else ())]
        for side in sides[1:]:
            yield Job("check", case.name, side, _CHECKED_PARTICLES, threads)
        for particles in sorted(set(settings.sizes or case.sizes)):
            if particles <= case.largest:
                for side in sides:
                    yield Job("step", case.name, side, particles, threads)


def _horizons(settings: ScaleSettings, case: Case, threads: int) -> Iterator[Job]:
    for horizon in sorted(set(settings.horizons)):
        yield Job("horizon", case.name, OURS, settings.horizon_particles, threads, horizon, settings.memory)


def sides_of(case: Case, installed: bool = True) -> list[str]:
    """The peers that are measured beside a system: those that are here, or all of them."""
    if case.peer_step is None:
        return []
    found = {name: peer for name, peer in peers_of_particles().items() if name not in case.without}
    return [name for name, peer in found.items() if peer.installed or not installed]


def _threads(settings: ScaleSettings) -> int:
    if settings.threads is not None and settings.threads > cores():
        raise SettingError(f"Expected at most {cores()} threads, the cores of this machine, got {settings.threads}.")
    return settings.threads or cores()


def _describe(job: Job) -> str:
    case = case_named(job.system)
    title = case.title
    if job.kind == "check":
        return f"{title}: {job.side} compared"
    if job.kind == "horizon":
        return f"{title}, {job.particles:,} {case.counted} x {job.horizon:,} steps in {job.memory}"
    return f"{title}, {job.particles:,} {case.counted}, {job.side}"
