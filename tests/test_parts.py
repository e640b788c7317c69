"""Observations, parameters, noise and ends of a rollout: gradients beside torch, segments, ensembles, bad input."""

from typing import Any

import pytest
import reference
import torch
from conftest import BySteps, relative_error, swing_up_states, tensor_options, uniform
from test_parameters import poles_step

import engine
from engine import FULL, ONE_STEP, PHYSICS_ONLY, POLICY_ONLY, CartPole, Rollout, SettingError, ShapeError
from engine.noise import CONTROL, STATE, Noise, NoiseSource
from engine.observation import Observation
from policies import MLP, PolicyError
from training.objectives import Objective

SYSTEM = CartPole(2)
MEMBERS, ROWS, HORIZON = 2, 4, 12
BATCH = MEMBERS * ROWS
RULES = {"R": FULL, "M": PHYSICS_ONLY, "S": ONE_STEP, "N": POLICY_ONLY}
NAMES = ("half_length", "goal", "pole_mass")
NOISE = Noise(state=0.02, control=0.3)
SEEDS = (3, 8)


def accuracy():
    return 1e-10 if engine.current().precision == "float64" else 2e-3


def sight(states, steps, parameters):
    """The angles and speeds, the time and the length of the poles, in no simple way."""
    time = (steps.to(states.dtype) / HORIZON).view(-1, 1, 1).expand(*states.shape[:2], 1)
    length = parameters["half_length"].unsqueeze(-1) if parameters else states[..., :1]
    return torch.cat([states[..., 2:4].sin(), states[..., 2:4].cos() * time, states[..., 1:2] * length, length], -1)


SIGHT = Observation(sight, (6,))


class Approach(Objective):
    """Bring the cart to a goal of the sample's own, at some expense."""

    def __init__(self, goal: Any = 0.0):
        self.goal = goal

    def given(self, parameters):
        return Approach(parameters.get("goal", self.goal))

    def running(self, states, controls, steps):
        return 0.1 * (states[..., 0] - self.goal).square() + 1e-3 * (1 + steps.view(-1, 1)) * controls[..., 0].square()

    def final(self, state):
        return (state[..., 0] - self.goal).square() + 1 - state[..., 2:4].cos().mean(-1)


def beyond(states):
    return states[:, 0].abs() > 0.2


def start():
    """Poles hanging, the cart near the middle and on its way to an end."""
    states = swing_up_states(1, BATCH, 2)
    states[:, 0] *= 0.2
    states[:, 1] *= 8.0
    return states


def policy(seen):
    made = MLP((seen,), (1,), hidden=(7, 7), members=MEMBERS, **tensor_options())
    for member in range(MEMBERS):
        made.initialise(member, torch.Generator().manual_seed(member))
    made.theta.data += 0.1 * uniform(5, *made.theta.shape)
    made.theta.data *= 3.0
    return made


def rows(seed=11):
    length, mass = uniform(seed, BATCH, low=0.4, high=0.6), uniform(seed + 2, BATCH, low=0.08, high=0.12)
    return torch.stack([length, uniform(seed + 1, BATCH), mass], 1)


def draws(kind, scale, shape):
    source = NoiseSource(kind, scale, HORIZON, BATCH, MEMBERS, shape)
    source.seed(SEEDS, 4)
    source.fill(0)
    return source.values.double()


