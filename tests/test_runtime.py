"""The runtime: one backend and precision per process, and what it refuses."""

import json

import pytest
import torch
from conftest import run_python, tensor_options

import engine
from engine import runtime

pytestmark = pytest.mark.float64

FRESH_PROCESS = """
import json
import engine

def refusal(call, *args):
    try:
        call(*args)
    except engine.EvenflowError as error:
        return type(error).__name__, str(error)

report = {"before": refusal(engine.current)}
report["there"] = engine.available_backends()
if "cuda" not in report["there"]:
    report["cuda"] = refusal(engine.init, "cuda")
first = engine.init("auto", "float32", threads=1)
report["auto"] = first.backend, first.precision, first.threads, first.note, str(first.dtype)
report["same"] = engine.init("auto", "float32") is first
report["second"] = refusal(engine.init, first.backend, "float64")
print(json.dumps(report))
"""


@pytest.fixture(scope="module")
def output():
    return run_python(FRESH_PROCESS).stdout.splitlines()


@pytest.fixture
def fresh(output):
    """What a process reports in which nothing ran before."""
    return json.loads(output[-1])


def one_sentence(message):
    return message.endswith(".") and ". " not in message and "\n" not in message


def test_the_engine_prints_nothing_of_its_own(output):
    assert len(output) == 1


def test_no_runtime_before_init(fresh):
    kind, message = fresh["before"]
    assert kind == "BackendError"
    assert "init()" in message
    assert one_sentence(message)


def test_unavailable_backend_is_named_with_those_that_are_there(fresh):
    if "cuda" in fresh["there"]:
        pytest.skip("this machine has CUDA")
    kind, message = fresh["cuda"]
    assert kind == "BackendError"
    assert "'cuda'" in message
    assert ", ".join(fresh["there"]) in message
    assert one_sentence(message)


def test_auto_takes_cuda_or_says_why_not(fresh):
    backend, precision, threads, note, dtype = fresh["auto"]
    assert (backend, note != "") == (("cuda", False) if "cuda" in fresh["there"] else ("cpu", True))
    assert (precision, threads, dtype) == ("float32", 1, "torch.float32")


def test_second_init_with_other_settings_is_refused(fresh):
    kind, message = fresh["second"]
    assert fresh["same"]
    assert kind == "BackendError"
    assert "float32 is running" in message
    assert one_sentence(message)


def test_init_with_the_running_settings_returns_the_running_runtime():
    assert engine.init("cpu", "float64") is engine.current()
    assert engine.init("auto", "float64") is engine.current()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"backend": "metal"}, "Expected a backend among auto, cpu, cuda, vulkan, got 'metal'."),
        ({"precision": "bfloat16"}, "Expected a precision among float32, float64, got 'bfloat16'."),
        ({"threads": 0}, "Expected at least 1 thread, got 0."),
    ],
)
def test_settings_that_do_not_exist_are_refused(settings, message):
    with pytest.raises(engine.SettingError) as error:
        engine.init(**settings)
    assert str(error.value) == message


def test_a_backend_that_silently_became_another_is_refused(monkeypatch):
    monkeypatch.setattr(runtime, "_current", None)
    monkeypatch.setattr(runtime, "available_backends", lambda: ("cpu", "vulkan"))
    monkeypatch.setattr(runtime.ti, "init", lambda **settings: None)
    monkeypatch.setattr(runtime.ti, "reset", lambda: None)
    with pytest.raises(engine.BackendError, match="to start on vulkan, but it started on cpu"):
        engine.init("vulkan", "float32")


def test_check_returns_a_tensor_that_fits():
    tensor = torch.zeros(2, 3, **tensor_options())
    assert engine.current().check("state", tensor, (2, 3)) is tensor


@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        ([0.0], "Expected state to be a torch tensor of shape [2, 3], got list."),
        (torch.zeros(3, 2).double(), "Expected state of shape [2, 3], got [3, 2]."),
        (torch.zeros(2, 3), "Expected state as torch.float64, the runtime's precision, got torch.float32; "),
        (torch.zeros(2, 3, device="meta").double(), "Expected state on cpu, where backend cpu works, got meta."),
    ],
)
def test_check_says_what_was_expected_and_what_came(tensor, message):
    with pytest.raises(engine.ShapeError) as error:
        engine.current().check("state", tensor, (2, 3))
    assert str(error.value).startswith(message)
