"""The launches of a rollout step by step: the controller acts, then the system advances."""

import torch

from engine.controller import ControllerTrace
from engine.launch import Launch
from engine.loops import STEP_ROWS, torch_threads
from engine.parts import Parts


class StepLaunches:
    """Two launches for every slot.

    Args:
        parts, trace: of a trajectory.
        states: [S+1, B, *state_shape]; controls: [S, B, *control_shape]: the slots.
    """

    def __init__(self, parts: Parts, trace: ControllerTrace, states: torch.Tensor, controls: torch.Tensor):
        self._actions: list[Launch] = []
        self._steps: list[Launch] = []
        self._shared = states.shape[1] >= STEP_ROWS
        for slot in range(len(controls)):
            x, y, u = states[slot], states[slot + 1], controls[slot]
            self._actions.append(parts.prepare_act(slot, trace.prepare_act(slot, x, u), u))
            self._steps.append(parts.prepare_step(slot, x, u, y))

    def run(self, first: int, last: int) -> None:
        """Compute the slots [first, last) from the state in the first."""
        with torch_threads(self._shared):
            for act, step in zip(self._actions[first:last], self._steps[first:last], strict=True):
                act()
                step()

    def show(self, first: int, last: int) -> None:
        """Have the controller act on the states in the slots [first, last)."""
        with torch_threads(self._shared):
            for act in self._actions[first:last]:
                act()
