"""Restoring the original's pixels outside the mask, matching colours inside, and counting what changed.

Encoding and decoding change every pixel a little, so keeping the latent is not enough. The pixels outside are copied
from the original, which makes them equal bit for bit, after any number of rounds.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F

from ...training.errors import InputError
from .mask import blur, clean, grow, resize
from .smooth_field import color_shift

FEATHER_MIN, FEATHER_MAX = 0, 256  # px
FEATHER = 8  # px: hides the change of the pixels at the border by encoding and decoding
MOST_CROP = 64  # px: a picture smaller by more is not tried as a part of the original
CELLS = (4, 8, 16, 32)  # px: the cells of ComfyUI's VAEs, to whole ones of which they crop a picture
GROUPS = (4, 6, 8)  # frames to a latent frame of ComfyUI's video VAEs, which drop the frames that fill no group
# How much nearer the outside must be to the original to decide against what the size says. Below 1, since resizing also
# smooths the error of encoding and decoding.
NEARER = 0.7
COMPARED = 256  # px: fewer outside the mask decide nothing
STRIP = 128  # rows that are compared at once
FEW = 0.25  # of a strip's pixels: fewer are compared by themselves


@dataclass(frozen=True)
class RestoreSettings:
    """feather: px inside the mask's edge. match_color: 0..1. Raises `InputError` for a value out of range."""

    feather: int = 0
    match_color: float = 0.0

    def __post_init__(self):
        if not FEATHER_MIN <= self.feather <= FEATHER_MAX:
            raise InputError(f"feather is {self.feather}; give {FEATHER_MIN} to {FEATHER_MAX} pixels")
        if not 0.0 <= self.match_color <= 1.0:
            raise InputError(f"match_color is {self.match_color}; give 0 to 1")


@dataclass(frozen=True)
class Audit:
    """How a picture differs from the original outside the mask."""

    changed: int  # pixels that differ
    largest: float  # the largest difference of any channel, of pixel values in 0..1
    outside: int  # all pixels outside


def audit(original: torch.Tensor, image: torch.Tensor, outside: torch.Tensor) -> Audit:
    """Compare two pictures [B, H, W, C] where `outside` [B, H, W] is true."""
    changed, largest = 0, 0.0
    for before, after, counted in zip(original, image, outside, strict=True):
        for row in range(0, len(before), STRIP):  # strips of rows stay in the processor's cache
            rows = slice(row, row + STRIP)
            if torch.equal(after[rows], before[rows]):  # the usual case, and the fastest
                continue
            some, most = _difference(before[rows], after[rows], counted[rows])
            changed, largest = changed + some, max(largest, most)
    return Audit(changed, largest, int(outside.sum()))


def _difference(before: torch.Tensor, after: torch.Tensor, counted: torch.Tensor) -> tuple[int, float]:
    """(pixels that differ, the largest difference) of two strips [rows, W, C] where `counted` [rows, W] is true."""
    if int(counted.sum()) < FEW * counted.numel():
        before, after, counted = before[counted], after[counted], counted[counted]
    if len(counted) == 0:
        return 0, 0.0
    difference = torch.where(counted, (before - after).abs_().amax(-1), 0.0)
    most = float(difference.max())
    if not math.isfinite(most):  # what is no number and stays so has not changed
        same = (before == after) | (before.isnan() & after.isnan())
        difference = torch.where(same, 0.0, (before - after).abs().nan_to_num(torch.inf, torch.inf)).amax(-1)
        difference = torch.where(counted, difference, 0.0)
        most = float(difference.max())
    return int((difference > 0).sum()), most


def restore(
    original: torch.Tensor, generated: torch.Tensor, mask: torch.Tensor, settings: RestoreSettings
) -> tuple[torch.Tensor, Audit, list[str]]:
    """(the original outside the mask and the generated picture inside [B, H, W, C], the result's audit, notes).

    original: [N, H, W, C] in 0..1, N a divisor of B. generated: [B or 1, h, w, c], or the frames that a video VAE left
    of B. mask: [B or N or 1, H, W] in 0..1, or [.., h, w]; another size is stretched. Several masks for one picture are
    united. Raises `InputError` for other shapes or batches that do not fit each other.
    """
    original = picture(original, "original")
    generated = picture(generated, "generated")
    mask, notes = clean(mask)
    original, generated, mask, frames = _paired(original, generated, mask, notes)
    batch = original.shape[0]
    if broken := int((~torch.isfinite(generated)).any(-1).sum()):
        notes.append(
            f"{broken} px of the generated picture are not numbers; inside the mask they stay so. "
            "Look to the sampler or the VAE: often it computes in a type that is too small."
        )
    placed = place(original[:frames], generated, mask[:frames])
    notes += placed.notes
    fitted, outside, mask = placed.generated, placed.mask == 0.0, placed.mask * placed.frame
    if frames < batch:  # the frames that the VAE dropped stay as they are
        dropped = original[frames:]
        fitted = torch.cat((fitted, dropped))
        outside = torch.cat((outside, outside.new_ones(dropped.shape[:3])))
        mask = torch.cat((mask, mask.new_zeros(dropped.shape[:3])))
    before = audit(original, fitted, outside)
    notes.append(
        f"As decoded, {before.changed} of {before.outside} px outside the mask differed, by up to {before.largest:.4f}."
    )
    if settings.match_color > 0.0:
        shift = color_shift(original, fitted, mask > 0.0)
        if shift is None:
            notes.append("Colours were not matched: no pixel lies outside the mask to compare.")
        else:
            change = float(shift.abs()[mask > 0.0].mean())
            notes.append(f"Colours were matched at the border: mean change {change:.4f}.")
            matched = (fitted + settings.match_color * shift).clamp(0.0, 1.0)
            fitted = torch.where((mask > 0.0)[..., None], matched, fitted)
    weight = mask * ramp_inward(mask > 0.0, settings.feather)
    if hidden := sum(is_hidden(one, float(faded.max())) for one, faded in zip(mask, weight, strict=True)):
        notes.append(hidden_note(hidden))
    weight = weight[..., None]  # [B, H, W, 1]
    image = torch.where(weight == 1.0, fitted, original + weight * (fitted - original))
    image = torch.where((weight == 0.0) | outside[..., None], original, image)
    return image, audit(original, image, outside), notes


