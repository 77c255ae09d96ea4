"""The denoising loss: one noise level per image, closed-form noising, the error of the model's own prediction."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

Prediction = Literal["epsilon", "v", "flow", "x0", "velocity", "edm"]
MIN_SNR_GAMMA = 5.0  # the paper's
EDM_DATA = 0.5  # standard deviation of the latents that `edm` is written for (Karras et al. 2022, table 1)


class Denoiser(Protocol):
    """What a training needs of a diffusion model."""

    prediction: Prediction

    def sigma(self, t: Tensor) -> Tensor:
        """Noise levels [B] at timesteps `t` [B] in 0..1 of the model's training schedule: 0 clean, 1 noise."""
        ...

    def add_noise(self, sigma: Tensor, noise: Tensor, latent: Tensor) -> Tensor:
        """`latent` [B, C, ...] noised to the levels `sigma` [B] with `noise` of the same shape."""
        ...

    def denoise(self, noisy: Tensor, sigma: Tensor, conditioning: Any) -> Tensor:
        """The model's estimate of the clean latent [B, C, ...], from one call with exactly B samples."""
        ...


def prediction_weight(prediction: Prediction, sigma: Tensor) -> Tensor:
    """The factor [B] from the squared error of the clean latent to that of the model's own prediction.

    With x = x0 + sigma n (unit data variance), x given, the target is a multiple of x0 plus a known term:
    epsilon = (x - x0) / sigma (Ho et al. 2020, eq. 14), v = epsilon a - x0 s, where a^2 = 1 / (1 + sigma^2) and
    s^2 = sigma^2 a^2 (Salimans & Ho 2022, appendix D), flow velocity = (x - x0) / sigma on x = (1 - sigma) x0 + sigma n
    (Lipman et al. 2023). `velocity` is that of a flow on x / (1 + sigma) = (1 - t) x0 + t n, t = sigma / (1 + sigma)
    (Cosmos Predict 2). `edm` is F of x0 = c_skip x + c_out F, c_out = sigma d / sqrt(sigma^2 + d^2) with d = `EDM_DATA`
    (Karras et al. 2022, arXiv 2206.00364, table 1). An error of the target is therefore an error of x0 times that
    multiple.
    """
    if prediction in ("epsilon", "flow"):
        return sigma**-2
    if prediction == "v":
        return (sigma**2 + 1) / sigma**2
    if prediction == "velocity":
        return ((sigma + 1) / sigma) ** 2
    if prediction == "edm":
        return (sigma**2 + EDM_DATA**2) / (sigma * EDM_DATA) ** 2
    if prediction == "x0":
        return torch.ones_like(sigma)
    raise ValueError(f"no prediction type {prediction!r}; give epsilon, v, flow, velocity, edm or x0")


def signal_to_noise(prediction: Prediction, sigma: Tensor) -> Tensor:
    """SNR [B] of a latent of unit variance noised to `sigma`: 1 / sigma^2, for flow ((1 - sigma) / sigma)^2; for edm
    that of a latent of the variance `EDM_DATA`^2."""
    if prediction == "flow":
        return ((1 - sigma) / sigma) ** 2
    return (EDM_DATA / sigma) ** 2 if prediction == "edm" else sigma**-2


def min_snr_weight(prediction: Prediction, sigma: Tensor) -> Tensor:
    """min(SNR, 5): limits the weight of nearly clean levels (Hang et al. 2023, arXiv 2303.09556, section 3.4).

    The paper's weight, written for the error of the clean latent.
    """
    return signal_to_noise(prediction, sigma).clamp(max=MIN_SNR_GAMMA)


def debiased_weight(prediction: Prediction, sigma: Tensor) -> Tensor:
    """sqrt(SNR): the noise error divided by sqrt(SNR), at most 1000 (Yu et al. 2023, arXiv 2310.08442, eq. 9)."""
    return signal_to_noise(prediction, sigma).clamp(max=1000.0).sqrt()


def p2_weight(prediction: Prediction, sigma: Tensor) -> Tensor:
    """SNR / (1 + SNR): the noise error over 1 + SNR (Choi et al. 2022, arXiv 2204.00227, eq. 8, k = gamma = 1).

    Written so that it is 1 at sigma 0, where SNR is infinite.
    """
    return 1 / (1 + 1 / signal_to_noise(prediction, sigma))


def cosmap_weight(prediction: Prediction, sigma: Tensor) -> Tensor:
    """2 / (pi (1 - 2 t + 2 t^2)) on the error of the velocity (CosMap of Esser et al. 2024, arXiv 2403.03206, 3.1).

    t: see `_flow_time`. The paper's density of t, as a weight; diffusers calls it cosmap too.
    """
    t = _flow_time(prediction, sigma)
    return 2 / (math.pi * (1 - 2 * t + 2 * t**2)) / t**2


