"""Kernels that equal objects of a class share, where Taichi would compile those of each object anew."""

import functools
from typing import Any


def compiled_for(owner: Any) -> Any:
    """The object for which Taichi compiles the kernels of `owner`.

    That is `owner` itself unless its very class, not one it derives from, declares `read_by_kernels`: the names of all
    attributes of an object that the kernels read. Then it is an object of this class that has those attributes and no
    others, the same one for all owners that agree in their values, of equal types and signs. What a kernel reads and
    the class does not declare is therefore missed when it is first compiled, instead of being taken from another owner.
    """
    names = vars(type(owner)).get("read_by_kernels")
    if names is None:
        return owner
    values = tuple(getattr(owner, name) for name in names)
    return _stand_in(type(owner), names, values, repr(values))


@functools.cache
def _stand_in(kind: type, names: tuple[str, ...], values: tuple, written: str) -> Any:
    """Kept for as long as the process, as Taichi keeps what it compiled; `written` tells 1 from 1.0 and from True."""
    made = object.__new__(kind)
    vars(made).update(zip(names, values, strict=True))
    return made