def oracle(made, initial, values, observe, noisy, end, variant):
    """(∂mean loss of each member/∂θ, ∂Σloss/∂x_0, ∂Σloss/∂p, losses) by torch, cut where the variant says."""
    physics_open, policy_open = reference.PATHS[variant]
    noise = [draws(kind, scale, shape) if noisy else torch.zeros(HORIZON, BATCH, *shape).double()
             for kind, scale, shape in ((STATE, NOISE.state, (6,)), (CONTROL, NOISE.control, (1,)))]  # fmt: skip
    theta = made.theta.detach().double().requires_grad_()
    first, given = initial.double().requires_grad_(), values.double().requires_grad_()
    usual = torch.tensor([list(SYSTEM.parameters.values())] * BATCH, dtype=torch.float64)
    physical = torch.cat([usual[:, :2], given[:, 2:], given[:, :1], usual[:, 4:]], 1)
    cost = Approach(given[:, 1])
    state, loss, alive = first, torch.zeros(BATCH).double(), torch.ones(BATCH, dtype=torch.bool)
    for t in range(HORIZON):
        seen, known = (state, given) if policy_open else (state.detach(), given.detach())
        if observe:
            seen = sight(seen[None], torch.tensor([t]), {"half_length": known[None, :, 0]})[0]
        layers = [layer.unbind(0) for layer in made.layers(theta)]
        own = zip(*layers, seen.view(MEMBERS, ROWS, -1), strict=True)
        acts = [reference.mlp([w[:-1] for w in weights], [w[-1] for w in weights], s) for *weights, s in own]
        control = torch.cat(acts) + noise[1][t]
        loss = loss + torch.where(alive, cost.running(state[None], control[None], torch.tensor([t]))[0], 0.0)
        after = poles_step(state if physics_open else state.detach(), control, physical) + noise[0][t]
        state = torch.where(alive.unsqueeze(1), after, state)
        alive = alive & ~(beyond(state) if end else torch.zeros_like(alive))
    loss = loss + cost.final(state)
    return *torch.autograd.grad(loss.sum() / ROWS, (theta, first, given)), loss


CASES = {
    "observation": {"observe": True, "noisy": False, "end": False},
    "noise": {"observe": False, "noisy": True, "end": False},
    "ends": {"observe": False, "noisy": False, "end": True},
    "all": {"observe": True, "noisy": True, "end": True},
}


def build(observe, noisy, end, **options):
    made = policy(6)
    rollout = Rollout(
        SYSTEM, made, HORIZON, BATCH, observation=SIGHT if observe else None, parameters=NAMES,
        noise=NOISE if noisy else None, end=beyond if end else None, **options,
    )  # fmt: skip
    if noisy:
        rollout.seed_noise(SEEDS, draw=4)
    return made, rollout


def swept(rollout, rules, samples=None):
    rollout(start(), parameters=rows())
    return rollout.backward(rules, Approach(), samples)


@pytest.mark.parametrize("case", CASES)
def test_gradients_to_weights_start_and_parameters_equal_torch_s(case):
    made, rollout = build(**CASES[case])
    by_steps = {name: BySteps(rule) for name, rule in RULES.items()}
    found = swept(rollout, [*RULES.values(), *by_steps.values()])
    if CASES[case]["end"]:
        at = rollout.parts.ends.at
        assert 2 <= int((at < HORIZON).sum()) < BATCH
        assert len(at.unique()) > 2
    for name, rule in RULES.items():
        theta, initial, given, losses = oracle(made, start(), rows(), variant=name, **CASES[case])
        assert relative_error(found.losses, losses) < accuracy()
        for swept_by in (rule, by_steps[name]):
            assert relative_error(found.parameters[swept_by], theta) < accuracy()
            assert relative_error(found.initial[swept_by], ROWS * initial) < accuracy()
            if swept_by is rule or name == "R":
                assert relative_error(found.physical[swept_by], ROWS * given) < accuracy()


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("segment", [1, 5])
def test_segments_change_no_bit(case, segment):
    _, whole = build(**CASES[case])
    _, cut = build(**CASES[case], segment=segment)
    expected, found = swept(whole, list(RULES.values())), swept(cut, list(RULES.values()))
    assert torch.equal(whole.controls, cut.controls)
    for rule in RULES.values():
        assert torch.equal(found.initial[rule], expected.initial[rule])
        rounding = 10 * HORIZON * torch.finfo(whole.states.dtype).eps
        assert relative_error(found.parameters[rule], expected.parameters[rule]) < rounding
        assert relative_error(found.physical[rule], expected.physical[rule]) < rounding


