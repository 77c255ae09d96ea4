"""Captions of a folder's pictures: from text files, file names or a template."""

from __future__ import annotations

from pathlib import Path

CAPTIONS = ("text files", "file names", "template")


def caption_of(path: Path, source: str, template: str, trigger: str, file_text: str = "") -> tuple[str, bool]:
    """(the caption of a picture, whether its text file is missing or empty).

    source: one of `CAPTIONS`. template: {trigger} and {name} are filled in. trigger: put before a caption that lacks
    it. file_text: the text of the picture's caption file, see `text_files`.
    """
    if source == "template":
        # Only these two names: a template is a user's text, not a format string.
        return template.replace("{trigger}", trigger).replace("{name}", _words_of(path)).strip(), False
    missing = False
    if source == "file names":
        text = _words_of(path).strip()
    else:
        text = file_text
        missing = not text
    return with_trigger(text, trigger), missing


def with_trigger(caption: str, trigger: str) -> str:
    """The caption, with "trigger, " before it where the trigger word is given and the caption lacks it."""
    if not trigger or trigger in caption:
        return caption
    return f"{trigger}, {caption}" if caption else trigger


def _words_of(path: Path) -> str:
    return path.stem.replace("_", " ").replace("-", " ")
