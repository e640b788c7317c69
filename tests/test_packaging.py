"""What is installed is all that runs: packages hold Python alone, and images are made of what is there."""

import re
import shlex

import pytest
from children import ROOT
from setuptools import find_packages

pytestmark = pytest.mark.float64

PACKAGES = ("engine", "policies", "training", "benchmarks")
DOCKERFILE = re.sub(r"\\\n\s*", " ", (ROOT / "Dockerfile").read_text(encoding="utf-8"))


def instructions(name):
    return [shlex.split(line)[1:] for line in DOCKERFILE.splitlines() if line.startswith(f"{name} ")]


def test_a_wheel_lacks_nothing():
    files = [path for name in PACKAGES for path in (ROOT / name).rglob("*") if path.is_file()]
    kept = [path for path in files if "__pycache__" not in path.parts]
    assert {path.suffix for path in kept} == {".py"}  # another kind would have to be named in setup.py
    found = {name.replace(".", "/") for name in find_packages(ROOT) if name.split(".")[0] in PACKAGES}
    assert {path.parent.relative_to(ROOT).as_posix() for path in kept} == found


def test_an_image_copies_what_there_is():
    copied = [word for words in instructions("COPY") for word in words[:-1] if not word.startswith("--")]
    assert {"setup.py", "Makefile", "."} <= set(copied)
    assert [name for name in copied if not (ROOT / name).exists()] == []
    ignored = (ROOT / ".dockerignore").read_text(encoding="utf-8").split()
    assert set(ignored).isdisjoint(copied)


def test_an_image_has_what_the_suite_needs_of_debian():
    (line,) = re.findall(r"^packages=\((.*)\)$", (ROOT / ".ci" / "run").read_text(encoding="utf-8"), re.MULTILINE)
    assert set(line.split()) <= set(DOCKERFILE.split())


def test_an_image_runs_as_nobody_in_particular():
    assert instructions("USER") == [["evenflow"]]
    assert DOCKERFILE.index("\nUSER ") < DOCKERFILE.index("\nCOPY ")
    assert instructions("CMD") == [["[make,", "demo]"]]
