"""A contact sheet of a training set, and its report."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image, ImageDraw

from ...training.captions import PROMPT, has_brackets, has_choice, has_weights
from ...training.images import ImageSet, TrainingImage, passes
from ..bridge.drawing.fonts import drawable
from ..bridge.drawing.image import paste_middle, scaled, stacked, tensor_of
from ..bridge.drawing.palette import FAINT, INK, LINE, NO_CAPTION, PAPER
from ..bridge.drawing.text_layout import fit_lines
from .quality import counted, listed

PASSES = (
    "; 5 to 20 pictures are enough for a subject, 50 to 200 for a style. The risk is too many passes, not too few "
    "pictures."
)
THUMB, TEXT, GAP, HEADING = 192, 54, 12, 32  # px
BETWEEN = 24  # px between the two pictures of a pair
STRIP, STRIP_GAP = 3, 4  # frames that are shown of a clip, and px between them
MOST = 60  # pictures on a sheet


def contact_sheet(images: ImageSet) -> torch.Tensor:
    """Every picture (the first 60) with its caption under it: [1, H, W, 3] in 0..1.

    A second picture stands to the left of its picture. Of a clip the first, the middle and the last frame are shown,
    with the number of frames and their rate before the caption.
    """
    items = images.items[:MOST]
    cell = _cell_of(items)
    return tensor_of(_grid(items, _most_columns(6, cell), cell))


def sheet_of_sets(sets: Sequence[tuple[str, Sequence[TrainingImage]]]) -> torch.Tensor:
    """The pictures of several sets, each set under its heading: [1, H, W, 3] in 0..1.

    At most 60 in all, of each set as many as of the others where it has them; the heading says how many are left out.
    """
    room, shown = MOST, list[int]()
    for number, count in enumerate(sorted(len(items) for _, items in sets)):
        shown.append(max(1, min(count, room // (len(sets) - number))))
        room -= shown[-1]
    most = shown[-1]
    cell = _cell_of([item for _, items in sets for item in items])
    columns = min(_most_columns(6, cell), max(min(most, len(items)) for _, items in sets))
    rows = list[Image.Image]()
    for heading, items in sets:
        more = len(items) - most
        heading += f" ({more} more are not shown)" if more > 0 else ""
        rows += [_heading(heading, columns * (cell + GAP) + GAP), _grid(items[:most], columns, cell)]
    return tensor_of(stacked(rows))


def _heading(text: str, width: int) -> Image.Image:
    """A line of text in a band of its own colour. width: px."""
    bar = Image.new("RGB", (width, HEADING), LINE)
    text, font = drawable(text, 17)
    line = fit_lines(text, font, width - 2 * GAP, 1)[0]
    ImageDraw.Draw(bar).text((GAP, HEADING / 2), line, INK, font, anchor="lm")
    return bar


def _cell_of(items: Sequence[TrainingImage]) -> int:
    """The width in px that each item takes: of the widest, a pair or the strip of a clip."""
    return max(map(_width_of, items))


def _width_of(item: TrainingImage) -> int:
    """The width in px of an item: a picture, or the strip of a clip, with its second picture before it."""
    own = STRIP * (THUMB + STRIP_GAP) - STRIP_GAP if item.is_clip else THUMB
    return own if item.control is None else own + THUMB + BETWEEN


def _most_columns(most: int, cell: int) -> int:
    """How many columns a sheet has, where it has `most` of single pictures: fewer of wider items."""
    if cell > 2 * THUMB + BETWEEN:
        return max(1, round(most * THUMB / cell))
    return most if cell == THUMB else most // 2


def _grid(items: Sequence[TrainingImage], most_columns: int, cell: int) -> Image.Image:
    """Pictures with their captions in rows of at most `most_columns`. cell: see `_cell_of`."""
    columns = min(most_columns, len(items))
    rows = -(-len(items) // columns)
    sheet = Image.new("RGB", (columns * (cell + GAP) + GAP, rows * (THUMB + TEXT + GAP) + GAP), PAPER)
    draw = ImageDraw.Draw(sheet)
    for i, item in enumerate(items):
        x, y = GAP + i % columns * (cell + GAP), GAP + i // columns * (THUMB + TEXT + GAP)
        _draw_item(sheet, draw, item, (x, y), cell)
    return sheet


def _draw_item(
    sheet: Image.Image, draw: ImageDraw.ImageDraw, item: TrainingImage, corner: tuple[int, int], cell: int
) -> None:
    """An item at (x, y) in px with its caption under it. cell: see `_cell_of`."""
    x, y = corner
    own = STRIP * (THUMB + STRIP_GAP) - STRIP_GAP if item.is_clip else THUMB
    if item.control is not None:
        control = item.control[0] if item.is_clip else item.control
        paste_middle(sheet, scaled(Image.fromarray(control.numpy()), THUMB), (x, y), THUMB)
        middle, left = y + THUMB // 2, x + THUMB
        draw.polygon([(left + 8, middle - 7), (left + BETWEEN - 8, middle), (left + 8, middle + 7)], INK)
        x += cell - own
    for number, (pixels, mask) in enumerate(shown_frames(item)):
        picture = scaled(Image.fromarray(pixels.contiguous().numpy()), THUMB)
        if mask is not None:
            size = picture.size
            keep = Image.fromarray((mask.numpy() * 255).astype(np.uint8)).resize(size)
            picture = Image.composite(picture, Image.blend(picture, Image.new("RGB", size, PAPER), 0.75), keep)
        paste_middle(sheet, picture, (x + number * (THUMB + STRIP_GAP), y), THUMB)
    x, width = corner[0], cell if item.control is not None else own
    text, font = drawable(item.caption or "(no caption)", 13)
    lines = fit_lines(text, font, width, 2 if item.is_clip else 3)
    colour, top = INK if item.caption else NO_CAPTION, y + THUMB + 4
    if item.is_clip:
        length, fixed = drawable(length_of(item), 13)
        draw.text((x, top), length, FAINT, fixed)
        top += 17
    draw.multiline_text((x, top), "\n".join(lines), colour, font, spacing=2)


def shown_frames(item: TrainingImage) -> list[tuple[torch.Tensor, torch.Tensor | None]]:
    """(pixels [H, W, 3], mask [H, W] or None) of a picture, or of the first, middle and last frame of a clip."""
    if not item.is_clip:
        return [(item.pixels, item.mask)]
    chosen = dict.fromkeys((0, item.frames // 2, item.frames - 1))
    return [(item.pixels[i], None if item.mask is None else item.mask[i]) for i in chosen]


def length_of(item: TrainingImage) -> str:
    """The length of a clip in words: "33 frames at 16 a second, 2.1 s"."""
    frames = counted(item.frames, "frame")
    return f"{frames} at {item.fps:.4g} a second, {item.seconds:.1f} s" if item.fps else frames


def tensors_of(images: ImageSet) -> list[torch.Tensor]:
    """Every picture once, without mirrored and repeated copies: [1, H, W, 3] in 0..1 float32 each; clips [F, ...]."""
    items = [images.items[copies[0]] for copies in images.copies()]
    return [(item.pixels if item.is_clip else item.pixels[None]).float() / 255 for item in items]


def _bracket_notes(images: ImageSet) -> list[str]:
    """What the brackets of the captions mean, and in how many pictures' captions they are."""
    items = [images.items[copies[0]] for copies in images.copies()]
    with_brackets = [item for item in items if has_brackets(item.caption, item.caption_syntax)]
    if not with_brackets:
        return []
    some = len(with_brackets)
    count = f"{some} of {len(items)} captions {'holds' if some == 1 else 'hold'} brackets"
    if with_brackets[0].caption_syntax == PROMPT:
        return [
            f"{count}, which are read as emphasis; for tags such as saber (fate), where they are text, set "
            "caption_syntax to literal."
        ]
    weighted = sum(has_weights(item.caption) for item in with_brackets)
    note = f"{count}, which are read as text."
    if weighted:
        note += (
            f" {weighted} of them with a number, as in (red:1.4): if this is meant as a prompt weight, set "
            "caption_syntax to prompt."
        )
    return [note]


