"""Studies: protocol, packing, resumption at any kill, and reports of what was found."""

import json
import os
import random
import re
import shutil
import signal
import sys
import time
from dataclasses import replace

import imageio.v3 as imageio
import pytest
from children import HANGS, ROOT, Child
from rich.console import Console

import evenflow
from benchmarks import timing
from benchmarks.studies import packs as packs_module
from benchmarks.studies.comparisons import table
from benchmarks.studies.diagnostics import diagnose
from benchmarks.studies.directory import StudyDirectory
from benchmarks.studies.packs import run_study
from benchmarks.studies.report import AXES, SPREADS, loss_panels
from benchmarks.studies.study import TUNING_SEED, Study
from benchmarks.studies.variants import compare
from engine import SettingError
from training import Experiment, TrainingSettings, train
from training.errors import RunError

pytestmark = pytest.mark.float64

SETTINGS = TrainingSettings(train_samples=16, test_samples=8)


def small(**options):
    defaults = {
        "options": {"horizon": 10},
        "difficulties": (1, 2),
        "gradients": ("R", "C"),
        "seed_count": 3,
        "epochs": 3,
    }
    return Study("cart-pole", settings=SETTINGS, **(defaults | options))


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    out = tmp_path_factory.mktemp("study") / "out"
    run_study(small(), out)
    return out


def identity(result):
    return (result["phase"], result["difficulty"], result["gradient"], result["learning_rate"], result["seed"])


def test_every_combination_is_trained_once_and_seeds_are_paired(done):
    results = StudyDirectory(done).lines
    expected = {("report", poles, letter, 1e-3, seed) for poles in (1, 2) for letter in "RC" for seed in range(3)}
    assert {identity(result) for result in results} == expected
    assert len(results) == len(expected)
    for result in results:
        assert len(result["test_loss"]) == len(result["train_loss"]) == 3


def test_a_result_holds_what_it_takes_to_repeat_it(done):
    result = StudyDirectory(done).lines[5]
    again = Experiment(
        result["task"],
        result["options"],
        gradients=(result["gradient"],),
        seeds=(result["seed"],),
        learning_rates=(result["learning_rate"],),
        clippings=(result["clipping"],),
        epochs=result["epochs"],
        settings=TrainingSettings(**result["settings"]),
    ).trainer()
    assert [record.test_loss[0] for record in again.fit(result["epochs"])] == pytest.approx(
        result["test_loss"], rel=1e-9
    )


def test_a_finished_study_trains_nothing_again(done):
    before = (done / "results.jsonl").read_bytes()
    run_study(small(), done, lambda pack, left: pytest.fail("a pack was trained again"))
    assert (done / "results.jsonl").read_bytes() == before


def test_learning_rates_are_chosen_on_seeds_that_are_not_reported(tmp_path):
    study = small(difficulties=(1,), learning_rates=(1e-3, 1e-2), seed_count=2, tuning_seed_count=2, epochs=2)
    run_study(study, tmp_path / "out")
    results = StudyDirectory(tmp_path / "out").lines
    tuning = [result for result in results if result["phase"] == "tuning"]
    report = [result for result in results if result["phase"] == "report"]
    assert {result["seed"] for result in tuning} == {TUNING_SEED, TUNING_SEED + 1}
    assert {result["seed"] for result in report} == {0, 1}
    for letter in "RC":
        finals = {
            rate: sum(r["test_loss"][-1] for r in tuning if (r["gradient"], r["learning_rate"]) == (letter, rate))
            for rate in (1e-3, 1e-2)
        }
        chosen = {result["learning_rate"] for result in report if result["gradient"] == letter}
        assert chosen == {min(finals, key=finals.__getitem__)}


def test_packs_keep_a_seeds_variants_together_and_fit_the_limit(tmp_path, monkeypatch):
    monkeypatch.setattr(packs_module, "_MEMBERS", 4)
    packs = packs_module._packs(small(seed_count=5), tmp_path, "report", 1, tuple(range(5)), ())
    assert [len(pack.experiment.labels()) for pack in packs] == [2, 4, 4]
    assert [seed for pack in packs for seed in pack.experiment.seeds] == list(range(5))


def test_results_do_not_depend_on_the_packing(done, tmp_path, monkeypatch):
    monkeypatch.setattr(packs_module, "_MEMBERS", 2)
    run_study(small(), tmp_path / "out")
    apart = {identity(result): result["test_loss"] for result in StudyDirectory(tmp_path / "out").lines}
    for result in StudyDirectory(done).lines:
        assert apart[identity(result)] == pytest.approx(result["test_loss"], rel=1e-9)


EPOCHS = 40


def quick():
    """Two packs, whose kernels are soon compiled and whose epochs are many."""
    chosen = {"difficulties": (20, 22), "gradients": ("R", "C"), "seed_count": 3, "epochs": EPOCHS}
    return Study("lqr", settings=SETTINGS, **chosen)


CHILD = """
import sys
sys.path.insert(0, {tests!r})
import engine
engine.init("cpu", "float64")
from pathlib import Path
from benchmarks.studies.directory import StudyDirectory
from benchmarks.studies.packs import run_study
from test_study import quick
run_study(quick(), Path({out!r}))
"""


