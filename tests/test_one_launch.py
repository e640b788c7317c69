"""Rollouts in one launch: against the loop by steps and bounds on rounding; what takes part, and what declines."""

from functools import partial
from typing import Any

import pytest
import taichi as ti
import torch
from conftest import tensor_options, uniform
from torch.utils._python_dispatch import TorchDispatchMode

import engine
from engine import SYSTEMS, Guidance, Held, Noise, Observation, Rollout, Trajectory
from engine import launch as launch_module
from engine import trajectory as trajectory_module
from engine.launch import prepare
from engine.one_launch import OneLaunch
from engine.step_launches import StepLaunches
from policies import MLP, Linear
from policies.in_kernel import fits_blocks, for_blocks
from policies.tanh import tanh
from training import Member, Trainer, build_task, gradient_named

HORIZON = 12
# One object for all tests, since Taichi compiles the kernels of each object anew.
SMALL = {name: SYSTEMS[name]() for name in ("ball-wall", "cart-pendulum", "cart-pole", "guidance", "hopper")}
SMALL |= {name: SYSTEMS[name]() for name in ("integrator", "linear")}
SMALL["held hopper"] = Held(SMALL["hopper"], 3)
CART_POLE = SMALL["cart-pole"]


def policy_for(system, hidden=(20, 33), members=1):
    """An MLP with every parameter drawn, other ones for every member."""
    policy = MLP(system.state_shape, system.control_shape, hidden, members=members, **tensor_options())
    policy.theta.data.copy_(uniform(3, *policy.theta.shape, low=-0.4, high=0.4))
    return policy


def states_of(system, batch):
    return system.sample(batch, torch.Generator().manual_seed(5))


def by_steps(monkeypatch):
    monkeypatch.setattr(trajectory_module, "offered", lambda *_: False)


def bound_of_rounding(policy, trace):
    """How far rounding may take a control [P, slots, b, m] as one order of sums or another computes it, each.

    A sum of K products is off by at most K ε Σ|w h|, tanh by 3.2 ε and by what its argument is off.
    """
    epsilon = torch.finfo(policy.dtype).eps
    off = None
    for layer, seen in zip(policy.layers(policy.theta.detach()), trace.augmented, strict=True):
        weights, (inputs, _) = layer.abs().unsqueeze(1), layer.shape[1:]
        before = 0.0 if off is None else (off + 3.2 * epsilon) @ weights[..., :-1, :]
        off = before + inputs * epsilon * (seen.abs() @ weights)
    return off


def check_every_step(name, members, rows):
    """Against the policy's own call and the system's own step, in a second launch with values of its own."""
    system = SMALL[name]
    policy, batch = policy_for(system, members=members), members * rows
    rollout = Rollout(system, policy, HORIZON, batch)
    trace: Any = rollout.trace
    assert isinstance(rollout._launches, OneLaunch)
    rollout.forward(torch.zeros_like(rollout.states[0]) + 0.1)
    rollout.forward(states_of(system, batch))
    states, controls = rollout.states.clone(), rollout.controls.clone()
    assert torch.isfinite(states).all()
    seen = states[:-1].view(HORIZON, members, rows, *system.state_shape).transpose(0, 1).flatten(1, 2)
    expected = policy(seen).detach().flatten(2)
    found = controls.view(HORIZON, members, rows, -1).transpose(0, 1)
    bound = 2 * bound_of_rounding(policy, trace)
    assert ((found - expected.view_as(found)).abs() <= bound).all()
    for t in range(HORIZON):
        torch.testing.assert_close(states[t + 1], system.step(states[t], controls[t]), rtol=1e-6, atol=1e-6)
    inputs = trace.augmented[0]
    assert torch.equal(inputs[..., :-1].transpose(0, 1).reshape(HORIZON, batch, -1), states[:-1].flatten(2))
    assert all((buffer[..., -1] == 1).all() for buffer in trace.augmented)


@pytest.mark.vulkan
@pytest.mark.parametrize(
    ("name", "members", "rows"),
    [*((name, 3, 5) for name in SMALL), ("cart-pole", 1, 8), ("cart-pole", 3, 57), ("guidance", 130, 9)],
)
def test_every_step_is_the_systems_under_the_policys_control(name, members, rows):
    check_every_step(name, members, rows)


@pytest.mark.cuda
@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize(("members", "rows"), [(3, 5), (130, 9)])
def test_cuda_every_step_is_the_systems_under_the_policys_control(name, members, rows):
    check_every_step(name, members, rows)


