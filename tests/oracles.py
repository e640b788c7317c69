"""Systems beside oracles, other ways to write their steps in torch: a table of cases, and the tests they all pass."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from conftest import relative_error, tensor_options, uniform
from contract import RULES, check_buffers, check_oracle, check_sweep, simulated, sweep_buffers

import engine
from engine import FULL, Rollout

Bound = tuple[float, float]
"""What relative errors are below, in float64 and in float32."""
ROUNDING: Bound = 1e-13, 1e-5
"""What sums of a few dozen rounded terms keep."""


def within(bound: Bound) -> float:
    """The bound in the running precision."""
    return bound[engine.current().precision == "float32"]


def accuracy() -> float:
    return within(ROUNDING)


@dataclass(frozen=True)
class Case:
    """A system and where to compare it with its oracle.

    Attributes:
        system: one object for all tests of a file, since Taichi compiles the kernels of each anew.
        step: the oracle, (state, control) -> next state, in float64 on the CPU.
        batch: samples; states and adjoints are uniform in [-reach, reach], controls in [-push, push].
        place: moves such states to where the system is smooth.
        bound: of the step; of_pull_back, of_sweep: of those, where it is another.
    """

    system: Any
    step: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
    batch: int = 5
    reach: float = 1.0
    push: float = 1.0
    place: Callable[[Any, torch.Tensor], torch.Tensor] = lambda system, states: states
    bound: Bound = ROUNDING
    of_pull_back: Bound | None = None
    of_sweep: Bound | None = None

    def points(self) -> tuple[Any, torch.Tensor, torch.Tensor, torch.Tensor]:
        """The system, and a batch of states, controls and adjoints."""
        states, adjoints = (
            uniform(seed, self.batch, *self.system.state_shape, low=-self.reach, high=self.reach) for seed in (0, 1)
        )
        controls = uniform(2, self.batch, *self.system.control_shape, low=-self.push, high=self.push)
        return self.system, self.place(self.system, states), controls, adjoints

    def check(self, state: torch.Tensor, control: torch.Tensor, next_adjoint: torch.Tensor) -> None:
        """Step and pull-back equal the oracle's at these points."""
        bounds = within(self.bound), within(self.of_pull_back or self.bound)
        check_oracle(self.system, self.step, state, control, next_adjoint, *bounds)


class OracleTests:
    """The tests of a table of cases, which a file collects by deriving a class `TestOracle`, the classes below too."""

    cases: Mapping[Any, Case] = {}
    """By name."""

    def pytest_generate_tests(self, metafunc):
        for argument, names in (("name", "cases"), ("small", "small"), ("large", "large"), ("swept", "swept")):
            if argument in metafunc.fixturenames:
                metafunc.parametrize(argument, [pytest.param(name, id=str(name)) for name in getattr(self, names)])

    @pytest.mark.cuda
    @pytest.mark.vulkan
    def test_step_and_pull_back_equal_the_oracle(self, name):
        _, *points = self.cases[name].points()
        self.cases[name].check(*points)

    @pytest.mark.cuda
    @pytest.mark.vulkan
    def test_pull_back_leaves_next_adjoint_alone_writes_adjoint_and_adds_to_cotangent(self, name):
        check_buffers(*self.cases[name].points())


class JacobianTests(OracleTests):
    """Of the cases `small`: their Jacobians equal differences entry by entry, to `departure`."""

    small: Sequence = ()
    departure = 1e-8

    @pytest.mark.float64
    def test_pull_back_equals_central_differences_in_every_entry_of_A_and_B(self, small):
        system, state, control, _ = self.cases[small].points()
        check_jacobians(system, state, control, self.departure)


