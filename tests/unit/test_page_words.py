"""The page's texts: every key that a script uses exists in every language, with the same placeholders."""

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
