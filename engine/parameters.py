"""Physical parameters: constants of a system that may differ from sample to sample, and be differentiated."""

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import torch

from engine import runtime
from engine.checks import finite, not_negative, perhaps, positive, several
from engine.errors import SettingError

if TYPE_CHECKING:
    from engine.system import System

Constants = TypeVar("Constants", bound=tuple)


def acts(value: Any) -> bool:
    """Whether a parameter is other than the constant 0, so that terms with it are needed; for `ti.static`."""
    return not (isinstance(value, float) and value == 0.0)


def varies(constants: tuple) -> bool:
    """Whether these are the parameters of one sample among others, whose derivatives are asked for; for `ti.static`."""
    return not all(isinstance(value, float) for value in constants)


def with_values(system: "System", constants: Constants, given: Mapping[str, float]) -> Constants:
    """`constants`, a NamedTuple of a system's, with the given values; SettingError for a name or value it cannot be."""
    known = constants._fields  # type: ignore[attr-defined]
    for name, value in given.items():
        if name not in known:
            raise SettingError(
                f"Expected a parameter of {system.name} among {', '.join(known)}, got {name!r}{perhaps(name, known)}."
            )
        wanted = f"{name} of {system.name}"
        if name in system.positive_parameters:
            positive(f"{wanted} above 0", value)
        elif name in system.not_negative_parameters:
            not_negative(f"{wanted} of at least 0", value)
        else:
            finite(wanted, value)
    return constants._replace(**{name: float(value) for name, value in given.items()})  # type: ignore[attr-defined]


class Asked(Mapping[str, torch.Tensor]):
    """Values by name that note in `names` which were asked for; going through them asks for all."""

    def __init__(self, values: Mapping[str, torch.Tensor]):
        self._values, self.names = values, set[str]()

    def __getitem__(self, name: str) -> torch.Tensor:
        self.names.add(name)
        return self._values[name]

    def __iter__(self) -> Iterator[str]:
        self.names.update(self._values)
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)


class SampleParameters:
    """What varies between the samples of a rollout: some of the system's parameters, and others for cost and policy.

    Args:
        system: the physics.
        names: of what varies; those that are not the system's are read by the objective and the observation alone.
        batch: B.

    Attributes:
        rows: [B, len(names)], as last set.
        of_system: [B, q], all parameters of the system for its kernels; None if none of them varies.
    """

    def __init__(self, system: "System", names: Sequence[str], batch: int):
        self.system, self.names = system, several("names of parameters in a tuple", names)
        if isinstance(names, str) or len(set(names)) < len(self.names) or not all(map(_is_name, self.names)):
            raise SettingError(f"Expected parameters as names that differ, such as ('pole_mass',), got {names!r}.")
        self.known = tuple(system.parameters)
        options = {"dtype": runtime.current().dtype, "device": runtime.current().device}
        self.rows = torch.zeros(batch, len(self.names), **options)
        self._place = [(index, self.known.index(name)) for index, name in enumerate(self.names) if name in self.known]
        defaults = torch.tensor([list(system.parameters.values())], **options)
        self.of_system = defaults.repeat(batch, 1) if self._place else None
        self._above_zero, self._from_zero = (
            torch.tensor([name in names for name in self.names], dtype=torch.bool, device=options["device"])
            for names in (system.positive_parameters, system.not_negative_parameters)
        )

    def set(self, values: torch.Tensor | None) -> None:
        """Take `values` [B, len(names)] for the next rollout.

        Raises:
            ShapeError, SettingError: of another shape; not finite, or below what the system asks for.
        """
        if values is None:
            raise SettingError(f"Expected values of {', '.join(self.names)} for each sample, got none.")
        runtime.current().check(f"parameters {', '.join(self.names)}", values, tuple(self.rows.shape))
        values = values.detach()
        bad = ~torch.isfinite(values) | (self._above_zero & (values <= 0)) | (self._from_zero & (values < 0))
        if bool(bad.any()):
            index, sample = (int(found) for found in bad.T.nonzero()[0])
            kind = "above 0" if self._above_zero[index] else "of at least 0" if self._from_zero[index] else "finite"
            value = float(values[sample, index])
            raise SettingError(f"Expected {self.names[index]} {kind}, got {value:g} at sample {sample}.")
        self.rows.copy_(values)
        if self.of_system is not None:
            for index, column in self._place:
                self.of_system[:, column] = values[:, index]

    def arguments(self, samples: slice = slice(None)) -> dict[str, torch.Tensor]:
        """What the system's launches are prepared with for these samples: their parameters, if any is the system's."""
        return {} if self.of_system is None else {"parameters": self.of_system[samples]}

    def named(self, rows: torch.Tensor) -> dict[str, torch.Tensor]:
        """Columns [...] of rows [..., len(names)] by name, as objectives and observations take them."""
        return dict(zip(self.names, rows.unbind(-1), strict=True))

    def gather(self, of_system: torch.Tensor, into: torch.Tensor) -> None:
        """Add a gradient [B, q] with respect to `of_system` to one [B, len(names)] with respect to `rows`."""
        for index, column in self._place:
            into[:, index] += of_system[:, column]


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and value.isidentifier()
