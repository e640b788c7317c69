"""Every gradient on every task: hours told before, resumable, and one matrix, corrected for all comparisons."""

import re
import shutil

import pytest
import torch
from rich.console import Console

import evenflow
from benchmarks.studies import zoo as zoo_module
from benchmarks.studies.directory import StudyDirectory
from benchmarks.studies.matrix import _told, columns, write_matrix
from benchmarks.studies.packs import run_study
from benchmarks.studies.spaces import family_of
from benchmarks.studies.statistics import interquartile_mean
from benchmarks.studies.study import Study
from benchmarks.studies.zoo import (
    GRADIENTS,
    TASKS,
    print_hours,
    print_left_out,
    report_zoo,
    run_zoo,
    trainings,
    trainings_left,
    zoo,
)
from engine import SettingError
from training import TrainingSettings
from training.errors import RunError

pytestmark = pytest.mark.float64

CHOSEN = ("R", "C", "clip-norm(R, 0.1)", "clip-norm(R, 10)")
SMALL = TrainingSettings(batch_size=2, train_samples=4, test_samples=2)


def small(task, difficulty, **options):
    given = {"gradients": CHOSEN, "seed_count": 2, "tuning_seed_count": 1, "tune_knobs": True, "epochs": 1}
    return Study(task, {}, (difficulty,), settings=SMALL, **(given | options))


@pytest.fixture(scope="module")
def studies():
    return {"cart-pole": small("cart-pole", 1), "lqr": small("lqr", 20)}


@pytest.fixture(scope="module")
def trained(studies, tmp_path_factory):
    out = tmp_path_factory.mktemp("zoo")
    run_zoo(studies, out, Console(quiet=True))
    return out


def test_the_zoo_is_every_task_and_gradient():
    found = zoo(tuple(TASKS), 10)
    assert {name: (study.task, study.difficulties) for name, study in found.items()} == {
        "cart-pole": ("cart-pole", (4,)),
        "cart-pendulum": ("cart-pendulum", (2,)),
        "guidance": ("guidance", (0.001,)),
        "quantum": ("quantum", (5,)),
        "hopper": ("hopper", (100,)),
        "kuramoto-sivashinsky": ("kuramoto-sivashinsky", (88,)),
        "swarm": ("swarm", (2000,)),
        "fluid": ("fluid", (4,)),
    }
    for study in found.values():
        held = study.task in ("fluid", "hopper", "kuramoto-sivashinsky")
        assert len(study.gradients) == len(GRADIENTS) + 2 * held
        assert (study.seed_count, study.tune_knobs) == (10, True)
        assert len(study.learning_rates) == len(study.clippings) == 1
    with pytest.raises(SettingError, match=r"Expected tasks of the zoo, cart-pole, .*, fluid, got 'herd'\."):
        zoo(["herd"], 10)


def test_some_gradients_of_the_zoo():
    found = zoo(("cart-pole", "fluid"), 4, ("R", "decay(R,0.90)", "every-step(clip-norm(R, 0.1))"))
    assert found["cart-pole"].gradients == ("R", "decay(R, 0.9)")
    console = Console(record=True, width=100)
    print_left_out(tuple(found), ("R", "every-step(decay(R, 0.9))", "short(every-step(decay(R, 0.9)), 8)"), console)
    assert console.export_text().splitlines() == [
        "cart-pole: no control is held there, so every-step(decay(R, 0.9)) is left out",
        "cart-pole: no control is held there, so short(every-step(decay(R, 0.9)), 8, 0.99) is left out",
    ]
    assert found["fluid"].gradients == ("R", "decay(R, 0.9)", "every-step(clip-norm(R, 0.1))")
    with pytest.raises(
        SettingError, match=r"^Expected R among the gradients, .*, got every-step\(.*\); name it too\.$"
    ):
        zoo(("cart-pole",), 4, ("every-step(clip-norm(R, 0.1))",))


def test_trainings_are_counted_and_what_is_done_is_not_trained_again(studies, trained):
    for name, study in studies.items():
        assert trainings(study) == 2 * 1 + 3 * 2 == len(StudyDirectory(trained / name).results)
        assert trainings_left(study, trained / name) == 0
    before = (trained / "lqr" / "results.jsonl").read_bytes()
    run_zoo(studies, trained, Console(quiet=True))
    assert (trained / "lqr" / "results.jsonl").read_bytes() == before


