"""Controllers written for other programs: read back there, they give the same controls."""

import json

import pytest
import torch
from children import run_evenflow
from conftest import relative_error, uniform
from safetensors import safe_open
from safetensors.torch import load
from test_run import contents
from torch import nn

from engine import Observation, SettingError, current
from evenflow import main
from policies import MLP, Convolutional, DeepSets, Linear, ModulePolicy, Moments, OpenLoop, PolicyError, Polynomial
from training import ControllerModule, Experiment, TrainingSettings, export_controller, load_controller, train
from training.errors import RunError
from training.export import _parameters

pytestmark = pytest.mark.float64


class Small(nn.Module):
    """A user's module with tied weights, a buffer and a normalisation."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(6, 6), nn.Linear(6, 6)
        self.second.weight = self.first.weight
        self.normalised, self.last = nn.LayerNorm(6), nn.Linear(6, 2)
        self.register_buffer("scale", torch.tensor(0.5))

    def forward(self, state):
        return self.last(self.normalised(torch.tanh(self.second(self.first(state * self.scale)))))


POLICIES = {
    "mlp": lambda members: MLP((6,), (2,), (5, 4), members=members),
    "linear": lambda members: Linear((6,), (2,), members=members),
    "linear without bias": lambda members: Linear((6,), (2,), bias=False, members=members),
    "polynomial": lambda members: Polynomial((3,), members=members),
    "convolutional": lambda members: Convolutional((2, 9), (1,), (3, 4), members=members),
    "moments": lambda members: Moments((4, 5), (2, 2), members=members),
    "deep sets": lambda members: DeepSets((4, 5), (2, 2), members=members),
    "open loop": lambda members: OpenLoop((2,), 5, members=members),
    "module": lambda members: ModulePolicy(Small(), (6,), (2,), members=members),
}


def test_tied_weights_are_written_under_each_name():
    module = ControllerModule(POLICIES["module"](1).module(), None)
    written = load(_parameters(module, torch.ones(1, 6), {}))
    assert torch.equal(written["second.weight"], written["first.weight"])


@pytest.mark.parametrize("kind", POLICIES)
def test_a_member_is_a_module_of_its_own(kind):
    policy = POLICIES[kind](3).to(torch.float64)
    with torch.no_grad():
        policy.theta.copy_(uniform(0, *policy.theta.shape))
    states = uniform(1, 3, 7, *policy.state_shape)
    expected, before = policy(states).detach(), policy.theta.detach().clone()
    for member in range(3):
        module = policy.module(member)
        found = module(states[member])
        assert found.shape == expected[member].shape
        assert relative_error(found, expected[member]) < 1e-14
        assert not any(parameter.requires_grad for parameter in module.parameters())
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.zero_()
    assert torch.equal(policy.theta, before)


@pytest.mark.parametrize("member", [-1, 3, 1.0, True, None])
def test_a_member_that_is_not_there_is_refused(member):
    with pytest.raises(PolicyError, match=r"Expected a member from 0 to 2, got"):
        MLP((6,), (2,), (5,), members=3).module(member)


def test_multilayer_perceptrons_are_plain_torch():
    kinds = {type(part) for part in MLP((6,), (2,), (5, 4)).module()}
    assert kinds == {nn.Flatten, nn.Linear, nn.Tanh, nn.Unflatten}


def test_a_module_of_one_member_that_is_trained_itself():
    policy = ModulePolicy(Small().double(), (6,), (2,))
    states = uniform(2, 4, 6)
    assert torch.equal(policy.module()(states), policy(states.unsqueeze(0))[0])


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """R and C, seeds 0 and 3, two epochs with a checkpoint after each."""
    path = tmp_path_factory.mktemp("export") / "run"
    settings = TrainingSettings(train_samples=8, test_samples=4)
    experiment = Experiment(
        "cart-pole", {"horizon": 8}, gradients=("R", "C"), seeds=(0, 3), epochs=2, checkpoint_every=1, settings=settings
    )
    train(experiment, path)
    return path


def expected_controls(run, states, *asked):
    return load_controller(run, *asked)(states.unsqueeze(0))[0].detach()


def check_description(text, gradient, seed, epoch):
    described = json.loads(text)
    assert (described["task"], described["options"]["horizon"]) == ("cart-pole", 8)
    assert (described["gradient"], described["seed"], described["epoch"]) == (gradient, seed, epoch)
    assert (described["state_shape"], described["control_shape"]) == ([4], [1])
    assert described["precision"] == "float64"


def test_safetensors_hold_the_parameters_by_name(run, tmp_path):
    before = contents(run)
    file = export_controller(run, tmp_path / "policy.safetensors", "C", 3)
    assert contents(run) == before
    with safe_open(file, "pt") as opened:
        check_description(opened.metadata()["evenflow"], "C", 3, 2)
        tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118  # not a mapping
    module = load_controller(run, "C", 3).module()
    assert module.load_state_dict(tensors)
    states = uniform(4, 5, 4)
    assert torch.equal(module(states), ControllerModule(module)(states))
    assert relative_error(module(states), expected_controls(run, states, "C", 3)) < 1e-14


def test_programs_of_torch_export_give_the_same_controls(run, tmp_path):
    file = export_controller(run, tmp_path / "policy.pt2", "R", 0, epoch=1)
    extra = {"evenflow": ""}
    program = torch.export.load(file, extra_files=extra)
    check_description(extra["evenflow"], "R", 0, 1)
    for batch in (1, 2, 9):
        states = uniform(batch, batch, 4)
        assert relative_error(program.module()(states), expected_controls(run, states, "R", 0, 1)) < 1e-14


@pytest.mark.parametrize("observed", [False, True])
def test_onnx_gives_the_same_controls(observed, run, tmp_path, monkeypatch):
    onnxruntime = pytest.importorskip("onnxruntime", reason="needs onnxruntime, which the extra dev brings")
    pytest.importorskip("onnxscript", reason="needs onnxscript, which the extra export brings")
    if observed:
        see_half(monkeypatch)
    file = export_controller(run, tmp_path / "policy.onnx", "C", 0)
    session = onnxruntime.InferenceSession(file)
    check_description(session.get_modelmeta().custom_metadata_map["evenflow"], "C", 0, 2)
    for batch in (1, 2, 9):
        states = uniform(batch, batch, 4)
        (found,) = session.run(["control"], {"state": states.numpy()})
        seen = states * 0.5 if observed else states
        assert relative_error(torch.from_numpy(found), expected_controls(run, seen, "C", 0)) < 1e-12


def see_half(monkeypatch, function=lambda states, steps, parameters: states * 0.5):
    """Let cart-pole's controllers see what `function` makes of a state [4]."""
    from dataclasses import replace

    from training.tasks import TASKS

    build = TASKS["cart-pole"].build
    monkeypatch.setattr(
        TASKS["cart-pole"], "build", lambda self: replace(build(self), observation=Observation(function, (4,)))
    )


