"""The scaling study: pairs are counted right, peers compute our step, nothing is measured twice, failures are told."""

import json
import math
import time
from dataclasses import replace
from typing import Any

import pytest
import torch
from children import ROOT
from conftest import tensor_options
from rich.console import Console

import evenflow
from benchmarks import apart
from benchmarks.apart import Ended, run_module
from benchmarks.peers.particles import n_body_step
from benchmarks.peers.peer import OURS, Peer
from benchmarks.peers.table import peers_of_particles
from benchmarks.scale import findings, study, worker
from benchmarks.scale.cases import CASES, RADIUS, case_named
from benchmarks.scale.report import scale, tables_of
from benchmarks.scale.settings import ScaleSettings
from benchmarks.scale.worker import Job
from training.errors import RunError

NAMES = [case.name for case in CASES]
WITH_PEERS = [(case.name, side) for case in CASES for side in study.sides_of(case, installed=False)]


@pytest.mark.parametrize("name", NAMES)
def test_pairs_are_those_of_brute_force(name):
    case, particles = case_named(name), 300
    system: Any = case.build(particles)
    state = case.draw(system, torch.Generator().manual_seed(1))[0].to(**tensor_options())
    expected = particles * (particles - 1)
    if not case.all_pairs:
        # Drivers see everyone; jets are not counted.
        dim, others = len(state[0]) // 2, state.shape[2] - (system.evaders if "swarm" in name else particles)
        radius = RADIUS if "swarm" in name else system.radius
        position = state[0, :dim, others:]
        far = (position[:, :, None] - position[:, None, :]).square().sum(0) > radius**2
        expected -= int(far.sum())
        assert expected < 0.5 * particles**2
    assert case.pairs is not None
    assert case.pairs(system, state) == expected


@pytest.mark.float64
@pytest.mark.parametrize("name", NAMES)
def test_density_does_not_depend_on_the_number_of_particles(name):
    case = case_named(name)
    if case.all_pairs:
        pytest.skip("every pair interacts")
    assert case.pairs is not None
    near = []
    # Of a fluid so many that its surface matters little.
    for particles in (2000, 8000) if "swarm" in name else (16_000, 64_000):
        system = case.build(particles)
        near.append(case.pairs(system, case.draw(system, torch.Generator().manual_seed(0))[0]) / particles)
    assert near[1] == pytest.approx(near[0], rel=0.05)


@pytest.mark.float32
@pytest.mark.parametrize(("name", "side"), WITH_PEERS)
def test_peers_compute_our_step_and_our_adjoint(name, side):
    pytest.importorskip(peers_of_particles()[side].needs)
    assert worker.check(Job("check", name, side, 123, 1), case_named(name))["disagreement"] < 1e-5


@pytest.mark.float32
def test_a_peer_that_computes_something_else_is_found_out():
    case = case_named("n-body")

    def slower(xp, system, sum_pairs):
        step = n_body_step(xp, system, sum_pairs)
        return lambda state, control: step(state, 0.9 * control)

    job = Job("check", "n-body", "torch eager", 40, 1)
    assert worker.check(job, replace(case, peer_step=slower))["disagreement"] > study.TOLERANCE


@pytest.mark.float64
@pytest.mark.parametrize(
    ("statement", "status"),
    [
        ("pass", apart.DONE),
        ("import time; time.sleep(60)", apart.OVER_TIME),
        ("x = b'x' * (900 << 20); import time; time.sleep(60)", apart.OUT_OF_MEMORY),
        ("raise MemoryError", apart.OUT_OF_MEMORY),
        ("import os; os.kill(os.getpid(), 9)", apart.OUT_OF_MEMORY),
        ("raise ValueError('nothing works')", apart.FAILED),
    ],
)
def test_processes_are_stopped_at_their_limits(statement, status):
    seconds = 1.5 if status == apart.OVER_TIME else 60
    outcome = run_module("timeit", ["-n1", "-r1", statement], seconds=seconds, memory=200 * 2**20)
    assert outcome.status == status
    assert outcome.seconds < 10
    if status == apart.FAILED:
        assert outcome.output == "ValueError: nothing works"
    if status == apart.DONE:
        assert "1 loop" in outcome.output


