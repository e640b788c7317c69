"""Drawings that users register, and goals that objectives name."""

import numpy as np
import pytest
import torch

from engine import SettingError, System
from engine.registry import registering
from engine.systems import CartPole, LinearSystem
from training import Objective, build_task
from training.viewing.drawings import DRAWINGS, Drawing, Frame, Moment, Scene, drawing_of, register_drawing
from training.viewing.drawings.carts import CartDrawing
from training.viewing.drawings.drawing import StatePlot
from training.viewing.scene import Circles
from training.viewing.simulation import goal_of

pytestmark = pytest.mark.float64


class Mass(LinearSystem):
    """A system of a user's."""


class Spring(Mass):
    """One that derives from it."""


class MassDrawing(Drawing):
    def __init__(self, system, goal):
        self.goal = goal

    def frame(self, states):
        return Frame.filling(np.pad(states, ((0, 0), (0, 1))))

    def draw(self, scene, frame, moment):
        scene.circles(frame([(moment.state[0], 0.0)]), 0.02)


@pytest.fixture
def registered():
    with registering("mine.py"):
        register_drawing(Mass, MassDrawing)
    yield
    DRAWINGS.withdraw("mine.py")


def test_a_class_and_those_that_derive_from_it_are_drawn(registered):
    for kind in (Mass, Spring):
        drawing = drawing_of(kind([[1.0]], [[1.0]]), np.array(2.0))
        assert isinstance(drawing, MassDrawing)
        assert drawing.goal == 2.0
    assert isinstance(drawing_of(LinearSystem([[1.0]], [[1.0]])), StatePlot)
    own_cart = type("OwnCart", (CartPole,), {})
    assert isinstance(drawing_of(own_cart(2)), CartDrawing)


def test_a_drawing_of_a_frame_and_a_picture_alone_has_bodies_and_cannot_be_pushed(registered):
    drawing, states, scene = drawing_of(Mass([[1.0]], [[1.0]])), np.array([[0.0], [1.0], [3.0]]), Scene()
    (camera,) = drawing.cameras([states])
    drawing.draw(scene, camera(1), Moment(states, np.zeros((2, 1)), 1))
    (circle,) = [part for part in scene.primitives if isinstance(part, Circles)]
    assert circle.centres == pytest.approx(camera(1)([(1.0, 0.0)]))
    assert drawing.sizes(-states) == pytest.approx(states)
    pushed = drawing.push(states[0], np.zeros(2), np.ones(2))
    assert np.array_equal(pushed, states[0])
    assert pushed is not states[0]


@pytest.mark.parametrize(
    ("system", "draw", "told"),
    [
        (Mass, MassDrawing, "Expected a class of systems that nobody draws, got Mass, which mine.py draws"),
        (CartPole, MassDrawing, "got CartPole, which evenflow draws; derive a class from it"),
        (dict, MassDrawing, "Expected a class of systems to draw, derived from System, got <class 'dict'>"),
        ("mass", MassDrawing, "Expected a class of systems to draw, derived from System, got 'mass'"),
        (System, "circle", "Expected a drawing of System as a class or a function, got 'circle'"),
    ],
)
def test_what_cannot_be_registered_is_refused(registered, system, draw, told):
    before = list(DRAWINGS)
    with pytest.raises(SettingError, match=told):
        register_drawing(system, draw)
    assert list(DRAWINGS) == before


@pytest.mark.parametrize(
    ("task", "goal"),
    [
        ("integrator", 2.0), ("n-body", 1.5), ("guidance", (0.0, 0.0)), ("swarm", (5.0, 0.0)), ("fluid", (1.5, 0.3)),
        ("cart-pole", None), ("lqr", None),
    ],
)  # fmt: skip
def test_objectives_name_their_goals(task, goal):
    found = goal_of(build_task(task))
    assert found is None if goal is None else found == pytest.approx(np.array(goal))
    wave = goal_of(build_task("quantum", target=4))
    assert wave is not None
    assert wave.shape == (32,)
    assert (wave**2).sum() == pytest.approx(1.0)


def test_a_goal_of_the_plane_can_be_moved_and_others_cannot():
    for task, place in (("guidance", (0.5, -1.0)), ("swarm", (1.0, 2.0)), ("fluid", (1.0, 0.5))):
        built = build_task(task)
        aimed = built.objective.aimed_at(place)
        assert aimed is not None
        assert aimed.goal == place
        assert built.objective.goal != place
        without = {"goal": None, "parameters": None}
        assert {**vars(aimed), **without} == {**vars(built.objective), **without}
        assert tuple(getattr(aimed, "parameters", {}).values()) in (place, ())  # those that a task may randomise
    for task, options in (("cart-pole", {}), ("n-body", {}), ("quantum", {}), ("fluid", {"dim": 3})):
        assert build_task(task, **options).objective.aimed_at((0.0, 0.0)) is None


def test_a_goal_may_be_a_tensor_and_moves_what_is_minimised():
    class There(Objective):
        goal = torch.tensor([1.0, 2.0])

    assert There().aimed_at((0.0, 0.0)) is None
    task = build_task("guidance", target_x=1.0)
    states = torch.randn(3, *task.system.state_shape, dtype=torch.float64)
    aimed = build_task("guidance").objective.aimed_at((1.0, 0.0))
    assert aimed is not None
    ours, theirs = aimed.final(states), task.objective.final(states)
    assert ours is not None
    assert theirs is not None
    assert torch.equal(ours, theirs)
