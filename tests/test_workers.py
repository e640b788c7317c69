"""Who trains the packs of a study: processes and Ray have the numbers of one process, whoever dies or stops."""

import json
import os
import re
import signal
import sys
import threading
import time
from contextlib import contextmanager
from dataclasses import replace
from types import SimpleNamespace

import pytest
from children import HANGS, ROOT, Child

import evenflow
from benchmarks.studies import packs as packs_module
from benchmarks.studies import processes
from benchmarks.studies.on_ray import OnRay, on_a_node
from benchmarks.studies.orders import TRIES, Order, fulfil
from benchmarks.studies.packs import run_study
from benchmarks.studies.processes import Processes
from benchmarks.studies.study import Study
from benchmarks.studies.workers import in_order, lines_of
from engine import SettingError, current
from training import TrainingSettings
from training.errors import RunError
from training.lock import wait_for_writer
from training.stopping import Stopped, Stopping
from training.variant import Variant

pytestmark = pytest.mark.float64

EPOCHS = 40
SETTINGS = TrainingSettings(train_samples=16, test_samples=8)
STUDY = Study(
    "cart-pole", {"horizon": 5}, (1, 2), gradients=("R",), seed_count=1, epochs=EPOCHS, settings=SETTINGS
)  # fmt: skip


def results(out):
    """The lines of results.jsonl in their order, without how long they took."""
    lines = [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name != "seconds"} for line in lines]


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    out = tmp_path_factory.mktemp("alone") / "out"
    run_study(STUDY, out)
    return results(out)


def epochs(run):
    file = run / "metrics.jsonl"
    return file.read_text().count("\n") if file.exists() else 0


def writer(run):
    """The process that trains in a run directory, as its lock says; None where nobody does."""
    try:
        found = re.match(r"process (\d+) on ", (run / ".lock").read_text())
    except OSError:
        return None
    return int(found[1]) if found else None


@contextmanager
def once(wanted, act):
    """Act in a thread as soon as `wanted` returns something, which is handed on; yields what was handed on."""
    done, over = [], threading.Event()

    def look():
        while not over.is_set() and not done:
            found = wanted()
            if found:
                act(found)
                done.append(found)
            over.wait(0.002)

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield done
    finally:
        over.set()
        thread.join()


def stop_and_go_on(workers, out):
    """Stop a study in the middle of both packs, kill a worker as it goes on, and return what was told."""
    runs = [out / f"poles-{poles}" / "report-0" for poles in (1, 2)]
    stopping = Stopping()

    def begun():
        return sum(map(epochs, runs)) >= 2

    stopped = pytest.raises(Stopped, match="stopped by SIGTERM; give the same command again")
    with once(begun, lambda found: setattr(stopping, "requested", signal.SIGTERM)), stopped:
        run_study(STUDY, out, stopping=stopping, workers=workers)
    before = [epochs(run) for run in runs]
    assert 2 <= sum(before) < 2 * EPOCHS
    assert [writer(run) for run in runs] == [None, None]
    victim = min(range(2), key=lambda number: before[number])

    def further():
        return writer(runs[victim]) if epochs(runs[victim]) > before[victim] else None

    with once(further, lambda found: os.kill(found, signal.SIGKILL)) as killed:
        run_study(STUDY, out, workers=workers)
    assert len(killed) == 1


