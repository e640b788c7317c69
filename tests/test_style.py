"""The style of figures: told apart without colour, plain ticks, averages named, legends beside the panels."""

import itertools
import json

import numpy as np
import pytest
import yaml
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

import benchmarks.studies.report
from benchmarks.studies.report import loss_panels, paper_panels
from benchmarks.studies.study import Study
from training.optimisers import settings_to_file
from training.style import WIDEST, legend_below, new_figure, panel_figure, plain_log, plain_number
from training.viewing.palette import style_of, styles_of

COLOURS = {letter: style.colour for letter, style in styles_of("RMSNC").items()}
pytestmark = pytest.mark.float64

VARIANTS = ["R", "M", "S", "N", "C", "C, clipping norm", "C, clipping value", "R, clipping norm", "M, clipping norm",
            "clip-norm(R, 1)", "decay(R, 0.5)", "decay(R, 0.9)", "truncate(R, 20)", "paths(1, 0.5)", "agree(M, R)",
            "config(M, R)", "config(S, R)", "mine"]  # fmt: skip


def grey(style):
    """A line in this style without colour, pixels [height, width]."""
    figure = Figure(figsize=(3, 0.6), dpi=100)
    canvas = FigureCanvasAgg(figure)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.axis("off")
    line = style.line(200) | {"color": "black", "linewidth": 1.5}
    axes.plot(np.linspace(0, 1, 200), np.zeros(200), **line)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].mean(2)


def test_eighteen_variants_are_told_apart_without_colour():
    styles = styles_of(VARIANTS)
    assert list(styles) == VARIANTS
    looks = [(style.dashes, style.marker) for style in styles.values()]
    assert len(set(looks)) == len(VARIANTS)
    lines = [grey(style) for style in styles.values()]
    for one, other in itertools.combinations(lines, 2):
        assert (np.abs(one - other) > 100).sum() > 40


def test_any_number_of_variants_has_a_style_and_letters_keep_theirs():
    many = styles_of([f"variant {index}" for index in range(120)])
    assert len(many) == 120
    looks = {(style.dashes, style.marker) for style in list(many.values())[:40]}
    assert len(looks) == 40
    for letter, colour in COLOURS.items():
        assert style_of(letter) == style_of(letter, VARIANTS)
        assert style_of(letter).colour == colour
        clipped = style_of(f"{letter}, norm")
        assert (clipped.colour, clipped.dashes) == (colour, style_of(letter).dashes)
        assert clipped.marker
    assert styles_of(VARIANTS) == styles_of(VARIANTS)


def test_s_and_c_differ_in_hue_and_dashes():
    s, c = style_of("S"), style_of("C")
    red, green, blue = (abs(int(s.colour[i : i + 2], 16) - int(c.colour[i : i + 2], 16)) for i in (1, 3, 5))
    assert red + green + blue > 200
    assert s.dashes != c.dashes


def test_a_single_point_is_marked():
    assert all(style.line(1)["marker"] for style in styles_of(VARIANTS).values())
    assert style_of("R").line(2)["marker"] is None


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0.011, 3.0, ["0.1", "1"]),
        (0.8, 5.2, ["0.8", "0.9", "1", "2", "3", "4", "5"]),
        (126.9, 128.2, None),
        (2e-9, 30.0, None),
        (1e3, 1e6, ["1,000", "10k", "100k", "1M"]),
    ],
)
def test_ticks_of_a_log_axis_are_written_one_way(low, high, expected):
    figure, (axes,) = new_figure(4, 3)
    axes.set_yscale("log")
    axes.set_ylim(low, high)
    plain_log(axes.yaxis)
    figure.draw_without_rendering()
    places = [place for place in axes.get_yticks() if low <= place <= high]
    shown = [axes.yaxis.get_major_formatter()(place) for place in places]
    assert len(shown) >= 2
    assert not any("$" in label or "×" in label for label in shown)
    assert len({"e" in label for label in shown}) == 1
    assert not any(label.get_text() for label in axes.get_yticklabels(minor=True))
    if expected is not None:
        assert shown == expected


def test_numbers_are_plain():
    values = (0, 0.0001, 0.002, 0.25, 12, 1234, 20000, 1.5e6)
    assert [plain_number(value) for value in values] == [
        "0", "0.0001", "0.002", "0.25", "12", "1,234", "20k", "1.5M",
    ]  # fmt: skip


