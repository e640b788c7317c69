"""Segments: plans that keep to a budget, and backward passes that do not notice how a rollout was cut."""

import json
import re

import pytest
import reference
import torch
from children import run_python
from conftest import relative_error, swing_up_states, tensor_options, uniform

import engine
from engine import FULL, PHYSICS_ONLY, CartPole, ClipNorm, Decay, Rollout
from engine import trajectory as trajectory_module
from engine.memory import format_bytes, parse_bytes
from engine.plan import Segment, plan
from policies import MLP, Linear, ModulePolicy

SYSTEM = CartPole(1)  # one object for all tests, since Taichi compiles the kernels of each object anew
HORIZON = 12
BATCH = 6
RULES = [FULL, PHYSICS_ONLY, ClipNorm(Decay(FULL, factor=0.95), limit=0.5)]


class Tracking:
    """Costs of states, controls, time and the final state, many steps at once."""

    def running(self, states, controls, steps):
        weights = 0.01 + 0.001 * steps.to(states.dtype).unsqueeze(1)
        return weights * states.square().sum(2) + 0.02 * controls.square().sum(2)

    def final(self, state):
        return reference.swing_up_cost(state)


def build_policy(kind):
    if kind == "module":
        layers = torch.nn.Linear(4, 5), torch.nn.Tanh(), torch.nn.Linear(5, 1)
        policy = ModulePolicy(torch.nn.Sequential(*layers).to(**tensor_options()), (4,), (1,))
    else:
        name, members = kind
        policy = {"mlp": MLP, "linear": Linear}[name]((4,), (1,), members=members, **tensor_options())
    policy.theta.data.copy_(uniform(0, *policy.theta.shape, low=-0.5, high=0.5))
    return policy


def sweep(policy, horizon=HORIZON, **cut):
    """Losses, parameter gradients, and everything that passed on the way of a rollout cut in this way."""
    rollout = Rollout(SYSTEM, policy, horizon, BATCH, **cut)
    pieces = {rule: [] for rule in RULES}

    def inspect(rule, part, adjoints, cotangents):
        assert rollout.restored is part
        states = rollout.states[part.first : part.last]
        pieces[rule].insert(0, [tensor.clone() for tensor in (states, adjoints[:-1], cotangents)])

    losses = rollout.forward(swing_up_states(1, BATCH, 1), Tracking())
    passed = [rollout.final_state.clone()]
    gradients = rollout.backward(RULES, Tracking(), inspect=inspect)
    for rule in RULES:
        passed += [torch.cat(parts) for parts in zip(*pieces[rule], strict=True)] + [gradients.initial[rule]]
    return losses, gradients.parameters, passed


def assert_same_but_for_the_order_of_sums(cut, whole):
    """Losses and parameter gradients are summed segment by segment; all else agrees to the bit."""
    accuracy = 1e-13 if engine.current().precision == "float64" else 1e-6
    assert relative_error(cut[0], whole[0]) < accuracy
    for rule in RULES:
        assert relative_error(cut[1][rule], whole[1][rule]) < accuracy
    assert all(torch.equal(found, expected) for found, expected in zip(cut[2], whole[2], strict=True))


POLICIES = {
    "mlp": ("mlp", 1),
    "3 mlps": ("mlp", 3),
    "linear": ("linear", 1),
    "3 linear": ("linear", 3),
    "module": "module",
}


@pytest.mark.parametrize("block", [HORIZON, 7, 1], ids="blocks of {}".format)
@pytest.mark.parametrize("kind", POLICIES)
def test_segments_of_any_length_change_no_bit(kind, block, monkeypatch):
    monkeypatch.setattr(trajectory_module, "_BLOCK_ROWS", block * BATCH)
    policy = build_policy(POLICIES[kind])
    whole = sweep(policy)
    for length in range(1, HORIZON):
        assert_same_but_for_the_order_of_sums(sweep(policy, segment=length), whole)


@pytest.mark.float64
@pytest.mark.parametrize("kind", POLICIES)
def test_budgets_of_any_size_change_no_bit(kind, monkeypatch):
    monkeypatch.setattr(trajectory_module, "_BLOCK_ROWS", 3 * BATCH)
    monkeypatch.setattr(trajectory_module, "_LAUNCH_BYTES", 0)
    policy = build_policy(POLICIES[kind])
    whole = sweep(policy)
    full, least = (Rollout(SYSTEM, policy, HORIZON, BATCH, segment=cut).plan.predicted for cut in (None, 3))
    counts = set()
    for share in (0.0, 0.3, 0.6, 0.9, 1.0):
        budget = int(least + share * (full - least))
        counts.add(len(Rollout(SYSTEM, policy, HORIZON, BATCH, memory=budget).plan.segments))
        assert_same_but_for_the_order_of_sums(sweep(policy, memory=budget), whole)
    assert len(counts) > 2


