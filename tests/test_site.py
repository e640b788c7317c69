"""The documentation site: it builds without a warning, names all that is public, and asks nothing of a network."""

import re
import runpy
import shutil
import sys
from collections import Counter
from itertools import combinations

import pytest
from children import ROOT, run_child, run_python
from matplotlib.backends.backend_agg import FigureCanvasAgg
from pages import PAGES, blocks

import evenflow

pytestmark = pytest.mark.float64

NOTEBOOKS = sorted((ROOT / "docs" / "notebooks").glob("*.py"))
BUILDER = ("sphinx", "furo", "myst_parser", "sphinx_gallery")


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """Every page of the site, built where `make docs` does not; its notebooks are run by a test of their own."""
    for package in BUILDER:
        pytest.importorskip(package, reason=f"needs the package {package}, of the extra docs")
    tree = tmp_path_factory.mktemp("tree")
    shutil.copytree(ROOT / "docs", tree / "docs", ignore=shutil.ignore_patterns("_*"))
    for name in ("CHANGELOG.md", "CONTRIBUTING.md", "README.md", "examples"):
        (tree / name).symlink_to(ROOT / name)
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-D", "plot_gallery=0", "docs", "html"]
    done = run_child(command, cwd=tree)
    assert done.returncode == 0, done.stderr
    return {page.relative_to(tree / "html").as_posix(): page.read_text() for page in tree.glob("html/**/*.html")}


def test_there_is_a_page_for_all_that_a_reader_looks_for(site):
    assert set(site) >= {
        "index.html", "first-training.html", "how-it-works.html", "which-gradient.html", "gallery.html",
        "guides/system.html", "coming-from/jax.html", "coming-from/brax.html", "coming-from/warp.html",
        "results/README.html", "results/control/README.html", "results/cart-pole/report.html", "decisions.html",
        "changelog.html", "contributing.html", "reference/command-line.html", "_notebooks/own_system.html",
    }  # fmt: skip


def test_a_page_loads_nothing_from_elsewhere(site):
    loads = re.compile(r"<(?:script|img|link|source|iframe)\b[^>]*\b(?:src|href)=\"(?:https?:)?//[^\"]*\"")
    assert {name: found for name, page in site.items() if (found := loads.findall(page))} == {}


def test_formulas_and_equations_are_legible(site):
    assert site["how-it-works.html"].count('class="formula"') > 8
    assert r"\\partial" not in site["how-it-works.html"]
    systems = site["reference/systems.html"]
    assert "θ̈_i  = (g sinθ_i - cosθ_i a_i) / (l (4/3 - m cos²θ_i / M))" in re.sub(r"<[^>]+>", "", systems)
    assert all(word not in systems for word in ("system-message", "problematic"))


def test_docstrings_become_text_code_and_equations():
    pytest.importorskip("sphinx", reason="needs the package sphinx, of the extra docs")
    to_rst = runpy.run_path(str(ROOT / "docs" / "house.py"))["to_rst"]
    given = ["|x_t| of `Policy` and `y`s:", "", "    a_i = *b*", "", "Attributes:", "    c, d: `e`", "Raises, late:"]
    assert to_rst(given) == [
        r"\|x\_t\| of :py:obj:`~evenflow.Policy` and ``y``\ s:", "", ".. code-block:: text", "", "    a_i = *b*", "",
        "Attributes:", "    c,d: ``e``", "Raises:",
    ]  # fmt: skip


def test_help_of_every_command_is_shown(site):
    page = re.sub(r"<[^>]+>", "", site["reference/command-line.html"])
    for words in (*evenflow._LINE.plain, *evenflow._LINE.with_task):
        assert f"usage: evenflow {' '.join(words)}" in page


def test_every_public_name_is_in_the_reference_once():
    texts = [page.read_text(encoding="utf-8") for page in PAGES if page.parent.name == "reference"]
    found = [block for text in texts for block in blocks(text)]
    named = [name for block in found if block.kind == "public" for name in block.text.split()]
    named += [name for block in found for name in re.findall(r"py:data:: evenflow\.(\w+)", block.text)]
    assert Counter(named) == Counter(evenflow.__all__)


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=[notebook.stem for notebook in NOTEBOOKS])
def test_a_notebook_runs_and_finds_what_it_asserts(notebook, tmp_path):
    source = f"import matplotlib, os, runpy; matplotlib.use('agg'); os.chdir({str(tmp_path)!r})"
    done = run_python(f"{source}; runpy.run_path({str(notebook)!r})")
    assert "Traceback" not in done.stderr
    assert notebook.read_text(encoding="utf-8").count("\nassert ") >= 1
    assert list(tmp_path.iterdir()) == []


def test_there_are_four_notebooks():
    assert len(NOTEBOOKS) == 4


def test_words_of_the_picture_are_within_it_and_apart():
    figure = runpy.run_path(str(ROOT / "docs" / "how_it_works.py"))["picture"]()
    FigureCanvasAgg(figure).draw()
    boxes = [text.get_window_extent() for text in figure.axes[0].texts]
    assert len(boxes) > 20
    assert all(figure.bbox.contains(*corner) for box in boxes for corner in (box.min, box.max))
    assert [pair for pair in combinations(boxes, 2) if pair[0].overlaps(pair[1])] == []
