"""Films and pictures tell the truth: every body in sight and large, one scale beside each other, names in words."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch

import benchmarks.studies.outcome
from engine import Integrator
from engine.systems import CartPole, Held
from training import Experiment, build_task, train
from training.settings import TrainingSettings
from training.tasks import TASKS
from training.viewing import Show, Watched, untrained
from training.viewing.drawings import Frame, Moment, Scene, drawing_of
from training.viewing.drawings.camera import around_bodies, following
from training.viewing.drawings.ground import round_length
from training.viewing.film import frame_count
from training.viewing.palette import BLUE, ORANGE, VERMILION, flow, styles_of
from training.viewing.profile import Profile
from training.viewing.scene import Circles, Lines, Text, Triangles
from training.viewing.simulation import goal_of, step_seconds

pytestmark = pytest.mark.float64

SHIPPED = {
    **{f"cart-pole-{poles}": ("cart-pole", {"poles": poles}) for poles in (1, 2, 3, 4)},
    "cart-pendulum": ("cart-pendulum", {}),
    "guidance": ("guidance", {}),
    "swarm": ("swarm", {"evaders": 60, "drivers": 3}),
    "n-body": ("n-body", {}),
    "n-body-3d": ("n-body", {"dim": 3}),
    "fluid": ("fluid", {"particles": 200, "horizon": 6}),
    "quantum": ("quantum", {}),
    "lqr": ("lqr", {}),
    "integrator": ("integrator", {}),
}
BODIES = {"cart-pole-1": 2, "cart-pole-2": 4, "cart-pole-3": 6, "cart-pole-4": 8, "cart-pendulum": 4, "guidance": 6,
          "swarm": 63, "n-body": 3, "n-body-3d": 3}  # fmt: skip


@dataclass(frozen=True)
class Wild(Watched):
    """A controller of random weights, which makes carts run off and drivers flee."""

    size: float = 0.6

    def fill(self, policy, checkpoint):
        draw = torch.Generator().manual_seed(self.member)
        policy.theta.data.copy_(self.size * torch.randn(policy.theta.shape, generator=draw, dtype=torch.float64))


def wild(name, member=0, size=0.6):
    task, options = SHIPPED[name]
    return Wild(f"wild {member}", TASKS[task](**options), (), member, "float64", size)


def only(scene, kind):
    return [primitive for primitive in scene.primitives if isinstance(primitive, kind)]


def words(scene):
    return [text.content for text in only(scene, Text)]


def discs(scene):
    """Centres and radii of all discs of a scene."""
    found = only(scene, Circles)
    centres = np.concatenate([one.centres for one in found])
    return centres, np.concatenate([np.broadcast_to(one.radius, len(one.centres)) for one in found])


@pytest.mark.parametrize("name", SHIPPED)
def test_every_body_is_in_the_film_at_every_step_and_large(name):
    of = Show([wild(name, size=0.1)])
    boxes, sides = [], []
    for t in np.unique(np.linspace(0, of.player.horizon, 9).astype(int)):
        of.player.position = float(t)
        for scene in of.scenes():
            if name == "quantum":
                ends = np.concatenate([np.concatenate([one.begin, one.end]) for one in only(scene, Lines)])
                assert ((ends >= 0) & (ends <= 1)).all()
                boxes.append((ends.min(0), ends.max(0)))
                continue
            centres, radii = discs(scene)
            assert len(centres) >= BODIES.get(name, 1)
            assert (centres - radii[:, None] >= 0).all()
            assert (centres + radii[:, None] <= 1).all()
            boxes.append(((centres - radii[:, None]).min(0), (centres + radii[:, None]).max(0)))
            size = np.ptp(centres, axis=0)
            sides.append(float(np.linalg.norm(size) if name.startswith("cart") else size.max()))
    low, high = (np.array(part) for part in zip(*boxes, strict=True))
    assert (high.max(0) - low.min(0)).max() > 1 / 3
    if name not in ("lqr", "integrator", "quantum"):  # curves that grow from a point, and a box that is always whole
        assert min(sides) >= 0.25
        assert np.median(sides) > 0.3


@pytest.mark.parametrize("name", [name for name in SHIPPED if not name.startswith("cart-pole") or name.endswith("2")])
def test_what_stands_beside_each_other_is_to_one_scale(name):
    of = Show([wild(name), wild(name, 1)])
    for t in (0, of.player.horizon):
        one, other = (camera(t) for camera in of._cameras)
        assert one.extent == other.extent
    steps = (0, of.player.horizon // 2, of.player.horizon)
    of.stand(steps)
    frames = [camera(t) for camera in of._cameras for t in steps]
    assert len({frame.extent for frame in frames}) == 1
    for t in steps:
        of.player.position = float(t)
        for scene in of.scenes():
            if only(scene, Circles):
                centres, _ = discs(scene)
                assert ((centres >= 0) & (centres <= 1)).all()


def test_a_film_of_a_cart_runs_in_real_time_and_says_so():
    slow = Show([wild("cart-pole-2")], speed=0.5)
    assert slow.player.steps_per_second == pytest.approx(100.0)
    assert frame_count(Show([wild("cart-pole-2")])) == 25 + 1 + 20  # a second of 100 steps, the first, the last held
    assert frame_count(slow) == 50 + 1 + 20
    slow.player.advance(1.0)
    assert slow.player.t == 50
    shown = words(slow.scenes()[0])
    assert any("x0.5 real time" in line and "0.50 s" in line for line in shown)
    assert any("25 steps a second" in line for line in words(Show([wild("guidance")]).scenes()[0]))


def test_seconds_of_a_step_are_those_of_what_is_held():
    assert step_seconds(CartPole(1, 0.02)) == 0.02
    assert step_seconds(Held(CartPole(1, 0.02), 5)) == pytest.approx(0.1)
    assert step_seconds(Integrator(1)) is None


def test_panels_beside_each_other_name_controller_and_loss():
    of = Show([wild("cart-pole-2"), wild("cart-pole-2", 1)])
    of.player.position = float(of.player.horizon)
    for index, scene in enumerate(of.scenes()):
        name, status, pace, *_ = words(scene)
        assert name == f"wild {index}"
        assert f"loss so far {of.episodes[index].losses[-1]:.4g}" in status
        assert "start 0" in pace


def test_letters_can_be_read_at_300_pixels_and_do_not_run_out_of_the_picture():
    for name in ("cart-pole-2", "n-body", "swarm", "quantum", "lqr"):
        for text in only(Show([wild(name)], speed=0.25).scenes()[0], Text):
            assert round(300 * text.size) >= 10
            assert text.position[0] + 0.5 * text.size * len(text.content) < 1.03, text.content


@pytest.mark.parametrize("name", ["fluid", "swarm"])
def test_particles_show_their_speed_and_a_bar_says_what_colours_mean(name):
    of = Show([wild(name, size=0.1)])
    states, first = of.episodes[0].states, 3 if name == "swarm" else 4
    t = of.player.horizon // 2
    of.player.position = float(t)
    scene = of.scenes()[0]
    colours = np.concatenate([np.ravel(one.colour) for one in only(scene, Circles) if len(one.centres) > 20])
    assert len(np.unique(colours)) > 15
    fastest = of._fastest
    assert fastest is not None
    speeds = np.linalg.norm(states[:, 2:, first:], axis=1)
    assert fastest == pytest.approx(np.quantile(speeds, 0.98))
    assert set(flow(speeds[t], fastest).tolist()) <= set(colours.tolist())
    assert {"speed  0", f"{fastest:.2g}"} <= set(words(scene))
    if name == "swarm":
        assert VERMILION in colours  # drivers are none of the flow's


def test_colours_of_a_flow_grow_lighter_from_blue_to_orange():
    colours = flow(np.linspace(0, 1, 33), 1.0)
    assert (int(colours[0]), int(colours[-1])) == (BLUE, ORANGE)
    light = [0.2126 * (c >> 16) + 0.7152 * (c >> 8 & 255) + 0.0722 * (c & 255) for c in map(int, colours)]
    assert min(np.diff(light)) > 0
    assert flow(np.array([np.nan, 5.0]), 1.0).tolist() == [BLUE, ORANGE]


def test_carts_that_run_off_are_in_every_panel_of_the_outcome(tmp_path, monkeypatch):
    scenes = []

    class Recorder:
        def __init__(self, title, panels=1, size=600, window=False):
            self.size = size

        def paint(self, painted):
            scenes.extend(painted)

        def image(self):
            return np.zeros((self.size, self.size, 3), dtype=np.uint8)

    monkeypatch.setattr(benchmarks.studies.outcome, "GuiCanvas", Recorder)
    monkeypatch.setattr(Watched, "fill", Wild.fill)
    monkeypatch.setattr(Watched, "size", 1.5, raising=False)
    small = TrainingSettings(batch_size=2, train_samples=2, test_samples=2)
    train(
        Experiment("cart-pole", {"poles": 2}, gradients=("R", "M", "S", "C"), seeds=(0,), epochs=1, settings=small),
        tmp_path / "run",
    )
    benchmarks.studies.outcome.outcome_figure(tmp_path / "run", tmp_path / "outcome.png")
    assert len(scenes) == 5
    places = set()
    for scene in scenes:
        centres, radii = discs(scene)
        assert len(centres) == 4  # two poles' ends and hinges
        assert (centres - radii[:, None] >= 0).all()
        assert (centres + radii[:, None] <= 1).all()
        assert np.linalg.norm(np.ptp(centres, axis=0)) > 1 / 3
        places.add(tuple(text for text in words(scene) if text.endswith(" m")))
    assert len(places) > 1  # the ground says where they are


def test_a_start_alone_is_seen_and_so_is_one_whose_rollout_diverged():
    for name in ("cart-pole-2", "guidance", "n-body-3d", "lqr"):
        task = build_task(SHIPPED[name][0], **SHIPPED[name][1])
        start = task.initial_states(1, 0, "test", torch.float64)[0].numpy()
        drawing = drawing_of(task.system, goal_of(task))
        gone = np.full_like(start, np.nan)
        for camera in drawing.cameras([start[None], gone[None]]):
            assert np.isfinite([*camera(0).centre, *camera(0).extent]).all()
        lost = np.stack([start, gone, gone])
        control = np.zeros((2, *task.system.control_shape))
        for t in range(3):
            drawing.draw(Scene(), drawing.cameras([lost])[0](t), Moment(lost, control, t))


class TestCamera:
    def test_a_still_picture_serves_while_bodies_fill_it_and_a_moving_one_keeps_them_inside(self):
        spread = np.random.default_rng(0).uniform(size=(40, 30, 2))
        still = around_bodies([spread], np.zeros((0, 2)))
        assert len({still(t) for t in range(40)}) == 1
        flying = spread + np.arange(40)[:, None, None] * np.array([2.0, 1.0])
        moving = around_bodies([flying], np.zeros((0, 2)))
        assert len({moving(t).centre for t in range(40)}) > 20
        for t in range(40):
            inside = moving(t)(flying[t])
            assert ((inside >= 0) & (inside <= 1)).all()
        centres = np.array([moving(t).centre for t in range(40)])
        assert np.abs(np.diff(centres, n=2, axis=0)).max() < np.abs(np.diff(flying.mean(1), n=1, axis=0)).max()

    def test_a_goal_far_away_does_not_make_bodies_small(self):
        bodies = np.random.default_rng(0).uniform(size=(30, 4, 2))
        frame = around_bodies([bodies], np.array([[1e3, 0.0]]))(3)
        assert np.ptp(frame(bodies[3]), axis=0).max() > 0.2
        scene = Scene()
        scene.goal(frame((1e3, 0.0)))
        (head,) = only(scene, Triangles)
        assert head.a[0, 0] > 0.9

    def test_what_is_followed_stays_near_the_middle_over_gaps(self):
        places = np.cumsum(np.random.default_rng(0).normal(size=200))
        assert np.abs(following(places, 0.5) - places).max() <= 0.5
        places[50:60] = np.nan
        assert np.isfinite(following(places, 0.5)).all()
        assert following(np.full(3, np.nan), 0.5).tolist() == [0, 0, 0]

    def test_lengths_are_round(self):
        assert [round_length(value) for value in (0.03, 1.0, 4.9, 5.0, 99.0)] == [0.02, 1.0, 2.0, 5.0, 50.0]

    def test_points_fill_the_inside(self):
        frame = Frame.filling(np.array([(0.0, 0.0), (10.0, 1.0), (np.inf, 0.0)]))
        seen = frame([(0.0, 0.0), (10.0, 1.0)])
        assert np.ptp(seen[:, 0]) == pytest.approx(0.92)
        assert ((seen > 0) & (seen < 1)).all()


class TestDashes:
    def test_a_dashed_line_has_gaps_of_the_pattern_across_its_corners(self):
        scene = Scene()
        scene.polyline([(0.0, 0.0), (0.3, 0.0), (0.3, 0.4), (0.3, 1.0)], 0.01, dashes=(4.0, 1.0))
        (lines,) = only(scene, Lines)
        lengths = np.linalg.norm(lines.end - lines.begin, axis=1)
        assert lengths.sum() == pytest.approx(1.3 * 4 / 5, abs=0.01)
        assert (lengths > 0).all()
        assert lengths.max() <= 0.04 + 1e-9
        corners = np.concatenate([lines.begin, lines.end])
        assert ((np.abs(corners[:, 0] - 0.3) < 1e-9) | (np.abs(corners[:, 1]) < 1e-9)).all()

    def test_curves_that_coincide_are_all_seen(self):
        colours = {letter: style.rgb for letter, style in styles_of("RMSNC").items()}
        same = np.ones((11, 2)) * np.linspace(1, 2, 11)[:, None]
        profile = Profile(dict.fromkeys("SCNMR", same), drawing_of(Integrator(2)))
        scene = Scene()
        profile.draw(scene, 0, True)
        curves = {letter: [one for one in only(scene, Lines) if np.ndim(one.colour) == 0 and one.colour == colour][-1]
                  for letter, colour in colours.items()}  # fmt: skip
        painted = [[id(one) for one in scene.primitives].index(id(curves[letter])) for letter in "RCMNS"]
        assert painted == sorted(painted)  # what covers most comes first
        covered = {letter: np.linalg.norm(one.end - one.begin, axis=1).sum() for letter, one in curves.items()}
        assert covered["R"] > covered["C"] > covered["M"]
        assert covered["S"] < 0.6 * covered["R"]


def test_an_untrained_task_has_a_name_too():
    assert words(Show([untrained(TASKS["guidance"]())]).scenes()[0])[0] == "no control"