@pytest.mark.parametrize("epochs", [1, 2, 3])
def test_a_run_of_a_study_that_was_trained_on_by_itself_counts_as_its_study_says(epochs, tmp_path):
    study = small(difficulties=(1,), epochs=2)
    run_study(study, tmp_path)
    run = tmp_path / "poles-1" / "report-0"
    (tmp_path / "results.jsonl").unlink()
    shutil.rmtree(run)
    train(replace(study.experiment(1, (0, 1, 2)), epochs=epochs), run)
    if epochs > study.epochs:
        with pytest.raises(RunError, match=r"^Expected a run of at most the 2 epochs .* with 3; move it away, or "):
            run_study(study, tmp_path)
        shutil.rmtree(run)
    run_study(study, tmp_path)
    lines = StudyDirectory(tmp_path).lines
    assert {len(line["test_loss"]) for line in lines} == {2}
    assert len(lines) == 6


def test_a_study_killed_at_random_goes_on_where_it_stopped(tmp_path):
    out, draw = tmp_path / "killed", random.Random(3)
    source = CHILD.format(tests=str(ROOT / "tests"), out=str(out))

    def epochs():
        return [file.read_text().count("\n") for file in sorted(out.glob("*/*/metrics.jsonl"))]

    for stop in (draw.randint(1, EPOCHS - 20), draw.randint(EPOCHS + 1, 2 * EPOCHS - 20)):
        process = Child([sys.executable, "-c", source])
        deadline = time.monotonic() + HANGS
        while sum(epochs()) < stop and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        process.wait()
        before = sum(epochs())
        assert stop <= before < 2 * EPOCHS
    seen = []
    run_study(quick(), out, lambda pack, left: lambda trainer, record: seen.append(record.epoch))
    # At most the epoch under way is lost, so at most one more is trained than was missing.
    assert 2 * EPOCHS - before <= len(seen) <= 2 * EPOCHS - before + 1
    run_study(quick(), tmp_path / "whole")
    whole = {
        identity(result): (result["train_loss"], result["test_loss"])
        for result in StudyDirectory(tmp_path / "whole").lines
    }
    found = {identity(result): (result["train_loss"], result["test_loss"]) for result in StudyDirectory(out).lines}
    assert found == whole


def test_a_result_line_cut_off_by_a_kill_is_written_again(tmp_path):
    out, study = tmp_path / "out", small(difficulties=(1,))
    run_study(study, out)
    whole = StudyDirectory(out).lines
    (out / "results.jsonl").write_text((out / "results.jsonl").read_text()[:-50])
    run_study(study, out)
    assert {identity(result): result["test_loss"] for result in StudyDirectory(out).lines} == {
        identity(result): result["test_loss"] for result in whole
    }


def test_the_report_stands_in_tables_and_figures(done, tmp_path, monkeypatch):
    monkeypatch.setattr(timing, "_IN_A_ROW", 1)
    written = compare(small(), done, Console(file=open(os.devnull, "w")))  # noqa: SIM115
    names = {path.name for path in written}
    assert {"report.md", "report.json", "losses-epochs.png", "losses-time.png", "losses-paper.png"} <= names
    assert {"profiles.png", "losses-memory.png", "diagnostics.json", "adjoints.png"} <= names
    for path in written:
        if path.suffix == ".png":
            picture = imageio.imread(path)
            assert len({tuple(colour) for colour in picture[::5, ::5].reshape(-1, picture.shape[2])}) > 30
    rows = json.loads((done / "report.json").read_text())["rows"]
    assert len(rows) == 4
    for row in rows:
        finals = [r["test_loss"][-1] for r in StudyDirectory(done).lines
                  if (r["difficulty"], r["gradient"]) == (row["difficulty"], row["gradient"])]  # fmt: skip
        ordered = [min(finals), row["loss_low"], row["loss"], row["loss_high"], max(finals)]
        assert ordered == pytest.approx(sorted(ordered), rel=1e-12)
    assert (done / "report.md").read_text().count("\n| ") == 2 + len(rows)


@pytest.mark.parametrize("axis", AXES)
@pytest.mark.parametrize("spread", SPREADS)
def test_every_axis_and_spread_can_be_drawn(axis, spread, done, tmp_path):
    costs = {str(poles): {letter: {"ms": 2.0} for letter in "RC"} for poles in (1, 2)}
    path = loss_panels(done, axis, spread, smooth=2, costs=costs, path=tmp_path / "figure.png")
    assert path.read_bytes().startswith(b"\x89PNG")


def test_trainings_that_diverged_count_as_failures(done, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "study.yaml").write_text((done / "study.yaml").read_text())
    results = StudyDirectory(done).lines
    for result in results:
        if result["gradient"] == "R":
            result["test_loss"] = [result["test_loss"][0], None, None]
    (out / "results.jsonl").write_text("".join(json.dumps(result) + "\n" for result in results))
    rows = {(row.difficulty, row.gradient): row for row in table(out, 10.0, {})}
    assert (rows[1, "R"].diverged, rows[1, "R"].success, rows[1, "R"].loss) == (1.0, 0.0, float("inf"))
    assert (rows[1, "C"].diverged, rows[1, "C"].success, rows[1, "C"].better) == (0.0, 1.0, 1.0)


