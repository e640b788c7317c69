"""The speed benchmark: peers compute our gradient, figures add up, results are never written over."""

import json

import pytest
from rich.console import Console

from benchmarks import peers
from benchmarks.speed import _disagreement, _trainer, speed
from benchmarks.timing import PHASES
from training import GRADIENTS

LETTERS = [entry.letter for entry in GRADIENTS]


@pytest.mark.float32
@pytest.mark.parametrize("letter", LETTERS)
@pytest.mark.parametrize("make", [peers.jax_peer, peers.jax_autodiff_peer, peers.torch_peer])
def test_peers_follow_the_same_gradient(make, letter):
    if make is not peers.torch_peer:
        pytest.importorskip("jax")
    problem = peers.cart_pole_problem(poles=2)
    trainer, initial = _trainer(letter, 1, problem)
    assert _disagreement(trainer, initial, make(problem, letter)) < 1e-5


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
    for times in result["ensemble"]["ms"].values():
        assert times["per member"] > 0
