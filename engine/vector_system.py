"""Systems whose state is a short vector: written as two functions on one sample, swept in one launch."""

import abc
from typing import Any

import taichi as ti

from engine.contracts import check_call
from engine.errors import SettingError
from engine.fused import MOST_COMPONENTS, SweepArrays
from engine.launch import Launch, prepare
from engine.loops import loop_over
from engine.system import STEP_LAUNCH_BYTES, System

VECTOR = ("state_shape", "control_shape", "constants")
"""What the kernels of every `VectorSystem` read."""


@ti.func
def library_sines(x):
    """(sin x, cos x)."""
    return ti.sin(x), ti.cos(x)


@ti.data_oriented
class VectorSystem(System):
    """A system x' = S(x, u) with x and u short vectors, given by two Taichi functions on one sample.

    Subclasses set `name`, `state_shape = (n,)`, `control_shape = (m,)` and write

        advance(state, control) -> next_state
        pull_back_sample(state, control, next_adjoint) -> (Aᵀ next_adjoint, Bᵀ next_adjoint)

    as `@ti.func` methods on `ti.Vector`s of sizes n and m. Where `constants` is a NamedTuple of q numbers, its
    parameters may vary from sample to sample: then both take `parameters: ti.template()` last, whose fields have these
    names, and `pull_back_sample` returns (∂S/∂p)ᵀ next_adjoint, a vector of size q, third. The whole backward recursion
    of a segment then is one launch with the adjoint in registers. Loops over components are unrolled, which limits n to
    128; kernels of a cart-pole of that size compile for 45 s, of a fourth of it for 4 s. A class that besides declares
    `read_by_kernels`, VECTOR and the names of all other attributes that these functions read, has its kernels compiled
    once for all equal objects (`engine/sharing.py`).

    Attributes:
        step_weight: how long a step of a sample takes beside one of 50 ns or more, of which 512 are worth sharing.
        sines: (sin x, cos x) as `advance` may ask for them; a class that declares it as read by its kernels has its
            steps in vector lanes where rollouts' numbers are not at stake (`engine/lanes.py`).
    """

    step_weight: float = 1.0
    _takes = False  # whether its functions were seen to take what kernels give them
    sines: Any = staticmethod(library_sines)

    @ti.func
    @abc.abstractmethod
    def advance(self, state, control):
        """S(state, control)."""

    @ti.func
    @abc.abstractmethod
    def pull_back_sample(self, state, control, next_adjoint):
        """(Aᵀ next_adjoint, Bᵀ next_adjoint) at (state, control)."""

    def check_size(self):
        if not self._takes:
            self._check_functions()
        largest = max(*self.state_shape, *self.control_shape)
        if largest > MOST_COMPONENTS:
            raise SettingError(
                f"Expected {self.name} with at most {MOST_COMPONENTS} numbers in a state and in a control, over which "
                f"its kernels are unrolled, got {largest}; make it smaller, or write a System whose kernels loop."
            )

    def _check_functions(self) -> None:
        """SettingError unless the functions of a sample take parameters where there are constants, and only there."""
        varied = bool(self.constants)
        last = ", control and parameters, as it has constants" if varied else " and control"
        check_call(f"advance of {self.name} to take state{last}", self.advance, 2 + varied)
        last = ", next_adjoint and parameters, as it has constants" if varied else " and next_adjoint"
        check_call(f"pull_back_sample of {self.name} to take state, control{last}", self.pull_back_sample, 3 + varied)
        self._takes = True

    @property
    def _owner(self) -> str:
        return f" of system {self.name!r}"

    def prepare_step(self, state, control, next_state, parameters=None):
        return self.prepare_held_step(state, control, next_state, parameters, 1)

    def prepare_held_step(self, state, control, next_state, parameters, steps: int) -> Launch:
        """`prepare_step` of so many steps under one control."""
        self.check_size()
        rows = self.rows_or_none(parameters)
        loop = loop_over(len(state), weight=steps * self.step_weight)
        return prepare(
            self._step, state, control, next_state, rows, loop, parameters is not None, steps, owner=self._owner
        )

    def prepare_pull_back(
        self, state, control, next_adjoint, adjoint, cotangent, parameters=None, parameter_adjoint=None
    ):
        self.check_size()
        arrays = state, control, next_adjoint, adjoint, cotangent
        rows = self.rows_or_none(parameters), self.rows_or_none(parameter_adjoint)
        asked = parameters is not None, parameter_adjoint is not None
        return prepare(self._pull_back, *arrays, *rows, loop_over(len(state)), *asked, owner=self._owner)

    def prepare_sweep(self, arrays):
        return self.prepare_held_sweep(arrays, 1)

    def prepare_held_sweep(self, arrays: SweepArrays, steps: int) -> Launch:
        """`prepare_sweep` where each control is held for so many steps, the states between which are found again."""
        rows = self.rows_or_none(arrays.parameters), self.rows_or_none(arrays.parameter_adjoint)
        asked = arrays.parameters is not None, arrays.parameter_adjoint is not None
        between = arrays.states if steps == 1 else self.scratch("between", steps, *arrays.states.shape[1:])
        return arrays.prepare(self._sweep, *rows, between, *asked, steps)

    def advances_in_kernel(self):
        return getattr(self.prepare_step, "__func__", None) is VectorSystem.prepare_step

    @ti.func
    def advance_at(
        self, states: ti.template(), controls: ti.template(), t, b, parameters: ti.template(), varied: ti.template()
    ):
        self.advance_held_at(states, controls, t, b, parameters, varied, 1)

    @ti.func
    def advance_held_at(
        self,
        states: ti.template(),
        controls: ti.template(),
        t,
        b,
        parameters: ti.template(),
        varied: ti.template(),
        steps: ti.template(),
    ):
        """`advance_at` in so many steps under one control."""
        x = ti.Vector([states[t, b, i] for i in range(self.state_shape[0])])
        u = ti.Vector([controls[t, b, j] for j in range(self.control_shape[0])])
        for _ in range(steps):
            x = self._advanced(x, u, parameters, b, varied)
        for i in ti.static(range(self.state_shape[0])):
            states[t + 1, b, i] = x[i]

    def launch_bytes(self):
        return STEP_LAUNCH_BYTES

    def counts_pull_backs(self):
        return False

    def parameters_of(self, values):
        """Values in a kernel as `constants` are: by name."""
        return type(self.constants)(*values)

    @ti.func
    def _advanced(self, state, control, parameters: ti.template(), b, varied: ti.template()):
        """`advance` with the parameters of sample b, if they are `varied`, or with the constants."""
        result = state
        if ti.static(varied):
            row = ti.static(range(len(self.constants)))
            p = ti.static(self.parameters_of([parameters[b, i] for i in row]))
            result = self.advance(state, control, p)  # type: ignore[call-arg]
        elif ti.static(len(self.constants) > 0):
            result = self.advance(state, control, self.constants)  # type: ignore[call-arg]
        else:
            result = self.advance(state, control)
        return result

    @ti.func
    def _pulled_back(self, state, control, next_adjoint, parameters: ti.template(), b, varied: ti.template()):
        """`pull_back_sample` in the same way, with three results; the third is 0 where nothing is varied."""
        physics, pulled, given = state, control, ti.Vector.zero(float, ti.static(max(1, len(self.constants))))
        if ti.static(varied):
            row = ti.static(range(len(self.constants)))
            p = ti.static(self.parameters_of([parameters[b, i] for i in row]))
            physics, pulled, given = self.pull_back_sample(state, control, next_adjoint, p)  # type: ignore[call-arg]
        elif ti.static(len(self.constants) > 0):
            physics, pulled, given = self.pull_back_sample(state, control, next_adjoint, self.constants)  # type: ignore
        else:
            physics, pulled = self.pull_back_sample(state, control, next_adjoint)
        return physics, pulled, given

    @ti.func
    def _pulled_through(
        self, x, u, costate, between: ti.template(), law: ti.template(), parameters: ti.template(), start, b,
        varied: ti.template(), steps: ti.template(),
    ):  # fmt: skip
        """`_pulled_back` through all steps under one control, the first of which is number `start`, by the law's rule.

        The states on the way are kept in `between`.
        """
        for s in range(1, steps):
            for i in ti.static(range(self.state_shape[0])):
                between[s, b, i] = x[i]
            x = self._advanced(x, u, parameters, b, varied)
        physics, pulled, given = self._pulled_back(x, u, costate, parameters, b, varied)
        for back in range(1, steps):
            s = steps - back
            if ti.static(law.acts_between):
                physics = law.rule.on_sample_between(physics, start + s)
            for i in ti.static(range(self.state_shape[0])):
                x[i] = between[s, b, i]
            physics, more, also = self._pulled_back(x, u, physics, parameters, b, varied)
            pulled += more
            given += also
        return physics, pulled, given

    @ti.func
    def _by_law(
        self,
        law: ti.template(),
        physics_weight,
        policy_weight,
        direct: ti.template(),
        jacobian: ti.template(),
        physics,
        cotangent,
        time,
        t,
        b,
    ):
        """λ_t of sample b from `physics` = Aᵀλ_{t+1} and `cotangent` = μ_t."""
        result, policy = ti.Vector.zero(float, self.state_shape[0]), ti.Vector.zero(float, self.state_shape[0])
        idle = _is_zero(cotangent)
        for i in ti.static(range(self.state_shape[0])):
            result[i] = direct[t, b, i]
            if ti.static(law.sums_paths and law.uses_physics):
                result[i] += physics_weight * physics[i]
            if ti.static(law.uses_policy):
                for j in ti.static(range(self.control_shape[0])):
                    if ti.static(law.sums_paths):
                        result[i] += ti.select(idle, 0.0, policy_weight * jacobian[t, b, j, i] * cotangent[j])
                    else:
                        policy[i] += ti.select(idle, 0.0, jacobian[t, b, j, i] * cotangent[j])
        if ti.static(not law.sums_paths):
            result = law.rule.on_sample(result, physics, policy, time)
        return result

    @ti.kernel
    def _step(
        self,
        state: ti.types.ndarray(ndim=2),
        control: ti.types.ndarray(ndim=2),
        next_state: ti.types.ndarray(ndim=2),
        parameters: ti.types.ndarray(ndim=2),
        loop: ti.template(),
        varied: ti.template(),
        held: ti.template(),
    ):
        ti.loop_config(serialize=loop.serial, block_dim=loop.block_dim)
        for b in range(loop.count if ti.static(loop.count > 0) else state.shape[0]):
            x = ti.Vector([state[b, i] for i in range(self.state_shape[0])])
            u = ti.Vector([control[b, j] for j in range(self.control_shape[0])])
            for _ in range(held):
                x = self._advanced(x, u, parameters, b, varied)
            for i in ti.static(range(self.state_shape[0])):
                next_state[b, i] = x[i]

    @ti.kernel
    def _pull_back(
        self,
        state: ti.types.ndarray(ndim=2),
        control: ti.types.ndarray(ndim=2),
        next_adjoint: ti.types.ndarray(ndim=2),
        adjoint: ti.types.ndarray(ndim=2),
        cotangent: ti.types.ndarray(ndim=2),
        parameters: ti.types.ndarray(ndim=2),
        parameter_adjoint: ti.types.ndarray(ndim=2),
        loop: ti.template(),
        varied: ti.template(),
        asked: ti.template(),
    ):
        ti.loop_config(serialize=loop.serial, block_dim=loop.block_dim)
        for b in range(loop.count if ti.static(loop.count > 0) else state.shape[0]):
            x = ti.Vector([state[b, i] for i in range(self.state_shape[0])])
            u = ti.Vector([control[b, j] for j in range(self.control_shape[0])])
            costate = ti.Vector([next_adjoint[b, i] for i in range(self.state_shape[0])])
            physics, pulled, given = self._pulled_back(x, u, costate, parameters, b, varied)
            for i in ti.static(range(self.state_shape[0])):
                adjoint[b, i] = physics[i]
            for j in ti.static(range(self.control_shape[0])):
                cotangent[b, j] += pulled[j]
            if ti.static(asked):
                for i in ti.static(range(len(self.constants))):
                    parameter_adjoint[b, i] += given[i]

    @ti.kernel
    def _sweep(
        self,
        states: ti.types.ndarray(ndim=3),
        controls: ti.types.ndarray(ndim=3),
        direct: ti.types.ndarray(ndim=3),
        jacobian: ti.types.ndarray(ndim=4),
        adjoints: ti.types.ndarray(ndim=3),
        cotangents: ti.types.ndarray(ndim=3),
        first: int, last: int, start: ti.types.ndarray(dtype=ti.i32, ndim=1),
        physics_weight: float, policy_weight: float, loop: ti.template(), law: ti.template(),
        parameters: ti.types.ndarray(ndim=2),
        parameter_adjoint: ti.types.ndarray(ndim=2),
        between: ti.types.ndarray(ndim=3),
        varied: ti.template(), asked: ti.template(), held: ti.template(),
    ):  # fmt: skip
        ti.loop_config(serialize=loop.serial, block_dim=loop.block_dim)
        for sample in range(loop.count if ti.static(loop.count > 0) else last - first):
            b, steps = first + sample, controls.shape[0]
            costate = ti.Vector([adjoints[steps, b, i] for i in range(self.state_shape[0])])
            total = ti.Vector.zero(float, ti.static(max(1, len(self.constants))))
            if ti.static(asked):
                for i in ti.static(range(len(self.constants))):
                    total[i] = parameter_adjoint[b, i]
            for back in range(steps):
                t = steps - 1 - back
                x = ti.Vector([states[t, b, i] for i in range(self.state_shape[0])])
                u = ti.Vector([controls[t, b, j] for j in range(self.control_shape[0])])
                time = start[0] + t
                physics, pulled, given = self._pulled_through(
                    x, u, costate, between, law, parameters, time * held, b, varied, held
                )
                over = _is_zero(costate)
                for j in ti.static(range(self.control_shape[0])):
                    pulled[j] = cotangents[t, b, j] + ti.select(over, 0.0, pulled[j])
                    cotangents[t, b, j] = pulled[j]
                if ti.static(asked):
                    for i in ti.static(range(len(self.constants))):
                        total[i] += ti.select(over, 0.0, given[i])
                for i in ti.static(range(self.state_shape[0])):
                    physics[i] = ti.select(over, 0.0, physics[i])
                costate = self._by_law(
                    law, physics_weight, policy_weight, direct, jacobian, physics, pulled, time, t, b
                )
                for i in ti.static(range(self.state_shape[0])):
                    adjoints[t, b, i] = costate[i]
            if ti.static(asked):
                for i in ti.static(range(len(self.constants))):
                    parameter_adjoint[b, i] = total[i]


@ti.func
def _is_zero(values):
    """Whether all are 0, by `==`: Taichi's `!=` is false for NaN.

    A zero adjoint or cotangent passes on 0, also where the Jacobian is not finite (engine/ended.py).
    """
    result = True
    for i in ti.static(range(values.n)):
        result = result and values[i] == 0.0
    return result
