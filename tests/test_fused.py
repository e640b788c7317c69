"""Sweeps in one launch by rules that say themselves on one sample, and the rules that are called instead."""

from dataclasses import dataclass

import pytest
import taichi as ti
import torch
from conftest import BySteps, StepCost, relative_error, tensor_options, uniform

import engine
from engine import (
    FULL,
    AdjointError,
    ClipNorm,
    ClipValue,
    Decay,
    Integrator,
    KernelError,
    LinearSystem,
    Rollout,
    Truncate,
)
from engine import sweep as sweep_module
from engine.rules import WrappedRule
from policies import Linear

BATCH, HORIZON = 4, 6
COST = StepCost(lambda x, u, t: (x**2).sum(-1) + (u**2).sum(-1), lambda x: x.square().sum(-1))


class OwnRule:
    """A user's rule with nothing but what a rule must have."""

    uses_physics = uses_policy = True

    def __init__(self, share=0.5):
        self.share = share

    def __call__(self, direct, physics, policy, t):
        return direct + self.share * physics + policy


class OnSample(OwnRule):
    @ti.func
    def on_sample(self, direct, physics, policy, t):
        return direct + self.share * physics + policy


class OfTime(OwnRule):
    """Another share at every step."""

    def __call__(self, direct, physics, policy, t):
        return direct + physics / (1.0 + t) + policy

    @ti.func
    def on_sample(self, direct, physics, policy, t):
        return direct + physics / (1.0 + t) + policy


class Mistaken(OwnRule):
    @ti.func
    def on_sample(self, direct, physics, policy, t):
        return direct + self.share * physics + (policy if t < 5 else -policy)


class Broken(OwnRule):
    @ti.func
    def on_sample(self, direct, physics, policy, t):
        return direct + nothing  # type: ignore[name-defined]  # noqa: F821


class Watched(LinearSystem):
    """A linear system of 3 states that notes what it prepares."""

    def __init__(self):
        super().__init__(0.9 * torch.eye(3), torch.ones(3, 1))
        self.prepared = []

    def prepare_pull_back(self, *arrays, **parameters):
        self.prepared.append("pull-back")
        return super().prepare_pull_back(*arrays, **parameters)

    def prepare_sweep(self, arrays):
        self.prepared.append("sweep")
        return super().prepare_sweep(arrays)


def rolled_out():
    """A rollout, and what its system prepares."""
    system = Watched()
    policy = Linear(system.state_shape, (1,), **tensor_options())
    policy.initialise(0, torch.Generator().manual_seed(0))
    rollout = Rollout(system, policy, HORIZON, BATCH)
    rollout.forward(uniform(0, BATCH, *system.state_shape))
    return rollout, system.prepared


@pytest.mark.cuda
@pytest.mark.vulkan
@pytest.mark.parametrize(
    "rule", [OnSample(), ClipNorm(OnSample(), 0.5), Truncate(Decay(FULL, 0.9), 2)], ids=["own", "wrapped", "nested"]
)
def test_a_rule_that_says_itself_on_a_sample_is_swept_in_one_launch(rule):
    (rollout, prepared), slow = rolled_out(), BySteps(rule)
    found = rollout.backward([rule, slow], COST).parameters
    assert prepared == ["sweep", *["pull-back"] * HORIZON]
    assert relative_error(found[rule], found[slow]) < (1e-12 if found[rule].dtype == torch.float64 else 1e-5)


@pytest.mark.cuda
@pytest.mark.vulkan
@pytest.mark.parametrize("length", [4, 5])
@pytest.mark.parametrize(
    "rule", [OfTime(), Truncate(FULL, 5), Decay(Truncate(FULL, 5), 0.9)], ids=["own", "cut", "both"]
)
def test_a_rule_that_depends_on_time_knows_it_in_every_segment(rule, length, monkeypatch):
    """Segments as long as blocks all begin at one place of the buffers."""

    def found(rule, **given):
        system = LinearSystem(0.9 * torch.eye(3), torch.ones(3, 1))
        policy = Linear(system.state_shape, (1,), **tensor_options())
        policy.initialise(0, torch.Generator().manual_seed(0))
        rollout = Rollout(system, policy, 12, BATCH, **given)
        rollout.forward(uniform(0, BATCH, *system.state_shape))
        rollout.backward([rule], COST)
        gradients = rollout.backward([rule], COST)
        return {part.first for part in rollout.plan.segments}, gradients.parameters[rule], gradients.initial[rule]

    _, parameters, initial = found(BySteps(rule))
    monkeypatch.setattr(Rollout, "_block_steps", lambda self: length)
    places, *swept = found(rule, segment=length)
    assert places == {0}
    accuracy = 1e-12 if initial.dtype == torch.float64 else 1e-5
    assert relative_error(swept[0], parameters) < accuracy
    assert relative_error(swept[1], initial) < accuracy


@dataclass(frozen=True)
class OfRollout(WrappedRule):
    """A decay that is another one in every rollout."""

    in_one_launch: bool = True

    def placed(self, place):
        rule = Decay(self.of, float(place.keys().sum() % 8) / 8)
        return rule if self.in_one_launch else BySteps(rule)


class Unhashable(OnSample):
    __hash__ = None  # type: ignore[assignment]


@dataclass(frozen=True)
class IntoUnhashable(WrappedRule):
    def placed(self, place):
        return Unhashable()


