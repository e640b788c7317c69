"""Searches by Optuna: one budget for every variant, on seeds that are not reported, and the same after a stop."""

import math
from dataclasses import replace

import pytest

import evenflow
from benchmarks.studies.directory import StudyDirectory
from benchmarks.studies.knobs import search_told
from benchmarks.studies.packs import run_study
from benchmarks.studies.search import JOURNAL, trials_with
from benchmarks.studies.spaces import Space, spaces
from benchmarks.studies.statistics import interquartile_mean
from benchmarks.studies.study import Study
from engine import SettingError
from training import TrainingSettings
from training.errors import RunError
from training.stopping import Stopping
from training.variant import Variant

pytestmark = pytest.mark.float64
optuna = pytest.importorskip("optuna", reason="needs optuna, which the extra optuna brings")

TRIALS = 9
STUDY = Study(
    "cart-pole",
    {"horizon": 10},
    (1,),
    gradients=("R", "clip-norm(R, 1)", "truncate(R, 4)"),
    epochs=2,
    seed_count=3,
    tuning_seed_count=2,
    trials=TRIALS,
    settings=TrainingSettings(train_samples=16, test_samples=8),
)
FAMILIES = {"R": "R", "clip-norm": "clip-norm(R, ·)", "truncate": "truncate(R, ·)"}


def journals(out):
    """The trials of each search, by its name, as Optuna reads them."""
    backend = optuna.storages.journal.JournalFileBackend(str(out / JOURNAL))
    storage = optuna.storages.JournalStorage(backend)
    names = optuna.get_all_study_names(storage)
    return {name: optuna.load_study(study_name=name, storage=storage).trials for name in names}


def tried(out):
    """Settings and value of each trial, by the name of its search."""
    return {name: [(trial.params, trial.value) for trial in trials] for name, trials in journals(out).items()}


def lines(out):
    """What results.jsonl says of each training, but its times."""
    return [{**line, "seconds": None} for line in StudyDirectory(out).lines]


@pytest.fixture(scope="module")
def searched(tmp_path_factory):
    out = tmp_path_factory.mktemp("search") / "out"
    run_study(STUDY, out)
    return out


def test_every_variant_has_the_same_budget_on_seeds_that_are_not_reported(searched):
    found, results = journals(searched), StudyDirectory(searched).results
    assert sorted(found) == sorted(f"poles 1, {family}, clipping none" for family in FAMILIES.values())
    tuned = [result for result in results if result.phase == "tuning"]
    finals = {}
    for result in tuned:
        assert result.label.seed in STUDY.tuning_seeds
        assert len(result.test_loss) == STUDY.epochs
        finals.setdefault((result.variant.gradient, result.variant.learning_rate), {})[result.label.seed] = result
    assert all(set(seeds) == {1000, 1001} for seeds in finals.values())
    reported = [result for result in results if result.phase == "report"]
    assert sorted(result.label.seed for result in reported) == sorted([0, 1, 2] * 3)
    assert set(STUDY.seeds).isdisjoint(STUDY.tuning_seeds)
    for name, family in FAMILIES.items():
        trials = found[f"poles 1, {family}, clipping none"]
        assert len(trials) == TRIALS
        settings = [(trial.user_attrs["gradient"], trial.params["learning_rate"]) for trial in trials]
        given = next(text for text in STUDY.gradients if text.partition("(")[0] == name)
        assert settings[0] == (given, 1e-3)
        assert all(text.partition("(")[0] == name for text, _ in settings)
        assert len(set(settings)) > TRIALS // 2
        for trial, key in zip(trials, settings, strict=True):
            losses = [result.final_loss for result in finals[key].values()]
            assert trial.value == pytest.approx(float(interquartile_mean(losses)), rel=1e-12)
            assert 1e-4 <= trial.params["learning_rate"] <= 1e-2
        best = settings[min(range(TRIALS), key=lambda number: trials[number].value)]
        chosen = {
            (one.variant.gradient, one.variant.learning_rate)
            for one in reported
            if one.variant.gradient.startswith(name)
        }
        assert chosen == {best}
    numbers = {trial.params["number"] for trial in found["poles 1, truncate(R, ·), clipping none"]}
    assert numbers <= set(range(1, 41))
    assert len(numbers) > 2


def stopped_in(out, pack_number):
    """Begin the study, and stop it in the first epoch of a pack."""
    with Stopping() as stopping:
        begun = []

        def watch(pack, left):
            begun.append(pack)

            def progress(trainer, record):
                if len(begun) == pack_number:
                    stopping.requested = 15

            return progress

        with pytest.raises(KeyboardInterrupt):
            run_study(STUDY, out, watch, stopping)
    return [pack.path.name for pack in begun]


def test_a_search_that_was_stopped_goes_on_to_the_same_trials(searched, tmp_path):
    out = tmp_path / "out"
    assert stopped_in(out, 2) == ["tuning-0-1000", "tuning-2-1000"]
    first = journals(out)
    assert {len(trials) for trials in first.values()} == {2}
    # As a kill between the trials of one round leaves it: some are told, others not.
    assert stopped_in(out, 2)[-1] == "tuning-4-1000"
    kept = (out / JOURNAL).read_text().splitlines(keepends=True)
    (out / JOURNAL).write_text("".join(kept[:-4]))
    run_study(STUDY, out)
    assert lines(out) == lines(searched)
    assert tried(out) == tried(searched)
    (out / JOURNAL).unlink()  # which is made again from the results
    run_study(STUDY, out, lambda pack, left: pytest.fail("a pack was trained again"))
    assert tried(out) == tried(searched)


