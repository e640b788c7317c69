"""Steps in vector lanes: the sine's accuracy, steps beside those of the system, and which systems have them."""

import pytest
import taichi as ti
import torch
from conftest import tensor_options, uniform

import engine
from engine import CartPole, lanes
from engine.launch import prepare
from engine.systems import Hopper

SYSTEM = CartPole(2)


@ti.kernel
def _sines_of(x: ti.types.ndarray(ndim=1), sine: ti.types.ndarray(ndim=1), cosine: ti.types.ndarray(ndim=1)):
    for i in range(x.shape[0]):
        sine[i], cosine[i] = lanes.sin_cos(x[i])


def test_sines_are_good_to_the_last_place_of_1_and_keep_what_is_no_number():
    angles = [torch.linspace(-20, 20, 40001, **tensor_options()), 1e3 * uniform(1, 20000)]
    far = torch.tensor([1e12, -1e30, float("inf"), float("-inf"), float("nan")], **tensor_options())
    x = torch.cat([*angles, far])
    sine, cosine = torch.empty_like(x), torch.empty_like(x)
    prepare(_sines_of, x, sine, cosine)()
    assert sine[-5:-3].abs().max() <= 1
    assert cosine[-5:-3].abs().max() <= 1
    assert sine[-3:].isnan().all()
    assert cosine[-3:].isnan().all()
    epsilon = torch.finfo(x.dtype).eps
    for found, exact in ((sine, torch.sin), (cosine, torch.cos)):
        assert (found[:-5].double() - exact(x[:-5].double())).abs().max() <= epsilon


@pytest.mark.parametrize("shared", [False, True], ids=["serial", "shared"])
def test_a_step_is_the_system_s_to_rounding_whatever_the_number_of_samples(shared, monkeypatch):
    monkeypatch.setattr(lanes, "_LANE_WEIGHT", 1e9 if shared else 0.0)
    epsilon = torch.finfo(engine.current().dtype).eps
    for count in (lanes.LANES, 100):
        state, control = 2.0 * uniform(1, count, *SYSTEM.state_shape), 5.0 * uniform(2, count, 1)
        found, expected = torch.empty_like(state), torch.empty_like(state)
        step = lanes.prepare_in_lanes(SYSTEM, state, control, found)
        assert step is not None
        step()
        SYSTEM.prepare_step(state, control, expected)()
        assert (found - expected).abs().max() <= 4 * epsilon
    assert SYSTEM.sines is CartPole.sines


def test_few_samples_and_systems_without_sines_of_their_own_are_stepped_as_they_were():
    for system, count in ((SYSTEM, lanes.LANES - 1), (Hopper(), 64)):
        state, control = uniform(1, count, *system.state_shape), uniform(2, count, *system.control_shape)
        assert lanes.prepare_in_lanes(system, state, control, torch.empty_like(state)) is None
