"""Drawings: what stands where in a scene, and that it comes out as pixels without a display."""

import math

import numpy as np
import pytest
from children import run_python

from engine import CartPole, Integrator, LinearSystem
from engine.systems import BallWall, CartPendulum, Fluid, Guidance, Held, Swarm
from engine.systems.hopper import Hopper
from engine.systems.kuramoto_sivashinsky import KuramotoSivashinsky
from engine.systems.n_body import NBody
from engine.systems.quantum import QuantumBox
from training.viewing.canvas import grid
from training.viewing.drawings import DRAWINGS, Frame, GuiCanvas, Moment, Scene, drawing_of, shades
from training.viewing.drawings.carts import CartDrawing
from training.viewing.drawings.drawing import StatePlot
from training.viewing.drawings.space import AWAY, RIGHT, UP, faded, far_first, project, unproject
from training.viewing.palette import BLACK, BLUE, CYCLE, GREEN, GREY, VERMILION
from training.viewing.scene import Circles, Lines, Triangles

pytestmark = pytest.mark.float64


def drawn(system, states, controls, t=0, goal=None, colours=None):
    """(scene, frame) of a moment."""
    drawing, scene = drawing_of(system, goal), Scene()
    frame = drawing.frame(states)
    drawing.draw(scene, frame, Moment(states, controls, t, colours))
    return scene, frame


def painted(scene, size=200):
    canvas = GuiCanvas("test", size=size)
    canvas.paint([scene])
    return canvas.image()


def share_of(picture, colour):
    """Share of the pixels that have a colour, to a rounding."""
    wanted = np.array([(colour >> shift) & 255 for shift in (16, 8, 0)])
    return float((np.abs(picture.astype(int) - wanted) <= 2).all(2).mean())


def only(scene, kind):
    return [primitive for primitive in scene.primitives if isinstance(primitive, kind)]


EXAMPLES = {
    "cart-pole": (lambda: CartPole(2), np.zeros((4, 6)), np.ones((3, 1))),
    "cart-pendulum": (lambda: CartPendulum(3), np.zeros((4, 8)), np.ones((3, 1))),
    "guidance": (lambda: Guidance(2, 4), np.random.default_rng(0).normal(size=(4, 4, 6)), np.ones((3, 2, 2))),
    "swarm": (lambda: Swarm(2, 4), np.random.default_rng(0).normal(size=(4, 4, 6)), np.ones((3, 2, 2))),
    "fluid": (
        lambda: Held(Fluid(40, 2, (1.2, 1.1), 0.1), 3),
        np.random.default_rng(0).uniform(0.1, 1.0, size=(4, 4, 42)),
        np.ones((3, 2, 2)),
    ),
    "fluid-3d": (
        lambda: Fluid(40, 2, (1.2, 1.1, 1.0), 0.1),
        np.random.default_rng(0).uniform(0.1, 1.0, size=(4, 6, 42)),
        np.ones((3, 3, 2)),
    ),
    "n-body-3d": (lambda: NBody(dim=3), np.random.default_rng(0).normal(size=(4, 6, 3)), np.ones((3, 3, 2))),
    "n-body": (lambda: NBody(), np.random.default_rng(0).normal(size=(4, 4, 3)), np.ones((3, 2, 2))),
    "quantum": (lambda: QuantumBox(16), np.random.default_rng(0).normal(size=(4, 2, 16)), np.ones((3, 1))),
    "hopper": (Hopper, np.random.default_rng(0).uniform(0.2, 1.0, size=(4, 10)), np.ones((3, 2))),
    "ring": (lambda: KuramotoSivashinsky(32), np.random.default_rng(0).normal(size=(4, 32)), np.ones((3, 4))),
    "ball-wall": (BallWall, np.random.default_rng(0).uniform(0.0, 2.0, size=(4, 5)), np.ones((3, 2))),
    "integrator": (lambda: Integrator(3), np.random.default_rng(0).normal(size=(4, 3)), np.ones((3, 3))),
}


def example(name):
    """(system, states, controls); systems are made late, since some need the runtime."""
    system, states, controls = EXAMPLES[name]
    return system(), states, controls


BODIES = {
    "cart-pole": 3,
    "cart-pendulum": 4,
    "guidance": 6,
    "swarm": 6,
    "fluid": 42,
    "fluid-3d": 42,
    "n-body-3d": 3,
    "n-body": 3,
    "quantum": 16,
    "hopper": 2,
    "ring": 32,
    "ball-wall": 1,
    "integrator": 3,
}


def test_every_drawing_is_among_the_examples_and_what_has_none_is_plotted():
    systems = [example(name)[0] for name in EXAMPLES]
    assert {type(system.system if isinstance(system, Held) else system) for system in systems} >= set(
        dict(DRAWINGS.values())
    )
    assert isinstance(drawing_of(LinearSystem([[1.0]], [[1.0]])), StatePlot)


