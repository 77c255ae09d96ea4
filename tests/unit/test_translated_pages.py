"""The help pages in other languages name every input, output and choice of their node as the page shows it."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "js" / "docs"
LANGUAGES = ("zh", "ja", "fr", "es")
NODES = (
    "BespokeImageFolder",
    "BespokeTrainLora",
    "BespokeInjectLora",
    "BespokePartialDenoise",
    "BespokeLatentMaskBlend",
    "BespokeTrainTextualInversion",
)
ROW = re.compile(r"^\| \*\*`?(.+?)`?\*\*(?: \(`(\w+)`\))? \| (.+) \|$", re.MULTILINE)  # name, id where it differs, text


def read(*parts: str) -> dict:
    return json.loads(ROOT.joinpath(*parts).read_text("utf-8"))


def rows_of(page: str) -> list[tuple[str, str, str]]:
    """(id, name as shown, text) of each input and output, in the order of the page."""
    return [(id_ or name, name, text) for name, id_, text in ROW.findall(page)]


def expected_rows(schema: dict, names: dict) -> list[tuple[str, str]]:
    """(id, name as shown) of each input, those that must be wired or set first, then of each output."""
    inputs = sorted(schema["inputs"], key=lambda item: item["optional"])
    shown = [(item["id"], names["inputs"].get(item["id"], {}).get("name", item["id"])) for item in inputs]
    outputs = [name for _, _, name in schema["outputs"]]
    return shown + [(name, names["outputs"].get(str(at), {}).get("name", name)) for at, name in enumerate(outputs)]


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("node", NODES)
def test_a_page_names_every_input_output_and_choice(node, language):
    schema = read("tests", "comfy", "schemas.json")[node]
    names = read("locales", language, "nodeDefs.json")[node]
    page = (DOCS / node / f"{language}.md").read_text("utf-8")
    rows = rows_of(page)
    assert [(id_, name) for id_, name, _ in rows] == expected_rows(schema, names)
    texts = {id_: text for id_, _, text in rows[: len(schema["inputs"])]}
    for item in schema["inputs"]:
        unnamed = [choice for choice in item.get("options", []) if f"`{choice}`" not in texts[item["id"]]]
        assert unnamed == [], item["id"]
    assert f"`js/docs/{node}.md`" in page  # where the details are
    assert page.startswith("# ")
    assert names["display_name"].removeprefix("Bespoke ") in page.split("\n")[0]


def test_a_missing_row_is_found():
    page = (DOCS / "BespokePartialDenoise" / "fr.md").read_text("utf-8")
    schema = read("tests", "comfy", "schemas.json")["BespokePartialDenoise"]
    names = read("locales", "fr", "nodeDefs.json")["BespokePartialDenoise"]
    shorter = "\n".join(line for line in page.split("\n") if "(`strength`)" not in line)
    found = [(id_, name) for id_, name, _ in rows_of(shorter)]
    assert set(expected_rows(schema, names)) - set(found) == {("strength", "force")}


@pytest.mark.parametrize("language", LANGUAGES)
def test_other_nodes_have_the_title_that_the_page_shows(language):
    """A page in another language does not name a node of the pack by its English title alone."""
    titles = re.findall(r"^# (.+)$", "\n".join(p.read_text("utf-8") for p in DOCS.glob("Bespoke*.md")), re.MULTILINE)
    assert "Save LoRA" in titles
    for node in NODES:
        page = (DOCS / node / f"{language}.md").read_text("utf-8")
        assert [title for title in titles if f"*{title}*" in page] == []


def test_every_translated_page_belongs_to_a_node():
    found = {path.relative_to(DOCS).as_posix() for path in DOCS.glob("*/*.md")}
    assert found == {f"{node}/{language}.md" for node in NODES for language in LANGUAGES}
