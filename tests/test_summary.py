"""Groups of members and what became of them."""

import math

import pytest

from training.summary import groups, summaries
from training.variant import Label, Variant

pytestmark = pytest.mark.float64


def label(gradient, seed, rate=1e-3, clipping="none"):
    return Label(Variant(gradient, clipping, rate), seed)


def test_members_are_grouped_by_all_but_their_seed_in_the_papers_order():
    found = groups([label(letter, seed) for letter in "CMR" for seed in (0, 1)])
    assert [(group.name, group.members) for group in found] == [("R", (4, 5)), ("M", (2, 3)), ("C", (0, 1))]


def test_only_what_differs_is_named():
    found = groups([label("C", 0, rate=rate) for rate in (1e-2, 1e-3)])
    assert [group.name for group in found] == ["C, learning rate 0.01", "C, learning rate 0.001"]


def test_diverged_members_are_counted_and_left_out_of_the_losses():
    (found,) = summaries([label("R", seed) for seed in range(5)], [0.3, math.nan, None, 0.1, math.inf], threshold=0.2)
    assert (found.median, found.lowest, found.highest) == (0.2, 0.1, 0.3)
    assert (found.solved, found.diverged) == (1, 3)


def test_a_group_of_which_nothing_is_left_has_no_losses():
    (found,) = summaries([label("R", 0)], [None], threshold=None)
    assert (found.median, found.solved, found.diverged) == (None, None, 1)
