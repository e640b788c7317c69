"""Who wins in a programme, by how much, since which epoch, and how many seeds would have said otherwise."""

import math

import pytest

from benchmarks.studies.directory import Result, StudyDirectory
from benchmarks.studies.verdicts import verdicts, write_verdicts
from training.variant import Label, Variant

pytestmark = pytest.mark.float64


class Made(StudyDirectory):
    """A study whose results are given."""

    @property
    def difficulty(self):
        return "poles"

    def __init__(self, results):
        self.__dict__["results"], self.__dict__["config"] = results, {}


def study(**curves):
    """Results of each gradient, a curve for each seed."""
    return Made(
        [
            Result("report", 2, Label(Variant(gradient), seed), {}, "run", seed, tuple(curve))
            for gradient, of_seeds in curves.items()
            for seed, curve in enumerate(of_seeds)
        ]
    )


BEHIND_FIRST = [[5.0, 3.0, 1.0, 1.0 + seed / 50] for seed in range(6)]
AHEAD_FIRST = [[4.0, 3.5, 0.9 if seed < 3 else 2.0, 2.0] for seed in range(6)]


def test_the_winner_has_its_margin_its_epoch_and_its_odd_seeds():
    theirs = [*AHEAD_FIRST[:5], [4.0, 3.5, 2.0, 0.5]]
    (found,) = verdicts({"cart-pole": study(C=BEHIND_FIRST, R=theirs)})
    middle = 1.05
    assert (found.row.loss, found.other) == (pytest.approx(middle), pytest.approx(2.0))
    assert (found.ahead, found.misled, found.row.pairs) == (True, 1, 6)
    # At the first epoch C is behind, and never again.
    assert found.since == 2
    assert found.told == "not told apart, C lower"


def test_the_one_that_falls_behind_again_does_not_win_since_then():
    ours = [[1.0, 3.0, 1.0, 1.0]] * 4
    (found,) = verdicts({"task": study(C=ours, R=[[2.0, 2.0, 2.0, 2.0]] * 4)})
    assert found.since == 3
    (found,) = verdicts({"task": study(C=[[3.0, 1.0]] * 4, R=[[2.0, 0.5]] * 4)})
    assert (found.ahead, found.since, found.misled) == (False, 1, 0)
    assert found.told == "not told apart, R lower"


def test_tests_are_corrected_over_all_tasks_and_what_diverged_is_the_worst():
    eight = {"C": [[1.0, 1.0 + seed / 10] for seed in range(8)], "R": [[2.0, 3.0]] * 7 + [[2.0, math.nan]]}
    (alone,) = verdicts({"a": study(**eight)})
    assert alone.row.p_corrected == pytest.approx(2 / 2**8)
    assert alone.told == "**C**"
    both = verdicts({"a": study(**eight), "b": study(**eight)})
    assert [verdict.row.p_corrected for verdict in both] == [pytest.approx(4 / 2**8)] * 2
    assert alone.misled == 0


def test_they_are_written_as_a_table(tmp_path):
    given = {"cart-pole": study(C=BEHIND_FIRST, R=AHEAD_FIRST), "quantum": study(R=AHEAD_FIRST)}
    written = write_verdicts(given, tmp_path)
    assert written == tmp_path / "verdicts.md"
    lines = written.read_text().splitlines()
    assert lines[0] == "# Every gradient beside R"
    assert lines[4].startswith("| cart-pole | poles 2 | C | 6 | 1.05 | 2 | ")
    assert len([line for line in lines if line.startswith("| ")]) == 3  # the head, its rule and one row
    assert write_verdicts({"quantum": given["quantum"]}, tmp_path) is None
