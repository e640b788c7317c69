"""A command line as a program: what it says on standard error, and its exit status."""

import io
import os
import sys
import warnings
from collections.abc import Sequence
from contextlib import suppress

from engine import EvenflowError
from policies import PolicyError
from training.dispatch import CommandLine, flush
from training.plugins import blamed
from training.ranks import check_alone, says
from training.stopping import Stopped


def run_program(line: CommandLine, arguments: Sequence[str]) -> int:
    """Run the command that these words call; a user's mistake ends in one sentence. Returns the exit status."""
    warnings.showwarning = _warn
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal that has no θ still shows the rest
    try:
        with blamed():
            command = line.parse(list(arguments))
            if not getattr(command, "for_ranks", False):
                check_alone(arguments[0])
            command.run()
            flush()
    except (EvenflowError, PolicyError) as error:
        _end(error)
        return 2
    except KeyboardInterrupt as stop:
        with suppress(OSError):  # who ended it may have closed this too
            _end(f"{stop if isinstance(stop, Stopped) else 'stopped'}.")
        return 128 + (stop.number if isinstance(stop, Stopped) else 2)
    except BrokenPipeError:  # the reader of a pipe has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:  # whatever a file system can refuse: a full disk, a name too long, no permission
        where = f" at {error.filename}" if error.filename is not None else ""
        _end(f"Expected files that can be read and written, got{where}: {error.strerror}.")
        return 2
    except SystemExit as end:  # after help
        return end.code if isinstance(end.code, int) else 0
    return 0


def _warn(message: object, *where: object) -> None:
    """A warning, without the place in the code that it comes from."""
    if says(str(message)):
        _print(message)


def _end(message: object) -> None:
    """Why the program ends, unless another rank has said why, of which this comes."""
    if says("end"):
        _print(message)


def _print(message: object) -> None:
    print(f"evenflow: {message}", file=sys.stderr)
