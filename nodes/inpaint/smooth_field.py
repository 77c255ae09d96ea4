"""Smooth continuation of values into places where they are not known, and the colour differences made with it."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F

from .mask import grow

RING = 8  # px: width of the ring outside a mask on which colours are compared
FINEST = 8  # px: colour differences finer than this are detail, not a shift


def color_shift(original: torch.Tensor, generated: torch.Tensor, inside: torch.Tensor) -> torch.Tensor | None:
    """The smooth colour difference original - generated, measured on a ring outside the mask and extended inside.

    original, generated: [B, H, W, C]. inside: [B, H, W] bool -> [B, H, W, C], or None where no pixel lies on the ring.
    On the ring it is the local mean of the difference. Inside it is filled from coarser and coarser pictures, so it
    holds low frequencies only: see `smooth_field`.
    """
    ring = (grow(inside.to(torch.float32), RING) > 0.0) & ~inside
    if not bool(ring.any()):
        return None
    return smooth_field(original - generated, ring, FINEST)


def smooth_field(values: torch.Tensor, known: torch.Tensor, block: int) -> torch.Tensor:
    """The low frequencies of values [B, H, W, C] where `known` [B, H, W] bool, continued elsewhere -> [B, H, W, C].

    block: px; the mean of each block of that side is the finest that is kept. Values that are not finite are taken as
    not known. Where nothing is known in a picture, its field is 0.
    """
    known = known & finite_pixels(values)  # one NaN would spread over all pixels
    weight = known.to(torch.float32)[:, None]  # [B, 1, H, W]
    kept = torch.where(known[..., None], values, 0.0).movedim(-1, 1)  # [B, C, H, W]
    field = pull_push(F.avg_pool2d(kept, block, ceil_mode=True), F.avg_pool2d(weight, block, ceil_mode=True))
    # The last blocks may reach beyond the picture: resize in blocks, then crop.
    field = F.interpolate(field, scale_factor=block, mode="bilinear")[..., : values.shape[1], : values.shape[2]]
    return field.movedim(1, -1)


def finite_pixels(image: torch.Tensor) -> torch.Tensor:
    """[..., C] -> [...] bool: where all channels are finite. The sum of a picture tells at once that all are."""
    if math.isfinite(float(image.sum())):
        return torch.ones(image.shape[:-1], dtype=torch.bool)
    return torch.isfinite(image).all(-1)


def pull_push(values: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Values [B, C, h, w] with their holes filled from coarser levels (pull-push, Gortler et al. 1996, section 3.4).

    values: already multiplied by weight [B, 1, h, w], which is 0 in holes and at most 1.
    """
    if bool((weight > 0.0).all()) or max(values.shape[-2:]) == 1:
        return values / weight.clamp(min=1e-12)
    coarse = pull_push(F.avg_pool2d(values, 2, ceil_mode=True), F.avg_pool2d(weight, 2, ceil_mode=True))
    filled = F.interpolate(coarse, scale_factor=2, mode="bilinear")[..., : values.shape[-2], : values.shape[-1]]
    trust = (4.0 * weight).clamp(max=1.0)  # full trust from a quarter of the block on
    return trust * values / weight.clamp(min=1e-12) + (1.0 - trust) * filled
