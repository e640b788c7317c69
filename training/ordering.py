"""The order of an ensemble's gradients. A sweep covers a run of members, from the first that needs it to the last:
those that share sweeps stand side by side, so that as few as possible are swept without need.
"""

from collections.abc import Iterable, Mapping, Sequence

from training.gradients import gradient_named, rank_of

# The order of these five in every run that there is; any other place in it is free.
_SETTLED = ("N", "R", "C", "M", "S")


def swept(order: Sequence[str], members: Mapping[str, int]) -> int:
    """How many members all sweeps cover together, each counted once for each sweep.

    Args:
        order: gradients as text.
        members: how many there are of each.
    """
    rules = [set(gradient_named(text).estimator.rules) for text in order]
    return _swept(rules, [members[text] for text in order])


def sweep_order(members: Mapping[str, int]) -> tuple[str, ...]:
    """An order of these gradients with few members swept; it depends on nothing but them and their numbers of members.

    Gradients are put in where they add least, then moved for as long as that helps.
    """
    rules = {text: set(gradient_named(text).estimator.rules) for text in members}

    def cost(order: Sequence[str]) -> int:
        return _swept([rules[text] for text in order], [members[text] for text in order])

    def put_in(order: list[str], text: str) -> list[str]:
        places = range(len(order) + 1)
        return min(([*order[:place], text, *order[place:]] for place in places), key=cost)

    others = sorted((text for text in members if text not in _SETTLED), key=lambda text: (rank_of(text), text))
    order = [text for text in _SETTLED if text in members]
    for text in others:
        order = put_in(order, text)
    best = cost(order) + 1
    while cost(order) < best:
        best = cost(order)
        for text in others:
            order = put_in([one for one in order if one != text], text)
    return tuple(order)


def _swept(rules: Sequence[Iterable], members: Sequence[int]) -> int:
    spans: dict = {}
    place = 0
    for needed, count in zip(rules, members, strict=True):
        for rule in needed:
            spans[rule] = (spans.get(rule, (place,))[0], place + count)
        place += count
    return sum(end - start for start, end in spans.values())
