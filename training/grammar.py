"""The grammar of gradients as text; nothing is evaluated or looked up here.

call     := name [ "(" argument { "," argument } ")" ]
argument := [ name "=" ] ( call | number )
"""

import re
from dataclasses import dataclass

from engine import SettingError

_TOKEN = re.compile(
    r"\s*(?:(?P<number>[+-]?(?:(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?|(?i:inf|nan)(?![A-Za-z0-9_=-])))"
    r"|(?P<name>[A-Za-z][A-Za-z0-9_-]*)"
    r"|(?P<mark>[(),=]))"
)
_LONGEST, _DEEPEST = 500, 20
NUMBERS = ("inf", "nan")
"""Words that are read as numbers, so that none of them is the name of a gradient."""


@dataclass(frozen=True)
class Call:
    """A name with its arguments: (keyword or None, number or call)."""

    name: str
    arguments: tuple[tuple[str | None, "float | Call"], ...] = ()


def parse(text: str) -> Call:
    """What a text says; SettingError, in one sentence, if it is not of the grammar."""
    if not isinstance(text, str):
        raise SettingError(f"Expected a gradient as text such as C or clip-norm(R, 1), got {text!r}.")
    if len(text) > _LONGEST:
        raise SettingError(f"Expected a gradient of at most {_LONGEST} characters, got {len(text)}.")
    reader = _Reader(text)
    call = reader.call(0)
    if reader.rest():
        advice = "separate gradients by spaces" if reader.rest().startswith(",") else "drop the rest"
        raise SettingError(f"Expected one gradient, got {text!r}, which goes on with {reader.rest()!r}; {advice}.")
    return call


def parts(text: str) -> list[str]:
    """The parts of a text between the commas that stand in no parentheses, as of `clip-norm(R, 1),3`."""
    found, depth = [""], 0
    for letter in text:
        depth += {"(": 1, ")": -1}.get(letter, 0)
        if letter == "," and depth <= 0:
            found.append("")
        else:
            found[-1] += letter
    return [part.strip() for part in found]


class _Reader:
    """Reads a text from left to right."""

    def __init__(self, text: str):
        self.text, self.position = text, 0

    def call(self, depth: int) -> Call:
        if depth > _DEEPEST:
            raise SettingError(f"Expected a gradient nested at most {_DEEPEST} deep, got a deeper one.")
        name = self._next("name", "a name")
        arguments: list[tuple[str | None, float | Call]] = []
        if self._takes("("):
            while not self._takes(")"):
                if arguments:
                    self._next("mark", "',' or ')'", ",")
                arguments.append((self._keyword(), self._value(depth)))
        return Call(name, tuple(arguments))

    def rest(self) -> str:
        return self.text[self.position :].strip()

    def _value(self, depth: int) -> float | Call:
        found = _TOKEN.match(self.text, self.position)
        if found is None or not found["number"]:
            return self.call(depth + 1)
        self.position = found.end()
        return float(found["number"])

    def _keyword(self) -> str | None:
        """The name of `name=`, if that is what comes next."""
        before = self.position
        found = _TOKEN.match(self.text, before)
        if found is not None and found["name"]:
            self.position = found.end()
            if self._takes("="):
                return found["name"].replace("-", "_")
            self.position = before
        return None

    def _takes(self, mark: str) -> bool:
        found = _TOKEN.match(self.text, self.position)
        if found is None or found["mark"] != mark:
            return False
        self.position = found.end()
        return True

    def _next(self, group: str, wanted: str, exactly: str | None = None) -> str:
        found = _TOKEN.match(self.text, self.position)
        if found is None or not found[group] or exactly not in (None, found[group]):
            got = repr(self.rest()) if self.rest() else "its end"
            raise SettingError(f"Expected {wanted} in the gradient {self.text!r}, got {got}.")
        self.position = found.end()
        return found[group]
