"""Values from files against the types of dataclass fields."""

from dataclasses import dataclass
from typing import Any, ClassVar

import pytest

from engine import SettingError
from training.checks import check_types

pytestmark = pytest.mark.float64


@dataclass(frozen=True)
class Kinds:
    constant: ClassVar[int] = 1
    whole: int = 1
    real: float = 1.0
    flag: bool = False
    text: str | None = None
    many: tuple[int, ...] = ()
    rows: tuple[tuple[str, float], ...] = ()
    either: tuple[int, ...] | None = None
    table: dict[str, Any] | None = None


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"whole": -3, "real": 2, "flag": True, "text": "a", "many": (1, 2)},
        {"rows": (("a", 1), ("b", 0.5)), "either": (1,), "table": {"a": [1]}},
        {"text": None, "either": None, "rows": ()},
    ],
)
def test_values_that_fit_pass(values):
    check_types(Kinds, values)
    assert Kinds(**values)


@pytest.mark.parametrize(
    ("name", "value", "wanted"),
    [
        ("whole", 1.0, "int"),
        ("whole", True, "int"),
        ("whole", None, "int"),
        ("real", "1e-3", "float"),
        ("real", False, "float"),
        ("flag", 1, "bool"),
        ("flag", "no", "bool"),
        ("text", 5, r"str \| None"),
        ("many", [1, 2], r"tuple\[int, \.\.\.\]"),
        ("many", (1, "2"), r"tuple\[int, \.\.\.\]"),
        ("many", 5, r"tuple\[int, \.\.\.\]"),
        ("rows", (("a",),), r"tuple\[tuple\[str, float\], \.\.\.\]"),
        ("rows", (("a", 1, 2),), r"tuple\[tuple\[str, float\], \.\.\.\]"),
        ("either", "a", r"tuple\[int, \.\.\.\] \| None"),
        ("table", [], r"dict\[str, typing\.Any\] \| None"),
    ],
)
def test_values_of_other_types_are_refused_by_name(name, value, wanted):
    with pytest.raises(SettingError, match=rf"^Expected {name} as {wanted}, got .*\.$"):
        check_types(Kinds, {name: value})


@pytest.mark.parametrize("name", ["constant", "unknown"])
def test_names_that_are_no_fields_are_refused_with_those_there_are(name):
    with pytest.raises(SettingError, match=rf"^Expected settings among whole, real, .*, got '{name}'\.$"):
        check_types(Kinds, {name: 1})
