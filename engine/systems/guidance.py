"""Guidance by repulsion: a few drivers steer a herd that flees from them.

Longer than other files: the step, its adjoint and that of its parameters share their forces with two sweeps.
"""

import math
from typing import NamedTuple

import taichi as ti
import torch

from engine import runtime
from engine.checks import flag, positive, whole
from engine.launch import Launch, prepare
from engine.loops import Loop, lanes_pay, loop_over
from engine.particles.herding import SOFTENING, Herding
from engine.particles.pairs import CentralForce
from engine.system import STEP_LAUNCH_BYTES, System

SEPARATION = 0.2
FLIGHT = 15.0
FLOCKING = 0.2
SPACING = 0.5

# Up to this many particles a whole segment is swept in one launch, one sample after another in each thread.
# A device's threads are slow, and many: of more particles each takes one, step by step.
_FUSED_PARTICLES, _FUSED_ON_DEVICE = 64, 32


class GuidanceParameters(NamedTuple):
    """Physical parameters, one value or one for each sample."""

    separation: float = SEPARATION
    flight: float = FLIGHT
    flocking: float = FLOCKING


@ti.data_oriented
class Guidance(Herding, System):
    """D drivers steer E evaders in the plane; every pair of particles interacts.

        v̇_di = c₁ r + c₂ r⊥ - γ_d v_di + α Σ_{k≠i} (x_di - x_dk) / d_ik²
        v̇_ej = β Σ_i (x_ej - x_di) / d_ij² - γ_e v_ej + σ Σ_{k≠j} φ(d_jk) (x_ek - x_ej)
        d_ik = ε + |x_i - x_k|,   φ(d) = (s/d - 1) / d,   r = x_di - c̄,   r⊥ = (-r_y, r_x),   c̄ = Σ_j x_ej

    ε = `SOFTENING` = 0.1, γ_d = `DRIVER_DAMPING` = 1, γ_e = `EVADER_DAMPING` = 4, α = `SEPARATION` = 0.2,
    β = `FLIGHT` = 15, σ = `FLOCKING` = 0.2, s = `SPACING` = 0.5; lengths and times have no unit. The centre c̄ is the
    evaders' sum, as in the paper's released scripts, or their mean. φ attracts evaders nearer than s and repels those
    beyond, as released, or the reverse, as flocks do. The gradient of |r| at r = 0 is taken as 0.

    Explicit Euler: positions and velocities move with the old velocities and forces; first order.

    State [4, D + E]: rows x, y, vx, vy; drivers first. Control [2, D]: rows c₁, c₂. Parameters: α, β and σ, as
    `separation`, `flight` and `flocking`.

    All pairs are summed for each particle, in the step and in the adjoint alike, without atomics: with the force
    w(|r|) r and its symmetric Jacobian J, particle i gathers Σ_k J_ik (ḡ_i - ḡ_k) from its own kind.

    Source: Schnell and Thuerey (ICLR 2024), Sec. 3.2, after Ko and Zuazua (2020).

    Args:
        drivers: D, at least 1.
        evaders: E, at least 1.
        dt: time step.
        mean_centre: let c̄ be the mean of the evaders' positions.
        reversed_flocking: let evaders repel each other nearer than s and attract beyond.

    Attributes:
        centre_scale: what the evaders' sum is multiplied by to be c̄.
    """

    read_by_kernels = ("drivers", "particles", "dt", "centre_scale", "_forces", "_units")

    def __init__(
        self,
        drivers: int = 2,
        evaders: int = 4,
        dt: float = 4 / 60,
        mean_centre: bool = False,
        reversed_flocking: bool = False,
    ):
        drivers = whole("guidance with at least 1 driver", drivers)
        evaders = whole("guidance with at least 1 evader", evaders)
        dt = positive("a time step dt above 0", dt)
        mean_centre, reversed_flocking = flag("mean_centre", mean_centre), flag("reversed_flocking", reversed_flocking)
        self.name = "guidance"
        self.drivers, self.evaders, self.dt = drivers, evaders, dt
        self.particles = drivers + evaders
        self.state_shape, self.control_shape = (4, self.particles), (2, drivers)
        self.centre_scale = 1.0 / evaders if mean_centre else 1.0
        self.constants = GuidanceParameters()
        self._set_forces(-1.0 if reversed_flocking else 1.0, math.inf)

    def _set_forces(self, sign: float, radius: float) -> None:
        """The three forces with their constants, and with 1 in their stead for those that vary between samples."""
        separation, flight, flocking = self.constants
        # σ φ(d) (x_k - x_j) = (σ/d - σ s/d²) (x_j - x_k)
        self._separation, self._flight = (CentralForce(near, 0.0, SOFTENING) for near in (separation, flight))
        self._flock = CentralForce(-SPACING * (sign * flocking), sign * flocking, SOFTENING, radius)
        self._forces = self._separation, self._flight, self._flock
        unit = CentralForce(1.0, 0.0, SOFTENING)
        self._units = unit, unit, CentralForce(-SPACING * sign, sign, SOFTENING, radius)

    def sample(self, count, generator):
        return 4.0 * super().sample(count, generator)

    def prepare_step(self, state, control, next_state, parameters=None):
        arrays = (tensor.unsqueeze(0) for tensor in (state, control, next_state))
        rows = self.rows_or_none(parameters)
        return prepare(self._step, *arrays, rows, *self._loops(state), parameters is not None)

    def prepare_pull_back(
        self, state, control, next_adjoint, adjoint, cotangent, parameters=None, parameter_adjoint=None
    ):
        whole, after = state.unsqueeze(0), next_adjoint.unsqueeze(0)
        arrays = whole, control.unsqueeze(0), after, adjoint.unsqueeze(0), cotangent.unsqueeze(0)
        rows, loops = self.rows_or_none(parameters), self._loops(state)
        pull_back = prepare(self._pull_back, *arrays, rows, *loops, parameters is not None)
        if parameter_adjoint is None:
            return pull_back
        of_parameters = self._prepare_coefficients(whole, after, parameter_adjoint, loops)

        def launch() -> None:
            pull_back()
            of_parameters()

        return launch

    def _prepare_coefficients(self, state, next_adjoint, parameter_adjoint, loops: tuple[Loop, bool]) -> Launch:
        """By a thread for each sample, or on a device for each particle."""
        batch = state.shape[1]
        if runtime.current().backend == "cpu":
            loop = loop_over(batch)
            return prepare(self._pull_back_parameters, state, next_adjoint, parameter_adjoint, loop, loops[1])
        works = self.scratch("works", batch, 3, self.particles)
        find = prepare(self._find_works, state, next_adjoint, works, *loops)

        def launch() -> None:
            find()
            parameter_adjoint.add_(works.sum(2))

        return launch

    def scratch_bytes(self, batch):
        on_cpu = runtime.current().backend == "cpu"
        return 0 if on_cpu else 3 * batch * self.particles * runtime.current().dtype.itemsize

    @property
    def _fits_a_thread(self) -> bool:
        """Whether one thread may take all particles of a sample, one after another."""
        return self.particles <= (_FUSED_PARTICLES if runtime.current().backend == "cpu" else _FUSED_ON_DEVICE)

    def advances_in_kernel(self):
        own = getattr(self.prepare_step, "__func__", None) is Guidance.prepare_step
        return own and self._fits_a_thread

    @ti.func
    def advance_at(
        self, states: ti.template(), controls: ti.template(), t, b, parameters: ti.template(), varied: ti.template()
    ):
        in_lanes = ti.static(lanes_pay(self.particles - self.drivers))
        for i in range(self.particles):
            self._advance_particle(states, controls, states, t, t + 1, b, i, in_lanes, parameters, varied)

    def prepare_sweep(self, arrays):
        if not self._fits_a_thread:
            return None
        rows = self.rows_or_none(arrays.parameters), self.rows_or_none(arrays.parameter_adjoint)
        asked = arrays.parameters is not None, arrays.parameter_adjoint is not None
        return arrays.prepare(self._sweep, lanes_pay(self.evaders), *rows, *asked)

    def launch_bytes(self):
        return STEP_LAUNCH_BYTES if self._fits_a_thread else super().launch_bytes()

    def counts_pull_backs(self):
        return not self._fits_a_thread

    def _loops(self, state: torch.Tensor) -> tuple[Loop, bool]:
        """The loop over the particles of all samples, and whether sums over evaders run in lanes."""
        return loop_over(len(state), self.particles, self.particles), lanes_pay(self.evaders)

    @ti.kernel
    def _step(
        self,
        state: ti.types.ndarray(ndim=4),
        control: ti.types.ndarray(ndim=4),
        next_state: ti.types.ndarray(ndim=4),
        parameters: ti.types.ndarray(ndim=2),
        loop: ti.template(),
        in_lanes: ti.template(),
        varied: ti.template(),
    ):
        ti.loop_config(serialize=loop.serial, block_dim=loop.block_dim)
        for b, i in ti.ndrange(loop.count if ti.static(loop.count > 0) else state.shape[1], self.particles):
            self._advance_particle(state, control, next_state, 0, 0, b, i, in_lanes, parameters, varied)

    @ti.kernel
    def _pull_back(
        self,
        state: ti.types.ndarray(ndim=4),
        control: ti.types.ndarray(ndim=4),
        next_adjoint: ti.types.ndarray(ndim=4),
        adjoint: ti.types.ndarray(ndim=4),
        cotangent: ti.types.ndarray(ndim=4),
        parameters: ti.types.ndarray(ndim=2),
        loop: ti.template(),
        in_lanes: ti.template(),
        varied: ti.template(),
    ):
        ti.loop_config(serialize=loop.serial, block_dim=loop.block_dim)
        for b, i in ti.ndrange(loop.count if ti.static(loop.count > 0) else state.shape[1], self.particles):
            physics = self._pull_back_particle(state, control, next_adjoint, 0, 0, b, i, in_lanes, parameters, varied)
            for row in ti.static(range(4)):
                adjoint[0, b, row, i] = physics[row]
            if i < self.drivers:
                steering = self._pull_back_control(state, next_adjoint, self._centre(state, 0, b), 0, 0, b, i)
                cotangent[0, b, 0, i] += steering[0]
                cotangent[0, b, 1, i] += steering[1]

    @ti.kernel
    def _sweep(
        self,
        states: ti.types.ndarray(ndim=4),
        controls: ti.types.ndarray(ndim=4),
        direct: ti.types.ndarray(ndim=4),
        jacobian: ti.types.ndarray(ndim=4),
        adjoints: ti.types.ndarray(ndim=4),
        cotangents: ti.types.ndarray(ndim=4),
        first: int, last: int, start: ti.types.ndarray(dtype=ti.i32, ndim=1),
        physics_weight: float, policy_weight: float,
        loop: ti.template(),
        law: ti.template(),
        in_lanes: ti.template(),
        parameters: ti.types.ndarray(ndim=2),
        parameter_adjoint: ti.types.ndarray(ndim=2),
        varied: ti.template(),
        asked: ti.template(),
    ):  # fmt: skip
        ti.loop_config(serialize=loop.serial, block_dim=loop.block_dim)
        for sample in range(loop.count if ti.static(loop.count > 0) else last - first):
            b = first + sample
            steps = controls.shape[0]
            for back in range(steps):
                t = steps - 1 - back
                centre = self._centre(states, t, b)
                for i in range(self.drivers):
                    steering = self._pull_back_control(states, adjoints, centre, t, t + 1, b, i)
                    cotangents[t, b, 0, i] += steering[0]
                    cotangents[t, b, 1, i] += steering[1]
                if ti.static(asked):
                    self._pull_back_coefficients(states, adjoints, parameter_adjoint, t, t + 1, b, in_lanes)
                if ti.static(law.sums_paths):
                    for i in range(self.particles):
                        value = ti.Vector([direct[t, b, row, i] for row in range(4)])
                        if ti.static(law.uses_physics):
                            value += physics_weight * self._pull_back_particle(
                                states, controls, adjoints, t, t + 1, b, i, in_lanes, parameters, varied
                            )
                        if ti.static(law.uses_policy):
                            value += policy_weight * self._pull_back_policy(jacobian, cotangents, t, b, i)
                        for row in ti.static(range(4)):
                            adjoints[t, b, row, i] = value[row]
                else:
                    self._apply(
                        law, states, controls, direct, jacobian, adjoints, cotangents, start[0] + t, t, b, in_lanes,
                        parameters, varied,
                    )  # fmt: skip

    @ti.func
    def _apply(
        self, law: ti.template(), states: ti.template(), controls: ti.template(), direct: ti.template(),
        jacobian: ti.template(), adjoints: ti.template(), cotangents: ti.template(), time, t, b,
        in_lanes: ti.template(),
        parameters: ti.template(), varied: ti.template(),
    ):  # fmt: skip
        """λ_t of sample b by the rule of a law, from vectors of all rows, one after another."""
        N = ti.static(self.particles)
        given = ti.Vector.zero(float, 4 * N)
        physics = ti.Vector.zero(float, 4 * N)
        policy = ti.Vector.zero(float, 4 * N)
        for i in range(N):
            for row in ti.static(range(4)):
                given[row * N + i] = direct[t, b, row, i]
            if ti.static(law.uses_physics):
                pulled = self._pull_back_particle(
                    states, controls, adjoints, t, t + 1, b, i, in_lanes, parameters, varied
                )
                for row in ti.static(range(4)):
                    physics[row * N + i] = pulled[row]
            if ti.static(law.uses_policy):
                pulled = self._pull_back_policy(jacobian, cotangents, t, b, i)
                for row in ti.static(range(4)):
                    policy[row * N + i] = pulled[row]
        adjoint = law.rule.on_sample(given, physics, policy, time)
        for i in range(N):
            for row in ti.static(range(4)):
                adjoints[t, b, row, i] = adjoint[row * N + i]

    @ti.func
    def _pull_back_policy(self, jacobian: ti.template(), cotangent: ti.template(), t, b, i):
        """Rows of Kᵀμ for particle i."""
        result = ti.Vector.zero(float, 4)
        for c in ti.static(range(2)):
            for d in range(self.drivers):
                for row in ti.static(range(4)):
                    entry = jacobian[t, b, c * self.drivers + d, row * self.particles + i]
                    result[row] += entry * cotangent[t, b, c, d]
        return result

    @ti.kernel
    def _find_works(
        self,
        state: ti.types.ndarray(ndim=4),
        next_adjoint: ti.types.ndarray(ndim=4),
        works: ti.types.ndarray(ndim=3),
        loop: ti.template(),
        in_lanes: ti.template(),
    ):
        ti.loop_config(block_dim=loop.block_dim)
        for b, i in ti.ndrange(loop.count, self.particles):
            found = self._works(state, next_adjoint, 0, 0, b, i, in_lanes)
            for which in ti.static(range(3)):
                works[b, which, i] = found[which]

    @ti.kernel
    def _pull_back_parameters(
        self,
        state: ti.types.ndarray(ndim=4),
        next_adjoint: ti.types.ndarray(ndim=4),
        parameter_adjoint: ti.types.ndarray(ndim=2),
        loop: ti.template(),
        in_lanes: ti.template(),
    ):
        ti.loop_config(block_dim=loop.block_dim)
        for b in range(loop.count if ti.static(loop.count > 0) else state.shape[1]):
            self._pull_back_coefficients(state, next_adjoint, parameter_adjoint, 0, 0, b, in_lanes)
