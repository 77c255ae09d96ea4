"""What a masked place is filled with: a function of one picture for each kind of fill."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F

from ..mask import blur as hann_blur
from .carry import MARGIN, bounds, carry

CARRY, BLUR, MEAN, NOISE, NEUTRAL = FILLS = ("carry", "blur", "mean", "noise", "neutral")
FROM_OUTSIDE = (CARRY, MEAN, NOISE)  # need a place that is not masked
GREY = 0.5
BLUR_SHARE = 4  # the window's radius is the side of the masked area over this
FINEST_PATCH = 4  # px: a VAE's cells average finer noise away
BLUR_RADIUS = 8  # px of the reduced picture in which a large radius is computed

Content = Callable[[torch.Tensor, torch.Tensor, torch.Generator], torch.Tensor]
"""(picture [C, h, w], known [h, w] bool, generator) -> the fill [C, h, w]; only its masked places are used."""


def carried(picture: torch.Tensor, known: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    return carry(picture, known)


def blurred(picture: torch.Tensor, known: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """What is in the masked place, blurred over a quarter of its size, and made to meet the picture at the edge."""
    radius = max(1, round(float((~known).sum()) ** 0.5 / BLUR_SHARE))
    return _joined(_wide_blur(picture, radius), picture, known)


def mean(picture: torch.Tensor, known: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """The mean colour of what is known."""
    return picture[:, known].mean(1)[:, None, None].expand_as(picture)


def noise(picture: torch.Tensor, known: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Random patches of all sizes in the picture's colours, made to meet the picture at the edge.

    The patches have the mean and the covariance of the known colours, and equal variance in each octave, as natural
    pictures nearly have (Field 1987, "Relations between the statistics of natural images").
    """
    colours = picture[:, known].double()
    covariance = torch.cov(colours, correction=0).reshape(len(picture), len(picture))
    values, vectors = torch.linalg.eigh(covariance)
    mix = (vectors * values.clamp(min=0.0).sqrt()).to(picture.dtype)
    top, bottom, left, right = bounds(~known, MARGIN)
    part = (slice(None), slice(top, bottom), slice(left, right))
    patches = _octaves(picture[part], generator)
    content = torch.tensordot(mix, patches, 1) + colours.mean(1).to(picture.dtype)[:, None, None]
    out = picture.clone()
    out[part] = _joined(content, picture[part], known[part[1:]])
    return out


def neutral(picture: torch.Tensor, known: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    return torch.full_like(picture, GREY)


CONTENTS: dict[str, Content] = {CARRY: carried, BLUR: blurred, MEAN: mean, NOISE: noise, NEUTRAL: neutral}


def _joined(content: torch.Tensor, picture: torch.Tensor, known: torch.Tensor) -> torch.Tensor:
    """The content plus its difference from the picture at the edge of what is known, carried inward."""
    if not bool(known.any()):
        return content.clamp(0.0, 1.0)
    return (content + carry(picture - content, known)).clamp(0.0, 1.0)


def _wide_blur(picture: torch.Tensor, radius: int) -> torch.Tensor:
    """picture [C, h, w] under a Hann window of about `radius` px; a large one is computed on a reduced picture."""
    reduced = max(1, radius // BLUR_RADIUS)
    size = picture.shape[-2:]
    small = F.avg_pool2d(picture[None], reduced, ceil_mode=True)[0] if reduced > 1 else picture
    small = hann_blur(small, max(1, round(radius / reduced)))
    if reduced == 1:
        return small
    return F.interpolate(small[None], scale_factor=reduced, mode="bilinear")[0, :, : size[0], : size[1]]


def _octaves(like: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Noise [C, h, w], as `like`, of mean 0 and variance 1 about, with equal variance in each octave."""
    channels, height, width = like.shape
    out, octaves, step = torch.zeros(1, channels, height, width), 0, FINEST_PATCH
    while step == FINEST_PATCH or step < max(height, width):
        size = [-(-height // step) + 1, -(-width // step) + 1]
        draw = torch.randn(1, channels, *size, generator=generator)
        # Bilinear leaves a variance of (2 / 3) ** 2.
        draw = F.interpolate(draw, scale_factor=step, mode="bilinear") * 1.5
        out += draw[..., :height, :width]
        octaves, step = octaves + 1, 2 * step
    return out[0] / octaves**0.5
