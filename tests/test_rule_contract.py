"""The contract of a rule, for every rule that is registered: a newcomer is tested by being listed."""

import pytest
import torch
from conftest import BySteps, StepCost, relative_error, tensor_options, uniform

import engine
from engine import AdjointRule, LinearSystem, Rollout
from engine.draws import keys_of
from engine.rules import Place, placed
from policies import Linear
from training import GRADIENTS, Backpropagation, gradient_named

T = 6
"""The step at which rules are called: a multiple of 2, not of 4."""
HORIZON, ROWS, MEMBERS = 7, 3, 2
ARGUMENTS = {AdjointRule: "R", float: "0.5", int: "2"}
"""What stands for a parameter of each kind."""
NESTED = ["paths(0.5, -2)", "decay(M, 0.9)", "truncate(N, 4)", "clip-norm(decay(truncate(R, 4), 0.8), 0.5)"]


def rule_named(text):
    """The rule of a gradient of one sweep, or None of others."""
    estimator = gradient_named(text).estimator
    return estimator.rule if isinstance(estimator, Backpropagation) else None


def registered():
    """Texts of a rule of every constructor that makes one."""
    for entry in GRADIENTS.values():
        if all(parameter.kind in ARGUMENTS for parameter in entry.parameters):
            arguments = ", ".join(ARGUMENTS[parameter.kind] for parameter in entry.parameters)
            text = f"{entry.name}({arguments})" if arguments else entry.name
            if rule_named(text) is not None:
                yield text


@pytest.fixture(scope="module", params=[*registered(), *NESTED])
def rule(request):
    return rule_named(request.param)


@pytest.fixture(scope="module")
def acting(rule):
    """The rule that acts where a step takes 0.1 and all samples have one key."""
    return placed(rule, Place(0.1, lambda: torch.arange(1)))


def used(rule, terms):
    """The terms as a sweep hands them over: None for those that the rule says it does not use."""
    direct, physics, policy = terms
    return direct, physics if rule.uses_physics else None, policy if rule.uses_policy else None


def test_rules_of_every_registered_constructor_are_here():
    assert {text.partition("(")[0] for text in registered()} >= {"R", "M", "S", "N", "paths", "clip-norm", "truncate"}


def test_a_rule_is_an_adjoint_rule_and_can_be_a_key(rule):
    assert isinstance(rule, engine.AdjointRule)
    assert {rule: 1}[rule] == 1


def test_a_rule_returns_a_new_tensor_and_leaves_its_inputs_alone(acting, terms):
    given = [term.clone() for term in terms]
    adjoint = acting(*used(acting, terms), t=T)
    assert (adjoint.shape, adjoint.dtype) == (terms[0].shape, terms[0].dtype)
    assert adjoint.isfinite().all()
    adjoint.add_(1.0)
    for term, before in zip(terms, given, strict=True):
        assert torch.equal(term, before)


def test_a_rule_ignores_what_it_says_it_does_not_use(acting, terms):
    assert torch.equal(acting(*terms, t=T), acting(*used(acting, terms), t=T))


def test_a_rule_acts_on_each_sample_by_itself(acting, terms):
    together = acting(*terms, t=T)
    order = torch.tensor([3, 0, 6, 1, 5, 2, 4])
    assert torch.equal(acting(*(term[order] for term in terms), t=T), together[order])
    for sample in range(len(together)):
        alone = acting(*(term[sample : sample + 1] for term in terms), t=T)
        torch.testing.assert_close(alone[0], together[sample])


@pytest.fixture(scope="module")
def case():
    """A linear system, a policy of two members, initial states and a cost of states and controls."""
    A = torch.eye(3, dtype=torch.float64) + 0.4 * uniform(0, 3, 3).cpu().double()
    system = LinearSystem(A, uniform(1, 3, 2).cpu().double())
    vars(system)["dt"] = 0.1
    policy = Linear((3,), (2,), members=MEMBERS, **tensor_options())
    for member in range(MEMBERS):
        policy.initialise(member, torch.Generator().manual_seed(member))
    cost = StepCost(lambda x, u, t: (x**2).sum(-1) + (u**3).sum(-1), lambda x: (x - 1.0).square().sum(-1))
    return system, policy, uniform(2, MEMBERS * ROWS, 3), cost


def swept(case, rule, segment=None):
    system, policy, initial, cost = case
    rollout = Rollout(system, policy, HORIZON, MEMBERS * ROWS, segment=segment)
    rollout.forward(initial, cost)
    found = rollout.backward([rule], cost)
    return found.initial[rule], found.parameters[rule]


def by_hand(case, rule):
    """λ_0 and the parameters' gradient by dense matrices of the system and torch's derivatives of cost and policy."""
    system, policy, initial, cost = case
    rule = placed(rule, Place(0.1, lambda: keys_of(initial, 1)))
    A, B = (torch.tensor(matrix, **tensor_options()) for matrix in (system.A, system.B))
    K = policy.theta.detach()[:, :6].unflatten(1, (3, 2)).transpose(1, 2).repeat_interleave(ROWS, 0)
    states, controls = [initial], []
    for _ in range(HORIZON):
        grouped = states[-1].unflatten(0, (MEMBERS, ROWS))
        controls.append(policy(grouped).detach().flatten(0, 1))
        states.append(states[-1] @ A.T + controls[-1] @ B.T)

    def derivative(value, *at):
        return torch.autograd.grad(value(*at).sum(), at)

    leaves = [[value.clone().requires_grad_() for value in values] for values in (states, controls)]
    (adjoint,) = derivative(cost.final, leaves[0][-1])
    gradient = torch.zeros_like(policy.theta, requires_grad=False)
    for t in reversed(range(HORIZON)):
        times = torch.tensor([t], device=initial.device)
        direct, cotangent = derivative(
            lambda x, u, times=times: cost.running(x.unsqueeze(0), u.unsqueeze(0), times), leaves[0][t], leaves[1][t]
        )
        cotangent = cotangent + adjoint @ B
        policy_term = torch.einsum("bm,bmn->bn", cotangent, K)
        adjoint = rule(direct, adjoint @ A if rule.uses_physics else None, policy_term if rule.uses_policy else None, t)
        weights = cotangent.unflatten(0, (MEMBERS, ROWS))
        controlled = policy(states[t].unflatten(0, (MEMBERS, ROWS)))
        gradient += torch.autograd.grad(controlled, policy.theta, weights)[0]
    return adjoint, gradient / ROWS


@pytest.mark.cuda
@pytest.mark.vulkan
@pytest.mark.parametrize("given", [lambda rule: rule, BySteps], ids=["as it is", "called between the steps"])
def test_a_sweep_equals_the_recursion_written_out(case, rule, given):
    accuracy = 1e-12 if engine.current().precision == "float64" else 1e-4
    for found, wanted in zip(swept(case, given(rule)), by_hand(case, rule), strict=True):
        assert relative_error(found, wanted) < accuracy


@pytest.mark.cuda
@pytest.mark.vulkan
def test_segments_change_no_bit_of_an_adjoint(case, rule):
    whole, gradient = swept(case, rule)
    for segment in (1, 3, 5):
        found, parameters = swept(case, rule, segment)
        assert torch.equal(found, whole)
        torch.testing.assert_close(parameters, gradient)
