"""What `bench speed` prints fits into a terminal of 80 columns, whatever was measured."""

import io

import pytest
from rich.console import Console

from benchmarks.speed import _print_ensemble, _print_phases, _print_updates
from benchmarks.timing import PHASES
from training.gradients import lettered

pytestmark = pytest.mark.float64
LETTERS = lettered()
SIDES = ("Evenflow", "JAX, jax.grad", "JAX, by hand", "torch eager")


@pytest.mark.parametrize("scale", [1.2e-3, 3.456, 98765.4])
@pytest.mark.parametrize("members", [2, 4000])
def test_every_table_fits_into_80_columns_with_whole_heads_and_numbers(scale, members):
    alone = {
        "ms": {side: dict.fromkeys(LETTERS, scale) for side in SIDES},
        "disagreement": dict.fromkeys(SIDES[1:], 1.23e-7),
        "absent": [],
        "phases": {letter: dict.fromkeys(PHASES, scale) for letter in LETTERS},
        "forward_us_per_step": 10 * scale,
    }
    ensemble = {
        "members": members, "threads": 64, "ms": {letter: {"alone": scale, "per member": scale} for letter in "RC"},
        "phases": {letter: dict.fromkeys(PHASES, members * scale) for letter in "RC"},
    }  # fmt: skip
    printed = io.StringIO()
    console = Console(file=printed, width=80)
    _print_updates(console, alone)
    _print_phases(console, alone)
    _print_ensemble(console, ensemble)
    text = printed.getvalue()
    assert max(len(line.rstrip()) for line in text.splitlines()) <= 80
    assert "…" not in text
    heads = [line.split() for line in text.splitlines()]
    assert ["ms", *LETTERS, "C/R", "ours/theirs", "differs"] in heads
    assert ["ms", *PHASES] in heads
    assert ["alone", "of", str(members), "share", *PHASES] in heads
    rows = [line.strip() for line in text.splitlines() if line.strip().startswith(SIDES)]
    assert len(rows) == 4
    ours = next(row.split()[1:6] for row in rows if row.startswith("Evenflow"))
    assert all(float(value) == pytest.approx(scale, abs=0.005, rel=1e-4) for value in ours)
    assert text.count("1e-07") == 3
