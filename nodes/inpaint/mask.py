"""From the user's mask in pixels to the latent's cells and back.

A mask is 1 where the picture may change. A latent cell covers `cell` x `cell` pixels (8 x 8 for most models), so what
the sampler can keep or repaint is a cell, never a pixel: the mask in pixels is pooled to cells here, and the mask for
pasting pixels is made from the cells, so that the two cannot disagree.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from ...training.errors import InputError

COVERAGES = ("any", "area")
GROW_MIN, GROW_MAX = -256, 256  # px
FEATHER_MIN, FEATHER_MAX = 0, 256  # px
FEATHER = 24  # px: the least that kept the seam unseen for all spectra in tests/bench/bench_inpaint_seam.py
OPAQUE = 0.95  # at or above: meant as fully masked (a brush at 98 % leaves a picture that cannot be repainted)
FAINT = 0.02  # at or below: meant as not masked (an alpha of 254 / 255 would open the whole picture)


@dataclass(frozen=True)
class MaskSettings:
    """What is done to the mask before the sampler sees it."""

    grow: int = 0  # px; below 0 shrinks
    feather: int = 0  # px beyond the grown edge
    coverage: str = "any"
    min_strength: float = 0.0

    def __post_init__(self):
        if not GROW_MIN <= self.grow <= GROW_MAX:
            raise InputError(f"grow is {self.grow}; give {GROW_MIN} to {GROW_MAX} pixels")
        if not FEATHER_MIN <= self.feather <= FEATHER_MAX:
            raise InputError(f"feather is {self.feather}; give {FEATHER_MIN} to {FEATHER_MAX} pixels")
        if self.coverage not in COVERAGES:
            raise InputError(f"coverage is {self.coverage!r}; give one of {', '.join(COVERAGES)}")
        if not 0.0 <= self.min_strength <= 1.0:
            raise InputError(f"min_strength is {self.min_strength}; give 0 to 1")


@dataclass(frozen=True)
class Grid:
    """Where the latent's cells lie in the picture. A VAE centre-crops a picture to whole cells; so does this."""

    rows: int
    columns: int
    cell: int  # px
    height: int  # px, the picture's
    width: int

    @property
    def top(self) -> int:
        return (self.height - self.rows * self.cell) // 2

    @property
    def left(self) -> int:
        return (self.width - self.columns * self.cell) // 2

    @classmethod
    def of(cls, rows: int, columns: int, cell: int, height: int, width: int) -> Grid:
        """The grid of a latent in a picture of `height` x `width` px, or in one of whole cells where those disagree."""
        if height // cell != rows or width // cell != columns:
            height, width = rows * cell, columns * cell
        return cls(rows, columns, cell, height, width)


def clean(mask: torch.Tensor) -> tuple[torch.Tensor, list[str]]:
    """A mask as [N, H, W] fp32 in 0..1, near-opaque and near-transparent values set to 1 and 0; and what was done.

    Takes [H, W], [N, H, W] or [N, 1, H, W]. Raises `InputError` for another shape or values that are not numbers.
    """
    given = tuple(mask.shape)
    if mask.ndim == 2:
        mask = mask[None]
    elif mask.ndim == 4 and mask.shape[1] == 1:
        mask = mask[:, 0]
    if mask.ndim != 3 or mask.numel() == 0:
        raise InputError(f"the mask has the shape {list(given)}; give [masks, height, width]")
    mask = mask.detach().to("cpu", torch.float32)
    if not bool(torch.isfinite(mask).all()):
        raise InputError("the mask holds values that are not numbers; make it again")
    notes = []
    low, high = float(mask.min()), float(mask.max())
    if low < 0.0 or high > 1.0:
        notes.append(f"Mask values from {low:.3g} to {high:.3g} were cut to 0..1.")
        mask = mask.clamp(0.0, 1.0)
    nearly = (mask >= OPAQUE) & (mask < 1.0)
    if count := int(nearly.sum()):
        notes.append(f"Nearly opaque mask: {count} px from {OPAQUE:.0%} up were taken as fully masked.")
    faint = (mask > 0.0) & (mask <= FAINT)
    if count := int(faint.sum()):
        notes.append(f"{count} px masked at {FAINT:.0%} or less were taken as not masked.")
    mask = torch.where(nearly, 1.0, torch.where(faint, 0.0, mask))
    high = float(mask.max())
    if 0.0 < high < OPAQUE:
        notes.append(f"The mask's highest value is {high:.2f}: no place is repainted fully.")
    if looks_inverted(mask):
        notes.append(
            f"The mask covers {float((mask > 0.5).float().mean()):.0%} of the picture and its whole border: "
            "if the hole in it was to be repainted, invert it (an alpha channel counts as masked where transparent)."
        )
    return mask, notes


