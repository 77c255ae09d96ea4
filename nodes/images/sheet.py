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
from ..bridge.drawing.palette import INK, LINE, NO_CAPTION, PAPER
from ..bridge.drawing.text_layout import fit_lines
from .quality import counted, listed

THUMB, TEXT, GAP, HEADING = 192, 54, 12, 32  # px
BETWEEN = 24  # px between the two pictures of a pair
MOST = 60  # pictures on a sheet


def contact_sheet(images: ImageSet) -> torch.Tensor:
    """Every picture (the first 60) with its caption under it: [1, H, W, 3] in 0..1.

    A second picture stands to the left of its picture.
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
    """The width in px that each item takes: two pictures wide where any has a second one."""
    return THUMB if all(item.control is None for item in items) else 2 * THUMB + BETWEEN


def _most_columns(most: int, cell: int) -> int:
    """How many columns a sheet has, where it has `most` of single pictures: half as many of pairs."""
    return most if cell == THUMB else max(1, most // 2)


def _grid(items: Sequence[TrainingImage], most_columns: int, cell: int) -> Image.Image:
    """Pictures with their captions in rows of at most `most_columns`. cell: see `_cell_of`."""
    columns = min(most_columns, len(items))
    rows = -(-len(items) // columns)
    sheet = Image.new("RGB", (columns * (cell + GAP) + GAP, rows * (THUMB + TEXT + GAP) + GAP), PAPER)
    draw = ImageDraw.Draw(sheet)
    for i, item in enumerate(items):
        x, y = GAP + i % columns * (cell + GAP), GAP + i // columns * (THUMB + TEXT + GAP)
        if item.control is not None:
            paste_middle(sheet, scaled(Image.fromarray(item.control.numpy()), THUMB), (x, y), THUMB)
            middle, left = y + THUMB // 2, x + THUMB
            draw.polygon([(left + 8, middle - 7), (left + BETWEEN - 8, middle), (left + 8, middle + 7)], INK)
        picture = scaled(Image.fromarray(item.pixels.numpy()), THUMB)
        if item.mask is not None:
            size = picture.size
            keep = Image.fromarray((item.mask.numpy() * 255).astype(np.uint8)).resize(size)
            picture = Image.composite(picture, Image.blend(picture, Image.new("RGB", size, PAPER), 0.75), keep)
        paste_middle(sheet, picture, (x + cell - THUMB if item.control is not None else x, y), THUMB)
        text, font = drawable(item.caption or "(no caption)", 13)
        lines = fit_lines(text, font, cell if item.control is not None else THUMB, 3)
        draw.multiline_text((x, y + THUMB + 4), "\n".join(lines), INK if item.caption else NO_CAPTION, font, spacing=2)
    return sheet


def tensors_of(images: ImageSet) -> list[torch.Tensor]:
    """Every picture once, without mirrored and repeated copies: [1, H, W, 3] in 0..1 float32 each."""
    return [images.items[copies[0]].pixels[None].float() / 255 for copies in images.copies()]


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


def describe(images: ImageSet) -> str:
    """The report of a set: how many pictures, their sizes and captions, and the notes from reading them."""
    sizes = [
        f"{len(group)} at {size[1]}x{size[0]} px"
        for group in images.by_size()
        for size in [images.items[group[0]].pixels.shape]
    ]
    captions = {caption for item in images.items for caption in item.captions}
    distinct, copies = len(images.copies()), len(images.items)
    count = (
        counted(distinct, "picture")
        if copies == distinct
        else f"{counted(distinct, 'picture')}, {copies} with mirrored and repeated ones"
    )
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
    average = " on average" if len({item.weight for item in images.items}) > 1 else ""
    lines.append(
        f"100 steps of batch_size 4 are about {passes(distinct, 100, 4):.0f} passes over each picture{average}; 5 to "
        "20 pictures are enough for a subject, 50 to 200 for a style. The risk is too many passes, not too few "
        "pictures."
    )
    if len(images.items) > MOST:
        lines.append(f"The sheet shows the first {MOST}.")
    lines += images.notes
    return "\n".join(lines)