@pytest.mark.parametrize("name", EXAMPLES)
def test_a_drawing_stays_in_its_frame_and_makes_pixels(name):
    system, states, controls = example(name)
    for t in range(len(states)):
        scene, _ = drawn(system, states, controls, t)
        for circles in only(scene, Circles):
            assert ((circles.centres >= 0) & (circles.centres <= 1)).all()
        picture = painted(scene)
        assert picture.shape == (200, 200, 3)
        assert 0.005 < 1 - share_of(picture, 0xFFFFFF) < 0.6


@pytest.mark.parametrize("name", EXAMPLES)
def test_bodies_take_the_colours_of_their_adjoints(name):
    system, states, controls = example(name)
    drawing = drawing_of(system)
    sizes = drawing.sizes(np.ones_like(states))
    assert sizes.shape == (4, BODIES[name])
    assert (sizes > 0).all()
    colours = np.full(BODIES[name], 0x12AB34, dtype=np.uint32)
    plain, coloured = (painted(drawn(system, states, controls, 1, None, c)[0]) for c in (None, colours))
    assert share_of(plain, 0x12AB34) == 0
    assert share_of(coloured, 0x12AB34) > 0.0005


@pytest.mark.parametrize("name", EXAMPLES)
def test_a_state_that_is_not_finite_is_drawn_without_failing(name):
    system, states, controls = example(name)
    states, controls = states.copy(), controls.copy()
    states[2:], controls[2:] = np.nan, np.inf
    for t in range(len(states)):
        assert painted(drawn(system, states, controls, t)[0]).shape == (200, 200, 3)


def test_sizes_add_the_adjoint_of_a_body_over_its_positions_and_velocities():
    adjoint = np.zeros((1, 6))
    adjoint[0, [1, 3, 5]] = 2.0, 3.0, 4.0  # ẋ, θ_2, θ̇_2
    assert drawing_of(CartPole(2)).sizes(adjoint).tolist() == [[2.0, 0.0, 5.0]]


class TestSpace:
    def test_the_picture_keeps_lengths_across_and_up_and_has_no_depth(self):
        assert np.allclose(project(np.array([RIGHT, UP, AWAY])), [(1, 0), (0, 1), (0, 0)])
        vectors = np.random.default_rng(0).normal(size=(5, 2))
        assert np.allclose([project(unproject(vector, 3)) for vector in vectors], vectors)
        assert UP[2] > 0
        assert AWAY @ (0, 1, 0) > 0

    def test_what_is_near_hides_what_is_far_and_what_is_far_is_paler(self):
        points = np.outer([0.0, 2.0, 1.0], AWAY)
        assert far_first(points).tolist() == [1, 2, 0]
        assert faded(np.full(3, BLUE, dtype=np.uint32), points)[0] == BLUE
        channels = [(faded(np.full(3, BLUE, dtype=np.uint32), points) >> shift) & 255 for shift in (16, 8, 0)]
        assert all(one[0] < one[2] < one[1] < 255 for one in channels)

    def test_a_plane_is_seen_as_it_is(self):
        points = np.random.default_rng(0).normal(size=(4, 2))
        assert project(points) is points
        assert far_first(points).tolist() == [0, 1, 2, 3]
        assert faded(np.arange(4), points).tolist() == [0, 1, 2, 3]

    @pytest.mark.parametrize("name", EXAMPLES)
    def test_only_systems_in_space_have_solids_with_every_body_in_them(self, name):
        system, states, controls = example(name)
        drawing = drawing_of(system)
        solid = drawing.solid(Moment(states, controls, 1))
        assert (solid is None) != name.endswith("3d")
        if solid is not None:
            assert np.array_equal(solid.points, states[1, :3].T)
            assert len(solid.radii) == len(solid.colours) == BODIES[name]
            assert solid.lines.shape[1:] == (2, 3)
            moved = solid.moved(np.array([1.0, 2.0, 3.0]))
            assert np.allclose(moved.points - solid.points, (1, 2, 3))
            assert np.allclose(moved.lines - solid.lines, (1, 2, 3))

    def test_the_control_is_the_last_line_and_points_as_it_pushes(self):
        system, states, controls = example("n-body-3d")
        controls = np.zeros_like(controls)
        controls[1, :, 1] = 1.0, -2.0, 3.0
        begin, end = drawing_of(system).solid(Moment(states, controls, 1)).lines[-1]
        assert np.allclose(begin, states[1, :3, system.thrusters[1]])
        assert np.allclose(np.cross(end - begin, (1, -2, 3)), 0)
        assert (end - begin) @ (1, -2, 3) > 0

    def test_a_push_goes_where_it_is_seen_to_go(self):
        system, states, _ = example("n-body-3d")
        place = project(states[0, :3].T)[2]
        pushed = drawing_of(system).push(states[0], place + 0.01, np.array([0.5, -1.0]))
        change = pushed - states[0]
        assert not change[:3].any()
        assert not change[:, :2].any()
        seen = project(change[3:, 2])
        assert seen[1] / seen[0] == pytest.approx(-2.0)
        assert seen[0] > 0


