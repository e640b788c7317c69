"""The speed benchmark: peers compute our gradient, figures add up, results are never written over."""

import json

import pytest
from children import ROOT
from rich.console import Console

import evenflow
from benchmarks.peers.table import PEERS, peers_of_task
from benchmarks.speed import apart_by, disagreement, make_trainer, speed
from benchmarks.timing import PHASES
from engine import SettingError
from training.gradients import lettered

LETTERS = lettered()


PAIRS = [(task, peer) for peer in PEERS for task in peer.updates]


@pytest.mark.float32
@pytest.mark.parametrize("letter", LETTERS)
@pytest.mark.parametrize(("task", "peer"), PAIRS, ids=[f"{task}-{peer.name}" for task, peer in PAIRS])
def test_peers_follow_the_same_gradient(task, peer, letter):
    pytest.importorskip(peer.needs)
    options = {"poles": 2} if task == "cart-pole" else {"horizon": 30}
    trainer, (initial, _) = make_trainer(task, letter, **options)
    # The phases of a wave turn by many radians, and in float32 each side rounds them in its own way.
    limit = 5e-4 if task == "quantum" else 2e-5
    assert disagreement(trainer, initial, peer.updates[task](trainer, initial, letter)) < limit


ENSEMBLES = [(task, peer) for peer in PEERS for task in peer.ensembles]


@pytest.mark.float32
@pytest.mark.parametrize("members", [1, 3])
@pytest.mark.parametrize("letter", ["R", "M", "C"])
@pytest.mark.parametrize(("task", "peer"), ENSEMBLES, ids=[f"{task}-{peer.name}" for task, peer in ENSEMBLES])
def test_peers_follow_the_same_gradients_of_members_together(task, peer, letter, members):
    pytest.importorskip(peer.needs)
    options = {"poles": 2} if task == "cart-pole" else {"horizon": 30}
    trainer, (initial, _) = make_trainer(task, letter, members, **options)
    limit = 5e-4 if task == "quantum" else 2e-5
    theirs = peer.ensembles[task](trainer, initial, letter)
    assert disagreement(trainer, initial, theirs) < limit
    if members > 1:  # the arrays of one have no axis of members
        assert max(map(len, theirs.parameters())) == min(map(len, theirs.parameters())) == members


@pytest.mark.float32
@pytest.mark.parametrize("peer", peers_of_task("cart-pole"), ids=lambda peer: peer.name)
def test_peers_take_the_same_steps(peer):
    pytest.importorskip(peer.needs)
    trainer, (initial, _) = make_trainer("cart-pole", "R", poles=1, horizon=20)
    theirs = peer.updates["cart-pole"](trainer, initial, "R")
    start, before = [array.copy() for array in theirs.parameters()], trainer.policy.theta.detach().clone()
    for _ in range(3):
        trainer.update(initial)
        theirs.update()
    moved = [now - then for now, then in zip(theirs.parameters(), start, strict=True)]
    # With torch's placement of ε they are apart by a tenth.
    assert apart_by(trainer, trainer.policy.theta.detach() - before, moved) < 1e-5


@pytest.mark.float64
def test_tasks_that_are_not_there_are_refused():
    with pytest.raises(SettingError, match=r"Expected a task among cart-pole, cart-pendulum, .*, got 'cart-pool'"):
        speed(Console(), 1, 2, task="cart-pool")


@pytest.mark.float64
def test_a_task_of_a_plugin_is_timed_without_a_peer_and_says_so(forked_modules, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    command = ["bench", "speed", "--plugin", str(ROOT / "examples" / "own_task.py"), "--task", "docking"]
    command += ["--rounds", "1", "--members", "2", "--out", str(tmp_path / "speed.json")]
    assert evenflow.main(command) == 0
    printed = capsys.readouterr().out.replace(str(tmp_path), "")
    assert "no peer here" in printed
    assert max(map(len, printed.splitlines())) <= 80
    result = json.loads((tmp_path / "speed.json").read_text())
    assert (result["task"], list(result["alone"]["ms"])) == ("docking", ["Evenflow"])
    assert all(result["alone"]["ms"]["Evenflow"][letter] > 0 for letter in LETTERS)
    assert result["ensemble"]["ms"]["C"]["per member"] > 0


@pytest.mark.float64
def test_the_benchmark_prints_and_writes_every_figure(forked_modules, tmp_path, capsys):
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