def test_processes_have_the_numbers_of_one_process_stopped_and_killed(alone, tmp_path, monkeypatch):
    assert Processes(2).threads == max(1, current().threads // 2)
    monkeypatch.setattr(Processes, "threads", current().threads)
    told = []
    stop_and_go_on(Processes(2, told.append), tmp_path / "out")
    assert results(tmp_path / "out") == alone
    assert sum(re.fullmatch(r"poles-./report-0: its process ended by SIGKILL; another goes on", one) is not None
               for one in told) == 1  # fmt: skip
    assert sum(re.fullmatch(r"poles-./report-0: done in \d+ s; . packs? left", one) is not None for one in told) == 2
    assert told[-1].endswith("0 packs left")


COMMAND = """
import sys
sys.path.insert(0, {tests!r})
import engine
engine.init("cpu", "float64", {threads})
from pathlib import Path
from benchmarks.studies.packs import run_study
from benchmarks.studies.processes import Processes
from test_workers import STUDY
run_study(STUDY, Path({out!r}), workers=Processes(1))
"""


def test_processes_end_with_the_command_that_was_killed_and_one_process_goes_on(alone, tmp_path):
    out = tmp_path / "out"
    source = COMMAND.format(tests=str(ROOT / "tests"), threads=current().threads, out=str(out))
    run, deadline = out / "poles-1" / "report-0", time.monotonic() + HANGS
    with Child([sys.executable, "-c", source]) as command:
        while epochs(run) < 2 and command.poll() is None and time.monotonic() < deadline:
            time.sleep(0.002)
        worker = writer(run)
        command.kill()
    assert worker not in (None, command.pid)
    wait_for_writer(run, HANGS)
    assert 2 <= epochs(run) < EPOCHS
    run_study(STUDY, out)
    assert results(out) == alone


def test_workers_that_die_again_and_again_end_the_study_in_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setattr(processes, "sys", SimpleNamespace(executable="false"))
    told = []
    with pytest.raises(RunError, match=rf"^Expected poles-1/report-0 to be trained, got {TRIES} processes .*\.$"):
        run_study(STUDY, tmp_path / "out", workers=Processes(1, told.append))
    assert len(told) == TRIES - 1


def order(tmp_path):
    (pack,) = packs_module._packs(STUDY, tmp_path, "report", 1, (0,), ())
    return Order.of(pack, current().threads)


def test_what_a_worker_cannot_do_is_its_sentence(tmp_path):
    given = order(tmp_path)
    answer = fulfil(replace(given, runtime=given.runtime | {"precision": "float32"}), Stopping())
    with pytest.raises(RunError, match="Expected one backend and precision per process"):
        lines_of(answer)
    with pytest.raises(RunError, match="to be shared by every node"):
        on_a_node(given, tmp_path / ".shared", "token")
    assert not given.pack.path.exists()


def test_lines_come_in_the_order_of_the_packs():
    lines = {number: [{"member": number}] for number in range(4)}
    assert list(in_order((number, lines[number]) for number in (2, 0, 1, 3))) == list(lines.values())


ONE, OTHER = Variant("R"), Variant("M")


@pytest.mark.parametrize(
    ("most", "begun", "numbers"),
    [
        (3, {}, {0: (5, 6), 2: (7, 8, 9)}),
        (2, {0: (5,)}, {0: (5,), 1: (6, 7), 3: (8, 9)}),
        (1, {2: (7, 8, 9)}, {0: (5,), 1: (6,), 2: (7, 8, 9)}),
        (3, {0: (5, 6, 7)}, {0: (5, 6, 7), 3: (8, 9)}),
        (9, {4: (9,)}, {0: (5, 6, 7, 8), 4: (9,)}),
        (9, {0: (4, 5)}, None),
        (9, {0: (5, 6), 1: (6, 7)}, None),
    ],
)
def test_packs_that_were_begun_keep_their_seeds(most, begun, numbers):
    blocks = {number: (seeds, (ONE,)) for number, seeds in begun.items()}
    found = packs_module._runs((5, 6, 7, 8, 9), (ONE,), most, False, blocks)
    assert found == (numbers and {number: (seeds, (ONE,)) for number, seeds in numbers.items()})
    assert found is None or list(found) == sorted(found)


def test_what_a_study_has_more_of_is_trained_in_packs_of_its_own():
    def runs(by_seed, begun, *trained):
        return packs_module._runs((0, 1, 2), (ONE, OTHER), 4, by_seed, begun, set(trained))

    begun = {0: ((0, 1), (ONE,))}
    assert runs(False, begun) == {0: ((0, 1), (ONE,)), 2: ((2,), (ONE, OTHER)), 3: ((0, 1), (OTHER,))}
    assert runs(True, begun) == runs(False, begun)
    assert runs(False, {}, (ONE, 0), (OTHER, 0), (ONE, 1)) == {1: ((1,), (OTHER,)), 2: ((2,), (ONE, OTHER))}
    assert packs_module._runs((0,), (ONE,), 4, False, {0: ((0,), (ONE, OTHER))}) is None


def test_a_study_begun_in_other_packs_goes_on_in_them(tmp_path, monkeypatch):
    study = replace(STUDY, difficulties=(1,), seed_count=3, epochs=2)
    run_study(study, tmp_path / "whole")
    monkeypatch.setattr(packs_module, "_MEMBERS", 1)
    with pytest.raises(KeyboardInterrupt):
        run_study(study, tmp_path / "out", lambda pack, left: None if left == 3 else interrupt())
    monkeypatch.setattr(packs_module, "_MEMBERS", 48)
    run_study(study, tmp_path / "out")
    found, whole = (
        {line["seed"]: (line["train_loss"], line["test_loss"]) for line in results(tmp_path / name)}
        for name in ("out", "whole")
    )
    assert found.keys() == whole.keys()
    for seed, losses in whole.items():
        assert found[seed][1] == pytest.approx(losses[1], rel=1e-12)
    assert sorted(path.name for path in (tmp_path / "out" / "poles-1").iterdir()) == ["report-0", "report-1"]


def interrupt():
    raise KeyboardInterrupt


@pytest.fixture(scope="module")
def cluster():
    """Two nodes of one core each, on this machine."""
    pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    node = {"num_cpus": 1, "object_store_memory": 80 * 2**20, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=node)
    cluster.add_node(num_cpus=1, object_store_memory=80 * 2**20)
    yield cluster.address
    cluster.shutdown()


def test_two_nodes_of_ray_have_the_numbers_of_one_process_stopped_and_killed(alone, cluster, tmp_path, monkeypatch):
    monkeypatch.setattr(OnRay, "_claim", lambda self, pack: {"num_cpus": 1, "memory": max(1, pack.needed)})
    told, before = [], signal.getsignal(signal.SIGTERM)
    stop_and_go_on(OnRay(cluster, current().threads, told.append), tmp_path / "out")
    assert results(tmp_path / "out") == alone
    assert [re.sub(r"\d+ s|poles-.", "_", one) for one in told[-2:]] == [
        "_/report-0: done in _; 1 pack left",
        "_/report-0: done in _; 0 packs left",
    ]
    assert not (tmp_path / "out" / ".shared").exists()
    assert signal.getsignal(signal.SIGTERM) == before


def test_a_cluster_that_does_not_fit_is_one_sentence(cluster, tmp_path, monkeypatch):
    with pytest.raises(RunError, match=r"^Expected a node with 9 CPUs and .* got 2 with at most 1 and .*\.$"):
        run_study(STUDY, tmp_path / "out", workers=OnRay(cluster, 9))
    monkeypatch.setattr("ray.__version__", "1.0.0")
    with pytest.raises(RunError, match=r"^Expected a cluster of Ray 1.0.0 at .*Version mismatch.*\.$"):
        run_study(STUDY, tmp_path / "out", workers=OnRay(cluster))


def bench(*words):
    small = ("--horizon", "5", "--difficulties", "1", "--seeds", "1", "--epochs", "1", "--out", "out")
    return evenflow.main(["bench", "variants", "cart-pole", "--precision", "float64", *small, *words])


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--jobs", "0"], "Expected at least 1 job, got 0."),
        (["--jobs", "two"], "Expected a whole number for --jobs, got 'two'."),
        (["--jobs", "2", "--ray"], "Expected --jobs or --ray, got both; Ray trains as many packs as it has room for."),
        (["--jobs", "2", "--hours", "1"],
         "Expected --hours, which are timed in one process, without --jobs and --ray, got both."),
        (["--ray", "here:1", "there:2"], "Expected one address after --ray, or none, got here:1 there:2."),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)  # fmt: skip
def test_mistakes_end_in_one_sentence(words, sentence, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert bench(*words) == 2
    assert capsys.readouterr().err == f"evenflow: {sentence}\n"
    assert list(tmp_path.iterdir()) == []


def test_ray_that_is_not_there_is_one_sentence(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "ray", None)
    assert bench("--ray") == 2
    assert "install it with pip install 'evenflow[ray]'." in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
    monkeypatch.undo()
    pytest.importorskip("ray")
    with pytest.raises(SettingError, match=r"^Expected the address of a cluster of Ray as HOST:PORT, .* got 'here'\.$"):
        OnRay("here")
    with pytest.raises(RunError, match=r"^Expected a cluster of Ray at 127.0.0.1:1, got Connection refused; .*\.$"):
        run_study(STUDY, tmp_path / "out", workers=OnRay("127.0.0.1:1"))
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["study.yaml"]