def test_poles_hang_from_the_cart_and_links_from_each_other():
    state = np.array([0.5, 0.0, -math.pi / 2, math.pi / 2, 0.0, 0.0])
    begin, end = CartDrawing(CartPole(2)).hinges(state)
    assert np.allclose(begin, [(0.5, 0), (0.5, 0)])
    assert np.allclose(end, [(-0.5, 0), (1.5, 0)])
    begin, end = CartDrawing(CartPendulum(2)).hinges(state)
    assert np.allclose(begin, [(0.5, 0), (-0.5, 0)])
    assert np.allclose(end, [(-0.5, 0), (0.5, 0)])


def test_the_force_points_as_it_acts_and_is_as_long_as_it_is_strong():
    states = np.zeros((4, 4))
    tips, half_cart = [], 0.0
    for t in range(3):
        scene, frame = drawn(CartPole(1), states, np.array([[2.0], [-1.0], [0.0]]), t)
        half_cart = frame.length(0.25)
        heads = [one for one in only(scene, Triangles) if one.colour == BLACK]
        cart = frame([(0.0, 0.0)])[0, 0]
        tips.append([float(one.a[0, 0] - cart) for one in heads])
    (right,), (left,), none = tips
    assert right > 0 > left
    assert right - half_cart == pytest.approx(2 * (-left - half_cart))
    assert none == []


def test_a_cart_that_travels_far_is_followed_over_the_marks_of_its_rail():
    states = np.zeros((3, 4))
    states[:, 0] = 0.0, 20.3, 40.6
    drawing = drawing_of(CartPole(1))
    (camera,), (near,) = drawing.cameras([states]), drawing.cameras([states / 100])
    assert near(0) == near(1)
    for t, state in enumerate(states):
        seen = camera(t)
        assert seen.extent == (seen.extent[0],) * 2
        assert abs(seen([(state[0], 0.0)])[0, 0] - 0.5) < 0.15
        for pole in (-1.0, 1.0):  # wherever it points
            assert ((seen([(state[0] + pole, 0.0)]) >= 0) & (seen([(state[0] + pole, 0.0)]) <= 1)).all()
        scene = Scene()
        drawing.draw(scene, seen, Moment(states, np.zeros((2, 1)), t))
        marks = seen.centre[0] + (only(scene, Lines)[0].begin[:, 0] - 0.5) * seen.extent[0]
        assert len(marks) >= 8
        assert 4 * marks == pytest.approx((4 * marks).round())


def test_the_herd_has_its_target_its_drivers_and_its_evaders():
    states = np.zeros((2, 4, 3))
    states[:, 0] = 0.0, 2.0, 3.0
    scene, frame = drawn(Guidance(1, 2), states, np.zeros((1, 2, 1)), goal=np.array([1.0, -1.0]))
    (circles,) = only(scene, Circles)
    assert np.asarray(circles.colour).tolist() == [VERMILION, BLUE, BLUE]
    assert np.allclose(circles.centres, frame(states[0, :2].T))
    cross = next(one for one in only(scene, Lines) if isinstance(one.colour, int) and one.colour == GREEN)
    assert np.allclose((cross.begin + cross.end) / 2, frame([(1.0, -1.0)] * 2))


def test_the_wave_shows_density_and_target():
    system = QuantumBox(16)
    ground, target = (system.eigenstate(n).numpy() for n in (1, 3))
    states = np.stack([np.stack([0.6 * ground, 0.8 * ground])] * 2)
    scene, frame = drawn(system, states, np.zeros((1, 1)), goal=target)
    bars = only(scene, Lines)[2]
    assert np.allclose(bars.end[:, 1], frame(np.stack([system.dx * np.arange(1, 17), ground**2], 1))[:, 1])
    assert any(isinstance(one.colour, int) and one.colour == GREEN for one in only(scene, Lines))


def test_a_plot_shows_what_has_been_and_not_what_is_to_come():
    states = np.linspace(0, 1, 11)[:, None] * np.array([1.0, -1.0])
    for t in (0, 4, 10):
        scene, _ = drawn(Integrator(2), states, np.zeros((10, 2)), t)
        lines = [one for one in only(scene, Lines) if isinstance(one.colour, int) and one.colour == CYCLE[0]]
        assert sum(len(one.begin) for one in lines) == t