@pytest.mark.cuda
@pytest.mark.vulkan
@pytest.mark.parametrize("length", [1, 9, 50, 99])
def test_segments_of_a_long_rollout_change_no_bit(length, monkeypatch):
    monkeypatch.setattr(trajectory_module, "_BLOCK_ROWS", 16 * BATCH)
    policy = build_policy(("mlp", 3))
    assert_same_but_for_the_order_of_sums(sweep(policy, 100, segment=length), sweep(policy, 100))


@pytest.mark.float64
@pytest.mark.parametrize(
    ("budget", "length", "slots", "predicted"),
    [
        (None, 10, 10, 5 + 10 * 100),
        (1005, 10, 10, 5 + 10 * 100),
        # [0, 5) and [5, 10) touch blocks of two steps, so 6 slots each.
        (1004, 5, 6, 5 + 6 * 100 + 2 * 10),
        (625, 5, 6, 5 + 6 * 100 + 2 * 10),
        (624, 4, 4, 5 + 4 * 100 + 3 * 10),
        # Lengths of 3 touch 4 slots too, with more checkpoints; 2 is next.
        (434, 2, 2, 5 + 2 * 100 + 5 * 10),
        (255, 2, 2, 5 + 2 * 100 + 5 * 10),
    ],
)
def test_plan_takes_the_longest_segments_that_fit(budget, length, slots, predicted):
    chosen = plan(10, 2, budget, bytes_per_slot=100, bytes_per_checkpoint=10, bytes_fixed=5)
    assert chosen.segments[0].stop == length
    assert (chosen.slots, chosen.predicted) == (slots, predicted)


@pytest.mark.float64
def test_segment_length_overrides_the_budget():
    assert plan(10, 2, 300, 100, 10, 5, segment=4).predicted == 5 + 4 * 100 + 3 * 10
    assert len(plan(10, 2, None, 100, 10, 5, segment=99).segments) == 1


@pytest.mark.float64
@pytest.mark.parametrize("block", [1, 3, 10, 64])
@pytest.mark.parametrize("length", [1, 2, 5, 13, 64])
def test_segments_cover_the_horizon_and_keep_whole_blocks_in_their_slots(length, block):
    horizon = 64
    chosen = plan(horizon, block, None, 1, 1, 0, segment=length)
    steps = [step for part in chosen.segments for step in range(part.start, part.stop)]
    assert steps == list(range(horizon))
    for part in chosen.segments:
        assert part.base % block == 0
        covered = [step + part.base for first, last in part.blocks(block, horizon) for step in range(first, last)]
        assert covered == list(range(part.base, covered[-1] + 1))
        assert part.base <= part.start < part.stop <= covered[-1] + 1
        assert (covered[-1] + 1) % block == 0 or covered[-1] + 1 == horizon
        assert len(covered) <= chosen.slots


@pytest.mark.float64
def test_slots_of_a_segment_count_from_its_first_block():
    part = Segment(start=7, stop=11, base=6)
    assert (part.first, part.last) == (1, 5)
    assert part.blocks(3, horizon=100) == [(0, 3), (3, 6)]
    assert part.blocks(3, horizon=11) == [(0, 3), (3, 5)]
    assert part.own_blocks(3, horizon=100) == [(1, 3), (3, 5)]


@pytest.mark.float64
def test_predicted_memory_falls_with_the_budget():
    def predicted(budget):
        policy = Linear((4,), (1,), **tensor_options())
        return Rollout(SYSTEM, policy, 200, 4096, memory=budget).plan.predicted

    found = [predicted(None)]
    for share in (2, 3, 4):
        budget = found[0] // share
        found.append(predicted(budget))
        assert found[-1] <= budget
    assert found == sorted(found, reverse=True)


@pytest.mark.float64
def test_a_budget_that_nothing_fits_names_one_that_works():
    def build(memory):
        return Rollout(SYSTEM, Linear((4,), (1,), **tensor_options()), 200, 4096, memory=memory)

    with pytest.raises(engine.BudgetError) as error:
        build("1MiB")
    message = str(error.value)
    pattern = r"Expected a memory budget of at least (.+) for 200 steps, got 1.0 MiB; raise memory, or lower .*\."
    least = re.fullmatch(pattern, message)
    assert least is not None
    assert build(least[1]).plan.predicted <= parse_bytes(least[1])


@pytest.mark.float64
@pytest.mark.parametrize(
    ("text", "count"),
    [("512MiB", 2**29), ("2 GB", 2 * 10**9), ("1.5kib", 1536), (" 7 ", 7), ("3b", 3), (4096, 4096), ("2GiB", 2**31)],
)
def test_budgets_are_read_in_the_usual_units(text, count):
    assert parse_bytes(text) == count


