"""Captions of a folder's pictures: from text files, file names or a template."""

from __future__ import annotations

import codecs
import re
from pathlib import Path

CAPTIONS = ("text files", "file names", "template")


def caption_of(path: Path, source: str, template: str, trigger: str) -> tuple[str, bool]:
    """(the caption of a picture, whether its text file is missing or empty).

    source: one of `CAPTIONS`. template: {trigger} and {name} are filled in. trigger: put before a caption that lacks
    it. Raises `OSError` for a text file that cannot be read.
    """
    if source == "template":
        # Only these two names: a template is a user's text, not a format string.
        return template.replace("{trigger}", trigger).replace("{name}", _words_of(path)).strip(), False
    missing = False
    if source == "file names":
        text = _words_of(path).strip()
    else:
        text_path = path.with_suffix(".txt")
        text = read_caption(text_path) if text_path.is_file() else ""
        missing = not text
    return with_trigger(text, trigger), missing


def with_trigger(caption: str, trigger: str) -> str:
    """The caption, with "trigger, " before it where the trigger word is given and the caption lacks it."""
    if not trigger or trigger in caption:
        return caption
    return f"{trigger}, {caption}" if caption else trigger


def read_caption(path: Path) -> str:
    """The text of a caption file in one line.

    Reads the encodings that editors write: UTF-8, UTF-16 with a byte order mark, else Latin-1.
    """
    data = path.read_bytes()
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        text = data.decode("utf-16", "replace")
    else:
        try:
            text = data.decode("utf-8-sig")
        except UnicodeDecodeError:
            text = data.decode("latin-1")
    return " ".join(re.sub(r"[\x00-\x1f\x7f-\x9f]", " ", text).split())


def _words_of(path: Path) -> str:
    return path.stem.replace("_", " ").replace("-", " ")
