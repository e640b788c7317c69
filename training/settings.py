"""What trainings share, declared once: the settings of an ensemble, and what a comparison crosses."""

from dataclasses import dataclass

from engine import SettingError
from engine.checks import finite, flag, whole


@dataclass(frozen=True)
class TrainingSettings:
    """What all members of an ensemble share; defaults are the paper's."""

    batch_size: int = 8
    """Initial states in a mini-batch."""
    train_samples: int = 256
    """Initial states to train on, whole mini-batches of them."""
    test_samples: int = 256
    """Initial states to test on."""
    optimiser: str = "adam"
    """adam (as Keras has it, as the paper used it), adam-torch, sgd, momentum, adagrad, adadelta or rmsprop."""
    momentum: float = 0.9
    """Of the optimiser "momentum"."""
    shuffle: bool = False
    """Draw a new order of the training states every epoch."""
    memory: str | None = None
    """Budget of a training rollout's buffers, such as 2GiB; everything is stored without one."""

    def __post_init__(self):
        for name in ("batch_size", "train_samples", "test_samples"):
            object.__setattr__(self, name, whole(f"{name} of at least 1", getattr(self, name)))
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
