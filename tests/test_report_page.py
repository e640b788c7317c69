"""The report page: everything in one file, nothing to load from elsewhere."""

import base64
import json
import re
import shutil
from html.parser import HTMLParser

import imageio.v2 as imageio
import numpy as np
import pytest
import yaml

import evenflow
from benchmarks.studies.packs import run_study
from benchmarks.studies.page import precision_of, write_page
from benchmarks.studies.report import write_report
from benchmarks.studies.study import Study
from engine import current
from training import Experiment, train
from training.errors import RunError
from training.settings import TrainingSettings

pytestmark = pytest.mark.float64
SMALL = TrainingSettings(batch_size=4, train_samples=8, test_samples=4)


class Page(HTMLParser):
    """Headings, cells and pictures of a page, and whatever it would load."""

    def __init__(self, text):
        super().__init__()
        self.headings, self.cells, self.pictures, self.loads, self.tags = [], [], [], [], []
        self._inside = None
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self._inside = tag
        for name, value in attrs:
            if name in ("src", "href", "srcset", "data", "action", "poster") and not value.startswith("data:"):
                self.loads.append(value)
            if tag == "img" and name == "src":
                self.pictures.append(imageio.imread(base64.b64decode(value.split(",", 1)[1])))

    def handle_data(self, data):
        if self._inside in ("h1", "h2"):
            self.headings.append(data)
        if self._inside in ("td", "th"):
            self.cells.append(data)

    def handle_endtag(self, tag):
        self._inside = None


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    path = tmp_path_factory.mktemp("page") / "run"
    train(Experiment("guidance", {"horizon": 10}, gradients=("R", "C"), seeds=(0, 1), epochs=2, settings=SMALL), path)
    return path


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    path = tmp_path_factory.mktemp("page") / "study"
    of = Study("cart-pole", {"horizon": 8}, (1, 2), gradients=("R", "M"), seed_count=2, epochs=1, settings=SMALL)
    run_study(of, path)
    return path


def self_contained(text):
    """Nothing in the page asks for anything outside of it."""
    page = Page(text)
    assert page.loads == []
    assert not {"script", "link", "iframe", "object", "embed", "base"} & set(page.tags)
    assert not re.search(r"@import|url\(|https?://", text)
    return page


def test_the_page_of_a_run_holds_table_curves_frames_adjoints_and_configuration(run):
    out = write_page(run)
    assert out == run / "report.html"
    page = self_contained(out.read_text())
    assert page.headings == [
        "guidance: run", "Test loss after 2 of 2 epochs", "Curves", "Last frames", "Adjoint profile", "Configuration",
    ]  # fmt: skip
    assert page.cells[:6] == ["gradient", "seeds", "median", "lowest", "highest", "diverged"]
    assert page.cells[6:8] == ["R", "2"]
    curves, *frames, adjoints = page.pictures
    assert len(frames) == 2
    for frame in frames:
        assert frame.shape[:2] == (280, 840)
        drivers = (frame[..., :3] == (213, 94, 0)).all(2)
        for third in np.split(drivers, 3, axis=1):
            assert third.sum() > 20
        assert (drivers[:, :280] != drivers[:, 560:]).any()
    for figure, colour in ((curves, (213, 94, 0)), (adjoints, (0, 114, 178))):
        assert (np.abs(figure[..., :3].astype(int) - colour).max(2) < 40).sum() > 50
    assert "task: guidance" in out.read_text()


def test_a_page_that_was_edited_or_is_not_ours_stays(run, tmp_path):
    path = shutil.copytree(run, tmp_path / "run")
    for text in ("mine", write_page(run).read_text() + "<!-- my notes -->"):
        (path / "report.html").write_text(text)
        with pytest.raises(RunError, match=r"^Expected .*report\.html to be as Evenflow wrote it, got .*--out\.$"):
            write_page(path)
        assert (path / "report.html").read_text() == text


def test_a_page_never_says_more_epochs_than_there_are_to_be(run, tmp_path):
    path = shutil.copytree(run, tmp_path / "run")
    edit(path, "epochs: 2", "epochs: 1")  # as runs were left that went on for longer before totals were recorded
    assert "Test loss after 2 of 2 epochs" in write_page(path, tmp_path / "page.html").read_text()
    edit(path, "epochs: 1", "epochs: 5")
    assert "Test loss after 2 of 5 epochs" in write_page(path, tmp_path / "other.html").read_text()


def test_a_page_replaces_its_own_and_nothing_else(run, tmp_path):
    first = write_page(run).read_bytes()
    assert write_page(run).read_bytes() == first
    (tmp_path / "mine.html").write_text("mine")
    with pytest.raises(RunError, match="which exists"):
        write_page(run, tmp_path / "mine.html")
    assert (tmp_path / "mine.html").read_text() == "mine"
    assert write_page(run, tmp_path / "other.html").read_bytes() == first


