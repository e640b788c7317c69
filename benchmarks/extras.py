"""What Evenflow can do besides with packages that are not here, as its installation declares them."""

import re
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, requires, version

_OF_DEVELOPERS = ("dev", "docs")


def missing(declared: Sequence[str] | None = None) -> dict[str, list[str]]:
    """For each extra that is not all here the packages that it lacks; those of developers are left out.

    Args:
        declared: requirements as packages state them, such as 'onnx; extra == "export"'; by default this one's own,
            none of which are known where it was not installed.
    """
    found: dict[str, list[str]] = {}
    for requirement in _own() if declared is None else declared:
        package, _, marker = requirement.partition(";")
        extra = re.search(r"extra == ['\"]([\w-]+)['\"]", marker)
        name = re.match(r"[\w.-]+", package)
        if extra and name and extra[1] not in _OF_DEVELOPERS and not _is_here(name[0]):
            found.setdefault(extra[1], []).append(name[0])
    return found


def sentences(extras: dict[str, list[str]]) -> list[str]:
    """What to do about each."""
    return [
        f"The extra {extra} lacks {', '.join(packages)}; pip install 'evenflow[{extra}]' brings what it needs."
        for extra, packages in extras.items()
    ]


def _own() -> list[str]:
    try:
        return requires("evenflow") or []
    except PackageNotFoundError:
        return []


def _is_here(package: str) -> bool:
    try:
        version(package)
    except PackageNotFoundError:
        return False
    return True
