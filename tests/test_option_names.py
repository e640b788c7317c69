"""Options of tasks beside those of the commands that take them."""

from dataclasses import dataclass

import pytest

import evenflow
from training.tasks import TASKS, register_task

COMMANDS = evenflow._LINE.with_task


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_every_command_takes_every_task(command, task, capsys):
    assert evenflow.main([*command, task, "--help"]) == 0
    assert f"usage: evenflow {' '.join(command)} {task}" in " ".join(capsys.readouterr().out.split())


@dataclass(frozen=True)
class Crowded:
    """A task of one who did not know the command's options."""

    seeds: int = 3
    """How many."""
    size: int = 3
    """How large."""

    def build(self):
        return evenflow.build_task("cart-pole")


@pytest.mark.parametrize(
    ("words", "flag"), [(["train"], "--seeds"), (["view"], "--size"), (["bench", "variants"], "--seeds")]
)
def test_an_option_that_a_command_has_too_is_told(words, flag, monkeypatch, capsys):
    monkeypatch.setattr(TASKS, "_things", dict(TASKS._things))
    register_task("crowded", Crowded)
    assert evenflow.main([*words, "crowded"]) == 2
    told = capsys.readouterr().err
    assert (
        f"Expected options of Crowded that evenflow {' '.join(words)} crowded does not have by itself, got --s" in told
    )
    assert flag in told
    assert "Traceback" not in told
