"""One writer at a time: for a run, for a study, and never for readers."""

import threading
from dataclasses import replace

import pytest
from filelock import UnixFileLock
from test_run import EXPERIMENT, contents

import evenflow
from benchmarks.studies.directory import StudyDirectory
from benchmarks.studies.packs import run_study
from benchmarks.studies.study import Study
from training import RunDirectory, load_controller, resume, train
from training.errors import RunError
from training.lock import LOCK, only_writer

pytestmark = pytest.mark.float64


def refused(call):
    with pytest.raises(RunError) as error:
        call()
    sentence = str(error.value)
    assert sentence.startswith("Expected to be the only one who writes the ")
    assert "another writer, process " in sentence
    return sentence


def test_a_second_writer_is_refused_in_this_thread_and_in_others(tmp_path):
    seen = []
    with only_writer(tmp_path):
        refused(lambda: only_writer(tmp_path).__enter__())
        other = threading.Thread(target=lambda: seen.append(refused(lambda: only_writer(tmp_path).__enter__())))
        other.start()
        other.join()
    assert len(seen) == 1
    assert list(tmp_path.iterdir()) == []
    with only_writer(tmp_path):
        pass


def test_a_lock_file_that_a_dead_process_left_binds_nobody(tmp_path):
    (tmp_path / LOCK).write_text("process 1 on elsewhere\n")
    with only_writer(tmp_path):
        pass
    (tmp_path / LOCK).write_text("process 1 on elsewhere\n")
    assert RunDirectory.create(tmp_path, EXPERIMENT.to_config()).checkpoints() == []


def test_a_run_that_was_hardly_begun_can_be_begun_again(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    RunDirectory.create(tmp_path, EXPERIMENT.to_config())
    assert RunDirectory.open(tmp_path).metrics() == []


def test_where_there_are_no_locks_a_warning_says_so(tmp_path, monkeypatch):
    def no_locks(lock, *_, **__):
        raise OSError(37, "No locks available")

    monkeypatch.setattr(UnixFileLock, "acquire", no_locks)
    with pytest.warns(UserWarning, match="without locks"), only_writer(tmp_path):
        pass


@pytest.mark.parametrize("number", [13, 30])
def test_a_directory_that_cannot_be_written_is_named(number, tmp_path, monkeypatch):
    def denied(lock, *_, **__):
        raise OSError(number, "denied")

    monkeypatch.setattr(UnixFileLock, "acquire", denied)
    with (
        pytest.raises(RunError, match=r"^Expected a directory that can be written, got .*: denied\.$"),
        only_writer(tmp_path),
    ):
        pass


def test_no_lock_makes_a_directory(tmp_path):
    with pytest.raises(RunError, match="which is none"), only_writer(tmp_path / "nowhere"):
        pass
    assert list(tmp_path.iterdir()) == []


def test_while_one_trains_others_read_and_nobody_else_writes(tmp_path, monkeypatch, capsys):
    path, seen = tmp_path / "run", []

    def look(trainer, record):
        if record.epoch != 2:
            return
        before = contents(path)
        seen.append(refused(lambda: resume(path)))
        seen.append(refused(lambda: RunDirectory.open(path).append(record, 1.0, {})))
        seen.append(refused(lambda: RunDirectory.open(path).save(trainer)))
        seen.append(refused(lambda: RunDirectory.open(path).rewind(1)))
        monkeypatch.setattr(evenflow.Machine, "start", lambda machine: None)
        assert evenflow.main(["train", "--resume", str(path)]) == 2
        with pytest.raises(RunError, match="which holds files"):
            train(EXPERIMENT, path)
        assert len(RunDirectory.open(path).metrics()) == 2
        assert load_controller(path).members == 1
        assert contents(path) == before

    train(replace(EXPERIMENT, epochs=3, checkpoint_every=1), path, look)
    assert len(seen) == 4
    assert "another writer" in capsys.readouterr().err
    assert LOCK not in {file.name for file in path.rglob("*")}
    assert len(RunDirectory.open(path).metrics()) == 3


def test_a_study_has_one_writer(tmp_path):
    study, out, seen = Study(EXPERIMENT.task, {"horizon": 5}, (1,), gradients=("R",), seed_count=1, epochs=2,
                             settings=EXPERIMENT.settings), tmp_path / "study", []  # fmt: skip

    def look(pack, left):
        seen.append(refused(lambda: run_study(study, out)))
        assert StudyDirectory(out).lines == []

    run_study(study, out, look)
    assert len(seen) == 1
    assert "writes the study in" in seen[0]
    assert len(StudyDirectory(out).lines) == 1
