"""Whatever a user can do wrong is caught by one name."""

import pytest
from children import run_fresh

import evenflow as ef


def test_a_policys_error_is_one_of_evenflows():
    with pytest.raises(ef.EvenflowError, match="Expected a policy with at least 1 member, got 0"):
        ef.MLP((2,), (1,), members=0)
    with pytest.raises(ValueError, match="got 0"):  # as where only policies are used
        ef.MLP((2,), (1,), members=0)
    assert ef.PolicyError.__mro__.index(ef.EvenflowError) == 1


@pytest.mark.float64
def test_policies_alone_do_without_the_engine():
    run_fresh(
        "import sys\nfrom policies import MLP, PolicyError\nassert 'engine' not in sys.modules\n"
        "try:\n    MLP((2,), (1,), members=0)\nexcept ValueError as error:\n    assert isinstance(error, PolicyError)\n"
        "else:\n    raise SystemExit(1)\n"
    )