def _choice_notes(images: ImageSet) -> list[str]:
    """The pictures whose captions hold {red|blue}, of which sd-scripts draws one word with `enable_wildcard`."""
    items = [images.items[copies[0]] for copies in images.copies()]
    names = [item.name for item in items if any(map(has_choice, item.captions))]
    if not names:
        return []
    return [
        f"Captions with a choice such as {{red|blue}}, which is read as text and not drawn from: {listed(names)}. "
        "Write a caption for each choice; in a folder with captions 'text files, one caption a line'."
    ]


def _bucket(count: int, item: TrainingImage) -> str:
    """How many items have the frames and the size of one: "2 at 512x320 px, 33 frames"."""
    height, width = item.size
    return f"{count} at {width}x{height} px" + (f", {counted(item.frames, 'frame')}" if item.is_clip else "")


def kinds_of(images: ImageSet) -> str:
    """How many pictures and clips a set has, without copies: see `kinds_in`."""
    return kinds_in([images.items[copies[0]] for copies in images.copies()])


def kinds_in(distinct: Sequence[TrainingImage]) -> str:
    """How many pictures and clips there are: "3 pictures", "2 clips and 3 pictures"."""
    clips = sum(item.is_clip for item in distinct)
    parts = [counted(clips, "clip")] if clips else []
    if clips < len(distinct):
        parts.append(counted(len(distinct) - clips, "picture"))
    return " and ".join(parts)


