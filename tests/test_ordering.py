"""The order of an ensemble's gradients: few members swept, and the same whenever it is asked for."""

import itertools
from dataclasses import replace

import pytest

from engine import SettingError
from training import TASKS, Experiment
from training.errors import RunError
from training.gradients import lettered
from training.ordering import sweep_order, swept

pytestmark = pytest.mark.float64
MANY = ("C", "decay(R, 0.5)", "unit(R)", "agree(decay(R, 0.5), R)", "M", "clip-norm(R, 1)", "bisect(M, S)")


def test_the_five_stand_as_in_every_run_there_is():
    for count in range(1, 6):
        for texts in itertools.permutations(lettered(), count):
            assert sweep_order(dict.fromkeys(texts, 3)) == tuple(text for text in "NRCMS" if text in texts)


@pytest.mark.parametrize("texts", [MANY[:4], MANY[1:6], MANY[2:], MANY])
@pytest.mark.parametrize("counts", [(1,), (4, 1, 2)])
def test_few_members_are_swept_and_the_order_depends_on_nothing_else(texts, counts):
    members = dict(zip(texts, itertools.cycle(counts), strict=False))
    found = sweep_order(members)
    assert sorted(found) == sorted(texts)
    for shuffled in (texts[::-1], texts[2:] + texts[:2]):
        assert sweep_order({text: members[text] for text in shuffled}) == found
    settled = [text for text in "NRCMS" if text in texts]
    possible = [
        order for order in itertools.permutations(texts) if [text for text in order if text in settled] == settled
    ]
    costs = sorted(swept(order, members) for order in possible)
    assert costs[0] <= swept(found, members) <= 1.05 * costs[0]
    assert swept(found, members) < costs[len(costs) // 2]


def test_a_stored_order_stays_whatever_order_would_be_chosen_today():
    of = Experiment("cart-pole", TASKS["cart-pole"]().__dict__, gradients=("R", "unit(R)", "M"), seeds=(0, 1))
    order = tuple(of.to_config()["order"])
    other = replace(of, order=order[::-1])
    read = Experiment.from_config(other.to_config())
    assert read == other
    assert [label.gradient for label in read.labels()][::2] == list(order[::-1])
    for wrong in (("R",), ("R", "M", "S"), ("R", "M", "unit(R)", "R")):
        with pytest.raises(SettingError, match=r"^Expected an order of the gradients .*, got .*\.$"):
            replace(of, order=wrong)
        with pytest.raises(RunError, match=r"in config\.yaml\.$"):
            Experiment.from_config({**of.to_config(), "order": list(wrong)})
