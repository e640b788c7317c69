"""What a peer and a plot take: each is written here as anybody would, and found at its door by being listed."""

import inspect

import pytest
import torch

from benchmarks.peers import table
from benchmarks.peers.peer import Peer, Update, arrays_of
from benchmarks.speed import disagreement, make_trainer
from benchmarks.studies import page
from training import Experiment, TrainingSettings, train
from training.style import new_figure, save

pytestmark = pytest.mark.float64


# A peer: a file with a function and a line, and a line in the table.
def by_func(trainer, initial, letter):
    """x' = x + θ₁x² + θ₂x four times, by torch.func; R alone."""
    start, given = initial.clone(), [torch.tensor(array) for array in arrays_of(trainer)]

    def loss(theta):
        state = start
        for _ in range(trainer.task.horizon):
            state = state + theta[0] * state**2 + theta[1] * state
        return trainer.task.objective.final(state).mean()

    gradient = torch.func.grad(loss)
    return Update(lambda: None, lambda: [gradient(given[0]).numpy()], lambda: [given[0].numpy()])


PEER = Peer("torch.func", "torch", {"integrator": by_func})


def lines_of(*things):
    """Lines of code, without empty ones."""
    return sum(len([line for line in inspect.getsource(thing).splitlines() if line.strip()]) for thing in things)


def test_a_peer_is_a_function_and_two_lines(monkeypatch):
    monkeypatch.setattr(table, "PEERS", [*table.PEERS, PEER])
    assert table.peers_of_task("integrator") == [PEER]
    assert lines_of(by_func) + 2 <= 15
    trainer, (initial, _) = make_trainer("integrator", "R")
    assert disagreement(trainer, initial, PEER.updates["integrator"](trainer, initial, "R")) < 1e-13


# A plot: a function and a line in the table of the page.
def seconds(run):
    """How long the run took, epoch by epoch."""
    figure, (axes,) = new_figure(4.0, 3.0)
    axes.plot([record["epoch"] for record in run.metrics()], [record["seconds"] for record in run.metrics()])
    axes.set(xlabel="epoch", ylabel="s")
    return page.drawn(lambda file: save(figure, file), "Seconds since the start.")


def test_a_plot_is_a_function_and_a_line(monkeypatch, tmp_path):
    monkeypatch.setitem(page.RUN_PLOTS, "Seconds", seconds)
    settings = TrainingSettings(batch_size=4, train_samples=4, test_samples=4)
    train(Experiment("integrator", gradients=("R",), seeds=(0,), epochs=2, settings=settings), tmp_path / "run")
    text = page.write_page(tmp_path / "run").read_text()
    assert text.count("<h2>Seconds</h2><figure><img") == 1
    assert text.index("<h2>Curves</h2>") < text.index("<h2>Seconds</h2>") < text.index("<h2>Last frames</h2>")
    assert lines_of(seconds) + 1 <= 8
