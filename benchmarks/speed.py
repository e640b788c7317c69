"""`evenflow bench speed`: what one update costs, alone and in an ensemble, where the time goes, and peers beside it.

Any registered task with its default options, batch 8, Adam, float32 on the CPU. Alone, every side is bound to one
core and the sides take turns in one process; each turn is four updates, figures are medians. The ensemble runs in a
process of its own with every core: `python -m benchmarks.speed '["alone", ROUNDS, "TASK"]' PLUGIN...` and
`'["ensemble", ROUNDS, "TASK", MEMBERS]'` print their results as JSON.
"""

import json
import math
import statistics
import sys
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from rich import box
from rich.console import Console
from rich.table import Table

from benchmarks.apart import DONE, run_module
from benchmarks.peers.peer import OURS, MakeUpdate, Peer, Update, parts_of, use_cores
from benchmarks.peers.table import peers_of_task
from benchmarks.timing import PHASES, in_turns, phases, this_machine
from engine import EvenflowError, init
from engine.checks import whole
from engine.norms import norm
from training import Member, Trainer, build_task, gradient_named, task_options
from training.doors import load
from training.errors import RunError
from training.gradients import lettered
from training.outputs import check_new_file
from training.plugins import to_load_again
from training.task import generator


def speed(
    console: Console, rounds: int, members: int, out: Path | None = None, task: str = "cart-pole"
) -> dict[str, Any]:
    """Measure, print the tables, and write the figures to `out`, which must not exist."""
    task_options(task)
    for name, value in (("rounds", rounds), ("members", members)):
        whole(f"{name} of at least 1", value)
    if out is not None:
        check_new_file(out, (".json",), "the results")
    with console.status("timing one controller on one core"):
        alone = _apart("alone", rounds, task)
    with console.status(f"timing {members} controllers together"):
        ensemble = _apart("ensemble", rounds, task, members)
    result = {"machine": this_machine(), "task": task, "alone": alone, "ensemble": ensemble}
    _print_updates(console, alone)
    _print_phases(console, alone)
    _print_ensemble(console, ensemble)
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(result, indent=1) + "\n")
    return result


def alone(rounds: int, task: str) -> dict[str, Any]:
    """ms of an update of each gradient on one core, ours and the peers' in turns, and the phases of ours."""
    use_cores(1)
    init("cpu", "float32", threads=1)
    updates, trainers, errors = {}, {}, {}
    for letter in lettered():
        trainer, batch = make_trainer(task, letter)
        trainers[letter] = trainer, batch
        makers = [(peer, peer.updates[task]) for peer in peers_of_task(task)]
        for side, update in updates_of(trainer, batch, letter, makers, errors).items():
            updates[side, letter] = update
    times = in_turns(updates, rounds)
    absent = [peer.name for peer in peers_of_task(task) if not peer.installed]
    result: dict[str, Any] = {"ms": defaultdict(dict), "disagreement": errors, "absent": absent, "phases": {}}
    for (side, letter), values in times.items():
        result["ms"][side][letter] = statistics.median(values)
    for letter, (trainer, batch) in trainers.items():
        result["phases"][letter] = phases(trainer, batch, rounds)
    horizon = trainers["R"][0].task.horizon
    result["forward_us_per_step"] = result["phases"]["R"]["forward"] * 1e3 / horizon
    return result


def ensemble(rounds: int, task: str, members: int) -> dict[str, Any]:
    """ms of an update per member, alone and with companions, R and C; every core may be used."""
    runtime = init("cpu", "float32")
    result: dict[str, Any] = {"members": members, "threads": runtime.threads, "ms": {}, "phases": {}}
    updates, kept = {}, {}
    for letter in ("R", "C"):
        for count in (1, members):
            trainer, batch = make_trainer(task, letter, count)
            updates[letter, count] = lambda trainer=trainer, batch=batch: trainer.update(*batch)
            kept[letter, count] = (trainer, batch)
    times = in_turns(updates, rounds)
    for letter in ("R", "C"):
        single, together = (statistics.median(times[letter, count]) for count in (1, members))
        result["ms"][letter] = {"alone": single, "per member": together / members}
        trainer, batch = kept[letter, members]
        result["phases"][letter] = phases(trainer, batch, rounds)
    return result


def updates_of(
    trainer: Trainer,
    batch: tuple[torch.Tensor, torch.Tensor | None],
    letter: str,
    makers: Sequence[tuple[Peer, MakeUpdate]],
    errors: dict[str, float],
    same: float = math.inf,
) -> dict[str, Callable[[], Any]]:
    """Our update with a mini-batch and those of the peers that are here, by side.

    How far a peer's gradient is from ours is kept in `errors`, the largest so far; beyond `same` it is left out.
    """
    found: dict[str, Callable[[], Any]] = {OURS: lambda: trainer.update(*batch)}
    for peer, make in makers:
        if peer.installed:
            theirs = make(trainer, batch[0], letter)
            error = disagreement(trainer, batch[0], theirs)
            errors[peer.name] = max(errors.get(peer.name, 0.0), error)
            if error < same:
                found[peer.name] = theirs.update
    return found


