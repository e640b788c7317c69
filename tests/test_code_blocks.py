"""What README and the documentation show runs: Python as it stands, and commands are ones that there are."""

import ast
import json
import re
import shlex
from importlib.util import find_spec

import pytest
from children import ROOT, run_python
from pages import NAMES, PAGES, blocks, python_of

pytestmark = pytest.mark.float64

TEXTS = {name: page.read_text(encoding="utf-8") for name, page in zip(NAMES, PAGES, strict=True)}
README = TEXTS["README.md"]
EXAMPLES = [block.text for block in blocks(README) if block.kind == "python"]
RECIPE = "docs/results/README.md"
"""Its Python reads a run that is trained by hours."""
WITH_PYTHON = {name: page for name, page in zip(NAMES, PAGES, strict=True) if python_of(page)}
SITE = {name: page for name, page in WITH_PYTHON.items() if name not in ("README.md", RECIPE)}
OTHER = {"text", "toml", "toctree", "eval-rst", "include", "literalinclude", "public", "help", "python", "figure"}
CONSOLE = {"console", "sh", "bash"}


def run_as_file(source, folder):
    # Taichi reads the source of kernels, so the example has to be a file.
    file = folder / "example.py"
    file.write_text(source, encoding="utf-8")
    done = run_python(f"import os, runpy; os.chdir({str(folder)!r}); runpy.run_path({str(file)!r})")
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("number", range(len(EXAMPLES)))
def test_an_example_of_readme_runs_by_itself(number, tmp_path):
    run_as_file(EXAMPLES[number], tmp_path)


def test_the_library_example_takes_about_15_lines():
    assert 10 <= sum(bool(line.strip()) for line in EXAMPLES[0].splitlines()) <= 16


@pytest.mark.parametrize("name", SITE)
def test_the_python_of_a_page_runs_from_its_beginning_to_its_end(name, tmp_path):
    run_as_file(python_of(SITE[name]), tmp_path)


def test_the_recipe_of_the_results_runs_on_a_small_run(tmp_path):
    small = "--drivers 8 --evaders 12 --horizon 5 --epochs 1 --seeds 1 --train-samples 2 --test-samples 2"
    words = ["train", "swarm", *small.split(), "--batch-size", "2", "--gradients", "R", "--backend", "cpu"]
    train = f"import evenflow; assert evenflow.main({[*words, '--out', str(tmp_path / 'swarm')]!r}) == 0"
    run_python(train)
    run_as_file(python_of(WITH_PYTHON[RECIPE]), tmp_path)


def test_no_python_block_of_readme_or_the_site_is_left_out():
    assert set(WITH_PYTHON) == {"README.md", RECIPE, *SITE}
    assert len(SITE) >= 10


def commands(text):
    """(line, words) of every command on a page; words of which a part is left out on purpose are not there."""
    for block in blocks(text):
        if block.kind not in CONSOLE:
            continue
        number = block.line
        for line in re.sub(r"\\\n\s*", " ", block.text).splitlines():
            words = shlex.split(line, comments=True)
            if words and "→" not in words:
                yield number, [word for word in words if word != "..."]
            number += 1


def fault(words):
    """What is wrong with a command other than evenflow's, or None."""
    first, *rest = words
    program = first.removeprefix(".venv/bin/")
    if program == "make":
        targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        missing = [word for word in rest if "=" not in word and word not in targets]
        return f"no target {missing}" if missing else None
    if program == "pip" or (program == "python" and rest[:2] == ["-m", "pip"]):
        known = set(re.findall(r'^ {8}"(\w+)": ', (ROOT / "setup.py").read_text(), re.MULTILINE))
        asked = {extra for word in rest for extra in re.findall(r"\[(.*)\]", word)}
        unknown = {name for extras in asked for name in extras.split(",")} - known
        return f"no extra {unknown}" if unknown else None
    if program == "python" and rest[0] == "-m":
        return None if find_spec(rest[1]) else f"no module {rest[1]}"
    if program == "python":
        return None if (ROOT / rest[0]).is_file() else f"no file {rest[0]}"
    return None if program in ("docker", "apt-get") else f"unknown program {first}"


PARSE = """
import json, sys
import evenflow
found = []
for place, words in json.loads({lines!r}):
    try:
        evenflow._LINE.parse(words)
    except SystemExit as end:
        if end.code:
            found.append([place, words, "refused by tyro"])
    except evenflow.EvenflowError as error:
        found.append([place, words, str(error)])
print(json.dumps(found))
"""


def test_commands_on_pages_are_ones_that_there_are():
    every = [(f"{name}:{line}", words) for name, text in TEXTS.items() for line, words in commands(text)]
    ours = [(place, words[1:]) for place, words in every if words[0] == "evenflow"]
    others = [(place, words, fault(words)) for place, words in every if words[0] != "evenflow"]
    assert [other for other in others if other[2]] == []
    assert len(ours) > 60
    examples = [(place, [at_its_place(word) for word in words]) for place, words in ours]
    assert json.loads(run_python(PARSE.format(lines=json.dumps(examples))).stdout.splitlines()[-1]) == []


def at_its_place(word):
    """A plug-in that a page names as a user would, who stands in its folder."""
    return str(ROOT / "examples" / word) if (ROOT / "examples" / word).is_file() else word


def test_every_block_is_of_a_known_kind():
    kinds = {block.kind for text in TEXTS.values() for block in blocks(text)}
    assert kinds <= OTHER | CONSOLE


@pytest.mark.parametrize("words", [["make", "nothing"], ["pip", "install", "evenflow[no]"], ["python", "-m", "nowhere"],
                                   ["python", "examples/no.py"], ["evenfolw", "list"]])  # fmt: skip
def test_commands_that_there_are_not_are_found(words):
    assert fault(words)


def test_commands_are_read_whole():
    text = "    evenflow train a \\\n        --epochs 3   # so\n    make demo\n"
    assert list(commands(text)) == [(1, ["evenflow", "train", "a", "--epochs", "3"]), (2, ["make", "demo"])]
    ast.parse(python_of(WITH_PYTHON["README.md"]))
