"""The runtime: one backend and precision per process, and what it refuses."""

import json

import pytest
import torch
from children import ROOT, run_fresh, run_python
from conftest import tensor_options

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
report["others"] = [
    refusal(lambda: engine.init(first.backend, "float32", **{name: value}))
    for name, value in (("threads", 2), ("fast_math", True), ("debug", True), ("ad_stack_size", 64))
]
report["again"] = engine.init(first.backend, "float32", threads=1, fast_math=False, debug=False) is first
print(json.dumps(report))
"""


@pytest.fixture(scope="module")
def output():
    return run_fresh(FRESH_PROCESS).stdout.splitlines()


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


def test_no_setting_of_a_second_init_is_ignored(fresh):
    assert fresh["again"]
    for (kind, message), name in zip(fresh["others"], ("threads", "fast_math", "debug", "ad_stack_size"), strict=True):
        assert kind == "BackendError"
        assert message.startswith(f"Expected one setting of {name} per process, but ")
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
        ({"threads": 1.5}, "Expected at least 1 thread, got 1.5."),
        ({"ad_stack_size": 0}, "Expected at least 1 entry of the autodiff stacks, got 0."),
        ({"debug": "on"}, "Expected debug as True or False, got 'on'."),
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


DEBUG_PROCESS = """
import os, sys, torch, engine
engine.init("cpu", "float64", threads=1, debug=True)
from engine.launch import prepare
sys.path.insert(0, TESTS)
from users_kernels import reaches

x = torch.zeros(4, 2).double()
launch = prepare(reaches, x, torch.zeros_like(x))
for _ in range(2):
    try:
        launch()
    except engine.KernelError as error:
        print(error)
system = engine.CartPole(1)
print(torch.isfinite(system.step(torch.zeros(3, 4).double(), torch.zeros(3, 1).double())).all().item())
sys.stdout.flush()
os._exit(0)
"""


def test_debug_reports_what_lies_outside_of_an_array_at_every_launch():
    lines = run_python(DEBUG_PROCESS.replace("TESTS", repr(str(ROOT / "tests")))).stdout.splitlines()
    message = "Expected kernel 'reaches' to stay inside its arrays, got an access to x at [0, 2]."
    assert lines == [message, message, "True"]
