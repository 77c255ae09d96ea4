"""Latents that the base itself has denoised in part, at a prompt."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Protocol

import comfy.model_management
import torch
from torch import Tensor

from ....training.slider import DENOISING_GUIDANCE, guided, partly_denoised
from ...bridge.dataset.captions import CaptionConditioning
from ...bridge.training_model.denoiser import ComfyDenoiser


class Detachable(Protocol):
    def detached(self) -> AbstractContextManager[None]:
        """A context in which the model is the base, without gradients."""
        ...


class BaseLatents:
    """captions: of the set whose pictures the indices name. trainable: what is attached to the model."""

    def __init__(self, denoiser: ComfyDenoiser, captions: CaptionConditioning, trainable: Detachable) -> None:
        self._denoiser, self._captions, self._trainable = denoiser, captions, trainable

    def estimate(self, noisy: Tensor, sigma: Tensor, indices: Sequence[int], prompts: Sequence[str]) -> Tensor:
        """The base's estimate of the clean latent [B, C, ...], without a gradient. indices, prompts: of each sample."""
        comfy.model_management.throw_exception_if_processing_interrupted()
        conditioning = self._captions.of_batch(indices, prompts)
        with self._trainable.detached():
            return self._denoiser.denoise(noisy, sigma, conditioning)

    def at(self, noise: Tensor, t: Tensor, indices: Sequence[int], prompts: Sequence[str]) -> Tensor:
        """The latents [B, C, ...] at the timesteps `t` [B]: see `slider.partly_denoised`.

        With classifier-free guidance against the empty prompt. The same bits for the same noise.
        """

        def estimate(noisy: Tensor, sigma: Tensor, rows: list[int]) -> Tensor:
            own, texts = [indices[row] for row in rows], [prompts[row] for row in rows]
            both = self.estimate(
                torch.cat([noisy, noisy]), torch.cat([sigma, sigma]), [*own, *own], [*texts, *[""] * len(rows)]
            )
            conditional, unconditional = both.chunk(2)
            return guided(conditional, unconditional, DENOISING_GUIDANCE)

        return partly_denoised(self._denoiser, noise, t, estimate)