@pytest.mark.cuda
@pytest.mark.vulkan
@pytest.mark.parametrize("name", ["cart-pole", "guidance"])
def test_noise_and_parameters_that_vary_are_taken_along(name, monkeypatch):
    system, batch = SMALL[name], 18  # nine of a member are two groups that overlap
    varied = tuple(system.parameters)[:2]
    rows = torch.tensor(list(system.parameters.values())[:2], **tensor_options()) * uniform(
        1, batch, 2, low=0.9, high=1.1
    )
    settings = {"parameters": varied, "noise": Noise(state=0.01, control=0.02)}
    found = []
    for kind in (OneLaunch, StepLaunches):
        if kind is StepLaunches:
            by_steps(monkeypatch)
        rollout = Rollout(system, policy_for(system, members=2), 5, batch, **settings)
        rollout.seed_noise([3, 4])
        rollout.forward(states_of(system, batch), parameters=rows)
        assert isinstance(rollout._launches, kind)
        found.append(rollout)
    torch.testing.assert_close(found[0].states, found[1].states, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found[0].controls, found[1].controls, rtol=1e-5, atol=1e-5)
    undisturbed = Rollout(system, policy_for(system, members=2), 5, batch)
    undisturbed.forward(states_of(system, batch))
    assert (undisturbed.states[1] - found[0].states[1]).abs().max() > 1e-3


@pytest.mark.cuda
@pytest.mark.vulkan
@pytest.mark.parametrize("members", [1, 3])
def test_segments_and_evaluation_change_no_bit(members, monkeypatch):
    monkeypatch.setattr(trajectory_module, "_BLOCK_ROWS", 4 * 9 * members)
    policy, batch = policy_for(CART_POLE, members=members), 9 * members
    make = partial(Trajectory, CART_POLE, policy, HORIZON, batch)
    initial, whole = states_of(CART_POLE, batch), make()
    whole.forward(initial)
    for cut in (make(segment=1), make(segment=5), make(forward_only=True)):
        assert isinstance(cut._launches, OneLaunch)
        cut.forward(initial)
        assert torch.equal(cut.final_state, whole.final_state)
        assert torch.equal(cut.controls, whole.controls)
    cut = make(segment=5)
    cut.forward(initial)
    for part in reversed(cut.plan.segments):
        cut.restore(part)
        assert torch.equal(cut.states[part.first : part.last + 1], whole.states[part.start : part.stop + 1])
        traces: Any = cut.trace, whole.trace
        for kept, expected in zip(*(trace.augmented for trace in traces), strict=True):
            assert torch.equal(kept[:, part.first : part.last], expected[:, part.start : part.stop])


@pytest.mark.cuda
@pytest.mark.vulkan
def test_a_member_is_the_same_to_the_bit_whoever_is_beside_it():
    together = policy_for(CART_POLE, members=3)
    initial, rollouts = states_of(CART_POLE, 15), []
    for member in range(3):
        alone = policy_for(CART_POLE)
        alone.theta.data.copy_(together.theta[member : member + 1])
        rollouts.append(Trajectory(CART_POLE, alone, HORIZON, 5))
        rollouts[-1].forward(initial[5 * member : 5 * member + 5])
    every = Trajectory(CART_POLE, together, HORIZON, 15)
    every.forward(initial)
    assert torch.equal(every.states, torch.cat([rollout.states for rollout in rollouts], 1))


@pytest.mark.cuda
@pytest.mark.vulkan
def test_shown_states_are_acted_on_and_stay():
    rollout = Trajectory(CART_POLE, policy_for(CART_POLE), HORIZON, 5)
    rollout.forward(states_of(CART_POLE, 5))
    states, controls = rollout.states.clone(), rollout.controls.clone()
    rollout.show(3, 6, 2 * states[3:6])
    assert torch.equal(rollout.states[3:6], 2 * states[3:6])
    assert not torch.equal(rollout.controls[3:6], controls[3:6])
    rollout.show(3, 6, states[3:6])
    assert torch.equal(rollout.controls, controls)
    assert torch.equal(rollout.states, states)


class OwnStep(engine.CartPole):
    """A cart-pole whose step is its own."""

    def prepare_step(self, *arrays, **options):
        return super().prepare_step(*arrays, **options)


class OwnTrace(MLP):
    """An MLP with a trace of its own."""

    def trace(self, slots, batch, state_shape, control_shape):
        return super().trace(slots, batch, state_shape, control_shape)


SIGHT = Observation.components([0, 1, 2, 3])


@pytest.mark.cuda
@pytest.mark.vulkan
@pytest.mark.parametrize(
    ("system", "make", "options"),
    [
        (CART_POLE, MLP, {"observation": SIGHT}),
        (CART_POLE, MLP, {"end": lambda states: states[:, 0].abs() > 10}),
        (CART_POLE, Linear, {}),
        (CART_POLE, OwnTrace, {}),
        (OwnStep(), MLP, {}),
        (Guidance(2, 63), MLP, {}),
        (engine.NBody(), MLP, {}),
    ],
    ids=["observation", "end", "linear", "own trace", "own step", "65 particles", "other system"],
)
def test_what_has_no_place_in_a_kernel_runs_by_steps(system, make, options):
    policy = make(system.state_shape, system.control_shape, **tensor_options())
    assert isinstance(Trajectory(system, policy, 2, 8, **options)._launches, StepLaunches)


