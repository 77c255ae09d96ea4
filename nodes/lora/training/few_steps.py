"""How far a training moves a distilled base from the pictures that it drew in a few steps.

A fixed set of prompts that have nothing to do with the training set, drawn by the base before the first step with the
sampler settings of the graph. The loss of the model on these latents, at fixed noise levels with fixed noises, is
measured before and after the training, each time without the training adapter: as the model is used.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace

import comfy.model_management
import torch
from torch import Tensor

from ....training.objective import denoising_loss
from ....training.randomness import noise
from ....training.record import Run
from ....training.validation import SEED
from ...bridge.dataset.captions import CaptionConditioning
from ...bridge.runs.samples import SamplerSettings, as_conditioning, draw_latent, sampling
from ...bridge.training_model.denoiser import ComfyDenoiser

PROMPTS = (
    "a portrait of a woman in a park",
    "a dog on a beach",
    "a city street at night",
    "a bowl of fruit on a wooden table",
)
MOST_STEPS = 12  # of a drawing, whatever the graph's sampler has: it bounds the cost
DEFAULT_SAMPLER = SamplerSettings(steps=8, cfg=1.0, sampler_name="euler", scheduler="simple")

Context = Callable[[], AbstractContextManager[None]]


class FewStepDrift:
    """See `runs.task.Drift`.

    captions: encodes prompts with the text encoder as it is. index: a picture, whose size the drawn ones have.
    timesteps: t of the grid. weighting: of the loss. base: the context in which the model is the base alone. used: that
    in which it is the base with what was trained, and without the training adapter.
    """

    def __init__(
        self,
        denoiser: ComfyDenoiser,
        captions: CaptionConditioning,
        like: tuple[int, Tensor],
        settings: SamplerSettings,
        timesteps: Sequence[float],
        weighting: str,
        contexts: tuple[Context, Context],
    ) -> None:
        """like: (position of a picture, its latent [1, C, ...]). contexts: `base` and `used`."""
        self._denoiser, self._captions, self._weighting = denoiser, captions, weighting
        (self._index, self._like), self._timesteps = like, timesteps
        self._settings = replace(settings, steps=min(settings.steps, MOST_STEPS))
        self._base, self._used = contexts
        self._latents: list[Tensor] = []
        self._before = math.nan

    @property
    def model_calls(self) -> int:
        """How many pictures the model is called with: it draws `PROMPTS`, and scores them twice."""
        drawn = self._settings.steps * (1 if self._settings.cfg == 1 else 2)
        return len(PROMPTS) * (drawn + 2 * len(self._timesteps))

    def start(self) -> None:
        """Draw the pictures with the base and score it on them."""
        with self._base():
            self._latents = [self._draw(number, prompt) for number, prompt in enumerate(PROMPTS)]
            self._before = self._loss()

    def measure(self, run: Run) -> str:
        """The sentence of the report; "" before `start`. run: is not changed."""
        if not self._latents:
            return ""
        with self._used():
            after = self._loss()
        settings, change = self._settings, after / self._before - 1 if self._before else math.nan
        return (
            f"few-step drift: {len(PROMPTS)} pictures that the base drew in {settings.steps} steps at CFG "
            f"{settings.cfg:g}, of prompts that have nothing to do with the set, have the loss {self._before:.5f} "
            f"without what was trained and {after:.5f} with it ({change:+.1%}), each without the training adapter"
        )

    def _draw(self, number: int, prompt: str) -> Tensor:
        """The latent [1, C, ...] of a prompt as the network reads it, on the CPU."""
        settings = replace(self._settings, seed=(self._settings.seed + number) % 2**64)
        denoiser = self._denoiser

        def conditioning() -> tuple[list, list]:
            positive, negative = as_conditioning(self._captions.encode([prompt, ""], self._index))
            return positive, negative

        with sampling(denoiser):
            drawn = draw_latent(denoiser, self._like, settings, conditioning)
        with torch.no_grad():
            return denoiser.base.process_latent_in(drawn).float().to("cpu", copy=True)

    def _loss(self) -> float:
        """The mean loss on the drawn pictures with the model as it is."""
        losses: list[float] = []
        for number, (prompt, latent) in enumerate(zip(PROMPTS, self._latents, strict=True)):
            comfy.model_management.throw_exception_if_processing_interrupted()
            losses.append(self._loss_of(number, prompt, latent))
        return sum(losses) / len(losses)

    def _loss_of(self, number: int, prompt: str, latent: Tensor) -> float:
        denoiser, count = self._denoiser, len(self._timesteps)
        noises = [noise(SEED, number, position, latent.shape[1:], "few steps") for position in range(count)]
        with torch.no_grad():
            conditioning = self._captions.of_batch([self._index] * count, [prompt] * count)
            loss = denoising_loss(
                denoiser,
                latent.expand(count, *latent.shape[1:]).to(denoiser.device),
                torch.stack(noises).to(denoiser.device),
                denoiser.sigma(torch.tensor(self._timesteps)),
                conditioning,
                None,
                self._weighting,
            )
        return loss.cpu().double().mean().item()  # in this order: not every device has float64
