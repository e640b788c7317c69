"""Convolutional policies inside a kernel of the CPU: against torch's products of the same trace, and what declines."""

from functools import partial

import pytest
import torch
from conftest import relative_error, tensor_options, uniform
from test_convolutional import GEOMETRIES, accuracy

from engine import FULL, PHYSICS_ONLY, Noise, QuantumBox, Rollout, Trajectory
from engine import trajectory as trajectory_module
from engine.one_launch import OneLaunch
from engine.step_launches import StepLaunches
from policies import Convolutional
from training.tasks.quantum import Transfer

HORIZON = 6
BOX = QuantumBox(17)


def drawn(members, controls=1, geometry=GEOMETRIES["as in the paper"], kind=Convolutional, system=BOX):
    policy = kind(system.state_shape, (controls,), *geometry, members=members, **tensor_options())
    policy.theta.data.copy_(0.5 * uniform(0, *policy.theta.shape))
    return policy


def states(batch, system=BOX):
    return uniform(1, batch, *system.state_shape, low=-0.3, high=0.3)


def valid(trace):
    """Windows and activations where they are those of the policy: places beyond are only ever multiplied by 0."""
    places = trace.policy.places[1:]
    return [trace.windows[:, :, :, : places[0]]] + [
        hidden[:, :, :, :count] for hidden, count in zip(trace.hidden, places, strict=True)
    ]


CASES = {name: (geometry, 2, 9) for name, geometry in GEOMETRIES.items()}
CASES |= {
    f"{members} of {rows}": (GEOMETRIES["as in the paper"], members, rows)
    for members, rows in ((1, 8), (3, 1), (2, 40))
}


@pytest.mark.parametrize(("geometry", "members", "rows"), CASES.values(), ids=CASES)
def test_controls_states_and_what_is_kept_are_those_of_torchs_products(geometry, members, rows, monkeypatch):
    """In the same slots, with units that no lane divides, and groups of samples that overlap."""
    policy, batch, found = drawn(members, geometry=geometry), members * rows, []
    for kind in (OneLaunch, StepLaunches):
        if kind is StepLaunches:
            monkeypatch.setattr(trajectory_module, "offered", lambda *_: False)
        rollout = Rollout(BOX, policy, HORIZON, batch)
        assert isinstance(rollout._launches, kind)
        rollout.forward(states(batch) + 1.0)  # what is left in the buffers is another rollout's
        rollout.forward(states(batch))
        found.append([rollout.states, rollout.controls, *valid(rollout.trace)])
    assert found[0][1].abs().min() > 0
    for ours, products in zip(*found, strict=True):
        torch.testing.assert_close(ours, products, rtol=accuracy(), atol=accuracy())


def test_gradients_are_those_of_torchs_products(monkeypatch):
    batch, found = 18, []
    for one in (True, False):
        if not one:
            monkeypatch.setattr(trajectory_module, "offered", lambda *_: False)
        policy = drawn(2)
        rollout = Rollout(BOX, policy, HORIZON, batch)
        rollout.forward(states(batch))
        found.append(rollout.backward([FULL, PHYSICS_ONLY], Transfer(BOX, 3)).parameters)
    for rule in (FULL, PHYSICS_ONLY):
        assert relative_error(found[0][rule], found[1][rule]) < 10 * accuracy()


def test_a_state_that_is_no_number_stays_with_its_sample():
    policy = drawn(2)
    rollout = Rollout(BOX, policy, HORIZON, 18)
    rollout.forward(states(18))
    kept = rollout.states.clone()
    broken = states(18)
    broken[4, 1, 3] = torch.nan
    rollout.forward(broken)
    assert torch.isnan(rollout.controls[0, 4]).all()
    others = [b for b in range(18) if b != 4]
    assert torch.equal(rollout.states[:, others], kept[:, others])


@pytest.mark.parametrize("members", [1, 2])
def test_segments_evaluations_and_neighbours_change_no_bit(members):
    policy, batch = drawn(members), 9 * members
    whole = Trajectory(BOX, policy, HORIZON, batch)
    whole.forward(states(batch))
    make = partial(Trajectory, BOX, policy, HORIZON, batch)
    for other in (make(segment=1), make(segment=4), make(forward_only=True)):
        assert isinstance(other._launches, OneLaunch)
        other.forward(states(batch))
        assert torch.equal(other.final_state, whole.final_state)
        assert torch.equal(other.controls, whole.controls)
    alone = drawn(1)
    alone.theta.data.copy_(policy.theta[-1:])
    own = Trajectory(BOX, alone, HORIZON, 9)
    own.forward(states(batch)[-9:])
    assert torch.equal(own.states, whole.states[:, -9:])


def test_noise_and_slopes_that_vary_are_taken_along(monkeypatch):
    found = []
    for kind in (OneLaunch, StepLaunches):
        if kind is StepLaunches:
            monkeypatch.setattr(trajectory_module, "offered", lambda *_: False)
        noise = Noise(state=0.01, control=0.02)
        rollout = Rollout(BOX, drawn(2), HORIZON, 18, parameters=("slope",), noise=noise)
        assert isinstance(rollout._launches, kind)
        rollout.seed_noise([3, 4])
        rollout.forward(states(18), parameters=uniform(4, 18, 1, low=0.5, high=2.0))
        found.append(rollout.states.clone())
    torch.testing.assert_close(*found, rtol=accuracy(), atol=accuracy())
    still = Rollout(BOX, drawn(2), HORIZON, 18)
    still.forward(states(18))
    assert (still.states[1] - found[0][1]).abs().max() > 1e-3


class OwnTrace(Convolutional):
    """One with a trace of its own."""

    def trace(self, slots, batch, state_shape, control_shape):
        return super().trace(slots, batch, state_shape, control_shape)


class OwnStep(QuantumBox):
    """A box whose step is its own."""

    def prepare_step(self, *arrays, **options):
        return super().prepare_step(*arrays, **options)


@pytest.mark.parametrize(
    ("system", "kind", "filters", "rows"),
    [
        (BOX, OwnTrace, (6, 5), 8),
        (OwnStep(17), Convolutional, (6, 5), 8),
        (QuantumBox(100), Convolutional, (6, 5), 8),
        (BOX, Convolutional, (150, 150), 40),
    ],
    ids=["own trace", "own step", "100 points", "many samples of a large network"],
)
def test_what_has_no_place_in_the_kernel_runs_by_steps(system, kind, filters, rows):
    policy = drawn(1, geometry=(filters, 3, 2), kind=kind, system=system)
    assert isinstance(Trajectory(system, policy, 2, rows)._launches, StepLaunches)


@pytest.mark.vulkan
def test_devices_compute_convolutions_by_torch():
    import engine

    expected = OneLaunch if engine.current().backend == "cpu" else StepLaunches
    assert isinstance(Trajectory(BOX, drawn(1), 2, 8)._launches, expected)
