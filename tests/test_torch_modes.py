"""Torch's switches around building, rolling out, sweeping and training change no number and raise nothing."""

from contextlib import ExitStack, contextmanager
from typing import Any

import pytest
import taichi as ti
import torch
from conftest import StepCost, swing_up_states, tensor_options, uniform
from torch import nn

from engine import (
    FULL,
    PHYSICS_ONLY,
    AdjointError,
    CartPole,
    KernelSystem,
    QuantumBox,
    Rollout,
    RolloutTape,
    Trajectory,
)
from policies import MLP, Linear, ModulePolicy, Policy
from training import Backpropagation, Member, Objective, SignAgreement, Task, Trainer, TrainingSettings
from training.tasks.quantum import Transfer

STEPS, ROWS = 4, 3
COMBINED = SignAgreement(Backpropagation(PHYSICS_ONLY), Backpropagation(FULL))


@contextmanager
def default_dtype():
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float16)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@contextmanager
def deterministic():
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


@contextmanager
def several():
    with ExitStack() as stack:
        for mode in (torch.inference_mode(), torch.autocast("cpu", torch.bfloat16), torch.no_grad()):
            stack.enter_context(mode)
        yield


MODES = {
    "no_grad": torch.no_grad,
    "inference_mode": torch.inference_mode,
    "enable_grad": torch.enable_grad,
    "grad disabled": lambda: torch.set_grad_enabled(False),
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "anomaly": lambda: torch.autograd.set_detect_anomaly(True),
    "default dtype": default_dtype,
    "deterministic": deterministic,
    "default device": lambda: torch.device("cpu"),
    "several": several,
}


class Swing(Objective):
    """Running and final costs, a matrix product among them."""

    def __init__(self):
        with torch.inference_mode(False):
            self.weights = uniform(8, 4, 4)

    def running(self, states, controls, steps):
        return (states @ self.weights).square().sum(2) + 0.1 * controls.square().sum(2)

    def final(self, state):
        return 1.0 - state[:, 2].cos()


class Scaled(Policy):
    """u = x · θ s, with s a buffer."""

    def __init__(self):
        super().__init__((4,), (1,), 4, 1, **tensor_options())
        self.register_buffer("s", torch.full((1,), 0.5, **tensor_options()))

    def forward(self, state):
        return (state * self.theta.unsqueeze(1) * self.s).sum(-1, keepdim=True)

    def initialise(self, member, generator):
        self.theta.data[member] = 0.3


def net() -> Any:
    layers = nn.Sequential(nn.Linear(4, 6), nn.LayerNorm(6), nn.Tanh(), nn.Linear(6, 1)).to(**tensor_options())
    with torch.no_grad():
        for index, parameter in enumerate(layers.parameters()):
            parameter.copy_(uniform(index, *parameter.shape))
    return ModulePolicy(layers, (4,), (1,))


POLICIES = {
    "mlp": lambda: MLP((4,), (1,), (8, 7), **tensor_options()),
    "linear": lambda: Linear((4,), (1,), **tensor_options()),
    "module": net,
    "of a user": Scaled,
}


@pytest.fixture(scope="module")
def system():
    return CartPole(poles=1)


def built(system, build, **options):
    policy = build()
    policy.initialise(0, torch.Generator().manual_seed(0))
    return policy, Rollout(system, policy, STEPS, ROWS, **options)


def swept(rollout, cost):
    found = rollout.backward([FULL, PHYSICS_ONLY], cost)
    return [found.losses, *found.parameters.values(), *found.initial.values()]


def same(one, other):
    assert len(one) == len(other)
    for ours, theirs in zip(one, other, strict=True):
        assert torch.equal(ours, theirs)
        assert torch.isfinite(ours).all()


@pytest.fixture(scope="module", params=["mlp", "mlp in segments", "linear", "module", "of a user in segments"])
def usual(request, system):
    """A policy's builder, its segments, a rollout of it, and what that gives without any switch."""
    name, _, segments = request.param.partition(" in ")
    build, segment = POLICIES[name], 2 if segments else None
    cost, initial = Swing(), swing_up_states(0, ROWS, 1)
    _, rollout = built(system, build, segment=segment)
    losses = rollout.forward(initial, cost)
    expected = [losses, rollout.controls.clone(), *swept(rollout, cost)]
    assert all(one.any() for one in expected)
    return build, segment, rollout, expected


