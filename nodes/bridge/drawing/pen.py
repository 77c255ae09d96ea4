"""A pen for plots: it draws on a larger picture, which is then reduced, as Pillow's own lines have hard edges."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

from PIL import Image, ImageDraw

from .fonts import builtin_font
from .palette import RGB
from .text_layout import shorten_middle

SCALE = 2  # how many times larger the picture is drawn
SMALLEST_TEXT = 17  # px: see `shown.least_size`; a longer text is shortened

Point: TypeAlias = tuple[float, float]  # (x, y) in px from the top left


class Pen:
    """Draws in the units of the finished picture, `width` x `height` px."""

    def __init__(self, width: int, height: int, ground: RGB):
        self.size, self.ground = (width, height), ground
        self._image = Image.new("RGB", (width * SCALE, height * SCALE), ground)
        self._draw = ImageDraw.Draw(self._image)

    def picture(self) -> Image.Image:
        """What was drawn, reduced to the picture's size."""
        return self._image.resize(self.size, Image.Resampling.LANCZOS)

    def line(self, points: Sequence[Point], width: float, colour: RGB) -> None:
        scaled = [(x * SCALE, y * SCALE) for x, y in points]
        self._draw.line(scaled, fill=colour, width=round(width * SCALE), joint="curve")

    def dot(self, centre: Point, radius: float, colour: RGB) -> None:
        """A disc with a border in the ground's colour."""
        (x, y), r = (centre[0] * SCALE, centre[1] * SCALE), radius * SCALE
        self._draw.ellipse((x - r, y - r, x + r, y + r), fill=colour, outline=self.ground, width=SCALE)

    def box(self, left: float, top: float, right: float, bottom: float, colour: RGB) -> None:
        """A filled rectangle; nothing where its height is not above 0."""
        if bottom > top:
            self._draw.rectangle((left * SCALE, top * SCALE, right * SCALE, bottom * SCALE), fill=colour)

    def width_of(self, text: str, size: float) -> float:
        """The width of a text of this size in px."""
        return builtin_font(size * SCALE).getlength(text) / SCALE

    def text(
        self, point: Point, text: str, size: float, colour: RGB, anchor: str = "la", limit: float | None = None
    ) -> None:
        """Text in Pillow's own font. anchor: Pillow's. limit: px of width, for which the size is reduced."""
        font = builtin_font(size * SCALE)
        while limit and font.getlength(text) > limit * SCALE and size > SMALLEST_TEXT:
            size -= 0.5
            font = builtin_font(size * SCALE)
        text = shorten_middle(text, font, limit * SCALE) if limit else text
        self._draw.text((point[0] * SCALE, point[1] * SCALE), text, fill=colour, font=font, anchor=anchor)
