"""Times, memory and budgets on a device, whose work goes on when the host's is done; CUDA's functions are stand-ins."""

import dataclasses
import time

import pytest
import torch
from conftest import tensor_options

import engine
from benchmarks import timing
from engine import runtime
from engine.available import available_bytes
from engine.memory import PeakMemory
from policies import Linear

pytestmark = pytest.mark.float64


@pytest.fixture
def on_cuda(monkeypatch):
    here = dataclasses.replace(engine.current(), backend="cuda")
    monkeypatch.setattr(runtime, "_current", here)
    return lambda: monkeypatch.setattr(runtime, "_current", dataclasses.replace(here, device=torch.device("cuda", 0)))


def test_clocks_of_benchmarks_wait_for_the_device(on_cuda, monkeypatch):
    waited = []
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: (time.sleep(0.02), waited.append(device)))
    on_cuda()
    times = timing.in_turns({"nothing": lambda: None}, rounds=timing._WARM_UP)
    assert set(waited) == {torch.device("cuda", 0)}
    # Of the two looks at the clock in a round one lies between its start and its end; warming up takes one.
    assert min(times["nothing"]) > 0.02 * 1e3 / timing._IN_A_ROW
    assert len(waited) == 3 * timing._WARM_UP


def test_peak_memory_on_a_device_is_that_of_torch(on_cuda, monkeypatch):
    reset = []
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", reset.append)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 1000)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 5000)
    on_cuda()
    with PeakMemory() as peak:
        pass
    assert peak.bytes == 4000
    assert reset == [torch.device("cuda", 0)]


def test_what_torch_holds_of_a_device_without_using_it_can_be_had(monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (1000, 9000))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 5000)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 3000)
    assert available_bytes(torch.device("cuda", 0)) == 3000


def test_a_budget_of_a_device_does_not_count_what_launches_take_of_the_host(monkeypatch):
    system, policy = engine.CartPole(1), Linear((4,), (1,), **tensor_options())
    on_the_cpu = engine.Rollout(system, policy, 50, 2).plan
    monkeypatch.setattr(runtime, "_current", dataclasses.replace(engine.current(), backend="cuda"))
    rollout = engine.Rollout(system, policy, 50, 2)
    launches = 2000 + system.launch_bytes()
    assert on_the_cpu.predicted - rollout.plan.predicted == on_the_cpu.slots * launches


def test_the_phases_of_an_update_add_up_to_it():
    from benchmarks.speed import make_trainer

    trainer, batch = make_trainer("cart-pole", "R", horizon=20)
    before = engine.Rollout.forward
    found = timing.phases(trainer, batch, rounds=3)
    assert set(found) == set(timing.PHASES)
    assert all(spent > 0 for spent in found.values())
    assert engine.Rollout.forward is before
