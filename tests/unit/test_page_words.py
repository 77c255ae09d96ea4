"""The page's texts: every key that a script uses exists in every language, with the same placeholders."""

from __future__ import annotations

import json
import re
import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
LANGUAGES = ("en", "zh", "ja", "fr", "es")


def read(language: str, file: str) -> dict:
    return json.loads((ROOT / "locales" / language / f"{file}.json").read_text("utf-8"))


def glossary() -> dict:
    return runpy.run_path(str(ROOT / "tests" / "browser" / "build_locales.py"))


def flat(words, before="") -> dict[str, str]:
    if isinstance(words, str):
        return {before: words}
    return {key: text for name, inner in words.items() for key, text in flat(inner, f"{before}/{name}").items()}


@pytest.mark.parametrize("file", ["settings", "commands", "main"])
@pytest.mark.parametrize("language", LANGUAGES[1:])
def test_every_language_has_every_word(language, file):
    english, theirs = flat(read("en", file)), flat(read(language, file))
    theirs = {
        key: text for key, text in theirs.items() if not key.startswith("/settingsCategories")
    }  # English needs none
    assert set(theirs) == set(english)
    for key, text in english.items():
        assert sorted(re.findall(r"\{\w+\}", theirs[key])) == sorted(re.findall(r"\{\w+\}", text)), key
        assert theirs[key].strip()


def test_every_key_used_by_scripts_exists():
    existing = set(read("en", "main")["bespoke"])
    used = set()
    for script in (ROOT / "js").glob("*.js"):
        used |= set(re.findall(r"""\bt\("([\w. -]+)"[,)]""", script.read_text("utf-8")))
    assert len(used) > 40
    assert used <= existing


def test_settings_and_commands_have_their_words():
    script = (ROOT / "js" / "settings.js").read_text("utf-8")
    settings = re.findall(r"^  (\w+): \{$", script, re.MULTILINE)
    assert {f"Bespoke_{name}" for name in settings} == set(read("en", "settings"))
    for name in settings:  # the script has the same text, which the page shows without the file
        assert f'"{read("en", "settings")[f"Bespoke_{name}"]["name"]}"' in script
    commands = re.findall(r'id: "(Bespoke\.\w+)"', script)
    assert {name.replace(".", "_") for name in commands} == set(read("en", "commands"))


def schemas() -> dict:
    return json.loads((ROOT / "tests" / "comfy" / "schemas.json").read_text("utf-8"))


def test_every_input_and_output_has_a_name_or_stays_english():
    tables = glossary()
    inputs = {item["id"] for schema in schemas().values() for item in schema["inputs"]}
    outputs = {name for schema in schemas().values() for _, _, name in schema["outputs"]}
    assert inputs - tables["INPUTS"].keys() - tables["OUTPUTS"].keys() - tables["SAME"] == set()
    assert outputs - tables["INPUTS"].keys() - tables["OUTPUTS"].keys() - tables["SAME"] == set()
    assert tables["OUTPUTS"].keys() & tables["INPUTS"].keys() == set()  # a word has one name
    assert set(schemas()) == set(tables["TITLES"])


@pytest.mark.parametrize("language", LANGUAGES[1:])
def test_the_names_of_nodes_are_those_of_the_glossary(language):
    """tests/browser/build_locales.py writes the file. The page finds an input by its id, an output by its index."""
    tables = glossary()
    found = read(language, "nodeDefs")
    assert found == tables["node_texts"](tables["LANGUAGES"].index(language))
    trainer = schemas()["BespokeTrainLora"]["outputs"]
    report = [name for _, _, name in trainer].index("report")
    assert (
        found["BespokeTrainLora"]["outputs"][str(report)]["name"]
        == {
            "zh": "报告",
            "ja": "レポート",
            "fr": "rapport",
            "es": "informe",
        }[language]
    )


@pytest.mark.parametrize("language", LANGUAGES[1:])
def test_tooltips_are_the_rows_of_the_help_pages(language):
    """Plain texts without Markdown, and without characters that vue-i18n reads as syntax; those rows stay English."""
    found = read(language, "nodeDefs")
    tables = glossary()
    assert [node for node in schemas() if not found[node].get("description")] == []  # node_descriptions.json
    tips = {name: item.get("tooltip", "") for name, item in found["BespokeTrainLora"]["inputs"].items()}
    assert all(tips[item["id"]] for item in schemas()["BespokeTrainLora"]["inputs"])
    assert "*attn2.to_k, *attn2.to_v" in tips["custom_targets"]
    assert "`" not in "".join(tips.values())
    assert "tooltip" not in found["BespokeImageFolder"]["inputs"]["template"]  # it says {trigger}
    for node in found.values():
        for item in [*node["inputs"].values(), *node["outputs"].values(), {"tooltip": node.get("description", "")}]:
            assert not tables["SPECIAL"] & set(item.get("tooltip", "") + item.get("name", ""))
