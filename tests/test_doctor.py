"""The doctor on cases whose answer is known: linear systems, orbits, a fluid, a wave; and its page, figure and JSON."""

import json
import math
from dataclasses import replace

import pytest
import torch
from children import ROOT
from conftest import tensor_options

import evenflow
from benchmarks.doctor.advice import advise
from benchmarks.doctor.examination import LETTERS, Growth, Variance, examine, grown, single_precision, variances
from benchmarks.doctor.patient import Patient
from benchmarks.doctor.worker import found
from engine import LinearSystem
from policies import Linear
from training import Experiment, Quadratic, Task, TrainingSettings, gradient_named, train
from training.tasks import task_options
from training.viewing.watching import untrained

pytestmark = pytest.mark.float64

HORIZON = 100


def linear(radius, feedback=0.0, horizon=HORIZON, samples=8, end=None, gain=1.0):
    """x' = radius · (a rotation, sheared by `gain`) x + B u under u = feedback · x₁."""
    c, s = math.cos(0.3), math.sin(0.3)
    matrix = radius * torch.tensor([[c, -s * gain], [s / gain, c]], dtype=torch.float64)
    system = LinearSystem(matrix, torch.tensor([[0.0], [1.0]]))

    def build(members=1, dtype=None, device=None):
        policy = Linear((2,), (1,), bias=False, members=members, **tensor_options())
        policy.theta.data.copy_(torch.tensor([[feedback, 0.0]]).expand(members, -1))
        return policy

    sample = lambda count, draw: torch.randn(count, 2, generator=draw, dtype=torch.float64)  # noqa: E731
    task = Task("linear", system, Quadratic((1.0, 1.0), 0.1), sample, horizon, build, end=end)
    states, parameters = task.starts(samples, 0, "test", torch.float64)
    return Patient("test", task, build(), states, parameters)


def radius_of(patient):
    """The spectral radius of A + B K."""
    system, K = patient.task.system, patient.policy.theta.detach().view(2, 1).T
    A, B = (torch.tensor(matrix, dtype=torch.float64) for matrix in (system.A, system.B))
    return float(torch.linalg.eigvals(A + B @ K).abs().max())


@pytest.mark.parametrize("radius", [0.9, 1.1])
def test_growth_along_the_physics_is_the_spectral_radius(radius):
    growth = grown(linear(radius))
    physics = growth["physics"]
    assert physics.factor == pytest.approx(radius, rel=1e-6)
    assert physics.profile[0][1] / physics.profile[-1][1] == pytest.approx(radius**HORIZON, rel=1e-9)
    # A hundredfold after ln(100)/|ln radius| steps.
    steps = math.ceil(math.log(1e2) / abs(math.log(radius)))
    assert physics.explodes_at == (HORIZON - steps if radius > 1 else None)
    assert physics.dies_at == (HORIZON - steps if radius < 1 else None)
    assert growth["policy"].factor is None  # no feedback, so nothing passes