def test_fewer_seeds_are_another_study_and_more_are_counted(studies, trained):
    with pytest.raises(RunError, match="seeds"):
        print_hours({"lqr": small("lqr", 20, seed_count=1)}, trained, Console(quiet=True))
    assert trainings_left(small("lqr", 20, seed_count=5), trained / "lqr") == 3 * 3


@pytest.mark.parametrize("name", ["zoo", "paper"])
def test_a_report_of_nothing_is_one_sentence(name, tmp_path, capsys):
    command = ["bench", name, "--out", str(tmp_path / "none"), "--report-only", "--backend", "cpu"]
    assert evenflow.main([*command, "--precision", "float64"]) != 0
    assert "Expected finished trainings in" in capsys.readouterr().err


def test_hours_are_told_before_anything_is_trained(studies, trained, tmp_path, monkeypatch):
    monkeypatch.setattr(zoo_module, "seconds_of_a_seed", lambda study, difficulty: 3600.0 * len(study.gradients))
    for out, left in ((tmp_path, 8), (trained, 0)):
        console = Console(record=True, width=100)
        print_hours(studies, out, console)
        told = console.export_text()
        assert told.count(f"{left} of 8") == 2
        assert re.findall(r"([\d.]+) hours are left", told) == [f"{2.0 * left:.1f}"]  # one for each
    assert not any(tmp_path.iterdir())


def test_the_report_has_a_matrix_of_all_tasks(studies, trained):
    written = report_zoo(studies, trained, Console(quiet=True))
    assert {trained / "matrix.md", trained / "matrix.png", trained / "lqr" / "report.md"} <= set(written)
    title, _, head, _, *rows = (trained / "matrix.md").read_text().splitlines()
    assert title == "# Losses of many gradients beside R's"
    assert head == "| gradient | cart-pole, poles 1 | lqr, horizon 20 |"
    assert [row.split(" | ")[0].strip("| ") for row in rows[:3]] == ["R", "C", "clip-norm(R, ·)"]
    assert "4 comparisons with R" in (trained / "matrix.md").read_text()
    assert (trained / "matrix.png").stat().st_size > 5000
    for column in columns({name: StudyDirectory(trained / name) for name in studies}):
        assert column.rows["clip-norm(R, ·)"].gradient in CHOSEN[2:]
        assert column.ratio("R") == 1.0
        assert column.ratio("C") == column.rows["C"].loss / column.rows["R"].loss


def test_shares_of_a_half_trained_study_are_over_the_seeds_of_both(studies, trained, tmp_path):
    """The others' mean over more seeds is not laid beside R's over fewer."""
    shutil.copytree(trained / "lqr", tmp_path / "lqr")
    results = (tmp_path / "lqr" / "results.jsonl").read_text().splitlines()
    losses = {(one.label.gradient, one.label.seed): one.final_loss for one in StudyDirectory(trained / "lqr").reported}
    seed = max(seed for gradient, seed in losses if gradient == "R")
    kept = [line for line in results if not ('"gradient": "R"' in line and f'"seed": {seed},' in line)]
    assert len(kept) < len(results)
    (tmp_path / "lqr" / "results.jsonl").write_text("\n".join(kept) + "\n")
    (column,) = columns({"lqr": StudyDirectory(tmp_path / "lqr")})
    both = [at for gradient, at in losses if gradient == "R" and at != seed]
    mean = {name: float(interquartile_mean([losses[name, at] for at in both])) for name in ("R", "C")}
    assert column.rows["C"].pairs == len(both) < column.rows["C"].seeds
    assert column.ratio("C") == pytest.approx(mean["C"] / mean["R"])
    assert column.ratio("C") != pytest.approx(column.rows["C"].loss / column.rows["R"].loss)


def test_a_matrix_of_some_tasks_keeps_the_others(studies, trained, tmp_path):
    """As two commands have it that train different tasks of one zoo."""
    shutil.copytree(trained, tmp_path / "zoo")
    written = report_zoo({"lqr": studies["lqr"]}, tmp_path / "zoo", Console(quiet=True))
    assert tmp_path / "zoo" / "lqr" / "report.md" in written
    assert tmp_path / "zoo" / "cart-pole" / "report.md" not in written
    assert "| gradient | cart-pole, poles 1 | lqr, horizon 20 |" in (tmp_path / "zoo" / "matrix.md").read_text()


