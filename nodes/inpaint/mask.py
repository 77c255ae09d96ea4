"""Masks: from pixels to the latent's cells, and from cells back to pixels.

A mask is 1 where the picture may change. A latent cell covers `cell` x `cell` pixels (8 x 8 for most models), and a
sampler keeps or repaints whole cells. So the mask in pixels is pooled to cells here, and the mask for pasting pixels is
made from the cells: the two cannot differ.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from ...training.errors import InputError
from .assignment import Layout, assign, pool
from .distance import distance

COVERAGES = ("any", "area")
GROW_MIN, GROW_MAX = -256, 256  # px
FEATHER_MIN, FEATHER_MAX = 0, 256  # px
RAMP_MIN, RAMP_MAX = 0, 1024  # px
FEATHER = 24  # px: the least that hid the seam for all spectra in tests/bench/bench_inpaint_seam.py
OPAQUE = 0.95  # from here on taken as 1: a brush at 98 % opacity would leave a rest that cannot be repainted
FAINT = 0.02  # up to here taken as 0: an alpha of 254 / 255 would let the whole picture change


@dataclass(frozen=True)
class MaskSettings:
    """How a mask is shaped before sampling. Raises `InputError` for a value out of range."""

    grow: int = 0  # px; below 0 shrinks
    feather: int = 0  # px beyond the grown edge
    coverage: str = "any"
    min_strength: float = 0.0
    ramp: int = 0  # px beyond the fully masked cells

    def __post_init__(self):
        if not GROW_MIN <= self.grow <= GROW_MAX:
            raise InputError(f"grow is {self.grow}; give {GROW_MIN} to {GROW_MAX} pixels")
        if not FEATHER_MIN <= self.feather <= FEATHER_MAX:
            raise InputError(f"feather is {self.feather}; give {FEATHER_MIN} to {FEATHER_MAX} pixels")
        if self.coverage not in COVERAGES:
            raise InputError(f"coverage is {self.coverage!r}; give one of {', '.join(COVERAGES)}")
        if not 0.0 <= self.min_strength <= 1.0:
            raise InputError(f"min_strength is {self.min_strength}; give 0 to 1")
        if not RAMP_MIN <= self.ramp <= RAMP_MAX:
            raise InputError(f"ramp is {self.ramp}; give {RAMP_MIN} to {RAMP_MAX} pixels")


@dataclass(frozen=True)
class Grid:
    """The position of the latent's cells in the picture: at the middle, as a VAE centre-crops to whole cells."""

    rows: int
    columns: int
    cell: int  # px
    height: int  # px, the picture's
    width: int

    @property
    def top(self) -> int:
        """px above the first row of cells."""
        return (self.height - self.rows * self.cell) // 2

    @property
    def left(self) -> int:
        """px left of the first column of cells."""
        return (self.width - self.columns * self.cell) // 2

    @classmethod
    def of(cls, rows: int, columns: int, cell: int, height: int, width: int) -> Grid:
        """The grid of a latent in a picture, from the size of a mask, `height` x `width` px.

        A mask that would leave as many cells has the picture's size. For another size see `picture_size`.
        """
        if height // cell != rows or width // cell != columns:
            height, width = picture_size(rows, columns, cell, height, width)
        return cls(rows, columns, cell, height, width)


