"""Training prompts around the new word.

None has punctuation right after the word: the prompt parser would read it as a part of the name.
"""

from __future__ import annotations

from collections.abc import Sequence

from ...training.captions import WORD
from ...training.errors import InputError
from ...training.images import TrainingImage
from ...training.randomness import generator

TEMPLATES = ("object", "style", "captions")

OBJECT = (
    "a photo of a {word}",
    "a picture of a {word}",
    "a photo of the {word}",
    "the {word}",
    "a good photo of a {word}",
    "a close-up photo of a {word}",
    "a bright photo of the {word}",
    "a dark photo of the {word}",
    "a clear picture of the {word}",
    "an image of one {word}",
    "a drawing of a {word}",
    "a small {word}",
    "a large {word}",
)
STYLE = (
    "a picture in the style of {word}",
    "a painting in the style of {word}",
    "a drawing in the style of {word}",
    "an image in {word} style",
    "a photo in the style of {word}",
    "the style of {word}",
    "a small picture in the style of {word}",
    "a detailed picture in the style of {word}",
)


def check_captions(items: Sequence[TrainingImage]) -> None:
    """Raise `InputError` unless every caption holds `WORD`."""
    without = [item.path for item in items if not all(WORD in caption for caption in item.captions)]
    if without:
        raise InputError(
            f"template is 'captions' and {len(without)} captions do not hold {WORD}: {', '.join(without[:8])}; "
            f"write {WORD} where the new word stands, for example 'a {WORD} on a table' (for pictures on a wire in "
            "Bespoke Image Batch), or choose another template"
        )


def prompt_for(template: str, caption: str, word: str, seed: int | str, number: int, position: int) -> str:
    """The prompt of one sample.

    template: one of `TEMPLATES`. caption: used by the template "captions", a `TrainingImage.prompt`. word: replaces
    `WORD`. The sentence depends on seed, number (of the batch) and position (of the sample in it) only, so a resumed
    run draws the same ones.
    """
    if template == "captions":
        sentence = caption
    else:
        sentences = OBJECT if template == "object" else STYLE
        drawn = generator(seed, "template", number, position).initial_seed()
        sentence = sentences[drawn % len(sentences)]
    return sentence.replace(WORD, word)
