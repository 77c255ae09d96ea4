"""Captions of a folder's pictures: from text files, file names or a template."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ....training.captions import says

EVERY_LINE = "text files, one caption a line"
CAPTIONS = ("text files", "file names", "template", EVERY_LINE)
WRITTEN = (CAPTIONS[0], EVERY_LINE)  # the captions are read from files
MOST_CAPTIONS = 1000  # of one picture
# What stands for the trigger in a caption, as ai-toolkit has it (README.md, "Dataset Preparation").
PLACEHOLDER = "[trigger]"
FOLDER = "{folder}"  # in the trigger and the template: the name of the picture's folder


@dataclass(frozen=True)
class FolderWords:
    """What a picture's folder adds to its captions.

    trigger: put before captions that lack it. folder: stands for {folder}. concept: kohya's name of the folder, the
    caption of a picture for which none is written, or "".
    """

    trigger: str = ""
    folder: str = ""
    concept: str = ""

    @property
    def word(self) -> str:
        """What `PLACEHOLDER` stands for."""
        return self.trigger or self.concept


def filled(trigger: str, folder: str) -> str:
    """The trigger word of the pictures in a folder, with {folder} filled in."""
    return trigger.replace(FOLDER, folder).strip()


def captions_of(
    path: Path, source: str, template: str, words: FolderWords, lines: Sequence[str] | None = None
) -> tuple[tuple[str, ...], bool]:
    """(the captions of a picture, whether its written caption is missing or empty).

    source: one of `CAPTIONS`. template: {trigger}, {name} and {folder} are filled in. words: its trigger is put before
    a caption that lacks it, and before a template's without {trigger}. lines: what is written for the picture, None
    where nothing is. [trigger] is replaced wherever it stands, see `with_placeholder`.
    """
    trigger = words.trigger
    if source == "template":
        # Only these names: a template is a user's text, not a format string.
        text = template.replace("{trigger}", trigger).replace("{name}", _words_of(path)).replace(FOLDER, words.folder)
        text = with_placeholder(text, words.word).strip()
        return (text if "{trigger}" in template else with_trigger(text, trigger),), False
    if source == "file names":
        return (with_trigger(with_placeholder(_words_of(path), words.word).strip(), trigger),), False
    if lines is None and words.concept:
        return (with_trigger(words.concept, trigger),), False
    texts = lines or ()
    texts = [with_placeholder(text, words.word) for text in (texts if source == EVERY_LINE else [" ".join(texts)])]
    texts = [text for text in (" ".join(text.split()) for text in texts) if text]
    return tuple(with_trigger(text, trigger) for text in texts or [""]), not texts


def with_placeholder(text: str, word: str) -> str:
    """The text with every `PLACEHOLDER` replaced by a word, "" for none; without one the text as it is."""
    return " ".join(text.replace(PLACEHOLDER, word).split()) if PLACEHOLDER in text else text


def with_trigger(caption: str, trigger: str) -> str:
    """The caption, with "trigger, " before it where the trigger word is given and the caption does not say it.

    See `training.captions.says`: whole words count, in any case.
    """
    if not trigger or says(caption, trigger):
        return caption
    return f"{trigger}, {caption}" if caption else trigger


def _words_of(path: Path) -> str:
    return path.stem.replace("_", " ").replace("-", " ")
