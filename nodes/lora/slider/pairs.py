"""Pairs of pictures for a slider: each positive picture with its negative one."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial

import torch

from ....training.captions import PROMPT
from ....training.errors import InputError
from ....training.images import MIRRORED, ImageSet, TrainingImage
from ...images.pairing.match import key_of
from ...images.quality import listed

MOST_NAMED = 20
_listed = partial(listed, most=MOST_NAMED)


def paired(positive: ImageSet, negative: ImageSet, target: str) -> list[TrainingImage]:
    """The positive pictures, then as many negative ones: items `i` and `i + n` of the 2 n are a pair.

    Matched by name, see `key_of`, where a name is in both sets, else by order. The negative picture gets the name of
    its positive one, so that both are held out or neither, and its caption. target: the prompt of all; empty takes the
    positive picture's own. Raises `InputError` with every picture that has no other or one of another size.
    """
    by_name = _matched_by_name(positive.items, negative.items)
    if by_name is None and len(positive.items) != len(negative.items):
        raise InputError(
            f"positive_images has {len(positive.items)} pictures and negative_images {len(negative.items)}, and no "
            "name is in both; give the two pictures of a pair one name, or as many of each in one order"
        )
    others = negative.items if by_name is None else by_name
    pairs = list(zip(positive.items, others, strict=True))
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


def order_note(positive: ImageSet, negative: ImageSet) -> list[str]:
    """A line for the report where the pictures were matched by order; empty where by name."""
    if _matched_by_name(positive.items, negative.items) is not None:
        return []
    pairs = [f"{one.name} with {other.name}" for one, other in zip(positive.items, negative.items, strict=True)]
    return [f"No name is in both sets, so the pictures were matched by order: {_listed(pairs)}."]


def _matched_by_name(
    positive: Sequence[TrainingImage], negative: Sequence[TrainingImage]
) -> list[TrainingImage] | None:
    """The negative picture of each positive one by name; None where no name is in both sets."""
    ours, theirs = _by_name(positive), _by_name(negative)
    if not ours.keys() & theirs.keys():
        return None
    odd = [
        f"{name} ({len(ours[name])} positive, {len(theirs[name])} negative)"
        for name in dict.fromkeys([*ours, *theirs])
        if len(ours[name]) != len(theirs[name])
    ]
    if odd:
        raise InputError(
            f"{_count(odd, 'picture has', 'pictures have')} no other of that name: {_listed(odd)}; add the missing "
            "ones or take these out"
        )
    partner = {id(one): other for key, own in ours.items() for one, other in _within(own, theirs[key])}
    return [partner[id(item)] for item in positive]


def _within(
    ours: Sequence[TrainingImage], theirs: Sequence[TrainingImage]
) -> Iterator[tuple[TrainingImage, TrainingImage]]:
    """The pairs of as many pictures of one key: those of the very same name first, the others in their order."""
    left, waiting = list(theirs), list[TrainingImage]()
    for one in ours:
        same = next((i for i, other in enumerate(left) if _stem(other.name) == _stem(one.name)), None)
        if same is None:
            waiting.append(one)
        else:
            yield one, left.pop(same)
    yield from zip(waiting, left, strict=True)


def _by_name(items: Iterable[TrainingImage]) -> defaultdict[str, list[TrainingImage]]:
    found: defaultdict[str, list[TrainingImage]] = defaultdict(list)
    for item in items:
        found[_key(item)].append(item)
    return found


def _key(item: TrainingImage) -> str:
    """`key_of` the name; a mirrored copy has another one."""
    return key_of(item.name) + (MIRRORED if item.name.endswith(MIRRORED) else "")


def _stem(name: str) -> str:
    return name.removesuffix(MIRRORED).rpartition(".")[0] or name


def _with_prompt(item: TrainingImage, target: str) -> TrainingImage:
    """The picture with `target` in place of all its captions; as it is where that is empty."""
    if not target.strip():
        return item
    return replace(item, caption=target, more_captions=(), caption_syntax=PROMPT, variants=None, trigger="")


def _size(item: TrainingImage) -> str:
    return f"{item.size[1]} x {item.size[0]}" + (f", {item.frames} frames" if item.is_clip else "")


def _count(odd: Sequence[object], one: str, several: str) -> str:
    return f"{len(odd)} {one if len(odd) == 1 else several}"
