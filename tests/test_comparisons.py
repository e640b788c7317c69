"""What a study's report says of its comparisons: intervals, corrected tests, and what cannot be concluded."""

import json
import math
import re

import pytest
import yaml

from benchmarks.studies.comparisons import (
    check_against,
    compared_with,
    conclusions,
    limits,
    markdown,
    same_told,
    table,
)
from benchmarks.studies.directory import Result, StudyDirectory
from benchmarks.studies.report import memory_panels, profile_panels
from benchmarks.studies.statistics import holm, sign_flip_test
from benchmarks.studies.study import Study
from engine import SettingError
from training import TrainingSettings, gradient_named
from training.optimisers import settings_to_file
from training.sources import passes
from training.variant import Label, Variant

pytestmark = pytest.mark.float64

SETTINGS = TrainingSettings(train_samples=16, test_samples=8)


def study_of(tmp_path, losses, seeds, **given):
    """A study with final losses [gradient][difficulty][seed], as if they had been trained."""
    given = {"gradients": tuple(losses), "seed_count": seeds, "epochs": 1, "settings": SETTINGS} | given
    study = Study("cart-pole", {"horizon": 10}, (1, 2), **given)
    config = study.to_config()
    told = {**config, "settings": settings_to_file(config["settings"])}
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(told, sort_keys=False))
    lines = []
    for gradient, by_difficulty in losses.items():
        for difficulty, finals in zip((1, 2), by_difficulty, strict=True):
            options = {"poles": difficulty, "horizon": 10}
            for seed, final in enumerate(finals):
                value = None if math.isinf(final) else final
                lines.append({
                    "format": 1, "task": "cart-pole", "phase": "report", "options": options, "difficulty": difficulty,
                    "gradient": gradient, "clipping": "none", "learning_rate": 1e-3, "seed": seed, "epochs": 1,
                    "settings": settings_to_file(config["settings"]), "run": "report-0", "member": seed,
                    "train_loss": [value], "test_loss": [value],
                })  # fmt: skip
    (tmp_path / "results.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return tmp_path


SEEDS = 8
LOSSES = {
    "R": [[1.0 + 0.01 * seed for seed in range(SEEDS)], [2.0] * SEEDS],
    "M": [[0.5 + 0.01 * seed for seed in range(SEEDS)], [1.9 if seed % 2 else 2.1 for seed in range(SEEDS)]],
    "C": [[math.inf] * SEEDS, [2.0 - 0.1 * seed for seed in range(SEEDS)]],
}


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    return study_of(tmp_path_factory.mktemp("study"), LOSSES, SEEDS)


def test_every_comparison_is_tested_by_pairs_and_corrected_for_all_of_them(done):
    rows = {(row.difficulty, row.gradient): row for row in table(done, None, {})}
    expected = [sign_flip_test(LOSSES[letter][place], LOSSES["R"][place]) for place in (0, 1) for letter in ("M", "C")]
    compared = [rows[difficulty, letter] for difficulty in (1, 2) for letter in ("M", "C")]
    assert [row.p for row in compared] == expected
    assert [row.p_corrected for row in compared] == pytest.approx(holm(expected))
    assert [row.verdict for row in compared] == ["better", "worse", "", "better"]
    assert rows[1, "R"].p is rows[1, "R"].better is rows[1, "R"].p_corrected is None
    assert (rows[2, "C"].better, rows[1, "C"].diverged) == ((7 + 0.5) / 8, 1.0)
    assert rows[2, "C"].better_low < rows[2, "C"].better < rows[2, "C"].better_high
    assert rows[1, "M"].percentiles == pytest.approx([0.5, 0.51, 0.53, 0.55, 0.56], abs=0.011)


def test_another_gradient_may_be_what_is_compared_with(done):
    rows = {(row.difficulty, row.gradient): row for row in table(done, None, {}, "M")}
    assert rows[1, "M"].p is None
    assert (rows[1, "R"].better, rows[1, "R"].verdict, rows[1, "R"].against) == (0.0, "worse", "M")


NUMBERS = {"R": [[1.0] * 8] * 2, "clip-norm(R, 1)": [[], [0.5] * 8], "clip-norm(R, 10)": [[0.5] * 8, []]}


def test_a_number_that_was_chosen_stands_for_the_one_that_is_named(tmp_path):
    study = study_of(tmp_path, NUMBERS, 8, tune_knobs=True, tuning_seed_count=1)
    rows = table(study, None, {}, "clip-norm(R, 1)")
    found = {(row.difficulty, row.gradient): (row.against, row.verdict) for row in rows}
    assert found[1, "R"] == ("clip-norm(R, 10)", "worse")
    assert found[2, "R"] == ("clip-norm(R, 1)", "worse")
    assert compared_with(rows) == "clip-norm(R, ·)"
    assert conclusions(rows)[2] == "Worse than clip-norm(R, ·): R at 1, R at 2."
    assert "| better than clip-norm(R, ·) (95%) |" in markdown(rows, StudyDirectory(study).config, None, [])


def test_where_no_number_is_chosen_the_one_that_is_named_must_be_there(tmp_path):
    rows = table(study_of(tmp_path, NUMBERS, 8), None, {}, "clip-norm(R, 1)")
    assert [(row.difficulty, row.against) for row in rows if row.p is not None] == [(2, "clip-norm(R, 1)")]
    check_against("clip-norm(R, 3)", list(NUMBERS), True)
    with pytest.raises(SettingError, match="Expected --against one of the gradients"):
        check_against("clip-norm(R, 3)", list(NUMBERS), False)
    with pytest.raises(SettingError, match="Expected --against one of the gradients"):
        check_against("M", list(NUMBERS), True)


@pytest.mark.parametrize(
    ("tested", "validated", "final"),
    [([1.0, 2.0], [], 2.0), ([1.0, 2.0], [0.1, 0.2], 1.0), ([math.nan, 2.0], [0.1, 0.2], math.inf),
     ([1.0, math.nan], [0.1, math.nan], math.inf), ([1.0, 2.0], [math.nan, 0.2], 2.0)],
)  # fmt: skip
def test_a_loss_that_is_none_counts_as_infinite_wherever_it_stands(tested, validated, final):
    label = Label(Variant("R", "none"), 0)
    assert Result("report", 1, label, {}, "report-0", 0, tuple(tested), tuple(validated)).final_loss == final


def test_the_report_says_what_it_found_and_what_it_cannot(done):
    rows = table(done, None, {})
    told = conclusions(rows)
    assert told[0].startswith("4 comparisons with R by exact sign-flip tests")
    assert told[1:3] == ["Better than R: M at 1, C at 2.", "Worse than R: C at 1."]
    text = markdown(
        rows, {"task": "cart-pole", "epochs": 1, "seeds": SEEDS, "settings": {"optimiser": "adam"}}, None, told
    )
    assert all(f"- {sentence}" in text for sentence in told)
    assert re.search(r"\| 1 \| M \|.*\| 1\.00 \(0\.68 to 1\.00\) \| 0\.031 better \|", text)


def test_pairs_are_counted_where_seeds_are_without_a_counterpart(tmp_path):
    rows = table(study_of(tmp_path, LOSSES | {"R": [finals[:3] for finals in LOSSES["R"]]}, SEEDS), None, {})
    assert {(row.gradient, row.seeds, row.pairs) for row in rows} == {("R", 3, 0), ("M", 8, 3), ("C", 8, 3)}
    assert conclusions(rows)[3].startswith("With 3 paired seeds")


def test_few_seeds_are_said_to_conclude_nothing():
    assert "none of 18 comparisons can tell two variants apart" in limits(18, 5)[0]
    assert "that takes 10 seeds; not even one alone could" in limits(18, 5)[0]
    assert "one that was chosen beforehand could" in limits(18, 7)[0]
    assert limits(18, 10)[0].startswith("With 10 paired seeds a variant that wins on all of them can be told")
    assert "20 are meant" in limits(18, 10)[1]
    assert len(limits(18, 20)) == 1


def test_profiles_and_memory_are_drawn(done, tmp_path):
    costs = {str(poles): {letter: {"ms": 2.0, "bytes": 2**20} for letter in LOSSES} for poles in (1, 2)}
    for path in (
        profile_panels(done, 0.8, tmp_path / "profiles.png"),
        memory_panels(done, table(done, None, costs), tmp_path / "memory.png"),
    ):
        assert path.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("text", "expected"), [("R", 2), ("C", 3), ("where-agree(M, R, bisect(M, S))", 4), ("score(0.1, 4)", 11)]
)
def test_updates_are_counted_in_steps_of_the_simulator_forward_and_backward(text, expected):
    assert passes(gradient_named(text).estimator) == expected


