"""Mistakes on the command line: each ends with exit code 2 and one sentence that says what to do, and no file."""

import io
import os
import shutil
import sys

import pytest
from children import HANGS, Child

import evenflow
from benchmarks.studies.packs import run_study
from benchmarks.studies.study import Study
from training import Experiment, TrainingSettings, train

pytestmark = pytest.mark.float64

SMALL = TrainingSettings(batch_size=4, train_samples=4, test_samples=4)

# What is typed, and words that the sentence holds. RUN, STUDY and DEAD are directories, MINE is a file of the user's.
WORDS = {
    "": "begin with evenflow train TASK",
    "trian cart-pole": "(perhaps train)",
    "cart-pole": "evenflow train cart-pole trains it",
    "--epochs 2 train cart-pole": "a command among train, view",
    "train": "a task after evenflow train",
    "train cart-pool": "(perhaps cart-pole)",
    "train --epochs 2 cart-pool": "(perhaps cart-pole)",
    "train --epochs 2": "a task after evenflow train",
    "train RUN": "evenflow train --resume RUN continues it",
    "train cart-pole lqr": "only options after evenflow train cart-pole, got 'lqr' too",
    "train cart-pole --epoch 2": "(perhaps --epochs)",
    "train cart-pole --evaders 3": "an option of guidance, swarm",
    "train -x cart-pole": "got -x",
    "train --epochs cart-pole": "a value after --epochs",
    "train cart-pole --out": "a value after --out",
    "train cart-pole --out ''": "a path for --out",
    "train cart-pole --out ~nobody-of-that-name/x": "home directory",
    "train cart-pole --gradients": "at least one value after --gradients",
    "train cart-pole --gradients R --gradients C": "--gradients once with all its values",
    "train cart-pole --gradients R full": "each gradient once",
    "train cart-pole --gradients R,C": "Expected one gradient, got 'R,C'",
    "train cart-pole --gradients=Q": "'Q'",
    "train cart-pole --seeds 0": "1 to 10000 seeds",
    "train cart-pole --seeds 99999999999": "1 to 10000 seeds",
    "train cart-pole --seeds 1.5": "a whole number for --seeds",
    "train cart-pole --poles many": "a whole number for --poles, got 'many'",
    "train cart-pole --dt nan": "a finite number for --dt",
    "train cart-pole --learning-rates 0": "above 0",
    "train cart-pole --learning-rates -1": "above 0",
    "train cart-pole --learning-rates inf": "a finite number",
    "train cart-pole --learning-rates 1e-3 nan": "a finite number",
    "train cart-pole --learning-rates 1e-3 abc": "'abc'",
    "train cart-pole --learning-rates 1e-3 0.001": "without repetition",
    "train cart-pole --clippings foo": "none, value, norm",
    "train cart-pole --clippings norm norm": "without repetition",
    "train cart-pole --epochs 0": "epochs of at least 1",
    "train cart-pole --checkpoint-every 0": "at least 1",
    "train cart-pole --batch-size 1000": "no larger than the 256 training states",
    "train cart-pole --train-samples 3": "no larger than the 3 training states",
    "train cart-pole --shuffle=yes": "no value after --shuffle",
    "train cart-pole --backend opengl": "auto, cpu, cuda, vulkan",
    "train cart-pole --precision float16": "float32, float64",
    "train cart-pole --threads 0": "at least 1 thread",
    "train cart-pole --threads 100000": "threads on the",
    "train cart-pole --memory 1KiB": "raise memory",
    "train cart-pole --memory banana": "such as 512MiB",
    "train cart-pole --memory -1GiB": "such as 512MiB",
    "train cart-pole --out MINE": "a directory for the run, got the file",
    "train cart-pole --out MINE/run": "can be written",
    "train cart-pole --out HERE": "holds files",
    "train --resume": "a value after --resume",
    "train --resume nowhere": "a run directory",
    "train --resume MINE": "a run directory",
    "train --resume STUDY": "a run directory",
    "train --resume RUN --seeds 3": "an option of evenflow train TASK",
    "train cart-pole --resume RUN": "a run knows its task",
    "view": "RUN_OR_TASK",
    "view nowhere": "a run directory or a task among",
    "view STUDY": "a run directory",
    "view RUN@Q": "a gradient among",
    "view RUN@R,99": "R,0",
    "view RUN --gradient": "at least one value after --gradient",
    "view cart-pole --gradient --record a.gif": "at least one value after --gradient",
    "view RUN --record a.xyz": "FILE.mp4, FILE.gif or a directory",
    "view RUN --record MINE": "which exists",
    "view RUN --record MINE/a.gif": "can be written",
    "view RUN --window --record a.gif": "drop one of them",
    "view RUN --size 5": "100 to 2000",
    "view RUN --speed 0": "a speed from",
    "view RUN --seed -1": "a seed of at least 0",
    "view --compare RUN": "2 values after --compare",
    "view RUN --compare RUN@R RUN@C": "got both",
    "view RUN --poles 2": "an option of evenflow view TASK",
    "report": "RUN_OR_STUDY",
    "report nowhere": "nowhere",
    "report MINE": "MINE",
    "report RUN RUN": "only options",
    "report RUN --out r.pdf": ".html",
    "report RUN --against C": "a study with --against",
    "report STUDY --against S": "--against one of the gradients",
    "report RUN --out MINE/r.html": "can be written",
    "list extra": "got 'extra' too",
    "check --fast": "got --fast",
    "bench": "speed, scale, variants",
    "bench variant": "(perhaps variants)",
    "bench variants": "a task after evenflow bench variants",
    "bench variants cart-pole": "--out with a path",
    "bench variants cart-pole --out x --difficulties": "at least one value",
    "bench variants cart-pole --out x --difficulties 1.5": "poles as int",
    "bench variants cart-pole --out x --difficulties nan": "a finite number",
    "bench variants cart-pole --out x --difficulties 1 1": "without repetition",
    "bench variants cart-pole --out x --poles 2": "as difficulties",
    "bench variants cart-pole --out x --seeds 0": "at least 1 seed, got 0",
    "bench variants cart-pole --out x --tuning-seeds 0": "at least 1 tuning seed, got 0",
    "bench variants cart-pole --out x --trials 4": "--tune optuna with --trials 4, got none",
    "bench variants cart-pole --out x --gradients R decay(R,0.9) --against decay(R,0.8)": "--against one of the",
    "train cart-pole --out x --gradients score(0.1,1e9)": "take fewer copies than 1000000000",
    "bench variants cart-pole --out x --seeds 9999999999": "at most 1000 seeds",
    "bench variants cart-pole --out x --optimiser adamm": "an optimiser among",
    "bench variants cart-pole --out x --difficulties 1 --memory 1KiB": "raise memory",
    "bench variants cart-pole --out RUN": "holds something else",
    "bench variants cart-pole --out x --report-only": "x",
    "bench transfer RUN": "--difficulties with",
    "bench transfer RUN --difficulties": "at least one value",
    "bench transfer RUN --difficulties nan": "a finite number",
    "bench transfer RUN --difficulties inf": "a finite number",
    "bench transfer RUN --difficulties 1.5": "poles as int",
    "bench transfer RUN --difficulties 1 1": "different values",
    "bench transfer RUN --difficulties 0": "at least 1 pole",
    "bench transfer STUDY --difficulties 1": "a run directory",
    "bench outcome --out a.png": "RUN_DIRECTORY",
    "bench outcome RUN": "--out with a path",
    "bench outcome RUN --out a.xyz": ".png, .pdf, .svg or .jpg",
    "bench outcome RUN --out none": ".png, .pdf, .svg or .jpg",
    "bench outcome RUN --out MINE": ".png",
    "bench outcome RUN --out MINE/a.png": "can be written",
    "bench outcome RUN --out a.png --seed -1": "a seed of at least 0",
    "bench speed --rounds 0": "rounds of at least 1",
    "bench speed --members 0": "members of at least 1",
    "bench speed --task cart-pool": "cart-pole, cart-pendulum, guidance, quantum",
    "bench speed --out results.txt": ".json",
    "bench scale": "--out with a path",
    "bench scale --out x --systems n-body foo": "swarm-cells",
    "bench scale --out x --systems --horizons": "got neither",
    "bench scale --out x --sizes 0": "at least 32",
    "bench scale --out x --limit nan": "a finite number",
    "bench scale --out x --memory banana": "such as 512MiB",
    "bench scale --out RUN": "a scaling study to continue",
    "bench figures --out MINE": "a directory for the figures",
}


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """A directory with a run of two members, a study, a run and a study that diverged at once, and a user's file."""
    root = tmp_path_factory.mktemp("places")
    options = {"poles": 1, "horizon": 6}
    for name, rate in (("RUN", 1e-3), ("DEAD", 1e300)):
        train(
            Experiment(
                "cart-pole", options, gradients=("R", "C"), seeds=(0,), learning_rates=(rate,), epochs=2, settings=SMALL
            ),
            root / name,
        )
    for name, rate in (("STUDY", 1e-3), ("DEADSTUDY", 1e300)):
        given = {"gradients": ("R", "M"), "learning_rates": (rate,), "seed_count": 1, "epochs": 2, "settings": SMALL}
        study = Study("cart-pole", {"horizon": 6}, (1,), **given)
        run_study(study, root / name)
    (root / "MINE").write_text("mine")
    return root


