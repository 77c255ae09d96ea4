"""Captions: which of several is drawn, brackets that are text or emphasis, and whether one says a trigger word."""

from __future__ import annotations

import re
import unicodedata

import torch

from .randomness import generator
from .tensors import to_list

WORD = "{word}"  # stands for the word that textual inversion learns
LITERAL, PROMPT = "literal", "prompt"
CAPTION_SYNTAXES = (LITERAL, PROMPT)

_ESCAPED = re.compile(r"\\([()])")
_BRACKET = re.compile(r"[()]")
_WEIGHTED = re.compile(r"\([^()]*:\s*-?(?:\d+(?:\.\d+)?|\.\d+)\s*\)")  # "(red:1.4)"
_EMPTY_BRACKET = re.compile(r"\\?\(\s*(?::\s*-?[\d.]*\s*)?\\?\)")  # "()", "(:1.2)"
_CHOICE = re.compile(r"\{[^{}]*\|[^{}]*\}")  # "{red|blue}"
# Scripts that put no spaces between words, or write particles onto them: Thai and Lao, Tibetan, Burmese, Khmer, Hangul,
# kana and bopomofo, Han. At a letter of these no word's end can be told, so none is asked for.
_UNSPACED = re.compile(
    "[\u0e00-\u0fff\u1000-\u109f\u1100-\u11ff\u1780-\u17ff\u3005-\u3007\u3040-\u31ff\u3400-\u4dbf\u4e00-\u9fff"
    "\ua960-\ua97f\uac00-\ud7ff\uf900-\ufaff\uff66-\uffdc\U00020000-\U0003ffff]"
)


def as_prompt(caption: str, syntax: str) -> str:
    """The prompt that stands for a caption. syntax: one of `CAPTION_SYNTAXES`."""
    return literal(caption) if syntax == LITERAL else caption


def caption_number(count: int, turn: int, seed: int | str, index: int) -> int:
    """Which of an image's `count` captions is drawn at its turn number `turn`, both counted from 0.

    Every caption comes once in each `count` turns, in an order that is shuffled by the seed and the image's `index`.
    """
    if count == 1:
        return 0
    cycle, position = divmod(turn, count)
    return to_list(torch.randperm(count, generator=generator(seed, "captions", index, cycle)))[position]


def literal(text: str) -> str:
    r"""A prompt whose tokens are those of the text: ComfyUI reads its brackets as brackets and not as emphasis.

    Brackets that are escaped already, "saber \(fate\)", stay as they are. `embedding:name` and {word} keep their
    meaning, for which the prompt parser needs spaces around them: they are added where brackets, and for {word} other
    characters, stand right beside it.
    """
    plain = _ESCAPED.sub(r"\1", text)
    plain = re.sub(rf"(?<=\S){re.escape(WORD)}", f" {WORD}", plain)
    plain = re.sub(rf"{re.escape(WORD)}(?=[^\s,])", f"{WORD} ", plain)
    plain = re.sub(r"(?<=\()embedding:", " embedding:", plain)
    plain = re.sub(r"(?<!\S)embedding:\S+", lambda found: _end_name(found[0]), plain)
    return _BRACKET.sub(r"\\\g<0>", plain)


def _end_name(name: str) -> str:
    """The name of an embedding with a space before a bracket that was opened before the name."""
    depth = 0
    for position, character in enumerate(name):
        depth += (character == "(") - (character == ")")
        if depth < 0:
            return f"{name[:position]} {name[position:]}"
    return name


def has_brackets(caption: str, syntax: str) -> bool:
    """Whether the caption holds brackets that the syntax decides about. As a prompt, escaped ones are always text."""
    return bool(_BRACKET.search(caption if syntax == LITERAL else _ESCAPED.sub("", caption)))


def has_weights(caption: str) -> bool:
    """Whether the caption holds what a prompt would read as a weight, such as (red:1.4)."""
    return bool(_WEIGHTED.search(caption))


def has_choice(caption: str) -> bool:
    """Whether the caption holds what other programs draw from, such as {red|blue}, and what is text here."""
    return bool(_CHOICE.search(caption))


def says(caption: str, words: str) -> bool:
    r"""Whether `words` (one or several, with any punctuation) stand in the caption as whole words, in any case.

    "a party hat" does not say "art"; "INK drawing" says "ink". Letters, digits and accents belong to a word, all else
    ends it, "_" and "-" too. Where a script puts no spaces between words, no end is asked for. `\(` is a bracket.
    """
    wanted, text = _comparable(words), _comparable(caption)
    if not wanted:
        return False
    start = text.find(wanted)
    while start >= 0:
        end = start + len(wanted)
        if not _joined(text[start - 1 : start], wanted[0]) and not _joined(wanted[-1], text[end : end + 1]):
            return True
        start = text.find(wanted, start + 1)
    return False


def without_words(caption: str, words: str) -> str:
    """The caption without each place that says `words`, and without the brackets, commas and spaces left there.

    "(sks:1.2) dog" without "sks" is "dog": a bracket that holds nothing but a weight goes too.
    "" where nothing is left, and where what is left still says them, in a spelling that is not found here.
    """
    pattern = re.compile(r"\s+".join(map(re.escape, words.split())), re.IGNORECASE)

    def keep(found: re.Match[str]) -> str:
        before, after = caption[found.start() - 1 : found.start()], caption[found.end() : found.end() + 1]
        return found[0] if _joined(before, found[0][:1]) or _joined(found[0][-1:], after) else ""

    left = pattern.sub(keep, caption) if words.split() else caption
    if left != caption:
        left = _EMPTY_BRACKET.sub("", left)
    left = ", ".join(part for part in (" ".join(part.split()) for part in left.split(",")) if part)
    return "" if says(left, words) else left


def _comparable(text: str) -> str:
    """The text without what `says` is blind to: case, the composition of accents, escapes, the kind of spaces."""
    folded = unicodedata.normalize("NFC", unicodedata.normalize("NFC", text).casefold())
    return " ".join(_ESCAPED.sub(r"\1", folded).split())


def _joined(left: str, right: str) -> bool:
    """Whether the two neighbouring characters (or "" at the text's ends) belong to one word."""
    return _of_word(left) and _of_word(right)


def _of_word(character: str) -> bool:
    return (
        character != ""
        and (character.isalnum() or unicodedata.category(character).startswith("M"))
        and not _UNSPACED.match(character)
    )
