"""The English help pages: what the node does first, its inputs as a table, each input and output by name."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "js" / "docs"
NODES = json.loads((ROOT / "tests" / "comfy" / "schemas.json").read_text("utf-8"))
# These take the inputs of another node and say so.
AS_ANOTHER = re.compile(r"[Tt]hose of \*Train ")
MOST_PICTURE = 150_000  # bytes of a picture in a help page


def text_of(node: str) -> str:
    return (DOCS / f"{node}.md").read_text("utf-8")


@pytest.mark.parametrize("node", NODES)
def test_a_page_begins_with_what_the_node_does(node):
    title, empty, first, *_ = text_of(node).split("\n")
    assert title.startswith("# ")
    assert not empty
    assert re.match(r"[A-Z][^|*-]", first), first
    assert len(re.findall(r"[.:](?:\s|$)", first)) <= 6, first


@pytest.mark.parametrize("node", NODES)
def test_inputs_are_a_table(node):
    assert re.search(r"^\| (Input|Widget)s? \|", text_of(node), re.MULTILINE)


@pytest.mark.parametrize("node", NODES)
def test_every_input_is_named(node):
    page = text_of(node)
    if AS_ANOTHER.search(page):
        return
    unnamed = [
        item["id"] for item in NODES[node]["inputs"] if not re.search(rf"\*\*[^*\n]*\b{item['id']}\b[^*\n]*\*\*", page)
    ]
    assert unnamed == []


@pytest.mark.parametrize("node", NODES)
def test_a_page_says_what_bypassing_does_and_what_goes_wrong(node):
    page = text_of(node)
    assert "**Bypassed**" in page
    assert re.search(r"^## (Common mistakes|Troubleshooting|When|What)", page, re.MULTILINE), page


def test_pictures_of_pages_are_small():
    for path in (DOCS / "img").iterdir():
        assert path.suffix in (".jpg", ".png")  # what the page shows in every browser
        assert path.stat().st_size <= (300_000 if path.suffix == ".png" else MOST_PICTURE), path.name
