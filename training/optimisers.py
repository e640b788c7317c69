"""Torch optimisers for an ensemble whose members may differ in learning rate.

With g the gradient, t the update from 1 on and lr the learning rate, the displacement of a parameter is -lr times what
`OPTIMISERS` says. "adam" places ε as Keras does, with which the paper was made; everything else is as torch has it,
with torch's defaults.
"""

import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from engine import SettingError
from engine.checks import finite

Adjust = Callable[[torch.Tensor, torch.Tensor], None]
"""Called with a displacement and the gradient that it was made from, both [P, n]."""
EPSILON = 1e-7
BETAS = (0.9, 0.999)


@dataclass(frozen=True)
class Optimiser:
    """An optimiser as users name it.

    Attributes:
        description: its displacement for each unit of learning rate, and its constants.
        make: builds torch's optimiser of one parameter at learning rate 1, given the momentum.
        keras_epsilon: ε is held against √v as it is, instead of against √v corrected for its start at zero.
        squares: it keeps squares of gradients, which overflow long before gradients do.
    """

    description: str
    make: Callable[[torch.Tensor, float], torch.optim.Optimizer]
    keras_epsilon: bool = False
    squares: bool = True


def _adam(parameter: torch.Tensor, momentum: float) -> torch.optim.Optimizer:
    return torch.optim.Adam([parameter], lr=1.0, betas=BETAS, eps=EPSILON, fused=True)


_MEANS = "m and v the running means of g and g² with β = 0.9 and 0.999"

OPTIMISERS: dict[str, Optimiser] = {
    "adam": Optimiser(
        f"√(1-β₂ᵗ)/(1-β₁ᵗ) m / (√v + ε), ε = 1e-7, {_MEANS}; Keras' form, the paper's",
        _adam,
        keras_epsilon=True,
    ),
    "adam-torch": Optimiser(
        f"m̂ / (√v̂ + ε), ε = 1e-7, m̂ = m/(1-β₁ᵗ), v̂ = v/(1-β₂ᵗ), {_MEANS}; torch's form, at first called adam",
        _adam,
    ),
    "sgd": Optimiser("g", lambda parameter, momentum: torch.optim.SGD([parameter], lr=1.0), squares=False),
    "momentum": Optimiser(
        "b, with b ← momentum · b + g from b = 0; Keras' and torch's alike",
        lambda parameter, momentum: torch.optim.SGD([parameter], lr=1.0, momentum=momentum),
        squares=False,
    ),
    "adagrad": Optimiser(
        "g / (√s + ε), s ← s + g² from 0, ε = 1e-10; torch's, where Keras' s starts at 0.1 and ε = 1e-7",
        lambda parameter, momentum: torch.optim.Adagrad([parameter], lr=1.0),
    ),
    "adadelta": Optimiser(
        "d = √(a + ε)/√(v + ε) g, running means v of g² and a of d² with ρ = 0.9, ε = 1e-6, made for lr = 1; "
        "torch's, where Keras has ρ = 0.95 and ε = 1e-7",
        lambda parameter, momentum: torch.optim.Adadelta([parameter], lr=1.0),
    ),
    "rmsprop": Optimiser(
        "g / (√v + ε), running mean v of g² with α = 0.99, ε = 1e-8; torch's, where Keras has g/√(v + ε) with "
        "α = 0.9 and ε = 1e-7",
        lambda parameter, momentum: torch.optim.RMSprop([parameter], lr=1.0),
    ),
}


