"""What is shown when: a small state machine that keys drive, with or without a window."""

from collections.abc import Callable
from dataclasses import dataclass

from engine import SettingError
from engine.checks import whole

STEPS_PER_SECOND = 25.0
"""Simulated steps shown in a second at speed 1, of systems that do not say how long a step is."""
_SLOWEST, _FASTEST = 1 / 16, 16.0


@dataclass
class Player:
    """Position in a rollout of `horizon` steps, and in the adjoint's way back if that is played too.

    Attributes:
        horizon: T.
        checkpoints: how many there are to choose from.
        seed: of the initial state.
        backwards: whether the adjoint is played after the rollout.
        speed: 1 shows `steps_per_second` steps a second.
        steps_per_second: of real time, where steps have a length in seconds.
        checkpoint: index of the chosen one.
        position: steps shown so far: 0..T forward, T..2T backward.
    """

    horizon: int
    checkpoints: int = 1
    seed: int = 0
    backwards: bool = False
    speed: float = 1.0
    checkpoint: int = 0
    playing: bool = True
    position: float = 0.0
    steps_per_second: float = STEPS_PER_SECOND

    def __post_init__(self):
        if not _SLOWEST <= self.speed <= _FASTEST:
            raise SettingError(f"Expected a speed from {_SLOWEST:g} to {_FASTEST:g}, got {self.speed:g}.")
        self.seed = whole("a seed of at least 0", self.seed, least=0)

    @property
    def end(self) -> int:
        return 2 * self.horizon if self.backwards else self.horizon

    @property
    def returning(self) -> bool:
        """Whether the adjoint is on its way back."""
        return self.backwards and self.position >= self.horizon

    @property
    def t(self) -> int:
        """The step that is shown, 0 to T."""
        shown = int(self.position + 1e-9)
        return 2 * self.horizon - shown if self.returning else shown

    @property
    def ended(self) -> bool:
        return self.position >= self.end

    def advance(self, seconds: float) -> None:
        """Let time pass."""
        if self.playing:
            self.position = min(self.position + seconds * self.steps_per_second * self.speed, float(self.end))

    def press(self, key: str) -> bool:
        """Act on a key, if it means anything; returns whether the rollout has to be made anew."""
        if key not in KEYS:
            return False
        return KEYS[key][1](self)

    def rewind(self) -> None:
        self.position = 0.0

    def _pause(self) -> bool:
        if self.ended:
            self.position, self.playing = 0.0, True
        else:
            self.playing = not self.playing
        return False

    def _step(self, steps: int) -> bool:
        self.playing = False
        self.position = float(min(max(int(self.position + 1e-9) + steps, 0), self.end))
        return False

    def _restart(self) -> bool:
        self.rewind()
        return True

    def _choose_seed(self, change: int) -> bool:
        self.seed = max(self.seed + change, 0)
        return self._restart()

    def _choose_speed(self, factor: float) -> bool:
        self.speed = min(max(self.speed * factor, _SLOWEST), _FASTEST)
        return False

    def _choose_checkpoint(self, change: int) -> bool:
        self.checkpoint = min(max(self.checkpoint + change, 0), self.checkpoints - 1)
        return self._restart()


KEYS: dict[str, tuple[str, Callable[[Player], bool]]] = {
    "space": ("pause", Player._pause),
    "Right": ("step", lambda player: player._step(1)),
    "Left": ("back", lambda player: player._step(-1)),
    "r": ("restart", Player._restart),
    "s": ("next seed", lambda player: player._choose_seed(1)),
    "a": ("seed before", lambda player: player._choose_seed(-1)),
    "Up": ("faster", lambda player: player._choose_speed(2.0)),
    "Down": ("slower", lambda player: player._choose_speed(0.5)),
    "n": ("next checkpoint", lambda player: player._choose_checkpoint(1)),
    "p": ("checkpoint before", lambda player: player._choose_checkpoint(-1)),
}
"""Keys, what they do in words, and what they do; a restart undoes pushes."""