class Workers:
    """Stands in for processes: figures that follow from the job, and sides that run out at some size."""

    def __init__(self):
        self.jobs, self.ends = [], {("torch eager", 128): apart.OUT_OF_MEMORY, ("JAX", 64): apart.FAILED}

    def __call__(self, module, arguments, seconds, memory):
        job = Job(**json.loads(arguments[0]))
        self.jobs.append(job)
        if job.kind == "check":
            return Ended(apart.DONE, json.dumps({"disagreement": 1.0 if job.side == "JAX in blocks" else 1e-7}), 0.1)
        status = self.ends.get((job.side, job.particles), apart.DONE)
        times = {"median": 1e-6 * job.particles**2, "least": 1e-6, "calls": 7}
        result = {"forward_ms": times, "adjoint_ms": times, "forward_bytes": 1, "adjoint_bytes": 1, "state_bytes": 1}
        pairs = {"pairs": job.particles * (job.particles - 1)}
        return Ended(status, json.dumps(result | pairs) if status == apart.DONE else "it broke", 0.1)

    def sizes(self, side):
        return [job.particles for job in self.jobs if job.side == side and job.kind == "step"]


@pytest.fixture
def workers(monkeypatch):
    stand_in = Workers()
    monkeypatch.setattr(apart, "run_module", stand_in)
    monkeypatch.setattr(Peer, "installed", True)
    monkeypatch.setattr(study, "this_machine", lambda: {"cores": 2})
    return stand_in


SMALL = ScaleSettings(("n-body",), (64, 128, 256), horizons=())


def take_all(out, settings=SMALL):
    return study.take_all(settings, out, Console(quiet=True))[0]


@pytest.mark.float64
def test_a_peer_over_its_limit_is_recorded_and_does_not_stop_the_others(workers, tmp_path):
    found = take_all(tmp_path / "study")
    assert workers.sizes(OURS) == [64, 128, 256]
    assert workers.sizes("torch eager") == [64, 128]
    assert workers.sizes("JAX") == [64]
    assert workers.sizes("JAX in blocks") == []  # it computes something else
    ends = [(entry["side"], entry["status"]) for entry in found if entry["status"] != apart.DONE]
    assert sorted(ends) == [("JAX", apart.FAILED), ("torch eager", apart.OUT_OF_MEMORY)]
    cells = [cell for _, _, rows in tables_of(found) for row in rows for cell in row]
    assert "out of memory at 8 GiB" in cells
    assert "failed: it broke" in cells
    assert "differs from ours by 1e+00, and so is not timed" in cells


@pytest.mark.float64
def test_a_study_that_is_continued_repeats_nothing_but_what_failed(workers, tmp_path):
    out = tmp_path / "study"
    first = take_all(out)
    workers.jobs.clear()
    workers.ends["JAX", 64] = apart.DONE
    second = take_all(out)
    assert [(job.side, job.particles) for job in workers.jobs] == [("JAX", 64), ("JAX", 128), ("JAX", 256)]
    assert [entry for entry in second if entry["side"] != "JAX"] == [entry for entry in first if entry["side"] != "JAX"]

    # A higher limit is another chance, a lower one is none; one size more is measured alone.
    workers.jobs.clear()
    take_all(out, replace(SMALL, memory_limit="4GiB"))
    assert workers.jobs == []
    take_all(out, replace(SMALL, memory_limit="16GiB"))
    assert [(job.side, job.particles) for job in workers.jobs] == [("torch eager", 128)]
    workers.jobs.clear()
    take_all(out, replace(SMALL, sizes=(64, 100), peers=False))
    assert [(job.side, job.particles) for job in workers.jobs] == [(OURS, 100)]


@pytest.mark.float64
def test_a_line_that_was_cut_short_is_measured_again(workers, tmp_path):
    take_all(tmp_path, replace(SMALL, peers=False))
    path = tmp_path / "measurements.jsonl"
    whole = path.read_text()
    path.write_text(whole[:-20])
    workers.jobs.clear()
    take_all(tmp_path, replace(SMALL, peers=False))
    assert workers.sizes(OURS) == [256]
    assert path.read_text() == whole