class EnsembleOptimiser:
    """θ_p ← θ_p + lr_p d_p, where d is the displacement that a torch optimiser makes at learning rate 1.

    Every optimiser here is elementwise and its displacement proportional to its learning rate, so one optimiser on
    a displacement [P, n] that starts each update at zero serves all members.

    Torch's Adam with ε/√(1-β₂ᵗ) in place of ε is Keras' form: both sides of its fraction are √(1-β₂ᵗ) times smaller.
    In float32 v is 0 for |g| below 1e-22; √v is nothing beside ε there, so the step is right to rounding all the same.

    Args:
        theta: parameters [P, n].
        learning_rates: [P].
        name: one of `OPTIMISERS`.
        momentum: of "momentum".
    """

    def __init__(self, theta: torch.Tensor, learning_rates: torch.Tensor, name: str = "adam", momentum: float = 0.9):
        self.kind = optimiser_named(name)
        momentum = finite("a momentum in [0, 1)", momentum, lambda number: 0 <= number < 1)
        if not torch.isfinite(learning_rates).all():
            raise SettingError(
                f"Expected learning rates that are finite as {theta.dtype}, got {learning_rates.tolist()}."
            )
        self.theta, self.learning_rates = theta, learning_rates.unsqueeze(1)
        self.displacement = torch.zeros_like(theta, requires_grad=True)
        self.optimiser = self.kind.make(self.displacement, momentum)
        # Torch makes an optimiser's state in its first step; all of it starts at zero.
        self.displacement.grad = torch.zeros_like(self.displacement)
        self.optimiser.step()
        # Torch wraps a step for its hooks and its profiler, which takes as long as the step of a small policy itself.
        self._displace = inspect.unwrap(type(self.optimiser).step)
        for value in self.tensors().values():
            value.zero_()
        self._updates = 0
        self._frozen: torch.Tensor | None = None

    def only(self, active: torch.Tensor) -> None:
        """From now on move the members that are `active` [P]; the others stay where they are."""
        frozen = (~active).nonzero().flatten()
        self._frozen = frozen if len(frozen) else None

    @torch.no_grad()
    def step(self, gradient: torch.Tensor, adjust: Adjust | None = None) -> None:
        """Move the members against `gradient` [P, n].

        `adjust` may change the displacement, at learning rate 1, in place before it is made.
        """
        frozen = self._frozen
        self.displacement.grad = gradient if frozen is None else gradient.index_fill(0, frozen, 0.0)
        self._updates += 1
        if self.kind.keras_epsilon:
            self.optimiser.param_groups[0]["eps"] = keras_epsilon(self._updates)
        self._displace(self.optimiser)
        if adjust is not None:
            adjust(self.displacement, gradient)
        if frozen is not None:
            self.displacement.index_fill_(0, frozen, 0.0)
        self.theta.addcmul_(self.displacement, self.learning_rates)
        self.displacement.zero_()

    def largest(self) -> float:
        """The largest |g| that this optimiser can take: beyond it the square of g, where it keeps any, is infinite."""
        most = torch.finfo(self.theta.dtype).max
        return math.sqrt(most) if self.kind.squares else most

    def tensors(self) -> dict[str, torch.Tensor]:
        """The optimiser's state by name, for a checkpoint."""
        state = self.optimiser.state[self.displacement]
        return {name: value for name, value in state.items() if isinstance(value, torch.Tensor)}

    def load(self, tensors: dict[str, torch.Tensor]) -> None:
        """Continue from `tensors()` of an earlier optimiser, wherever those are."""
        for name, value in self.tensors().items():
            value.copy_(tensors[name])
        self._updates = int(tensors["step"]) if self.kind.keras_epsilon else 0


def keras_epsilon(update: int) -> float:
    """The ε with which torch's Adam makes Keras' step at this update, counted from 1."""
    return EPSILON / math.sqrt(1.0 - BETAS[1] ** update)


def optimiser_named(name: str) -> Optimiser:
    """The optimiser with this name; SettingError if there is none."""
    if not isinstance(name, str) or name not in OPTIMISERS:
        raise SettingError(f"Expected an optimiser among {', '.join(OPTIMISERS)}, got {name!r}.")
    return OPTIMISERS[name]


# What files call an optimiser where that is not its name. Before "adam" was Keras' form it was torch's: a file that
# says "adam" is from then, and is read as "adam-torch".
_IN_FILES = {"adam": "adam-keras"}
_FROM_FILES = {"adam": "adam-torch", **{written: name for name, written in _IN_FILES.items()}}


def settings_to_file(settings: dict[str, Any]) -> dict[str, Any]:
    """Training settings as files hold them, from which it is plain which Adam is meant."""
    name = settings.get("optimiser")
    if not isinstance(name, str):
        return settings
    # Without a set for validation they are as before there could be one.
    kept = {key: value for key, value in settings.items() if key != "validation_samples" or value}
    return {**kept, "optimiser": _IN_FILES.get(name, name)}


def settings_from_file(settings: Any) -> Any:
    """Training settings as this version names them, from those of a file of any version; other values pass."""
    name = settings.get("optimiser") if isinstance(settings, dict) else None
    if not isinstance(name, str):
        return settings
    return {"validation_samples": 0, **settings, "optimiser": _FROM_FILES.get(name, name)}


def made_before(settings: Any) -> str | None:
    """A sentence about the optimiser if settings of a file are from before Keras' form, else None."""
    if not isinstance(settings, dict) or settings.get("optimiser") != "adam":
        return None
    return (
        'Made by Adam as torch has it, which was called "adam" then and is "adam-torch" now; it goes on with that, '
        'since "adam" now places ε as Keras does.'
    )
