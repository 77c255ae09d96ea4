"""Variants of a caption: its tags in another order, and some of them left out.

A model that sees each caption word for word in every pass learns the order of the tags along with the picture. Tags in
an order of their own at each draw, and now and then missing, prevent that. What is kept in place and what is never
left out follows kohya's sd-scripts (shuffle_caption, keep_tokens, caption_tag_dropout_rate), where keep_tokens counts
tags; a fixed number of variants, whose encodings can be cached, follows diffusion-pipe (cache_shuffle_num) and
SimpleTuner (caption_shuffle, with the caption itself as the first).
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import cycle, islice

import torch

from .captions import PROMPT, WORD, says
from .randomness import generator
from .tensors import to_list

MOST_VARIANTS = 64  # of one caption
_MOST_OF_PICTURE = 4096  # entries of `fixed_variants`
_MOST_DRAWS = 5000  # to find different orders; 64 equally likely ones take 304 on average
_TAG_WORDS = 3  # a tag with more words may be a sentence

_BRACKET = re.compile(r"\\?[()\[\]{}]")
_PAIRS = {")": "(", "]": "[", "}": "{"}
_EYES = set(":;=<>^'-")  # before a bracket they make a face, such as ":("
_SENTENCE_END = re.compile(r"(?<=\w\w\w)[.!?][\"'”)]*\s+(?=[^\W\d_])")
_WEIGHTED = re.compile(r"\(+(.*?)(?::\s*-?(?:\d+(?:\.\d+)?|\.\d+)\s*)?\)+")
_ESCAPED = re.compile(r"\\([()])")


@dataclass(frozen=True)
class CaptionVariants:
    """How captions are varied.

    separator: between tags, not empty. shuffle: whether tags change places. keep_first: how many tags at the beginning
    stay where they are. drop_tags: the probability, 0..1, with which a tag is left out, of each by itself. keep_tags:
    tags that are never left out. count: the number of variants of a caption, or 0 for a new one at each draw.
    prepended, appended: tags that were added to the captions; they stay at the beginning and the end.
    """

    separator: str = ","
    shuffle: bool = True
    keep_first: int = 1
    drop_tags: float = 0.0
    keep_tags: tuple[str, ...] = ()
    count: int = 8
    prepended: tuple[str, ...] = ()
    appended: tuple[str, ...] = ()

    @property
    def varies(self) -> bool:
        """Whether any caption can come out changed."""
        return self.count != 1 and (self.shuffle or self.drop_tags > 0)

    @property
    def at_each_draw(self) -> bool:
        """Whether a new variant is made at each draw, for which the text encoder has to run in each step."""
        return self.varies and self.count == 0

    def join(self, tags: Sequence[str]) -> str:
        """The text of tags: with a blank after each separator, unless it ends with a blank or a line break."""
        return (self.separator if self.separator[-1].isspace() else self.separator + " ").join(tags)


@dataclass(frozen=True)
class CaptionParts:
    """A caption as `CaptionVariants` sees it.

    head, tail: what stays at the beginning and at the end. free: the tags between, which change places. kept: of each
    of them, whether it is never left out. sentence: the text before `tail` that was taken for sentences, or "". mark:
    what ends the tags before it, such as ".", or "" where that is the separator. whole: the caption with its tags in
    their places, as `CaptionVariants.join` writes it.
    """

    head: tuple[str, ...]
    free: tuple[str, ...]
    kept: tuple[bool, ...]
    sentence: str
    mark: str
    tail: tuple[str, ...]
    whole: str

    def text(self, free: Sequence[str], rule: CaptionVariants) -> str:
        """The caption with `free` in the place of the free tags."""
        tags, sentences = [*self.head, *free], [self.sentence] if self.sentence else []
        if tags and self.mark:
            sentences, tags = [f"{rule.join(tags)}{self.mark} {self.sentence}"], []
        return rule.join([*tags, *sentences, *self.tail])


def split_tags(text: str, separator: str, syntax: str) -> list[str]:
    r"""The tags of a caption, without blanks around them and without empty ones.

    A separator within a pair of brackets, "(red hat, blue coat:1.2)" or "\(small, grey\)", separates nothing. Brackets
    without their counterpart are text. Where brackets are no emphasis, one that ends a face, ":(", is text too.
    syntax: one of `captions.CAPTION_SYNTAXES`.
    """
    spans = _bracketed(text, syntax)
    tags, start, at = list[str](), 0, text.find(separator)
    while at >= 0:
        while spans and spans[-1][1] <= at:
            spans.pop()
        if spans and spans[-1][0] < at:
            at = text.find(separator, spans[-1][1])
            continue
        tags.append(text[start:at])
        start = at + len(separator)
        at = text.find(separator, start)
    tags.append(text[start:])
    stripped = (tag.strip().removesuffix(separator.strip()).strip() for tag in tags)
    return [tag for tag in stripped if tag]


def _bracketed(text: str, syntax: str) -> list[tuple[int, int]]:
    """(begin, end) of each pair of brackets that is in no other, the last first. Escaped ones pair with escaped ones.

    Each bracket is put on and taken off once, so that long captions take time in proportion to their length.
    """
    opened, waiting, spans = list[tuple[str, int]](), Counter[str](), list[tuple[int, int]]()
    for found in _BRACKET.finditer(text):
        escape, bracket = found[0][:-1], found[0][-1]
        if bracket not in _PAIRS:
            if syntax == PROMPT or text[found.start() - 1 : found.start()] not in _EYES:
                opened.append((found[0], found.start()))
                waiting[found[0]] += 1
            continue
        wanted, begin = escape + _PAIRS[bracket], -1
        while waiting[wanted] and begin < 0:
            kind, place = opened.pop()
            waiting[kind] -= 1
            begin = place if kind == wanted else begin
        while begin >= 0 and spans and spans[-1][0] > begin:  # in this pair
            spans.pop()
        if begin >= 0:
            spans.append((begin, found.end()))
    return spans[::-1]


def trigger_tags(tags: Sequence[str], trigger: str, rule: CaptionVariants, syntax: str) -> range:
    """The places of the first tags that say `trigger`; empty where none do. See `captions.says`."""
    count = len(split_tags(trigger, rule.separator, syntax)) if says(rule.join(tags), trigger) else 0
    for first in range(len(tags) - count + 1 if count else 0):
        if says(rule.join(tags[first : first + count]), trigger):
            return range(first, first + count)
    return range(0)


def leading_tags(tags: Sequence[str], trigger: str, rule: CaptionVariants, syntax: str) -> int:
    """How many tags at the very beginning say the trigger or {word}."""
    places = [trigger_tags(tags, word, rule, syntax) for word in (*trigger.splitlines(), WORD)]
    return max((place.stop for place in places if place and place.start == 0), default=0)


@lru_cache(maxsize=20_000)
def parts_of(text: str, rule: CaptionVariants, trigger: str, syntax: str) -> CaptionParts:
    """The parts of a caption.

    In `head` are the trigger (and {word}), then what was prepended, then the first tags up to `keep_first`, of which
    the trigger is one. A trigger that stands further back follows them. In `tail` is what was appended. For sentences
    see `_sentence`.
    """
    tags = split_tags(text, rule.separator, syntax)
    whole = rule.join(tags)
    triggers = [word for word in (*trigger.splitlines(), WORD) if says(whole, word)]
    appended = rule.appended
    if not appended or tuple(tags[-len(appended) :]) != appended:
        appended = ()
    tags = tags[: len(tags) - len(appended)]
    kept = first = leading_tags(tags, trigger, rule, syntax)
    if tuple(tags[first : first + len(rule.prepended)]) == rule.prepended:
        kept += len(rule.prepended)
    kept += max(0, rule.keep_first - first)
    head = tags[:kept]
    tags, sentence, mark = _sentence(tags[kept:], rule)
    for word in triggers:
        if not says(rule.join(head), word):
            place = trigger_tags(tags, word, rule, syntax)
            head += tags[place.start : place.stop]
            tags = [tag for i, tag in enumerate(tags) if i not in place]
    never = {plain_tag(tag) for tag in rule.keep_tags}
    protected = [plain_tag(tag) in never or any(says(tag, word) for word in triggers) for tag in tags]
    return CaptionParts(tuple(head), tuple(tags), tuple(protected), sentence, mark, appended, whole)


def plain_tag(tag: str) -> str:
    """A tag without what two spellings of it differ in: case, "_" or blank, escapes, brackets and a weight."""
    tag = tag.strip()
    found = _WEIGHTED.fullmatch(tag) if tag[:1] == "(" and tag[-1:] == ")" else None
    return " ".join(_ESCAPED.sub(r"\1", found[1] if found else tag).replace("_", " ").casefold().split())


def _sentence(tags: list[str], rule: CaptionVariants) -> tuple[list[str], str, str]:
    """(tags, sentences, mark): the tags of a caption, the text from its first sentence on, what ends the tags.

    A caption that ends with a full stop or the like ends in sentences, whose commas separate no tags. They begin with
    the first tag of more than `_TAG_WORDS` words: at the sentence that begins in it, or else at its beginning. A
    separator with such a mark separates sentences, so that there each of them is a tag.
    """
    if not tags or set(rule.separator) & set(".!?") or tags[-1].rstrip("\"'”)")[-1:] not in {".", "!", "?"}:
        return tags, "", ""
    for i, tag in enumerate(tags):
        if len(tag.split()) > _TAG_WORDS:
            for found in _SENTENCE_END.finditer(tag):
                if tag[found.end()].isupper() and len(tag[: found.start()].split()) <= _TAG_WORDS:
                    sentences = rule.join([tag[found.end() :], *tags[i + 1 :]])
                    return [*tags[:i], tag[: found.start()]], sentences, found[0].strip()
            return tags[:i], rule.join(tags[i:]), ""
    return tags, "", ""


def vary(text: str, rule: CaptionVariants, trigger: str, syntax: str, draw: torch.Generator) -> str:
    """One variant of a caption, drawn by `draw`.

    Each free tag that may be left out is so with the probability `drop_tags`, independently; those that are left come
    in an order that is uniform among all. trigger: the word that stays first and is never left out, several one a line,
    or "". syntax: one of `captions.CAPTION_SYNTAXES`.
    """
    return _drawn(parts_of(text, rule, trigger, syntax), rule, draw)


def _drawn(parts: CaptionParts, rule: CaptionVariants, draw: torch.Generator) -> str:
    count = len(parts.free)
    gone = to_list(torch.rand(count, generator=draw, dtype=torch.float64) < rule.drop_tags)
    order = to_list(torch.randperm(count, generator=draw)) if rule.shuffle else range(count)
    left = [parts.free[i] for i in order if parts.kept[i] or not gone[i]]
    return parts.text(left, rule)


@lru_cache(maxsize=20_000)
def variants_of(text: str, rule: CaptionVariants, trigger: str, syntax: str) -> tuple[str, ...]:
    """The fixed variants of a caption: itself first, then `count` - 1 that `vary` draws.

    Where nothing is left out all are different, so there are fewer for a caption of few tags: two free tags have two
    orders. Where tags are left out, a variant may come twice, as it may in that many draws. The draws depend on the
    text alone: equal captions of several pictures have equal variants.
    """
    if not rule.varies:
        return (text,)
    parts, draw = parts_of(text, rule, trigger, syntax), generator(0, "caption variants", text)
    if rule.drop_tags > 0 and not all(parts.kept):
        drawn = [_drawn(parts, rule, draw) for _ in range(rule.count - 1)]
        return (text, *(text if variant == parts.whole else variant for variant in drawn))
    orders = 1
    if rule.shuffle:
        orders = math.factorial(len(parts.free)) // math.prod(map(math.factorial, Counter(parts.free).values()))
    in_place = parts.text(parts.free, rule) == parts.whole
    different, count = {parts.whole: text}, min(rule.count, orders + (not in_place))
    for _ in range(_MOST_DRAWS):
        if len(different) == count:
            break
        variant = _drawn(parts, rule, draw)
        different.setdefault(variant, variant)
    return tuple(different.values())


def fixed_variants(texts: Sequence[str], rule: CaptionVariants, trigger: str, syntax: str) -> tuple[str, ...]:
    """The fixed variants of all captions of a picture, in their order; each caption has the same number of entries.

    A caption with fewer variants than another has each of them several times, so that the captions of a picture are
    drawn equally often.
    """
    of_each = [variants_of(text, rule, trigger, syntax) for text in texts]
    length = math.lcm(*map(len, of_each))
    if length * len(of_each) > _MOST_OF_PICTURE:
        length = max(map(len, of_each))
    return tuple(variant for variants in of_each for variant in islice(cycle(variants), length))
