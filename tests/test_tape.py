"""RolloutTape: the gradients of `Rollout.backward`, joined to those of the user's own kernels."""

import pytest
import reference
import taichi as ti
import torch
from conftest import StepCost, relative_error, swing_up_states, tensor_options, uniform
from users_kernels import damped_pendulum

import engine
from engine import FULL, ONE_STEP, PHYSICS_ONLY, CartPole, ClipNorm, KernelSystem, Rollout, RolloutTape, System
from policies import MLP, Linear

SYSTEM = CartPole(1)
HORIZON = 12
BATCH = 4
COST = StepCost(lambda x, u, t: 0.01 * x.square().sum(1) + 0.02 * u.square().sum(1), reference.swing_up_cost)
"""Costs of states and controls."""
EFFORT = StepCost(lambda x, u, t: 0.1 * u.square().sum(1), lambda x: x.square().sum(1))
"""Costs of controls and of the final state."""
SQUARES = StepCost(lambda x, u, t: 0.5 * (t + 1) * x.square().sum(1), lambda x: 0.5 * (HORIZON + 1) * x.square().sum(1))
"""What `add_squares` computes, sample by sample."""


@ti.kernel
def add_squares(states: ti.types.ndarray(ndim=3), loss: ti.types.ndarray(ndim=1)):
    for t, b, i in ti.ndrange(states.shape[0], states.shape[1], states.shape[2]):
        loss[0] += 0.5 * (t + 1) * states[t, b, i] ** 2


@ti.kernel
def sine(latent: ti.types.ndarray(ndim=2), initial: ti.types.ndarray(ndim=2)):
    for b, i in ti.ndrange(latent.shape[0], latent.shape[1]):
        initial[b, i] = 2.0 * ti.sin(latent[b, i])


def accuracy():
    return 1e-12 if engine.current().precision == "float64" else 1e-5


def build_rollout(**kwargs):
    policy = MLP((4,), (1,), (8,), **tensor_options())
    policy.theta.data.copy_(uniform(0, *policy.theta.shape))
    return Rollout(SYSTEM, policy, HORIZON, BATCH, **kwargs)


def no_loss():
    return torch.zeros(1, **tensor_options(), requires_grad=True)


@pytest.fixture
def initial():
    return swing_up_states(1, BATCH, 1)


@pytest.mark.cuda
@pytest.mark.vulkan
def test_a_tape_of_one_rollout_is_forward_and_backward(initial):
    rules = FULL, PHYSICS_ONLY, ClipNorm(limit=0.1)
    rollout = build_rollout()
    with RolloutTape(*rules) as tape:
        assert rollout(initial, COST) is rollout
    found = tape.gradients(rollout)

    other = build_rollout()
    losses = other.forward(initial, COST)
    expected = other.backward(rules, COST)
    torch.testing.assert_close(found.losses, losses)
    for rule in rules:
        assert torch.equal(found.parameters[rule], expected.parameters[rule])
        assert torch.equal(found.initial[rule], expected.initial[rule])


@pytest.mark.cuda
@pytest.mark.vulkan
def test_several_rollouts_of_a_tape_are_each_swept(initial):
    rollouts = [build_rollout(), build_rollout(segment=5)]
    with RolloutTape() as tape:
        rollouts[0](initial, COST)
        rollouts[1](0.5 * initial, COST)
    for rollout, start in zip(rollouts, (initial, 0.5 * initial), strict=True):
        other = build_rollout()
        other.forward(start)
        expected = other.backward([FULL], COST).parameters[FULL]
        assert relative_error(tape.gradients(rollout).parameters[FULL], expected) < accuracy()


@pytest.mark.cuda
def test_a_loss_kernel_on_the_states_equals_the_same_cost(initial):
    rules = FULL, PHYSICS_ONLY, ONE_STEP
    rollout, loss = build_rollout(), no_loss()
    states = rollout.states.requires_grad_()
    with RolloutTape(*rules, loss=loss) as tape:
        rollout(initial)
        add_squares(states, loss)
    found = tape.gradients(rollout)

    other = build_rollout()
    losses = other.forward(initial, SQUARES)
    expected = other.backward(rules, SQUARES)
    assert relative_error(loss, losses.sum().view(1)) < accuracy()
    for rule in rules:
        assert relative_error(found.parameters[rule], expected.parameters[rule]) < accuracy()
        assert relative_error(found.initial[rule], expected.initial[rule]) < accuracy()


@pytest.mark.cuda
def test_a_loss_kernel_adds_to_the_cost_of_the_call(initial):
    rollout, loss = build_rollout(), no_loss()
    states = rollout.states.requires_grad_()
    with RolloutTape(loss=loss) as tape:
        rollout(initial, COST)
        add_squares(states, loss)

    other = build_rollout()
    other.forward(initial)
    expected = sum(other.backward([FULL], cost).parameters[FULL] for cost in (COST, SQUARES))
    assert relative_error(tape.gradients(rollout).parameters[FULL], expected) < accuracy()


