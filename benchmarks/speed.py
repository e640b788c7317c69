"""`evenflow bench speed`: what one update costs, alone and in an ensemble, where the time goes, and peers beside it.

The problem is the paper's smallest: cart-pole with 1 pole, 100 steps, batch 8, an MLP with two hidden layers of 100
units, Adam, float32 on the CPU. Alone, every side is bound to one core and the sides take turns in one process;
each turn is four updates, figures are medians. The ensemble runs in a process of its own with every core:
`python -m benchmarks.speed alone ROUNDS` and `... ensemble ROUNDS MEMBERS` print their results as JSON.
"""

import importlib.util
import json
import os
import platform
import statistics
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from benchmarks import peers
from benchmarks.timing import PHASES, in_turns, phases
from engine import RunError, SettingError, init
from policies import MLP
from training import GRADIENTS, Member, Trainer, build_task

_PEERS: dict[str, tuple[str, Callable[[peers.Problem, str], peers.Peer]]] = {
    "JAX, jax.grad": ("jax", peers.jax_autodiff_peer),
    "JAX, by hand": ("jax", peers.jax_peer),
    "torch eager": ("torch", peers.torch_peer),
}


def speed(console: Console, rounds: int, members: int, out: Path | None = None) -> dict[str, Any]:
    """Measure, print the tables, and write the figures to `out`, which must not exist."""
    for name, value in (("rounds", rounds), ("members", members)):
        if value < 1:
            raise SettingError(f"Expected {name} of at least 1, got {value}.")
    if out is not None and out.exists():
        raise RunError(f"Expected a new file for the results, got {out}, which exists; choose another --out.")
    with console.status("timing one controller on one core"):
        alone = _apart("alone", rounds)
    with console.status(f"timing {members} controllers together"):
        ensemble = _apart("ensemble", rounds, members)
    result = {"machine": _machine(), "alone": alone, "ensemble": ensemble}
    _print_updates(console, alone)
    _print_phases(console, alone)
    _print_ensemble(console, ensemble)
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(result, indent=1) + "\n")
    return result


def alone(rounds: int) -> dict[str, Any]:
    """ms of an update of each gradient on one core, ours and the peers' in turns, and the phases of ours."""
    peers.use_one_core()
    init("cpu", "float32", threads=1)
    problem = peers.cart_pole_problem(poles=1)
    updates, trainers, errors = {}, {}, {}
    for entry in GRADIENTS:
        trainer, initial = _trainer(entry.letter, 1, problem)
        updates["Evenflow", entry.letter] = lambda trainer=trainer, initial=initial: trainer.update(initial)
        trainers[entry.letter] = (trainer, initial)
        for side, (module, make) in _PEERS.items():
            if importlib.util.find_spec(module) is not None:
                peer = make(problem, entry.letter)
                errors[side] = max(errors.get(side, 0.0), _disagreement(trainer, initial, peer))
                updates[side, entry.letter] = peer.update
    times = in_turns(updates, rounds)
    result: dict[str, Any] = {"ms": defaultdict(dict), "disagreement": errors, "phases": {}}
    for (side, letter), values in times.items():
        result["ms"][side][letter] = statistics.median(values)
    for letter, (trainer, initial) in trainers.items():
        result["phases"][letter] = phases(trainer, initial, rounds)
    result["forward_us_per_step"] = result["phases"]["R"]["forward"] * 1e3 / problem.horizon
    return result


def ensemble(rounds: int, members: int) -> dict[str, Any]:
    """ms of an update per member, alone and with companions, R and C; every core may be used."""
    runtime = init("cpu", "float32")
    problem = peers.cart_pole_problem(poles=1)
    result: dict[str, Any] = {"members": members, "threads": runtime.threads, "ms": {}, "phases": {}}
    updates, kept = {}, {}
    for letter in ("R", "C"):
        for count in (1, members):
            trainer, initial = _trainer(letter, count, problem)
            updates[letter, count] = lambda trainer=trainer, initial=initial: trainer.update(initial)
            kept[letter, count] = (trainer, initial)
    times = in_turns(updates, rounds)
    for letter in ("R", "C"):
        single, together = (statistics.median(times[letter, count]) for count in (1, members))
        result["ms"][letter] = {"alone": single, "per member": together / members}
        trainer, initial = kept[letter, members]
        result["phases"][letter] = phases(trainer, initial, rounds)
    return result