@pytest.mark.parametrize("mode", MODES.values(), ids=MODES)
def test_switches_around_each_stage_change_no_number(mode, usual, system):
    build, segment, rollout, expected = usual
    cost, initial = Swing(), swing_up_states(0, ROWS, 1)
    with mode():
        _, other = built(system, build, segment=segment)
        inside = other.forward(initial.clone(), cost)
        assert inside is not None
        found = [inside, other.controls.clone(), *swept(other, cost)]
        with RolloutTape(FULL, PHYSICS_ONLY) as tape:
            other(initial, cost)
        taped = tape.gradients(other)
    same(found, expected)
    same([taped.losses, *taped.parameters.values(), *taped.initial.values()], expected[2:])
    # What was made inside serves outside, and the other way round.
    same([other.forward(initial, cost), other.controls, *swept(other, cost)], expected)
    with mode():
        same([rollout.forward(initial, cost), rollout.controls, *swept(rollout, cost)], expected)
    # Nothing that comes back is bound to inference mode.
    (inside * torch.ones_like(inside, requires_grad=True)).sum().backward()


def trained(system, build, epochs):
    sample = lambda count, generator: torch.randn(count, 4, generator=generator, dtype=torch.float64)  # noqa: E731
    task = Task("swing", system, Swing(), sample, STEPS, lambda members, dtype, device: build())
    settings = TrainingSettings(batch_size=4, train_samples=8, test_samples=4, shuffle=True)
    trainer = Trainer(task, [Member(COMBINED, learning_rate=1e-2)], settings)
    return trainer, list(trainer.fit(epochs))


@pytest.fixture(scope="module", params=["mlp", "module"])
def training(request, system):
    return POLICIES[request.param], *trained(system, POLICIES[request.param], 3)


@pytest.mark.parametrize("name", ["no_grad", "inference_mode", "autocast", "several"])
def test_switches_around_a_trainer_change_no_number(name, training, system):
    build, expected, records = training
    with MODES[name]():
        trainer, found = trained(system, build, 2)
        state = {key: value.clone() for key, value in trainer.state().items()}
    found += list(trainer.fit(3))
    assert found == records
    assert torch.equal(trainer.policy.theta, expected.policy.theta)
    with MODES[name]():
        trainer.load(2, state, {})
    assert list(trainer.fit(3)) == records[2:]
    assert torch.equal(trainer.policy.theta, expected.policy.theta)


class Through(torch.autograd.Function):
    """x ↦ loss of a rollout from x, whose backward builds, rolls out and sweeps anew."""

    @staticmethod
    def forward(ctx, initial, system, build, cost):
        ctx.parts = initial.detach(), system, build, cost
        _, rollout = built(system, build)
        return rollout.forward(initial, cost).sum()

    @staticmethod
    def backward(ctx, *weights):
        assert not torch.is_grad_enabled()
        initial, system, build, cost = ctx.parts
        _, rollout = built(system, build)
        rollout.forward(initial)
        return weights[0] * rollout.backward([FULL], cost).initial[FULL], None, None, None


@pytest.mark.parametrize("build", [POLICIES["mlp"], POLICIES["module"]], ids=["mlp", "module"])
def test_a_rollout_within_the_backward_of_a_function_of_autograd(build, system):
    cost, initial = Swing(), swing_up_states(0, ROWS, 1)
    _, rollout = built(system, build)
    rollout.forward(initial)
    expected = rollout.backward([FULL], cost).initial[FULL]
    leaf = initial.clone().requires_grad_()
    Through.apply(leaf, system, build, cost).backward()
    assert leaf.grad is not None
    assert torch.equal(leaf.grad, expected)


