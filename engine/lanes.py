"""A step of many samples in vector lanes of the CPU, for who calls every step from outside.

LLVM turns a loop over as many samples as a vector register holds into vector instructions, but not one that calls the
library's sine. The sine here is of products alone; it differs from the library's in the last place, so that rollouts,
whose numbers are kept, do without it.
"""

from copy import copy

import taichi as ti
import torch
from taichi.lang import impl

from engine import runtime
from engine.launch import Launch, prepare
from engine.loops import LANES, loop_over
from engine.vector_system import VectorSystem

# What a sample takes in lanes beside what it takes alone.
_LANE_WEIGHT = 0.25
# Taichi hands out iterations to CPU threads by at least as many.
_SHARE = 512


@ti.func
def sin_cos(x):
    """(sin x, cos x), each off by at most ε where |x| is below some thousands; NaN where x is not finite.

    Moshier's Cephes library: the remainder of x by π/2, taken off in three parts, and a polynomial for each. Further
    out they are those of an angle that differs from x by its rounding.
    """
    turns = ti.floor(x * 0.6366197723675814 + 0.5)
    quarter = turns - 4.0 * ti.floor(0.25 * turns)
    rest, s, c = ti.cast(0, float), ti.cast(0, float), ti.cast(0, float)
    if ti.static(impl.get_runtime().default_fp == ti.f64):
        rest = x - turns * 1.57079625129699707031 - turns * 7.54978941586159635335e-8
        rest = _within(rest - turns * 5.39030285815811905290e-15)
        z = rest * rest
        s = ((1.58962301576546568060e-10 * z - 2.50507477628578072866e-8) * z + 2.75573136213857245213e-6) * z
        s = ((s - 1.98412698295895385996e-4) * z + 8.33333333332211858878e-3) * z - 1.66666666666666307295e-1
        c = ((-1.13585365213876817300e-11 * z + 2.08757008419747316778e-9) * z - 2.75573141792967388112e-7) * z
        c = ((c + 2.48015872888517045348e-5) * z - 1.38888888888730564116e-3) * z + 4.16666666666665929218e-2
    else:
        rest = _within(x - turns * 1.5703125 - turns * 4.837512969970703125e-4 - turns * 7.54978995489188216e-8)
        z = rest * rest
        s = (-1.9515295891e-4 * z + 8.3321608736e-3) * z - 1.6666654611e-1
        c = (2.443315711809948e-5 * z - 1.388731625493765e-3) * z + 4.166664568298827e-2
    z = rest * rest
    s, c = rest + rest * z * s, 1.0 - 0.5 * z + z * z * c
    nothing = x - x  # 0, or not a number
    odd = (quarter == 1.0) | (quarter == 3.0)
    sine = ti.select(odd, c, s)
    cosine = ti.select(odd, s, c)
    return (
        ti.select(quarter >= 2.0, -sine, sine) + nothing,
        ti.select((quarter == 1.0) | (quarter == 2.0), -cosine, cosine) + nothing,
    )


@ti.func
def _within(rest):
    """Of an angle beyond all accuracy the remainder is what rounding left."""
    return ti.max(ti.min(rest, 0.8), -0.8)


def prepare_in_lanes(
    system: VectorSystem, states: torch.Tensor, controls: torch.Tensor, next_states: torch.Tensor
) -> Launch | None:
    """`prepare_step` in lanes, equal to it to rounding, or None if it would not be faster so.

    Samples have the system's own parameters: rows of them, read one number at a time, would take longer than is gained.
    """
    count, read = len(states), getattr(type(system), "read_by_kernels", ())
    if runtime.current().backend != "cpu" or count < LANES or "sines" not in read:
        return None
    system.check_size()
    system = copy(system)
    system.sines = sin_cos
    chunks = 1 if loop_over(count, weight=_LANE_WEIGHT * system.step_weight).serial else runtime.current().threads
    flat = (tensor.view(-1) for tensor in (states, controls, next_states))
    return prepare(_advance, system, *flat, system.rows_or_none(None), chunks)


@ti.kernel
def _advance(
    system: ti.template(),
    states: ti.types.ndarray(ndim=1),
    controls: ti.types.ndarray(ndim=1),
    next_states: ti.types.ndarray(ndim=1),
    parameters: ti.types.ndarray(ndim=2),
    chunks: ti.template(),
):
    # Rows are indexed in one dimension, so that how far apart they lie is a constant of the kernel.
    n, m = ti.static(system.state_shape[0], system.control_shape[0])
    ti.loop_config(serialize=chunks == 1)
    for iteration in range(ti.static(1 if chunks == 1 else chunks * _SHARE)):
        if iteration % _SHARE == 0:
            chunk, count = iteration // _SHARE, states.shape[0] // n
            blocks = (count + LANES - 1) // LANES
            for block in range(chunk * blocks // chunks, (chunk + 1) * blocks // chunks):
                # The last one begins where it ends with the samples, and repeats some of the one before.
                first = ti.min(block * LANES, count - LANES)
                x = [ti.Vector.zero(float, LANES) for _ in ti.static(range(n))]
                u = [ti.Vector.zero(float, LANES) for _ in ti.static(range(m))]
                for lane in range(LANES):
                    for i in ti.static(range(n)):
                        x[i][lane] = states[(first + lane) * n + i]
                    for j in ti.static(range(m)):
                        u[j][lane] = controls[(first + lane) * m + j]
                for lane in range(LANES):
                    state = ti.Vector([x[i][lane] for i in ti.static(range(n))])
                    control = ti.Vector([u[j][lane] for j in ti.static(range(m))])
                    after = system._advanced(state, control, parameters, first + lane, False)
                    for i in ti.static(range(n)):
                        x[i][lane] = after[i]
                for lane in range(LANES):
                    for i in ti.static(range(n)):
                        next_states[(first + lane) * n + i] = x[i][lane]
