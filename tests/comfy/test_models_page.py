"""The page of models matches the tests: its tables are those that `models_page` makes, its tests exist."""

import ast
import re

import families
import host_models
import models_page
from bespoke.nodes.bridge.models import FAMILIES, refused
from models_page import HERE, slow_in

PAGE = models_page.PAGE.read_text("utf-8")


def rows(start: str) -> list[list[str]]:
    """The cells of the table whose header line begins with `start`."""
    table = PAGE[PAGE.index(start) :].split("\n\n")[0].splitlines()[2:]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in table]


def test_the_page_is_as_it_is_made():
    """If this fails, run tests/lib/models_page.py."""
    assert models_page.render(PAGE) == PAGE


def test_every_small_model_has_its_row_and_every_cell_its_mark():
    table = {row[1].strip("`"): row[2:] for row in rows("| Model |")}
    assert list(table) == list(families.FAMILIES)
    for name, cells in table.items():
        expected = ["slow" if name in slow_in(file) else "fast" for file in models_page.FILES]
        assert cells == expected, name


def test_every_family_says_what_cross_attention_means():
    assert [tuple(row) for row in rows("| Family |")] == [
        (family.name, family.cross_attention_layers) for family in FAMILIES
    ]


def test_every_class_has_its_row_or_its_refusal():
    assert {row[1].strip("`") for row in rows("| Class |")} == {
        name for name, row in host_models.ROWS.items() if not row.reason
    }
    named = [name for row in rows("| ComfyUI's class |") for name in re.findall(r"`(\w+)`", row[0])]
    assert sorted(named) == sorted(refused.REASONS)


def test_every_test_that_the_page_names_is_there():
    named = set(re.findall(r"`(test_\w+)`", PAGE))
    existing = {
        node.name
        for path in HERE.glob("test_*.py")
        for node in ast.parse(path.read_text("utf-8")).body
        if isinstance(node, ast.FunctionDef)
    }
    assert len(named) == 9
    assert named <= existing
    assert all((HERE / file).is_file() for file in re.findall(r"`(test_\w+\.py)`", PAGE))