def test_evaluation_alone_gives_the_same_losses():
    made, rollout = build(**CASES["all"])
    other = engine.Trajectory(
        SYSTEM, made, HORIZON, BATCH, forward_only=True, observation=SIGHT, parameters=NAMES, noise=NOISE, end=beyond
    )
    other.seed_noise(SEEDS, draw=4)
    initial = start()
    expected = rollout.forward(initial, Approach(), rows())
    torch.testing.assert_close(other.forward(initial, Approach(), rows()), expected)


def test_members_that_need_no_sweep_are_left_out():
    _, rollout = build(**CASES["all"])
    both = swept(rollout, [FULL])
    one = swept(rollout, [FULL], {FULL: slice(ROWS, BATCH)})
    rounding = 10 * HORIZON * torch.finfo(both.losses.dtype).eps
    assert relative_error(one.physical[FULL][ROWS:], both.physical[FULL][ROWS:]) < rounding
    assert relative_error(one.parameters[FULL][1], both.parameters[FULL][1]) < rounding


@pytest.mark.float64
def test_the_gradient_with_ends_is_that_of_shorter_rollouts():
    made, rollout = build(**CASES["ends"])
    found = swept(rollout, [FULL])
    total, initial = torch.zeros_like(made.theta), start()
    for at in rollout.parts.ends.at.unique().tolist():
        short = Rollout(SYSTEM, made, at, BATCH, parameters=NAMES)
        short(initial, parameters=rows())
        ended = rollout.parts.ends.at == at

        class Own(Approach):
            def given(self, parameters, ended=ended):
                cost: Any = super().given(parameters)
                own: Any = Approach()
                own.running = lambda *of: torch.where(ended, cost.running(*of), 0.0)
                own.final = lambda state: torch.where(ended, cost.final(state), 0.0)
                return own

        result = short.backward([FULL], Own())
        total += result.parameters[FULL]
        assert relative_error(found.initial[FULL][ended], result.initial[FULL][ended]) < 1e-12
    assert relative_error(found.parameters[FULL], total) < 1e-12


@pytest.mark.float64
def test_no_policy_is_pulled_back_for_an_observation_that_parameters_do_not_change(monkeypatch):
    blind = Observation(lambda states, steps, parameters: 1.0 * states, (6,))
    rollout = Rollout(SYSTEM, policy(6), HORIZON, BATCH, observation=blind, parameters=NAMES)
    plain = Rollout(SYSTEM, policy(6), HORIZON, BATCH, parameters=NAMES)
    trace: Any = rollout.trace
    monkeypatch.setattr(trace.of_controller, "pull_back_state", None)
    found, expected = swept(rollout, [FULL]), swept(plain, [FULL])
    assert relative_error(found.physical[FULL], expected.physical[FULL]) < 1e-12


@pytest.mark.float64
def test_weights_of_paths_hold_for_what_reaches_parameters_sample_by_sample():
    rule = engine.PathRule(1.0, 0.5)
    _, rollout = build(**CASES["observation"])
    found = swept(rollout, [rule, engine.PerSample(rule)])
    assert relative_error(found.physical[engine.PerSample(rule)], found.physical[rule]) < 1e-12
    assert relative_error(found.parameters[engine.PerSample(rule)].mean(1), found.parameters[rule]) < 1e-12


class Spoilt(engine.System):
    """A system whose Jacobian is not finite where samples end."""

    def __init__(self, of, alone):
        self.alone = alone
        self.of, self.name, self.state_shape, self.control_shape = of, "spoilt", of.state_shape, of.control_shape
        self.constants, self.positive_parameters = of.constants, of.positive_parameters

    def prepare_step(self, *arrays, **parameters):
        return self.of.prepare_step(*arrays, **parameters)

    def prepare_pull_back(
        self, state, control, next_adjoint, adjoint, cotangent, parameters=None, parameter_adjoint: Any = None
    ):
        launch = self.of.prepare_pull_back(
            state, control, next_adjoint, adjoint, cotangent, parameters, parameter_adjoint
        )

        def spoilt():
            launch()
            for values in (parameter_adjoint,) if self.alone else (adjoint, cotangent, parameter_adjoint):
                values[beyond(state)] = torch.nan

        return spoilt


