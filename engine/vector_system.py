"""Systems whose state is a short vector: written as two functions on one sample, swept in one launch."""

import abc

import taichi as ti

from engine.errors import SettingError
from engine.fused import MOST_COMPONENTS
from engine.launch import prepare
from engine.loops import serial_loop
from engine.system import STEP_LAUNCH_BYTES, System


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
        if largest > MOST_COMPONENTS:
            raise SettingError(
                f"Expected {self.name} with at most {MOST_COMPONENTS} numbers in a state and in a control, over which "
                f"its kernels are unrolled, got {largest}; make it smaller, or write a System whose kernels loop."
            )

    def prepare_step(self, state, control, next_state):
        self.check_size()
        return prepare(self._step, state, control, next_state, serial_loop(state.shape[0]))

    def prepare_pull_back(self, state, control, next_adjoint, adjoint, cotangent):
        self.check_size()
        return prepare(self._pull_back, state, control, next_adjoint, adjoint, cotangent, serial_loop(state.shape[0]))

    def prepare_sweep(self, arrays):
        return arrays.prepare(self._sweep)

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
        start: int,
        physics_weight: float,
        policy_weight: float,
        serial: ti.template(),
        law: ti.template(),
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
                policy = ti.Vector.zero(float, self.state_shape[0])
                for i in ti.static(range(self.state_shape[0])):
                    physics[i] = ti.select(over, 0.0, physics[i])
                    costate[i] = direct[t, b, i]
                    if ti.static(law.sums_paths and law.uses_physics):
                        costate[i] += physics_weight * physics[i]
                    if ti.static(law.uses_policy):
                        for j in ti.static(range(self.control_shape[0])):
                            if ti.static(law.sums_paths):
                                costate[i] += ti.select(idle, 0.0, policy_weight * jacobian[t, b, j, i] * pulled[j])
                            else:
                                policy[i] += ti.select(idle, 0.0, jacobian[t, b, j, i] * pulled[j])
                if ti.static(not law.sums_paths):
                    costate = law.rule.on_sample(costate, physics, policy, start + t)
                for i in ti.static(range(self.state_shape[0])):
                    adjoints[t, b, i] = costate[i]