class DirectionTests(OracleTests):
    """Of the cases `large`: their pull-backs equal differences along random directions."""

    large: Sequence = ()

    @pytest.mark.float64
    def test_pull_back_of_many_equals_central_differences_along_random_directions(self, large):
        system, state, control, next_adjoint = self.cases[large].points()
        to_state, to_control = system.pull_back(state, control, next_adjoint)
        for seed in range(3):
            shift, push, eps = uniform(10 + seed, *state.shape), uniform(20 + seed, *control.shape), 1e-6
            ahead, behind = (system.step(state + sign * shift, control + sign * push) for sign in (eps, -eps))
            slope = ((ahead - behind) / (2 * eps) * next_adjoint).sum()
            assert relative_error((to_state * shift).sum() + (to_control * push).sum(), slope) < 1e-7


class SweepTests(OracleTests):
    """Of the cases `swept`: they sweep in one launch, to the same as step by step."""

    swept: Sequence = ()

    @pytest.mark.cuda
    @pytest.mark.vulkan
    @pytest.mark.parametrize("samples", [slice(None), slice(1, 3)], ids=["all", "some"])
    @pytest.mark.parametrize("rule", RULES, ids=lambda rule: f"{rule.physics_weight:g},{rule.policy_weight:g}")
    def test_fused_sweep_equals_the_rule_applied_step_by_step(self, swept, rule, samples):
        case = self.cases[swept]
        system, state, control, _ = case.points()
        controls = control.expand(4, *control.shape).contiguous()
        buffers = sweep_buffers(system, simulated(system, state, controls), controls)
        assert check_sweep(system, buffers, samples, rule, within(case.of_sweep or case.bound))


def check_jacobians(system, state, control, departure, eps=1e-5):
    """`system.pull_back` equals central differences of `system.step` in every entry of A and B, in float64.

    Truncation is eps² times a third derivative, rounding of order 1e-16/eps.
    """
    n, m = state[0].numel(), control[0].numel()
    pulled = [
        system.pull_back(state, control, unit.view(system.state_shape).expand_as(state).contiguous())
        for unit in torch.eye(n, **tensor_options())
    ]
    rows = [torch.cat([physics.flatten(1), pushed.flatten(1)], dim=1) for physics, pushed in pulled]
    columns = []
    for unit in eps * torch.eye(n + m, **tensor_options()):
        shift, push = unit[:n].view(system.state_shape), unit[n:].view(system.control_shape)
        ahead, behind = (system.step(state + sign * shift, control + sign * push) for sign in (1, -1))
        columns.append((ahead - behind).flatten(1) / (2 * eps))
    torch.testing.assert_close(torch.stack(rows, 1), torch.stack(columns, 2), rtol=departure, atol=departure)


def simulate(system, state, steps, control=None):
    """All states [steps + 1, B, ...] under one constant control, 0 by default."""
    control = torch.zeros(len(state), *system.control_shape, **tensor_options()) if control is None else control
    return simulated(system, state, control.expand(steps, *control.shape))


def gradient_of_rollout(task, policy, step, start):
    """∂/∂θ of the mean loss of the task under a policy in float64 on the CPU, by torch through the oracle's steps."""
    state, loss = start.cpu().double(), 0.0
    for t in range(task.horizon):
        control = policy(state.unsqueeze(0))[0]
        loss = loss + task.objective.running(state.unsqueeze(0), control.unsqueeze(0), torch.tensor([t]))[0]
        state = step(state, control)
    return torch.autograd.grad((loss + task.objective.final(state)).mean(), policy.theta)[0]


def losses_of_training(task, batch, updates, learning_rate):
    """Mean losses on one batch before each of some updates by Adam, from the task's own first policy."""
    policy = task.policy(1, **tensor_options())
    policy.initialise(0, torch.Generator().manual_seed(0))
    optimiser = torch.optim.Adam([policy.theta], lr=learning_rate)
    rollout = Rollout(task.system, policy, task.horizon, batch)
    start, losses = task.initial_states(batch, 0, "train", torch.float64).to(policy.device), []
    for _ in range(updates):
        rollout.forward(start)
        gradients = rollout.backward([FULL], task.objective)
        policy.theta.grad = gradients.parameters[FULL]
        optimiser.step()
        losses.append(gradients.losses.mean().item())
    return losses
