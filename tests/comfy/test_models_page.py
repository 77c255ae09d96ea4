"""The page of models matches the tests: its rows are the small models, its cells their marks, its tests exist."""

import ast
import re
from pathlib import Path

import families
from bespoke.nodes.bridge.models import FAMILIES

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "js" / "docs" / "models.md").read_text("utf-8")
HERE = ROOT / "tests" / "comfy"
COLUMNS = ("test_families.py", "test_families_words.py", "test_families_sampling.py", "test_families_sampling.py")


def rows(start: str) -> list[list[str]]:
    """The cells of the table whose header line begins with `start`."""
    table = PAGE[PAGE.index(start) :].split("\n\n")[0].splitlines()[2:]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in table]


def slow_in(file: str) -> set[str]:
    """The names that a test file marks slow."""
    tree = ast.parse((HERE / file).read_text("utf-8"))
    found = next(node for node in tree.body if isinstance(node, ast.Assign) and node.targets[0].id == "SLOW")
    return ast.literal_eval(found.value)


def test_every_small_model_has_its_row_and_every_cell_its_mark():
    table = {row[1].strip("`"): row[2:] for row in rows("| Model |")}
    assert list(table) == list(families.FAMILIES)
    for name, cells in table.items():
        expected = ["slow" if name in slow_in(file) else "fast" for file in COLUMNS]
        if name not in families.WITH_CLIP:
            expected[1] = "no"
        assert cells == expected, name


def test_every_family_says_what_cross_attention_means():
    assert [tuple(row) for row in rows("| Family |")] == [
        (family.name, family.cross_attention_layers) for family in FAMILIES
    ]


def test_every_test_that_the_page_names_is_there():
    named = set(re.findall(r"`(test_\w+)`", PAGE))
    existing = {
        node.name
        for path in HERE.glob("test_*.py")
        for node in ast.parse(path.read_text("utf-8")).body
        if isinstance(node, ast.FunctionDef)
    }
    assert len(named) == 6
    assert named <= existing
    assert all((HERE / file).is_file() for file in re.findall(r"`(test_\w+\.py)`", PAGE))
