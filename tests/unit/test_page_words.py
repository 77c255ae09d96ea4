"""The page's words: every key that a script asks for is there in every language, with the same blanks to fill in."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
LANGUAGES = ("en", "zh", "ja", "fr", "es")


def read(language: str, file: str) -> dict:
    return json.loads((ROOT / "locales" / language / f"{file}.json").read_text("utf-8"))


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


def test_the_scripts_ask_for_no_word_that_is_not_there():
    there = set(read("en", "main")["bespoke"])
    asked = set()
    for script in (ROOT / "js").glob("*.js"):
        asked |= set(re.findall(r"""\bt\("([\w. -]+)"[,)]""", script.read_text("utf-8")))
    assert len(asked) > 40
    assert asked <= there


def test_settings_and_commands_have_their_words():
    script = (ROOT / "js" / "settings.js").read_text("utf-8")
    settings = re.findall(r"^  (\w+): \{$", script, re.MULTILINE)
    assert {f"Bespoke_{name}" for name in settings} == set(read("en", "settings"))
    for name in settings:  # the words in the file are those that the page shows without it
        assert f'"{read("en", "settings")[f"Bespoke_{name}"]["name"]}"' in script
    commands = re.findall(r'id: "(Bespoke\.\w+)"', script)
    assert {name.replace(".", "_") for name in commands} == set(read("en", "commands"))