def test_gradients_that_never_differed_are_told(tmp_path):
    """As a limit that nothing reaches; a training that diverged says nothing of the rest of it."""
    finals, other = [[1.0, 2.0, 3.0], [2.0, 2.0, 2.0]], [[1.0, 2.0, 3.0], [2.0, 2.0, 2.5]]
    losses = {"R": finals, "decay(R, 1)": finals, "M": other, "C": [[math.inf] * 3] * 2, "S": [[math.inf] * 3] * 2}
    study = study_of(tmp_path, losses, 3)
    told = same_told(StudyDirectory(study).reported)
    assert {sentence.partition(":")[0] for sentence in told} == {
        "R and decay(R, 1) have the same losses in every epoch of every seed at 1",
        "R and M have the same losses in every epoch of every seed at 1",
        "decay(R, 1) and M have the same losses in every epoch of every seed at 1",
        "R and decay(R, 1) have the same losses in every epoch of every seed at 2",
    }


def test_limits_are_told_of_as_many_pairs_as_each_has(tmp_path):
    study = study_of(tmp_path, {"R": [[1.0] * 9] * 2, "M": [[0.5] * 9] * 2, "C": [[0.5] * 3] * 2}, 9)
    told = conclusions(table(study, None, {}))
    assert told[1] == "Better than R: M at 1, M at 2."
    assert told[3].startswith("C at 1, C at 2: With 3 paired seeds none of 2 comparisons")
    assert told[4].startswith("M at 1, M at 2: With 9 paired seeds a variant that wins on all of them can be told")
