"""Watching controllers: the player and its keys, what is loaded, pushes and adjoints."""

import sys

import numpy as np
import pytest
import torch
import yaml
from conftest import relative_error, tensor_options
from rich.console import Console

import evenflow
from engine import FULL, PHYSICS_ONLY, Rollout, SettingError
from training import Experiment, RunDirectory, build_task, train
from training.errors import RunError
from training.settings import TrainingSettings
from training.tasks import TASKS
from training.tasks.n_body import NBodyOptions
from training.viewing import Show, untrained, watched
from training.viewing.player import KEYS, STEPS_PER_SECOND, Player
from training.viewing.scene import Text
from training.viewing.simulation import Simulation
from training.viewing.view import ViewSettings, view


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """R and C of cart-pole, seeds 0 and 1, checkpoints of epochs 0, 1 and 2."""
    path = tmp_path_factory.mktemp("view") / "run"
    settings = TrainingSettings(batch_size=4, train_samples=8, test_samples=4)
    options = {"poles": 2, "horizon": 12}
    train(
        Experiment(
            "cart-pole", options, gradients=("R", "C"), seeds=(0, 1), epochs=2, checkpoint_every=1, settings=settings
        ),
        path,
    )
    return path


def show(task="guidance", gradients=(), **options):
    return Show([untrained(TASKS[task](**options))], gradients)


class TestPlayer:
    pytestmark = pytest.mark.float64

    def test_time_passes_at_the_speed_and_stops_at_the_end(self):
        player = Player(10)
        player.advance(4 / STEPS_PER_SECOND)
        assert (player.t, player.ended) == (4, False)
        player.press("Up")
        player.advance(2 / STEPS_PER_SECOND)
        assert player.t == 8
        player.advance(10.0)
        assert (player.t, player.ended) == (10, True)

    def test_a_pause_holds_and_steps_go_one_at_a_time(self):
        player = Player(10, position=3.7)
        player.press("space")
        player.advance(1.0)
        assert player.t == 3
        for key, t in (("Right", 4), ("Right", 5), ("Left", 4)):
            player.press(key)
            player.advance(1.0)
            assert player.t == t
        player.press("space")
        player.advance(1 / STEPS_PER_SECOND)
        assert player.t == 5

    def test_steps_stay_inside_and_a_pause_at_the_end_plays_again(self):
        player = Player(2)
        player.press("Left")
        assert player.t == 0
        for _ in range(5):
            player.press("Right")
        assert player.t == 2
        player.press("space")
        assert (player.t, player.playing) == (0, True)

    def test_only_some_keys_make_a_new_rollout_and_those_begin_at_the_start(self):
        anew = {key for key in KEYS if Player(10, 3, position=5.0).press(key)}
        assert anew == {"r", "s", "a", "n", "p"}
        for key in anew:
            player = Player(10, 3, position=5.0)
            player.press(key)
            assert player.t == 0
        assert not Player(10).press("z")

    def test_seeds_and_checkpoints_have_ends(self):
        player = Player(10, checkpoints=3, checkpoint=2)
        seen = []
        for key in "npppanssa":
            player.press(key)
            seen.append((player.checkpoint, player.seed))
        assert seen == [(2, 0), (1, 0), (0, 0), (0, 0), (0, 0), (1, 0), (1, 1), (1, 2), (1, 1)]

    def test_the_adjoint_comes_back_step_by_step(self):
        player = Player(3, backwards=True, playing=False)
        seen = []
        for _ in range(7):
            seen.append((player.t, player.returning))
            player.press("Right")
        assert seen == [(0, False), (1, False), (2, False), (3, True), (2, True), (1, True), (0, True)]
        assert player.ended

    @pytest.mark.parametrize("wrong", [{"speed": 0.0}, {"speed": 1e3}, {"seed": -1}])
    def test_nonsense_is_refused(self, wrong):
        with pytest.raises(SettingError, match="Expected a"):
            Player(3, **wrong)


