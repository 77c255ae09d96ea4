"""What the latent sees of a mask, drawn over the picture as far as it is known (colours read off the latent)."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont

from .mask import CellMask, grow, to_picture

LEAST = 512  # px: a smaller picture is drawn larger, so that cells and lines can be told apart
MOST = 16  # previews of one batch
PARTIAL = (0.99, 0.76, 0.18)  # amber
FULL = (0.91, 0.15, 0.33)  # crimson
USER = (1.0, 1.0, 1.0)
COMPOSITE = (0.13, 0.83, 0.93)  # cyan
PANEL = (0.09, 0.10, 0.12)


def draw(shaped: CellMask, picture: torch.Tensor) -> torch.Tensor:
    """One picture a mask: shaped has N masks, picture is [N or 1, H, W, 3] in 0..1 -> [min(N, 16), scaled H + legend,
    scaled W, 3].

    Kept places are grey and dim. A touched cell is tinted from amber to crimson by its value and framed; the user's
    mask is outlined in white, what a pixel composite will take in cyan. The counts stand below.
    """
    count, grid = min(shaped.cells.shape[0], MOST), shaped.grid
    zoom = max(1, -(-LEAST // max(grid.height, grid.width)))
    cells = shaped.cells[:count]
    value = _to_pixels(cells, grid)  # [N, H, W]
    touched = to_picture(cells, grid)
    image = picture[:count].expand(count, -1, -1, -1)
    light = image.mean(-1, keepdim=True)
    # Muted inside too: the tint has to say how full a cell is, not what colour the picture has there.
    image = light * 0.55 + 0.04 + touched[..., None] * (light * 0.1 + 0.35 * image - 0.04)
    tint = torch.tensor(PARTIAL) + value[..., None] * (torch.tensor(FULL) - torch.tensor(PARTIAL))
    image = _mix(image, tint, touched * 0.5)

    image, value, touched, user = (_zoomed(t, zoom) for t in (image, value, touched, shaped.user[:count]))
    cell, top, left = grid.cell * zoom, grid.top * zoom, grid.left * zoom
    line = max(1, round(max(image.shape[1:3]) / 640))
    if cell >= 8:
        rows, columns = torch.arange(image.shape[1]) - top, torch.arange(image.shape[2]) - left
        frame = (rows % cell == 0)[:, None] | (columns % cell == 0)[None]
        image = _mix(image, torch.zeros(3), touched * frame * 0.35)
    image = _outlined(image, touched, line, COMPOSITE)
    image = _outlined(image, (user > 0.5).to(torch.float32), line, USER)
    legends = [_legend(c, image.shape[2]) for c in cells]
    return torch.cat((image.clamp(0.0, 1.0), torch.stack(legends)), 1)


def _to_pixels(cells: torch.Tensor, grid) -> torch.Tensor:
    out = cells.new_zeros((cells.shape[0], grid.height, grid.width))
    pixels = cells.repeat_interleave(grid.cell, 1).repeat_interleave(grid.cell, 2)
    out[:, grid.top : grid.top + pixels.shape[1], grid.left : grid.left + pixels.shape[2]] = pixels
    return out


def _zoomed(image: torch.Tensor, zoom: int) -> torch.Tensor:
    return image.repeat_interleave(zoom, 1).repeat_interleave(zoom, 2)


def _mix(image: torch.Tensor, color: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return image + weight[..., None] * (color - image)


def _outlined(image: torch.Tensor, where: torch.Tensor, line: int, color: tuple[float, float, float]) -> torch.Tensor:
    # A dark line beside the coloured one keeps it readable on any picture.
    inner = where - grow(where, -line)
    outer = grow(where, line) - where
    return _mix(_mix(image, torch.zeros(3), outer * 0.7), torch.tensor(color), inner)


def _legend(cells: torch.Tensor, width: int) -> torch.Tensor:
    """A strip [h, width, 3] that names the colours and counts the cells [rows, columns]."""
    touched, full = int((cells > 0).sum()), int((cells >= 1).sum())
    entries = [
        ("fill", FULL, f"full {full}"),
        ("fill", PARTIAL, f"partial {touched - full}"),
        ("line", USER, "your mask"),
        ("line", COMPOSITE, f"may change {touched / cells.numel():.0%}"),
    ]
    size = max(13, width // 42)
    font = ImageFont.load_default(size)
    gap, box = size, round(size * 0.9)
    widths = [box + size // 2 + round(font.getlength(text)) for *_, text in entries]
    lines, x = [[]], gap
    for entry, w in zip(entries, widths, strict=True):
        if lines[-1] and x + w > width - gap:
            lines.append([])
            x = gap
        lines[-1].append((x, entry))
        x += w + round(1.4 * gap)
    pitch = round(1.6 * size)
    strip = Image.new("RGB", (width, pitch * len(lines) + size // 2), _rgb(PANEL))
    pen = ImageDraw.Draw(strip)
    for row, entries_of_row in enumerate(lines):
        middle = size // 4 + row * pitch + pitch // 2
        for x, (kind, color, text) in entries_of_row:
            corners = (x, middle - box // 2, x + box, middle + box // 2)
            pen.rectangle(
                corners, fill=_rgb(color) if kind == "fill" else None, outline=_rgb(color), width=max(2, size // 8)
            )
            pen.text((x + box + size // 2, middle), text, fill=(235, 235, 238), font=font, anchor="lm")
    return torch.from_numpy(np.asarray(strip).copy()).to(torch.float32) / 255.0


def _rgb(color: tuple[float, float, float]) -> tuple[int, int, int]:
    return tuple(round(255 * c) for c in color)


def picture_of(latent: torch.Tensor, latent_format, height: int, width: int) -> torch.Tensor:
    """A rough picture [B, H, W, 3] of a latent [B, C, h, w] or a video's first frame [B, C, T, h, w].

    By the latent format's linear map to RGB; grey for a format without one.
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
