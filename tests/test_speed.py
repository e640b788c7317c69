"""The speed benchmark: peers compute our gradient, figures add up, results are never written over."""

import json

import pytest
from rich.console import Console

from benchmarks.peers.updates import SIDES
from benchmarks.speed import TASKS, apart_by, disagreement, make_trainer, speed
from benchmarks.timing import PHASES
from engine import SettingError
from training.gradients import lettered

LETTERS = lettered()


@pytest.mark.float32
@pytest.mark.parametrize("letter", LETTERS)
@pytest.mark.parametrize(("task", "side"), [(task, side) for task in TASKS for side in SIDES[task]])
def test_peers_follow_the_same_gradient(task, side, letter):
    pytest.importorskip(side.needs)
    options = {"poles": 2} if task == "cart-pole" else {"horizon": 30}
    trainer, initial = make_trainer(task, letter, **options)
    # The phases of a wave turn by many radians, and in float32 each side rounds them in its own way.
    limit = 5e-4 if task == "quantum" else 2e-5
    assert disagreement(trainer, initial, side.make(trainer, initial, letter)) < limit


@pytest.mark.float32
@pytest.mark.parametrize("side", SIDES["cart-pole"])
def test_peers_take_the_same_steps(side):
    pytest.importorskip(side.needs)
    trainer, initial = make_trainer("cart-pole", "R", poles=1, horizon=20)
    peer = side.make(trainer, initial, "R")
    start, before = [array.copy() for array in peer.parameters()], trainer.policy.theta.detach().clone()
    for _ in range(3):
        trainer.update(initial)
        peer.update()
    moved = [ours - theirs for ours, theirs in zip(peer.parameters(), start, strict=True)]
    # With torch's placement of ε they are apart by a tenth.
    assert apart_by(trainer, trainer.policy.theta.detach() - before, moved) < 1e-5


@pytest.mark.float64
def test_other_tasks_are_refused():
    with pytest.raises(SettingError, match="Expected a task among cart-pole, guidance, quantum to time, got 'lqr'"):
        speed(Console(), 1, 2, task="lqr")


@pytest.mark.float64
def test_the_benchmark_prints_and_writes_every_figure(tmp_path, capsys):
    result = speed(Console(width=140), rounds=1, members=2, out=tmp_path / "results" / "speed.json")
    assert json.loads((tmp_path / "results" / "speed.json").read_text()) == json.loads(json.dumps(result))
    printed = capsys.readouterr().out
    for word in ("Evenflow", "torch eager", *PHASES, "µs a step", "2 controllers together"):
        assert word in printed
    for letter in LETTERS:
        assert result["alone"]["ms"]["Evenflow"][letter] > 0
        assert result["alone"]["ms"]["torch eager"][letter] > 0
        assert set(result["alone"]["phases"][letter]) == set(PHASES)
        assert min(result["alone"]["phases"][letter].values()) > 0
    for times in result["ensemble"]["ms"].values():
        assert times["per member"] > 0
