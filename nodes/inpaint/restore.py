"""Restoring the original's pixels outside the mask, matching colours inside, and counting what changed.

Encoding and decoding change every pixel a little, so keeping the latent is not enough. The pixels outside are copied
from the original, which makes them equal bit for bit, after any number of rounds.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from ...training.errors import InputError
from .mask import blur, clean, grow, resize

FEATHER_MIN, FEATHER_MAX = 0, 256  # px
FEATHER = 8  # px: hides the change of the pixels at the border by encoding and decoding
RING = 8  # px: width of the ring outside the mask on which colours are compared
FINEST = 8  # px: colour differences finer than this are detail, not a shift
MOST_CROP = 64  # px: no VAE crops this much of a height or width


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
    difference = (image - original).abs().amax(-1)  # [B, H, W]
    difference = torch.where(outside, difference.nan_to_num(torch.inf, torch.inf), 0.0)
    return Audit(int((difference > 0).sum()), float(difference.max()), int(outside.sum()))


def restore(
    original: torch.Tensor, generated: torch.Tensor, mask: torch.Tensor, settings: RestoreSettings
) -> tuple[torch.Tensor, Audit, list[str]]:
    """(the original outside the mask and the generated picture inside [B, H, W, C], the result's audit, notes).

    original: [B or 1, H, W, C] in 0..1. generated: [B or 1, h, w, c]. mask: [B or 1, H, W] in 0..1; another size is
    stretched. Raises `InputError` for other shapes or batches that do not fit each other.
    """
    original = _picture(original, "original")
    generated = _picture(generated, "generated")
    mask, notes = clean(mask)
    height, width = original.shape[1:3]
    if tuple(mask.shape[1:]) != (height, width):
        notes.append(
            f"The mask is {mask.shape[2]}x{mask.shape[1]} px and the original {width}x{height} px: it was "
            "stretched to fit."
        )
        mask = resize(mask, height, width)

    batch = max(original.shape[0], generated.shape[0])
    original, generated = _to_batch(original, batch, "originals"), _to_batch(generated, batch, "generated pictures")
    mask = _to_batch(mask, batch, "masks")
    outside = mask == 0.0
    if broken := int((~torch.isfinite(generated)).any(-1).sum()):
        notes.append(
            f"{broken} px of the generated picture are not numbers; inside the mask they stay so. "
            "Look to the sampler or the VAE: often it computes in a type that is too small."
        )
    fitted, inside_frame = fit_generated(generated, original, notes)
    mask = mask * inside_frame

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
    weight = (mask * ramp_inward(mask > 0.0, settings.feather))[..., None]  # [B, H, W, 1]
    image = torch.where(weight == 1.0, fitted, original + weight * (fitted - original))
    image = torch.where((weight == 0.0) | outside[..., None], original, image)
    return image, audit(original, image, outside), notes


def _picture(image: torch.Tensor, name: str) -> torch.Tensor:
    if image.ndim != 4 or image.shape[-1] not in (1, 3, 4):
        raise InputError(f"{name} has the shape {list(image.shape)}; give an IMAGE [pictures, height, width, channels]")
    return image.to("cpu", torch.float32)


def _to_batch(tensor: torch.Tensor, batch: int, what: str) -> torch.Tensor:
    if tensor.shape[0] not in (1, batch):
        raise InputError(f"{tensor.shape[0]} {what} for {batch} pictures; give one, or {batch}")
    return tensor.expand(batch, *tensor.shape[1:])


def fit_generated(
    generated: torch.Tensor, original: torch.Tensor, notes: list[str]
) -> tuple[torch.Tensor, torch.Tensor]:
    """(the generated picture at the original's size [B, H, W, C], 1 where it has pixels and else 0 [B, H, W]).

    A VAE centre-crops to whole cells, so a picture smaller by less than `MOST_CROP` is placed in the middle of the
    original. Any other size is resized. What was done is added to `notes`.
    """
    height, width, channels = original.shape[1:]
    h, w = generated.shape[1:3]
    if generated.shape[-1] != channels:
        if generated.shape[-1] == 1:
            generated = generated.expand(-1, -1, -1, min(channels, 3))
        elif channels == 1:
            generated = generated[..., :3].mean(-1, keepdim=True)
    cropped = 0 <= height - h < MOST_CROP and 0 <= width - w < MOST_CROP
    if not cropped:
        notes.append(f"The generated picture is {w}x{h} px and the original {width}x{height} px: it was resized.")
        generated = F.interpolate(generated.movedim(-1, 1), (height, width), mode="bicubic", antialias=True).movedim(
            1, -1
        )
        generated, h, w = generated.clamp(0.0, 1.0), height, width
    elif (h, w) != (height, width):
        notes.append(
            f"The generated picture is {w}x{h} px, the VAE's crop of {width}x{height} px: the cropped border is "
            "the original's."
        )
    top, left = (height - h) // 2, (width - w) // 2
    fitted, frame = original.clone(), original.new_zeros(original.shape[:3])
    shared = min(channels, generated.shape[-1])  # an alpha channel that only the original has stays
    fitted[:, top : top + h, left : left + w, :shared] = generated[..., :shared]
    frame[:, top : top + h, left : left + w] = 1.0
    return fitted, frame


def ramp_inward(inside: torch.Tensor, pixels: int) -> torch.Tensor:
    """[B, H, W] bool -> fp32 weights: 0 outside, rising inside to 1 at `pixels` from the mask's edge.

    The picture's border is no edge.
    """
    inside = inside.to(torch.float32)
    if pixels == 0:
        return inside
    half = (pixels + 1) // 2
    return blur(grow(inside, -half), half) * inside


def color_shift(original: torch.Tensor, generated: torch.Tensor, inside: torch.Tensor) -> torch.Tensor | None:
    """The smooth colour difference original - generated, measured on a ring outside the mask and extended inside.

    original, generated: [B, H, W, C]. inside: [B, H, W] bool -> [B, H, W, C], or None where no pixel lies on the ring.
    On the ring it is the local mean of the difference. Inside it is filled from coarser and coarser pictures
    (pull-push, Gortler et al. 1996), so it holds low frequencies only.
    """
    ring = (grow(inside.to(torch.float32), RING) > 0.0) & ~inside
    if not bool(ring.any()):
        return None
    difference = original - generated
    ring = ring & torch.isfinite(difference).all(-1)  # one NaN would spread over all pixels
    weight = ring.to(torch.float32)[:, None]  # [B, 1, H, W]
    known = torch.where(ring[..., None], difference, 0.0).movedim(-1, 1)  # [B, C, H, W]
    shift = pull_push(F.avg_pool2d(known, FINEST, ceil_mode=True), F.avg_pool2d(weight, FINEST, ceil_mode=True))
    # A block is FINEST px wide, so the last ones may reach beyond the picture: resize in blocks, then crop.
    shift = F.interpolate(shift, scale_factor=FINEST, mode="bilinear")[..., : inside.shape[1], : inside.shape[2]]
    return shift.movedim(1, -1)


def pull_push(values: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Values [B, C, h, w] with their holes filled from coarser levels.

    values: already multiplied by weight [B, 1, h, w], which is 0 in holes and at most 1.
    """
    if bool((weight > 0.0).all()) or max(values.shape[-2:]) == 1:
        return values / weight.clamp(min=1e-12)
    coarse = pull_push(F.avg_pool2d(values, 2, ceil_mode=True), F.avg_pool2d(weight, 2, ceil_mode=True))
    filled = F.interpolate(coarse, scale_factor=2, mode="bilinear")[..., : values.shape[-2], : values.shape[-1]]
    trust = (4.0 * weight).clamp(max=1.0)  # full trust from a quarter of the block on
    return trust * values / weight.clamp(min=1e-12) + (1.0 - trust) * filled
