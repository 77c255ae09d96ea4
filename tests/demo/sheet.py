"""The contact sheet: sections of labelled pictures on one page, 1600 pixels wide."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

WIDTH, MARGIN = 1600, 40
TILE, GAP = 176, 12  # 176 is 11 pixels for each of a sprite's 16 cells
GROUP_GAP = 36
COLUMNS = (WIDTH - 2 * MARGIN + GAP) // (TILE + GAP)
PAPER, INK, FADED, RULE = (250, 249, 246), (32, 33, 38), (112, 114, 122), (222, 219, 212)


@dataclass
class Group:
    """Pictures under one label."""

    label: str
    pictures: list[Image.Image] = field(default_factory=list)


@dataclass
class Section:
    """A heading, a sentence below it, and groups."""

    title: str
    sentence: str
    groups: list[Group] = field(default_factory=list)


def _font(size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.load_default(size)


def tile(picture: Image.Image) -> Image.Image:
    """The picture scaled to TILE x TILE: small ones enlarged without smoothing, large ones reduced with smoothing."""
    picture = picture.convert("RGB")
    scale = TILE / max(picture.size)
    size = tuple(max(1, round(side * scale)) for side in picture.size)
    return picture.resize(size, Image.NEAREST if max(picture.size) <= 256 else Image.LANCZOS)


def _fit(draw: ImageDraw.ImageDraw, text: str, font: ImageFont.FreeTypeFont, width: float) -> str:
    if draw.textlength(text, font) <= width:
        return text
    while text and draw.textlength(text + "…", font) > width:
        text = text[:-1]
    return text.rstrip() + "…"


def _rows(groups: list[Group]) -> list[list[Group]]:
    """Break groups into rows like words into lines; a group wider than the page is cut into several rows."""
    pieces = []
    for group in groups:
        for start in range(0, len(group.pictures), COLUMNS):
            pieces.append(Group(group.label if start == 0 else "", group.pictures[start : start + COLUMNS]))
    rows, used = [], 0
    for piece in pieces:
        width = len(piece.pictures) * (TILE + GAP) - GAP
        if rows and used + GROUP_GAP + width <= WIDTH - 2 * MARGIN:
            rows[-1].append(piece)
            used += GROUP_GAP + width
        else:
            rows.append([piece])
            used = width
    return rows


def contact_sheet(sections: list[Section], heading: str, foot: str = "") -> Image.Image:
    """Draw the page. Its height depends on its contents."""
    head_font, title_font, text_font, label_font = _font(46), _font(32), _font(21), _font(19)
    label_height, row_gap = 30, 24
    height = MARGIN + 76
    for section in sections:
        height += 48 + 92 + len(_rows(section.groups)) * (label_height + TILE + row_gap)
    height += (48 if foot else 0) + MARGIN // 2
    page = Image.new("RGB", (WIDTH, height), PAPER)
    draw = ImageDraw.Draw(page)
    y = MARGIN
    draw.text((MARGIN, y), heading, INK, head_font)
    y += 76
    for section in sections:
        draw.line((MARGIN, y + 12, WIDTH - MARGIN, y + 12), RULE, 2)
        y += 48
        draw.text((MARGIN, y), section.title, INK, title_font)
        draw.text((MARGIN, y + 44), _fit(draw, section.sentence, text_font, WIDTH - 2 * MARGIN), FADED, text_font)
        y += 92
        for row in _rows(section.groups):
            x = MARGIN
            for group in row:
                width = len(group.pictures) * (TILE + GAP) - GAP
                draw.text((x, y), _fit(draw, group.label, label_font, width), INK, label_font)
                for i, picture in enumerate(group.pictures):
                    small = tile(picture)
                    at = (
                        x + i * (TILE + GAP) + (TILE - small.width) // 2,
                        y + label_height + (TILE - small.height) // 2,
                    )
                    page.paste(small, at)
                    draw.rectangle((at[0] - 1, at[1] - 1, at[0] + small.width, at[1] + small.height), outline=RULE)
                x += width + GROUP_GAP
            y += label_height + TILE + row_gap
    if foot:
        draw.text((MARGIN, y), _fit(draw, foot, text_font, WIDTH - 2 * MARGIN), FADED, text_font)
    return page


def save(page: Image.Image, path: Path) -> Path:
    """Write the page as PNG."""
    path.parent.mkdir(parents=True, exist_ok=True)
    page.save(path, optimize=True)
    return path


def thumbnail(section: Section) -> Image.Image:
    """A workflow's picture in the template browser, 480x320 px: the first picture of up to six groups, with labels."""
    firsts = [(group.label, group.pictures[0]) for group in section.groups if group.pictures][:6]
    columns = {1: 1, 2: 2, 4: 2}.get(len(firsts), 3)
    rows = -(-len(firsts) // columns)
    page, font, words = Image.new("RGB", (480, 320), PAPER), _font(13), 18  # px: the height of a label
    draw = ImageDraw.Draw(page)
    room = (480 - GAP) // columns - GAP  # for a picture's label
    side = min(room, (320 - GAP) // rows - words - GAP)
    top = (320 - rows * (side + words + GAP) + GAP) // 2
    for i, (label, picture) in enumerate(firsts):
        scale = side / max(picture.size)
        size = tuple(max(1, round(length * scale)) for length in picture.size)
        small = picture.convert("RGB").resize(size, Image.NEAREST if scale >= 1 else Image.LANCZOS)
        middle, y = GAP + i % columns * (room + GAP) + room // 2, top + i // columns * (side + words + GAP)
        draw.text((middle, y), _fit(draw, label, font, room + GAP // 2), INK, font, anchor="ma")
        page.paste(small, (middle - size[0] // 2, y + words + (side - size[1]) // 2))
    return page
