"""Python processes of tests, forked from one that has imported already what takes seconds to import.

What comes before that (the environment at the start, modules that stand in the way or are missing) is tested in
processes of `subprocess`, which are as users' are.
"""

import atexit
import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import tempfile
from multiprocessing import forkserver, reduction
from pathlib import Path

HANGS = 300
"""Seconds after which a process that a test waits for is taken to hang; how busy the machine is decides nothing."""

ROOT = Path(__file__).resolve().parent.parent
_FORKING = multiprocessing.get_context("forkserver")
# All that a training of torch's imports late is imported here.
_FORKING.set_forkserver_preload(["evenflow", "benchmarks.commands", "matplotlib.pyplot", "pytest", "torch._dynamo"])


def inherited(**more):
    """This process's environment and `more`, for a child that can import the project."""
    # What the engine tells Taichi through the environment is not for the child to inherit.
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("TI_", "ENABLE_TAICHI"))}
    return kept | {"PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))} | more


class Child:
    """A process as `python -c SOURCE` or `python -m MODULE WORDS` starts it, with what tests use of `subprocess.Popen`.

    It writes line by line.

    Args:
        command: `[sys.executable, "-c", source]` or `[sys.executable, "-m", module, *words]`.
        stdout, stderr: open files; those of this process by default.
        env, cwd: the environment, `inherited()` by default, and the folder.
    """

    def __init__(self, command, stdout=None, stderr=None, env=None, cwd=None):
        self.args, self.returncode = command, None
        streams = [_Stream(file.fileno() if file else number) for number, file in ((1, stdout), (2, stderr))]
        _start_server()
        environment = inherited() if env is None else dict(env)
        self._process = _FORKING.Process(
            target=_become, args=([str(word) for word in command[1:]], streams, environment, str(cwd or Path.cwd()))
        )
        self._process.start()
        assert self._process.pid is not None
        self.pid = self._process.pid

    def __enter__(self):
        return self

    def __exit__(self, failed, *_):
        if failed:
            self.kill()
        self.wait()

    def poll(self):
        self.returncode = self._process.exitcode
        return self.returncode

    def wait(self, timeout=None):
        self._process.join(timeout)
        returned = self.poll()
        if returned is None:
            raise subprocess.TimeoutExpired(self.args, timeout or 0.0)
        return returned

    def send_signal(self, number):
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self):
        self.send_signal(signal.SIGKILL)


class _Stream:
    """A descriptor of this process that is handed to the child with what it runs."""

    def __init__(self, number):
        self.number = number

    def __reduce__(self):
        return _received, (reduction.DupFd(self.number),)


def _received(handed):
    return handed.detach()


def _start_server():
    """Start the process that children are forked from, if none runs; it finds the project as they do."""
    before = dict(os.environ)
    os.environ.update(inherited())
    try:
        forkserver.ensure_running()
    finally:
        os.environ.clear()
        os.environ.update(before)


def _become(words, streams, environment, folder):
    """In the child: what Python makes of `words`, to its end."""
    for number, stream in zip((1, 2), streams, strict=True):
        os.dup2(stream, number)
    sys.stdout, sys.stderr = (os.fdopen(number, "w", 1, "utf-8", closefd=False) for number in (1, 2))
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    sys.path[:0] = [folder]
    try:
        if words[0] == "-c":
            sys.argv = words[:1] + words[2:]
            exec(compile(words[1], "<string>", "exec"), {"__name__": "__main__"})
        else:
            sys.argv = words[1:]
            runpy.run_module(words[1], run_name="__main__", alter_sys=True)
    finally:
        atexit._run_exitfuncs()


def run_child(command, env=None, cwd=None):
    """The command as a `Child`, waited for; what `subprocess.run` returns, with its output as text."""
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as errors:
        child = Child(command, out, errors, env, cwd)
        try:
            returned = child.wait(HANGS)
        finally:
            child.kill()
        out.seek(0)
        errors.seek(0)
        return subprocess.CompletedProcess(command, returned, out.read(), errors.read())


def run_evenflow(*words, cwd, env=None):
    """`python -m evenflow WORDS` in a folder."""
    return run_child([sys.executable, "-m", "evenflow", *words], env, cwd)


def run_python(source):
    """`python -c SOURCE`, checked for success."""
    return _successful(run_child([sys.executable, "-c", source]))


def run_fresh(source):
    """The same in a process of which nothing is imported already."""
    command = [sys.executable, "-c", source]
    return _successful(
        subprocess.run(command, capture_output=True, text=True, env=inherited(), timeout=HANGS, check=False)
    )


def _successful(done):
    assert done.returncode == 0, done.stderr
    return done
