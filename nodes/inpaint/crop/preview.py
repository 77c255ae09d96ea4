"""A picture of where pictures were cut, with the size and the scale of each crop."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from PIL import Image, ImageDraw

from ...bridge.drawing.fonts import builtin_font
from ...bridge.drawing.image import pictures_of, stacked, tensor_of
from ...bridge.drawing.palette import MASK_COMPOSITE, MASK_FULL, MASK_LEGEND, MASK_LEGEND_TEXT, rgb
from .cut import indices
from .record import Crop, Piece
from .rectangles import Rect

SIDE = 768  # px: the longer side of the drawing without its legend
MOST = 16  # previews of one batch
LINES = 10  # crops of one picture that the legend lists
DIM = 0.45  # of the brightness outside the crops
FILLED = 0.5  # of the brightness of what fills a crop beyond the picture
TINT = 0.35  # of the mask's colour over it
ALIKE = 0.005  # two scales that differ less are one


def draw(image: torch.Tensor, whole: torch.Tensor, crop: Crop, pad: str) -> torch.Tensor:
    """One preview for each picture that has a crop, the first 16 of them: [N, h, w, 3] in 0..1.

    image: [B, H, W, C]. whole: their masks [B, H, W]. pad: what fills a crop beyond the picture. What is not in a crop
    is grey and dim, what fills it is darker, the mask is tinted and each crop framed and numbered. A legend has each
    crop's size in the picture, the size that the model gets, and the scale.
    """
    numbered = list(enumerate(crop.pieces, 1))
    shown = sorted({piece.picture for piece in crop.pieces})[:MOST]
    groups = [[(n, piece) for n, piece in numbered if piece.picture == i] for i in shown]
    lines = min(max(len(group) for group in groups), LINES + 1)
    extent = _extent(crop)
    zoom = SIDE / max(extent.height, extent.width)
    zoom = zoom if zoom < 1 else float(int(zoom))
    drawn = []
    for i, group in zip(shown, groups, strict=True):
        sheet = _shaded(image[i], whole[i], [piece for _, piece in group], extent, zoom, pad)
        size = max(14, round(max(sheet.size) / 42))
        for number, piece in group:
            _frame(sheet, piece.rect, extent, zoom, str(number), size)
        drawn.append(stacked([sheet, _legend(group, crop, sheet.width, size, lines)], rgb(MASK_LEGEND)))
    return torch.cat([tensor_of(one) for one in drawn])


def _extent(crop: Crop) -> Rect:
    """The picture and all crops."""
    rects = [Rect(0, 0, *crop.size), *(piece.rect for piece in crop.pieces)]
    top, left = min(r.top for r in rects), min(r.left for r in rects)
    return Rect(top, left, max(r.bottom for r in rects) - top, max(r.right for r in rects) - left)


def _shaded(
    image: torch.Tensor, mask: torch.Tensor, pieces: Sequence[Piece], extent: Rect, zoom: float, pad: str
) -> Image.Image:
    """The picture and what fills the crops beyond it, as large as the preview: dim outside the crops, and tinted."""
    height, width = image.shape[:2]
    step = max(1, int(0.6 / zoom))  # what is left of the reduction is averaged
    rows, columns = torch.arange(extent.top, extent.bottom, step), torch.arange(extent.left, extent.right, step)
    kept = torch.zeros(len(rows), len(columns))
    for piece in pieces:
        kept[_covers(piece.rect, rows, columns)] = FILLED
    seen = _covers(Rect(0, 0, height, width), rows, columns)
    kept = torch.where(seen & (kept > 0.0), 1.0, kept)
    mirrored = pad == "reflect"
    at = (
        indices(extent.top, extent.height, height, mirrored)[::step, None],
        indices(extent.left, extent.width, width, mirrored)[None, ::step],
    )
    tint = torch.where(seen, mask[at] * TINT, 0.0)
    size = (max(1, round(extent.width * zoom)), max(1, round(extent.height * zoom)))
    method = Image.Resampling.BILINEAR if zoom < 1 else Image.Resampling.NEAREST
    (picture,) = pictures_of(image[at][None], "image")
    picture, ground = picture.resize(size, method), Image.new("RGB", size, rgb(MASK_LEGEND))
    dim = Image.composite(picture.convert("L").convert("RGB"), ground, _as_picture(seen * DIM, size, method))
    shaded = Image.composite(picture, dim, _as_picture(kept, size, method))
    return Image.composite(Image.new("RGB", size, rgb(MASK_FULL)), shaded, _as_picture(tint, size, method))


def _covers(rect: Rect, rows: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
    """[rows, columns] bool: which of these positions lie in the rectangle."""
    down, across = (rows >= rect.top) & (rows < rect.bottom), (columns >= rect.left) & (columns < rect.right)
    return down[:, None] & across[None]


def _frame(sheet: Image.Image, rect: Rect, extent: Rect, zoom: float, text: str, size: int) -> None:
    """A crop's frame, and its number in the upper left corner."""
    pad, line = ImageDraw.Draw(sheet), max(2, round(max(sheet.size) / 320))
    x, y = round((rect.left - extent.left) * zoom), round((rect.top - extent.top) * zoom)
    # At least 2 px more, as Pillow needs for the frame within the frame.
    right = max(min(round((rect.right - extent.left) * zoom), sheet.width) - 1, x + 2)
    bottom = max(min(round((rect.bottom - extent.top) * zoom), sheet.height) - 1, y + 2)
    pad.rectangle((x, y, right, bottom), outline=rgb(MASK_LEGEND), width=line + 2)
    pad.rectangle((x + 1, y + 1, right - 1, bottom - 1), outline=rgb(MASK_COMPOSITE), width=line)
    font = builtin_font(size)
    width, height = round(font.getlength(text)) + size, round(1.5 * size)
    pad.rectangle((x, y, x + width, y + height), fill=rgb(MASK_COMPOSITE))
    pad.text((x + width / 2, y + height / 2), text, fill=rgb(MASK_LEGEND), font=font, anchor="mm")


def _as_picture(values: torch.Tensor, size: tuple[int, int], method: Image.Resampling) -> Image.Image:
    return Image.fromarray((values * 255).round().to(torch.uint8).numpy()).resize(size, method)


def _legend(group: Sequence[tuple[int, Piece]], crop: Crop, width: int, size: int, lines: int) -> Image.Image:
    texts = [f"{number}   {describe(piece, crop)}" for number, piece in group]
    if len(texts) > LINES:
        texts = [*texts[:LINES], f"and {len(texts) - LINES} more"]
    font = builtin_font(size)
    while size > 9 and max(font.getlength(text) for text in texts) > width - 2 * size:
        size -= 1
        font = builtin_font(size)
    pitch = round(1.5 * size)
    strip = Image.new("RGB", (width, pitch * lines + size), rgb(MASK_LEGEND))
    pad = ImageDraw.Draw(strip)
    for row, text in enumerate(texts):
        pad.text((size, size // 2 + row * pitch + pitch // 2), text, fill=MASK_LEGEND_TEXT, font=font, anchor="lm")
    return strip


def describe(piece: Piece, crop: Crop) -> str:
    """A crop's size and place, the size that it was scaled to, and the scale."""
    rect, (height, width) = piece.rect, crop.scaled
    across, down = width / rect.width, height / rect.height
    alike = abs(across / down - 1) < ALIKE
    scale = f"x {across:.2f}" if alike else f"x {across:.3f} across and {down:.3f} down"
    return f"{rect.width}x{rect.height} px at ({rect.left}, {rect.top}), scaled to {width}x{height} px ({scale})"