def test_what_has_only_been_tuned_so_far_is_left_out(tmp_path):
    assert report_zoo({"lqr": small("lqr", 20)}, tmp_path, Console(quiet=True)) == []
    assert not any(tmp_path.iterdir())


def test_comparisons_are_corrected_over_all_tasks_together(tmp_path):
    """R and M on two linear tasks over eight seeds: p of each alone, times how many there are."""
    found = {}
    for horizon in (20, 30):
        study = small("lqr", horizon, gradients=("R", "M"), seed_count=8, epochs=3, tune_knobs=False)
        run_study(study, tmp_path / str(horizon))
        found[f"lqr {horizon}"] = StudyDirectory(tmp_path / str(horizon))
    alone = [next(iter(columns({name: study}))).rows["M"] for name, study in found.items()]
    together = [column.rows["M"] for column in columns(found)]
    least = min(row.p or 0.0 for row in alone)
    for one, both in zip(alone, together, strict=True):
        assert one.p_corrected == one.p == both.p
        p = one.p or 0.0
        assert both.p_corrected == pytest.approx(max(2 * least, p) if p > least else min(1.0, 2 * least))
        losses = [
            result.final_loss for result in found[f"lqr {one.difficulty}"].reported if result.label.gradient == "M"
        ]
        assert both.loss == pytest.approx(float(interquartile_mean(losses)))
    assert write_matrix(found, tmp_path)


def test_numbers_of_one_family_that_are_all_reported_have_a_row_each(tmp_path):
    study = small("lqr", 20, gradients=("R", "decay(R, 0.5)", "decay(R, 0.9)"), tune_knobs=False)
    run_study(study, tmp_path / "lqr")
    (column,) = columns({"lqr": StudyDirectory(tmp_path / "lqr")})
    assert sorted(row.gradient for row in column.rows.values()) == ["R", "decay(R, 0.5)", "decay(R, 0.9)"]
    assert write_matrix({"lqr": StudyDirectory(tmp_path / "lqr")}, tmp_path)


def test_a_training_that_diverged_is_said_to_have(tmp_path, monkeypatch):
    study = small("lqr", 20, gradients=("R", "M"), tune_knobs=False, learning_rates=(1e200,))
    run_study(study, tmp_path / "lqr")
    (column,) = columns({"lqr": StudyDirectory(tmp_path / "lqr")})
    row = column.rows["M"]
    assert torch.isinf(torch.tensor(row.loss))
    assert _told(row, column.ratio("M")) == "diverged"
    write_matrix({"lqr": StudyDirectory(tmp_path / "lqr")}, tmp_path)
    assert "100% diverged" in (tmp_path / "matrix.md").read_text()


def test_families_of_the_zoo_are_rows():
    assert len(set(map(family_of, GRADIENTS))) == 20


def test_a_task_that_is_not_in_it_is_one_sentence(tmp_path, capsys):
    command = ["bench", "zoo", "--out", str(tmp_path / "zoo"), "--tasks", "herd", "--backend", "cpu"]
    assert evenflow.main([*command, "--precision", "float64"]) == 2
    assert "Expected tasks of the zoo, cart-pole" in capsys.readouterr().err
    assert not (tmp_path / "zoo").exists()


def test_the_command_tells_hours_and_trains_nothing(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(zoo_module.TASKS, "lqr", zoo_module.Entry(20, 1, shared={"settings": SMALL}))
    monkeypatch.setattr(zoo_module, "GRADIENTS", CHOSEN)
    command = ["bench", "zoo", "--out", str(tmp_path / "zoo"), "--tasks", "lqr", "--plan-only", "--seeds", "2"]
    assert evenflow.main([*command, "--backend", "cpu", "--precision", "float64"]) == 0
    assert "hours are left on this machine" in capsys.readouterr().out
    assert not (tmp_path / "zoo").exists()
    assert evenflow.main([*[word for word in command if word != "--plan-only"], "--precision", "float64"]) == 0
    assert (tmp_path / "zoo" / "matrix.png").exists()
