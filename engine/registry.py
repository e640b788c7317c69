"""Registries: names under which users and plug-ins offer what they bring, and where each of them comes from."""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Generic, TypeVar

from engine.checks import perhaps
from engine.errors import SettingError

Thing = TypeVar("Thing")

SHIPPED = "evenflow"
"""The origin of what ships."""
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]*")
_origin: ContextVar[str | None] = ContextVar("origin of what is registered", default=None)


def check_name(kind: str, name: object) -> None:
    """SettingError unless this may be the name of a thing of this kind."""
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise SettingError(
            f"Expected a name for a {kind} of letters, digits and hyphens that begins with a letter, got {name!r}."
        )


class Registry(Mapping[str, Thing], Generic[Thing]):
    """Things of one kind by name, in the order in which they were registered.

    Looking up a name that is not there raises SettingError with the names that are.

    Args:
        kind: what errors call a thing, such as "task".
        origin: of what is registered outside of any plug-in and outside of the tables that ship.
    """

    def __init__(self, kind: str, origin: str = "this program"):
        self.kind, self._default = kind, origin
        self._things: dict[str, tuple[Thing, str]] = {}

    def register(self, name: str, thing: Thing) -> None:
        """Add a thing; SettingError for no name, and for one that is taken.

        What a program itself has registered it may replace, as a cell of a notebook does that is run again.
        """
        check_name(self.kind, name)
        taken = next((known for known in self._things if known.lower() == name.lower()), None)
        if taken is not None and not self.replaces(taken, name):
            raise SettingError(
                f"Expected a new name for a {self.kind}, got {name!r}, which {self.origin(taken)} has registered; "
                "choose another."
            )
        self._things[name] = (thing, _origin.get() or self._default)

    def __getitem__(self, name: str) -> Thing:
        if name not in self._things:
            raise SettingError(
                f"Expected a {self.kind} among {', '.join(self._things)}, got {name!r}{perhaps(str(name), self)}."
            )
        return self._things[name][0]

    def __contains__(self, name: object) -> bool:
        return name in self._things

    def __iter__(self) -> Iterator[str]:
        return iter(self._things)

    def __len__(self) -> int:
        return len(self._things)

    def replaces(self, taken: str, name: str) -> bool:
        """Whether a name that is taken may be registered anew: the same, by the program that it is of."""
        return taken == name and self.origin(taken) == self._default == (_origin.get() or self._default)

    def origin(self, name: str) -> str:
        """Where a thing comes from: `SHIPPED`, a plug-in, or "this program"."""
        self[name]
        return self._things[name][1]

    def of(self, origin: str) -> list[str]:
        """Names of what this origin has registered."""
        return [name for name, (_, source) in self._things.items() if source == origin]

    def withdraw(self, origin: str) -> None:
        """Forget all that this origin has registered: a plug-in that fails half-way leaves nothing behind."""
        for name in self.of(origin):
            del self._things[name]


@contextmanager
def registering(origin: str) -> Iterator[None]:
    """What is registered inside comes from `origin`."""
    token = _origin.set(origin)
    try:
        yield
    finally:
        _origin.reset(token)
