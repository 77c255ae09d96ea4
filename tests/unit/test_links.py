"""Every relative link of the documentation has a target, and the README names all pages and workflows."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = [*ROOT.glob("*.md"), *(ROOT / "js" / "docs").rglob("*.md")]
RECIPE = "LoRA recipe - "
LINK = re.compile(r"\]\(([^)\s]+)\)")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_resolve(page):
    for target in LINK.findall(page.read_text("utf-8")):
        if target.startswith(("https://", "http://", "mailto:")):
            continue
        path, _, anchor = target.partition("#")
        file = page if not path else (page.parent / path)
        assert file.exists(), f"{page.name}: {target}"
        if anchor:
            headings = re.findall(r"^#+ (.+)$", file.read_text("utf-8"), re.MULTILINE)
            assert anchor in {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}, (
                target
            )


def test_the_pictures_of_the_readme_are_there_and_small():
    """Those of `<picture>`, which `LINK` does not find, too; all of docs/pictures together have less than 3 MB."""
    readme = (ROOT / "README.md").read_text("utf-8")
    shown = re.findall(r'(?:src|srcset)="([^"]+)"', readme) + re.findall(r"!\[[^\]]*\]\(([^)\s]+)\)", readme)
    assert len(shown) >= 7
    for path in shown:
        assert (ROOT / path).is_file(), path
        assert (ROOT / path).stat().st_size < (1_000_000 if path == "docs/pictures/training.webp" else 300_000), path
    assert sum(path.stat().st_size for path in (ROOT / "docs" / "pictures").glob("*")) < 3_000_000


def test_the_first_screen_of_the_readme_sells_it():
    """A sentence, a wide picture in both palettes, how to install it and four pictures, before any heading."""
    readme = (ROOT / "README.md").read_text("utf-8")
    first = readme.split("\n## ")[0]
    assert first.index("**Teach") < first.index("<picture>") < first.index("**Install**") < first.index("| | |")
    assert first.count("![") + first.count("<img ") >= 1 + 4  # the wide one has an <img> too
    assert len(readme.splitlines()) < 250


def test_the_readme_names_every_help_page():
    readme = (ROOT / "README.md").read_text("utf-8")
    for page in (ROOT / "js" / "docs").glob("Bespoke*.md"):
        assert f"js/docs/{page.name}" in readme


def test_the_readme_names_every_workflow():
    readme = (ROOT / "README.md").read_text("utf-8")
    for path in (ROOT / "example_workflows").glob("*.json"):
        assert f"`{path.stem}`" in readme
    for path in (ROOT / "subgraphs").glob("*.json"):
        name = path.stem
        if name.startswith(RECIPE):  # one name for all, with the families and goals
            family, goal = name.removeprefix(RECIPE).split(", ")
            assert f"*{RECIPE}" in readme
            assert family in readme
            assert f"a {goal}" in readme
        else:
            assert f"*{name}*" in readme
