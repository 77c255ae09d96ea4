"""Names what a picture shows by measurement: hue for the colour, widths of rows for the shape.

It does not use the drawing code of the sprites: the figure is what differs from the picture's border, its colour is
named by its hue and its shape by the profile of its silhouette.
"""

from __future__ import annotations

import colorsys
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

# Hue intervals in degrees, saturation and value floors; pink and red differ in saturation, not in hue.
HUES = (
    ("red", 340, 373),
    ("orange", 13, 37),
    ("yellow", 37, 68),
    ("green", 90, 160),
    ("teal", 165, 200),
    ("blue", 210, 250),
    ("purple", 260, 305),
    ("pink", 305, 348),
)


@dataclass(frozen=True)
class Verdict:
    """The measured names, or None where no name fits; `share` is the part of the picture that is figure."""

    colour: str | None
    shape: str | None
    ground: str | None
    area: float


def colour_name(rgb: np.ndarray) -> str | None:
    """The name of an RGB colour in 0..255, or None where no name fits."""
    h, s, v = colorsys.rgb_to_hsv(*(np.asarray(rgb, float) / 255))
    hue = h * 360
    if v < 0.35 or s < 0.25:
        return None
    for name, low, high in HUES:
        if low <= hue < high or low <= hue + 360 < high:
            if name in ("red", "pink"):  # the same hues: pale is pink, saturated is red
                return "pink" if s < 0.6 else ("red" if hue >= 340 or hue < 13 else None)
            return name
    return None


def silhouette(picture: Image.Image) -> tuple[np.ndarray, np.ndarray]:
    """(mask [H, W] of the figure, RGB of the ground): what differs from the border by a third of the contrast."""
    rgb = np.asarray(picture.convert("RGB"), float)
    border = np.concatenate(
        [rgb[:4].reshape(-1, 3), rgb[-4:].reshape(-1, 3), rgb[:, :4].reshape(-1, 3), rgb[:, -4:].reshape(-1, 3)]
    )
    ground = np.median(border, axis=0)
    distance = np.linalg.norm(rgb - ground, axis=-1)
    return distance > max(40.0, 0.45 * np.percentile(distance, 98)), ground


def _filled(mask: np.ndarray) -> np.ndarray:
    """The mask with its holes filled: everything that is not connected with the border."""
    padded = Image.fromarray(np.pad(mask, 1).astype(np.uint8) * 255).copy()
    ImageDraw.floodfill(padded, (0, 0), 128)
    return np.asarray(padded)[1:-1, 1:-1] != 128


def shape_name(mask: np.ndarray) -> str | None:
    """The name of a silhouette [H, W], or None."""
    if mask.mean() < 0.03 or mask.mean() > 0.8:
        return None
    rows, columns = np.flatnonzero(mask.sum(1) > 1), np.flatnonzero(mask.sum(0) > 1)
    if len(rows) < 8 or len(columns) < 8:
        return None
    box = mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    height, width = box.shape
    if not 0.7 < height / width < 1.4:
        return None
    hole = _filled(box).sum() - box.sum()
    if hole > 0.06 * box.size:
        return "ring"
    extent = box.mean()
    profile = box.mean(1)  # the width of each row
    top, bottom = profile[: height // 4].mean(), profile[-(height // 4) :].mean()
    if extent > 0.93:
        return "square"
    if bottom - top > 0.4:
        return "triangle"
    if top - bottom > 0.2:
        return "heart"
    between = ((profile > 0.45) & (profile < 0.87)).mean()  # a cross has narrow and wide rows, nothing between
    if between < 0.2 and extent < 0.75:
        return "cross"
    if extent < 0.67:
        return "diamond"
    return "circle" if extent < 0.9 else None


def judge(picture: Image.Image) -> Verdict:
    """Measure one picture."""
    mask, ground = silhouette(picture)
    if not mask.any():
        return Verdict(None, None, None, 0.0)
    rgb = np.asarray(picture.convert("RGB"), float)
    light = ground.mean()
    return Verdict(
        colour_name(np.median(rgb[mask], axis=0)),
        shape_name(mask),
        "black" if light < 80 else "white" if light > 200 else None,
        float(mask.mean()),
    )
