"""Tensors between guards, to which the launches of a trial are bound, and the launches run on any number of points."""

import math
from collections.abc import Callable

import torch

from engine import runtime
from engine.errors import KernelError
from engine.launch import Launch
from engine.trials.differences import element

_LEAST_GUARD = 64
_BATCH_NUMBERS = 2**18


class OutsideError(KernelError):
    """A kernel that reads or writes outside of the arrays that it is given."""


class Bench:
    """A system's launches on a batch of a trial's own.

    Args:
        system: the system, for its shapes and its name.
        batch: samples of the launch, no more than the system is used with.
        prepare_step, prepare_pull_back: as `System` has them.
    """

    def __init__(self, system, batch: int, prepare_step: Callable, prepare_pull_back: Callable | None = None):
        self.name, self.state_shape, self.control_shape = system.name, system.state_shape, system.control_shape
        self.n, self.m = math.prod(system.state_shape), math.prod(system.control_shape)
        self.batch = max(1, min(batch, _BATCH_NUMBERS // (self.n + self.m)))
        self._guards: list[tuple[str, torch.Tensor, int]] = []
        self.state = self._guarded("state", system.state_shape)
        self.control = self._guarded("control", system.control_shape)
        self.next_state = self._guarded("next_state", system.state_shape)
        self.next_adjoint = self._guarded("next_adjoint", system.state_shape)
        self.adjoint = self._guarded("adjoint", system.state_shape)
        self.cotangent = self._guarded("cotangent", system.control_shape)
        self._step: Launch = prepare_step(self.state, self.control, self.next_state)
        self._pull_back: Launch | None = None
        if prepare_pull_back is not None:
            self._pull_back = prepare_pull_back(
                self.state, self.control, self.next_adjoint, self.adjoint, self.cotangent
            )
        self.guard(0.5)

    def guard(self, value: float) -> None:
        """Fill what lies around the tensors."""
        self._guard = value
        for _, whole, around in self._guards:
            whole[:around] = whole[-around:] = value

    def step(self, states: torch.Tensor, controls: torch.Tensor, content: torch.Tensor | None = None) -> torch.Tensor:
        """Next states [N, n] at states [N, n] and controls [N, m]; `content` [batch, n] fills the output before."""
        found = torch.empty_like(states)
        for part in self._parts(len(states)):
            inputs = self._put(states[part], self.state), self._put(controls[part], self.control)
            if content is not None:
                self.next_state.copy_(content.view_as(self.next_state))
            self._step()
            self._check_untouched("step", {"state": (self.state, inputs[0]), "control": (self.control, inputs[1])})
            found[part] = self.next_state.view(self.batch, -1)[: part.stop - part.start]
        return found

    def pull_back(
        self,
        states: torch.Tensor,
        controls: torch.Tensor,
        weights: torch.Tensor,
        content: tuple[torch.Tensor, torch.Tensor] | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Adjoints [N, n] and cotangents [N, m]; `content` fills the outputs before, zeros by default."""
        assert self._pull_back is not None
        adjoints, cotangents = torch.empty_like(states), torch.empty_like(controls)
        for part in self._parts(len(states)):
            given = {"state": states, "control": controls, "next_adjoint": weights}
            put = {
                name: (getattr(self, name), self._put(rows[part], getattr(self, name))) for name, rows in given.items()
            }
            for index, output in enumerate((self.adjoint, self.cotangent)):
                output.zero_() if content is None else output.copy_(content[index].view_as(output))
            self._pull_back()
            self._check_untouched("pull_back", put)
            count = part.stop - part.start
            adjoints[part] = self.adjoint.view(self.batch, -1)[:count]
            cotangents[part] = self.cotangent.view(self.batch, -1)[:count]
        return adjoints, cotangents

    def _parts(self, count: int) -> list[slice]:
        return [slice(first, min(first + self.batch, count)) for first in range(0, count, self.batch)]

    def _put(self, rows: torch.Tensor, into: torch.Tensor) -> torch.Tensor:
        """Write rows into a bound tensor, the last one again and again to the end; a copy of it all."""
        filled = rows if len(rows) == self.batch else torch.cat([rows, rows[-1:].expand(self.batch - len(rows), -1)])
        into.copy_(filled.view_as(into))
        return filled

    def _check_untouched(self, kernel: str, inputs: dict[str, tuple[torch.Tensor, torch.Tensor]]) -> None:
        for name, (bound, given) in inputs.items():
            changed = ~same(bound.view_as(given), given).all(0)
            if changed.any():
                at = element(int(changed.nonzero()[0]), bound.shape[1:])
                raise KernelError(
                    f"Expected the {kernel} kernel of system {self.name!r} to leave its inputs as they are, got "
                    f"{name}{at} changed; work on a local copy."
                )
        for name, whole, around in self._guards:
            outside = torch.cat([whole[:around], whole[-around:]])
            if not same(outside, torch.full_like(outside, self._guard)).all():
                raise OutsideError(
                    f"Expected the {kernel} kernel of system {self.name!r} to stay inside its arrays, got a write "
                    f"outside of {name}; check its indices, or run it under ef.init(debug=True)."
                )

    def _guarded(self, name: str, shape: tuple[int, ...]) -> torch.Tensor:
        count = self.batch * math.prod(shape)
        # Whole cache lines, so that the tensor itself is aligned.
        around = -(-max(_LEAST_GUARD, math.prod(shape)) // _LEAST_GUARD) * _LEAST_GUARD
        whole = torch.zeros(count + 2 * around, dtype=runtime.current().dtype, device=runtime.current().device)
        self._guards.append((name, whole, around))
        return whole[around : around + count].view(self.batch, *shape)


def same(found: torch.Tensor, expected: torch.Tensor, tolerance: torch.Tensor | float = 0.0) -> torch.Tensor:
    """Where two tensors are equal, NaN being equal to NaN."""
    return ((found - expected).abs() <= tolerance) | (found == expected) | (found.isnan() & expected.isnan())
