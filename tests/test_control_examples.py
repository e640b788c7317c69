"""The examples of identification, open loop, randomised masses and environments run, and find what they look for."""

import re

import pytest
from children import ROOT, run_python

pytestmark = pytest.mark.float64


def run(name, folder, *words):
    """What an example prints, with words of its own after its name."""
    source = f"import os, runpy, sys; os.chdir({str(folder)!r}); sys.argv = {[name, *words]!r}; "
    return run_python(source + f"runpy.run_path({str(ROOT / 'examples' / name)!r})").stdout


SHORT = ["fluid_open_loop", "identify_chain", "lyapunov_exponent", "open_loop_swing_up", "ppo_cart_pole"]
SHORT += ["randomised_masses"]


@pytest.mark.parametrize("name", SHORT)
def test_an_example_takes_at_most_30_lines(name):
    lines = (ROOT / "examples" / f"{name}.py").read_text().splitlines()
    assert len([line for line in lines if line.strip() and '"""' not in line]) <= 30


@pytest.mark.parametrize("name", ["identify_chain.py", "open_loop_swing_up.py"])
def test_an_example_finds_what_it_looks_for_and_draws_it(name, tmp_path):
    printed = run(name, tmp_path, "picture.png")
    assert (tmp_path / "picture.png").stat().st_size > 5000
    if name == "open_loop_swing_up.py":
        ours, reference = map(float, re.findall(r"[\d.]+(?= by)", printed))
        assert ours == pytest.approx(reference, rel=1e-3)
    else:
        assert float(re.findall(r"off by ([\d.]+)%", printed)[0]) < 0.1


def test_controllers_are_compared_over_a_range_of_masses(tmp_path):
    printed = run("randomised_masses.py", tmp_path, "picture.png", "1")
    assert len(re.findall(r"[\d.]+ trained at", printed)) == 2
    assert (tmp_path / "picture.png").stat().st_size > 5000


def test_the_growth_of_errors_is_measured_and_drawn(tmp_path):
    found, error = re.findall(r"0\.\d+", run("lyapunov_exponent.py", tmp_path, "picture.png", "5"))
    assert 0.0 < float(error) < 0.1
    assert abs(float(found)) < 0.2  # after five units of time
    assert (tmp_path / "picture.png").stat().st_size > 5000


def test_pushes_alone_gather_a_fluid(tmp_path):
    printed = run("fluid_open_loop.py", tmp_path, "60", "2", "4")
    assert float(re.findall(r"([\d.]+) of it", printed)[0]) < 0.9
    assert (tmp_path / "fluid-open-loop.png").stat().st_size > 5000


def test_a_trained_hopper_s_gait_is_told(tmp_path):
    words = ["train", "hopper", "--epochs", "1", "--gradients", "R", "--seeds", "1", "--batch-size", "2"]
    words += ["--train-samples", "2", "--test-samples", "2", "--horizon", "5", "--out", str(tmp_path / "run")]
    run_python(f"from evenflow import main; main({words!r})")
    told = run("hopper_gait.py", tmp_path, str(tmp_path / "run"), "R", "0")
    assert re.search(r"100% do not fall, in flight for \d+% of the time, \d\.\d touchdowns, -?\d\.\d\d m/s", told)


def test_environments_are_timed_beside_gymnasium_s_own(tmp_path):
    pytest.importorskip("gymnasium", reason="needs the package gymnasium")
    printed = run("gymnasium_speed.py", tmp_path, "20")
    times = [float(number) for number in re.findall(r"Evenflow ([\d.]+) times", printed)]
    assert len(times) == 2
    assert all(time > 0 for time in times)


def test_stable_baselines_3_learns_on_a_task_as_an_environment(tmp_path):
    pytest.importorskip("stable_baselines3", reason="needs the package stable-baselines3")
    printed = run("ppo_cart_pole.py", tmp_path, "1")  # which is an epoch at least
    losses = [float(number) for number in re.findall(r"([\d.]+) by", printed)]
    assert len(losses) == 3
    assert all(0.0 < loss <= 2.0 for loss in losses)
