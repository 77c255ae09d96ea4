"""The noise of a training's samples: standard normal numbers, and what the settings add to them.

Each is a pure function of seed, micro-batch and position in the global batch, see `randomness`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from .config import TrainConfig
from .randomness import generator, noise

MULTIRES_ITERATIONS = 6  # sd-scripts' `pyramid_noise_like` and the least that its help recommends


def sample_noises(
    config: TrainConfig, seed: int | str, micro: int, positions: Sequence[int], shape: Sequence[int]
) -> Tensor:
    """The noises [B, C, ..., H, W] of the samples at `positions`, of `shape` [C, ..., H, W] each.

    Standard normal noise, plus `noise_offset` times one normal number per channel, then `multires` where that is set;
    sd-scripts has the same order. The offset lets the model see latents of other mean brightness than zero ("offset
    noise", Guttenberg 2023).
    """
    noises = torch.stack([noise(seed, micro, position, shape) for position in positions])
    if config.noise_offset:
        means = torch.stack([noise(seed, micro, position, shape[:1], "offset") for position in positions])
        noises += config.noise_offset * means.reshape(len(positions), shape[0], *[1] * (len(shape) - 1))
    if config.multires_noise:
        own = [
            multires(each, config.multires_noise, generator(seed, "multires", micro, position))
            for each, position in zip(noises, positions, strict=True)
        ]
        noises = torch.stack(own)
    return noises


def multires(own: Tensor, discount: float, draw: torch.Generator) -> Tensor:
    """Noise of several resolutions ("pyramid noise", Whitaker 2023), with the standard deviation 1.

    own: [C, ..., H, W], the sample's noise. discount: in 0..1; noise of iteration i counts discount^i. Each of up to
    `MULTIRES_ITERATIONS` iterations adds normal noise on a grid r^i times as coarse, r uniform in 2..4, enlarged
    bilinearly; a grid with one row or column is the last. Iteration 0 is a second noise of the full size. Each frame of
    a film has coarse noise of its own.

    The rule is sd-scripts' `pyramid_noise_like`, which divides a batch by the standard deviation of all of it. Here
    each sample is divided by its own, so that it does not depend on the others of the batch.
    """
    height, width = own.shape[-2:]
    out = own.reshape(1, -1, height, width)
    for i in range(MULTIRES_ITERATIONS):
        ratio = (2 + 2 * torch.rand((), generator=draw).item()) ** i
        rows, columns = max(1, int(height / ratio)), max(1, int(width / ratio))
        coarse = torch.randn(1, out.shape[1], rows, columns, generator=draw)
        out = out + discount**i * interpolate(coarse, (height, width), mode="bilinear")
        if rows == 1 or columns == 1:
            break
    return (out / out.std()).reshape(own.shape)


def perturbations(
    config: TrainConfig, seed: int | str, micro: int, positions: Sequence[int], shape: Sequence[int]
) -> Tensor | None:
    """`ip_noise_gamma` times normal noise [B, C, ...] for the samples at `positions`; None where that is 0.

    See `perturbation` of `objective.denoising_loss`.
    """
    if not config.ip_noise_gamma:
        return None
    own = [noise(seed, micro, position, shape, "input perturbation") for position in positions]
    return config.ip_noise_gamma * torch.stack(own)
