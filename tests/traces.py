"""The trace of a policy beside torch autograd through the policy itself."""

import math

import torch
from conftest import tensor_options, uniform


def only(tensor, *index):
    """`tensor` with zeros everywhere but at `index`."""
    result = torch.zeros_like(tensor)
    result[index] = tensor[index]
    return result


def traced(policy, states, controls):
    """A trace that has acted on `states` [S, B, ...], which writes `controls`."""
    slots, batch = states.shape[:2]
    trace = policy.trace(slots, batch, policy.state_shape, policy.control_shape)
    for slot in range(slots):
        trace.prepare_act(slot, states[slot], controls[slot])()
    return trace


def check_trace(policy, slots, rows, first, last, members):
    """Controls, K, Kᵀμ and Πᵀμ of the slots [first, last) and a slice of members, with K asked for and not.

    `rows` are the samples of each member.
    """
    batch, chosen, samples = policy.members * rows, slice(first, last), slice(members.start * rows, members.stop * rows)
    states = uniform(1, slots, batch, *policy.state_shape)
    cotangents = uniform(2, slots, batch, *policy.control_shape)
    leaf, given = states.clone().requires_grad_(), torch.zeros_like(cotangents)
    expected = torch.stack([policy(x.unflatten(0, (policy.members, rows))).flatten(0, 1) for x in leaf])
    n, m = math.prod(policy.state_shape), math.prod(policy.control_shape)

    def pulled_back(weights, target):
        return torch.autograd.grad(expected, target, weights, retain_graph=True)[0]

    trace = traced(policy, states, given)
    torch.testing.assert_close(given, expected.detach())
    jacobian = torch.full((slots, batch, m, n), math.nan, **tensor_options())
    for wanted in (None, jacobian[chosen]):
        trace.linearise(first, last, states[chosen], samples, wanted)
        for slot in range(first, last):
            found = trace.pull_back_state(slot, states[slot, samples], cotangents[slot, samples], samples)
            torch.testing.assert_close(found, pulled_back(only(cotangents, slot), leaf)[slot, samples])
        # One more pull-back adds to what is there.
        gradient = torch.ones_like(policy.theta)
        trace.pull_back_parameters(first, last, states[chosen], cotangents[chosen], samples, gradient)
        torch.testing.assert_close(gradient, 1 + pulled_back(only(cotangents, chosen, samples), policy.theta))
    for c in range(m):
        unit = only(torch.ones_like(cotangents).flatten(2), ..., c).view_as(cotangents)
        row = pulled_back(unit, leaf).flatten(2)
        torch.testing.assert_close(jacobian[chosen, samples, c], row[chosen, samples])
