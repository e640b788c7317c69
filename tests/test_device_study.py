"""The study of a device: its plan, its parts on the CPU, its report, and that it continues where it was stopped."""

import json

import pytest
from children import ROOT
from rich.console import Console

import engine
from benchmarks import apart
from benchmarks.apart import Ended
from benchmarks.device import plan, study, worker
from benchmarks.device.plan import Sizes, marked_tests, parts_of
from training.errors import RunError

pytestmark = pytest.mark.float64

TINY = Sizes(
    members=(1, 2), horizon=4, particles=(64,), rounds=1, systems=("integrator",),
    tests=(str(ROOT / "tests" / "test_combinations.py"),), side=64, bytes=2**16,
)  # fmt: skip
TAKEN = ("launches", "suite float32 1", "suite float64 1", "launch cost", "parity", "determinism cart-pole",
         "cart-pole 1", "swarm-cells 64", "ceilings")  # fmt: skip


@pytest.fixture
def few_parts(monkeypatch):
    """A plan of those parts that soon end on a CPU."""
    monkeypatch.setattr(study, "parts_of", lambda sizes: [part for part in parts_of(sizes) if part.name in TAKEN])


def answers(monkeypatch, answer):
    """Processes end as `answer(arguments)` says."""
    monkeypatch.setattr(apart, "run_module", lambda module, arguments, seconds: answer(arguments))


def test_the_plan_goes_from_right_to_fast_in_parts_of_their_own():
    parts = parts_of(Sizes())
    assert len({part.name for part in parts}) == len(parts)
    assert list(dict.fromkeys(part.kind for part in parts)) == [
        "launches", "suite", "launch_cost", "parity", "determinism", "updates", "particles", "ceilings",
    ]  # fmt: skip
    assert [part.arguments["members"] for part in parts if part.kind == "updates"] == [1, 64, 1024]
    sized = [(part.arguments["system"], part.arguments["particles"]) for part in parts if part.kind == "particles"]
    assert sized == [(name, count) for name in ("swarm-cells", "fluid") for count in (100_000, 1_000_000)]
    assert {part.kind for part in parts} <= set(worker.KINDS)
    assert plan.SECONDS == 600
    tested = [file for part in parts if part.kind == "suite" for file in part.arguments["files"]]
    assert sorted(tested) == sorted(2 * marked_tests())
    assert len(marked_tests()) > 15


def test_without_a_card_it_ends_in_a_sentence_and_makes_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(study, "available_backends", lambda: ("cpu",))
    with pytest.raises(engine.BackendError, match=r"^Expected a machine with a CUDA device .*, got one without, "):
        study.device(tmp_path / "new", Console())
    assert not (tmp_path / "new").exists()


def test_every_part_is_taken_once_and_reported(few_parts, forked_modules, tmp_path, monkeypatch, capsys):
    out = tmp_path / "study"
    report, data = study.device(out, Console(width=200), TINY, "cpu")
    found = json.loads(data.read_text())
    parts = found["parts"]
    assert {name: part["status"] for name, part in parts.items()} == dict.fromkeys(TAKEN, "done")
    assert parts["launches"]["repeats"] is True
    assert parts["suite float64 1"]["passed"] > 0
    assert parts["suite float64 1"]["failed"] == []
    assert parts["parity"]["float64"]["error"] == 0.0
    assert parts["parity"]["float32"]["right"]
    assert parts["determinism cart-pole"] == parts["determinism cart-pole"] | {"same bits": True, "finite": True}
    assert set(found["shares"]) == {"cart-pole 1", "swarm-cells 64"}
    assert all(share > 0 for share in found["shares"].values())  # of a ceiling that other work may have held down
    written = report.read_text()
    assert written.startswith("# cpu\n")
    assert all(f"| {name} | " in written for name in TAKEN)

    # Stopped after some parts, it goes on with what is missing.
    del parts["ceilings"]
    parts["launch cost"]["status"] = "failed"
    data.write_text(json.dumps(found))
    taken = []
    answers(monkeypatch, lambda arguments: taken.append(arguments[1]) or Ended(apart.DONE, "{}", 1.0))
    study.device(out, Console(width=200), TINY, "cpu")
    assert taken == ["launch_cost", "ceilings"]


def test_nothing_is_measured_where_launches_do_not_repeat(few_parts, tmp_path, monkeypatch):
    answers(monkeypatch, lambda arguments: Ended(apart.FAILED, "it died", 1.0))
    with pytest.raises(RunError, match="launches that can be repeated on cpu, got failed: it died; nothing else"):
        study.device(tmp_path / "study", Console(), TINY, "cpu")
    assert set(json.loads((tmp_path / "study" / "report.json").read_text())["parts"]) == {"launches"}


@pytest.mark.parametrize("content", ["{}", "no report", '{"format": 1, "parts": {}, "machine": {}}'])
def test_what_is_no_study_of_this_machine_is_left_alone(content, tmp_path):
    path = tmp_path / "report.json"
    path.write_text(content)
    with pytest.raises(RunError, match=r"^Expected "):
        study.device(tmp_path, Console(), TINY, "cpu")
    assert path.read_text() == content
