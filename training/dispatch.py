"""From the words of a command line to the command that they call."""

import io
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stderr
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NoReturn, get_origin

import tyro

from engine import SettingError
from engine.checks import perhaps
from training.arguments import HELP, Option, check, options_of, read
from training.doors import load, load_all_installed
from training.overview import first_paragraph, print_overview, task_summaries
from training.plugins import is_of_plugin
from training.run import resuming
from training.tasks import TASKS

PLUGIN = "--plugin"
_PLUGIN = {PLUGIN: Option(PLUGIN, Path)}  # taken out of the line before; here for what mistakes are told of it
_TYRO = (tyro.conf.DisallowNone,)
_ABOUT_PLUGINS = f"{PLUGIN} FILE_OR_MODULE, as often as needed, brings tasks, gradients, systems and drawings."


@dataclass(frozen=True)
class CommandLine:
    """Commands by their words, such as ("bench", "speed").

    Attributes:
        name, about, version: of the program.
        plain: dataclasses of options, with a `run()`.
        with_task: generic ones, over the options of the task that their first word names.
        groups: first words that a second one has to follow, with those that may.
    """

    name: str
    about: str
    version: str
    plain: Mapping[tuple[str, ...], Any]
    with_task: Mapping[tuple[str, ...], Any]
    groups: Mapping[str, Mapping[str, Any]]

    def parse(self, arguments: Sequence[str]) -> Any:
        """The command that these words call, with its options; plug-ins that they name are loaded."""
        arguments, plugins = _without_plugins(arguments)
        load_all_installed()
        for plugin in plugins:
            load(plugin)
        name = self._command(arguments)
        plain, with_task, prog = self.plain.get(name), self.with_task.get(name), " ".join((self.name, *name))
        kinds = [kind for kind in (plain, with_task) if kind is not None]
        tasks = TASKS if with_task else {}
        line = read(arguments[len(name) :], options_of(*kinds, *tasks.values()), tasks.__contains__)
        given, elsewhere = line.given, {}
        if with_task is not None and line.words and line.words[0] in TASKS:
            if "--resume" in given:
                raise SettingError(f"Expected {prog} TASK or {prog} --resume RUN, got both; a run knows its task.")
            task = line.words.pop(0)
            kind, options, prog = with_task[TASKS[task]], options_of(with_task, TASKS[task]), f"{prog} {task}"
            _check_names(prog, with_task, TASKS[task])
            elsewhere = {other: options_of(options) for other, options in TASKS.items()}
        elif plain is None or (name == ("train",) and "--resume" not in given):
            _without_task(prog, line.words, HELP in given)
        else:
            kind, options = plain, options_of(plain)
            elsewhere = {f"{prog} TASK": options_of(with_task, *TASKS.values())} if with_task else {}
        if HELP not in given:
            check(line, options | _PLUGIN, prog, elsewhere)
        words = [HELP] if HELP in given else line.arguments()
        described = (
            f"{((get_origin(kind) or kind).__doc__ or '').strip()}\n\n{_ABOUT_PLUGINS}" if HELP in given else None
        )
        return _made(partial(tyro.cli, kind, prog=prog, description=described, args=words, config=_TYRO))

    def _command(self, arguments: Sequence[str]) -> tuple[str, ...]:
        """The words of the command; help, the version or SettingError where they are no whole command."""
        first, second = (*arguments, "", "")[:2]
        commands = list(dict.fromkeys(words[0] for words in (*self.with_task, *self.plain)))
        if first == "--version":
            print(f"{self.name} {self.version}")
            raise SystemExit(0)
        if first in ("", "-h", HELP):
            about = f"{self.about} {_ABOUT_PLUGINS}"
            shown = {name: self._summary(name) for name in commands}
            print_overview(f"{self.name} COMMAND", about, Commands=shown, Tasks=task_summaries())
            known = ", ".join(commands)
            _end(first != "", f"Expected a command among {known}, got none; begin with {self.name} train TASK.")
        if first not in commands:
            trains = f", which is a task; {self.name} train {first} trains it"
            note = trains if first in TASKS else perhaps(first, commands)
            raise SettingError(f"Expected a command among {', '.join(commands)}, got {first!r}{note}.")
        return (first, self._member(first, second)) if first in self.groups else (first,)

    def _member(self, group: str, name: str) -> str:
        """The word after that of a group; help or SettingError where there is none."""
        known = {member: first_paragraph(kind) for member, kind in self.groups[group].items()}
        wanted = f"Expected a benchmark among {', '.join(known)} after {self.name} {group}"
        if name in ("", "-h", HELP):
            print_overview(f"{self.name} {group} BENCHMARK", "", Benchmarks=known)
            _end(name != "", f"{wanted}, got none.")
        if name not in known:
            raise SettingError(f"{wanted}, got {name!r}{perhaps(name, known)}.")
        return name

    def _summary(self, name: str) -> str:
        if name in self.groups:
            return f"Benchmarks: {', '.join(self.groups[name])}."
        return first_paragraph(self.with_task[(name,)] if (name,) not in self.plain else self.plain[(name,)])


