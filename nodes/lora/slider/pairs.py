"""Pairs of pictures for a slider: each positive picture with its negative one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence, Sized
from dataclasses import replace
from functools import partial

import torch

from ....training.captions import PROMPT
from ....training.errors import InputError
from ....training.images import MIRRORED, ImageSet, TrainingImage
from ...images.pairing.match import Matched, key_of, matched_names
from ...images.quality import listed

MOST_NAMED = 20
_listed = partial(listed, most=MOST_NAMED)


def paired(positive: ImageSet, negative: ImageSet, target: str) -> list[TrainingImage]:
    """The positive pictures, then as many negative ones: items `i` and `i + n` of the 2 n are a pair.

    Matched by name, see `key_of`, where a name is in both sets, else by order. The negative picture gets the name of
    its positive one, so that both are held out or neither, and its caption. target: the prompt of all; empty takes the
    positive picture's own. Raises `InputError` with every picture that has no other or one of another size.
    """
    found = _matched(positive.items, negative.items)
    pairs = [(one, negative.items[found.pairs[i]]) for i, one in enumerate(positive.items)]
    odd = [
        f"{one.name} ({_size(one)}) and {other.name} ({_size(other)})"
        for one, other in pairs
        if _size(one) != _size(other)
    ]
    if odd:
        raise InputError(f"{_count(odd, 'pair has', 'pairs have')} two sizes: {_listed(odd)}; crop them alike")
    same = [one.name for one, other in pairs if torch.equal(one.pixels, other.pixels)]
    if same:
        raise InputError(
            f"{_count(same, 'pair is', 'pairs are')} one picture twice: {_listed(same)}; wire two sets that differ in "
            "what the slider is to change"
        )
    first = [_with_prompt(one, target) for one, _ in pairs]
    second = [
        replace(one, pixels=other.pixels, mask=other.mask, original=other.original, crop=other.crop)
        for one, (_, other) in zip(first, pairs, strict=True)
    ]
    return [*first, *second]


def how_matched(positive: ImageSet, negative: ImageSet) -> str:
    """A line for the report: how many pairs were matched by name, or which by order. For sets that `paired` takes."""
    found = _matched(positive.items, negative.items)
    if not found.by_order:
        return f"The pictures of {_count(found.pairs, 'pair', 'pairs')} were matched by name."
    pairs = [f"{one.name} with {other.name}" for one, other in zip(positive.items, negative.items, strict=True)]
    return f"No name is in both sets, so the pictures were matched by order: {_listed(pairs)}."


def _matched(positive: Sequence[TrainingImage], negative: Sequence[TrainingImage]) -> Matched:
    """Raises `InputError` with all pictures without a partner."""
    ours, theirs = [item.name for item in positive], [item.name for item in negative]
    found = matched_names(ours, theirs, _key, in_order=True)
    count, other = Counter(map(_key, ours)), Counter(map(_key, theirs))
    odd = [
        f"{key} ({count[key]} positive, {other[key]} negative)"
        for key in dict.fromkeys([*count, *other])
        if count[key] != other[key]
    ]
    if odd and len(found.lonely_results) == len(ours):
        raise InputError(
            f"positive_images has {len(ours)} pictures and negative_images {len(theirs)}, and no name is in both; give "
            "the two pictures of a pair one name, or as many of each in one order"
        )
    if odd and not found.by_order:
        raise InputError(
            f"{_count(odd, 'picture has', 'pictures have')} no other of that name: {_listed(odd)}; add the missing "
            "ones or take these out"
        )
    return found


def _key(name: str) -> str:
    """`key_of` the name; a mirrored copy has another one."""
    return key_of(name) + (MIRRORED if name.endswith(MIRRORED) else "")


def _with_prompt(item: TrainingImage, target: str) -> TrainingImage:
    """The picture with `target` in place of all its captions; as it is where that is empty."""
    if not target.strip():
        return item
    return replace(item, caption=target, more_captions=(), caption_syntax=PROMPT, variants=None, trigger="")


def _size(item: TrainingImage) -> str:
    return f"{item.size[1]} x {item.size[0]}" + (f", {item.frames} frames" if item.is_clip else "")


def _count(odd: Sized, one: str, several: str) -> str:
    return f"{len(odd)} {one if len(odd) == 1 else several}"