@pytest.mark.cuda
def test_each_tape_starts_from_clean_state_gradients(initial):
    rollout = build_rollout()
    states = rollout.states.requires_grad_()
    found = []
    for _ in range(2):
        loss = no_loss()
        with RolloutTape(loss=loss) as tape:
            rollout(initial)
            add_squares(states, loss)
        found.append(tape.gradients(rollout).parameters[FULL])
    assert torch.equal(found[0], found[1])


@pytest.mark.cuda
def test_what_kernels_of_a_tape_added_is_not_in_later_sweeps(initial):
    rollout, alone = build_rollout(), build_rollout()
    states, loss = rollout.states.requires_grad_(), no_loss()
    with RolloutTape(loss=loss):
        rollout(initial)
        add_squares(states, loss)
    for one in (rollout, alone):
        one.forward(initial)
    found, expected = (one.backward([FULL], COST).parameters[FULL] for one in (rollout, alone))
    assert torch.equal(found, expected)


def gradient_of_latent(cost, with_loss_kernel):
    """The gradient that a kernel before the rollout receives, through λ_0, for the numbers it started from."""
    rollout, loss, latent = build_rollout(), no_loss(), uniform(2, BATCH, 4).requires_grad_()
    start = torch.zeros(BATCH, 4, **tensor_options(), requires_grad=True)
    if with_loss_kernel:
        rollout.states.requires_grad_()
    with RolloutTape(loss=loss):
        sine(latent, start)
        rollout(start, cost)
        if with_loss_kernel:
            add_squares(rollout.states, loss)
    assert latent.grad is not None
    return latent.grad


@pytest.mark.cuda
@pytest.mark.parametrize("with_loss_kernel", [False, True], ids=["cost", "loss kernel"])
def test_a_kernel_before_the_rollout_receives_the_adjoint_of_the_initial_state(with_loss_kernel):
    rollout = build_rollout()
    rollout.forward(2.0 * uniform(2, BATCH, 4).sin())
    adjoint = rollout.backward([FULL], SQUARES).initial[FULL]
    found = gradient_of_latent(None if with_loss_kernel else SQUARES, with_loss_kernel)
    assert relative_error(found, adjoint * 2.0 * uniform(2, BATCH, 4).cos()) < accuracy()


@pytest.mark.float64
def test_a_kernel_before_the_rollout_gets_the_slope_of_the_loss():
    rollout, latent, eps = build_rollout(), uniform(2, BATCH, 4), 1e-6
    gradient = gradient_of_latent(COST, with_loss_kernel=False)
    for seed in range(3):
        direction = uniform(3 + seed, BATCH, 4)
        ahead, behind = (rollout.forward(2.0 * (latent + sign * eps * direction).sin(), COST).sum() for sign in (1, -1))
        assert relative_error((gradient * direction).sum(), (ahead - behind) / (2 * eps)) < 1e-7


class CountingSystem(System):
    """Another system, counting its launches."""

    def __init__(self, of):
        self.of, self.name, self.state_shape, self.control_shape = of, of.name, of.state_shape, of.control_shape
        self.steps = self.pull_backs = 0

    def prepare_step(self, state, control, next_state):
        launch = self.of.prepare_step(state, control, next_state)

        def counted():
            self.steps += 1
            launch()

        return counted

    def prepare_pull_back(self, state, control, next_adjoint, adjoint, cotangent):
        launch = self.of.prepare_pull_back(state, control, next_adjoint, adjoint, cotangent)

        def counted():
            self.pull_backs += 1
            launch()

        return counted


@pytest.mark.float64
@pytest.mark.parametrize("rules", [[FULL], [FULL, PHYSICS_ONLY], [FULL, PHYSICS_ONLY, ONE_STEP, ClipNorm()]], ids=len)
@pytest.mark.parametrize(("segment", "steps"), [(None, HORIZON), (5, HORIZON + 10)])
def test_any_number_of_rules_shares_one_forward_pass(initial, segment, steps, rules):
    system = CountingSystem(SYSTEM)
    rollout = Rollout(system, Linear((4,), (1,), **tensor_options()), HORIZON, BATCH, segment=segment)
    with RolloutTape(*rules) as tape:
        rollout(initial, COST)
        assert (system.steps, system.pull_backs) == (HORIZON, 0)
    # Segments of 5, 5 and 2 steps: the last is still there when the sweeps begin.
    assert (system.steps, system.pull_backs) == (steps, len(rules) * HORIZON)
    assert list(tape.gradients(rollout).parameters) == rules