def test_the_report_says_what_was_searched_and_chosen(searched):
    directory = StudyDirectory(searched)
    told = search_told(directory.config, directory.results, directory.difficulty)
    assert told[:3] == [
        "Optuna tried 9 settings of each variant at each value of poles, the first as given, for 2 epochs on seeds "
        "1000 to 1001, none of which is reported.",
        "It searched learning rates from 0.0001 to 0.01, the number of clip-norm(R, ·) from 0.1 to 10, the number of "
        "truncate(R, ·) from 1 to 40.",
        "Without a number of their own to search, with their learning rate alone: R.",
    ]
    for result in directory.reported:
        assert f"{result.variant.gradient} at a learning rate of {result.variant.learning_rate:.3g}" in told[3]
    assert told[3].startswith("Chosen at poles 1: ")
    assert len(told) == 4
    assert search_told({**directory.config, "trials": 0}, directory.results, "poles") == []


def test_a_variant_whose_trials_all_diverge_is_reported_as_given(tmp_path):
    study = replace(STUDY, gradients=("clip-norm(R, 1)",), learning_rates=(1e300,), seed_count=1, trials=2, epochs=1)
    run_study(study, tmp_path / "out")
    directory = StudyDirectory(tmp_path / "out")
    assert [result.variant for result in directory.reported] == [Variant("clip-norm(R, 1)", "none", 1e300)]
    assert all(math.isinf(result.final_loss) for result in directory.results)
    told = search_told(directory.config, directory.results, "poles")
    assert told[-1] == "Every trial of clip-norm(R, 1) at poles 1 diverged; it is reported as given, untuned."


@pytest.mark.parametrize(
    ("gradients", "numbers", "whole"),
    [
        (["R"], None, False),
        (["clip-norm(R, 2)"], (0.2, 20.0), False),
        (["decay(R, 0.5)"], (0.05, 1.0), False),
        (["random-cut(R, 0.5)"], (0.05, 1.0), False),
        (["truncate(R, 20)"], (2.0, 200.0), True),
        (["short(R, 1)"], (1.0, 10.0), True),
        (["short(R, 32)"], (3.0, 100.0), True),  # no longer than the horizon
        (["score(0.1, 4)"], (0.01, 1.0), False),
        (["mask-random(R, C)"], None, False),
        (["paths(1, 0.5)"], (0.05, 5.0), False),
        (["clip-norm(R, 3)", "clip-norm(R, 0.5)"], (0.5, 3.0), False),
        (["bisect(M, R)"], None, False),
    ],
)
def test_a_number_is_searched_where_the_gradient_takes_it(gradients, numbers, whole):
    texts = Study("cart-pole", gradients=tuple(gradients)).gradients
    (space,) = spaces(texts, ("none",), (1e-3,), 100)
    assert space.given == Variant(texts[0], "none", 1e-3)
    assert space.whole is whole
    assert space.numbers == (None if numbers is None else pytest.approx(numbers, rel=1e-3))
    if numbers is not None and space.numbers is not None:
        for end in space.numbers:
            variant = space.variant(1e-3, int(end) if whole else end)
            assert space.number(variant) == pytest.approx(end, rel=1e-2)


def test_settings_are_those_that_a_gradient_takes():
    truncate = Space("truncate(R, ·)", Variant("truncate(R, 4)"), (1e-4, 1e-2), (1.0, 40.0), True)
    assert truncate.variant(0.00123456, 7) == Variant("truncate(R, 7)", "none", 0.00123)
    assert truncate.variant(0.0100001, 0) == Variant("truncate(R, 1)", "none", 0.01)
    paths = Space("paths(1, ·)", Variant("paths(1, 0.5)"), (1e-4, 1e-2), (0.05, 5.0))
    assert paths.variant(1e-3, 1.0004).gradient == "paths(1, 0.5)"  # paths(1, 1) is R
    assert paths.variant(1e-3, 1.0051).gradient == "paths(1, 1.01)"


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("--tune optuna --trials 0", "at least 1 trial"),
        ("--tune optunna", "Expected optuna to tune with, got 'optunna'."),
        ("--tune optuna --tune-knobs", "Expected --tune without --hours and without --tune-knobs; leave them out."),
        ("--tune optuna --hours 1", "Expected --tune without --hours and without --tune-knobs; leave them out."),
    ],
)
def test_what_cannot_be_searched_is_told(words, sentence, tmp_path, capsys):
    assert evenflow.main(["bench", "variants", "cart-pole", "--out", str(tmp_path / "out"), *words.split()]) == 2
    said = capsys.readouterr().err
    assert sentence in said
    assert said.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_missing_package_and_a_damaged_journal_are_told(searched, monkeypatch, tmp_path):
    (tmp_path / JOURNAL).write_text("something\nelse\n")
    (tmp_path / "study.yaml").write_bytes((searched / "study.yaml").read_bytes())
    with pytest.raises(RunError, match=r"search\.journal, got something else; remove it"):
        run_study(STUDY, tmp_path)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(SettingError, match=r"got none; pip install 'evenflow\[optuna\]'\.$"):
        trials_with("optuna", 4)
    assert trials_with(None, None) == 0


def test_a_study_without_a_search_is_written_as_it_was(searched):
    assert StudyDirectory(searched).config["trials"] == TRIALS
    assert "trials" not in replace(STUDY, trials=0).to_config()
