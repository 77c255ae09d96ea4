"""The contact sheet: one row for each technique, its headline at the left and its pictures at the right."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

WIDTH, MARGIN = 1600, 40
TILE, GAP = 176, 12  # 176 is 11 pixels for each of a sprite's 16 cells
BIG = 256  # px: a tile where a section has few pictures
GROUP_GAP, ROW_GAP, LABEL = 36, 22, 30
TEXT_WIDTH, TEXT_GAP = 340, 24  # px: of the headlines, and between them and the pictures
LEFT = MARGIN + TEXT_WIDTH + TEXT_GAP
ROOM = WIDTH - MARGIN - LEFT
COLUMNS = (ROOM + GAP) // (TILE + GAP)
HEAD, KICKER, TITLE, TEXT, NAME = 56, 19, 34, 20, 19  # px: sizes of letters
PAPER, INK, FADED, RULE = (250, 249, 246), (32, 33, 38), (98, 96, 90), (222, 219, 212)
ACCENT = (170, 90, 18)
CARD, CARD_TEXT = (480, 320), 28  # px: 13 px where a template's card is shown 220 px wide


@dataclass
class Group:
    """Pictures under one label."""

    label: str
    pictures: list[Image.Image] = field(default_factory=list)


@dataclass
class Section:
    """What one workflow made: the name of the technique, a headline, a sentence, and groups."""

    technique: str
    title: str
    sentence: str
    groups: list[Group] = field(default_factory=list)


@dataclass
class Placed:
    """A group's pictures in a row: its corner in the section's room, and the side of a picture."""

    group: Group
    x: int
    y: int
    side: int = TILE


def _font(size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.load_default(size)


def tile(picture: Image.Image, side: int = TILE) -> Image.Image:
    """The picture scaled to side x side px: small ones enlarged without smoothing, large ones reduced with it."""
    picture = picture.convert("RGB")
    scale = side / max(picture.size)
    size = tuple(max(1, round(length * scale)) for length in picture.size)
    return picture.resize(size, Image.NEAREST if max(picture.size) <= 256 else Image.LANCZOS)


def _lines(draw: ImageDraw.ImageDraw, text: str, font: ImageFont.FreeTypeFont, width: float) -> list[str]:
    """The text in lines of at most `width` px, broken between words."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and draw.textlength(longer, font) > width:
            lines.append(word)
        else:
            lines[-1] = longer
    return lines


def _fit(draw: ImageDraw.ImageDraw, text: str, font: ImageFont.FreeTypeFont, width: float) -> str:
    if draw.textlength(text, font) <= width:
        return text
    while text and draw.textlength(text + "…", font) > width:
        text = text[:-1]
    return text.rstrip() + "…"


def _place(groups: list[Group]) -> tuple[list[Placed], int]:
    """(the groups with their places, the height of all in px).

    Where several groups have several pictures, which are of the same seeds, they stand below each other, so that a
    column is one seed; the first group of one picture, the training set, stands large at their left.
    """
    if len(groups) * (BIG + GROUP_GAP) - GROUP_GAP <= ROOM and all(len(group.pictures) == 1 for group in groups):
        return [Placed(group, i * (BIG + GROUP_GAP), 0, BIG) for i, group in enumerate(groups)], LABEL + BIG + ROW_GAP
    many = [group for group in groups if 1 < len(group.pictures) <= COLUMNS]
    if len(many) < 2:
        return _flow(groups, 0)
    others = [group for group in groups if group not in many]
    lead = next((group for group in others if len(group.pictures) == 1), None)
    step = LABEL + TILE + ROW_GAP
    high = len(many) * step
    side = min(high - LABEL - ROW_GAP, 2 * TILE + GAP)
    widest = max(len(group.pictures) for group in many) * (TILE + GAP) - GAP
    x = 0
    placed = []
    if lead is not None and side + GROUP_GAP + widest <= ROOM:
        placed.append(Placed(lead, 0, 0, side))
        others.remove(lead)
        x = side + GROUP_GAP
    placed += [Placed(group, x, row * step) for row, group in enumerate(many)]
    rest, bottom = _flow(others, high)
    return placed + rest, bottom


def _flow(groups: list[Group], top: int) -> tuple[list[Placed], int]:
    """Groups side by side like words in lines; one that is wider than the room is cut into several rows."""
    placed, x, y = [], 0, top
    for group in groups:
        for start in range(0, len(group.pictures), COLUMNS):
            piece = Group(group.label if start == 0 else "", group.pictures[start : start + COLUMNS])
            width = len(piece.pictures) * (TILE + GAP) - GAP
            if x and x + width > ROOM:
                x, y = 0, y + LABEL + TILE + ROW_GAP
            placed.append(Placed(piece, x, y))
            x += width + GROUP_GAP
    return placed, (y + LABEL + TILE + ROW_GAP) if placed and x else top


