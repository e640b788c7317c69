"""What sets the trainings of an experiment apart: its variants, and the label of each member."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from engine.checks import real
from training.clipping import clipping_named
from training.gradients import gradient_named


@dataclass(frozen=True)
class Variant:
    """All that members may differ in but their seed.

    Attributes:
        gradient, clipping: as text.
        learning_rate: of the optimiser.
    """

    gradient: str
    clipping: str = "none"
    learning_rate: float = 1e-3

    @classmethod
    def of(cls, gradient: str, clipping: str = "none", learning_rate: float = 1e-3) -> "Variant":
        """A variant in canonical text; SettingError if anything of it does not exist."""
        rate = real("learning rates above 0", learning_rate)
        return cls(gradient_named(gradient).text, clipping_named(clipping).text, rate)

    @property
    def short(self) -> str:
        """For tables and legends where learning rates do not differ: `C` or `C, norm`."""
        return self.gradient if self.clipping == "none" else f"{self.gradient}, {self.clipping}"


@dataclass(frozen=True)
class Label:
    """One member of an ensemble: its variant, and the seed of its data and its initial weights."""

    variant: Variant
    seed: int

    @property
    def gradient(self) -> str:
        return self.variant.gradient

    @property
    def name(self) -> str:
        """As an address has it: `C,3`."""
        return f"{self.gradient},{self.seed}"

    def to_file(self) -> dict[str, Any]:
        """As files hold it."""
        return {**asdict(self.variant), "seed": self.seed}

    @classmethod
    def from_file(cls, values: Mapping[str, Any]) -> "Label":
        """The label that a file holds; nothing in it needs to be registered here."""
        known = {name: values[name] for name in ("gradient", "clipping", "learning_rate") if name in values}
        return cls(Variant(**known), values["seed"])
