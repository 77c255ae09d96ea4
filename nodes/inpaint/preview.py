"""A preview of a mask as the latent's cells, over a rough picture made from the latent."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from comfy.latent_formats import LatentFormat
from PIL import Image, ImageDraw

from ..bridge.drawing.fonts import builtin_font
from ..bridge.drawing.image import tensor_of
from ..bridge.drawing.palette import (
    MASK_COMPOSITE,
    MASK_FULL,
    MASK_LEGEND,
    MASK_LEGEND_TEXT,
    MASK_PARTIAL,
    MASK_USER,
    Fractions,
    rgb,
)
from .mask import CellMask, Grid, grow, to_picture

LEAST = 512  # px: a smaller picture is drawn larger, so that cells and lines can be told apart
MOST = 16  # previews of one batch


def draw(shaped: CellMask, picture: torch.Tensor) -> torch.Tensor:
    """One preview for each of N masks, the first 16 of them.

    picture: [N or 1, H, W, 3] in 0..1 -> [min(N, 16), zoom * H + legend, zoom * W, 3] in 0..1, where zoom is the whole
    number that brings the longer side to 512 px or more.

    What is kept is grey and dim. A touched cell is tinted from amber to crimson by its value and framed; the user's
    mask is outlined in white, the pixels of the composite mask in cyan. A legend below counts the cells.
    """
    count, grid = min(shaped.cells.shape[0], MOST), shaped.grid
    zoom = max(1, -(-LEAST // max(grid.height, grid.width)))
    cells = shaped.cells[:count]
    value = _to_pixels(cells, grid)  # [N, H, W]
    touched = to_picture(cells, grid)
    image = picture[:count].expand(count, -1, -1, -1)
    light = image.mean(-1, keepdim=True)
    # Muted inside too, so that the colour shows the cell's value and not the picture's colour.
    image = light * 0.55 + 0.04 + touched[..., None] * (light * 0.1 + 0.35 * image - 0.04)
    partial, full = torch.tensor(MASK_PARTIAL), torch.tensor(MASK_FULL)
    tint = partial + value[..., None] * (full - partial)
    image = _mix(image, tint, touched * 0.5)

    image, value, touched, user = (_zoomed(t, zoom) for t in (image, value, touched, shaped.user[:count]))
    cell, top, left = grid.cell * zoom, grid.top * zoom, grid.left * zoom
    line = max(1, round(max(image.shape[1:3]) / 640))
    if cell >= 8:
        rows, columns = torch.arange(image.shape[1]) - top, torch.arange(image.shape[2]) - left
        frame = (rows % cell == 0)[:, None] | (columns % cell == 0)[None]
        image = _mix(image, torch.zeros(3), touched * frame * 0.35)
    image = _outlined(image, touched, line, MASK_COMPOSITE)
    image = _outlined(image, (user > 0.5).to(torch.float32), line, MASK_USER)
    legends = [_legend(c, image.shape[2]) for c in cells]
    return torch.cat((image.clamp(0.0, 1.0), torch.stack(legends)), 1)


def _to_pixels(cells: torch.Tensor, grid: Grid) -> torch.Tensor:
    """[N, rows, columns] -> [N, H, W], each cell's value in its pixels, 0 where the VAE crops."""
    out = cells.new_zeros((cells.shape[0], grid.height, grid.width))
    pixels = cells.repeat_interleave(grid.cell, 1).repeat_interleave(grid.cell, 2)
    out[:, grid.top : grid.top + pixels.shape[1], grid.left : grid.left + pixels.shape[2]] = pixels
    return out


def _zoomed(image: torch.Tensor, zoom: int) -> torch.Tensor:
    return image.repeat_interleave(zoom, 1).repeat_interleave(zoom, 2)


def _mix(image: torch.Tensor, colour: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return image + weight[..., None] * (colour - image)


def _outlined(image: torch.Tensor, area: torch.Tensor, line: int, colour: Fractions) -> torch.Tensor:
    """The image [N, H, W, 3] with the edge of `area` [N, H, W] (0 or 1) drawn `line` px wide, inside it."""
    # A dark line outside keeps the coloured one readable on any picture.
    inner = area - grow(area, -line)
    outer = grow(area, line) - area
    return _mix(_mix(image, torch.zeros(3), outer * 0.7), torch.tensor(colour), inner)


@dataclass(frozen=True)
class _Entry:
    """A line of the legend: a swatch, filled or outlined, and its text."""

    filled: bool
    colour: Fractions
    text: str


def _legend(cells: torch.Tensor, width: int) -> torch.Tensor:
    """A strip [h, width, 3] in 0..1 that names the colours and counts the cells [rows, columns]."""
    touched, full = int((cells > 0).sum()), int((cells >= 1).sum())
    entries = [
        _Entry(True, MASK_FULL, f"full {full}"),
        _Entry(True, MASK_PARTIAL, f"partial {touched - full}"),
        _Entry(False, MASK_USER, "your mask"),
        _Entry(False, MASK_COMPOSITE, f"may change {touched / cells.numel():.0%}"),
    ]
    size = max(13, width // 42)
    font = builtin_font(size)
    gap, box = size, round(size * 0.9)
    lines: list[list[tuple[int, _Entry]]] = [[]]
    x = gap
    for entry in entries:
        length = box + size // 2 + round(font.getlength(entry.text))
        if lines[-1] and x + length > width - gap:
            lines.append([])
            x = gap
        lines[-1].append((x, entry))
        x += length + round(1.4 * gap)
    pitch = round(1.6 * size)
    strip = Image.new("RGB", (width, pitch * len(lines) + size // 2), rgb(MASK_LEGEND))
    pad = ImageDraw.Draw(strip)
    for row, line in enumerate(lines):
        middle = size // 4 + row * pitch + pitch // 2
        for x, entry in line:
            colour, corners = rgb(entry.colour), (x, middle - box // 2, x + box, middle + box // 2)
            pad.rectangle(corners, fill=colour if entry.filled else None, outline=colour, width=max(2, size // 8))
            pad.text((x + box + size // 2, middle), entry.text, fill=MASK_LEGEND_TEXT, font=font, anchor="lm")
    return tensor_of(strip)[0]


def picture_of(latent: torch.Tensor, latent_format: LatentFormat, height: int, width: int) -> torch.Tensor:
    """A rough picture [B, height, width, 3] in 0..1 of a latent [B, C, h, w], or of the first frame of [B, C, T, h, w].

    Uses the latent format's linear map to RGB; grey for a format without one.
    """
    factors = getattr(latent_format, "latent_rgb_factors", None)
    reshaped = getattr(latent_format, "latent_rgb_factors_reshape", None)
    if factors is None or reshaped is not None or len(factors) != latent.shape[1]:
        return torch.full((latent.shape[0], height, width, 3), 0.5)
    latent = latent.to("cpu", torch.float32)
    if bool(torch.count_nonzero(latent)):
        latent = latent_format.process_in(latent)
    latent = latent if latent.ndim == 4 else latent[:, :, 0]
    rgb = latent.movedim(1, -1) @ torch.tensor(factors)
    if (bias := getattr(latent_format, "latent_rgb_factors_bias", None)) is not None:
        rgb = rgb + torch.tensor(bias)
    rgb = ((rgb + 1.0) / 2.0).clamp(0.0, 1.0).movedim(-1, 1)
    return F.interpolate(rgb, (height, width), mode="bicubic").clamp(0.0, 1.0).movedim(1, -1)