def sigma_sqrt_weight(prediction: Prediction, sigma: Tensor) -> Tensor:
    """t^-2 on the error of the velocity: diffusers' `sigma_sqrt` (`compute_loss_weighting_for_sd3`).

    t: see `_flow_time`. Nearly clean levels count by far the most: at t = 0.01 a hundred times as much as at 0.1.
    """
    return _flow_time(prediction, sigma) ** -4


def _flow_time(prediction: Prediction, sigma: Tensor) -> Tensor:
    """t [B] in 0..1 of the flow (1 - t) x0 + t n with the model's SNR, ((1 - t) / t)^2; for flow models sigma.

    The error of its velocity n - x0 is that of x0 over t.
    """
    return sigma if prediction == "flow" else 1 / (1 + signal_to_noise(prediction, sigma).sqrt())


# The trainers' widget lists these names. CONTRIBUTING.md says what a new one needs.
LOSS_WEIGHTINGS: dict[str, Callable[[Prediction, Tensor], Tensor]] = {
    "none": prediction_weight,
    "min-SNR": min_snr_weight,
    "debiased": debiased_weight,
    "P2": p2_weight,
    "cosmap": cosmap_weight,
    "sigma-sqrt": sigma_sqrt_weight,
}


def loss_weight(prediction: Prediction, sigma: Tensor, weighting: str = "none") -> Tensor:
    """The factor [B] of the squared error of the clean latent. weighting: one of `LOSS_WEIGHTINGS`."""
    try:
        return LOSS_WEIGHTINGS[weighting](prediction, sigma)
    except KeyError:
        raise ValueError(f"no loss weighting {weighting!r}") from None


def expected_loss(prediction: Prediction, sigma: Tensor, weighting: str = "none") -> Tensor:
    """The smallest possible loss [B] at `sigma` for latents of independent normal numbers of the variance d^2 = 1, or
    `EDM_DATA`^2 for edm.

    The variance of the clean latent given the noisy one is then d^2 / (1 + SNR). For epsilon without a weighting the
    loss is 1 / (1 + sigma^2), which differs a thousandfold between the ends of SD1.5's schedule; for v it is 1.

    It is that of the squared error. Importance sampling takes it for the Huber losses too: the density it draws from
    changes how much the loss scatters, never its mean.
    """
    data = EDM_DATA**2 if prediction == "edm" else 1.0
    return data * loss_weight(prediction, sigma, weighting) / (1 + signal_to_noise(prediction, sigma))


def input_share(prediction: Prediction, sigma: Tensor) -> Tensor:
    """c_skip [B] of x0 = c_skip x + c_out F, where x is the noisy latent and F the model's own prediction.

    1 for epsilon and flow, whose x0 is x - sigma F; the others by the equations of `prediction_weight`.
    """
    if prediction == "v":
        return 1 / (1 + sigma**2)
    if prediction == "velocity":
        return 1 / (1 + sigma)
    if prediction == "edm":
        return EDM_DATA**2 / (sigma**2 + EDM_DATA**2)
    return torch.zeros_like(sigma) if prediction == "x0" else torch.ones_like(sigma)


def squared_error(error: Tensor, _: Tensor) -> Tensor:
    return error**2


def huber_error(error: Tensor, c: Tensor) -> Tensor:
    """2 c (sqrt(e^2 + c^2) - c): e^2 where |e| is far below c, 2 c |e| far above it.

    The pseudo-Huber loss with kohya's factor (sd-scripts, `conditional_loss`). Multiplied out, so that small errors do
    not cancel in float32.
    """
    return c * smooth_l1_error(error, c)


def smooth_l1_error(error: Tensor, c: Tensor) -> Tensor:
    """2 (sqrt(e^2 + c^2) - c), kohya's smooth L1: `huber_error` over c, so 2 |e| for large errors whatever c is."""
    return 2 * error**2 / ((error**2 + c**2).sqrt() + c)


# How the error e of the model's own prediction counts, given Huber's c. The trainers' widget lists these names.
LOSS_TYPES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "mse": squared_error,
    "huber": huber_error,
    "smooth l1": smooth_l1_error,
}


@dataclass(frozen=True)
class ErrorMeasure:
    """How the error of a prediction counts: by one of `LOSS_TYPES`, and the `huber_c` of `huber_threshold`."""

    loss_type: str = "mse"
    huber_c: float = 0.1


SQUARED = ErrorMeasure()