@pytest.mark.parametrize("radius", [0.98, 1.05])
def test_growth_is_counted_from_where_samples_end(radius):
    """Physics that is a rotation times a radius grows an adjoint alike from wherever it begins."""
    inside = (lambda x: x.square().sum(1) < 0.25) if radius < 1 else (lambda x: x.square().sum(1) > 100.0)
    whole, ended = examine(linear(radius), 0, 0.1, None), examine(linear(radius, end=inside), 0, 0.1, None)
    patient = linear(radius, end=inside)
    rollout = patient.rollout()
    patient.run(rollout)
    assert rollout.parts.ends is not None
    ends = rollout.parts.ends.at
    assert (ends < HORIZON).all()  # all end early, and not together
    assert len(set(ends.tolist())) > 3
    for name in ("both", "physics"):
        one, other = whole.growth[name], ended.growth[name]
        assert other.factor == pytest.approx(one.factor, rel=1e-6)
        known = [step for step, (_, middle, _) in enumerate(other.profile) if not math.isnan(middle)]
        assert known == list(range(HORIZON - int(ends.sort(descending=True).values[len(ends) // 2 - 1]), HORIZON + 1))
        assert [other.profile[t][1] for t in known] == pytest.approx([one.profile[t][1] for t in known], rel=1e-9)
        assert other.explodes_at in (None, one.explodes_at)
        assert other.dies_at in (None, one.dies_at)
    assert ended.final_adjoint > 0.0


def test_a_growth_that_the_physics_makes_and_takes_back_is_not_laid_to_the_policy():
    found_ = examine(linear(0.97, gain=200.0), 0, 0.1, None)
    physics = found_.growth["physics"]
    assert physics.factor is not None
    assert physics.factor < 1
    assert physics.explodes_at is not None
    advice = advise(found_)
    assert [one.gradient.split("(")[0] for one in advice[:2]] == ["clip-norm", "truncate"]
    assert "by the physics alone an adjoint grows a hundredfold" in advice[0].why
    assert not any("with the policy's path" in one.why for one in advice)


def test_growth_along_both_paths_is_the_spectral_radius_of_the_closed_loop():
    patient = linear(0.95, feedback=-0.9)
    assert radius_of(patient) > 1.05
    growth = grown(patient)
    assert growth["both"].factor == pytest.approx(radius_of(patient), rel=0.02)
    assert growth["both"].explodes_at is not None
    assert growth["physics"].explodes_at is None


ADVICE = {
    "explodes by the physics": (1.1, 0.0, ["decay(R, 0.9091)", "clip-norm(R, ", "truncate(R, 49)", "R"]),
    "dies": (0.9, 0.0, ["truncate(R, 44)", "R"]),
    "explodes by the policy": (0.95, -0.9, ["bisect(M, R)", "C", "M", "M"]),
    "neither, with nothing by the policy": (1.0, 0.0, ["R"]),
}


@pytest.mark.parametrize("case", ADVICE)
def test_what_to_try_follows_from_what_is_known(case):
    radius, feedback, expected = ADVICE[case]
    advice = advise(examine(linear(radius, feedback), 4, 0.1, None))
    for one, start in zip(advice, expected, strict=True):
        assert one.gradient.startswith(start)
        assert one.why
        gradient_named(one.gradient)


def test_advice_on_precision_agreement_and_variance():
    calm = replace(
        examine(linear(1.0, -0.05, horizon=8), 4, 0.1, None), agreeing=0.6, cosines={"R M": 0.2}, policy_share=0.5,
        growth={name: Growth(1.0, [[1.0] * 3] * 2, None, None) for name in ("both", "physics", "policy")},
    )  # fmt: skip
    assert [one.gradient for one in advise(calm)] == ["bisect(M, R)"]
    noisy = replace(calm, agreeing=0.9, variances=[Variance(8, 5.0, 4.0, 1.0)])
    assert [one.gradient for one in advise(noisy)] == ["mix(R, score(0.1, 4))"]
    assert gradient_named(advise(noisy)[0].gradient).text == "mix(R, score(0.1, 4))"
    lost = replace(calm, agreeing=0.9, single={"R": {"error": 0.2, "wrong_signs": 0.0}})
    assert [one.gradient for one in advise(lost)] == ["--precision float64"]
    slow = replace(calm, growth=calm.growth | {"physics": Growth(1.004, [[1.0] * 3] * 2, 0, None)})
    assert advise(slow)[0].gradient == "decay(R, 0.996)"
    fine = replace(calm, agreeing=0.9, single={"R": {"error": 1e-6, "wrong_signs": 0.0}})
    assert [one.gradient for one in advise(fine)] == ["R"]


def test_the_figures_of_a_linear_system_are_those_of_its_gradients():
    found_ = examine(linear(0.97, -0.2), 0, 0.1, None)
    gradients = linear(0.97, -0.2).gradients(LETTERS)
    r, m = gradients["R"], gradients["M"]
    assert found_.cosines["R M"] == pytest.approx(float(r @ m / r.norm() / m.norm()))
    assert found_.policy_share == pytest.approx(float((r - m).norm() / (m.norm() + (r - m).norm())))
    assert found_.norms["M"] == pytest.approx(float(m.norm()))
    assert found_.variances[-1].score is None
    assert [one.horizon for one in found_.variances] == [12, 25, 50, 100]


def test_variances_are_those_of_single_starts():
    patient = linear(0.97, -0.2, horizon=8)
    rows = torch.stack([replace(patient, initial=state[None]).gradients(LETTERS)["R"] for state in patient.initial])
    expected = float((rows - rows.mean(0)).square().sum(1).mean() / rows.mean(0).square().sum())
    found_ = variances(patient, 64, 1e-3)[-1]
    assert found_.full == pytest.approx(expected, rel=1e-9)
    assert found_.score is not None
    assert found_.score > 0.9 * expected  # of the same starts, with the noise of the copies besides


def task_patient(name, samples, **options):
    patient = Patient.of(untrained(task_options(name)(**options)), samples)
    draw = torch.randn(patient.policy.theta.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    patient.policy.theta.data += 0.02 * draw
    return patient


def test_a_wave_neither_explodes_nor_dies_since_its_propagation_is_unitary():
    growth = grown(task_patient("quantum", 4, target=5))["physics"]
    assert growth.factor == pytest.approx(1.0, abs=1e-9)
    assert growth.profile[0][1] == pytest.approx(1.0, abs=1e-9)
    assert growth.explodes_at is growth.dies_at is None


def test_an_orbit_shears_which_is_no_explosion():
    growth = grown(task_patient("n-body", 4, satellites=1))["physics"]
    assert growth.factor is not None
    assert 1.0 < growth.factor < 1.06
    assert growth.explodes_at is growth.dies_at is None


def test_a_fluid_grows_in_the_physics_itself():
    growth = grown(task_patient("fluid", 2, particles=300))
    physics, both = growth["physics"], growth["both"]
    assert physics.factor is not None
    assert physics.factor > 1.05
    assert physics.profile[0][1] > 30.0
    assert both.factor == pytest.approx(physics.factor, rel=0.02)
    assert growth["policy"].profile[0][1] < 1e-6  # its path alone carries nothing


def test_what_single_precision_loses_is_found_in_another_process(forked_modules):
    asked = {"task": "cart-pole", "options": {"poles": 1, "horizon": 60}, "samples": 4}
    patient = Patient.of(found(asked), 4)
    lost = single_precision(patient.gradients(LETTERS), asked)
    assert lost is not None
    for told in lost.values():
        assert 1e-9 < told["error"] < 1e-3
        assert told["wrong_signs"] < 0.02
    assert single_precision({}, {"task": "nothing", "options": {}, "samples": 4}) is None


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    out = tmp_path_factory.mktemp("doctor") / "run"
    settings = TrainingSettings(train_samples=16, test_samples=8)
    options = {"poles": 1, "horizon": 20}
    train(Experiment("cart-pole", options, gradients=("R", "C"), seeds=(0,), epochs=2, settings=settings), out)
    return out


def command(*words):
    return evenflow.main([str(word) for word in words])


def test_a_run_is_examined_on_one_page_with_a_figure_and_json(run, tmp_path, capsys):
    assert (
        command("doctor", f"{run}@C,0", "--samples", 4, "--copies", 2, "--no-single", "--out", tmp_path / "found") == 0
    )
    page = capsys.readouterr().out
    assert "cart-pole, C, seed 0, epoch 2: 4 starts, 20 steps" in page
    for part in ("By how much an adjoint grows", "cosines of their pairs", "Variance of a start's gradient", "\ntry "):
        assert part in page
    assert (tmp_path / "found" / "doctor.png").read_bytes().startswith(b"\x89PNG")
    told = json.loads((tmp_path / "found" / "doctor.json").read_text())
    assert set(told["growth"]) == {"both", "physics", "policy"}
    assert len(told["growth"]["both"]["profile"]) == 21
    assert told["advice"][0]["gradient"]
    assert command("doctor", run, "--no-single", "--out", tmp_path / "found") == 2
    assert "Expected a directory without doctor.json" in capsys.readouterr().err


def test_a_task_is_examined_at_its_first_weights(capsys):
    assert command("doctor", "lqr", "--horizon", 20, "--samples", 4, "--copies", 0, "--no-single") == 0
    page = capsys.readouterr().out
    assert "lqr, initial weights: 4 starts, 20 steps" in page
    assert "R and M are one" in " ".join(page.split())


MISTAKES = [
    (("doctor", "nowhere"), "Expected a run directory or a task among"),
    (("doctor", "lqr", "--samples", 1), "Expected at least 2 samples, got 1"),
    (("doctor", "lqr", "--copies", 3), "Expected copies in pairs, got 3"),
    (("doctor", "lqr", "--sigma", 0), "Expected a finite sigma above 0, got 0"),
    (("doctor", "lqr", "--out", ROOT / "README.md"), "Expected a directory for what the doctor finds"),
]


@pytest.mark.parametrize(("words", "message"), MISTAKES)
def test_a_mistake_ends_in_one_sentence(words, message, capsys):
    assert command(*words) == 2
    told = capsys.readouterr().err
    assert message in told
    assert "Traceback" not in told