@pytest.mark.float64
def test_the_cpu_leaves_many_samples_of_large_networks_to_torch():
    found = []
    for hidden, batch in (((100, 100), 256), ((400, 400), 2), ((400, 400), 256)):
        policy = MLP((4,), (1,), hidden, **tensor_options())
        found.append(type(Trajectory(CART_POLE, policy, 2, batch)._launches))
    assert found == [OneLaunch, OneLaunch, StepLaunches]


@pytest.mark.float64
def test_layers_of_any_shape_fit_the_memory_that_a_block_shares():
    """As every device has it, with samples in one block or in as many as there are."""
    for size in (4, 8):
        for widths in ((4, 100, 100, 1), (128, 256, 256, 128), (128, 128), (2, 7, 3)):
            assert fits_blocks(widths, size) or (size, max(widths)) == (8, 256)
            for members in (1, 1000):
                act, rows = for_blocks(widths, (), 8, members, size)
                assert act.threads in (32, 64, 128, 256)
                assert act.threads >= max(widths[1:-1], default=1)
                assert act.shared(rows) * size <= 2**15 or rows == 1
    assert for_blocks((4, 100, 100, 1), (), 8, 1000, 4)[1] == 8
    assert not fits_blocks((4, 257, 1), 4)


@ti.kernel
def _tanh_of(x: ti.types.ndarray(ndim=1), y: ti.types.ndarray(ndim=1)):
    for i in range(x.shape[0]):
        y[i] = tanh(x[i])


@pytest.mark.vulkan
def test_tanh_is_good_to_its_last_bits_and_keeps_what_is_no_number():
    infinite = torch.tensor([torch.inf, -torch.inf, torch.nan, 0.0, -0.0], **tensor_options())
    even, dense = (torch.linspace(*ends, **tensor_options()) for ends in ((-25, 25, 20001), (4, 9.2, 2**20)))
    x = torch.cat([infinite, even, dense, 10 ** uniform(1, 4000, low=-30, high=1)])
    y = torch.zeros_like(x)
    prepare(_tanh_of, x, y)()
    assert y[:2].tolist() == [1.0, -1.0]
    assert torch.isnan(y[2])
    expected = torch.tanh(x[3:].double())
    bound = (3.2 if x.dtype == torch.float32 else 2.0) * torch.finfo(x.dtype).eps
    assert ((y[3:].double() - expected).abs() <= bound * expected.abs()).all()


class Kernels(TorchDispatchMode):
    """How many operations of torch launch a kernel on a device: all that compute or copy, and no views."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        aliases = [value.alias_info for value in operation._schema.returns]
        view = any(alias is not None and not alias.is_write for alias in aliases)
        composite = operation.has_kernel_for_dispatch_key(torch._C.DispatchKey.CompositeImplicitAutograd)
        self.count += not (view or composite or operation.namespace == "profiler")
        return operation(*args, **(kwargs or {}))


@pytest.mark.cuda
@pytest.mark.vulkan
def test_what_is_shown_changes_the_controls_of_its_slots_alone():
    policy, batch = policy_for(CART_POLE), 4
    rollout = Rollout(CART_POLE, policy, HORIZON, batch)
    rollout.forward(states_of(CART_POLE, batch))
    rollout.controls.fill_(5.0)
    rollout.show(4, 8, rollout.states[4:8].clone())
    apart = torch.cat([rollout.controls[:4], rollout.controls[8:]])
    assert torch.equal(apart, torch.full_like(apart, 5.0))
    assert bool((rollout.controls[4:8] != 5.0).all())


@pytest.mark.float64
def test_an_update_of_cart_pole_launches_fewer_than_80_kernels(monkeypatch):
    launched = [0]
    bind = launch_module._bind

    def counting(*arguments):
        launch = bind(*arguments)

        def counted():
            launched[0] += 1
            launch()

        counted.arguments = launch.arguments
        return counted

    monkeypatch.setattr(launch_module, "_bind", counting)
    task = build_task("cart-pole")
    trainer = Trainer(task, [Member(gradient_named("R").estimator)])
    initial = task.initial_states(8, 0, "train", engine.current().dtype)
    trainer.update(initial)  # prepares the sweep
    launched[0] = 0
    with Kernels() as kernels:
        trainer.update(initial)
    assert launched == [2]
    assert kernels.count + 2 * launched[0] < 80  # a loop whose bound is no constant takes two