class TestControllers:
    def test_an_address_names_a_member_or_the_best_one(self, run):
        losses = RunDirectory.open(run).metrics()[-1]["test_loss"]
        assert watched(str(run)).member == int(np.argmin(losses))
        names = [watched(f"{run}@{which}").name for which in ("R,0", "full,1", "C,1")]
        assert names == ["R, seed 0", "R, seed 1", "C, seed 1"]
        fitting = Experiment.from_config(RunDirectory.open(run).config).labels()
        found = watched(f"{run}@C")
        assert fitting[found.member].gradient == "C"
        assert [epoch for epoch, _ in found.checkpoints] == [0, 1, 2]

    def test_the_rollout_is_that_of_the_trained_member(self, run):
        trainer = Experiment.from_config(RunDirectory.open(run).config).trainer()
        RunDirectory.open(run).restore(trainer)
        controller = watched(f"{run}@C,1")
        simulation = Simulation(controller)
        episode = simulation.run(simulation.initial(5), 2)
        policy = controller.task.policy(members=1, **tensor_options())
        with torch.no_grad():
            policy.theta.copy_(trainer.policy.theta[controller.member : controller.member + 1])
        rollout = Rollout(controller.task.system, policy, 12, 1)
        initial = controller.task.initial_states(1, 5, "test", tensor_options()["dtype"])
        losses = rollout.forward(initial.to(tensor_options()["device"]), controller.task.objective)
        assert losses is not None
        assert np.array_equal(episode.states, rollout.states[:, 0].detach().double().numpy())
        assert np.array_equal(episode.controls, rollout.controls[:, 0].double().numpy())
        assert episode.losses[-1] == pytest.approx(float(losses[0]))
        assert np.abs(episode.controls).max() > 0

    def test_checkpoints_differ_and_a_task_alone_is_not_controlled(self, run):
        simulation = Simulation(watched(f"{run}@R,0"))
        first, last = (simulation.run(simulation.initial(0), checkpoint) for checkpoint in (0, 2))
        assert not np.array_equal(first.controls, last.controls)
        assert np.array_equal(first.states[0], last.states[0])
        free = Simulation(untrained(TASKS["cart-pole"]()))
        assert (free.run(free.initial(0), 0).controls == 0).all()

    @pytest.mark.float64
    def test_losses_so_far_end_in_the_loss(self):
        for name in ("guidance", "cart-pole", "lqr"):
            task = build_task(name, horizon=6)
            simulation = Simulation(untrained(TASKS[name](horizon=6)))
            episode = simulation.run(simulation.initial(1), 0)
            policy = task.policy(members=1, **tensor_options())
            with torch.no_grad():
                policy.theta.zero_()
            losses = Rollout(task.system, policy, 6, 1).forward(
                torch.as_tensor(episode.states[:1]).to(**tensor_options()), task.objective
            )
            assert losses is not None
            assert episode.losses[-1] == pytest.approx(float(losses[0]))
            assert len(episode.losses) == 7

    def test_adjoints_are_those_of_the_sweeps_and_c_keeps_where_signs_agree(self, run):
        controller = watched(f"{run}@R,0")
        variants = [evenflow.gradient_named(text) for text in "RMC"]
        simulation = Simulation(controller, variants)
        initial = simulation.initial(0)
        adjoints = simulation.run(initial, 2).adjoints
        assert {name: value.shape for name, value in adjoints.items()} == dict.fromkeys("RMC", (13, 6))
        rollout = simulation._rollout
        expected = rollout.backward([FULL, PHYSICS_ONLY], controller.task.objective).initial
        assert relative_error(adjoints["R"][0], expected[FULL][0].numpy()) < 1e-6
        assert relative_error(adjoints["M"][0], expected[PHYSICS_ONLY][0].numpy()) < 1e-6
        agree = np.sign(adjoints["R"]) == np.sign(adjoints["M"])
        assert np.array_equal(adjoints["C"], np.where(agree, adjoints["M"], 0.0))
        assert not np.array_equal(adjoints["R"], adjoints["M"])

    def test_adjoints_of_states_with_rows_are_combined_as_those_of_one(self):
        """Of guidance [4, N], for which lengths are of a whole state."""
        variants = [evenflow.gradient_named(text) for text in ("unit(R)", "mask-random(M, C, 1)")]
        simulation = Simulation(watched("guidance"), variants)
        adjoints = simulation.run(simulation.initial(0), 0).adjoints
        lengths = np.linalg.norm(adjoints["unit(R)"].reshape(len(adjoints["unit(R)"]), -1), axis=1)
        assert lengths[lengths > 0] == pytest.approx(1.0, rel=1e-5)
        assert adjoints["mask-random(M, C, 1, 0)"].shape == adjoints["unit(R)"].shape