@pytest.fixture
def here(places, monkeypatch):
    """The places as working directory; the machine that a command asks for by default is the session's."""
    start = evenflow.Machine.start
    monkeypatch.setattr(evenflow.Machine, "start", lambda machine: machine == evenflow.Machine() or start(machine))
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.chdir(places)
    return places


def contents(root):
    return {path.relative_to(root).as_posix(): path.stat().st_mtime_ns for path in root.rglob("*")}


def spoken(text):
    """The one sentence of a command's standard error."""
    lines = [line for line in text.splitlines() if not line.startswith("[Taichi]")]
    assert len(lines) == 1, text
    assert lines[0].startswith("evenflow: Expected ")
    assert lines[0].endswith(".")
    assert len(lines[0]) < 400
    return lines[0]


def arguments(words, root):
    found = ["" if word == "''" else word for word in words.split()]
    return [str(root) if word == "HERE" else word for word in found]


@pytest.mark.parametrize("words", WORDS, ids=lambda words: words or "nothing")
def test_a_mistake_is_told_in_a_sentence_and_writes_nothing(words, here, capsys):
    before = contents(here)
    assert evenflow.main(arguments(words, here)) == 2
    assert WORDS[words] in spoken(capsys.readouterr().err)
    assert contents(here) == before


@pytest.mark.parametrize("words", ["", "-h", "train", "train --help", "bench variants", "bench variants -h"])
def test_where_no_task_is_named_all_are_with_what_they_are(words, here, capsys):
    assert evenflow.main(words.split()) == (0 if "-h" in words else 2)
    printed = " ".join(capsys.readouterr().out.split())
    for name, kind in evenflow.TASKS.items():
        assert name in printed
        assert " ".join(kind.__doc__.split("\n\n")[0].split()) in printed
    if words.startswith(("train", "bench")):
        assert "A task is a system, what it is to do, and where it starts." in printed


