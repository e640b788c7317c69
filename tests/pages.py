"""The project's pages, and what a reader finds on them: links, headings and blocks of code."""

import re
from itertools import pairwise
from typing import NamedTuple

from children import ROOT
from markdown_it import MarkdownIt

PAGES = sorted(
    page
    for page in (*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"))
    if not any(part.startswith("_") for part in page.relative_to(ROOT).parts)  # what a build leaves
)
NAMES = [page.relative_to(ROOT).as_posix() for page in PAGES]
_READER = MarkdownIt().enable("table")
_DIRECTIVE = re.compile(r"\{(\w[\w-]*)\}\s*(.*)")


class Block(NamedTuple):
    """A block of code: "python", "console" where it is indented, or the directive that it is of."""

    kind: str
    argument: str
    text: str
    line: int


def blocks(text):
    """Blocks of code of a page, in order."""
    found = []
    for token in _READER.parse(text):
        if token.type == "code_block":
            found.append(Block("console", "", token.content, token.map[0] + 1))
        elif token.type == "fence":
            directive = _DIRECTIVE.match(token.info)
            kind, argument = directive.groups() if directive else (token.info.strip() or "console", "")
            found.append(Block(kind, argument.strip(), token.content, token.map[0] + 1))
    return found


def python_of(page):
    """The Python of a page, each line where it stands on the page, so that an error says where it is."""
    lines = [""] * page.read_text(encoding="utf-8").count("\n")
    for block in blocks(page.read_text(encoding="utf-8")):
        if block.kind == "python":
            lines[block.line : block.line + block.text.count("\n")] = block.text.splitlines()
    return "\n".join(lines) if any(lines) else ""


def links(text):
    """Targets of links and images of a page."""
    inline = [child for token in _READER.parse(text) for child in token.children or ()]
    targets = [child.attrs.get("href" if child.type == "link_open" else "src") for child in inline
               if child.type in ("link_open", "image")]  # fmt: skip
    return [str(target) for target in targets if target]


def anchors(text):
    """What `#...` may name on a page: its headings, as sites of Git and this project's site write them."""
    tokens = _READER.parse(text)
    headings = [after.content for token, after in pairwise(tokens) if token.type == "heading_open"]
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