@pytest.mark.float64
class TestShow:
    def test_a_push_starts_anew_there_and_a_restart_undoes_it(self):
        of = show(horizon=10)
        before = of.episodes[0].states
        of.player.press("space")
        for _ in range(4):
            of.press("Right")
        place = tuple(of._frame(before[4, :2, 0])[0])
        of.push(0, place, (place[0] + 0.1, place[1]))
        after = of.episodes[0].states
        assert of.player.t == 0
        assert (after[0] != before[4]).nonzero()[0].tolist() == [2]  # vx
        assert (after[0] != before[4]).nonzero()[1].tolist() == [0]  # of the first driver
        assert after[0, 2, 0] > before[4, 2, 0]
        of.press("r")
        assert np.array_equal(of.episodes[0].states, before)

    def test_another_seed_starts_elsewhere_and_the_same_seed_is_the_same(self):
        of = show(horizon=5)
        first = of.episodes[0].states
        of.press("s")
        assert not np.array_equal(of.episodes[0].states[0], first[0])
        of.press("a")
        assert np.array_equal(of.episodes[0].states, first)

    def test_the_target_moves_with_the_mouse_where_there_is_one(self):
        of = show(horizon=5)
        states, losses = of.episodes[0].states, of.episodes[0].losses
        far = of._frame.world((0.95, 0.95))
        of.aim((0.95, 0.95))
        assert np.array_equal(of.episodes[0].states, states)
        away = states[1:, :2, 2:] - far[None, :, None]
        assert of.episodes[0].losses[-1] == pytest.approx((away**2).mean((1, 2)).sum() / 5)
        assert of.episodes[0].losses[-1] != pytest.approx(losses[-1])
        for other in (show("cart-pole"), show("integrator")):
            assert not other.can_aim
            before = other.episodes[0]
            other.aim((0.9, 0.9))
            assert other.episodes[0] is before

    def test_two_controllers_start_at_one_place_in_one_frame(self, run):
        of = Show([watched(f"{run}@R,0"), watched(f"{run}@C,0")])
        one, other = of.episodes
        assert np.array_equal(one.states[0], other.states[0])
        assert not np.array_equal(one.states[-1], other.states[-1])
        assert len(of.scenes()) == of.panels == 2
        of.press("p")
        assert of.player.checkpoint == 1
        text = [line.content for line in of.scenes()[1].primitives if isinstance(line, Text)]
        assert text[0] == "C, seed 0, epoch 1"
        assert f"loss so far {other.losses[0]:.4g}" in text[1]

    def test_only_equal_tasks_are_compared_and_gradients_are_of_one(self, run):
        with pytest.raises(RunError, match="same task"):
            Show([watched(str(run)), untrained(TASKS["cart-pole"]())])
        with pytest.raises(SettingError, match="one controller"):
            Show([watched(f"{run}@R"), watched(f"{run}@C")], ["R"])


def config_of(run, tmp_path, **changes):
    """A copy of a run's config with changes, in a directory without anything else."""
    config = yaml.safe_load((run / "config.yaml").read_text()) | changes
    (tmp_path / "changed").mkdir()
    (tmp_path / "changed" / "config.yaml").write_text(yaml.safe_dump(config))
    return str(tmp_path / "changed")