def test_an_observation_is_part_of_what_is_exported(run, tmp_path, monkeypatch):
    see_half(monkeypatch)
    file = export_controller(run, tmp_path / "policy.pt2", "C", 0)
    states = uniform(5, 6, 4)
    found = torch.export.load(file).module()(states)
    assert relative_error(found, expected_controls(run, states * 0.5, "C", 0)) < 1e-14


@pytest.mark.parametrize(
    ("function", "said"),
    [
        (lambda states, steps, parameters: states + steps.view(-1, 1, 1), "got one of the time too"),
        (lambda states, steps, parameters: states + (steps == 5).view(-1, 1, 1), "got one of the time too"),
        (lambda states, steps, parameters: states * parameters["pole_mass"].unsqueeze(2), "'pole_mass' too"),
    ],
)
def test_an_observation_of_more_than_the_state_is_refused(function, said, run, tmp_path, monkeypatch):
    see_half(monkeypatch, function)
    with pytest.raises(SettingError, match=said):
        export_controller(run, tmp_path / "policy.pt2")
    assert not list(tmp_path.iterdir())


def test_what_cannot_be_followed_is_told(run, tmp_path, monkeypatch):
    see_half(monkeypatch, lambda states, steps, parameters: states if states.sum() > 0 else -states)
    with pytest.raises(SettingError, match=r"Expected a controller that torch can write as \.pt2, got \w+ \("):
        export_controller(run, tmp_path / "policy.pt2")
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_not_there_is_made(run, tmp_path):
    assert export_controller(run, tmp_path / "a b" / "c" / "policy.safetensors", "C", 0).is_file()


@pytest.mark.parametrize("given", [5, None, ["run"]])
def test_what_is_no_path_is_told(given, run, tmp_path):
    with pytest.raises(SettingError, match=r"^Expected a run as a path or a RunDirectory, got .*\.$"):
        load_controller(given)
    with pytest.raises(SettingError, match=r"^Expected a file as a path, got .*\.$"):
        export_controller(run, given)


def test_a_missing_package_is_named_with_the_extra(run, tmp_path, monkeypatch):
    monkeypatch.setattr("training.export.importlib.util.find_spec", lambda name: None)
    with pytest.raises(SettingError, match=r"pip install 'evenflow\[export\]'"):
        export_controller(run, tmp_path / "policy.onnx")


def test_nothing_that_is_there_is_replaced(run, tmp_path):
    file = tmp_path / "policy.pt2"
    file.write_text("mine")
    with pytest.raises(RunError, match="which exists"):
        export_controller(run, file)
    assert file.read_text() == "mine"


def test_torch_says_nothing_on_the_command_line(run, tmp_path):
    pytest.importorskip("onnxscript", reason="needs onnxscript, which the extra export brings")
    done = run_evenflow("export", f"{run}@C,3", "--out", "policy.onnx", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")


def test_the_command_line_exports(run, tmp_path, capsys):
    assert current().dtype == torch.float64
    file = tmp_path / "policy.safetensors"
    assert main(["export", f"{run}@C,3", "--out", str(file), "--epoch", "1"]) == 0
    assert str(file) in capsys.readouterr().out
    with safe_open(file, "pt") as opened:
        check_description(opened.metadata()["evenflow"], "C", 3, 1)


@pytest.mark.parametrize(
    ("address", "file", "said"),
    [
        ("{run}@C,9", "a.pt2", "Expected a controller of"),
        ("{run}@C,x", "a.pt2", "Expected a seed after the comma"),
        ("nowhere", "a.pt2", "Expected a run directory"),
        ("{run}", "a.txt", "Expected a controller as a file that ends in .onnx, .pt2 or .safetensors"),
    ],
)
def test_mistakes_end_in_a_sentence(address, file, said, run, tmp_path, capsys):
    assert main(["export", address.format(run=run), "--out", str(tmp_path / file)]) == 2
    shown = capsys.readouterr()
    assert said in shown.err
    assert len(shown.err.strip().splitlines()) == 1
    assert not list(tmp_path.iterdir())
