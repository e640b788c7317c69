"""Options and markers of the test suite, and the few helpers that its files share.

Taichi starts once per process, so a session runs on one backend in one precision:

- `cpu` runs everything but the tests marked `card`, which are skipped;
- `vulkan` and `cuda` run the tests that carry their mark, and `cuda` those marked `card`;
- a test marked `float64` or `float32` runs in that precision alone, so that what does not depend on precision is
  tested once, in float64.

What the machine lacks (the backend's driver, a display) is left out with a sentence, or is an error with `--require`.
CUDA is asked for where it is thought to be: without it `--backend cuda` is an error in any case.
"""

import os
import subprocess
import sys
from types import SimpleNamespace

# Read once, as torch is loaded: threads that wait for work spin by default, and take the cores from other processes.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import pytest
import torch
from children import Child
from torch.utils._python_dispatch import TorchDispatchMode

import engine
from engine.rules import placed
from engine.start import NEEDS
from training.viewing.drawings import has_display

PRECISIONS = ("float32", "float64")
LONGEST = ("test_examples", "test_memory", "test_scale", "test_sizes", "test_speed", "test_study")
"""Files that begin first, so that no process is left with one of them while the others are done."""
DISPLAY = "an X display (on Debian, apt-get install xvfb xauth for `make test`, which lends one)"


def pytest_addoption(parser):
    parser.addoption("--backend", choices=("cpu", "cuda", "vulkan"), default="cpu", help="where kernels run")
    parser.addoption("--precision", choices=PRECISIONS, default="float64", help="of states, controls, parameters")
    parser.addoption("--require", action="store_true", help="fail where the backend or a display is missing")


def pytest_configure(config):
    for precision in PRECISIONS:
        config.addinivalue_line("markers", f"{precision}: runs only with --precision {precision}")


@pytest.hookimpl(tryfirst=True)
def pytest_sessionstart(session):
    backend, require = session.config.getoption("backend"), session.config.getoption("require")
    if backend not in engine.available_backends():
        require = require or backend == "cuda"
        verb = "Cannot do without" if require else "Left out"
        pytest.exit(f"{verb} the tests on {backend}: they need {NEEDS[backend]}.", returncode=int(require))
    engine.init(backend, session.config.getoption("precision"))


def pytest_collection_modifyitems(config, items):
    backend, precision = config.getoption("backend"), config.getoption("precision")
    selected, deselected = [], []
    for item in items:
        marks = {mark.name for mark in item.iter_markers()}
        runs = backend == "cpu" or backend in marks or (backend == "cuda" and "card" in marks)
        fits = runs and (precision in marks or marks.isdisjoint(PRECISIONS))
        (selected if fits else deselected).append(item)
    items[:] = sorted(selected, key=lambda item: item.path.stem not in LONGEST)
    if deselected:
        config.hook.pytest_deselected(items=deselected)


def pytest_runtest_setup(item):
    if item.get_closest_marker("card") and item.config.getoption("backend") != "cuda":
        pytest.skip("needs --backend cuda")
    if item.get_closest_marker("window") and not (sys.platform == "linux" and has_display()):
        (pytest.fail if item.config.getoption("require") else pytest.skip)(f"needs {DISPLAY}")


@pytest.fixture(autouse=True)
def plugins_of_one_test(monkeypatch):
    """What a test loads is no plug-in of the next, whose child processes would look for its files."""
    from training import doors, plugins

    before = plugins._loaded
    monkeypatch.setattr(plugins, "_loaded", dict(before))
    yield
    for path in plugins._loaded.keys() - before.keys():
        for registry in doors.REGISTRIES:
            registry.withdraw(plugins._loaded[path].name)


@pytest.fixture
def forked_modules(monkeypatch):
    """What `benchmarks` runs in processes of its own is forked from one that has imported what they need."""
    from benchmarks import apart

    popen = SimpleNamespace(Popen=Child, TimeoutExpired=subprocess.TimeoutExpired)
    monkeypatch.setattr(apart, "subprocess", popen)


