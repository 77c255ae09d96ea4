"""Captions of a folder's pictures: from text files, file names or a template."""

from __future__ import annotations

from pathlib import Path

from ....training.captions import says

CAPTIONS = ("text files", "file names", "template")


def caption_of(path: Path, source: str, template: str, trigger: str, file_text: str = "") -> tuple[str, bool]:
    """(the caption of a picture, whether its text file is missing or empty).

    source: one of `CAPTIONS`. template: {trigger} and {name} are filled in. trigger: put before a caption that lacks
    it, and before a template's without {trigger}. file_text: the text of the picture's caption file, see `text_files`.
    """
    if source == "template":
        # Only these two names: a template is a user's text, not a format string.
        text = template.replace("{trigger}", trigger).replace("{name}", _words_of(path)).strip()
        return text if "{trigger}" in template else with_trigger(text, trigger), False
    missing = False
    if source == "file names":
        text = _words_of(path).strip()
    else:
        text = file_text
        missing = not text
    return with_trigger(text, trigger), missing


def with_trigger(caption: str, trigger: str) -> str:
    """The caption, with "trigger, " before it where the trigger word is given and the caption does not say it.

    See `training.captions.says`: whole words count, in any case.
    """
    if not trigger or says(caption, trigger):
        return caption
    return f"{trigger}, {caption}" if caption else trigger


def _words_of(path: Path) -> str:
    return path.stem.replace("_", " ").replace("-", " ")