def looks_inverted(mask: torch.Tensor) -> bool:
    """Whether a mask [N, H, W] is a hole in white: most of it and nearly all of its border masked, but not
    everything."""
    white = mask > 0.5
    border = torch.cat(
        (white[:, 0].flatten(), white[:, -1].flatten(), white[:, :, 0].flatten(), white[:, :, -1].flatten())
    )
    share = float(white.float().mean())
    return 0.5 < share < 1.0 and float(border.float().mean()) > 0.95


def resize(mask: torch.Tensor, height: int, width: int, coverage: str = "any") -> torch.Tensor:
    """[N, H, W] -> [N, height, width]; a pixel takes the largest ("any") or mean ("area") value of all that it
    overlaps."""
    if mask.shape[-2:] == (height, width):
        return mask
    pool = F.adaptive_max_pool2d if coverage == "any" else F.adaptive_avg_pool2d
    return pool(mask[:, None], (height, width))[:, 0]


def grow(mask: torch.Tensor, pixels: int) -> torch.Tensor:
    """Grey dilation of [N, H, W] by a disc of radius `pixels`; erosion below 0. Symmetric; the border repels nothing.

    Each row of the disc is a run of pixels, and a run grows from the shorter one by two shifted maxima, so the cost
    is a few passes a row of the disc and not one a pixel of it.
    """
    if pixels == 0:
        return mask
    if pixels < 0:
        return 1.0 - grow(1.0 - mask, -pixels)
    run, half = mask.clone(), 0  # [N, H, W] dilated by `half` along the row
    grown = mask.clone()
    for dy in range(pixels, -1, -1):
        reach = math.isqrt(pixels * pixels - dy * dy)
        while half < reach:
            step = min(reach - half, 2 * half + 1)
            run = _max_shifted(run, run, 0, step)
            half += step
        grown = _max_shifted(grown, run, dy, 0)
    return grown


def _max_shifted(into: torch.Tensor, source: torch.Tensor, dy: int, dx: int) -> torch.Tensor:
    # max(into, source moved by (dy, dx), source moved by (-dy, -dx)); beyond the border there is nothing.
    out = into.clone()
    height, width = into.shape[-2:]
    if dy >= height or dx >= width:
        return out
    here, there = (
        (slice(None), slice(dy, None), slice(dx, None)),
        (slice(None), slice(0, height - dy), slice(0, width - dx)),
    )
    out[here] = torch.maximum(out[here], source[there])
    out[there] = torch.maximum(out[there], source[here])
    return out


