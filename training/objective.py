"""The noise-conditioned loss: one noise level per image, the closed-form noising, the model's own prediction."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

Prediction = Literal["epsilon", "v", "flow", "x0"]
MIN_SNR_GAMMA = 5.0  # the paper's
SHIFT = 3.0  # SD3's at 1024 px


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


def signal_to_noise(prediction: Prediction, sigma: Tensor) -> Tensor:
    """SNR [B] of a latent of unit variance noised to `sigma`: 1 / sigma^2, for flow ((1 - sigma) / sigma)^2."""
    return ((1 - sigma) / sigma) ** 2 if prediction == "flow" else sigma**-2


def min_snr_weight(prediction: Prediction, sigma: Tensor) -> Tensor:
    """min(SNR, 5), so that the easy, nearly clean levels do not outweigh the rest.

    Hang et al. 2023, arXiv 2303.09556, section 3.4, written for the clean latent.
    """
    return signal_to_noise(prediction, sigma).clamp(max=MIN_SNR_GAMMA)


def debiased_weight(prediction: Prediction, sigma: Tensor) -> Tensor:
    """sqrt(SNR): the noise error divided by sqrt(SNR), at most 1000 (Yu et al. 2023, arXiv 2310.08442, eq. 9)."""
    return signal_to_noise(prediction, sigma).clamp(max=1000.0).sqrt()


# The trainers' widget lists these names; a further one needs its line here and nothing else.
LOSS_WEIGHTINGS: dict[str, Callable[[Prediction, Tensor], Tensor]] = {
    "none": prediction_weight,
    "min-SNR": min_snr_weight,
    "debiased": debiased_weight,
}


def loss_weight(prediction: Prediction, sigma: Tensor, weighting: str = "none") -> Tensor:
    """What the squared error of the clean latent is multiplied by, [B]: one of `LOSS_WEIGHTINGS`."""
    try:
        return LOSS_WEIGHTINGS[weighting](prediction, sigma)
    except KeyError:
        raise ValueError(f"no loss weighting {weighting!r}") from None


def schedule_place(u: Tensor, timestep_sampling: str = "uniform") -> Tensor:
    """Uniform draws [B] in 0..1 turned into places in the noise schedule, 0 the cleanest; strata stay strata.

    logit-normal: the logistic function of a standard normal, which favours the middle (Esser et al. 2024, arXiv
    2403.03206, eq. 19). shifted: 3 u / (1 + 2 u), which favours the noisy end (the same, eq. 23, with shift 3).
    """
    if timestep_sampling == "uniform":
        return u
    if timestep_sampling == "logit-normal":
        return torch.sigmoid(torch.special.ndtri(u.double().clamp(1e-7, 1 - 1e-7))).to(u.dtype)
    if timestep_sampling == "shifted":
        return SHIFT * u / (1 + (SHIFT - 1) * u)
    raise ValueError(f"no timestep sampling {timestep_sampling!r}")


def denoising_loss(
    model: Denoiser, latent: Tensor, noise: Tensor, sigma: Tensor, conditioning: Any, mask: Tensor | None = None,
    weighting: str = "none",
) -> Tensor:  # fmt: skip
    """Mean squared error of the model's own prediction (noise, v or velocity), one value per image: [B], float32.

    latent, noise: [B, C, ...] in the model's latent space. sigma: [B]. mask: [B, 1, ...] in 0..1 or None; the mean is
    taken over what the mask lets through (an image whose mask is empty counts 0). weighting: see `loss_weight`.
    """
    noisy = model.add_noise(sigma, noise, latent)
    error = (model.denoise(noisy, sigma, conditioning).float() - latent) ** 2
    if mask is None:
        mean = error.flatten(1).mean(1)
    else:
        mask = mask.expand_as(error)
        mean = (error * mask).flatten(1).sum(1) / mask.flatten(1).sum(1).clamp(min=1e-6)
    return loss_weight(model.prediction, sigma, weighting) * mean