def make_trainer(
    task: str, letter: str, members: int = 1, **options: Any
) -> tuple[Trainer, tuple[torch.Tensor, torch.Tensor | None]]:
    """A trainer whose policies have no layer at zero, so that every path carries a gradient, and a mini-batch."""
    trainer = Trainer(build_task(task, **options), [Member(gradient_named(letter).estimator) for _ in range(members)])
    policy: Any = trainer.policy
    policy.zero_last = False
    for member in range(members):
        policy.initialise(member, generator(member, "policy"))
    return trainer, next(trainer.batches())


def disagreement(trainer: Trainer, initial: torch.Tensor, peer: Update) -> float:
    """|g_peer - g| / |g| at the weights both start from."""
    return apart_by(trainer, trainer.gradient(initial)[1], peer.gradient())


def apart_by(trainer: Trainer, flat: torch.Tensor, arrays: Sequence[Any]) -> float:
    """|theirs - ours| / |ours|, in whatever order the peer lists its arrays."""
    theirs = [torch.tensor(array) for array in arrays]
    ours = parts_of(trainer, flat)
    if [part.shape for part in theirs] != [part.shape for part in ours]:  # all weights, then all biases
        ours = ours[0::2] + ours[1::2]
    one, other = (torch.cat([part.flatten() for part in parts]) for parts in (theirs, ours))
    return float(norm(one - other) / norm(other))


def _apart(*arguments: object) -> dict[str, Any]:
    ended = run_module("benchmarks.speed", [json.dumps(arguments), *to_load_again()])
    if ended.status != DONE:
        said = ended.output.rstrip(".") or ended.status
        raise RunError(f"Expected the measurement to finish, got: {said}.")
    return ended.result


def _print_updates(console: Console, alone: dict[str, Any]) -> None:
    letters = lettered()
    ours = alone["ms"][OURS]
    table = _table("ms", *letters, "C/R", "ours/theirs", "differs", title="One update, one core")
    for side, times in alone["ms"].items():
        ratio, error = f"{times['C'] / times['R']:.2f}", alone["disagreement"].get(side)
        against = "" if side == OURS else f"{ours['C'] / times['C']:.2f}"
        table.add_row(
            side, *(_short(times[letter]) for letter in letters), ratio, against,
            "" if error is None else f"{error:.0e}",
        )  # fmt: skip
    if len(alone["ms"]) == 1:
        table.add_row("no peer here")
    console.print(table)
    if alone["absent"]:
        console.print(f"not installed: {'; '.join(alone['absent'])}", style="dim", highlight=False)
    console.print("ours/theirs: of C. differs: their gradient from ours, as a share of its norm.", style="dim")
    console.print(f"forward: {alone['forward_us_per_step']:.1f} µs a step", highlight=False)


def _print_phases(console: Console, alone: dict[str, Any]) -> None:
    table = _table("ms", *PHASES, title="Where the time goes")
    for letter, spent in alone["phases"].items():
        table.add_row(letter, *(_short(spent[phase]) for phase in PHASES))
    console.print(table)


def _print_ensemble(console: Console, ensemble: dict[str, Any]) -> None:
    members = ensemble["members"]
    title = f"{members} controllers together, {ensemble['threads']} cores, ms per member"
    table = _table("", "alone", f"of {members}", "share", *PHASES, title=title)
    for letter, times in ensemble["ms"].items():
        share = times["per member"] / times["alone"]
        spent = (_short(ensemble["phases"][letter][phase] / members, 3) for phase in PHASES)
        table.add_row(letter, _short(times["alone"]), _short(times["per member"], 3), f"{share:.2f}", *spent)
    console.print(table)


def _table(first: str, *others: str, title: str) -> Table:
    """A table without lines between columns, which fits into 80 of them."""
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 0, 0, 1))
    table.add_column(first, no_wrap=True)
    for head in others:
        table.add_column(head, justify="right", no_wrap=True)
    return table


def _short(value: float, places: int = 2) -> str:
    """At most five letters: fewer places where there are more digits in front."""
    return f"{value:.{max(0, min(places, 4 - len(str(int(value)))))}f}"


if __name__ == "__main__":
    for plugin in sys.argv[2:]:
        load(plugin)
    what, *given = json.loads(sys.argv[1])
    try:
        print(json.dumps({"alone": alone, "ensemble": ensemble}[what](*given)))
    except EvenflowError as problem:
        sys.exit(str(problem))
