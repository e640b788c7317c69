"""What the site has of its own: docstrings as they are written here, help of the command line, formulas as MathML."""

import contextlib
import io
import os
import re
import warnings

from docutils import nodes
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

import evenflow

SECTION = re.compile(r"(Args|Attributes|Raises|Returns)\b[^:]*:$")
MARKUP = re.compile(r"([\\*_|<>])")
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
        result.append(line if equation else _escaped(line))
    return result


def _escaped(line: str) -> str:
    parts = line.split("`")
    if len(parts) % 2 == 0:  # a lone one
        return MARKUP.sub(r"\\\1", line).replace("`", r"\`")
    return "".join(_code(part) if index % 2 else MARKUP.sub(r"\\\1", part) for index, part in enumerate(parts))


def _code(text: str) -> str:
    """Code, which is a link where it names something public; what follows may touch it."""
    return rf":py:obj:`~evenflow.{text}`\ " if text in evenflow.__all__ else rf"``{text}``\ "


def docstring(app: Sphinx, what: str, name: str, obj: object, options: object, lines: list[str]) -> None:
    lines[:] = to_rst(lines)


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


def inline_math(self, node: nodes.math) -> None:
    self.body.append(tex2mathml(node.astext(), as_block=False))
    raise nodes.SkipNode


def block_math(self, node: nodes.math_block) -> None:
    self.body.append(f'<div class="math">{tex2mathml(node.astext(), as_block=True)}</div>')
    raise nodes.SkipNode


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("autodoc-process-docstring", docstring, priority=400)  # before napoleon's
    app.add_directive("public", Public)
    app.add_directive("help", Help)
    app.add_html_math_renderer("mathml", (inline_math, None), (block_math, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