@pytest.mark.float64
def test_directories_of_others_and_of_other_machines_are_refused(workers, tmp_path, monkeypatch):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "measurements.jsonl").write_text('{"mine": 1}\n')
    with pytest.raises(RunError, match="Expected measurements of a scaling study"):
        take_all(tmp_path / "mine")
    take_all(tmp_path / "study")
    monkeypatch.setattr(study, "this_machine", lambda: {"cores": 64})
    with pytest.raises(RunError, match="Expected the machine and the versions"):
        take_all(tmp_path / "study")


@pytest.mark.float64
def test_the_fit_finds_the_exponent():
    sizes = [10**power for power in range(3, 7)]
    line = findings.fit(sizes, [3e-4 * size**1.37 for size in sizes])
    assert line.slope == pytest.approx(1.37, abs=1e-12)
    assert line.error < 1e-6
    doubled = findings.fit(sizes, [size * (2.0 if size == 1000 else 1.0) for size in sizes])
    # Least squares by hand: centred logarithms of N are -1.5, -0.5, 0.5, 1.5.
    assert doubled.slope == pytest.approx(1.0 - 1.5 * math.log10(2.0) / 5.0, abs=1e-12)
    assert doubled.error > 0.01
    assert findings.fit(sizes[:2], [1.0, 2.0]) is None


def step_record(system, side, particles, forward, adjoint, adjoint_bytes=10):
    times = [{"median": value, "least": value, "calls": 7} for value in (forward, adjoint)]
    return {
        "kind": "step", "status": apart.DONE, "system": system, "side": side, "particles": particles,
        "forward_ms": times[0], "adjoint_ms": times[1], "pairs": particles**2, "state_bytes": 16 * particles,
        "forward_bytes": 10, "adjoint_bytes": adjoint_bytes,
    }  # fmt: skip


@pytest.mark.float64
def test_goals_are_met_or_missed_by_the_figures():
    found = [
        step_record("swarm", OURS, 1000, 0.4, 1.2),
        step_record("swarm", OURS, 4000, 6.4, 17.6, adjoint_bytes=15_000_010),
        step_record("swarm", "JAX", 4000, 96.0, 88.0),
        step_record("swarm", "torch eager", 4000, 640.0, 17.6),
        *(step_record("swarm-cells", OURS, size, size / 1e3, size**1.2) for size in (1000, 10_000, 100_000)),
    ]
    goals = {goal.what: goal for goal in findings.goals(found)}

    def check(what, measured, met):
        assert goals[what].measured == pytest.approx(measured)
        assert goals[what].met is met

    check("swarm, all pairs, 4,000 particles: ns for each pair, step", 0.4, True)
    check("swarm, all pairs, 4,000 particles: ns for each pair, adjoint", 1.1, False)
    check("swarm, all pairs, 4,000 particles: JAX over ours, step", 15.0, True)
    check("swarm, all pairs, 4,000 particles: JAX over ours, adjoint", 5.0, False)
    check("swarm, all pairs, 4,000 particles: torch eager over ours, step", 100.0, True)
    check("swarm, all pairs, 4,000 particles: torch eager over ours, adjoint", 1.0, False)
    check("swarm, all pairs: bytes of the adjoint for each further pair", 1.0, False)
    check("swarm, cells: exponent of the step in N", 1.0, True)
    check("swarm, cells: exponent of the adjoint in N", 1.2, False)
    assert len(goals) == 9


@pytest.mark.float64
def test_a_real_measurement_over_its_limit_leaves_a_report(tmp_path):
    settings = ScaleSettings(("swarm",), (64,), horizons=(), limit=0.2)
    scale(settings, tmp_path, Console(quiet=True))
    assert "over 0.2 s" in (tmp_path / "report.md").read_text()


OPTIONS = ["--systems", "n-body", "--sizes", "64", "--no-peers", "--horizon-system", "n-body"]