@pytest.fixture(params=[(4,), (2, 3)], ids=["vector", "matrix"])
def terms(request):
    """The terms ∂ℓ_t/∂x, Aᵀλ and Kᵀμ of 7 samples; the first sample's are zero."""
    terms = tuple(uniform(seed, 7, *request.param) for seed in range(3))
    for term in terms:
        term[0] = 0.0
    return terms


def tensor_options():
    """Dtype and device that the running backend works in."""
    return {"dtype": engine.current().dtype, "device": engine.current().device}


def uniform(seed, *shape, low=-1.0, high=1.0):
    """Uniform numbers drawn in float64 from `seed`, as the running precision holds them."""
    draw = torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return (low + (high - low) * draw).to(**tensor_options())


def swing_up_states(seed, batch, poles):
    """Initial states of cart-pole, poles hanging: θ = π + U(-1, 1)·π/6, all else U(-1, 1)."""
    states = uniform(seed, batch, 2 + 2 * poles)
    states[:, 2 : 2 + poles] = torch.pi * (1 + states[:, 2 : 2 + poles] / 6)
    return states


def relative_error(found, expected):
    """|found - expected| / |expected| in float64, Euclidean norms over all elements."""
    found, expected = (torch.as_tensor(tensor).detach().cpu().double() for tensor in (found, expected))
    assert found.shape == expected.shape
    return float((found - expected).norm() / expected.norm())


class _Step(torch.autograd.Function):
    """One step of a system as an operation of torch."""

    @staticmethod
    def forward(ctx, system, state, control):
        ctx.system = system
        ctx.save_for_backward(state, control)
        return system.step(state, control)

    @staticmethod
    def backward(ctx, *next_adjoint):
        return None, *ctx.system.pull_back(*ctx.saved_tensors, next_adjoint[0].contiguous())


def gradcheck(system, state, control):
    """Whether `system.pull_back` equals central differences of `system.step` in every entry of A and B, in float64."""
    leaves = [tensor.clone().requires_grad_() for tensor in (state, control)]
    # Truncation is of order eps², rounding of order 1e-16/eps.
    return torch.autograd.gradcheck(
        lambda *inputs: _Step.apply(system, *inputs), leaves, eps=1e-5, rtol=1e-8, atol=1e-8
    )


class StepCost:
    """An engine cost made of the oracle's: `running(state, control, t)` and `final(state)`, [B] each, or None."""

    def __init__(self, running=None, final=None):
        self._running, self._final = running, final

    def running(self, states, controls, steps):
        if self._running is None:
            return None
        return torch.stack([self._running(*row) for row in zip(states, controls, steps.tolist(), strict=True)])

    def final(self, state):
        return None if self._final is None else self._final(state)


class BySteps:
    """Another rule's result, without the path weights that would let a system sweep in one launch."""

    def __init__(self, of):
        self.of, self.uses_physics, self.uses_policy = of, of.uses_physics, of.uses_policy

    def placed(self, place):
        return BySteps(placed(self.of, place))

    def __call__(self, direct, physics, policy, t):
        return self.of(direct, physics, policy, t)


class Products(TorchDispatchMode):
    """Of every matrix product the name, the shapes and where operands and result begin within 64 bytes.

    Processors differ in which of these decide how a product rounds, so all of them have to be the same in every slot.
    """

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        result = operation(*args, **(kwargs or {}))
        name = operation.name().partition("::")[2].partition(".")[0]
        if name.rstrip("_") in ("mm", "bmm", "addmm", "baddbmm", "mv", "addmv", "dot"):
            tensors = [value for value in (*args, result) if isinstance(value, torch.Tensor)]
            self.seen.append((name, *((tuple(t.shape), t.data_ptr() % 64) for t in tensors)))
        return result
