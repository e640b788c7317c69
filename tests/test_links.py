"""Pages link to what is there, each from where it stands; links out of the project are addresses."""

from urllib.parse import unquote, urlsplit

import pytest
from pages import NAMES, PAGES, anchors, blocks, links

pytestmark = pytest.mark.float64


def faults(page, text):
    """Links of a page that lead nowhere."""
    found = []
    for link in links(text):
        parts = urlsplit(link)
        if parts.scheme or parts.netloc:
            if parts.scheme != "https" or "." not in parts.netloc or " " in unquote(link):
                found.append(link)
            continue
        target = page.parent / parts.path if parts.path else page
        there = target.exists()
        if there and parts.fragment:
            there = parts.fragment in anchors(text if target == page else target.read_text(encoding="utf-8"))
        if not there:
            found.append(link)
    return found


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_links_of_a_page_lead_somewhere(page):
    text = page.read_text(encoding="utf-8")
    assert faults(page, text) == []
    included = [block.argument for block in blocks(text) if block.kind in ("literalinclude", "include", "figure")]
    assert [name for name in included if not (page.parent / name).exists()] == []


def test_the_links_of_every_kind_are_read():
    every = [link for page in PAGES for link in links(page.read_text(encoding="utf-8"))]
    assert {"docs/results/README.md", "view-cart-pole.gif", "https://arxiv.org/abs/2405.02041"} <= set(every)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (
            "![b](docs/view-cart-pole.gif) [c](#two-words) [d](CONTRIBUTING.md#setting-up)\n\n## Two *words*",
            [],
        ),
        ("[a](NOWHERE.md) ![b](docs/no.gif)", ["NOWHERE.md", "docs/no.gif"]),
        ("[c](#three) [d](CONTRIBUTING.md#three)\n\n## Two words", ["#three", "CONTRIBUTING.md#three"]),
        ("[e](http://example.org) [f](https://nowhere/a)", ["http://example.org", "https://nowhere/a"]),
        ("| a |\n| --- |\n| [in a table](NOWHERE.md) |\n\n    [in code](THERE.md)", ["NOWHERE.md"]),
    ],
)
def test_links_that_lead_nowhere_are_found(text, found):
    page = next(page for page, name in zip(PAGES, NAMES, strict=True) if name == "README.md")
    assert faults(page, text) == found
