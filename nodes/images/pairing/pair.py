"""Two training sets as one of pairs: the sources and what an edit model should make of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from ....training.errors import InputError
from ....training.images import MIRRORED, ImageSet, TrainingImage
from ..fingerprint import fingerprint
from ..quality import counted, listed
from ..reading.bands import fit_item
from ..sizes import LEAST_KEPT, kept, size_of
from .match import matched_names

SAME_RATE = 0.01  # of a rate: two that differ by more are not the same
SHIFT = 0.01  # of a side: a source that shows so much more or less than its result is named


def pair_sets(source: ImageSet, result: ImageSet) -> ImageSet:
    """The set `result`, each item with its picture of `source` as `TrainingImage.control`.

    Pictures are matched by name, see `matched_names`. A source is scaled to cover the size of its result and cropped at
    the middle, and is mirrored with it. Captions, masks, weights and sizes are those of `result`. Raises `InputError`
    that names every picture without a partner, and for sets that are pairs already.
    """
    for name, images in (("source", source), ("result", result)):
        own = [item.path for item in images.items if item.control is not None]
        if own:
            raise InputError(
                f"the set {name} is one of pairs already ({listed(own)} has a second picture); wire it to the trainer, "
                "or switch pairs off in the node that reads it"
            )
    sources, results = _pictures(source), _pictures(result)
    found = matched_names([item.name for item in results], [item.name for item in sources])
    wrong = [f"{results[i].path} of result has no source" for i in found.lonely_results]
    wrong += [f"{sources[j].path} of source has no result" for j in found.lonely_sources]
    wrong += [
        f"{', '.join(results[i].path for i in own)} of result and {', '.join(sources[j].path for j in theirs)} of "
        "source have one name"
        for own, theirs in found.ambiguous
    ]
    if wrong:
        raise InputError(
            f"{len(wrong)} of the pictures make no pair; give both pictures of a pair one name, or leave them out: "
            + "; ".join(wrong)
        )
    partner = {results[i].picture: sources[j] for i, j in found.pairs.items()}
    items = tuple(_with_control(item, partner[item.picture]) for item in result.items)
    notes = _notes([(item, partner[item.picture]) for item in results], found.by_order)
    notes += _caption_note(source, result)
    return ImageSet(items, result.trigger, fingerprint(items), (*result.notes, *notes))


def _pictures(images: ImageSet) -> list[TrainingImage]:
    """One item of each picture: its largest, not mirrored where there is one."""
    out = list[TrainingImage]()
    for own in images.copies():
        items = [images.items[i] for i in own]
        plain = [item for item in items if not item.name.endswith(MIRRORED)] or items
        out.append(max(plain, key=lambda item: item.pixels.numel()))
    return out


def _with_control(item: TrainingImage, source: TrainingImage) -> TrainingImage:
    """The item with the pixels of `source` in its geometry. Raises `InputError` for clips of other frames or times."""
    if (item.is_clip, item.frames) != (source.is_clip, source.frames):
        raise InputError(
            f"{source.path} of source is {_kind(source)} and {item.path} of result {_kind(item)}; read both films with "
            "the same frames, fps and frame_step"
        )
    _check_times(item, source)
    pixels = fit_item(source.pixels, size_of(item.pixels), item.is_clip)
    assert pixels is not None
    if item.name.endswith(MIRRORED) != source.name.endswith(MIRRORED):
        pixels = pixels.flip(-2)
    return replace(item, control=pixels)


def _check_times(item: TrainingImage, source: TrainingImage) -> None:
    """Raise `InputError` for two clips whose frames are not of the same times of their films."""
    if not (item.fps and source.fps):
        return
    if abs(source.fps / item.fps - 1) > SAME_RATE:
        raise InputError(
            f"{source.path} of source has {source.fps:.4g} frames a second and {item.path} of result {item.fps:.4g}, "
            "so their frames are of different times; give both nodes the same fps"
        )
    if abs(source.start - item.start) > 0.5 / item.fps:
        raise InputError(
            f"{source.path} of source begins {source.start:.2f} s after the start of its film and {item.path} of "
            f"result {item.start:.2f} s, as their scenes were found at different places; set scene_threshold of both "
            "nodes to 0, with the same stride and max_clips"
        )


def _kind(item: TrainingImage) -> str:
    return f"a clip of {counted(item.frames, 'frame')}" if item.is_clip else "a picture"


def _notes(pairs: Sequence[tuple[TrainingImage, TrainingImage]], by_order: bool) -> list[str]:
    notes = list[str]()
    if by_order:
        first, last = pairs[0], pairs[-1]
        notes.append(
            f"No names in common: {counted(len(pairs), 'pair')} matched by order, {first[1].name} to {first[0].name} "
            f"up to {last[1].name} to {last[0].name}."
        )
    cropped, enlarged, same, apart = list[str](), list[str](), list[str](), list[str]()
    for item, source in pairs:
        size, theirs = size_of(item.pixels), size_of(source.pixels)
        if kept(*theirs, *size) < LEAST_KEPT:
            cropped.append(f"{source.path} ({theirs[1]}x{theirs[0]} px, its result {size[1]}x{size[0]})")
        if theirs[0] < size[0] or theirs[1] < size[1]:
            enlarged.append(f"{source.path} ({theirs[1]}x{theirs[0]} px)")
        if _is_one_shape(item, source) and _differs(_part_in(source, size), _part_in(item, size)):
            apart.append(source.path)
        if torch.equal(item.pixels, source.pixels):
            same.append(item.path)
    if cropped:
        notes.append(f"Sources of another shape, cropped at the middle: {listed(cropped)}.")
    if enlarged:
        notes.append(f"Sources enlarged to the size of their results: {listed(enlarged)}.")
    if apart:
        notes.append(
            f"Sources that show another part of the picture than their results: {listed(apart)}. They were read at "
            "another size and cropped twice, which would teach the model to move the picture. Read both sets from "
            "files of one size, or use pairs of Bespoke Image Folder, which crops a source once."
        )
    if same:
        notes.append(f"Nothing changes in {listed(same)}: source and result are the same picture.")
    return notes


def _is_one_shape(item: TrainingImage, source: TrainingImage) -> bool:
    """Whether both files have the same proportions, so that their pictures should show the same part."""
    (height, width), (own_height, own_width) = (each.original or size_of(each.pixels) for each in (item, source))
    return abs(height * own_width / (width * own_height) - 1) <= SHIFT


def _part_in(item: TrainingImage, size: tuple[int, int]) -> tuple[float, float]:
    """The share of the height and of the width of its file that an item shows once it is fitted to `size` in px."""
    own = size_of(item.pixels)
    height, width = _covered(item.original or own, own)
    rows, columns = _covered(own, size)
    return height * rows, width * columns


def _covered(given: tuple[int, int], size: tuple[int, int]) -> tuple[float, float]:
    """The shares of (height, width) that are left of `given` scaled to cover `size` and cropped to it."""
    scale = max(size[0] / given[0], size[1] / given[1])
    return size[0] / (given[0] * scale), size[1] / (given[1] * scale)


def _differs(one: tuple[float, float], other: tuple[float, float]) -> bool:
    return any(abs(a / b - 1) > SHIFT for a, b in zip(one, other, strict=True))


def _caption_note(source: ImageSet, result: ImageSet) -> list[str]:
    """That the instructions are empty; the captions of `result` are the instructions."""
    if any(item.caption for item in result.items):
        return []
    where = " The captions of source are not used." if any(item.caption for item in source.items) else ""
    return [f"No instructions: the captions of result are empty, and they say what the model should do.{where}"]
