"""Extras whose packages are missing are named, with the command that brings them."""

import pytest

from benchmarks.extras import missing, sentences

pytestmark = pytest.mark.float64

DECLARED = [
    "taichi==1.7.4",
    'numpy; extra == "peers"',
    'no-such-package>=2.1; extra == "export"',
    "another.missing ; python_version >= '3.0' and extra == 'export'",
    'nowhere; extra == "dev"',
    'nowhere[more]>=1; extra == "gym"',
]


def test_extras_that_are_not_all_here_are_found():
    found = missing(DECLARED)
    assert found == {"export": ["no-such-package", "another.missing"], "gym": ["nowhere"]}
    assert sentences(found)[0] == (
        "The extra export lacks no-such-package, another.missing; pip install 'evenflow[export]' brings what it needs."
    )
    assert sentences(missing(DECLARED[:2])) == []


def test_its_own_extras_are_read():
    assert set(missing()).isdisjoint({"dev", "docs"})