@pytest.mark.float64
def test_an_exception_in_the_body_passes_and_replays_nothing(initial):
    system, loss, latent = CountingSystem(SYSTEM), no_loss(), uniform(2, BATCH, 4).requires_grad_()
    rollout = Rollout(system, Linear((4,), (1,), **tensor_options()), HORIZON, BATCH)
    tape = RolloutTape(loss=loss)

    def fail():
        with tape:
            sine(latent, initial.requires_grad_())
            rollout(initial, COST)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert system.pull_backs == 0
    assert not latent.grad.any()
    with pytest.raises(engine.AdjointError, match="that this tape recorded and replayed"):
        tape.gradients(rollout)

    # Neither rollout nor process is left with an open tape.
    with RolloutTape() as tape:
        rollout(initial.detach(), COST)
    assert system.pull_backs == HORIZON
    assert tape.gradients(rollout).parameters[FULL].any()


@pytest.mark.vulkan
def test_the_same_rollout_twice_is_refused(initial):
    rollout = build_rollout()
    with RolloutTape():
        rollout(initial, COST)
        with pytest.raises(engine.AdjointError, match="each rollout once in a tape"):
            rollout(initial, COST)


@pytest.mark.float64
def test_a_rollout_that_kernels_read_must_store_every_state(initial):
    rollout = build_rollout(segment=5)
    rollout.states.requires_grad_()
    with pytest.raises(engine.AdjointError, match="Expected every state in memory"), RolloutTape():
        rollout(initial)


@pytest.mark.float64
def test_a_rollout_of_another_tape_has_no_gradients_here(initial):
    rollout = build_rollout()
    with RolloutTape() as tape:
        rollout(initial, COST)
        with pytest.raises(engine.AdjointError, match="leave the tape first"):
            tape.gradients(rollout)
    with pytest.raises(engine.AdjointError, match="got another"):
        tape.gradients(build_rollout())


@pytest.mark.float64
@pytest.mark.parametrize(
    "loss", [torch.zeros(2).double().requires_grad_(), torch.zeros(1).double()], ids=["two elements", "no gradient"]
)
def test_a_loss_that_cannot_be_differentiated_is_refused(loss):
    with pytest.raises(engine.ShapeError, match="Expected a loss of one element with requires_grad=True"):
        RolloutTape(loss=loss)


@pytest.mark.float64
def test_rules_may_sweep_their_own_samples_in_a_tape():
    policy, initial = Linear((4,), (1,), members=2, **tensor_options()), swing_up_states(1, BATCH, 1)
    policy.theta.data.copy_(uniform(0, *policy.theta.shape))
    rollout = Rollout(SYSTEM, policy, HORIZON, BATCH)
    with RolloutTape(FULL, PHYSICS_ONLY, samples={PHYSICS_ONLY: slice(BATCH // 2, BATCH)}) as tape:
        rollout(initial, COST)
    found = tape.gradients(rollout).parameters
    expected = rollout.backward([FULL, PHYSICS_ONLY], COST).parameters
    assert torch.equal(found[FULL], expected[FULL])
    assert torch.equal(found[PHYSICS_ONLY][1], expected[PHYSICS_ONLY][1])
    assert not found[PHYSICS_ONLY][0].any()


@pytest.mark.float64
def test_outside_a_tape_a_rollout_only_runs(initial):
    rollout = build_rollout()
    rollout(initial)
    assert torch.equal(rollout.final_state, build_rollout()(initial).final_state)
    assert rollout.states.grad is None


@pytest.mark.float64
def test_a_tape_of_taichi_itself_is_refused(initial):
    with pytest.raises(engine.AdjointError, match="RolloutTape"), ti.ad.Tape(loss=no_loss()):
        build_rollout()(initial, COST)


@pytest.mark.vulkan
def test_vulkan_refuses_kernels_in_a_tape_with_a_sentence(initial):
    if engine.current().backend != "vulkan":
        pytest.skip("asks for --backend vulkan")
    rollout, loss = build_rollout(), no_loss()
    with RolloutTape(loss=loss):
        rollout(initial, COST)
        with pytest.raises(
            engine.AdjointError, match=r"only rollouts inside a RolloutTape on Vulkan, .* got kernel .*sine"
        ):
            sine(uniform(2, BATCH, 4).requires_grad_(), initial)


@pytest.mark.cuda
@pytest.mark.float64
@pytest.mark.parametrize("segment", [None, 7])
def test_a_users_forward_kernel_is_trained_with_the_slope_of_its_loss(segment):
    system = KernelSystem(damped_pendulum, (2,), (1,), constants=(0.05, 0.3))
    policy, initial = MLP((2,), (1,), (8,), **tensor_options()), uniform(1, BATCH, 2)
    given = uniform(0, *policy.theta.shape)
    policy.theta.data.copy_(given)
    rollout = Rollout(system, policy, 30, BATCH, segment=segment)
    with RolloutTape() as tape:
        rollout(initial, EFFORT)
    gradient = tape.gradients(rollout).parameters[FULL]

    def loss(parameters):
        policy.theta.data.copy_(parameters[0])
        return rollout.forward(initial, EFFORT).mean()

    for seed in range(3):
        direction = uniform(2 + seed, *given.shape)
        slope = reference.directional_difference(loss, [given], [direction])
        assert relative_error((gradient * direction).sum(), slope) < 1e-7
