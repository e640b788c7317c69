"""Kernels compiled once for equal objects: shared where, and only where, everything that kernels read is equal."""

import pytest
import taichi as ti
import torch
from conftest import tensor_options, uniform

import engine
from engine import BallWall, CartPendulum, CartPole, Guidance, Hopper, LinearSystem, NBody, QuantumBox, Swarm
from engine.launch import prepare
from engine.sharing import compiled_for
from engine.systems import Fluid, Integrator

pytestmark = pytest.mark.float64

TANK = {"particles": 30, "jets": 1, "size": (1.2, 1.3), "spacing": 0.1, "dt": 1e-3}
# Of each system its options, and other values of those that its kernels have in them.
OPTIONS = {
    BallWall: ({}, {"dt": 0.03, "wall": 3.0, "height": 1.5, "launch": (1.0, 2.0)}),
    CartPendulum: ({}, {"links": 3, "dt": 0.02, "gravity": 9.0, "friction": 0.1, "half_length": 0.4}),
    CartPole: ({}, {"poles": 2, "dt": 0.02, "gravity": 9.0, "cart_mass": 2.0, "pole_mass": 0.2, "half_length": 0.4}),
    Fluid: (TANK, {
        "particles": 31, "jets": 2, "size": (1.2, 1.3, 1.1), "spacing": 0.11, "dt": 2e-3, "sound_speed": 9.0,
        "viscosity": 2e-3, "gravity": 0.9, "jet_radius": 0.2, "jet_strength": 2.0, "steered": True,
    }),
    Guidance: ({}, {"drivers": 3, "evaders": 5, "dt": 0.05, "mean_centre": True, "reversed_flocking": True}),
    Hopper: ({}, {
        "dt": 1e-3, "stiffness": 4e3, "softness": 1e-3, "friction": 0.7, "spring": 300.0, "damping": 3.0,
    }),
    Integrator: ({"dimensions": 1}, {"dimensions": 2}),
    LinearSystem: ({"A": [[1.0]], "B": [[1.0]]}, {"A": [[-1.0]], "B": [[0.5]]}),
    NBody: ({}, {"masses": (1.0, 0.1, 0.1, 0.1), "dim": 3, "dt": 0.01, "gravity": 0.9, "softening": 0.2}),
    QuantumBox: ({}, {"points": 16, "dt": 0.05}),
    Swarm: ({"evaders": 20, "radius": 0.5}, {
        "drivers": 2, "evaders": 21, "dt": 0.05, "radius": 0.6, "flocking": 0.3, "flight": 2.0, "mean_centre": True,
        "reversed_flocking": True,
    }),
}  # fmt: skip


@pytest.mark.parametrize("kind", OPTIONS)
def test_equal_objects_are_compiled_for_as_one_and_others_for_themselves(kind):
    options, others = OPTIONS[kind]
    system = kind(**options)
    assert compiled_for(system) is compiled_for(kind(**options)) is not system
    found = [compiled_for(kind(**options | {name: value})) for name, value in others.items()]
    assert len({id(one) for one in (*found, compiled_for(system))}) == len(found) + 1


def results(system):
    """What a step and a pull-back give."""
    state, control, adjoint = (uniform(seed, 4, *shape) for seed, shape in enumerate(
        (system.state_shape, system.control_shape, system.state_shape))
    )  # fmt: skip
    return system.step(state, control), *system.pull_back(state, control, adjoint)


def compiled(*kernels):
    return [len(set(map(id, kernel._primal.compiled_kernels.values()))) for kernel in kernels]


def test_an_equal_object_adds_no_compiled_kernel_and_another_its_own():
    first, equal, other = CartPole(1, 0.0123), CartPole(1, 0.0123), CartPole(1, 0.0124)
    expected, before = results(first), compiled(CartPole._step, CartPole._pull_back)
    assert all(torch.equal(*pair) for pair in zip(results(equal), expected, strict=True))
    assert compiled(CartPole._step, CartPole._pull_back) == before
    assert not any(torch.equal(*pair) for pair in zip(results(other), expected, strict=True))
    assert compiled(CartPole._step, CartPole._pull_back) == [count + 1 for count in before]


def test_what_kernels_are_handed_at_each_launch_is_not_shared():
    heavy, light = NBody((1.0, 0.5), (0,)), NBody((0.25, 0.125), (1,))
    assert compiled_for(heavy) is compiled_for(light)

    class Apart(NBody):
        """Declares nothing of its own, so that it shares nothing."""

    for system in (heavy, light):
        alone = Apart(system.masses, system.thrusters)
        assert compiled_for(alone) is alone
        assert all(torch.equal(*pair) for pair in zip(results(system), results(alone), strict=True))


def test_a_changed_attribute_is_seen_and_tensors_with_a_gradient_are_the_same_kernel():
    system, state, control = CartPole(1, 0.0321), uniform(0, 4, 4), uniform(1, 4, 1)
    expected, before = system.step(state, control), compiled(CartPole._step)
    assert torch.equal(system.step(state.requires_grad_(), control), expected)
    assert compiled(CartPole._step) == before
    system.dt = 0.0642
    assert torch.equal(system.step(state, control), CartPole(1, 0.0642).step(state, control))


@ti.data_oriented
class Numbers:
    read_by_kernels = ("factor",)

    def __init__(self, factor, offset=0.0):
        self.factor, self.offset = factor, offset

    @ti.kernel
    def scale(self, target: ti.types.ndarray(ndim=1)):
        for i in range(target.shape[0]):
            target[i] = self.factor * target[i]

    @ti.kernel
    def shift(self, target: ti.types.ndarray(ndim=1)):
        for i in range(target.shape[0]):
            target[i] = target[i] + self.offset


@pytest.mark.parametrize(("one", "other"), [(1, 1.0), (1, True), (0.0, -0.0), (2.0, 3.0)])
def test_numbers_of_another_type_or_sign_are_others(one, other):
    assert compiled_for(Numbers(one)) is compiled_for(Numbers(one))
    assert compiled_for(Numbers(one)) is not compiled_for(Numbers(other))


def test_what_a_class_does_not_declare_its_kernels_cannot_read():
    target = torch.ones(3, **tensor_options())
    prepare(Numbers(2.0, 1.0).scale, target)()
    assert torch.equal(target, torch.full_like(target, 2.0))
    with pytest.raises(engine.KernelError, match=r"^Expected kernel 'shift' to compile, got from Taichi .*offset"):
        prepare(Numbers(2.0, 1.0).shift, target)