def describe(images: ImageSet) -> str:
    """The report of a set: how many pictures, their sizes and captions, and the notes from reading them."""
    sizes = [_bucket(len(group), images.items[group[0]]) for group in images.by_size()]
    captions = {caption for item in images.items for caption in item.captions}
    distinct, copies = len(images.copies()), len(images.items)
    count = kinds_of(images)
    if copies != distinct:
        count += f", {copies} with mirrored and repeated ones"
    lines = [f"{count}: {', '.join(sizes)}."]
    if captions == {""}:
        lines.append("No captions: the model will learn the pictures for an empty prompt.")
    else:
        lines.append(
            f"{counted(len(captions), 'different caption')}, for example "
            f"{min(captions - {''}, key=lambda text: (len(text), text))!r}."
        )
    if images.triggers:
        words, prompt = ", ".join(images.triggers), images.trigger_prompt
        several = "s" if len(images.triggers) > 1 else ""
        lines.append(f"Trigger word{several}: {words}." + (f" In prompts write {prompt}." if prompt != words else ""))
    lines += _bracket_notes(images) + _choice_notes(images)
    pairs = [own for own in images.copies() if images.items[own[0]].control is not None]
    if pairs:
        some = "each picture has" if len(pairs) == distinct else f"{counted(len(pairs), 'picture')} of {distinct} have"
        lines.append(
            f"Pairs: {some} a second one, the source that an edit model is given; the caption is the instruction."
        )
    if any(item.mask is not None for item in images.items):
        lines.append("Masks: only what they let through counts in the loss.")
    each = "clip" if images.has_clips else "picture"
    average = " on average" if len({item.weight for item in images.items}) > 1 else ""
    lines.append(
        f"100 steps of batch_size 4 are about {passes(distinct, 100, 4):.0f} passes over each {each}{average}"
        + ("." if images.has_clips else PASSES)
    )
    if len(images.items) > MOST:
        lines.append(f"The sheet shows the first {MOST}.")
    lines += images.notes
    return "\n".join(lines)