def picture(image: torch.Tensor, name: str) -> torch.Tensor:
    """An IMAGE as fp32 on the CPU. Raises `InputError` for another shape."""
    if image.ndim != 4 or image.shape[-1] not in (1, 3, 4):
        raise InputError(f"{name} has the shape {list(image.shape)}; give an IMAGE [pictures, height, width, channels]")
    return image.to("cpu", torch.float32)


def _paired(
    original: torch.Tensor, generated: torch.Tensor, mask: torch.Tensor, notes: list[str]
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, int]:
    """(original [B, ...], generated [F, ...], mask [B, ...], F): each with its picture; F < B if a VAE dropped frames.

    What was done is added to `notes`.
    """
    originals, made = original.shape[0], generated.shape[0]
    batch = max(originals, made)
    frames = made if 1 < made < originals and drops_frames(originals, made) else batch
    if frames < batch:
        notes.append(
            f"{batch} originals and {made} generated pictures: taken for a video of which the VAE dropped frames "
            f"at the end ({batch - frames}), which stay the original's."
        )
    if 1 < originals < batch and batch % originals == 0:
        notes.append(f"{originals} originals for {batch} pictures: repeated in order.")
        original = _repeated(original, batch)
        if mask.shape[0] == originals:
            mask = _repeated(mask, batch)
    if batch == 1 and mask.shape[0] > 1:
        notes.append(f"{mask.shape[0]} masks for one picture: they were united.")
        mask = mask.amax(0, keepdim=True)
    if frames < batch and mask.shape[0] == frames:
        mask = torch.cat((mask, mask.new_zeros((batch - frames, *mask.shape[1:]))))
    original = _to_batch(original, batch, "originals")
    return original, _to_batch(generated, frames, "generated pictures"), _to_batch(mask, batch, "masks"), frames