@pytest.mark.float64
def test_a_rule_that_its_place_changes_is_swept_as_what_it_is_there():
    rollout, _ = rolled_out()
    rules = [OfRollout(FULL), OfRollout(FULL, False)]
    found = []
    for _ in range(4):
        rollout.forward(rollout.initial_state)
        fused, stepped = (rollout.backward(rules, COST).parameters[rule] for rule in rules)
        assert relative_error(fused, stepped) < 1e-12
        found.append(float(fused.abs().sum()))
    assert len(set(found)) > 1


@pytest.mark.float64
def test_a_rule_that_cannot_be_looked_up_in_its_place_is_refused():
    with pytest.raises(AdjointError, match=r"^Expected an adjoint rule that can be hashed"):
        rolled_out()[0].backward([IntoUnhashable(FULL)], COST)


@pytest.mark.float64
@pytest.mark.parametrize("rule", [OwnRule(), ClipNorm(OwnRule(), 0.5)], ids=["own", "wrapped"])
def test_a_rule_that_is_only_called_is_called_between_the_steps(rule):
    rollout, prepared = rolled_out()
    found = rollout.backward([rule], COST).parameters[rule]
    assert "sweep" not in prepared
    same = OnSample() if isinstance(rule, OwnRule) else ClipNorm(OnSample(), 0.5)
    assert relative_error(found, rolled_out()[0].backward([same], COST).parameters[same]) < 1e-12


@pytest.mark.float64
def test_a_rule_that_says_another_thing_of_a_sample_is_refused():
    rule = Mistaken()
    with pytest.raises(AdjointError, match=r"^Expected Mistaken\.on_sample to give .* at step 5; mend .*\.$"):
        rolled_out()[0].backward([rule], COST)


@pytest.mark.float64
def test_a_rule_is_not_compiled_for_a_system_without_sweeps(monkeypatch):
    rollout, prepared = rolled_out()
    monkeypatch.setattr(rollout.system, "prepare_sweep", lambda arrays: None)
    rollout.backward([Broken()], COST)
    assert prepared == ["pull-back"] * HORIZON


@pytest.mark.float64
def test_a_rule_that_taichi_cannot_compile_is_refused_in_a_sentence():
    with pytest.raises(KernelError, match=r"^Expected kernel .* by Broken\.on_sample to compile, got .*nothing.*\.$"):
        rolled_out()[0].backward([Broken()], COST)


@pytest.mark.float64
def test_states_too_large_to_unroll_are_swept_step_by_step(monkeypatch):
    monkeypatch.setattr(sweep_module, "MOST_COMPONENTS", 2)
    (rollout, prepared), rule = rolled_out(), ClipNorm(FULL, 0.5)
    rollout.backward([rule, FULL], COST)
    assert prepared == [*["pull-back"] * HORIZON, "sweep"]


@pytest.mark.float64
def test_a_schedule_of_numbers_compiles_few_kernels(monkeypatch):
    monkeypatch.setattr(sweep_module, "_MOST_COMPILED", 3)
    rollout, prepared = rolled_out()
    for step in range(6):
        rollout.backward([Decay(FULL, 1 / (2 + step))], COST)
    assert prepared == [*["sweep"] * 3, *["pull-back"] * HORIZON]


@pytest.mark.cuda
@pytest.mark.vulkan
@pytest.mark.parametrize("size", [1e-30, 1.0, 1e18, 1e30])
def test_clipping_in_a_kernel_limits_what_squares_to_nothing_or_overflows(size):
    """Of one step of x' = 0.9 x, λ_0 = 0.9 λ_1, clipped."""
    rule = ClipNorm(engine.PHYSICS_ONLY, limit=1.0)
    cost = StepCost(None, lambda x: (x * size).sum(-1))
    system = Watched()
    rollout = Rollout(system, Linear((3,), (1,), **tensor_options()), 1, BATCH)
    rollout.forward(uniform(0, BATCH, 3))
    found = rollout.backward([rule], cost).initial[rule]
    length = min(0.9 * size * 3**0.5, 1.0)
    torch.testing.assert_close(found, torch.full_like(found, length / 3**0.5))
    assert system.prepared == ["sweep"]


@pytest.mark.cuda
@pytest.mark.vulkan
@pytest.mark.parametrize("bad", [torch.inf, torch.nan])
def test_clipping_in_a_kernel_leaves_what_is_not_finite_to_be_found(bad):
    rule = ClipNorm(engine.PHYSICS_ONLY, limit=1.0)
    slope = torch.tensor([1.0, bad, 2.0], **tensor_options())
    rollout = Rollout(Integrator(3), Linear((3,), (3,), **tensor_options()), 1, BATCH)
    rollout.forward(uniform(0, BATCH, 3))
    found = rollout.backward([rule], StepCost(None, lambda x: (x * slope).sum(-1))).initial[rule]
    assert not torch.isfinite(found[:, 1]).any()
    torch.testing.assert_close(found[:, 0], torch.ones_like(found[:, 0]))


@pytest.mark.cuda
@pytest.mark.vulkan
def test_components_are_clipped_in_a_kernel_where_their_norm_overflows():
    rule, system = ClipValue(engine.PHYSICS_ONLY, limit=1.0), Watched()
    largest = 0.9 * torch.finfo(tensor_options()["dtype"]).max
    rollout = Rollout(system, Linear((3,), (1,), **tensor_options()), 1, BATCH)
    rollout.forward(torch.zeros(BATCH, 3, **tensor_options()))
    found = rollout.backward([rule], StepCost(None, lambda x: (largest * x).sum(-1))).initial[rule]
    assert torch.equal(found, torch.ones_like(found))
    assert system.prepared == ["sweep"]