def test_the_page_of_a_study_has_a_row_for_each_variant_and_difficulty(study, tmp_path):
    before = sorted(path.name for path in study.rglob("*"))
    page = self_contained(write_page(study, tmp_path / "page.html").read_text())
    assert sorted(path.name for path in study.rglob("*")) == before
    assert page.headings[:2] == ["cart-pole: study", "Test loss over 2 paired seeds"]
    cells = page.cells
    assert cells[:3] == ["poles", "variant", "rate"]
    starts = [(cells[index], cells[index + 1]) for index in range(12, len(cells) - 1) if cells[index + 1] in ("R", "M")]
    assert starts == [("1", "R"), ("1", "M"), ("2", "R"), ("2", "M")]
    assert len(page.pictures) == 3 + 1 + 2 + 1  # epochs, updates and steps; profiles; R and M; adjoints
    assert "What that says, and what it cannot say" in page.headings


def test_the_page_of_a_study_compares_with_the_gradient_that_is_wanted(study, tmp_path):
    for against, compared in (("R", "M"), ("M", "R")):
        text = write_page(study, tmp_path / f"{against}.html", against).read_text()
        assert f"better than {against} (95%)" in Page(text).cells
        rows = [re.findall("<td>(.*?)</td>", row) for row in re.findall("<tr>(.*?)</tr>", text)]
        assert [(row[1], bool(row[9])) for row in rows if len(row) == 12] == [
            (name, name == compared) for name in ("R", "M", "R", "M")
        ]


def test_the_page_of_a_study_needs_no_runs(study, tmp_path):
    """As of one whose results are published alone; and where some are here, it shows those."""
    path = shutil.copytree(study, tmp_path / "study")
    shutil.rmtree(path / "poles-2")
    page = self_contained(write_page(path).read_text())
    assert [name for name in page.headings if "frames" in name] == ["Last frames"]
    shutil.rmtree(path / "poles-1")
    page = self_contained(write_page(path).read_text())
    assert [name for name in page.headings if "frames" in name] == ["Last frames and adjoint profile"]
    assert len(page.pictures) == 3 + 1


def test_costs_of_some_gradients_alone_give_no_axis_of_time(study, tmp_path):
    path = shutil.copytree(study, tmp_path / "study")
    both = {letter: {"ms": 2.0, "bytes": 2**20} for letter in "RM"}
    for costs, pictures in ((both, 3 + 1), ({"R": both["R"]}, 3)):
        (path / "costs.json").write_text(json.dumps({"1": both, "2": costs}))
        assert len(Page(write_page(path).read_text()).pictures) == pictures + 1 + 1 + 2 + 1


def test_the_page_says_what_the_report_says(study, tmp_path):
    path = shutil.copytree(study, tmp_path / "study")
    config = yaml.safe_load((path / "study.yaml").read_text())
    (path / "study.yaml").write_text(yaml.safe_dump({**config, "seeds_before": [1]}))
    assert "It had 1 paired seeds when results were known" in write_page(path).read_text()
    write_report(path, None, {})
    assert "It had 1 paired seeds when results were known" in (path / "report.md").read_text()


def test_the_precision_is_that_of_the_training(run, study):
    assert precision_of(run) == precision_of(study) == current().precision


MISTAKES = {
    "no run": (lambda path: None, "Expected a run directory"),
    "no epochs": (lambda path: (path / "metrics.jsonl").unlink(), "at least one epoch"),
    "no checkpoints": (lambda path: [file.unlink() for file in path.glob("checkpoints/*")], "with checkpoints"),
    "unknown task": (lambda path: edit(path, "task: guidance", "task: flying"), "Expected a task among"),
    "newer version": (lambda path: edit(path, "format: 1", "format: 2"), "Expected a run of format 1"),
    "no precision": (lambda path: edit(path, "precision: float64", "precision: half"), "Expected a precision"),
}


def edit(path, old, new):
    text = (path / "config.yaml").read_text()
    assert old in text
    (path / "config.yaml").write_text(text.replace(old, new))


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_ends_in_one_sentence(name, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(evenflow.Machine, "start", lambda machine: None)  # the session has its runtime
    spoil, words = MISTAKES[name]
    path = tmp_path / "run"
    if name != "no run":
        train(Experiment("guidance", {"horizon": 2}, gradients=("R",), seeds=(0,), epochs=1, settings=SMALL), path)
        spoil(path)
    assert evenflow.main(["report", str(path)]) == 2
    error = capsys.readouterr().err
    assert words in error
    assert error.count("\n") == 1
    assert not (path / "report.html").exists()