def picture_size(rows: int, columns: int, cell: int, height: int, width: int) -> tuple[int, int]:
    """(height, width) of the picture in px, of which a mask of another size, `height` x `width` px, is a scaled copy.

    The VAE leaves rows * cell of rows * cell to rows * cell + cell - 1 px, and so on. Of the sizes with exactly the
    mask's proportions: whole cells if they are among them, else the only one there is. Otherwise whole cells.
    """
    whole = (rows * cell, columns * cell)
    fitting = [
        (high, high * width // height)
        for high in range(whole[0], whole[0] + cell)
        if high * width % height == 0 and whole[1] <= high * width // height < whole[1] + cell
    ]
    return whole if whole in fitting or len(fitting) != 1 else fitting[0]


def stacked(mask: torch.Tensor) -> torch.Tensor:
    """A mask [H, W], [N, H, W] or [N, 1, H, W] as [N, H, W]. Raises `InputError` for another shape and for none."""
    given = tuple(mask.shape)
    if mask.ndim == 2:
        mask = mask[None]
    elif mask.ndim == 4 and mask.shape[1] == 1:
        mask = mask[:, 0]
    if 0 in given:
        raise InputError(
            f"the mask holds nothing (its shape is {list(given)}), as where a detector finds nothing; lower the "
            "detector's threshold, or paint a mask"
        )
    if mask.ndim != 3:
        raise InputError(f"the mask has the shape {list(given)}; give [masks, height, width]")
    return mask


def clean(mask: torch.Tensor) -> tuple[torch.Tensor, list[str]]:
    """(the mask as [N, H, W] fp32 in 0..1 on the CPU, notes on what was done).

    mask: see `stacked`. Values from `OPAQUE` on become 1, up to `FAINT` become 0. Raises `InputError` for another
    shape or values that are not numbers.
    """
    mask = stacked(mask).detach().to("cpu", torch.float32)
    low, high = (float(value) for value in mask.aminmax())  # of NaN for a mask with one
    if not math.isfinite(high - low):
        raise InputError("the mask holds values that are not numbers; make it again")
    notes = []
    if low < 0.0 or high > 1.0:
        notes.append(f"Mask values from {low:.3g} to {high:.3g} were cut to 0..1.")
        mask = mask.clamp(0.0, 1.0)
    if is_soft(mask):
        mask = _with_clear_ends(mask, notes)
    high = float(mask.max())
    if 0.0 < high < OPAQUE:
        notes.append(f"The mask's highest value is {high:.2f}: no place is repainted fully.")
    if looks_inverted(mask):
        notes.append(
            f"The mask covers {float((mask > 0.5).float().mean()):.0%} of the picture and its whole border: "
            "if the hole in it was to be repainted, invert it (an alpha channel counts as masked where transparent)."
        )
    return mask, notes


def is_soft(mask: torch.Tensor) -> bool:
    """Whether any value lies between 0 and 1."""
    return bool(((mask > 0.0) & (mask < 1.0)).any())


def _with_clear_ends(mask: torch.Tensor, notes: list[str]) -> torch.Tensor:
    """The mask with values from `OPAQUE` on at 1 and up to `FAINT` at 0; what was done is added to `notes`."""
    nearly = (mask >= OPAQUE) & (mask < 1.0)
    if count := int(nearly.sum()):
        notes.append(f"Nearly opaque mask: {count} px from {OPAQUE:.0%} up were taken as fully masked.")
    faint = (mask > 0.0) & (mask <= FAINT)
    if count := int(faint.sum()):
        notes.append(f"{count} px masked at {FAINT:.0%} or less were taken as not masked.")
    return torch.where(nearly, 1.0, torch.where(faint, 0.0, mask))


def looks_inverted(mask: torch.Tensor) -> bool:
    """Whether a mask [N, H, W] is probably inverted: above 0.5 in most of it and nearly all its border."""
    white = mask > 0.5
    border = torch.cat(
        (white[:, 0].flatten(), white[:, -1].flatten(), white[:, :, 0].flatten(), white[:, :, -1].flatten())
    )
    share = float(white.float().mean())
    return 0.5 < share < 1.0 and float(border.float().mean()) > 0.95


def resize(mask: torch.Tensor, height: int, width: int, coverage: str = "any") -> torch.Tensor:
    """[N, H, W] -> [N, height, width]: the largest ("any") or mean ("area") value that each new pixel overlaps."""
    if mask.shape[-2:] == (height, width):
        return mask
    pool = F.adaptive_max_pool2d if coverage == "any" else F.adaptive_avg_pool2d
    return pool(mask[:, None], (height, width))[:, 0]


def grow(mask: torch.Tensor, pixels: int) -> torch.Tensor:
    """Grey dilation of [N, H, W] by a disc of radius `pixels`; erosion below 0. The picture's border does not erode.

    Each row of the disc is a run of pixels, and a longer run is made from a shorter one by two shifted maxima. So the
    cost is a few passes for each row of the disc, not one for each of its pixels.
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
    # max(into, source moved by (dy, dx), source moved by (-dy, -dx)); outside the picture the source is 0.
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
    """[N, H, W] fading to 0 over `pixels` outside its edge, equally in all directions; no value becomes lower.

    The mask is grown by half of `pixels` and blurred by the other half. Fading only outward keeps the strength of thin
    strokes, of which a blur leaves little: 1 / 17 of a line one pixel wide at 16 pixels.
    """
    if pixels == 0:
        return mask
    return torch.maximum(mask, blur(grow(mask, pixels // 2), pixels - pixels // 2))


def blur(mask: torch.Tensor, pixels: int) -> torch.Tensor:
    """[N, H, W] blurred with a separable Hann window of radius `pixels`; at that distance from an edge 0 and 1 stay."""
    if pixels == 0:
        return mask
    offsets = torch.arange(-pixels, pixels + 1, dtype=torch.float32)
    window = torch.cos(math.pi * offsets / (2 * (pixels + 1))) ** 2
    window = window / window.sum()
    out = F.pad(mask[:, None], (pixels, pixels, pixels, pixels), mode="replicate")
    out = F.conv2d(F.conv2d(out, window.view(1, 1, 1, -1)), window.view(1, 1, -1, 1))[:, 0]
    # The sums are rounded: restore exact 1 and 0 where the window reached no edge.
    out = torch.where(out > 1.0 - 1e-5, 1.0, out)
    return torch.where(out < 1e-5, 0.0, out)


def to_cells(mask: torch.Tensor, grid: Grid, coverage: str) -> torch.Tensor:
    """[N, H, W] in pixels -> [N, rows, columns]: the largest value in each cell ("any") or their mean ("area").

    Both keep every stroke: a cell with any masked pixel is above 0. (Core's bilinear scaling reads the middle 2 x 2 of
    each 8 x 8 pixels and loses a stroke one pixel wide at six of eight offsets.)
    """
    rows, columns, cell = grid.rows, grid.columns, grid.cell
    inner = mask[:, grid.top : grid.top + rows * cell, grid.left : grid.left + columns * cell]
    if cell == 1:
        return inner
    pool = F.max_pool2d if coverage == "any" else F.avg_pool2d
    return pool(inner[:, None], cell)[:, 0]


def ramp(cells: torch.Tensor, pixels: int, cell: int) -> torch.Tensor:
    """[N, rows, columns] with a linear ramp around its full cells (1): 0 from `pixels` beyond them on.

    cell: px. The distance is that of the cells' centres, so the cell next to a full one has 1 - cell / (pixels + cell).
    No cell becomes lower.
    """
    if pixels == 0:
        return cells
    reach = -(-pixels // cell)  # cells
    rise = 1.0 - distance(cells >= 1.0, reach) * (cell / (pixels + cell))
    return torch.maximum(cells, torch.where(rise > 1e-6, rise, 0.0))


def floor(cells: torch.Tensor, min_strength: float) -> torch.Tensor:
    """Raise every touched cell to at least `min_strength`; untouched cells stay at 0."""
    return torch.where(cells > 0.0, cells.clamp(min=min_strength), cells)


def to_picture(cells: torch.Tensor, grid: Grid) -> torch.Tensor:
    """[N, rows, columns] -> [N, height, width]: 1 in cells above 0, else 0, also where the VAE crops."""
    touched = (cells > 0.0).to(torch.float32)
    pixels = touched.repeat_interleave(grid.cell, 1).repeat_interleave(grid.cell, 2)
    out = cells.new_zeros((cells.shape[0], grid.height, grid.width))
    out[:, grid.top : grid.top + pixels.shape[1], grid.left : grid.left + pixels.shape[2]] = pixels
    return out


@dataclass(frozen=True)
class CellMask:
    """The masks that are used, in pixels and in cells: M of them, see `assignment.assign`."""

    user: torch.Tensor  # [M, H, W] the user's mask, cleaned and fitted
    shaped: torch.Tensor  # [M, H, W] the same, grown and feathered
    cells: torch.Tensor  # [M, rows, columns]
    grid: Grid
    notes: tuple[str, ...]


def shape_mask(
    mask: torch.Tensor, rows: int, columns: int, cell: int, settings: MaskSettings, layout: Layout | None = None
) -> CellMask:
    """Clean a mask, fit it to the picture, grow, feather, pool and ramp it for `rows` x `columns` cells of `cell` px.

    mask: see `clean`. layout: what the latent holds, one picture if not given. Raises the errors of `clean` and
    `assign`.
    """
    mask = stacked(mask)
    assigned = assign(mask.shape[0], layout or Layout())
    members = assigned.members
    kept = sorted({i for group in members for i in group})  # without those of frames that the VAE drops
    mask, notes = clean(mask[kept])
    members = tuple(tuple(kept.index(i) for i in group) for group in members)
    if assigned.note:
        notes.insert(0, assigned.note)
    if assigned.unite:
        mask, members = mask.amax(0, keepdim=True), ((0,),)
    grid = Grid.of(rows, columns, cell, *mask.shape[-2:])
    mask = _fitted(mask, grid, settings.coverage, notes)
    shaped = feather(grow(mask, settings.grow), settings.feather)
    own = to_cells(shaped, grid, settings.coverage)
    cells = pool(own, members, settings.coverage)
    if black := _black_in_open_groups(own, members):
        notes.append(
            f"{black} frames with a black mask share a latent frame with others and may change with them. To keep "
            "them, give Restore Unmasked a mask for each frame instead of latent_mask."
        )
    if settings.ramp and not bool((cells >= 1.0).any()):
        notes.append("The ramp begins at places that are masked fully, and this mask has none: there is no ramp.")
    cells = ramp(cells, settings.ramp, cell)
    # Lifted last: a mean over a group of frames may be lower than its members.
    cells = floor(cells, settings.min_strength)
    return CellMask(pool(mask, members, "any"), pool(shaped, members, settings.coverage), cells, grid, tuple(notes))


def _black_in_open_groups(cells: torch.Tensor, members: tuple[tuple[int, ...], ...]) -> int:
    """How many of the masks [N, rows, columns] are 0 everywhere while another of their members is not."""
    touched = (cells > 0.0).flatten(1).any(1).tolist()
    groups = [[touched[i] for i in group] for group in members]
    return sum(group.count(False) for group in groups if any(group))


def _fitted(mask: torch.Tensor, grid: Grid, coverage: str, notes: list[str]) -> torch.Tensor:
    """The mask [N, h, w] at the picture's size; what was done is added to `notes`."""
    height, width = mask.shape[-2:]
    kept_height, kept_width = grid.rows * grid.cell, grid.columns * grid.cell
    if (grid.height, grid.width) != (height, width):
        notes.append(
            f"The mask is {width}x{height} px and the picture {grid.width}x{grid.height} px: it was stretched to fit."
        )
        if height * grid.width != width * grid.height:
            notes.append(
                "Their proportions differ. If the VAE cropped the picture, the mask lies up to "
                f"{grid.cell - 1} px off: give it at the picture's own size."
            )
    if (grid.height, grid.width) != (kept_height, kept_width):
        notes.append(
            f"The picture is {grid.width}x{grid.height} px, not whole {grid.cell} px cells: "
            f"the VAE crops it to {kept_width}x{kept_height} px, and the cropped border is kept."
        )
    return resize(mask, grid.height, grid.width, coverage)
