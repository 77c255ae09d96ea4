"""Noise levels of a model's sampling, for every kind of prediction, from ComfyUI's `model_sampling`."""

from __future__ import annotations

import torch


def noise_that_gives(model_sampling, sigma, state, original, from_noise: bool) -> torch.Tensor:
    """The noise n for which noise_scaling(sigma, n, original, from_noise) is `state`.

    `noise_scaling` is affine in the noise, so this works for every kind of prediction: (x - L) / sigma for epsilon and
    v, (x - (1 - sigma) L) / sigma for flow. state, original and the result have one shape; sigma is a scalar.
    """
    signal = model_sampling.noise_scaling(sigma, torch.zeros_like(state), original, from_noise)
    one = state.new_ones([1] * state.ndim)
    scale = model_sampling.noise_scaling(sigma, one, torch.zeros_like(one), from_noise)
    return (state - signal) / torch.where(scale == 0, one, scale)


def noise_to_signal(model_sampling, sigma: torch.Tensor) -> torch.Tensor:
    """The noise's scale over the signal's at `sigma` [B, 1, ...]: sigma, or sigma / (1 - sigma) for flow."""
    one = torch.ones_like(sigma)
    noise, signal = (model_sampling.noise_scaling(sigma.flatten(), a, b) for a, b in ((one, 0 * one), (0 * one, one)))
    return noise / signal


def schedule_left(model_sampling, sigma: torch.Tensor, first: torch.Tensor) -> torch.Tensor:
    """The share of a schedule from sigma `first` [1] that is left at `sigma` [B, 1, ...], in the model's timesteps.

    1 at `first`, 0 at the model's least sigma. For flow, timesteps are sigma itself.
    """
    at, top, bottom = (
        model_sampling.timestep(s).to(torch.float32)
        for s in (sigma.flatten(), first, model_sampling.sigma_min.reshape(1).to(sigma))
    )
    return ((at - bottom) / (top - bottom).clamp(min=1e-9)).clamp(0.0, 1.0).reshape(sigma.shape)
