"""The noise-conditioned loss: one noise level per image, the closed-form noising, the model's own prediction."""

from __future__ import annotations

from typing import Any, Literal, Protocol

import torch
from torch import Tensor

Prediction = Literal["epsilon", "v", "flow", "x0"]


class Denoiser(Protocol):
    """What a training needs of a diffusion model."""

    prediction: Prediction

    def sigma(self, u: Tensor) -> Tensor:
        """Noise levels [B] at the places `u` [B] in 0..1 of the model's training schedule, 0 the cleanest."""
        ...

    def add_noise(self, sigma: Tensor, noise: Tensor, latent: Tensor) -> Tensor:
        """The closed-form noising of `latent` [B, C, ...] with `noise` of the same shape to the levels `sigma` [B]."""
        ...

    def denoise(self, noisy: Tensor, sigma: Tensor, conditioning: Any) -> Tensor:
        """The model's estimate of the clean latent [B, C, ...], in one call with exactly B samples."""
        ...


def prediction_weight(prediction: Prediction, sigma: Tensor) -> Tensor:
    """What turns the squared error of the clean latent into that of the model's own prediction, [B].

    With x = x0 + sigma n (unit data variance) the network's target differs from x0 by a factor of sigma alone:
    epsilon = (x - x0) / sigma (Ho et al. 2020, eq. 14), v = epsilon a - x0 s, where a^2 = 1 / (1 + sigma^2) and
    s^2 = sigma^2 a^2 (Salimans & Ho 2022, appendix D), flow velocity = (x - x0) / sigma on x = (1 - sigma) x0 + sigma n
    (Lipman et al. 2023). x is given, so an error of the target is an error of x0 times that factor.
    """
    if prediction in ("epsilon", "flow"):
        return sigma**-2
    if prediction == "v":
        return (sigma**2 + 1) / sigma**2
    if prediction == "x0":
        return torch.ones_like(sigma)
    raise ValueError(f"no prediction type {prediction!r}")


def denoising_loss(
    model: Denoiser, latent: Tensor, noise: Tensor, sigma: Tensor, conditioning: Any, mask: Tensor | None = None
) -> Tensor:
    """Mean squared error of the model's own prediction (noise, v or velocity), one value per image: [B], float32.

    latent, noise: [B, C, ...] in the model's latent space. sigma: [B]. mask: [B, 1, ...] in 0..1 or None; the mean is
    taken over what the mask lets through (an image whose mask is empty counts 0).
    """
    noisy = model.add_noise(sigma, noise, latent)
    error = (model.denoise(noisy, sigma, conditioning).float() - latent) ** 2
    if mask is None:
        mean = error.flatten(1).mean(1)
    else:
        mask = mask.expand_as(error)
        mean = (error * mask).flatten(1).sum(1) / mask.flatten(1).sum(1).clamp(min=1e-6)
    return prediction_weight(model.prediction, sigma) * mean
