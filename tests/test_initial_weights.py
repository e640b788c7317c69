"""Initial weights of the paper's policies: Glorot's limits, layer by layer, as the released scripts have them."""

import math
from typing import Any

import pytest
import torch

from policies import Convolutional
from training import build_task

pytestmark = pytest.mark.float64

# Fans in and out of each layer; (0, 0) for a layer that starts at zero.
PAPER = {
    ("cart-pole", "poles", 1): [(4, 100), (100, 100), (0, 0)],
    ("cart-pole", "poles", 4): [(10, 100), (100, 100), (0, 0)],
    ("guidance", "regularisation", 0.1): [(24, 100), (100, 100), (0, 0)],
    ("quantum", "target", 5): [(6, 360), (180, 180), (420, 1)],
}


def check(policy, fans, members=40):
    """Weights of many members, each layer uniform within its limit, and no biases."""
    for member in range(members):
        policy.initialise(member, torch.Generator().manual_seed(member))
    for layer, (into, out) in zip(policy.layers(policy.theta.detach()), fans, strict=True):
        weights, limit = layer[:, :-1], math.sqrt(6 / (into + out)) if into else 0.0
        assert not layer[:, -1].any()
        if limit == 0.0:
            assert not weights.any()
            continue
        assert 0.99 * limit < weights.abs().max() <= limit
        # The mean of n uniform numbers has standard deviation limit/√(3n); that of their squares is limit²·√(4/45n).
        count = weights.numel()
        assert abs(weights.mean()) < 4 * limit / math.sqrt(3 * count)
        assert abs(weights.square().mean() - limit**2 / 3) < 4 * limit**2 * math.sqrt(4 / 45 / count)


@pytest.mark.parametrize("case", PAPER, ids=str)
def test_every_layer_of_the_papers_policies_has_its_limit(case):
    name, option, value = case
    policy = build_task(name, **{option: value}).policy(members=40, dtype=torch.float64, device=torch.device("cpu"))
    check(policy, PAPER[case])


def test_the_first_convolution_of_quantum_control_has_limit_0_1280():
    policy: Any = build_task("quantum").policy(members=40, dtype=torch.float64, device=torch.device("cpu"))
    for member in range(40):
        policy.initialise(member, torch.Generator().manual_seed(member))
    first, second, last = (layer[:, :-1].abs().max() for layer in policy.layers(policy.theta.detach()))
    assert float(first) == pytest.approx(0.1280, abs=1e-4)
    assert float(second) == pytest.approx(0.1291, abs=1e-4)
    assert float(last) == pytest.approx(0.1194, abs=1e-4)


@pytest.mark.parametrize(
    ("shape", "filters", "width", "fans"),
    [
        ((3, 40), (7, 11), 5, [(15, 15 * 7), (35, 55), (11 * 7, 2)]),
        ((1, 20), (4,), 3, [(3, 12), (4 * 9, 2)]),
    ],
)
def test_a_state_is_one_image_whose_rows_the_first_window_covers(shape, filters, width, fans):
    policy = Convolutional(shape, (2,), filters, width, members=40, dtype=torch.float64)
    check(policy, fans)
