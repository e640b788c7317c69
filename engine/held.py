"""Physics in steps shorter than the controller's."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import taichi as ti
import torch

from engine import runtime
from engine.checks import whole
from engine.contracts import check_system
from engine.launch import Launch
from engine.system import System
from engine.vector_system import VectorSystem

_LAUNCHES = ("prepare_step", "prepare_pull_back", "prepare_sweep")


@dataclass
class Between:
    """What a sweep does to adjoints between held steps.

    Attributes:
        rule: gives what becomes of an adjoint [B, ...] between the held steps s - 1 and s of step t; None, where
            nothing is done to it.
        t: the step where the sweep is.
    """

    rule: Callable[[torch.Tensor, int, int], torch.Tensor] | None = None
    t: int = 0


class _Chain(NamedTuple):
    """Launches of all steps of one batch, with states [steps + 1, B, ...] and two adjoints by turns [2, B, ...]."""

    states: torch.Tensor
    control: torch.Tensor
    adjoints: torch.Tensor
    cotangent: torch.Tensor
    forward: list[Launch]
    backward: list[Launch]
    parameters: torch.Tensor
    parameter_adjoint: torch.Tensor


@ti.data_oriented
class Held(System):
    """`steps` steps of another system under one control: S(... S(S(x, u), u) ..., u).

    For controllers that decide less often than the physics must be computed. The states between are not stored but
    found again in the pull-back: memory is that of the other system at its longer horizon divided by `steps`.

    Args:
        system: the physics; one that is held already is held for as many times its steps.
        steps: how many steps a control is held, at least 1.
    """

    def __init__(self, system: System, steps: int):
        steps = whole("a control to be held for at least 1 step", steps)
        check_system(system)
        if type(system) is Held:  # so that what acts between the steps of the physics acts between all of them
            system, steps = system.system, system.steps * steps
        self.system, self.steps = system, steps
        self.name = system.name
        self.state_shape, self.control_shape = system.state_shape, system.control_shape
        self.constants, self.positive_parameters = system.constants, system.positive_parameters
        self.not_negative_parameters = system.not_negative_parameters
        self._chains: dict[tuple[int, bool, bool], _Chain] = {}

    @property
    def step_time(self) -> float | None:
        inner = self.system.step_time
        return None if inner is None else inner * self.steps

    def sample(self, count, generator):
        return self.system.sample(count, generator)

    def doubts(self, states):
        return self.system.doubts(states)

    def compiled(self):
        return (super().compiled(), self.system.compiled())

    def versions(self):
        return self.system.versions()

    def check_size(self):
        self.system.check_size()

    def prepare_step(self, state, control, next_state, parameters=None):
        vector = self._vector_system()
        if vector is not None:
            return vector.prepare_held_step(state, control, next_state, parameters, self.steps)
        chain = self._chain(len(state), parameters is not None, False)

        def launch() -> None:
            if parameters is not None:
                chain.parameters.copy_(parameters)
            chain.states[0].copy_(state)
            chain.control.copy_(control)
            for step in chain.forward:
                step()
            next_state.copy_(chain.states[self.steps])

        return launch

    def advances_in_kernel(self):
        return isinstance(self.system, VectorSystem) and self.system.advances_in_kernel()

    @ti.func
    def advance_at(
        self, states: ti.template(), controls: ti.template(), t, b, parameters: ti.template(), varied: ti.template()
    ):
        self.system.advance_held_at(states, controls, t, b, parameters, varied, self.steps)  # type: ignore

    def prepare_sweep(self, arrays):
        vector = self._vector_system()
        return None if vector is None else vector.prepare_held_sweep(arrays, self.steps)

    def _vector_system(self) -> VectorSystem | None:
        """The system, if it is launched as every `VectorSystem` is, and not as a class of its own has it."""
        system = self.system
        if not isinstance(system, VectorSystem):
            return None
        own = [getattr(getattr(system, name), "__func__", None) for name in _LAUNCHES]
        return system if own == [getattr(VectorSystem, name) for name in _LAUNCHES] else None

    def prepare_pull_back(
        self, state, control, next_adjoint, adjoint, cotangent, parameters=None, parameter_adjoint=None,
        between: Between | None = None,
    ):  # fmt: skip
        """As `System`; `between` says at every launch what is done to the adjoint between the held steps."""
        chain = self._chain(len(state), parameters is not None, parameter_adjoint is not None)

        def launch() -> None:
            if parameters is not None:
                chain.parameters.copy_(parameters)
            if parameter_adjoint is not None:
                chain.parameter_adjoint.copy_(parameter_adjoint)
            chain.states[0].copy_(state)
            chain.control.copy_(control)
            for step in chain.forward[:-1]:
                step()
            chain.adjoints[self.steps % 2].copy_(next_adjoint)
            chain.cotangent.copy_(cotangent)
            for s, pull_back in zip(reversed(range(self.steps)), chain.backward, strict=True):
                pull_back()
                if between is not None and between.rule is not None and s > 0:
                    chain.adjoints[s % 2].copy_(between.rule(chain.adjoints[s % 2], between.t, s))
            adjoint.copy_(chain.adjoints[0])
            cotangent.copy_(chain.cotangent)
            if parameter_adjoint is not None:
                parameter_adjoint.copy_(chain.parameter_adjoint)

        return launch

    def scratch_bytes(self, batch):
        # States twice: of steps one by one, and of a sweep in one launch.
        numbers = (2 * self.steps + 3) * math.prod(self.state_shape) + 2 * math.prod(self.control_shape)
        numbers += 2 * len(self.constants)
        return batch * numbers * runtime.current().dtype.itemsize + self.system.scratch_bytes(batch)

    def launch_bytes(self):
        return 5400  # at most: two closures with their views; the chain is shared

    def counts_pull_backs(self):
        return self._vector_system() is None

    def _chain(self, batch: int, varied: bool, asked: bool) -> _Chain:
        """With the parameters' adjoint only if `asked`."""
        if (batch, varied, asked) not in self._chains:
            # Made inside an inference mode they could not be filled outside it.
            with torch.inference_mode(False):
                states = self.scratch("states", self.steps + 1, batch, *self.state_shape)
                adjoints = self.scratch("adjoints", 2, batch, *self.state_shape)
                control = self.scratch("control", batch, *self.control_shape)
                cotangent = self.scratch("cotangent", batch, *self.control_shape)
                rows = [self.scratch(name, batch, len(self.constants)) for name in ("parameters", "parameter_adjoint")]
            system, times = self.system, range(self.steps)
            given = {"parameters": rows[0]} if varied else {}
            wanted = {"parameter_adjoint": rows[1]} if asked else {}
            forward = [system.prepare_step(states[t], control, states[t + 1], **given) for t in times]
            backward = [
                system.prepare_pull_back(
                    states[t], control, adjoints[(t + 1) % 2], adjoints[t % 2], cotangent, **given, **wanted
                )
                for t in reversed(times)
            ]
            chain = _Chain(states, control, adjoints, cotangent, forward, backward, *rows)
            self._chains[batch, varied, asked] = chain
        return self._chains[batch, varied, asked]