def _check_names(prog: str, command: Any, task: Any) -> None:
    """SettingError where a task has an option that the command has, too."""
    both = options_of(command).keys() & options_of(task).keys()
    if both:
        flag = min(both)
        raise SettingError(
            f"Expected options of {task.__name__} that {prog} does not have by itself, got {flag}; name that field "
            "otherwise, or its flag by tyro.conf.arg(name=...)."
        )


def _made(make: Callable[[], Any]) -> Any:
    """What tyro makes of the words; a ValueError of somebody's own options as it was raised, not as tyro prints it."""
    printed = io.StringIO()
    try:
        with redirect_stderr(printed):
            return make()
    except SystemExit as end:
        cause: BaseException | None = end
        while cause is not None:
            if isinstance(cause, ValueError) and is_of_plugin(cause):
                raise cause from None
            cause = cause.__context__
        sys.stderr.write(printed.getvalue())
        raise


def _without_plugins(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """(the other words, plug-ins to load) of a command line."""
    words, plugins, waiting = [], [], list(arguments)
    while waiting:
        word = waiting.pop(0)
        flag, equals, value = word.partition("=")
        if flag != PLUGIN:
            words.append(word)
            continue
        if not equals:
            value = waiting.pop(0) if waiting and not waiting[0].startswith("-") else ""
        if not value.strip():
            raise SettingError(f"Expected a Python file or an installed module after {PLUGIN}, got none.")
        plugins.append(value)
    return words, plugins


def _without_task(prog: str, words: Sequence[str], wants_help: bool) -> NoReturn:
    """What to say where a task is due and none is there."""
    if words:
        is_run = (Path(words[0]) / "config.yaml").is_file()
        note = f", a run; {resuming(words[0])} continues it" if is_run else perhaps(words[0], TASKS)
        raise SettingError(f"Expected a task among {', '.join(TASKS)} after {prog}, got {words[0]!r}{note}.")
    continuing = "" if prog != "evenflow train" else f" {prog} --resume RUN continues a run."
    about = (
        f"A task is a system, what it is to do, and where it starts. {prog} TASK {HELP} shows its options.{continuing}"
    )
    print_overview(f"{prog} TASK [OPTIONS]", about, Tasks=task_summaries())
    _end(wants_help, f"Expected a task after {prog}, as in {prog} cart-pole, got none.")


def _end(wanted: bool, message: str) -> NoReturn:
    """After help: success where it was wanted, else SettingError."""
    flush()
    if wanted:
        raise SystemExit(0)
    raise SettingError(message)


def flush() -> None:
    """Have all that was printed written, or say here that it cannot be."""
    if sys.stdout is not None:  # it may have been closed before we began
        sys.stdout.flush()