@pytest.mark.float64
class TestMistakes:
    @pytest.mark.parametrize(
        ("changes", "words"),
        [
            ({"task": "flying"}, "Expected a task among"),
            ({"format": 9}, "Expected a run of format 1, got format 9"),
            ({"runtime": {}}, "Expected a precision"),
            ({}, "Expected a run with checkpoints"),
        ],
        ids=["unknown task", "newer version", "no precision", "no checkpoints"],
    )
    def test_a_run_that_cannot_be_watched_says_why(self, changes, words, run, tmp_path, capsys):
        assert evenflow.main(["view", config_of(run, tmp_path, **changes)]) == 2
        error = capsys.readouterr().err
        assert words in error
        assert error.count("\n") == 1

    @pytest.mark.parametrize(
        ("arguments", "words"),
        [
            (["view"], "got neither"),
            (["view", "nowhere"], "Expected a run directory or a task among"),
            (["view", "RUN@C,7"], "Expected after @"),
            (["view", "RUN@Q"], "Expected a gradient among"),
            (["view", "RUN", "--compare", "RUN", "RUN"], "got both"),
            (["view", "RUN", "--window"], "Expected a display"),
            (["view", "RUN", "--window", "--record", "x.gif"], "both --window and --record"),
            (["view", "cart-pole", "--size", "5"], "Expected a size"),
            (["view", "cart-pole", "--poles", "0"], "at least 1 pole"),
            (["view", "cart-pole", "--gradient", "Z"], "Expected a gradient among"),
            (["view", "cart-pole", "--record", "x.avi"], "FILE.mp4"),
        ],
    )
    def test_a_mistake_ends_in_one_sentence(self, arguments, words, run, tmp_path, capsys, monkeypatch):
        monkeypatch.chdir(tmp_path)
        monkeypatch.delenv("DISPLAY", raising=False)
        monkeypatch.setattr(evenflow.Machine, "start", lambda machine: None)  # the session has its runtime
        assert evenflow.main([word.replace("RUN", str(run)) for word in arguments]) == 2
        error = capsys.readouterr().err
        assert words in error
        assert error.count("\n") == 1
        assert not any(tmp_path.iterdir())


class TestSpace:
    pytestmark = pytest.mark.float64

    def test_each_controller_has_a_solid_and_a_line_that_names_it(self):
        task = NBodyOptions(dim=3, horizon=5)
        both = Show([untrained(task), untrained(task)])
        both.player.press("Right")
        assert len(both.solids()) == 2
        assert np.array_equal(both.solids()[0].points, both.episodes[0].states[1, :3].T)
        assert np.array_equal(both.solids(4)[1].points, both.episodes[1].states[4, :3].T)
        assert all(line.startswith("no control   t 1/5   loss so far") for line in both.captions())
        assert len(both.captions()) == 2

    def test_what_is_flat_has_no_solids(self):
        assert show("n-body", horizon=3).solids() == []

    @pytest.mark.parametrize(("gradients", "opened"), [((), "space_window"), (("R",), "window")])
    def test_a_window_in_space_opens_where_vulkan_is_and_no_profile_is_asked_for(self, gradients, opened, monkeypatch):
        windows = []
        for name, module in (("SpaceWindow", "space_window"), ("Window", "window")):
            fake = type(name, (), {"__init__": lambda *_: None, "run": lambda _, m=module: windows.append(m)})
            monkeypatch.setattr(f"training.viewing.{module}.{name}", fake)
        here = sys.modules[view.__module__]  # its name in the package is the function's
        monkeypatch.setattr(here, "has_display", lambda: True)
        monkeypatch.setattr(here, "available_backends", lambda: ("cpu", "vulkan"))
        view([untrained(NBodyOptions(dim=3, horizon=3))], ViewSettings(gradient=gradients), Console())
        assert windows == [opened]