def test_the_version_is_printed(capsys):
    assert evenflow.main(["--version"]) == 0
    assert capsys.readouterr().out == f"evenflow {evenflow.__version__}\n"


@pytest.mark.parametrize(
    "words",
    [
        "--epochs 2 cart-pole --horizon 6",
        "--gradients R C cart-pole --epochs=2 --horizon 6",
        "--learning-rates 1e-3 2e-3 cart-pole --gradients=R --epochs 2 --horizon 6",
        "--out cart-pole cart-pole --epochs 2 --horizon 6",
        "--horizon 6 --no-shuffle cart-pole --epochs 9 --epochs 2",
        "--train_samples 16 cart-pole --epochs 2 --horizon 6",
    ],
)
def test_options_may_stand_before_the_task(words, here, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    seen = []
    monkeypatch.setattr(evenflow.Train, "run", lambda command: seen.append(command))
    assert evenflow.main(["train", *words.split()]) == 0
    (command,) = seen
    assert isinstance(command.options, evenflow.TASKS["cart-pole"])
    assert (command.comparison.epochs, vars(command.options)["horizon"]) == (2, 6)
    assert (str(command.out) == "cart-pole") == ("--out" in words)
    assert (command.comparison.gradients == ("R", "C")) == ("--gradients=R" not in words)
    assert len(command.comparison.learning_rates) == (2 if "--learning-rates" in words else 1)


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (evenflow.View, "view --gradient R M --record a.gif RUN --seed -0"),
        (evenflow.ViewTask, "view --record a.gif cart-pole"),
        (evenflow.Resume, "train --epochs 4 --resume RUN"),
        (evenflow.Variants, "bench variants --out x --difficulties 1 2 cart-pole"),
        (evenflow.ReportPage, "report --out r.html RUN"),
    ],
)
def test_options_may_stand_before_whatever_they_are_of(command, words, monkeypatch):
    seen = []
    monkeypatch.setattr(command, "run", lambda command: seen.append(command))
    # The words of a list end at an option: --gradient R M RUN would be three gradients.
    assert evenflow.main(words.split()) == 0
    assert len(seen) == 1


