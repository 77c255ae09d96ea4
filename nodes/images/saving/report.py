"""The report of a set that was written into a folder."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from ....training.captions import PROMPT
from ....training.images import ImageSet, TrainingImage
from ..captions.text_files import in_one_line
from ..clips.layout import MASKS_IN_FILES as MASKS_OF_CLIPS
from ..masks import IN_FILES
from ..quality import counted, listed
from ..sizes import BUCKET_STEP, LARGEST_RESOLUTION, SMALL_STEP, SMALLEST_SIDE, size_of, target_size
from .save import SavedPicture, SavedSet, copies_of


def reading_settings(sizes: Sequence[tuple[int, int]]) -> tuple[int, int] | None:
    """(resolution, bucket_step) with which Image Folder leaves pictures of these sizes as they are; None for none.

    sizes: (height, width) in px.
    """
    needed = int(np.ceil(max(height * width for height, width in sizes) ** 0.5))
    resolution = max(SMALLEST_SIDE, -(-needed // 8) * 8)
    if resolution > LARGEST_RESOLUTION:
        return None
    for step in range(BUCKET_STEP, 0, -SMALL_STEP):
        if all(target_size(*size, resolution, True, step) == size for size in set(sizes)):
            return resolution, step
    return None


def report_of(saved: SavedSet, images: ImageSet) -> str:
    """What was written, how Image Folder reads it as it is, and what a folder cannot hold."""
    pictures = saved.pictures
    captions = sum(bool(picture.text) for picture in pictures)
    masks = sum(picture.mask is not None for picture in pictures)
    clips = sum(picture.item.is_clip for picture in pictures)
    what = [counted(clips, "clip")] if clips else []
    what += [counted(len(pictures) - clips, "picture")] if clips < len(pictures) else []
    what += [counted(captions, "caption file"), counted(masks, "mask")]
    what = what if masks else what[:-1]
    seconds = sum(picture.control is not None for picture in pictures)
    what = ", ".join([*what, counted(seconds, "second picture")] if seconds else what)
    where = f"input/{saved.folder}"
    first = f"Already there: {where} holds {what}; nothing was written." if saved.was_there else f"{where}: {what}."
    return "\n".join([first, _how_to_read(pictures, images), *_not_kept(pictures, images)])


def _how_to_read(pictures: Sequence[SavedPicture], images: ImageSet) -> str:
    """With which settings Image Folder reads the pictures and Clip Folder the clips as they are."""
    clips = [picture for picture in pictures if picture.item.is_clip]
    still = [picture for picture in pictures if not picture.item.is_clip]
    texts = []
    if still:
        what = "this set as it is" if not clips else "its pictures as they are"
        texts.append(f"Image Folder reads {what} with {_settings(still, images)}")
    if clips:
        frames = max(picture.item.frames for picture in clips)
        cutting = f"frames {frames}; frame_step 1; scene_threshold 0"
        what = "this set as it is" if not still else "its clips as they are"
        texts.append(f"Clip Folder reads {what} with {_settings(clips, images, cutting)}")
    if len(texts) > 1:
        texts.append("Combine Image Sets puts both together.")
    return " ".join(texts)


def _settings(pictures: Sequence[SavedPicture], images: ImageSet, cutting: str = "") -> str:
    """The values of a folder node's widgets. cutting: further ones of a node for clips."""
    settings = ["captions text files"]
    if any(len(picture.item.captions) > 1 for picture in pictures):
        settings = ["captions text files, one caption a line"]
    found = reading_settings([size_of(picture.item.pixels) for picture in pictures])
    if found:
        settings += [f"resolution {found[0]}", f"bucket_step {found[1]}"]
    settings += [cutting] if cutting else []
    if any(picture.mask is not None for picture in pictures):
        settings.append(f"masks {MASKS_OF_CLIPS if cutting else IN_FILES}")
    if any(picture.control is not None for picture in pictures):
        settings.append("pairs on")
    if any(picture.item.caption_syntax == PROMPT for picture in pictures):
        settings.append(f"caption_syntax {PROMPT}")
    if images.trigger:
        settings.append(f"trigger {images.trigger}")
    what = "clips" if cutting else "pictures"
    note = "" if found else f" Its {what} have sizes that no resolution leaves as they are."
    return f"{'; '.join(settings)}.{note}"


def _not_kept(pictures: Sequence[SavedPicture], images: ImageSet) -> list[str]:
    notes = []
    items = [picture.item for picture in pictures]
    if len(images.items) > len(items):
        notes.append(
            f"Written once: the set has {len(images.items)} pictures with mirrored, repeated and smaller copies. Image "
            "Folder makes the first two with flip and repeats."
        )
    if len({item.weight for item in images.items}) > 1:
        notes.append("Not kept: how often each picture is drawn (weights); combine the folders again.")
    if len(images.triggers) > 1:
        notes.append(
            f"Not kept: which picture has which trigger ({listed(images.triggers)}). The captions say them; what keeps "
            "a trigger in its place, such as Caption Variants, no longer knows them. To keep them, save each set alone."
        )
    groups = copies_of(images)
    other = [item.path for item, copies in zip(items, groups, strict=True) if _has_other_mask(item, copies)]
    if other:
        notes.append(f"Not kept: a second mask of {listed(other)}; the set has copies with different masks.")
    second = [item.name for item in items if item.is_clip and item.control is not None]
    if second:
        notes.append(f"Not kept: the second clips of {listed(second)}; save the set of the sources alone.")
    if any(item.variants is not None for item in items):
        notes.append("Not kept: the variants of Caption Variants; wire that node behind Image Folder again.")
    scaled = [item for item in items if item.original not in (None, size_of(item.pixels))]
    if scaled:
        notes.append(
            f"Not kept: the size before scaling and cropping of {counted(len(scaled), 'picture')}, which SDXL is told; "
            "for it the saved size counts from now on."
        )
    rounded = [
        picture.item.name
        for picture in pictures
        if picture.mask is not None
        and picture.item.mask is not None
        and not torch.equal(picture.mask.float() / 255, picture.item.mask.float())
    ]
    if rounded:
        notes.append(f"Masks are rounded to 256 steps: {listed(rounded)}.")
    spaced = [item.name for item in items if any(in_one_line(text) != text for text in item.captions)]
    if spaced:
        notes.append(f"Captions in one line, with single blanks: {listed(spaced)}.")
    empty = [item.name for item in items if "" in item.captions and any(item.captions)]
    if empty:
        notes.append(f"Empty captions beside others are not written: {listed(empty)}.")
    return notes


def _has_other_mask(item: TrainingImage, copies: Sequence[TrainingImage]) -> bool:
    """Whether a copy of the picture, neither mirrored nor smaller, has another mask."""
    size = size_of(item.pixels)
    alike = [copy for copy in copies if copy.name == item.name and size_of(copy.pixels) == size]
    return not all(_same_mask(copy, item) for copy in alike)


def _same_mask(a: TrainingImage, b: TrainingImage) -> bool:
    if a.mask is None or b.mask is None:
        return a.mask is b.mask
    return torch.equal(a.mask, b.mask)