def huber_threshold(prediction: Prediction, sigma: Tensor, huber_c: float) -> Tensor:
    """c [B] of the Huber losses: (1 - huber_c) / (1 + s)^2 + huber_c with s = 1 / sqrt(SNR).

    From 1 for clean latents down to `huber_c` for noise. This is the rule "snr", the default of kohya's
    `--huber_schedule`; sd-scripts has it for models with a discrete schedule only. Here flow models have it too, by
    their SNR: (1 - huber_c) (1 - sigma)^2 + huber_c.
    """
    return (1 - huber_c) / (1 + signal_to_noise(prediction, sigma).rsqrt()) ** 2 + huber_c


def denoising_loss(
    denoiser: Denoiser,
    latent: Tensor,
    noise: Tensor,
    sigma: Tensor,
    conditioning: Any,
    mask: Tensor | None = None,
    weighting: str = "none",
    measure: ErrorMeasure = SQUARED,
    perturbation: Tensor | None = None,
) -> Tensor:
    """Mean error of the model's own prediction (noise, v or velocity) per image: [B], float32.

    The squared error is computed as that of the clean latent, times `loss_weight`. The Huber losses are no multiple of
    it: they take the error of the clean latent times sqrt(`prediction_weight`), which is the prediction's own.

    latent, noise: [B, C, ...] in the model's latent space. sigma: [B], see `Denoiser.sigma`. mask: [B, 1, ...] in 0..1
    or None; the mean is weighted by the mask, and an image with an empty mask has loss 0. weighting: see `loss_weight`.
    perturbation: [B, C, ...] or None: what the noise in the model's input has in addition, while the target is that of
    `noise` alone (Ning et al. 2023, arXiv 2301.11706).
    """
    levels = [-1, *[1] * (latent.ndim - 1)]
    noisy = denoiser.add_noise(sigma, noise if perturbation is None else noise + perturbation, latent)
    if perturbation is not None:
        # The clean latent at which the prediction from the perturbed input equals the target of the plain one.
        latent = latent + (input_share(denoiser.prediction, sigma) * sigma).reshape(levels) * perturbation
    error = denoiser.denoise(noisy, sigma, conditioning).float() - latent
    weight = loss_weight(denoiser.prediction, sigma, weighting)
    if measure.loss_type == "mse":
        error = error**2
    else:
        own = prediction_weight(denoiser.prediction, sigma)
        c = huber_threshold(denoiser.prediction, sigma, measure.huber_c)
        error = LOSS_TYPES[measure.loss_type](error * own.sqrt().reshape(levels), c.reshape(levels))
        weight = weight / own
    if mask is None:
        mean = error.flatten(1).mean(1)
    else:
        mask = mask.expand_as(error)
        mean = (error * mask).flatten(1).sum(1) / mask.flatten(1).sum(1).clamp(min=1e-6)
    return weight * mean


def prediction_change(denoiser: Denoiser, one: Tensor, other: Tensor, sigma: Tensor, weighting: str = "none") -> Tensor:
    """Mean squared difference of the model's own prediction (noise, v or velocity) per image: [B], at least float32.

    one, other: two estimates of the clean latent [B, C, ...] of the same noised latent at the noise levels `sigma` [B].
    weighting: see `loss_weight`.
    """
    wide = torch.promote_types(one.dtype, torch.float32)
    error = (one.to(wide) - other.to(wide)) ** 2
    return loss_weight(denoiser.prediction, sigma, weighting) * error.flatten(1).mean(1)


def preservation_loss(
    denoiser: Denoiser,
    latent: Tensor,
    noise: Tensor,
    sigma: Tensor,
    conditioning: Callable[[], Any],
    detached: Callable[[], AbstractContextManager[None]],
    weighting: str = "none",
) -> Tensor:
    """How far the trained model's prediction has moved from the base's own, per image: [B]. See `prediction_change`.

    Learning without Forgetting (Li & Hoiem 2016, arXiv 1606.09282, section 3): what must not change is held to what the
    old model gives for the new pictures, so that no further pictures are needed. As differential output preservation in
    ostris/ai-toolkit, both predictions are of the same noised latent at the same noise level, at a prompt of the class.
    Loss masks do not count, since the whole prediction is to stay.

    latent, noise, sigma: as in `denoising_loss`. conditioning: makes the batch's conditioning; it is called once within
    `detached` and once outside, since a trained text encoder encodes differently there. detached: a context in which
    the model is the frozen base, without gradients.
    """
    noisy = denoiser.add_noise(sigma, noise, latent)
    with detached():
        base = denoiser.denoise(noisy, sigma, conditioning())
    return prediction_change(denoiser, denoiser.denoise(noisy, sigma, conditioning()), base, sigma, weighting)
