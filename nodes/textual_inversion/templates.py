"""Training prompts around the new word.

None has punctuation right after the word: the prompt parser would read it as a part of the name.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from ...training.captions import WORD
from ...training.errors import InputError
from ...training.images import ImageSet, TrainingImage
from ...training.randomness import generator

NEGATIVE_WORD = "negative"
TEMPLATES = ("object", "style", "captions", NEGATIVE_WORD)

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
# A negative word stands behind what a picture shows, since it is to mean how the picture is and not what is in it.
NEGATIVE = (
    "{word}",
    "a photo, {word}",
    "a picture, {word}",
    "an image, {word}",
    "a drawing, {word}",
)


def marks_of(names: Sequence[str]) -> list[str]:
    """What captions say for the words: `{name}` of several, else `WORD`."""
    return [f"{{{name}}}" for name in names] or [WORD]


def called_by_words(images: ImageSet, names: Sequence[str]) -> ImageSet:
    """The set with the words of each picture's captions as its triggers, after one that it has, one a line.

    So caption variants leave out none of them, and the leak is measured without all of them. names: of several words.
    """
    items = []
    for item in images.items:
        found = [mark for mark in marks_of(names) if any(mark in caption for caption in item.captions)]
        items.append(replace(item, trigger="\n".join(dict.fromkeys([*item.trigger.splitlines(), *found]))))
    return replace(images, items=tuple(items))


def check_taught(items: Sequence[TrainingImage], names: Sequence[str]) -> None:
    """Raise `InputError` where all pictures of one of several words are held out.

    items: those that are trained on. names: of several words, or none.
    """
    captions = [caption for item in items for caption in item.captions]
    for mark in marks_of(names) if names else []:
        if not any(mark in caption for caption in captions):
            raise InputError(
                f"every picture that says {mark} is held out for validation, so that word would learn nothing; give "
                "more pictures of it, a lower validation, or another seed"
            )


def check_captions(
    items: Sequence[TrainingImage], names: Sequence[str] = (), has_template: bool = True, all_said: bool = True
) -> None:
    """Raise `InputError` unless every caption holds `WORD`, or `{name}` of one of `names`, and each name is in one.

    names: of several words; `{word}` could mean any of them and is refused. has_template: whether the node that asks
    has the input `template`, which the error then names. all_said: whether each of the words has to be in a caption, as
    it has to where they are learned from these.
    """
    why = "template is 'captions' and " if has_template else ""
    marks = marks_of(names)
    without = [item.path for item in items if not all(any(word in c for word in marks) for c in item.captions)]
    if without and names:
        raise InputError(
            f"{why}{len(without)} captions hold none of {', '.join(marks)}: "
            f"{', '.join(without[:8])}; write in each caption which of the words its picture shows"
        )
    captions = [caption for item in items for caption in item.captions]
    unmarks = [word for word in marks if not any(word in caption for caption in captions)]
    if names and unmarks and all_said:
        raise InputError(
            f"no caption says {unmarks[0]}, so that word would learn nothing; write it, or take it off name"
        )
    if names and any(WORD in caption for caption in captions):
        raise InputError(
            f"a caption says {WORD}, and name lists several words; write {' or '.join(marks)} in its place"
        )
    if without:
        other = (
            "choose another template"
            if has_template
            else f"set captions of Bespoke Image Folder to template and its template to 'a photo of a {WORD}'"
        )
        raise InputError(
            f"{why}{len(without)} captions do not hold {WORD}: {', '.join(without[:8])}; "
            f"write {WORD} where the new word stands, for example 'a {WORD} on a table' (for pictures on a wire in "
            f"Bespoke Image Batch), or {other}"
        )


def prompt_for(template: str, caption: str, word: str, seed: int | str, number: int, position: int) -> str:
    """The prompt of one sample.

    template: one of `TEMPLATES`. caption: used by the template "captions", a `TrainingImage.prompt`. word: replaces
    `WORD`. The sentence depends on seed, number (of the batch) and position (of the sample in it) only, so a resumed
    run draws the same ones. "negative" puts the word behind the caption of a picture that has one.
    """
    return sentence_for(template, caption, seed, number, position).replace(WORD, word)


def sentence_for(template: str, caption: str, seed: int | str, number: int, position: int) -> str:
    """`prompt_for` with the words not yet replaced."""
    if template == "captions":
        return caption
    if template == NEGATIVE_WORD and caption:
        return caption if WORD in caption else f"{caption}, {WORD}"
    sentences = {"object": OBJECT, "style": STYLE, NEGATIVE_WORD: NEGATIVE}[template]
    drawn = generator(seed, "template", number, position).initial_seed()
    return sentences[drawn % len(sentences)]


def longest_sentence(template: str, caption: str) -> str:
    """The longest that `sentence_for` gives for a caption."""
    if template == "captions":
        return caption
    if template == NEGATIVE_WORD and caption:
        return f"{caption}, {WORD}"
    return max({"object": OBJECT, "style": STYLE, NEGATIVE_WORD: NEGATIVE}[template], key=len)