def _trainer(letter: str, members: int, problem: peers.Problem) -> tuple[Trainer, torch.Tensor]:
    """A trainer of `members` equal controllers with the problem's weights, and the initial states of an update."""
    estimator = next(entry.estimator for entry in GRADIENTS if entry.letter == letter)
    poles = (problem.initial_states.shape[1] - 2) // 2
    task = build_task("cart-pole", poles=poles, horizon=problem.horizon)
    trainer = Trainer(task, [Member(estimator) for _ in range(members)])
    policy = trainer.policy
    assert isinstance(policy, MLP)
    with torch.no_grad():
        for layer, weights, biases in zip(policy.layers(policy.theta), problem.weights, problem.biases, strict=True):
            layer[:, :-1].copy_(torch.from_numpy(weights))
            layer[:, -1].copy_(torch.from_numpy(biases))
    return trainer, torch.from_numpy(problem.initial_states).repeat(members, 1)


def _disagreement(trainer: Trainer, initial: torch.Tensor, peer: peers.Peer) -> float:
    """|g_peer - g| / |g| at the weights both start from."""
    _, gradient = trainer.gradient(initial)
    policy = trainer.policy
    assert isinstance(policy, MLP)
    layers = policy.layers(gradient)
    ours = [layer[0, :-1] for layer in layers] + [layer[0, -1] for layer in layers]
    difference = sum(
        float((torch.tensor(theirs).view_as(own) - own).square().sum())
        for theirs, own in zip(peer.gradient(), ours, strict=True)
    )
    return (difference / float(gradient.square().sum())) ** 0.5


def _apart(*arguments: object) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.speed", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RunError(f"Expected the measurement to finish, got: {done.stderr.strip().splitlines()[-1]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def _machine() -> dict[str, Any]:
    packages = {name: version(name) for name in ("taichi", "torch", "jax") if importlib.util.find_spec(name)}
    return {"cores": os.cpu_count(), "platform": platform.platform(), "python": platform.python_version(), **packages}


def _print_updates(console: Console, alone: dict[str, Any]) -> None:
    letters = [entry.letter for entry in GRADIENTS]
    ours = alone["ms"]["Evenflow"]
    table = Table("ms", *letters, "C / R", "ours / theirs, C", "gradient differs by", title="One update, one core")
    for side, times in alone["ms"].items():
        ratio, error = f"{times['C'] / times['R']:.2f}", alone["disagreement"].get(side)
        against = "" if side == "Evenflow" else f"{ours['C'] / times['C']:.2f}"
        table.add_row(
            side, *(f"{times[letter]:.2f}" for letter in letters), ratio, against,
            "" if error is None else f"{error:.0e}",
        )  # fmt: skip
    console.print(table)
    console.print(f"forward: {alone['forward_us_per_step']:.1f} µs a step", highlight=False)


def _print_phases(console: Console, alone: dict[str, Any]) -> None:
    table = Table("ms", *PHASES, title="Where the time goes")
    for letter, spent in alone["phases"].items():
        table.add_row(letter, *(f"{spent[phase]:.2f}" for phase in PHASES))
    console.print(table)


def _print_ensemble(console: Console, ensemble: dict[str, Any]) -> None:
    members = ensemble["members"]
    title = f"{members} controllers together, {ensemble['threads']} cores, ms per member"
    table = Table("", "alone", f"of {members}", "share", *PHASES, title=title)
    for letter, times in ensemble["ms"].items():
        share = times["per member"] / times["alone"]
        spent = (f"{ensemble['phases'][letter][phase] / members:.3f}" for phase in PHASES)
        table.add_row(letter, f"{times['alone']:.2f}", f"{times['per member']:.3f}", f"{share:.2f}", *spent)
    console.print(table)


if __name__ == "__main__":
    measure = {"alone": alone, "ensemble": ensemble}[sys.argv[1]]
    print(json.dumps(measure(*map(int, sys.argv[2:]))))
