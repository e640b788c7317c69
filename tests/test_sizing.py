"""Studies sized by hours, and a gradient's own number: families, tuning, curves."""

from dataclasses import replace

import pytest

from benchmarks import timing
from benchmarks.studies import packs, sizing
from benchmarks.studies.directory import StudyDirectory, check_same
from benchmarks.studies.knobs import families, family_of, knob_panels, tuning_budgets
from benchmarks.studies.packs import run_study
from benchmarks.studies.sizing import seconds_of_a_seed, seconds_of_an_epoch, sized
from benchmarks.studies.study import TUNING_SEED, Study
from engine import SettingError
from training import TrainingSettings
from training.errors import RunError

pytestmark = pytest.mark.float64

SETTINGS = TrainingSettings(train_samples=16, test_samples=8)
CLIPPED = ("R", "clip-norm(R, 0.1)", "clip-norm(R, 1)", "clip-norm(R, 10)")


def study_of(**given):
    defaults = {"gradients": ("R", "M", "C"), "epochs": 2, "settings": SETTINGS}
    return Study("cart-pole", {"horizon": 10}, (1, 2), **(defaults | given))


def test_as_many_seeds_are_taken_as_fit_into_the_hours(tmp_path):
    def measure(study, difficulty):
        return 600.0 * difficulty

    study, told = sized(study_of(), 2.0, tmp_path / "new", measure)
    assert study.seed_count == 4  # 2 hours of 600 s and 1200 s each
    assert told[0].startswith(
        "4 paired seeds of 3 variants, at 2 difficulties and for 2 epochs, fit into 2 hours: 2 hours"
    )
    assert "none of 4 comparisons can tell two variants apart" in told[1]
    tuned, _ = sized(study_of(learning_rates=(1e-3, 1e-2), tuning_seed_count=2), 2.0, tmp_path / "new", measure)
    assert tuned.seed_count == 4  # an hour for tuning; then one rate of two
    with pytest.raises(SettingError, match=r"Expected at least 0\.5 hours, .*, got 0\.1; take fewer"):
        sized(study_of(), 0.1, tmp_path / "new", measure)
    with pytest.raises(SettingError, match="hours above 0"):
        sized(study_of(), -1.0, tmp_path / "new", measure)


def test_a_study_that_was_begun_keeps_its_seeds(tmp_path):
    run_study(study_of(seed_count=3, gradients=("R", "M")), tmp_path / "out")
    study, told = sized(study_of(gradients=("R", "M")), 5.0, tmp_path / "out")
    assert study.seed_count == 3
    assert told[0] == "This study was begun with 3 paired seeds and keeps them."
    run_study(study, tmp_path / "out", lambda pack, left: pytest.fail("a pack was trained again"))


def test_a_seed_is_measured_in_seconds():
    found = seconds_of_a_seed(study_of(gradients=("R",)), 1)
    assert 0.0 < found < 60.0
    more = seconds_of_a_seed(study_of(gradients=("R",), epochs=200), 1)
    assert more > 10.0 * found


def test_an_epoch_is_its_updates_its_tests_and_its_validation(monkeypatch):
    times = iter([0.25, 1.0] * 2)  # of an update, and of a test
    monkeypatch.setattr(sizing, "seconds_of", lambda call: next(times))
    assert seconds_of_an_epoch(study_of().experiment(1, (0,))) == 2 * 0.25 + 1.0
    validated = study_of(settings=replace(SETTINGS, validation_samples=24)).experiment(1, (0,))
    assert seconds_of_an_epoch(validated) == 2 * 0.25 + 1.0 + 3.0  # three times as many starts as for tests


@pytest.mark.parametrize(
    ("takes", "calls", "found"),
    [([9.0, 1.0, 3.0, 2.0, 2.0, 7.0], 5, 2.0), ([20.0, 12.0, 7.0], 2, 12.0), ([31.0, 7.0], 1, 31.0)],
    ids=["short", "longer", "longer than compiling"],
)
def test_what_is_long_is_timed_once(monkeypatch, takes, calls, found):
    made, clock = [], [0.0]

    def call():
        clock[0] += takes[len(made)]
        made.append(clock[0])

    monkeypatch.setattr(timing, "now", lambda: clock[0])
    assert (timing.seconds_of(call), len(made)) == (found, calls)


def test_copies_of_a_score_gradient_count_in_what_fits_into_memory(monkeypatch):
    monkeypatch.setattr(packs.os, "sysconf", {"SC_AVPHYS_PAGES": 150 * 10**6, "SC_PAGE_SIZE": 1}.__getitem__)

    def fitting(*gradients):
        return len(packs.packed_seeds(study_of(gradients=gradients), 1)) * len(gradients)

    assert fitting("R", "M") > 4 * fitting("R", "score(0.1, 64)")


def test_families_differ_in_the_last_number_of_their_outermost_part():
    assert family_of("clip-norm(decay(R, 0.9), 1)") == "clip-norm(decay(R, 0.9), ·)"
    assert family_of("agree(M, R)") == "agree(M, R)"
    assert family_of("agree(M, decay(R, 0.9))") == "agree(M, decay(R, 0.9))"  # none of its own
    assert families([*CLIPPED, "decay(R, 0.9)"]) == {
        "clip-norm(R, ·)": {0.1: "clip-norm(R, 0.1)", 1.0: "clip-norm(R, 1)", 10.0: "clip-norm(R, 10)"}
    }


@pytest.fixture(scope="module")
def tuned(tmp_path_factory):
    out = tmp_path_factory.mktemp("tuned") / "study"
    study = study_of(gradients=CLIPPED, seed_count=2, tuning_seed_count=2, tune_knobs=True)
    run_study(study, out)
    return study, out


def test_a_number_is_chosen_on_seeds_that_are_not_reported(tuned):
    _, out = tuned
    results = StudyDirectory(out).results
    for difficulty in (1, 2):
        tuning = [one for one in results if (one.phase, one.difficulty) == ("tuning", difficulty)]
        assert {one.label.seed for one in tuning} == {TUNING_SEED, TUNING_SEED + 1}
        means = {text: sum(one.final_loss for one in tuning if one.variant.gradient == text) for text in CLIPPED}
        best = min(CLIPPED[1:], key=means.__getitem__)
        reported = {one.variant.gradient for one in results if (one.phase, one.difficulty) == ("report", difficulty)}
        assert reported == {"R", best}


def test_tuning_is_told_and_drawn(tuned, tmp_path):
    _, out = tuned
    (told,) = tuning_budgets(StudyDirectory(out).results, True)
    assert told.endswith("which favours those with more: R 0, clip-norm(R, ·) 6.")
    assert tuning_budgets(StudyDirectory(out).reported, True) == []
    (alone,) = tuning_budgets([one for one in StudyDirectory(out).results if one.variant.gradient != "R"], False)
    assert alone == "Each was tuned with 2 trainings on seeds that are not reported."
    path = knob_panels(out, tmp_path / "knobs.png")
    assert path is not None
    assert path.read_bytes().startswith(b"\x89PNG")


def test_studies_that_tune_nothing_are_known_as_before(tuned, tmp_path):
    study, out = tuned
    assert study.to_config()["tune_knobs"] is True
    assert "tune_knobs" not in replace(study, tune_knobs=False).to_config()
    with pytest.raises(RunError, match="begun with, got other tune_knobs"):
        check_same(replace(study, tune_knobs=False).to_config(), StudyDirectory(out).config, out)
