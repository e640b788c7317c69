"""What is told, and what is taken: seeds, streams, names that a program registers anew, controls without a number."""

from types import SimpleNamespace
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from rich.console import Console

import evenflow as ef
from benchmarks.parts import Part, PartStudy
from benchmarks.studies import throughput
from benchmarks.studies.comparisons import conclusions, limits, seeds_done
from benchmarks.studies.workers import DONE
from engine import SettingError, ShapeError
from engine.registry import Registry, registering
from training import build_task
from training.errors import RunError


def test_a_name_is_registered_anew_by_the_program_that_it_is_of_and_by_nobody_else():
    registry: Registry[int] = Registry("thing")
    with registering("a plug-in"):
        registry.register("theirs", 1)
    registry.register("own", 2)
    registry.register("own", 3)
    assert registry["own"] == 3
    for name in ("theirs", "OWN"):
        with pytest.raises(SettingError, match="Expected a new name for a thing"):
            registry.register(name, 4)
    with registering("a plug-in"), pytest.raises(SettingError, match="which this program has registered"):
        registry.register("own", 5)


@pytest.mark.float64
def test_a_gradient_of_a_program_may_be_defined_again():
    for weight in (0.95, 0.85):
        ef.register_gradient("told-softer", ef.PathRule(1.0, weight), "softer")
        assert ef.gradient_named("told-softer").estimator.rules[0] == ef.PathRule(1.0, weight)
    with pytest.raises(SettingError, match="Expected a new name for a gradient"):
        ef.register_gradient("C", ef.FULL, "not full")


@pytest.mark.float64
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((4, 2**30, "train", torch.float64), "Expected a seed below 1073741824"),
        ((4, 0, "nope", torch.float64), "among train, validation and test, got 'nope'"),
        ((4, 0, "train", "float64"), "a dtype of real numbers such as torch.float32, got 'float64'"),
        ((4, 0, "train", torch.int32), "a dtype of real numbers such as torch.float32, got torch.int32"),
    ],
)
def test_initial_states_are_drawn_from_what_there_is(arguments, message):
    with pytest.raises(SettingError, match=message):
        build_task("cart-pole").initial_states(*arguments)


@pytest.mark.float64
def test_environments_refuse_controls_and_seeds_that_are_none():
    task = build_task("hopper")
    environments = ef.to_gymnasium(task, num_envs=3)
    assert isinstance(environments, gymnasium.vector.VectorEnv)
    seeds: tuple[list[int | None], ...] = ([], [1, 2], [None, 2, 3])
    for seed in seeds:
        with pytest.raises(SettingError, match="Expected a seed, or a list of 3 whose first counts for all"):
            environments.reset(seed=seed)
    with pytest.raises(SettingError, match="Expected a seed of at least 0"):
        environments.episodes.seed(2**64)
    environments.reset(seed=[5, None, None])
    actions = np.zeros((3, *environments.single_action_space.shape), dtype=np.float32)  # pyright: ignore
    actions[1] = np.nan
    with pytest.raises(ShapeError, match=r"^Expected controls as real numbers, got NaN; .*\.$"):
        environments.step(actions)


@pytest.mark.float64
def test_what_is_no_checkpoint_is_not_advised_to_be_removed(tmp_path):
    (tmp_path / "config.yaml").write_text("kind: evenflow run\n")
    for path, message in ((tmp_path, "got the directory"), (tmp_path / "config.yaml", "a checkpoint in safetensors")):
        for read in (ef.read_checkpoint, ef.describe_checkpoint):
            with pytest.raises(RunError, match=message) as error:
                read(path)
            assert "remove" not in str(error.value)


@pytest.mark.float64
@pytest.mark.parametrize(
    "content", ['{"format": 1, "parts": {}}', '{"format": 1, "parts": {"a": 3}, "machine": {}}', "[]", "{"]
)
def test_a_report_of_something_else_is_told_in_a_sentence(content, tmp_path):
    (tmp_path / "report.json").write_text(content)
    study = PartStudy("a study of nothing", "benchmarks.beside.worker", 1, {}, tmp_path, 1.0)
    with pytest.raises(RunError, match=r"^Expected a study of nothing in .*, got something else; choose another"):
        list(study.take([Part("a", "s", "k")], Console(quiet=True)))
    assert (tmp_path / "report.json").read_text() == content


@pytest.mark.float64
def test_what_holms_method_tells_apart_is_not_said_to_be_beyond_it():
    class Row:
        def __init__(self, name, pairs, p, verdict):
            self.name, self.difficulty, self.pairs, self.p, self.verdict = name, 4, pairs, p, verdict
            self.against = "R"

    rows: Any = [Row("a", 20, 1e-6, "better"), Row("b", 20, 1e-6, "worse"), Row("c", 6, 0.03125, "better")]
    said = " ".join(conclusions(rows))
    assert "none of" not in said
    assert "none of 3 comparisons can tell two variants apart" in " ".join(limits(3, 6))


@pytest.mark.float64
def test_a_process_that_ended_is_no_pack(monkeypatch, tmp_path):
    def run_study(study, out, workers):
        workers.tell("pack 1: its process ended by SIGKILL; another goes on")
        workers.tell(f"pack 1{DONE}3 s; 0 packs left")

    monkeypatch.setattr(throughput, "run_study", run_study)
    nothing: Any = None
    assert len(throughput._timed(nothing, tmp_path, 1)[1]) == 1


@pytest.mark.float64
@pytest.mark.parametrize("address", ["a..b:6379", f"{'x' * 64}:6379"])
def test_a_host_that_can_be_none_is_refused_at_once(address):
    pytest.importorskip("ray")
    from benchmarks.studies.on_ray import _host_and_port

    with pytest.raises(SettingError, match="Expected the name of a host before the port"):
        _host_and_port(address)


class Scaled(ef.Linear):
    def forward(self, state, scale=1.0):
        return scale * super().forward(state)


@pytest.mark.float64
def test_policies_are_called_as_modules_are():
    states = torch.ones(1, 3, 2, dtype=torch.float64)
    policy = Scaled((2,), (1,), dtype=torch.float64)
    policy.initialise(0, torch.Generator().manual_seed(0))
    assert torch.equal(policy(states, scale=2.0), 2.0 * policy(states))
    assert torch.equal(policy(state=states), policy(states))
    assert torch.equal(torch.fx.symbolic_trace(torch.nn.Sequential(policy))(states), policy(states))
    with pytest.raises(ef.PolicyError, match="Expected states of shape"):
        policy(torch.ones(1, 3, 5, dtype=torch.float64))
    expected = policy(states)
    policy.register_forward_pre_hook(lambda module, given: (given[0][..., :2],))
    assert torch.equal(policy(torch.ones(1, 3, 5, dtype=torch.float64)), expected)


@pytest.mark.float64
def test_an_option_of_another_type_is_told_as_such():
    with pytest.raises(SettingError, match="Expected horizon as int, got '20'"):
        ef.Experiment("hopper", {"horizon": "20"})


def test_a_study_that_is_not_done_says_of_how_many_seeds_it_is():
    rows: Any = [SimpleNamespace(seeds=count) for count in (4, 3)]
    assert seeds_done(rows, {"seeds": 10}) == "4 of 10"
    assert seeds_done(rows, {"seeds": 4}) == "4"
