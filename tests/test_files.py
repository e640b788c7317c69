"""Files that are whole or not there, and never in the place of a user's."""

import os

import pytest

from training.errors import RunError
from training.files import free_beside, is_ours, remove_parts, write_ours, write_whole

pytestmark = pytest.mark.float64


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def full(*_, **__):
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize("call", ["os.fsync", "os.replace"])
def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(call, tmp_path, monkeypatch):
    write_whole(tmp_path / "a.txt", "old")
    monkeypatch.setattr(call, full)
    with pytest.raises(OSError, match="No space left"):
        write_whole(tmp_path / "a.txt", "new")
    with pytest.raises(RunError, match=r"^Expected a file that can be written, got .*: No space left on device\.$"):
        write_ours(tmp_path / "b.txt", "new")
    assert names(tmp_path) == ["a.txt"]
    assert (tmp_path / "a.txt").read_text() == "old"


def test_files_have_the_usual_permissions(tmp_path):
    (tmp_path / "usual").write_text("")
    write_whole(tmp_path / "ours", "")
    assert (tmp_path / "ours").stat().st_mode == (tmp_path / "usual").stat().st_mode


def test_a_result_replaces_an_earlier_one_of_ours_alone(tmp_path):
    target = tmp_path / "below" / "losses.png"
    assert write_ours(target, b"one") == target
    assert is_ours(target)
    assert write_ours(target, b"two") == target
    assert target.read_bytes() == b"two"

    target.write_bytes(b"two, with my notes")  # ours no more
    assert not is_ours(target)
    beside = target.with_name("losses-2.png")
    assert [write_ours(target, text) for text in (b"three", b"four")] == [beside, beside]
    assert target.read_bytes() == b"two, with my notes"
    assert beside.read_bytes() == b"four"


def test_what_was_there_before_is_the_users_whatever_it_is(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "a.md").symlink_to(tmp_path / "notes.txt")
    (tmp_path / "b.md").symlink_to(tmp_path / "nowhere")
    (tmp_path / "c.md").mkdir()
    for name in "abc":
        assert write_ours(tmp_path / f"{name}.md", "ours") == tmp_path / f"{name}-2.md"
    assert (tmp_path / "notes.txt").read_text() == "mine"
    assert not (tmp_path / "nowhere").exists()


@pytest.mark.parametrize("text", ["", "[1]", "{", '{"a.md": 7}', "\x00"])
def test_a_memory_that_is_damaged_knows_nothing(text, tmp_path):
    write_ours(tmp_path / "a.md", "ours")
    (tmp_path / ".written.json").write_text(text)
    assert not is_ours(tmp_path / "a.md")
    assert write_ours(tmp_path / "a.md", "new") == tmp_path / "a-2.md"


def test_free_names_count_up_from_two(tmp_path):
    assert free_beside(tmp_path / "a.gif").name == "a.gif"
    for name in ("a.gif", "a-2.gif"):
        (tmp_path / name).touch()
    assert free_beside(tmp_path / "a.gif").name == "a-3.gif"


def test_only_what_a_kill_leaves_is_removed(tmp_path, monkeypatch):
    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", full)
        patched.setattr("pathlib.Path.unlink", lambda *_, **__: None)  # killed before it could clean up
        with pytest.raises(OSError, match="No space"):
            write_whole(tmp_path / "epoch-000001.safetensors", "half")
    for name in (".epoch-notes", ".mine.part", "epoch-000000.safetensors"):
        (tmp_path / name).touch()
    assert len(names(tmp_path)) == 4
    remove_parts(tmp_path, "epoch-*")
    assert names(tmp_path) == [".epoch-notes", ".mine.part", "epoch-000000.safetensors"]
