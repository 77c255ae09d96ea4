"""Variations of a picture: the noise of one seed turned towards that of another.

The noises of two seeds are nearly orthogonal, so their mean is shorter than either, and a model makes flat pictures of
it. Spherical interpolation (Shoemake 1985, "Animating rotation with quaternion curves") keeps the length. The web UI of
AUTOMATIC1111 calls the two numbers "variation seed" and "variation strength".
"""

from __future__ import annotations

from dataclasses import dataclass

import comfy.nested_tensor
import torch

from ...training.errors import InputError
from ..bridge.sampling import noise_for

STRENGTH_MIN, STRENGTH_MAX = 0.0, 1.0


@dataclass(frozen=True)
class Variation:
    """seed: whose noise is turned to. strength: 0 (the first seed's noise) to 1 (this seed's).

    Raises `InputError` for a strength out of range.
    """

    seed: int = 0
    strength: float = 0.0

    def __post_init__(self):
        if not STRENGTH_MIN <= self.strength <= STRENGTH_MAX:
            raise InputError(
                f"variation_strength is {self.strength}; give a number from 0 (the noise of seed) to 1 (the noise of "
                "variation_seed)"
            )


def varied_noise(samples, seed: int, variation: Variation, latent: dict):
    """KSampler's noise for `seed`, turned towards that of the variation's seed; at 0 and at 1 one of them, bit for bit.

    samples: [B, ...] or nested. latent: the LATENT, whose `batch_index` counts for both seeds. Each of a batch is
    turned on its own, and each part of a nested latent.
    """
    if variation.strength == 0.0:
        return noise_for(samples, seed, latent)
    other = noise_for(samples, variation.seed, latent)
    noise = noise_for(samples, seed, latent)  # the last call: it also seeds torch, as KSampler does before it samples
    if variation.strength == 1.0:
        return other
    if isinstance(noise, torch.Tensor) and isinstance(other, torch.Tensor):
        return slerp(noise, other, variation.strength)
    parts = zip(noise.unbind(), other.unbind(), strict=True)
    return comfy.nested_tensor.NestedTensor([slerp(a, b, variation.strength) for a, b in parts])


def slerp(start: torch.Tensor, end: torch.Tensor, share: float) -> torch.Tensor:
    """Spherical interpolation of each start[i] to end[i], [B, ...] of one shape; share 0..1.

    The direction moves along the great circle at a constant rate. The length moves linearly, so that both ends are
    met. Equal directions are kept.
    """
    a, b = (noise.flatten(1).double() for noise in (start, end))
    lengths = [noise.norm(dim=1, keepdim=True).clamp(min=1e-30) for noise in (a, b)]
    a, b = a / lengths[0], b / lengths[1]
    # The angle by atan2 is exact for small angles, where acos of the scalar product is not.
    angle = 2.0 * torch.atan2((a - b).norm(dim=1, keepdim=True), (a + b).norm(dim=1, keepdim=True))
    sine = torch.sin(angle)
    turned = (torch.sin((1.0 - share) * angle) * a + torch.sin(share * angle) * b) / sine.clamp(min=1e-12)
    direction = torch.where(sine > 1e-6, turned, a)
    length = (1.0 - share) * lengths[0] + share * lengths[1]
    return (length * direction).reshape(start.shape).to(start.dtype)
