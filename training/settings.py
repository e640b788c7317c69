"""What trainings share, declared once: the settings of an ensemble, and what a comparison crosses."""

from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import Any

import tyro

from engine import SettingError
from engine.checks import above_zero, finite, flag, whole
from engine.memory import parse_bytes
from training.clipping import clipping_named
from training.gradients import gradient_named
from training.optimisers import optimiser_named

COMPARED = ("R", "M", "S", "C")
"""The gradients of a study, where it names none."""


@dataclass(frozen=True)
class TrainingSettings:
    """What all members of an ensemble share; defaults are the paper's."""

    batch_size: int = 8
    """Initial states in a mini-batch."""
    train_samples: int = 256
    """Initial states to train on, whole mini-batches of them."""
    test_samples: int = 256
    """Initial states to test on."""
    validation_samples: int = 0
    """Initial states of a third set; where there are any, a study reports of each training its best epoch on them."""
    optimiser: str = "adam"
    """adam (as Keras has it, as the paper used it), adam-torch, sgd, momentum, adagrad, adadelta or rmsprop."""
    momentum: float = 0.9
    """Of the optimiser "momentum"."""
    shuffle: bool = False
    """Draw a new order of the training states every epoch."""
    memory: str | None = None
    """Budget of a training rollout's buffers, such as 2GiB; everything is stored without one, and of the copies that
    scores disturb always."""

    def __post_init__(self):
        for name in ("batch_size", "train_samples", "test_samples"):
            object.__setattr__(self, name, whole(f"{name} of at least 1", getattr(self, name)))
        count = whole("validation_samples of at least 0", self.validation_samples, least=0)
        object.__setattr__(self, "validation_samples", count)
        if self.batch_size > self.train_samples:
            raise SettingError(
                f"Expected a batch no larger than the {self.train_samples} training states, got {self.batch_size}."
            )
        if self.train_samples % self.batch_size:
            less = self.train_samples // self.batch_size * self.batch_size
            raise SettingError(
                f"Expected training states in whole mini-batches of {self.batch_size}, got {self.train_samples}; take "
                f"{less} or {less + self.batch_size} of them, or another batch size."
            )
        momentum = finite("a momentum in [0, 1)", self.momentum, lambda number: 0 <= number < 1)
        object.__setattr__(self, "momentum", momentum)
        object.__setattr__(self, "shuffle", flag("shuffle", self.shuffle))
        optimiser_named(self.optimiser)
        if self.memory is not None:
            count = parse_bytes(self.memory)
            if not isinstance(self.memory, str):  # files hold it as text
                object.__setattr__(self, "memory", str(count))


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """What is trained beside what: every gradient × clipping × learning rate, all for as long and with one setting."""

    gradients: tuple[str, ...] = ("R", "C")
    """As `evenflow list` shows them, such as C or "clip-norm(R, 1)"."""
    clippings: tuple[str, ...] = ("none",)
    """Each is trained: none, or norm or value, at 1 or at a limit, as "norm(0.5)"."""
    learning_rates: tuple[float, ...] = (1e-3,)
    """Each is trained; a study reports of several, for each variant, the one that is best on its tuning seeds."""
    epochs: int = 100
    """Passes over the training states."""
    settings: tyro.conf.OmitArgPrefixes[TrainingSettings] = field(default_factory=TrainingSettings)
    """What all share."""

    def __post_init__(self):
        checked = {
            "gradients": _each_once("gradient", self.gradients, lambda text: gradient_named(text).text),
            "clippings": _each_once("clipping", self.clippings, lambda text: clipping_named(text).text),
            "learning_rates": tuple(
                above_zero("a learning rate above 0", rate) for rate in distinct("learning rates", self.learning_rates)
            ),
            "epochs": whole("epochs of at least 1", self.epochs),
        }
        if not isinstance(self.settings, TrainingSettings):
            raise SettingError(f"Expected settings such as TrainingSettings(batch_size=8), got {self.settings!r}.")
        for name, value in checked.items():
            object.__setattr__(self, name, value)

    def shared(self) -> dict[str, Any]:
        """The settings of a comparison by name, of this or of what is built on it."""
        return {entry.name: getattr(self, entry.name) for entry in fields(Comparison)}


def distinct(name: str, values: Any) -> tuple:
    """`values` as a tuple; SettingError unless they are at least one, and none twice."""
    if not isinstance(values, (tuple, list)):
        raise SettingError(f"Expected {name} as a tuple of them, got {values!r}.")
    if not values:
        raise SettingError(f"Expected at least one of {name}, got none.")
    if len(set(values)) < len(values):
        raise SettingError(f"Expected {name} without repetition, got {list(values)}.")
    return tuple(values)


def _each_once(kind: str, given: Any, canonical: Callable[[str], str]) -> tuple[str, ...]:
    """Texts in canonical form; SettingError where two are the same in that."""
    texts = tuple(canonical(text) for text in distinct(f"{kind}s", given))
    if len(set(texts)) < len(texts):
        raise SettingError(f"Expected each {kind} once, got {list(given)}.")
    return texts
