"""What the site has of its own: the house's docstrings, help of the command line, formulas without a script."""

import contextlib
import io
import os
import re
import warnings
from collections.abc import Callable
from typing import Any

from docutils import nodes
from docutils.utils.math import math2html
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

import evenflow

SECTION = re.compile(r"(Args|Attributes|Raises|Returns)\b[^:]*:$")
NAMES = re.compile(r"    \w+(, \w+)+:")
MARKUP = re.compile(r"([\\*_|<>])")
HELD = "\ue000"
"""Stands for a colon, before which napoleon would see the type of an attribute."""
WIDTH = 88
"""Columns of what the command line says, which a page has room for."""


def to_rst(lines: list[str]) -> list[str]:
    """A docstring as reStructuredText: indented lines are equations, `x` is code, and nothing else is markup."""
    result, in_section, in_equations = [], False, False
    for number, line in enumerate(lines):
        section = SECTION.match(line)
        if section:
            in_section, in_equations = True, False
            result.append(f"{section[1]}:")
            continue
        if line and not line.startswith(" "):
            in_section = in_equations = False
        equation = line.startswith("    ") and not in_section and (in_equations or number == 0 or not lines[number - 1])
        if equation and not in_equations:
            result += [".. code-block:: text", ""]
        in_equations = equation or (in_equations and not line)
        # Several attributes in one entry: a blank between them would make a type of the first.
        names = in_section and NAMES.match(line)
        line = line.replace(", ", ",", names[0].count(", ")) if names else line
        result.append(line if equation else _escaped(line))
    return result


def _escaped(line: str) -> str:
    parts = line.split("`")
    if len(parts) % 2 == 0:  # a lone one
        return MARKUP.sub(r"\\\1", line).replace("`", r"\`")
    text = "".join(_code(part) if index % 2 else MARKUP.sub(r"\\\1", part) for index, part in enumerate(parts))
    return re.sub(r"\\ (?=\s|$)", "", text)  # at the end of a line it would take the break with it


def _code(text: str) -> str:
    """Code, which is a link where it names something public; what follows may touch it."""
    return rf":py:obj:`~evenflow.{text}`\ " if text in evenflow.__all__ else rf"``{text}``\ "


def docstring(app: Sphinx, what: str, name: str, obj: object, options: object, lines: list[str]) -> None:
    lines[:] = to_rst(lines)
    if what in ("attribute", "property") and lines:
        lines[0] = lines[0].replace(":", HELD)


def released(app: Sphinx, what: str, name: str, obj: object, options: object, lines: list[str]) -> None:
    lines[:] = [line.replace(HELD, ":") for line in lines]


class Public(SphinxDirective):
    """Documents names of `evenflow`, each by its docstring."""

    has_content = True

    def run(self) -> list[nodes.Node]:
        text = ["````{eval-rst}"]
        for name in " ".join(self.content).split():
            if isinstance(getattr(evenflow, name), type):
                text += [f".. autoclass:: evenflow.{name}", "   :members:", ""]
            else:
                text += [f".. autofunction:: evenflow.{name}", ""]
        return self.parse_text_to_nodes("\n".join([*text, "````"]))


class Help(SphinxDirective):
    """What `evenflow WORDS --help` says."""

    optional_arguments = 1
    final_argument_whitespace = True

    def run(self) -> list[nodes.Node]:
        text = said(*" ".join(self.arguments).split())
        return [nodes.literal_block(text, text, language="text")]


def said(*words: str) -> str:
    """What a command's help prints, in this process; RuntimeError where it fails."""
    showing, width, output = warnings.showwarning, os.environ.get("COLUMNS"), io.StringIO()
    os.environ["COLUMNS"] = str(WIDTH)
    try:
        with contextlib.redirect_stdout(output):
            status = evenflow.main([*words, "--help"])
    finally:
        warnings.showwarning = showing
        del os.environ["COLUMNS"]
        if width is not None:
            os.environ["COLUMNS"] = width
    if status != 0:
        raise RuntimeError(f"Expected help of evenflow {' '.join(words)}, got status {status}.")
    return output.getvalue().strip("\n")


def formula(tag: str, block: bool) -> Callable[[Any, nodes.Element], None]:
    """Writes a formula as plain HTML: MathML lacks its subscripts where no font for mathematics is installed."""

    def visit(self: Any, node: nodes.Element) -> None:
        math2html.DocumentParameters.displaymode = block
        self.body.append(f'<{tag} class="formula">{math2html.math2html(node.astext())}</{tag}>')
        raise nodes.SkipNode

    return visit


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("autodoc-process-docstring", docstring, priority=400)  # before napoleon's
    app.connect("autodoc-process-docstring", released, priority=600)
    app.add_directive("public", Public)
    app.add_directive("help", Help)
    app.add_html_math_renderer("formula", (formula("span", False), None), (formula("div", True), None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
