"""The objectives of sliders and of erasing, and the partly denoised latents that they are trained on.

Concept Sliders (Gandikota et al. 2023, arXiv 2311.12092) and Erasing Concepts (Gandikota et al. 2023, arXiv
2303.07345) write both for the predicted noise. A prediction (noise, v or velocity) is linear in the estimate of the
clean latent at a given noisy latent, and the coefficients of each target add up to 1: the same sum of clean estimates
is the target of any prediction. `loss_weight` then makes the error that of the model's own prediction.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .objective import Denoiser
from .tensors import to_list

DENOISING_STEPS = 8  # from pure noise to a clean latent; a partial denoising takes its share of them
DENOISING_GUIDANCE = 3.0  # its classifier-free guidance, that of both papers

# (noisy [b, C, ...], sigma [b], which samples of the batch these are) -> the clean latent [b, C, ...]
Estimate = Callable[[Tensor, Tensor, list[int]], Tensor]


def pulled(own: Tensor, more: Tensor, less: Tensor, guidance: float) -> Tensor:
    """own + guidance (more - less): the target of a slider at +1, and with -guidance at -1 (Concept Sliders, eq. 7).

    own, more, less: the base's clean estimates [B, C, ...] of one noisy latent at three prompts. For erasing, own is
    the estimate without the concept, more the same and less the one with it (Erasing Concepts, eq. 7).
    """
    return own + guidance * (more - less)


def guided(conditional: Tensor, unconditional: Tensor, scale: float) -> Tensor:
    """Classifier-free guidance (Ho & Salimans 2022, arXiv 2207.12598): 1 is the conditional estimate."""
    return unconditional + scale * (conditional - unconditional)


def partly_denoised(
    denoiser: Denoiser, noise: Tensor, t: Tensor, estimate: Estimate, steps: int = DENOISING_STEPS
) -> Tensor:
    """The latent [B, C, ...] at the timesteps `t` [B] in 0..1, denoised from `noise` at timestep 1.

    The timesteps of all `steps` from 1 to 0 are equally far apart; a sample takes those above its own, then one that
    ends there, so on average half of them. Each step takes the clean estimate and the noise that the noisy latent then
    has, and puts them together at the next level (DDIM, Song et al. 2020, arXiv 2010.02502, eq. 12, eta = 0; for a flow
    that is Euler's step). noise: [B, C, ...], the only randomness. estimate: see `Estimate`.
    """
    at = torch.ones_like(t)
    noisy = denoiser.add_noise(denoiser.sigma(at), noise, torch.zeros_like(noise))
    for step in range(1, steps + 1):
        left = (at > t).nonzero().flatten()
        rows = to_list(left)
        if not rows:
            break
        to = t[left].clamp(min=1 - step / steps)
        noisy = noisy.index_copy(0, left, _stepped(denoiser, noisy[left], at[left], to, rows, estimate))
        at = at.index_copy(0, left, to)
    return noisy


def _stepped(denoiser: Denoiser, noisy: Tensor, t: Tensor, to: Tensor, rows: list[int], estimate: Estimate) -> Tensor:
    """The samples `rows` at the timesteps `to`, from `noisy` at the timesteps `t`."""
    sigma = denoiser.sigma(t)
    clean = estimate(noisy, sigma, rows)
    zeros, ones = torch.zeros_like(noisy), torch.ones_like(noisy)
    noise = (noisy - denoiser.add_noise(sigma, zeros, clean)) / denoiser.add_noise(sigma, ones, zeros)
    return denoiser.add_noise(denoiser.sigma(to), noise, clean)
