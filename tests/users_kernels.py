"""What the tests of users' kernels share."""

import pytest
import taichi as ti
from conftest import uniform

A = ti.types.ndarray(ndim=2)
"""An array [B, n] or [B, m]."""
BATCH = 3


def arrays(system, batch=BATCH):
    """A state, a control and an adjoint of a system."""
    shapes = system.state_shape, system.control_shape, system.state_shape
    return [uniform(seed, batch, *shape) for seed, shape in enumerate(shapes)]


def use(system, batch=BATCH):
    """Step a system and pull back through it."""
    state, control, adjoint = arrays(system, batch)
    system.step(state, control)
    return system.pull_back(state, control, adjoint)


def refusal(system, kind, batch=BATCH):
    """The one sentence with which a system is refused, the second time as the first."""
    messages = []
    for _ in range(2):
        with pytest.raises(kind) as error:
            use(system, batch)
        messages.append(str(error.value))
    assert messages[0] == messages[1]
    assert repr(system.name) in messages[0]
    assert messages[0].endswith(".")
    assert "\n" not in messages[0]
    return messages[0]


@ti.kernel
def damped_pendulum(state: A, control: A, next_state: A, dt: float, damping: float):
    for b in range(state.shape[0]):
        rate = state[b, 1] + dt * (control[b, 0] - ti.sin(state[b, 0]) - damping * state[b, 1])
        next_state[b, 0] = state[b, 0] + dt * rate
        next_state[b, 1] = rate


@ti.kernel
def reaches(x: A, y: A):
    for b in range(x.shape[0]):
        y[b, 0] = x[b, 2]


@ti.kernel
def each(x: A, u: A, y: A):
    for b in range(x.shape[0]):
        y[b, 0] = x[b, 0] + 0.1 * u[b, 0] * ti.cos(x[b, 0])