PUSHES = {
    "cart": (CartPole(1), np.zeros(4), (0.0, 0.0), (0.2, 0.0), {1: 1.0}),
    "pole": (CartPole(1), np.zeros(4), (0.0, 1.0), (0.2, 0.5), {3: 1.0}),
    "evader": (Guidance(1, 1), np.array([[0.0, 1.0], [0, 0], [0, 0], [0, 0]]), (1.1, 0.0), (0.0, 1.0), {7: 3.0}),
    "component": (Integrator(2), np.array([0.0, 1.0]), (3.0, 0.9), (1.0, -0.5), {1: -0.5}),
}


@pytest.mark.parametrize("name", PUSHES)
def test_a_push_changes_the_nearest_body_alone(name):
    system, state, start, drag, expected = PUSHES[name]
    before = state.copy()
    pushed = drawing_of(system).push(state, np.array(start), np.array(drag))
    change = (pushed - state).ravel()
    assert {int(index): pytest.approx(change[index]) for index in change.nonzero()[0]} == expected
    assert (state == before).all()


def test_a_pushed_wave_keeps_its_norm_and_gains_momentum():
    system = QuantumBox(16)
    state = np.stack([system.eigenstate(1).numpy(), np.zeros(16)])
    pushed = drawing_of(system).push(state, np.zeros(2), np.array([0.3, 0.0]))
    assert np.allclose((pushed**2).sum(0), (state**2).sum(0))
    wave = pushed[0] + 1j * pushed[1]
    assert float((np.conj(wave[:-1]) * wave[1:]).imag.sum()) > 0.1


def test_shades_grow_brighter_with_the_size_and_are_grey_at_zero():
    colours = shades(np.array([1e-6, 1e-3, 1.0, 0.0, np.nan, 1e9]), 1e-6, 1.0)
    brightness = [sum((int(colour) >> shift) & 255 for shift in (16, 8, 0)) for colour in colours]
    assert brightness[0] < brightness[1] < brightness[2]
    assert [int(colours[3]), int(colours[4])] == [GREY, GREY]
    assert colours[5] == colours[2]


def test_a_frame_maps_the_world_there_and_back():
    frame = Frame.of_box((0.0, -2.0), (10.0, 2.0), (0.1, 0.3), (0.9, 0.7))
    assert np.allclose(frame([(0, -2), (10, 2), (5, 0)]), [(0.1, 0.3), (0.9, 0.7), (0.5, 0.5)])
    assert np.allclose(frame.world((0.9, 0.7)), (10, 2))
    round_one = Frame.around(np.array([(0.0, 0.0), (4.0, 1.0), (np.nan, 1.0)]), margin=0.25)
    assert round_one.centre == (2.0, 0.5)
    assert round_one.extent == (6.0, 6.0)


@pytest.mark.parametrize(("panels", "expected"), [(1, (1, 1)), (2, (2, 1)), (3, (3, 1)), (4, (2, 2)), (5, (3, 2))])
def test_panels_stand_in_a_grid_and_are_found_under_the_mouse(panels, expected):
    assert grid(panels) == expected
    canvas = GuiCanvas("test", panels, 100)
    assert canvas.image().shape == (100 * expected[1], 100 * expected[0], 3)
    for panel in range(panels):
        scenes = [Scene() for _ in range(panels)]
        scenes[panel].rectangle((0, 0), (1, 1), BLUE)
        canvas.clear()
        canvas.paint(scenes)
        assert share_of(canvas.image(), BLUE) == pytest.approx(1 / (expected[0] * expected[1]), rel=0.05)
        column, row = panel % expected[0], expected[1] - 1 - panel // expected[0]
        found, place = canvas.panel_at(((column + 0.25) / expected[0], (row + 0.75) / expected[1]))
        assert found == panel
        assert place == pytest.approx((0.25, 0.75))


def test_no_display_is_needed_but_for_a_window():
    done = run_python(
        "import os; os.environ.pop('DISPLAY', None)\n"
        "import engine; engine.init('cpu')\n"
        "from training.viewing.drawings import GuiCanvas, Scene, has_display\n"
        "scene = Scene(); scene.circles([(0.5, 0.5)], 0.25, 0xD55E00)\n"
        "canvas = GuiCanvas('x', size=100); canvas.paint([scene])\n"
        "picture = canvas.image()\n"
        "print(has_display(), picture[50, 50].tolist(), picture[5, 5].tolist())\n"
        "try: GuiCanvas('x', window=True)\n"
        "except engine.BackendError as error: print(error)\n"
    )
    seen, error = done.stdout.splitlines()[-2:]
    assert seen == "False [213, 94, 0] [255, 255, 255]"
    assert error.startswith("Expected a display")