def _draw_group(page: Image.Image, placed: Placed, corner: tuple[int, int]) -> None:
    draw, font = ImageDraw.Draw(page), _font(NAME)
    left, top, side = corner[0] + placed.x, corner[1] + placed.y, placed.side
    width = len(placed.group.pictures) * (side + GAP) - GAP
    draw.text((left, top), _fit(draw, placed.group.label, font, width), INK, font)
    for i, picture in enumerate(placed.group.pictures):
        small = tile(picture, side)
        at = (
            left + i * (side + GAP) + (side - small.width) // 2,
            top + LABEL + (side - small.height) // 2 * (side <= BIG),
        )
        page.paste(small, at)
        draw.rectangle((at[0] - 1, at[1] - 1, at[0] + small.width, at[1] + small.height), outline=RULE)


def _draw_words(draw: ImageDraw.ImageDraw, section: Section, top: int) -> int:
    """The words of a section at the left; gives their lower edge."""
    y = top
    draw.text((MARGIN, y), section.technique.upper(), ACCENT, _font(KICKER))
    y += KICKER + 14
    for line in _lines(draw, section.title, _font(TITLE), TEXT_WIDTH):
        draw.text((MARGIN, y), line, INK, _font(TITLE))
        y += round(TITLE * 1.2)
    y += 8
    for line in _lines(draw, section.sentence, _font(TEXT), TEXT_WIDTH):
        draw.text((MARGIN, y), line, FADED, _font(TEXT))
        y += round(TEXT * 1.4)
    return y


def contact_sheet(sections: list[Section], heading: str, foot: str = "", under: str = "") -> Image.Image:
    """Draw the page. Its height depends on its contents. under: a sentence below the heading."""
    scratch = ImageDraw.Draw(Image.new("RGB", (WIDTH, 8)))
    places = [_place(section.groups) for section in sections]
    heights = [
        max(_draw_words(scratch, section, 0), bottom) + 2 * ROW_GAP
        for section, (_, bottom) in zip(sections, places, strict=True)
    ]
    top = MARGIN + HEAD + (TEXT + 26 if under else 0) + 34
    page = Image.new("RGB", (WIDTH, top + sum(heights) + (60 if foot else 0)), PAPER)
    draw = ImageDraw.Draw(page)
    draw.text((MARGIN, MARGIN - 8), heading, INK, _font(HEAD))
    draw.text((MARGIN, MARGIN + HEAD + 14), _fit(draw, under, _font(TEXT), WIDTH - 2 * MARGIN), FADED, _font(TEXT))
    y = top
    for section, (placed, _), height in zip(sections, places, heights, strict=True):
        draw.line((MARGIN, y, WIDTH - MARGIN, y), RULE, 2)
        _draw_words(draw, section, y + ROW_GAP)
        for each in placed:
            _draw_group(page, each, (LEFT, y + ROW_GAP))
        y += height
    if foot:
        draw.line((MARGIN, y, WIDTH - MARGIN, y), RULE, 2)
        draw.text((MARGIN, y + 16), _fit(draw, foot, _font(TEXT), WIDTH - 2 * MARGIN), FADED, _font(TEXT))
    return page


def save(page: Image.Image, path: Path) -> Path:
    """Write the page as PNG."""
    path.parent.mkdir(parents=True, exist_ok=True)
    page.save(path, optimize=True)
    return path


def thumbnail(section: Section, names: dict[str, str] | None = None) -> Image.Image:
    """A workflow's card in the template browser, 480x320 px: the first picture of one to three groups.

    names: {a group's label: the word or two that stand above its picture}; the first three groups where it is empty.
    """
    found = {group.label: group.pictures[0] for group in section.groups if group.pictures}
    shown = [(name, found[label]) for label, name in (names or {}).items() if label in found]
    shown = shown or list(found.items())[:3]
    page, font = Image.new("RGB", CARD, PAPER), _font(CARD_TEXT)
    draw = ImageDraw.Draw(page)
    words = round(CARD_TEXT * 1.4) if any(name for name, _ in shown) else 0
    room = (CARD[0] - GAP) // len(shown) - GAP
    side = min(room, CARD[1] - words - 2 * GAP)
    wide = room if len(shown) == 1 else side
    top = (CARD[1] - side - words) // 2
    scale = min(min(wide / picture.width, side / picture.height) for _, picture in shown)  # one for all
    for i, (name, picture) in enumerate(shown):
        size = tuple(max(1, round(length * scale)) for length in picture.size)
        small = picture.convert("RGB").resize(size, Image.NEAREST if scale >= 1 else Image.LANCZOS)
        middle = GAP + i * (room + GAP) + room // 2
        draw.text((middle, top), _fit(draw, name, font, room + GAP), INK, font, anchor="ma")
        page.paste(small, (middle - size[0] // 2, top + words + (side - size[1]) // 2))
    return page