@pytest.mark.float64
@pytest.mark.parametrize("text", ["", "much", "12 parsecs", "-1MiB", "0", "1e9", "nan", "MiB"])
def test_budgets_that_are_none_are_refused(text):
    with pytest.raises(engine.BudgetError, match="Expected a memory budget such as 512MiB or 2GiB, got"):
        parse_bytes(text)


@pytest.mark.float64
@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1536, "1.5 KiB"),
        (2**20, "1.0 MiB"),
        (5 * 2**29, "2.50 GiB"),
        (2**42, "4096.00 GiB"),
    ],
)
def test_bytes_are_written_for_people(count, text):
    assert format_bytes(count) == text


# Kernels are compiled and threads started before the measurement, by a short rollout that is cut, too.
MEASUREMENT = """
import json, taichi as ti, torch, engine
from engine import FULL, PHYSICS_ONLY, ClipNorm, KernelSystem, LinearSystem, PeakMemory, Rollout
from policies import MLP, Linear, ModulePolicy
from torch import nn

engine.init("cpu", "{precision}")
batch, options = 2048, dict(dtype=engine.current().dtype)

@ti.kernel
def relax(x: ti.types.ndarray(ndim=2), u: ti.types.ndarray(ndim=2), y: ti.types.ndarray(ndim=2)):
    for b, i in ti.ndrange(x.shape[0], x.shape[1]):
        y[b, i] = 0.9 * x[b, i] + 0.1 * u[b, 0]

system, policy, rules = {case}
for member in range(policy.members):
    policy.initialise(member, torch.Generator().manual_seed(member))

class Energy:
    def running(self, states, controls, steps):
        return 0.01 * states.square().sum(-1)

    def final(self, state):
        return state.square().sum(-1)

def update_twice(horizon, memory):
    rollout = Rollout(system, policy, horizon, batch, memory=memory)
    for _ in range(2):
        rollout.forward(torch.ones(batch, 16, **options), Energy())
        rollout.backward(rules, Energy())
    return rollout.plan

update_twice(16, Rollout(system, policy, 16, batch).plan.predicted - 1)
with PeakMemory() as peak:
    chosen = update_twice(120, "{budget}")
print(json.dumps([len(chosen.segments), chosen.predicted, peak.bytes]))
"""


def linear_system(controls):
    return f"LinearSystem(0.9 * torch.eye(16), torch.ones(16, {controls}) / 16)"


MEASURED = {
    "linear": ("float64", "64MiB", f"{linear_system(2)}, Linear((16,), (2,), **options), [FULL]"),
    "sweeps by steps": (
        "float64",
        "64MiB",
        f"{linear_system(2)}, Linear((16,), (2,), **options), [FULL, PHYSICS_ONLY, ClipNorm(), ClipNorm(PHYSICS_ONLY)]",
    ),
    "mlp": ("float32", "128MiB", f"{linear_system(2)}, MLP((16,), (2,), (64, 64), **options), [FULL]"),
    "mlps": ("float64", "192MiB", f"{linear_system(6)}, MLP((16,), (6,), (64, 64), members=4, **options), [FULL]"),
    "module": (
        "float64",
        "96MiB",
        f"{linear_system(2)}, ModulePolicy(nn.Sequential(nn.Linear(16, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), "
        "nn.Linear(64, 2)).to(**options), (16,), (2,)), [FULL]",
    ),
    "taichi's adjoint": (
        "float64",
        "64MiB",
        "KernelSystem(relax, (16,), (1,)), Linear((16,), (1,), **options), [FULL]",
    ),
}


@pytest.mark.float64
@pytest.mark.parametrize("case", MEASURED)
def test_measured_peak_keeps_to_the_budget(case, tmp_path):
    precision, budget, source = MEASURED[case]
    script = tmp_path / "measurement.py"  # Taichi reads the sources of kernels from files
    script.write_text(MEASUREMENT.format(precision=precision, budget=budget, case=source))
    output = run_python(f"import runpy; runpy.run_path({str(script)!r})").stdout.splitlines()[-1]
    segments, predicted, peak = json.loads(output)
    assert segments > 1
    assert predicted / 2 < peak <= predicted <= parse_bytes(budget)


@pytest.mark.float64
def test_peak_memory_sees_what_was_freed_before_it_ended():
    size = 64 * 2**20
    with engine.PeakMemory() as peak:
        torch.ones(size, dtype=torch.uint8)
    assert 0.9 * size < peak.bytes < 1.5 * size
    with engine.PeakMemory() as peak:
        pass
    assert peak.bytes < 0.5 * size
