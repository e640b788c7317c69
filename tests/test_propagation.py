"""Exact propagation of the quantum particle, and what `evenflow check` says of the time step."""

import math
from itertools import pairwise

import pytest
import torch
from conftest import uniform

from benchmarks.propagation import propagate, sentence, step_error
from engine import QuantumBox
from training import build_task

pytestmark = pytest.mark.float64

STEPS = 16


def held(system, start, controls, parts):
    """States by Crank-Nicolson with every control held for `parts` steps of a system whose dt is shorter."""
    state, found = start, [start]
    for control in controls:
        for _ in range(parts):
            state = system.step(state, control)
        found.append(state)
    return torch.stack(found)


def test_crank_nicolson_converges_to_it_with_the_square_of_the_time_step():
    # Of few points, so that the fastest wave of the grid is resolved too.
    exact = QuantumBox(8, 0.0625)
    start = build_task("quantum", points=8).initial_states(3, 0, "test", torch.float64)
    controls = 5.0 * uniform(0, STEPS, 3, 1)
    expected = propagate(exact, start, controls)
    assert expected.shape == (STEPS + 1, 3, 2, 8)
    torch.testing.assert_close(expected.square().sum((2, 3)), torch.ones(STEPS + 1, 3, dtype=torch.float64))
    parts = (8, 16, 32)
    errors = [float((held(QuantumBox(8, 0.0625 / n), start, controls, n) - expected).norm()) for n in parts]
    assert min(math.log2(one / other) for one, other in pairwise(errors)) > 1.9
    assert errors[-1] < 0.02


def test_an_eigenstate_turns_by_its_energy_alone():
    system = QuantumBox(8, 0.3)
    wave = system.eigenstate(3)
    start = torch.stack([wave, torch.zeros_like(wave)]).unsqueeze(0)
    energy = 2.0 / system.dx**2 * (1.0 - math.cos(3 * math.pi / 9))
    for t, state in enumerate(propagate(system, start, torch.zeros(5, 1, 1, dtype=torch.float64))):
        turned = torch.stack([math.cos(energy * 0.3 * t) * wave, -math.sin(energy * 0.3 * t) * wave])
        torch.testing.assert_close(state[0], turned, rtol=0.0, atol=1e-12)


def test_the_step_of_the_paper_is_far_from_exact_and_the_sentence_says_how_far():
    error = step_error()
    assert (error["steps"], error["dt"]) == (128, 0.0625)
    # The docstring of QuantumBox says 124 and 93.
    assert round(error["crank_nicolson"]) == 124
    assert round(error["exact"]) == 93
    apart = abs(error["crank_nicolson"] - error["exact"])
    assert f"{apart:.2f} apart" in sentence(error)
