"""The optional parts of a rollout: an observation, parameters that vary between samples, noise, ends."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch

from engine import runtime
from engine.checks import perhaps
from engine.contracts import check_launch
from engine.controller import Controller
from engine.ends import End, Ends
from engine.errors import SettingError
from engine.finiteness import Finiteness
from engine.launch import Launch
from engine.noise import CONTROL, STATE, Noise, NoiseSource
from engine.observation import Observation, check_derivative, check_observation
from engine.observed import Clock, Observed
from engine.parameters import Asked, SampleParameters
from engine.plan import Segment
from engine.system import System


class Parts:
    """What a trajectory has besides its system and its controller; whatever is not asked for costs nothing.

    Args:
        system, batch, horizon: of the trajectory.
        observation, parameters, noise, end: as in `Trajectory`.

    Attributes:
        parameters: what varies between samples, or None.
        ends: when samples ended, or None.
        seeded: (seeds, draw, first sample, rows of each) that the noise was last settled with, or None.
    """

    def __init__(
        self,
        system: System,
        batch: int,
        horizon: int,
        observation: Observation | None,
        parameters: Sequence[str],
        noise: Noise | None,
        end: End | None,
    ):
        check_observation(observation)
        if noise is not None and not isinstance(noise, Noise):
            raise SettingError(f"Expected noise such as Noise(control=0.1) or None, got {noise!r}.")
        self.system, self.batch, self.clock = system, batch, Clock()
        self._compiled = system.compiled()
        self.parameters = SampleParameters(system, parameters, batch) if parameters else None
        self.ends = None if end is None else Ends(end, batch, horizon, runtime.current().device)
        self._observation = observation
        self._noise = {STATE: noise.state, CONTROL: noise.control} if noise is not None else {}
        self._sources: dict[int, NoiseSource] = {}
        self.seeded: tuple[int | Sequence[int], int, int, int] | None = None

    def controller(self, controller: Controller) -> Controller:
        """The controller as one of the state."""
        if self._observation is None:
            return controller
        return Observed(controller, self._observation, self.parameters, self.clock)

    def allocate(self, slots: int, members: int) -> None:
        """Make buffers for as many slots."""
        shapes = {STATE: self.system.state_shape, CONTROL: self.system.control_shape}
        self._sources = {
            kind: NoiseSource(kind, scale, slots, self.batch, members, shapes[kind])
            for kind, scale in self._noise.items()
            if scale > 0
        }

    @property
    def calls_between_steps(self) -> bool:
        """Whether tensors are looked at between two steps: by an observation, or to see which samples end."""
        return self._observation is not None or self.ends is not None

    @property
    def noise(self) -> dict[int, torch.Tensor]:
        """The noise of every slot [slots, B, ...] by its kind."""
        return {kind: source.values for kind, source in self._sources.items()}

    @property
    def of_system(self) -> torch.Tensor | None:
        """The system's parameters of every sample [B, q], if any vary."""
        return None if self.parameters is None else self.parameters.of_system

    def slot_bytes(self) -> int:
        """Bytes of one slot of those buffers."""
        shapes = {STATE: self.system.state_shape, CONTROL: self.system.control_shape}
        numbers = sum(math.prod(shapes[kind]) for kind, scale in self._noise.items() if scale > 0)
        return self.batch * numbers * runtime.current().dtype.itemsize

    def prepare_act(self, slot: int, act: Launch, control: torch.Tensor) -> Launch:
        """The controller's action followed by noise."""
        return self._disturbed(act, CONTROL, slot, control)

    def prepare_step(self, slot: int, state: torch.Tensor, control: torch.Tensor, next_state: torch.Tensor) -> Launch:
        """The system's step with the samples' parameters, noise and ends."""
        given = {} if self.parameters is None else self.parameters.arguments()
        step = self.system.prepare_step(state, control, next_state, **given)
        check_launch(f"prepare_step of {type(self.system).__name__}", step)
        step = self._disturbed(step, STATE, slot, next_state)
        if self.ends is not None:
            step = self.ends.prepare_step(step, state, next_state, lambda: self.clock.base + slot)
        return step

    def seed(self, seeds: int | Sequence[int], draw: int, first: int = 0, each: int = 1) -> None:
        """Settle the noise of the rollouts that follow."""
        for source in self._sources.values():
            source.seed(seeds, draw, first, each)
        self.seeded = (tuple(seeds) if isinstance(seeds, Iterable) else seeds), draw, first, each

    def constants(self) -> tuple:
        """What the system's launches read besides their arguments, so that a sweep sees whether it changed."""
        return self.system.compiled(), self.system.versions()

    def begin(self, initial: torch.Tensor, parameters: torch.Tensor | None, finite: Finiteness) -> None:
        """Before a forward rollout, which asks by `finite`."""
        if self.system.compiled() != self._compiled:
            raise SettingError(
                f"Expected {self.system.name} with the numbers that its rollout was built for, got others since; build "
                "another Rollout."
            )
        if self.parameters is not None:
            self.parameters.set(parameters)
        elif parameters is not None:
            raise SettingError("Expected no parameters for a rollout built without names of them, got some.")
        if self.ends is not None:
            self.ends.begin(initial, finite.holds)

    def enter(self, part: Segment) -> None:
        """Before the steps of a segment are computed."""
        self.clock.base = part.base
        for source in self._sources.values():
            source.fill(part.base)

    def rows(self, *leading: int) -> torch.Tensor | None:
        """The samples' parameters [*leading, B, q], if there are any."""
        return None if self.parameters is None else self.parameters.rows.expand(*leading, -1, -1)

    def priced(self, cost: Any, rows: torch.Tensor | None) -> Any:
        """The cost given the parameters `rows` [..., q], if there are any and it asks for them."""
        given = getattr(cost, "given", None)
        if self.parameters is None or rows is None or given is None:
            return cost
        return given(self.parameters.named(rows))

    def check_observation(self, states: torch.Tensor) -> None:
        """`check_derivative` of what is seen of `states` [1, B, ...] at the first step, if anything but themselves."""
        observation = self._observation
        if observation is None:
            return
        named = {} if self.parameters is None else self.parameters.named(self.parameters.rows[None])
        steps = torch.zeros(1, dtype=torch.int64, device=states.device)
        check_derivative(lambda at: observation(at, steps, named), states)

    def check_names(self, cost: Any, states: torch.Tensor) -> None:
        """SettingError for a parameter that neither the cost nor the observation of `states` reads, and that is nearly
        one of the system or the cost, or cannot be the system's since it has none.

        Where the cost lists `parameters` of its own it reads these alone. Other names may be for what comes after.
        """
        if self.parameters is None:
            return
        listed = getattr(cost, "parameters", None)
        listed = tuple(listed) if isinstance(listed, Mapping) else ()
        known = (*self.parameters.known, *listed)
        unknown = set(self.parameters.names) - set(known)
        if not unknown:
            return
        rows = self.parameters.rows
        given, by_cost = getattr(cost, "given", None), Asked(self.parameters.named(rows))
        if given is not None and not listed:
            given(by_cost)
        by_policy = Asked(self.parameters.named(rows[None]))
        if self._observation is not None:
            self._observation(states[None], torch.zeros(1, dtype=torch.int64, device=states.device), by_policy)
        for name in (name for name in self.parameters.names if name in unknown - by_cost.names - by_policy.names):
            meant = perhaps(name, known)
            if meant:
                raise SettingError(
                    "Expected parameters that the system has or that the objective or the observation reads, got "
                    f"{name!r}{meant}."
                )
            if not self.parameters.known:
                raise SettingError(
                    f"Expected parameters that the objective or the observation reads, since {self.system.name} has "
                    f"the same constants for every sample, got {name!r}; make it a component of the state, or write a "
                    "VectorSystem."
                )

    def masked(self, values: torch.Tensor, steps: torch.Tensor) -> torch.Tensor:
        """Running costs [S, B] without those of samples that had ended."""
        return values if self.ends is None else self.ends.masked(values, steps)

    def _disturbed(self, launch: Launch, kind: int, slot: int, values: torch.Tensor) -> Launch:
        if kind not in self._sources:
            return launch
        noise, values = self._sources[kind].values[slot], values.detach()

        def disturbed() -> None:
            launch()
            values.add_(noise)

        return disturbed
