"""Threads: all of them for large work, one for small, and as many as before afterwards."""

import pytest
import torch

import engine
from engine.loops import torch_threads

pytestmark = pytest.mark.float64


@pytest.fixture(autouse=True)
def three_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("shared", [True, False])
def test_work_gets_its_threads_and_gives_them_back(shared):
    with torch_threads(shared):
        assert torch.get_num_threads() == (engine.current().threads if shared else 1)
    assert torch.get_num_threads() == 3


def test_threads_are_given_back_after_an_error():
    def fail():
        with torch_threads(False):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert torch.get_num_threads() == 3
