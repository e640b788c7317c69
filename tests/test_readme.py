"""The README's Python runs as it stands, and its figures and links exist."""

import re

import pytest
from children import ROOT, run_python

pytestmark = pytest.mark.float64

TEXT = (ROOT / "README.md").read_text()
EXAMPLES = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)


@pytest.mark.parametrize("number", range(len(EXAMPLES)))
def test_examples_run(number, tmp_path):
    # Taichi reads the source of kernels, so the example has to be a file.
    file = tmp_path / "example.py"
    file.write_text(EXAMPLES[number])
    done = run_python(f"import runpy; runpy.run_path({str(file)!r})")
    assert "Traceback" not in done.stderr


def test_the_library_example_takes_about_15_lines():
    assert 10 <= sum(bool(line.strip()) for line in EXAMPLES[0].splitlines()) <= 16


def test_linked_files_exist():
    linked = re.findall(r"\]\(([^)#:]+)\)", TEXT)
    assert linked
    assert [name for name in linked if not (ROOT / name).exists()] == []