@pytest.mark.float64
@pytest.mark.parametrize("segment", [None, 5])
@pytest.mark.parametrize("alone", [False, True], ids=["all", "of parameters"])
def test_the_jacobian_where_a_sample_has_ended_does_not_matter(segment, alone):
    made, rollout = build(**CASES["ends"])
    expected = swept(rollout, list(RULES.values()))
    other = Rollout(Spoilt(SYSTEM, alone), made, HORIZON, BATCH, parameters=NAMES, end=beyond, segment=segment)
    found = swept(other, list(RULES.values()))
    for rule in RULES.values():
        for kind in ("parameters", "initial", "physical"):
            assert relative_error(getattr(found, kind)[rule], getattr(expected, kind)[rule]) < 1e-12


def wrong_end(states):
    return states[:, 0]


@pytest.mark.parametrize(
    ("run", "error", "message"),
    [
        (
            lambda: Rollout(SYSTEM, policy(5), 2, BATCH, observation=Observation(sight, (5,))).forward(start()),
            ShapeError,
            r"observations as .* of shape \[1, 8, 5\] on .*, got shape \[1, 8, 6\]",
        ),
        (
            lambda: Rollout(SYSTEM, policy(6), 2, BATCH, observation=sight),  # type: ignore[arg-type]
            SettingError,
            r"an Observation\(function, shape\) or None, got .*",
        ),
        (
            lambda: build(**CASES["all"])[1].forward(start()),
            SettingError,
            "values of half_length, goal, pole_mass for each sample, got none",
        ),
        (
            lambda: build(**CASES["all"])[1].forward(start(), parameters=0 * rows()),
            SettingError,
            "half_length above 0, got 0 at sample 0",
        ),
        (
            lambda: Rollout(SYSTEM, policy(6), 2, BATCH).forward(start(), parameters=rows()),
            SettingError,
            "no parameters for a rollout built without names of them, got some",
        ),
        (
            lambda: Rollout(SYSTEM, policy(6), 2, BATCH, noise=NOISE).forward(start()),
            SettingError,
            r"a seed for the noise of a rollout, got none; call its seed_noise\(seed\) first",
        ),
        (
            lambda: Rollout(SYSTEM, policy(6), 2, BATCH, end=beyond).forward(2 + start()),
            SettingError,
            "initial states that have not ended, got one at sample 0 that has; start elsewhere, or mend the end",
        ),
        (
            lambda: Rollout(SYSTEM, policy(6), 2, BATCH, end=wrong_end).forward(start()),
            ShapeError,
            r"an end as booleans \[8\], one for each sample, got torch.float.. of shape \[8\]",
        ),
    ],
)
def test_parts_that_make_no_sense_are_refused(run, error, message):
    with pytest.raises(error, match=rf"^Expected {message}\.$"):
        run()


def test_an_observation_that_does_not_fit_the_policy_is_refused():
    with pytest.raises(PolicyError, match=r"^Expected a policy for states of shape \[6\], got one for \[5\]\.$"):
        Rollout(SYSTEM, policy(5), 2, BATCH, observation=SIGHT)


@pytest.mark.float64
def test_an_observation_is_pulled_back_step_by_step_where_all_of_k_is_too_much(monkeypatch):
    _, rollout = build(**CASES["all"])
    expected = swept(rollout, list(RULES.values()))
    monkeypatch.setattr("engine.trajectory._JACOBIAN_CONTROLS", 0)
    _, other = build(**CASES["all"])
    assert rollout.holds_jacobian
    assert not other.holds_jacobian
    found = swept(other, list(RULES.values()))
    for rule in RULES.values():
        for kind in ("parameters", "initial", "physical"):
            assert relative_error(getattr(found, kind)[rule], getattr(expected, kind)[rule]) < 1e-12