@pytest.fixture
def study(tmp_path):
    """A study of seven variants at four difficulties, with made-up losses."""
    of = Study(
        "cart-pole",
        {"horizon": 10},
        (1, 2, 3, 4),
        gradients=tuple("RMSC"),
        clippings=("none", "norm"),
        seed_count=2,
        epochs=5,
    )
    config = of.to_config()
    written = {**config, "settings": settings_to_file(config["settings"])}
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(written))
    draw = np.random.default_rng(0)
    same = {
        "format": 1, "task": "cart-pole", "phase": "report", "learning_rate": 1e-3, "run": "report-0", "member": 0,
        "epochs": 5, "settings": config["settings"], "train_loss": [1.0] * 5,
    }  # fmt: skip
    results = [
        {
            **same, "options": {"poles": poles, **of.options}, "difficulty": poles, "gradient": letter,
            "clipping": clipping, "seed": seed,
            "test_loss": np.exp(-0.1 * np.arange(5) * draw.uniform(0.5, 1)).tolist(),
        }
        for poles in (1, 2, 3, 4) for letter in "RMSC" for clipping in ("none", "norm") for seed in (0, 1)
    ]  # fmt: skip
    (tmp_path / "results.jsonl").write_text("".join(json.dumps(result) + "\n" for result in results))
    return tmp_path


def figure_of(draw, monkeypatch):
    kept = []
    # Statistics are tested elsewhere, and bootstrapping takes a second for each group.
    monkeypatch.setattr(
        benchmarks.studies.report, "interval", lambda losses, axis=0: (losses.min(axis), losses.max(axis))
    )
    for name in ("save", "save_ours"):
        monkeypatch.setattr(benchmarks.studies.report, name, lambda figure, path: kept.append(figure) or path)
    draw()
    return kept[0]


@pytest.mark.parametrize("kind", ["smooth", "plain", "paper", "steps"])
def test_a_figure_of_a_study_names_its_averages_and_hides_no_line(kind, study, monkeypatch):
    draw = {
        "smooth": lambda: loss_panels(study, smooth=30),
        "plain": lambda: loss_panels(study, spread="std"),
        "paper": lambda: paper_panels(study),
        "steps": lambda: loss_panels(study, "steps"),
    }[kind]
    figure = figure_of(draw, monkeypatch)
    figure.draw_without_rendering()
    panels = figure.axes
    assert len(panels) == 4
    assert figure.get_figwidth() <= WIDEST
    assert len({axes.get_ylim() for axes in panels}) == 1
    label = panels[0].get_ylabel()
    assert label.startswith("test loss")
    assert ("mean over 30 epochs" in label) == (kind in ("smooth", "paper"))
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == [
        name for letter in "RMSC" for name in (letter, f"{letter}, norm")
    ]
    box = legend.get_window_extent()
    for axes in panels:
        assert axes.get_legend() is None
        assert not axes.get_window_extent().overlaps(box)
        looks = {(str(line.get_linestyle()), str(line._dash_pattern), line.get_marker()) for line in axes.lines}
        assert len(looks) == 8
        texts = [text.get_text() for text in (*axes.get_xticklabels(), *axes.get_yticklabels())]
        assert not any("$" in text or "e" in text for text in texts)
        assert axes.xaxis.get_offset_text().get_text() == axes.yaxis.get_offset_text().get_text() == ""
    # At 850 pixels, as wide as a page shows it.
    smallest = min(text.get_fontsize() for text in legend.get_texts())
    assert smallest / 72 * 850 / figure.get_figwidth() > 10


def test_long_names_stand_in_a_legend_of_few_columns():
    figure, (axes,) = new_figure(6, 4)
    for name, style in styles_of(VARIANTS).items():
        axes.plot([0, 1], [1, 2], **style.line(2), label=name)
    legend_below(figure, [axes])
    figure.draw_without_rendering()
    (legend,) = figure.legends
    box = legend.get_window_extent()
    assert box.width <= figure.bbox.width
    assert not axes.get_window_extent().overlaps(box)


def test_panels_keep_their_height_above_a_legend_of_many_rows():
    heights = []
    for count in (2, 24):
        figure, (axes,) = panel_figure(1, "loss")
        for number in range(count):
            axes.plot([0, 1], [number, 1], label=f"where-agree(M, R, decay(R, 0.{number}))")
        legend_below(figure, [axes])
        figure.draw_without_rendering()
        heights.append(axes.get_window_extent().height)
    assert heights[1] == pytest.approx(heights[0], rel=0.05)
