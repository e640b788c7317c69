"""Studies that are given more: seeds, gradients and difficulties, by the same command, and from their results alone."""

import json
import shutil

import pytest
import yaml
from rich.console import Console
from test_study import identity, small

from benchmarks.studies.directory import StudyDirectory
from benchmarks.studies.packs import run_study
from benchmarks.studies.variants import compare
from training.errors import RunError

pytestmark = pytest.mark.float64


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    out = tmp_path_factory.mktemp("study") / "out"
    run_study(small(), out)
    return out


def interrupt():
    raise KeyboardInterrupt


PART = {"difficulties": (1,), "gradients": ("R",), "seed_count": 2}


def test_a_study_is_given_more_seeds_gradients_and_difficulties(done, tmp_path):
    out, console = tmp_path / "out", Console(record=True, width=200)
    compare(small(**PART), out, console)
    known = (out / "results.jsonl").read_bytes()
    with pytest.raises(KeyboardInterrupt):
        run_study(small(seed_count=2), out, lambda pack, left: None if left == 2 else interrupt())
    compare(small(), out, console)
    assert (out / "results.jsonl").read_bytes().startswith(known)
    found, whole = (
        {identity(line): line["test_loss"] for line in StudyDirectory(place).lines} for place in (out, done)
    )
    assert found.keys() == whole.keys()
    for key, losses in whole.items():
        assert found[key] == pytest.approx(losses, rel=1e-9)
    config = StudyDirectory(out).config
    assert config == StudyDirectory(done).config | {"seeds_before": [2]}
    assert (
        "It had 2 paired seeds when results were known, and was given more, up to 3:" in (out / "report.md").read_text()
    )
    run_study(small(), out, lambda pack, left: pytest.fail("a pack was trained again"))


@pytest.mark.parametrize("fewer", [{"seed_count": 2}, {"gradients": ("R",)}, {"difficulties": (2, 3)}])
def test_less_than_a_study_has_is_another(fewer, done):
    before = (done / "study.yaml").read_bytes()
    name = next(iter(fewer)).replace("seed_count", "seeds")
    with pytest.raises(RunError, match=rf"^Expected the {name} that .* was begun with, or more, got others; .*\.$"):
        run_study(small(**fewer), done)
    assert (done / "study.yaml").read_bytes() == before


def test_a_choice_on_tuning_seeds_is_given_other_families_alone(tmp_path):
    def tuned(*more, **given):
        gradients = ("R", "decay(R, 0.5)", "decay(R, 0.9)", *more)
        knobs = {"tuning_seed_count": 1, "tune_knobs": True}
        return small(difficulties=(1,), epochs=1, gradients=gradients, **knobs, **given)

    out = tmp_path / "out"
    run_study(tuned(seed_count=1), out)
    known = (out / "results.jsonl").read_bytes()
    with pytest.raises(RunError, match=r"^Expected no more of the families .*, got decay\(R, 0\.7\); .*\.$"):
        run_study(tuned("C", "decay(R, 0.7)", seed_count=1), out)
    assert "C" not in StudyDirectory(out).config["gradients"]
    run_study(tuned("C", "clip-norm(R, 1)", "clip-norm(R, 2)", seed_count=2), out)
    assert (out / "results.jsonl").read_bytes().startswith(known)
    lines = StudyDirectory(out).lines
    tuned_with = [line["gradient"] for line in lines if line["phase"] == "tuning"]
    assert sorted(tuned_with) == ["clip-norm(R, 1)", "clip-norm(R, 2)", "decay(R, 0.5)", "decay(R, 0.9)"]
    reported = [(line["gradient"].split("(")[0], line["seed"]) for line in lines if line["phase"] == "report"]
    assert sorted(reported) == sorted((name, seed) for name in ("R", "decay", "C", "clip-norm") for seed in (0, 1))


def test_a_study_goes_on_from_its_results_alone(done, tmp_path):
    out, console = tmp_path / "out", Console(record=True, width=200)
    out.mkdir()
    lines = (done / "results.jsonl").read_text().splitlines(keepends=True)
    (out / "results.jsonl").write_text("".join(lines[:5]))
    shutil.copy(done / "study.yaml", out)
    compare(small(), out, console, train=False)
    assert "no adjoints are diagnosed" in console.export_text()
    seen = []
    run_study(small(), out, lambda pack, left: seen.extend(pack.experiment.labels()))
    assert len(seen) == len(lines) - 5
    assert (out / "results.jsonl").read_text().startswith("".join(lines[:5]))
    assert {identity(line) for line in StudyDirectory(out).lines} == {identity(json.loads(line)) for line in lines}


@pytest.mark.parametrize("before", [[0], ["two"], 2])
def test_counts_of_seeds_before_that_make_no_sense_are_refused(before, done, tmp_path):
    config = yaml.safe_load((done / "study.yaml").read_text())
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(config | {"seeds_before": before}))
    with pytest.raises(RunError, match=r"^Expected .* in .*study.yaml.*\.$"):
        list(StudyDirectory(tmp_path).config)


def test_a_run_that_results_name_is_never_another_run(done, tmp_path):
    out, console = tmp_path / "out", Console(quiet=True)
    out.mkdir()
    kept = [line for line in StudyDirectory(done).lines if line["difficulty"] == 1 and line["gradient"] == "R"]
    (out / "results.jsonl").write_text("".join(json.dumps(line) + "\n" for line in kept))
    config = yaml.safe_load((done / "study.yaml").read_text())
    (out / "study.yaml").write_text(yaml.safe_dump(config | {"difficulties": [1], "gradients": ["R"]}))
    compare(small(difficulties=(1,)), out, console)
    (new,) = {result.run for result in StudyDirectory(out).results if result.variant.gradient == "C"}
    assert new not in {line["run"] for line in kept}
    directory = StudyDirectory(out)
    assert {result.variant.gradient for result in directory.results if directory.has_run(result)} == {"C"}
