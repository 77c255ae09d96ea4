"""The noise-conditioned loss: one noise level per image, the closed-form noising, the model's own prediction."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from .errors import InputError

Prediction = Literal["epsilon", "v", "flow", "x0"]
MIN_SNR_GAMMA = 5.0  # the paper's
SHIFT = 3.0  # SD3's at 1024 px
CELLS = 1000  # steps of the law that importance sampling draws by
EVEN = 0.1  # the share of it that goes to all levels alike, so that no loss counts more than ten times


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


def expected_loss(prediction: Prediction, sigma: Tensor, weighting: str = "none") -> Tensor:
    """The loss [B] that the best guess is left with at `sigma`, were latents independent numbers of unit variance.

    The clean latent's variance given the noisy one is then 1 / (1 + SNR). For epsilon without a weighting this is
    1 / (1 + sigma^2), a thousandfold from one end of SD1.5's schedule to the other; for v it is 1 at all levels.
    """
    return loss_weight(prediction, sigma, weighting) / (1 + signal_to_noise(prediction, sigma))


@dataclass(frozen=True)
class ImportanceSampling:
    """Noise levels drawn as often as they matter, each loss divided by how often: the same objective with less
    variance.

    Where a network predicts the noise, its gradient is twenty times as long at the nearly clean end of the schedule as
    at the noisy one (measured on adapters of the small model: between the loss and its root). Drawn alike, most of what
    a small batch's gradient says is how many of its images fell there; drawn in proportion to the loss, every image
    says
    about as much. The mean over draws is that of even draws. The technique is that of Nichol & Dhariwal 2021, section
    3.3, who measure the losses on the way, for their L_vlb, and saw no gain on their smoother L_hybrid; here the losses
    are `expected_loss`, so that a draw stays a function of seed, step and place, and what it gains is in
    `tests/bench/bench_lora_concept.py`.

    density: [cells], the law over places 0..1 in the schedule, of mean 1.
    """

    density: Tensor

    @classmethod
    def of(cls, model: Denoiser, weighting: str = "none") -> ImportanceSampling:
        middles = (torch.arange(CELLS) + 0.5) / CELLS
        sigma = model.sigma(middles).cpu().double()  # in this order: not every device has float64
        expected = expected_loss(model.prediction, sigma, weighting)
        if not (expected.isfinite().all() and expected.sum() > 0):
            raise InputError(
                "timestep_sampling is importance, and this model's noise levels give no law for it (they begin at "
                f"{sigma[0]:g} and end at {sigma[-1]:g}); choose uniform"
            )
        return cls((1 - EVEN) * expected / expected.mean() + EVEN)

    @cached_property
    def _ends(self) -> Tensor:
        """[cells], the share of all draws that fall into a cell or before it."""
        return self.density.cumsum(0) / len(self.density)

    def place(self, u: Tensor) -> Tensor:
        """Uniform draws [B] in 0..1 turned into places by the law; strata stay strata."""
        count = len(self.density)
        u = u.double() * self._ends[-1]  # the last end is 1 but for rounding
        cell = torch.searchsorted(self._ends, u, right=True).clamp(max=count - 1)
        density = self.density[cell]
        within = (u - (self._ends[cell] - density / count)) / density
        return (cell / count + within.clamp(0, 1 / count)).float().clamp(max=1 - 2**-24)

    def weight(self, place: Tensor) -> Tensor:
        """What the loss [B] at places is multiplied by: one over the density."""
        count = len(self.density)
        cell = (place.cpu().double() * count).long().clamp(max=count - 1)
        return (1 / self.density[cell]).float()


def importance(model: Denoiser, timestep_sampling: str, weighting: str = "none") -> ImportanceSampling | None:
    """The law of importance sampling for a model, where that is the sampling asked for."""
    return ImportanceSampling.of(model, weighting) if timestep_sampling == "importance" else None


def sample_timesteps(u: Tensor, timestep_sampling: str) -> Tensor:
    """Uniform draws [B] in 0..1 turned into places in the noise schedule, 0 the cleanest; strata stay strata.

    logit-normal: the logistic function of a standard normal, which favours the middle (Esser et al. 2024, arXiv
    2403.03206, eq. 19). shifted: 3 u / (1 + 2 u), which favours the noisy end (the same, eq. 23, with shift 3). The law
    of importance sampling depends on the model: see `ImportanceSampling`.
    """
    if timestep_sampling == "uniform":
        return u
    if timestep_sampling == "logit-normal":
        return torch.sigmoid(torch.special.ndtri(u.double().clamp(1e-7, 1 - 1e-7))).to(u.dtype)
    if timestep_sampling == "shifted":
        return SHIFT * u / (1 + (SHIFT - 1) * u)
    raise ValueError(f"no timestep sampling {timestep_sampling!r}")


def denoising_loss(
    model: Denoiser,
    latent: Tensor,
    noise: Tensor,
    sigma: Tensor,
    conditioning: Any,
    mask: Tensor | None = None,
    weighting: str = "none",
) -> Tensor:
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