def drops_frames(given: int, left: int) -> bool:
    """Whether a video VAE leaves `left` of `given` frames: one and as many whole groups of 4, 6 or 8 as there are."""
    return any((given - 1) // group * group + 1 == left for group in GROUPS)


def _repeated(tensor: torch.Tensor, batch: int) -> torch.Tensor:
    return tensor.repeat(batch // tensor.shape[0], *[1] * (tensor.ndim - 1))


def _to_batch(tensor: torch.Tensor, batch: int, what: str) -> torch.Tensor:
    if tensor.shape[0] not in (1, batch):
        raise InputError(f"{tensor.shape[0]} {what} for {batch} pictures; give one, or {batch}")
    return tensor.expand(batch, *tensor.shape[1:])


@dataclass(frozen=True)
class Placed:
    """A generated picture and a mask at the original's size."""

    generated: torch.Tensor  # [B, H, W, C]; the original's pixels where it has none
    mask: torch.Tensor  # [B, H, W]
    frame: torch.Tensor  # [B, H, W], 1 where the generated picture has pixels, else 0
    error: float | None  # mean difference from the original outside the mask, None if too little lies there
    notes: tuple[str, ...] = ()

    def is_much_nearer(self, other: Placed) -> bool:
        """Whether the outside agrees so much better with the original than if placed like `other` that it decides."""
        return self.error is not None and other.error is not None and self.error < NEARER * other.error


def place(original: torch.Tensor, generated: torch.Tensor, mask: torch.Tensor) -> Placed:
    """The generated picture [B, h, w, C] and the mask [B, .., ..] where they belong on the original [B, H, W, C].

    A VAE crops to whole cells at the middle, so a picture of such a size is laid there, and any other is resized. Where
    both are possible, the outside decides against this if the other agrees much better with the original.
    """
    size = height, width = original.shape[1], original.shape[2]
    h, w = generated.shape[1:3]
    generated = with_channels(generated, original.shape[-1])
    if (h, w) == size:
        return _placed(original, generated, *_mask_at(mask, size, None), (0, 0))
    sizes = f"The generated picture is {w}x{h} px and the original {width}x{height} px"
    scaled = F.interpolate(generated.movedim(-1, 1), size, mode="bicubic", antialias=True).movedim(1, -1)
    resized = _placed(
        original, scaled.clamp(0.0, 1.0), *_mask_at(mask, size, None), (0, 0), f"{sizes}: it was resized."
    )
    if not (0 <= height - h < MOST_CROP and 0 <= width - w < MOST_CROP):
        return resized
    top, left = (height - h) // 2, (width - w) // 2
    where = f"it was laid {left} px from the left and {top} px from the top, and the cropped border is the original's."
    as_vae = is_crop(size, (h, w))
    if as_vae:
        sizes = f"The generated picture is {w}x{h} px, the VAE's crop of {width}x{height} px by its size"
    else:
        sizes += ", and outside the mask it agrees with the original's middle"
    crop = _placed(original, generated, *_mask_at(mask, size, (h, w)), (top, left), f"{sizes}: {where}")
    if as_vae and resized.is_much_nearer(crop):
        note = "Outside the mask it agrees with the whole original, not with the VAE's crop of it."
        return replace(resized, notes=(*resized.notes, note))
    return crop if as_vae or crop.is_much_nearer(resized) else resized


def is_crop(size: tuple[int, int], cropped: tuple[int, int]) -> bool:
    """Whether a VAE leaves `cropped` px of a picture of `size` (height, width): whole cells, and less than one less."""
    return any(tuple(side // cell * cell for side in size) == cropped for cell in CELLS)


def with_channels(generated: torch.Tensor, channels: int) -> torch.Tensor:
    """A generated picture [..., c] for an original of `channels`: grey as colour, or colour as grey."""
    if generated.shape[-1] == channels:
        return generated
    if generated.shape[-1] == 1:
        return generated.expand(*generated.shape[:-1], min(channels, 3))
    return generated[..., :3].mean(-1, keepdim=True) if channels == 1 else generated


def _mask_at(
    mask: torch.Tensor, size: tuple[int, int], cropped: tuple[int, int] | None
) -> tuple[torch.Tensor, tuple[str, ...]]:
    """(the mask [B, H, W] at `size` (height, width), notes).

    cropped: the size of a picture that is laid into the middle, else None. A mask of that size is laid with it, and
    one with only its proportions is stretched to it.
    """
    given = (mask.shape[1], mask.shape[2])
    if given == size:
        return mask, ()
    with_crop = cropped is not None and (given == cropped or (_alike(given, cropped) and not _alike(given, size)))
    height, width = cropped if cropped is not None and with_crop else size
    note = (
        f"The mask is {given[1]}x{given[0]} px and the {'generated picture' if with_crop else 'original'} "
        f"{width}x{height} px: it was stretched to fit."
    )
    fitted = resize(mask, height, width)
    if with_crop:
        top, left = (size[0] - height) // 2, (size[1] - width) // 2
        fitted = F.pad(fitted, (left, size[1] - width - left, top, size[0] - height - top))
    return fitted, () if given == cropped else (note,)


def _alike(a: tuple[int, int], b: tuple[int, int]) -> bool:
    return a[0] * b[1] == a[1] * b[0]


def _placed(
    original: torch.Tensor,
    generated: torch.Tensor,
    mask: torch.Tensor,
    notes: tuple[str, ...],
    corner: tuple[int, int],
    note: str = "",
) -> Placed:
    """The generated picture [B, h, w, c] laid on the original with its upper left pixel at `corner` (top, left)."""
    (top, left), (h, w) = corner, generated.shape[1:3]
    fitted, frame = original.clone(), original.new_zeros(original.shape[:3])
    shared = min(original.shape[-1], generated.shape[-1])  # an alpha channel that only the original has stays
    fitted[:, top : top + h, left : left + w, :shared] = generated[..., :shared]
    frame[:, top : top + h, left : left + w] = 1.0
    difference = (fitted - original).abs().amax(-1)
    compared = (mask == 0.0) & (frame > 0.0) & torch.isfinite(difference)
    error = float(difference[compared].mean()) if int(compared.sum()) >= COMPARED else None
    return Placed(fitted, mask, frame, error, (*notes, *([note] if note else ())))


def is_hidden(mask: torch.Tensor, most: float) -> bool:
    """Whether a fade leaves less than half of a mask [H, W] anywhere: `most` is its highest value with the fade."""
    highest = float(mask.max())
    return highest > 0.0 and most < highest / 2


def hidden_note(masks: int) -> str:
    which = "The mask is" if masks == 1 else f"{masks} masks are"
    return f"{which} so narrow that feather leaves less than half of the new picture anywhere: lower feather."


def ramp_inward(inside: torch.Tensor, pixels: int) -> torch.Tensor:
    """[B, H, W] bool -> fp32 weights: 0 outside, rising inside to 1 at `pixels` from the mask's edge.

    The picture's border is no edge.
    """
    inside = inside.to(torch.float32)
    if pixels == 0:
        return inside
    half = (pixels + 1) // 2
    return blur(grow(inside, -half), half) * inside