@pytest.mark.float64
def test_a_module_and_its_replacements_may_come_from_inference_mode(system):
    cost, initial = Swing(), swing_up_states(0, ROWS, 1)
    policy, rollout = built(system, net)
    rollout.forward(initial)
    expected = swept(rollout, cost)
    with torch.inference_mode():
        layers: Any = nn.Sequential(nn.Linear(4, 6), nn.LayerNorm(6), nn.Tanh(), nn.Linear(6, 1)).double()
        layers.load_state_dict(policy._module[0].state_dict())
        layers.register_buffer("unused", torch.ones(1))
    assert layers[0].weight.is_inference()
    _, other = built(system, lambda: ModulePolicy(layers, (4,), (1,)))
    other.forward(initial)
    same(swept(other, cost), expected)
    with torch.inference_mode():
        layers[0].weight.data = layers[0].weight.data.clone()
        layers[3].bias = nn.Parameter(layers[3].bias.clone())
    other.forward(initial)
    same(swept(other, cost), expected)
    mlp, rollout = built(system, POLICIES["mlp"])
    rollout.forward(initial)
    expected = swept(rollout, cost)
    for replace in (lambda new: setattr(mlp.theta, "data", new), lambda new: setattr(mlp, "theta", nn.Parameter(new))):
        with torch.inference_mode():
            replace(mlp.theta.clone())
        rollout.forward(initial)
        same(swept(rollout, cost), expected)
    assert not mlp.theta.is_inference()


@pytest.mark.float64
def test_an_objective_from_inference_mode_is_told(system):
    with torch.inference_mode():
        weights = torch.ones(4, dtype=torch.float64)
    _, rollout = built(system, POLICIES["linear"])
    rollout.forward(swing_up_states(0, ROWS, 1))
    with pytest.raises(AdjointError, match=r"got one made under torch.inference_mode\(\); make it outside"):
        rollout.backward([FULL], StepCost(final=lambda x: (x * weights).square().sum(1)))


@pytest.mark.float64
def test_a_quantum_task_from_inference_mode_is_trained():
    with torch.inference_mode():
        system = QuantumBox(8, 0.0625)
        objective = Transfer(system, 3)
        policy = Linear(system.state_shape, system.control_shape, **tensor_options())
        rollout = Rollout(system, policy, STEPS, ROWS)
        rollout.forward(uniform(0, ROWS, *system.state_shape))
        assert rollout.backward([FULL], objective).parameters[FULL].any()
    # Buffers that launches share serve steps outside, too.
    state = uniform(1, ROWS, *system.state_shape)
    system.pull_back(state, uniform(2, ROWS, *system.control_shape), state)


@ti.kernel
def turn(x: ti.types.ndarray(ndim=2), u: ti.types.ndarray(ndim=2), y: ti.types.ndarray(ndim=2), dt: float):
    for b in range(x.shape[0]):
        y[b, 0] = x[b, 0] + dt * u[b, 0]


@ti.kernel
def add_up(x: ti.types.ndarray(ndim=3), loss: ti.types.ndarray(ndim=1)):
    for b in range(x.shape[1]):
        loss[0] += x[x.shape[0] - 1, b, 0] ** 2


@pytest.mark.float64
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode], ids=["no_grad", "inference_mode"])
def test_a_users_kernels_in_a_tape(mode):
    def gradient():
        with torch.inference_mode(False):
            loss = torch.zeros(1, **tensor_options(), requires_grad=True)
        policy = Linear((1,), (1,), **tensor_options())
        policy.theta.data.fill_(0.3)
        rollout = Rollout(KernelSystem(turn, (1,), (1,), (0.1,)), policy, STEPS, ROWS)
        rollout.states.requires_grad_()
        with RolloutTape(FULL, loss=loss) as tape:
            rollout(uniform(0, ROWS, 1))
            add_up(rollout.states, loss)
        return tape.gradients(rollout).parameters[FULL]

    expected = gradient()
    assert expected.any()
    with mode():
        assert torch.equal(gradient(), expected)


def test_evaluation_serves_inside_and_outside(system):
    policy, _ = built(system, POLICIES["mlp"])
    cost, initial = Swing(), swing_up_states(0, ROWS, 1)
    with torch.inference_mode():
        evaluation = Trajectory(system, policy, STEPS, ROWS, forward_only=True)
        inside = evaluation.forward(initial, cost)
    outside = evaluation.forward(initial, cost)
    assert inside is not None
    assert outside is not None
    assert torch.equal(inside, outside)
