"""What a ball's picture shows, and what a plot of states says in words."""

import numpy as np
import pytest
from test_drawing import drawn, example, only

from engine.systems import BallWall
from training.viewing.palette import CYCLE, GREEN, SKY
from training.viewing.scene import Lines, Text, Triangles

pytestmark = pytest.mark.float64


def test_a_ball_is_seen_with_its_wall_and_where_it_is_to_land():
    system = BallWall(launch=(4.0, 3.0))
    states = np.zeros((4, 5))
    states[:, 0], states[:, 4] = (0.0, 1.0, 2.0, 3.0), range(4)
    scene, frame = drawn(system, states, np.zeros((3, 2)), 0, np.array(4.0))
    inside = frame([(system.wall, system.height), (4.0, 0.0), (3.0, 0.0)])
    assert ((inside > 0) & (inside < 1)).all()
    assert sum(lines.colour == GREEN for lines in only(scene, Lines)) == 1
    assert len(only(scene, Triangles)) > 0  # the arrow of the launch, which needs no control
    ways = [
        sum(
            len(lines.begin)
            for lines in only(drawn(system, states, np.zeros((3, 2)), t)[0], Lines)
            if lines.colour == SKY
        )
        for t in range(4)
    ]
    assert ways == [0, 1, 2, 3]


def test_a_plot_names_each_line_in_its_colour_and_says_how_large_a_control_is():
    system, states, controls = example("integrator")
    texts = {text.content: text.colour for text in only(drawn(system, states, 0.25 * controls)[0], Text)}
    assert [texts[str(index)] for index in range(3)] == list(CYCLE[:3])
    assert "control, within +-0.25" in texts
    assert "control, 0" in {text.content for text in only(drawn(system, states, 0 * controls)[0], Text)}
