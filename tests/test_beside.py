"""The table beside peers: its plan, what its rows say, parts for real, and that it continues where it was stopped."""

import json
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from rich.console import Console

import evenflow
from benchmarks import apart, speed
from benchmarks.apart import Ended
from benchmarks.beside import report, worker
from benchmarks.beside.plan import Sizes, parts_of
from benchmarks.peers.peer import Peer
from training.errors import RunError

pytestmark = pytest.mark.float64

FEW = Sizes(rounds=1, members=(2,), together=3, all_pairs=64, cells=64, horizon=4)


def test_parts_have_names_of_their_own_and_functions_that_take_them():
    parts = parts_of(Sizes())
    assert len({part.name for part in parts}) == len(parts)
    assert {part.kind for part in parts} == {"imports", "firsts", "alone", "together", "particles"}
    assert all(callable(getattr(worker, part.kind)) for part in parts)
    counts = {part.arguments["members"] for part in parts if part.kind == "together"}
    assert counts == {1, 8, 40, 128, 512}
    assert {part.arguments["task"] for part in parts if part.kind == "alone"} == {"cart-pole", "guidance", "quantum"}


class Parts:
    """Stands in for processes: every update takes 2 ms of ours and 1, 4 or 8 ms of the peers."""

    def __init__(self):
        self.asked, self.broken = [], {"quantum"}

    def __call__(self, module, arguments, seconds=None, **_):
        kind, given = arguments[0], json.loads(arguments[1])
        self.asked.append((kind, given))
        if given.get("task") in self.broken:
            return Ended(apart.FAILED, "it broke", 0.1)
        if kind in ("imports", "firsts"):
            return Ended(apart.DONE, json.dumps({"starts": {"Evenflow": 1.25}, "absent": ["JAX, jax.grad"]}), 0.1)
        time = lambda ms: {"median": ms, "least": ms / 2}  # noqa: E731
        labels = ("step", "adjoint") if kind == "particles" else ("R", "M", "C")
        sides = {"Evenflow": time(2.0), "JAX in blocks": time(1.0), "JAX, jax.grad": time(8.0)}
        result = {
            "times": dict.fromkeys(labels, sides),
            "differs": {"JAX in blocks": 1e-7, "JAX, jax.grad": 1e-7, "torch eager": 0.5},
            "absent": ["Warp"],
        }
        return Ended(apart.DONE, json.dumps(result), 0.1)


@pytest.fixture
def stand_in(monkeypatch):
    parts = Parts()
    monkeypatch.setattr(apart, "run_module", parts)
    monkeypatch.setattr(report, "this_machine", lambda: {"cores": 2})
    return parts


def test_rows_say_who_is_ahead_who_is_missing_and_who_computes_something_else(stand_in, tmp_path, capsys):
    markdown, data, figure = report.beside(Console(width=160), tmp_path / "study", FEW)
    rows = {tuple(cell.strip() for cell in line.split("|")[1:-1]) for line in markdown.read_text().splitlines()}
    assert ("cart-pole", "R", "2", "JAX, jax.grad", "8", "0.25", "0.25", "0.8", "yes", "1e-07") in rows
    assert ("swarm, 64, 1 core", "adjoint", "2", "JAX in blocks", "1", "2.00", "2.00", "0.2", "no", "1e-07") in rows
    assert ("cart-pole", "", "", "Warp: not installed", "", "", "", "", "", "") in rows
    assert ("cart-pole", "", "", "torch eager: computes something else", "", "", "", "", "", "5e-01") in rows
    assert ("quantum", "", "", "failed: it broke", "", "", "", "", "", "") in rows
    assert ("import", "Evenflow", "1.25", "") in rows
    assert ("first update of cart-pole", "JAX, jax.grad: not installed", "", "") in rows
    assert figure.stat().st_size > 0
    assert "JAX, jax.grad: not installed" in capsys.readouterr().out
    assert json.loads(data.read_text())["parts"]["cart-pole"]["status"] == apart.DONE


def test_a_study_that_is_continued_repeats_nothing_but_what_failed(stand_in, tmp_path, monkeypatch):
    report.beside(Console(quiet=True), tmp_path / "study", FEW)
    stand_in.asked.clear()
    stand_in.broken.clear()
    report.beside(Console(quiet=True), tmp_path / "study", FEW)
    assert {given["task"] for _, given in stand_in.asked} == {"quantum"}
    stand_in.asked.clear()
    assert report.beside(Console(quiet=True), None, FEW) == []
    assert len(stand_in.asked) == len(parts_of(FEW))

    monkeypatch.setattr(report, "this_machine", lambda: {"cores": 64})
    with pytest.raises(RunError, match="Expected the machine and the versions"):
        report.beside(Console(quiet=True), tmp_path / "study", FEW)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "report.json").write_text("{}")
    with pytest.raises(RunError, match="Expected a study beside peers"):
        report.beside(Console(quiet=True), tmp_path / "mine", FEW)


@pytest.mark.parametrize(
    ("kind", "arguments", "labels"),
    [
        ("together", {"task": "cart-pole", "options": {"horizon": 3}, "members": 2, "threads": 1}, {"R", "M", "C"}),
        ("particles", {"system": "n-body", "particles": 40, "threads": 1}, {"step", "adjoint"}),
    ],
)
def test_peers_are_compared_and_timed_in_one_process(forked_modules, kind, arguments, labels):
    ended = apart.run_module("benchmarks.beside.worker", [kind, json.dumps(arguments | {"rounds": 1})])
    assert ended.status == apart.DONE, ended.output
    found = ended.result
    assert set(found["times"]) == labels
    for times in found["times"].values():
        assert set(times) == {"Evenflow", *found["differs"]}
        assert all(0 < one["least"] <= one["median"] for one in times.values())
    assert {"torch.func", "torch eager"} & set(found["differs"])
    assert all(error < 1e-4 for error in found["differs"].values())


def test_missing_peers_are_named_and_others_are_not_timed_when_they_differ(monkeypatch):
    here, gone = Peer("here", "json"), Peer("gone", "no_such_module")
    assert worker._nothing([here, gone])["absent"] == ["gone"]
    apart_by = iter([1e-6, 1e-3, 1e-7])
    monkeypatch.setattr(speed, "disagreement", lambda *_: next(apart_by))
    made: Any = SimpleNamespace(update=lambda: None)
    makers: Any = [(here, lambda *_: made), (gone, None)]
    given, errors = (made, (torch.zeros(1), None), "R", makers), {}
    taken = [list(speed.updates_of(*given, errors, 1e-4)) for _ in range(3)]
    assert taken == [["Evenflow", "here"], ["Evenflow"], ["Evenflow", "here"]]
    assert errors == {"here": 1e-3}


def test_the_command_refuses_one_task_and_an_ensemble_of_one(capsys, tmp_path):
    assert evenflow.main(["bench", "speed", "--peers", "--task", "guidance"]) == 2
    assert "Expected all tasks with --peers, got --task guidance" in capsys.readouterr().err
    assert evenflow.main(["bench", "speed", "--peers", "--members", "1"]) == 2
    assert "Expected members of at least 2 beside peers, got 1" in capsys.readouterr().err
