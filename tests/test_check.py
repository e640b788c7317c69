"""`evenflow check`: what it finds on this machine, and that a wrong adjoint fails it."""

import json

import pytest
from children import run_python
from rich.console import Console

from benchmarks import check
from training import TASKS

pytestmark = pytest.mark.float64


@pytest.fixture(scope="module")
def probe():
    source = "import json; from benchmarks.check import probe; print(json.dumps(probe('cpu', 'float64')))"
    return json.loads(run_python(source).stdout.splitlines()[-1])


def test_a_probe_measures_launches_and_checks_every_system(probe):
    assert 0 < probe["serial_us"] < probe["plain_us"]
    assert set(probe["systems"]) == {*TASKS, "hopper", "kuramoto-sivashinsky"}
    assert all(found["difference"] < check.LIMITS["float64"] for found in probe["systems"].values())


@pytest.mark.parametrize("broken", [False, True])
def test_the_verdict_follows_the_adjoints(broken, probe, monkeypatch, capsys):
    def fake(backend, precision):
        found = json.loads(json.dumps(probe))
        if broken and precision == "float32":
            found["systems"]["cart-pole"]["pull_back"][0] += 1.0
        return found

    monkeypatch.setattr(check, "_probe_apart", fake)
    assert check.check(Console(width=120)) is not broken
    printed = capsys.readouterr().out
    for name in TASKS:
        assert name in printed


def test_a_backend_that_does_not_start_is_reported_with_its_reason(probe, monkeypatch, capsys):
    monkeypatch.setattr(check, "available_backends", lambda: ("cpu", "vulkan"))
    monkeypatch.setattr(check, "_probe_apart", lambda b, p: {"error": "no device"} if b == "vulkan" else probe)
    assert not check.check(Console(width=120))
    assert "fails: no device" in capsys.readouterr().out
