"""Every colour that a node draws with, as (red, green, blue) in 0..255 unless a name says otherwise."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

RGB: TypeAlias = tuple[int, int, int]
Fractions: TypeAlias = tuple[float, float, float]  # red, green, blue in 0..1, as in an IMAGE

# Sheets and tables on light paper.
INK: RGB = (28, 28, 32)
FAINT: RGB = (98, 96, 90)  # 6 : 1 on PAPER
PAPER: RGB = (250, 249, 246)
LINE: RGB = (222, 218, 208)
EMPTY: RGB = (238, 236, 230)  # a cell without a value or a picture
UNSCALED: RGB = (226, 223, 215)  # a cell whose number is not on the scale of the others
NO_CAPTION: RGB = (110, 108, 102)

# Bars and remarks of a bar chart.
BAR: RGB = (52, 104, 148)  # 5.7 : 1 on PAPER
WARNING: RGB = (170, 90, 18)  # 4.8 : 1 on PAPER

# Colour maps, as evenly spaced colours.
RISING: tuple[RGB, ...] = (  # from light to dark: readable without colour, too
    (244, 239, 226),
    (247, 206, 140),
    (229, 128, 66),
    (168, 50, 58),
    (74, 18, 52),
)
SIGNED: tuple[RGB, ...] = (  # blue below 0, orange above, which colour-blind readers can tell apart; 0 is PAPER
    (18, 62, 122),
    (74, 136, 190),
    PAPER,
    (232, 150, 70),
    (150, 60, 14),
)

# Plots on a dark ground.
DARK_GROUND: RGB = (24, 26, 31)
DARK_GRID: RGB = (46, 49, 57)
DARK_TEXT: RGB = (226, 228, 233)
DARK_FAINT: RGB = (168, 173, 184)
SKIPPED: RGB = (134, 140, 154)  # steps of a schedule that do not run
RUNS: RGB = (255, 171, 64)
START: RGB = (236, 239, 244)  # told from RUNS by its lightness, which colour-blind readers see too
NOISE: RGB = (255, 171, 64)
PICTURE: RGB = (98, 164, 230)

# A mask drawn over a picture.
MASK_PARTIAL: Fractions = (0.99, 0.76, 0.18)  # amber
MASK_FULL: Fractions = (0.91, 0.15, 0.33)  # crimson
MASK_USER: Fractions = (1.0, 1.0, 1.0)
MASK_COMPOSITE: Fractions = (0.13, 0.83, 0.93)  # cyan
MASK_LEGEND: Fractions = (0.09, 0.10, 0.12)
MASK_LEGEND_TEXT: RGB = (235, 235, 238)


def interpolate(colours: Sequence[RGB], position: float) -> RGB:
    """The colour at `position` (clamped to 0..1) along evenly spaced colours, two or more."""
    place = min(max(position, 0.0), 1.0) * (len(colours) - 1)
    i = min(int(place), len(colours) - 2)
    red, green, blue = (round(a + (b - a) * (place - i)) for a, b in zip(colours[i], colours[i + 1], strict=True))
    return red, green, blue


def is_dark(colour: RGB) -> bool:
    """Whether light text reads better on the colour than dark text: brightness (ITU-R BT.601 luma) below 124.

    At 124 `PAPER` and `INK` have the same contrast (WCAG 2.1) on a grey, 4 : 1.
    """
    return 0.3 * colour[0] + 0.59 * colour[1] + 0.11 * colour[2] < 124


def rgb(fractions: Fractions) -> RGB:
    """A colour given in 0..1 as one in 0..255."""
    red, green, blue = (round(255 * fraction) for fraction in fractions)
    return red, green, blue
