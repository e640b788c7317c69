"""The paper's explanatory figures: their numbers, and that the pictures show them."""

import imageio.v3 as imageio
import pytest
import reference
import torch

from benchmarks.paper import FIELDS, descend, draw_figures, final_loss, toy_fields

pytestmark = pytest.mark.float64

FINAL_LOSSES = {"gradient": 2.1e-8, "rotated": 6.216, "masked": 0.0669}


@pytest.mark.parametrize("variant", ["R", "M"])
def test_fields_of_figure_1_equal_the_oracle(variant):
    theta, losses, full, physics = toy_fields(points=9)
    found = {"R": full, "M": physics}[variant]
    initial = torch.tensor([[-0.3]], dtype=torch.float64)

    def reach(state):
        return 0.5 * (state[:, 0] - 2.0) ** 2

    for row in range(len(theta)):
        parameters = [theta[row]]
        (expected,) = reference.gradients(
            variant, parameters, reference.integrator_step, lambda p, x: p[0][0] * x**2 + p[0][1] * x, initial, 4,
            None, reach,
        )  # fmt: skip
        torch.testing.assert_close(found[row], expected, rtol=1e-10, atol=0.0)
        state = initial
        for _ in range(4):
            state = state + theta[row, 0] * state**2 + theta[row, 1] * state
        assert float(losses[row]) == pytest.approx(float(reach(state)), rel=1e-12)


@pytest.mark.parametrize("field", FIELDS)
def test_descents_of_figure_2_end_at_the_papers_losses(field):
    found, published = final_loss(descend(FIELDS[field])), FINAL_LOSSES[field]
    digits = len(f"{published:g}".split("e")[0].replace(".", "").lstrip("0"))
    assert float(f"{found:.{digits - 1}e}") == pytest.approx(published, rel=10 ** (1 - digits))


def test_pictures_are_drawn_with_more_than_a_frame(tmp_path):
    for path in draw_figures(tmp_path / "new"):
        picture = imageio.imread(path)
        assert picture.shape[1] > 1000
        assert len({tuple(colour) for colour in picture[::7, ::7].reshape(-1, picture.shape[2])}) > 50
