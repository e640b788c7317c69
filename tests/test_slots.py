"""Slots: every one begins at the same alignment, and a step comes out the same to the bit in any of them."""

import pytest
import torch
from conftest import Products, tensor_options, uniform

from policies import MLP, Convolutional, Linear, ModulePolicy, Policy
from policies.slots import ALIGNMENT, aligned, aligned_slots, padded_width

SLOTS, ROWS = 7, 6
CHANNELS, POINTS = 3, 21


class LooksAtAddresses(Policy):
    """u = θ·Σx, keeping the addresses of the states that it was given."""

    def __init__(self, members):
        super().__init__((5,), (1,), 1, members, **tensor_options())
        self.addresses = []

    def forward(self, state):
        self.addresses.append(state.data_ptr())
        return self.theta.unsqueeze(1) * state.sum(2, keepdim=True)

    def initialise(self, member, generator):
        """Nothing is drawn."""


def build(kind, members, controls):
    options, shape = tensor_options(), (CHANNELS, POINTS)
    if kind == "module":
        flat, last = torch.nn.Linear(CHANNELS * POINTS, 33), torch.nn.Linear(33, controls)
        module = torch.nn.Sequential(torch.nn.Flatten(), flat, torch.nn.Tanh(), last).to(**options)
        policy = ModulePolicy(module, shape, (controls,))
    elif kind == "convolutional":
        policy = Convolutional(shape, (controls,), (5, 7), members=members, **options)
    elif kind == "linear":
        policy = Linear(shape, (controls,), members=members, **options)
    else:
        policy = MLP(shape, (controls,), (100, 32)[: int(kind[0])], members=members, **options)
    policy.theta.data.copy_(uniform(0, *policy.theta.shape, low=-0.5, high=0.5))
    return policy


def buffers(trace):
    if hasattr(trace, "augmented"):
        return [*trace.augmented, *(slope for slopes in trace.slopes for slope in slopes)]
    return [trace.windows, *trace.hidden, *trace.slopes]


@pytest.mark.float64
@pytest.mark.parametrize("element_size", [4, 8])
@pytest.mark.parametrize("rows", [1, 2, 3, 6, 8, 16, 40])
def test_padded_rows_fill_whole_alignments_and_no_more(rows, element_size):
    for width in range(1, 70):
        padded = padded_width(rows, width, element_size)
        fitting = (w for w in range(width, padded + 1) if rows * w * element_size % ALIGNMENT == 0)
        assert padded == next(fitting)


@pytest.mark.float64
def test_slots_flatten_into_views_and_cost_nothing_where_rows_fit():
    like = torch.zeros(1, dtype=torch.float32)
    assert aligned_slots(like, 2, SLOTS, 16, 101).is_contiguous()
    padded = aligned_slots(like, 2, SLOTS, 3, 101)
    assert padded.shape == (2, SLOTS, 3, 101)
    assert padded[:, 2:5].flatten(1, 2).data_ptr() == padded[:, 2].data_ptr()
    assert not padded.any()


@pytest.mark.float64
def test_only_what_is_misaligned_is_copied():
    tensor = torch.arange(40, dtype=torch.float32)
    assert aligned(tensor) is tensor
    moved = aligned(tensor[1:])
    assert moved.data_ptr() % ALIGNMENT == 0
    assert torch.equal(moved, tensor[1:])


@pytest.mark.parametrize("members", [1, 3])
@pytest.mark.parametrize("controls", [1, 2, 9])
@pytest.mark.parametrize("kind", ["0 hidden", "1 hidden", "2 hidden", "convolutional", "linear", "module"])
def test_a_step_is_the_same_to_the_bit_in_every_slot(kind, controls, members):
    if kind == "module" and members > 1:
        pytest.skip("a module has one member")
    policy, batch = build(kind, members, controls), members * ROWS
    trace = policy.trace(SLOTS, batch, (CHANNELS, POINTS), (controls,))
    # No alignment in sight: what the engine hands out may begin anywhere.
    states = uniform(1, batch, CHANNELS, POINTS).expand(SLOTS, -1, -1, -1).clone()
    cotangents = uniform(2, batch, controls).expand(SLOTS, -1, -1).clone()
    acted = torch.zeros_like(cotangents)
    jacobian = states.new_zeros(SLOTS, batch, controls, CHANNELS * POINTS)
    everyone = slice(0, batch)
    products = [Products() for _ in range(SLOTS)]
    for slot in range(SLOTS):
        act = trace.prepare_act(slot, states[slot], acted[slot])
        with products[slot]:
            act()
    for wanted in (jacobian, None):
        pulled = torch.zeros_like(states)
        for slot in range(SLOTS):
            at = slice(slot, slot + 1)
            with products[slot]:
                trace.linearise(slot, slot + 1, states[at], everyone, None if wanted is None else wanted[at])
                pulled[slot] = trace.pull_back_state(slot, states[slot], cotangents[slot], everyone)
        assert torch.equal(pulled, pulled[:1].expand_as(pulled))
    assert len(products[0].seen) >= 2
    assert all(each.seen == products[0].seen for each in products)
    assert torch.equal(acted, acted[:1].expand_as(acted))
    assert torch.equal(jacobian, jacobian[:1].expand_as(jacobian))
    assert jacobian.any()
    assert pulled.any()


@pytest.mark.parametrize("members", [1, 3])
@pytest.mark.parametrize("kind", ["1 hidden", "2 hidden", "convolutional"])
def test_every_slot_of_a_trace_begins_at_a_whole_alignment(kind, members):
    policy = build(kind, members, 1)
    for buffer in buffers(policy.trace(SLOTS, members * ROWS, (CHANNELS, POINTS), (1,))):
        starts = {buffer[p, slot].data_ptr() % ALIGNMENT for p in range(members) for slot in range(SLOTS)}
        assert starts == {0}


@pytest.mark.parametrize("members", [1, 3])
def test_policies_that_torch_differentiates_are_given_aligned_states(members):
    policy = LooksAtAddresses(members)
    batch = members * ROWS
    trace = policy.trace(SLOTS, batch, (5,), (1,))
    states, everyone = uniform(1, SLOTS, batch, 5), slice(0, batch)
    assert states[1].data_ptr() % ALIGNMENT != 0
    policy.addresses.clear()
    controls = states.new_zeros(SLOTS, batch, 1)
    for slot in range(SLOTS):
        trace.prepare_act(slot, states[slot], controls[slot])()
        trace.pull_back_state(slot, states[slot], controls[slot], everyone)
        trace.linearise(slot, SLOTS, states[slot:], everyone, states.new_zeros(SLOTS - slot, batch, 1, 5))
    assert len(policy.addresses) == 3 * SLOTS
    assert {address % ALIGNMENT for address in policy.addresses} == {0}