def feather(mask: torch.Tensor, pixels: int) -> torch.Tensor:
    """Let [N, H, W] fade to 0 over `pixels` beyond its edge, in all directions alike; within, nothing is lowered.

    Grown by half of it and blurred by the other half. Fading outward only keeps the strength of thin strokes: a blur
    alone leaves a tenth of a line one pixel wide.
    """
    if pixels == 0:
        return mask
    return torch.maximum(mask, blur(grow(mask, pixels // 2), pixels - pixels // 2))


def blur(mask: torch.Tensor, pixels: int) -> torch.Tensor:
    """Blur [N, H, W] with a separable Hann window that reaches exactly `pixels`: beyond, 0 stays 0 and 1 stays 1."""
    if pixels == 0:
        return mask
    offsets = torch.arange(-pixels, pixels + 1, dtype=torch.float32)
    window = torch.cos(math.pi * offsets / (2 * (pixels + 1))) ** 2
    window = window / window.sum()
    out = F.pad(mask[:, None], (pixels, pixels, pixels, pixels), mode="replicate")
    out = F.conv2d(F.conv2d(out, window.view(1, 1, 1, -1)), window.view(1, 1, -1, 1))[:, 0]
    # The sums round: what the window did not reach is as it was.
    out = torch.where(out > 1.0 - 1e-5, 1.0, out)
    return torch.where(out < 1e-5, 0.0, out)


def to_cells(mask: torch.Tensor, grid: Grid, coverage: str) -> torch.Tensor:
    """[N, H, W] in pixels -> [N, rows, columns]: the largest value in each cell ("any") or their mean ("area").

    Both keep every stroke: a cell of which any pixel is masked comes out above 0. (Core's bilinear down-scale reads
    the middle 2 x 2 of each 8 x 8 and loses a one-pixel stroke at six of eight offsets.)
    """
    rows, columns, cell = grid.rows, grid.columns, grid.cell
    inner = mask[:, grid.top : grid.top + rows * cell, grid.left : grid.left + columns * cell]
    if cell == 1:
        return inner
    pool = F.max_pool2d if coverage == "any" else F.avg_pool2d
    return pool(inner[:, None], cell)[:, 0]


def floor(cells: torch.Tensor, min_strength: float) -> torch.Tensor:
    """Raise every touched cell to at least `min_strength`; untouched cells stay at 0."""
    return torch.where(cells > 0.0, cells.clamp(min=min_strength), cells)


def to_picture(cells: torch.Tensor, grid: Grid) -> torch.Tensor:
    """[N, rows, columns] -> [N, height, width]: 1 where a touched cell lies, 0 elsewhere and where the VAE crops."""
    touched = (cells > 0.0).to(torch.float32)
    pixels = touched.repeat_interleave(grid.cell, 1).repeat_interleave(grid.cell, 2)
    out = cells.new_zeros((cells.shape[0], grid.height, grid.width))
    out[:, grid.top : grid.top + pixels.shape[1], grid.left : grid.left + pixels.shape[2]] = pixels
    return out


@dataclass(frozen=True)
class CellMask:
    """A mask as the sampler will see it."""

    user: torch.Tensor  # [N, H, W] the user's mask, cleaned and fitted
    shaped: torch.Tensor  # [N, H, W] the same, grown and feathered
    cells: torch.Tensor  # [N, rows, columns]
    grid: Grid
    notes: tuple[str, ...]


def shape_mask(mask: torch.Tensor, rows: int, columns: int, cell: int, settings: MaskSettings) -> CellMask:
    """Clean, fit, grow, feather, pool and floor a mask for a latent of `rows` x `columns` cells of `cell` px."""
    mask, notes = clean(mask)
    height, width = mask.shape[-2:]
    grid = Grid.of(rows, columns, cell, height, width)
    if (grid.height, grid.width) != (height, width):
        notes.append(
            f"The mask is {width}x{height} px and the picture {grid.width}x{grid.height} px: it was stretched to fit."
        )
        mask = resize(mask, grid.height, grid.width, settings.coverage)
    elif height != rows * cell or width != columns * cell:
        notes.append(
            f"The picture is {width}x{height} px, not whole {cell} px cells: "
            f"the VAE crops it to {columns * cell}x{rows * cell} px, and the cropped border is kept."
        )
    shaped = feather(grow(mask, settings.grow), settings.feather)
    cells = floor(to_cells(shaped, grid, settings.coverage), settings.min_strength)
    return CellMask(mask, shaped, cells, grid, tuple(notes))


def to_latent(
    cells: torch.Tensor, shape: tuple[int, ...], temporal: int, coverage: str
) -> tuple[torch.Tensor, list[str]]:
    """[N, rows, columns] -> the noise mask of a latent: [B, 1, rows, columns], or [B, 1, T, rows, columns] of a
    video's.

    Core's resizing folds a batch of masks for a 5-D latent into time, so the whole shape is given here and nothing is
    left to it. One mask serves all; as many as the batch, one each; for a single video, one each latent frame or one
    each picture frame (the first alone, then groups of `temporal`). Another count is repeated or cut, and said.
    """
    batch, count, notes = shape[0], cells.shape[0], []
    if len(shape) == 5:
        frames = shape[2]
        if count > 1 and batch == 1:
            per_frame = cells
            if count == (frames - 1) * temporal + 1 and count != frames:
                groups = [cells[:1], *cells[1:].split(temporal)]
                per_frame = torch.stack([g.amax(0) if coverage == "any" else g.mean(0) for g in groups])
            elif count != frames:
                index = [min(count - 1, i * count // frames) for i in range(frames)]
                per_frame = cells[index]
                notes.append(f"{count} masks for {frames} latent frames: spread over them in order.")
            return per_frame[None, None], notes
        cells = _to_count(cells, batch, notes)
        return cells[:, None, None].expand(-1, -1, frames, -1, -1).contiguous(), notes
    return _to_count(cells, batch, notes)[:, None], notes


def _to_count(cells: torch.Tensor, count: int, notes: list[str]) -> torch.Tensor:
    if cells.shape[0] not in (1, count):
        did = "repeated in order" if cells.shape[0] < count else "the rest are not used"
        notes.append(f"{cells.shape[0]} masks for {count} latents: {did}.")
    return cells[[i % cells.shape[0] for i in range(count)]]