def test_a_tilde_is_the_home_directory_in_every_option(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    seen = []
    for kind in (evenflow.Train, evenflow.View, evenflow.ReportPage, evenflow.Resume):
        monkeypatch.setattr(kind, "run", lambda command: seen.append(command))
    for words in ("train cart-pole --out ~/a", "train cart-pole --out=~/a", "view ~/a@C,1 --record ~/a.gif",
                  "view --compare ~/a ~/b", "report ~/a --out ~/r.html", "train --resume ~/a"):  # fmt: skip
        assert evenflow.main(words.split()) == 0
    new, joined, watched, compared, page, resumed = seen
    assert new.out == joined.out == resumed.resume == page.run_or_study == tmp_path / "a"
    assert watched.run_or_task == f"{tmp_path}/a@C,1"
    assert watched.settings.record == tmp_path / "a.gif"
    assert compared.compare == (f"{tmp_path}/a", f"{tmp_path}/b")
    assert page.out == tmp_path / "r.html"


DEAD = {
    "train cart-pole --horizon 6 --batch-size 4 --train-samples 4 --test-samples 4 --epochs 1 --learning-rates 1e300 "
    "--seeds 1 --out OUT": "losses.png",
    "train --resume DEAD --epochs 3": "",
    "report DEAD --out OUT.html": ".html",
    "report DEADSTUDY --out OUT.html": ".html",
    "bench outcome DEAD --out OUT.png": ".png",
    "bench outcome DEAD --out OUT.PDF": ".PDF",
    "bench transfer DEAD --difficulties 1": "",
    "view DEAD --gradient R M --record OUT.gif --size 100 --speed 16": ".gif",
}


@pytest.mark.parametrize("words", DEAD)
@pytest.mark.filterwarnings("error")
def test_a_run_in_which_all_diverged_has_every_picture_and_table(words, here, capsys, tmp_path):
    shutil.copytree(here / "DEAD", tmp_path / "DEAD")
    os.chdir(tmp_path)
    command = [word.replace("DEADSTUDY", str(here / "DEADSTUDY")).replace("OUT", str(tmp_path / "new")) for word in
               words.split()]  # fmt: skip
    assert evenflow.main(command) == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    if DEAD[words].startswith("."):
        assert (tmp_path / f"new{DEAD[words]}").stat().st_size > 1000
    else:
        assert "diverged" in printed.out


@pytest.mark.parametrize("name", ["film.gif", "film.mp4", "pictures", "outcome.png", "page.html"])
def test_a_full_disk_is_told_and_leaves_nothing(name, here, capsys, tmp_path):
    resource = pytest.importorskip("resource")
    out = str(tmp_path / name)
    command = {"out": ["bench", "outcome", "RUN", "--out", out], "pag": ["report", "RUN", "--out", out]}.get(
        name[:3], ["view", "RUN", "--record", out, "--size", "200"]
    )
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (512, hard))  # no file may grow further, as where a disk is full
    try:
        status = evenflow.main(command)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert status == 2
    spoken(capsys.readouterr().err)
    assert list(tmp_path.iterdir()) == []


def test_a_closed_pipe_brings_no_traceback(tmp_path):
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "w") as out, (tmp_path / "errors").open("w") as errors:
        child = Child([sys.executable, "-m", "evenflow", "list"], out, errors, cwd=tmp_path)
    assert child.wait(HANGS) == 1
    assert (tmp_path / "errors").read_text() == ""


def test_a_terminal_without_greek_shows_the_rest(monkeypatch):
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding="ascii"))
    assert evenflow.main(["list"]) == 0
    sys.stdout.flush()
    text = written.getvalue().decode("ascii")
    assert "cart-pole" in text
    assert "?" in text