@pytest.mark.float64
def test_the_command_measures_writes_and_continues(forked_modules, tmp_path, capsys, monkeypatch):
    command = ["bench", "scale", "--out", str(tmp_path / "new" / "study"), *OPTIONS]
    command += ["--horizon-particles", "64", "--horizons", "5"]
    started = time.perf_counter()
    assert evenflow.main(command) == 0
    elapsed = (time.perf_counter() - started) * 1e3
    report = json.loads((tmp_path / "new" / "study" / "report.json").read_text())
    step, rollout = report["measurements"]
    assert step["forward_ms"]["calls"] > 7
    assert 0 < step["forward_ms"]["least"] <= step["forward_ms"]["median"]
    # Half of the calls took the median or longer, all within the command.
    assert step["forward_ms"]["median"] * step["forward_ms"]["calls"] / 2 < elapsed
    assert step["pairs"] == rollout["pairs_first"] == 64 * 63
    assert rollout["finite"]
    assert 0 < rollout["predicted_bytes"] <= 512 * 2**20
    printed = capsys.readouterr().out
    for name in ("report.md", "report.json", "cost.png", "pair.png", "memory.png", "horizon.png"):
        assert (tmp_path / "new" / "study" / name).stat().st_size > 0
        assert f"study/{name}" in printed
    monkeypatch.setattr(apart, "run_module", None)
    assert evenflow.main(command) == 0
    assert json.loads((tmp_path / "new" / "study" / "report.json").read_text()) == report


def test_a_registered_system_starts_inside_its_own_domain_and_counts_samples():
    case = case_named("guidance")
    state, control, _ = case.start(system := case.build(64), 64)
    assert torch.equal(state, system.sample(64, torch.Generator().manual_seed(0)).to(torch.float32))
    assert float(state.abs().max()) > 1.0 > 2 * float(control.abs().max())
    assert (case.counted, case_named("swarm").counted) == ("samples", "particles")


@pytest.mark.float64
def test_a_registered_system_is_measured_against_samples_and_says_that_it_has_no_peer(forked_modules, tmp_path):
    command = ["bench", "scale", "--plugin", str(ROOT / "examples" / "own_system.py"), "--out", str(tmp_path / "study")]
    command += ["--systems", "pendulum", "--sizes", "64", "128", "--horizon-system", "pendulum", "--horizons", "3"]
    command += ["--horizon-particles", "64"]
    assert evenflow.main(command) == 0
    report = json.loads((tmp_path / "study" / "report.json").read_text())
    assert [record["status"] for record in report["measurements"]] == ["done"] * 3
    assert [record["particles"] for record in report["measurements"]] == [64, 128, 64]
    assert report["measurements"][2]["finite"]
    assert (
        "| pendulum, samples | no peer | none here computes this step |"
        in (tmp_path / "study" / "report.md").read_text()
    )
    assert not (tmp_path / "study" / "pair.png").exists()


MISTAKES = {
    "unknown system": ["--systems", "gas"],
    "unknown system of the long rollouts": ["--horizon-system", "gas"],
    "too few particles": ["--sizes", "4"],
    "too few particles for long": ["--horizon-particles", "4"],
    "no steps": ["--horizons", "0"],
    "nothing": ["--systems", "--horizons"],
    "no threads": ["--threads", "0"],
    "more threads than cores": ["--threads", "100000"],
    "no time": ["--limit", "-1"],
    "endless": ["--limit", "inf"],
    "budget that is no size": ["--memory", "lots"],
    "limit that is no size": ["--memory-limit", "lots"],
    "directory with files": ["--out", "full"],
    "directory that is a file": ["--out", "full/notes.txt"],
    "directory below a file": ["--out", "full/notes.txt/study"],
}


@pytest.mark.float64
@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_ends_in_one_sentence_and_leaves_nothing(name, tmp_path, capsys, monkeypatch):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(apart, "run_module", None)
    assert evenflow.main(["bench", "scale", "--out", "new", *MISTAKES[name]]) == 2
    error = capsys.readouterr().err
    assert error.startswith("evenflow: Expected ")
    assert error.count("\n") == 1
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["full", "notes.txt"]
    assert (tmp_path / "full" / "notes.txt").read_text() == "mine"
