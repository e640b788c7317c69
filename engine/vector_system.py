"""Systems whose state is a short vector: written as two functions on one sample, swept in one launch."""

import abc

import taichi as ti

from engine.errors import SettingError
from engine.launch import prepare
from engine.loops import serial_loop
from engine.system import STEP_LAUNCH_BYTES, System

# Compile times grow with the square of what is unrolled.
_MOST_COMPONENTS = 128


@ti.data_oriented
class VectorSystem(System):
    """A system x' = S(x, u) with x and u short vectors, given by two Taichi functions on one sample.

    Subclasses set `name`, `state_shape = (n,)`, `control_shape = (m,)` and write

        advance(state, control) -> next_state
        pull_back_sample(state, control, next_adjoint) -> (Aᵀ next_adjoint, Bᵀ next_adjoint)

    as `@ti.func` methods on `ti.Vector`s of sizes n and m. The whole backward recursion of a segment then is one
    launch with the adjoint in registers. Loops over components are unrolled, which limits n to 128; kernels of a
    cart-pole of that size compile for 45 s, of a fourth of it for 4 s.
    """

    @ti.func
    @abc.abstractmethod
    def advance(self, state, control):
        """S(state, control)."""

    @ti.func
    @abc.abstractmethod
    def pull_back_sample(self, state, control, next_adjoint):
        """(Aᵀ next_adjoint, Bᵀ next_adjoint) at (state, control)."""

    def check_size(self):
        largest = max(*self.state_shape, *self.control_shape)
        if largest > _MOST_COMPONENTS:
            raise SettingError(
                f"Expected {self.name} with at most {_MOST_COMPONENTS} numbers in a state and in a control, over which "
                f"its kernels are unrolled, got {largest}; make it smaller, or write a System whose kernels loop."
            )

    def prepare_step(self, state, control, next_state):
        self.check_size()
        return prepare(self._step, state, control, next_state, serial_loop(state.shape[0]))

    def prepare_pull_back(self, state, control, next_adjoint, adjoint, cotangent):
        self.check_size()
        return prepare(self._pull_back, state, control, next_adjoint, adjoint, cotangent, serial_loop(state.shape[0]))

    def prepare_sweep(self, states, controls, direct, jacobian, adjoints, cotangents, samples, rule):
        weights = getattr(rule, "path_weights", None)
        if weights is None:
            return None
        first, last, _ = samples.indices(states.shape[1])
        return prepare(
            self._sweep,
            states,
            controls,
            direct,
            jacobian,
            adjoints,
            cotangents,
            first,
            last,
            float(weights[0]),
            float(weights[1]),
            serial_loop(last - first),
            rule.uses_physics,
            rule.uses_policy,
        )

    def launch_bytes(self):
        return STEP_LAUNCH_BYTES

    @ti.kernel
    def _step(
        self,
        state: ti.types.ndarray(ndim=2),
        control: ti.types.ndarray(ndim=2),
        next_state: ti.types.ndarray(ndim=2),
        serial: ti.template(),
    ):
        ti.loop_config(serialize=serial)
        for b in range(state.shape[0]):
            x = ti.Vector([state[b, i] for i in range(self.state_shape[0])])
            u = ti.Vector([control[b, j] for j in range(self.control_shape[0])])
            y = self.advance(x, u)
            for i in ti.static(range(self.state_shape[0])):
                next_state[b, i] = y[i]

    @ti.kernel
    def _pull_back(
        self,
        state: ti.types.ndarray(ndim=2),
        control: ti.types.ndarray(ndim=2),
        next_adjoint: ti.types.ndarray(ndim=2),
        adjoint: ti.types.ndarray(ndim=2),
        cotangent: ti.types.ndarray(ndim=2),
        serial: ti.template(),
    ):
        ti.loop_config(serialize=serial)
        for b in range(state.shape[0]):
            x = ti.Vector([state[b, i] for i in range(self.state_shape[0])])
            u = ti.Vector([control[b, j] for j in range(self.control_shape[0])])
            costate = ti.Vector([next_adjoint[b, i] for i in range(self.state_shape[0])])
            physics, pulled = self.pull_back_sample(x, u, costate)
            for i in ti.static(range(self.state_shape[0])):
                adjoint[b, i] = physics[i]
            for j in ti.static(range(self.control_shape[0])):
                cotangent[b, j] += pulled[j]

    @ti.kernel
    def _sweep(
        self,
        states: ti.types.ndarray(ndim=3),
        controls: ti.types.ndarray(ndim=3),
        direct: ti.types.ndarray(ndim=3),
        jacobian: ti.types.ndarray(ndim=4),
        adjoints: ti.types.ndarray(ndim=3),
        cotangents: ti.types.ndarray(ndim=3),
        first: int,
        last: int,
        physics_weight: float,
        policy_weight: float,
        serial: ti.template(),
        uses_physics: ti.template(),
        uses_policy: ti.template(),
    ):
        ti.loop_config(serialize=serial)
        for sample in range(last - first):
            b = first + sample
            steps = controls.shape[0]
            costate = ti.Vector([adjoints[steps, b, i] for i in range(self.state_shape[0])])
            for back in range(steps):
                t = steps - 1 - back
                x = ti.Vector([states[t, b, i] for i in range(self.state_shape[0])])
                u = ti.Vector([controls[t, b, j] for j in range(self.control_shape[0])])
                physics, pulled = self.pull_back_sample(x, u, costate)
                # A zero adjoint or cotangent passes on 0, also where the Jacobian is not finite (engine/ended.py).
                over, idle = True, True  # by `==`: Taichi's `!=` is false for NaN
                for i in ti.static(range(self.state_shape[0])):
                    over = over and costate[i] == 0.0
                for j in ti.static(range(self.control_shape[0])):
                    pulled[j] = cotangents[t, b, j] + ti.select(over, 0.0, pulled[j])
                    idle = idle and pulled[j] == 0.0
                    cotangents[t, b, j] = pulled[j]
                for i in ti.static(range(self.state_shape[0])):
                    physics[i] = ti.select(over, 0.0, physics[i])
                    value = direct[t, b, i]
                    if ti.static(uses_physics):
                        value += physics_weight * physics[i]
                    if ti.static(uses_policy):
                        for j in ti.static(range(self.control_shape[0])):
                            value += ti.select(idle, 0.0, policy_weight * jacobian[t, b, j, i] * pulled[j])
                    costate[i] = value
                    adjoints[t, b, i] = value