def test_diagnostics_of_shared_weights(done):
    first, *_ = found = diagnose(small(), done, samples=8)
    assert [(entry.difficulty, entry.epoch) for entry in found] == [(poles, e) for poles in (1, 2) for e in (0, 1, 3)]
    # At the start the last layer is zero: K = 0, R = M, and every sign agrees.
    assert first.path_ratios == [0.0] * 10
    assert first.cosines["R M"] == pytest.approx(1.0)
    assert (first.agreeing, first.kept) == (1.0, 1.0)
    for entry in found:
        assert {letter: len(profile) for letter, profile in entry.adjoint_norms.items()} == dict.fromkeys("RMSN", 11)
        # Every variant starts from the derivative of the final cost; S and this cost then have nothing left.
        assert len({profile[-1][1] for profile in entry.adjoint_norms.values()}) == 1
        assert entry.adjoint_norms["S"][0] == [0.0, 0.0, 0.0]
        assert entry.exploded_at["R"] is None


MISTAKES = [
    (lambda: small(seed_count=0), "at least 1 seed, got 0"),
    (lambda: small(gradients=()), "at least one of gradients"),
    (lambda: small(gradients=("R", "Q")), "a gradient among"),
    (lambda: small(difficulties=(1, 1)), "difficulties without repetition"),
    (lambda: small(difficulties=(0,)), "at least 1 pole"),
    (lambda: small(options={"poles": 2}), "poles as a difficulty"),
    (lambda: small(options={"polls": 2}), "options of cart-pole"),
    (lambda: small(epochs=0), "epochs of at least 1"),
    (lambda: small(learning_rates=(-1.0,)), "a learning rate above 0"),
    (lambda: small(clippings=("hard",)), "clipping among"),
    (lambda: Study.of("cart-pole", {"poles": 1, "horizon": 10}, (1.5,)), "poles as int, got 1.5"),
    (lambda: Study.of("cart-pole", {"poles": 3, "horizon": 10}, ()), "values of poles as difficulties"),
]


@pytest.mark.parametrize(("make", "message"), MISTAKES)
def test_grids_that_make_no_sense_are_refused_before_anything_is_trained(make, message):
    with pytest.raises(SettingError, match=f"Expected .*{message}"):
        make()


def test_a_directory_of_another_study_or_of_something_else_is_left_alone(done, tmp_path):
    before = (done / "study.yaml").read_bytes()
    with pytest.raises(RunError, match="begun with, got other epochs"):
        run_study(small(epochs=4), done)
    assert (done / "study.yaml").read_bytes() == before
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(RunError, match="holds something else"):
        run_study(small(), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"task": "lqr"}, "results of cart-pole in format 1, got lqr"),
        ({"format": 2}, "got cart-pole in format 2"),
        (None, "in line 1"),
    ],
)
def test_results_of_another_task_or_version_are_refused(change, message, done, tmp_path):
    (tmp_path / "study.yaml").write_text((done / "study.yaml").read_text())
    line = json.dumps(StudyDirectory(done).lines[0] | change) if change else "[1, 2]"
    (tmp_path / "results.jsonl").write_text(line + "\n")
    with pytest.raises(RunError, match=message):
        list(StudyDirectory(tmp_path).lines)


def test_a_study_without_results_has_no_report(done, tmp_path):
    (tmp_path / "study.yaml").write_text((done / "study.yaml").read_text())
    with pytest.raises(RunError, match="Expected finished trainings"):
        list(StudyDirectory(tmp_path).reported)


@pytest.mark.parametrize(
    "text", ["!!python/object/apply:os.getcwd []", "kind: other", "kind: evenflow study\nformat: 9"]
)
def test_a_study_that_is_not_ours_is_refused(text, tmp_path):
    (tmp_path / "study.yaml").write_text(text)
    with pytest.raises(RunError, match=r"^Expected .*\.$"):
        list(StudyDirectory(tmp_path).config)
    with pytest.raises(RunError, match="has none"):
        list(StudyDirectory(tmp_path / "nowhere").config)


@pytest.mark.parametrize(
    "arguments",
    [
        ["bench", "variants", "cart-pool", "--out", "new"],
        ["bench", "variants"],
        ["bench", "variants", "cart-pole", "--out", "new", "--seeds", "0"],
        ["bench", "variants", "cart-pole", "--out", "new", "--difficulties", "1.5"],
        ["bench", "variants", "cart-pole", "--out", "new", "--precision", "float64", "--report-only"],
        ["bench", "variants", "cart-pole", "--out", "full", "--precision", "float64"],
    ],
    ids=" ".join,
)
def test_mistakes_on_the_command_line_end_in_one_sentence(arguments, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    assert evenflow.main(arguments) == 2
    error = capsys.readouterr().err
    assert re.fullmatch(r"evenflow: Expected .*\.\n", error)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["full", "notes.txt"]
