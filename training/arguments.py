"""The words of a command line, checked against the dataclasses of options that they are to fill.

tyro reads a command that stands as this module leaves it: what is not an option or its value first, then the options.
Whatever a user may get wrong before that is one sentence.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields, is_dataclass
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin, get_type_hints

import tyro

from engine import SettingError
from engine.checks import perhaps

_POSITIONAL = get_args(tyro.conf.Positional[int])[1]
_KINDS = {int: "a whole number", float: "a finite number", str: "a word", Path: "a path"}
HELP = "--help"
MAY_BE_EMPTY = "may be empty"
"""Annotates a list that means something without values, such as "none of them"."""


@dataclass(frozen=True)
class Option:
    """An option of a command.

    Attributes:
        flag: as it is written, such as --train-samples; the name of what is no option, such as TRAINED.
        kind: the type of each value.
        values: how many it takes; None for one or more.
        required, positional: whether it must be there; whether it is a word without a flag.
        may_be_empty: whether a list of no values means something.
    """

    flag: str
    kind: type
    values: int | None = 1
    required: bool = False
    positional: bool = False
    may_be_empty: bool = False

    def check(self, values: Sequence[str]) -> None:
        """SettingError unless these words can be its values."""
        if self.values is None and not values and not self.may_be_empty:
            raise SettingError(f"Expected at least one value after {self.flag}, got none.")
        if self.values is not None and len(values) != self.values:
            several = f"{self.values} values" if self.values != 1 else "a value"
            got = f"{len(values)}" if values else "none"
            raise SettingError(f"Expected {several if self.values else 'no value'} after {self.flag}, got {got}.")
        for value in values:
            if not value.strip() or not _reads(self.kind, value):
                raise SettingError(f"Expected {_KINDS[self.kind]} for {self.flag}, got {value!r}.")


@dataclass(frozen=True)
class Line:
    """A command line taken apart: words that belong to no option, and the values of each option that is given."""

    words: list[str]
    given: dict[str, list[str]]

    def arguments(self) -> list[str]:
        """The same in the order that tyro reads."""
        single = [f"{flag}={values[0]}" for flag, values in self.given.items() if len(values) == 1]
        several = [word for flag, values in self.given.items() if len(values) != 1 for word in (flag, *values)]
        return [*self.words, *single, *several]


def options_of(*kinds: Any) -> dict[str, Option]:
    """The options of these dataclasses and of those that their fields hold, by flag; a flag is the field's name,
    or that which `tyro.conf.arg` gives it."""
    found: dict[str, Option] = {}
    for kind in kinds:
        hints = get_type_hints(kind, include_extras=True)
        for entry in fields(kind):
            hint, required = hints[entry.name], entry.default is MISSING and entry.default_factory is MISSING
            markers = get_args(hint)[1:] if get_origin(hint) is Annotated else ()
            hint = _bare(hint)
            if isinstance(hint, TypeVar):  # a task's options, given beside the command that holds them
                continue
            if is_dataclass(hint):
                found |= options_of(hint)
                continue
            names = [marker.name for marker in markers if getattr(marker, "name", None)]
            flag = f"--{(names or [entry.name])[0].replace('_', '-')}"
            if _POSITIONAL in markers:
                flag = entry.name.upper()
            of, values = _values(hint)
            found[flag] = Option(flag, of, values, required, _POSITIONAL in markers, MAY_BE_EMPTY in markers)
    return found


def read(arguments: Sequence[str], options: Mapping[str, Option], is_task: Callable[[str], bool]) -> Line:
    """Take a command line apart; options that nobody knows are kept with what follows them.

    Args:
        options: of every form that the command has.
        is_task: whether a word names a task, which is no value of a list or of an option that takes a number.

    Raises:
        SettingError: a list given twice.
    """
    words: list[str] = []
    given: dict[str, list[str]] = {}
    waiting: list[str] = list(arguments)
    while waiting:
        word = waiting.pop(0)
        if not _is_flag(word):
            words.append(_at_home(word))
            continue
        flag, equals, value = word.partition("=")
        flag = HELP if flag == "-h" else flag.replace("_", "-")
        option = options.get(flag) or options.get(flag.replace("--no-", "--", 1))
        if flag in given and option is not None and option.values is None:
            raise SettingError(f"Expected {flag} once with all its values, got it again.")
        given.pop(_opposite(flag), None)  # the last one counts, so that scripts can add to a command
        given[flag] = [value] if equals else []
        most = math.inf if option is None or option.values is None else option.values
        while waiting and not equals and flag != HELP and len(given[flag]) < most:
            number = option is not None and option.kind in (int, float)
            if _is_flag(waiting[0]) or (is_task(waiting[0]) and (number or most == math.inf)):
                break
            # What is no number ends a list of numbers where the run or the task is still to come.
            if number and given[flag] and not words and not _reads(float, waiting[0], finite=False):
                break
            given[flag].append(waiting.pop(0))
        given[flag] = [_at_home(value) for value in given[flag]]
    return Line(words, given)


def check(line: Line, options: Mapping[str, Option], command: str, elsewhere: Mapping[str, Iterable[str]]) -> None:
    """SettingError unless every option of the line is one of `options`, with values that fit, and none is missing.

    Args:
        command: as it is called, for the message.
        elsewhere: flags of other forms of the command, by what those are.
    """
    for flag, values in line.given.items():
        option = options.get(flag)
        if option is None and flag.startswith("--no-"):
            option = options.get(flag.replace("--no-", "--", 1))
            option = option if option is not None and option.values == 0 else None
        if option is None or option.positional:
            of = [name for name, flags in elsewhere.items() if flag in flags]
            known = [known for known, entry in options.items() if not entry.positional]
            note = f", an option of {', '.join(of)}" if of else perhaps(flag, known)
            raise SettingError(f"Expected an option that {command} {HELP} lists, got {flag}{note}.")
        option.check(values)
    positional = [option for option in options.values() if option.positional]
    for option, _ in zip(positional, line.words, strict=False):
        option.check(line.words[:1])
    if len(line.words) > len(positional):
        extra = " ".join(line.words[len(positional) :])
        raise SettingError(f"Expected only options after {_called(command, positional)}, got {extra!r} too.")
    for option in options.values():
        absent = positional.index(option) >= len(line.words) if option.positional else option.flag not in line.given
        if option.required and absent:
            wanted = option.flag if option.positional else f"{option.flag} with {_KINDS[option.kind]}"
            raise SettingError(f"Expected {wanted} after {command}, got none; {command} {HELP} says more.")


def _called(command: str, positional: Sequence[Option]) -> str:
    return " ".join((command, *(option.flag for option in positional)))


def _bare(hint: Any) -> Any:
    """A type without what is annotated to it."""
    return _bare(get_args(hint)[0]) if get_origin(hint) is Annotated else hint


def _values(hint: Any) -> tuple[type, int | None]:
    """(type of a value, how many)."""
    if get_origin(hint) in (Union, UnionType):
        return _values(next(kind for kind in get_args(hint) if kind is not type(None)))
    if get_origin(hint) is tuple:
        kinds = get_args(hint)
        return kinds[0], None if kinds[-1] is ... else len(kinds)
    return (str, 0) if hint is bool else (hint, 1)


def _is_flag(word: str) -> bool:
    """Whether a word is written as an option; a negative number is not, and neither is -1GiB."""
    return len(word) > 1 and word[0] == "-" and word[1] not in "0123456789." and not _reads(float, word, finite=False)


def _opposite(flag: str) -> str:
    """--no-peers of --peers, and the reverse."""
    return f"--{flag.removeprefix('--no-')}" if flag.startswith("--no-") else f"--no-{flag.removeprefix('--')}"


def _reads(kind: type, value: str, finite: bool = True) -> bool:
    if kind not in (int, float):
        return True
    try:
        return math.isfinite(kind(value)) or not finite
    except (ValueError, OverflowError):
        return False


def _at_home(word: str) -> str:
    """The word with ~ or ~user in front as that home directory; no option has another use for a leading ~."""
    if not word.startswith("~"):
        return word
    try:
        return str(Path(word).expanduser())
    except RuntimeError as error:
        raise SettingError(f"Expected a user's home directory in {word}, got a user that is not there.") from error
