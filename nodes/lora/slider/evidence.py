"""Measures a slider on pictures that the model draws with it at several strengths."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import comfy.model_management
import torch
from torch import Tensor

from ....training.adapters.strength import at_strength
from ....training.objective import denoising_loss, prediction_change
from ....training.randomness import noise
from ....training.record import Run
from ....training.slider_evidence import Scores, monotone_share, score, useful_range
from ....training.strength_range import in_words
from ....training.validation import SEED
from ...bridge.dataset.captions import CaptionConditioning
from ...bridge.dataset.pictures import Pictures
from ...bridge.runs.samples import SamplerSettings, as_conditioning, draw_latent, sampling
from ...bridge.training_model.denoiser import ComfyDenoiser
from ..training.preserve import lines_of
from .dataset import has_pairs, plain_ends
from .latents import BaseLatents
from .request import SliderRequest

SEEDS = 3  # pictures at each strength
SLIDER_STRENGTHS = (-3.0, -2.0, -1.0, 0.0, 1.0, 2.0, 3.0)
ERASE_STRENGTHS = (0.0, 0.5, 1.0, 1.5, 2.0)
MOST_STEPS = 12  # of a drawing, whatever the graph's sampler has: it bounds the cost
LEVELS = (0.3, 0.5, 0.7)  # t at which a picture is scored by the base
NOTE = "slider"  # the beginning of the note in a run's record


class SliderEvidence:
    """See `runs.task.Drift`. It changes nothing that is learned.

    settings: how pictures are drawn. latents: gives the base's part while adapters are attached. limits: the
    range of t that is trained, in which the change of the prediction is measured.
    """

    def __init__(
        self,
        denoiser: ComfyDenoiser,
        captions: CaptionConditioning,
        pictures: Pictures,
        request: SliderRequest,
        settings: SamplerSettings,
        latents: Callable[[], BaseLatents],
        limits: tuple[float, float] = (0.0, 1.0),
    ) -> None:
        self._denoiser, self._captions, self._pictures, self._request = denoiser, captions, pictures, request
        self._settings = replace(settings, steps=min(settings.steps, MOST_STEPS))
        self._latents, self._limits, self._started = latents, limits, False
        self._target = request.target if request.target.strip() else pictures.items[0].prompt

    def start(self) -> None:
        self._started = True

    def measure(self, run: Run) -> str:
        """The sentence of the report; "" where an earlier sitting has measured the same result. The useful strengths
        go into `run`.
        """
        if not self._started and any(note.startswith(f"{NOTE}:") for note in run.notes):
            return ""
        strengths = ERASE_STRENGTHS if self._request.erases else SLIDER_STRENGTHS
        found = {
            strength: [self._score(self._draw(number, strength)) for number in range(SEEDS)] for strength in strengths
        }
        scores = {strength: [each for each, _ in rows] for strength, rows in found.items()}
        errors = {strength: [error for _, error in rows] for strength, rows in found.items()}
        useful = useful_range(scores, errors)
        run.useful_strengths = useful or ()
        return f"{NOTE}: {self._in_words(scores)}; {self._useful_in_words(useful)}{self._others_in_words()}"

    def _in_words(self, scores: Scores) -> str:
        low, high = (0.0, 2.0) if self._request.erases else (-2.0, 2.0)
        share = monotone_share(scores, low, high)
        towards = "away from target" if self._request.erases else "from the one end to the other"
        judged = (
            "-1 the mean negative picture, 1 the mean positive one"
            if has_pairs(self._pictures)
            else "the base's own judgement, -1 to 1, which stays where it is once a picture shows an end"
        )
        means = ", ".join(f"{sum(row) / len(row):+.2f} at {strength:g}" for strength, row in sorted(scores.items()))
        return (
            f"of {SEEDS} seeds, {round(share * SEEDS)} move {towards} from {low:g} to {high:g} without going back "
            f"(mean score {means}; {judged})"
        )

    def _draw(self, number: int, strength: float) -> Tensor:
        """The latent [1, C, ...] of the target, as the network reads it, on the CPU."""
        comfy.model_management.throw_exception_if_processing_interrupted()
        settings = replace(self._settings, seed=(self._settings.seed + number) % 2**64)
        denoiser, like = self._denoiser, self._pictures.data.latents[0]

        def conditioning() -> tuple[list, list]:
            positive, negative = as_conditioning(self._captions.encode([self._target, ""]))
            return positive, negative

        with sampling(denoiser), at_strength(strength):
            drawn = draw_latent(denoiser, like, settings, conditioning)
        with torch.no_grad():
            return denoiser.base.process_latent_in(drawn).float().to("cpu", copy=True)

    def _score(self, latent: Tensor) -> tuple[float, float]:
        """(score, error): where the picture lies between both ends, and the base's error on it."""
        request = self._request
        if has_pairs(self._pictures):
            return self._projection(latent), self._error(latent, self._target)
        more, less = plain_ends(request)
        errors = self._error(latent, less), self._error(latent, more)
        return score(*errors), min(errors)

    def _error(self, latent: Tensor, prompt: str) -> float:
        """The base's mean loss on the noised picture at a prompt."""
        denoiser, count = self._denoiser, len(LEVELS)
        latents = latent.expand(count, *latent.shape[1:]).to(denoiser.device)
        conditioning = self._captions.of_batch([0] * count, [prompt] * count)
        with at_strength(0.0), torch.no_grad():
            losses = denoising_loss(denoiser, latents, self._noises(0), self._levels(), conditioning)
        return losses.cpu().double().mean().item()

    def _projection(self, latent: Tensor) -> float:
        """The share of the way from the mean of the negative pictures (-1) to that of the positive ones (1)."""
        latents = self._pictures.data.latents
        pairs = [i for i in range(len(latents) // 2) if latents[i].shape == latent.shape]
        means = [torch.stack([latents[i + first] for i in pairs]).mean(0) for first in (0, len(latents) // 2)]
        way = (means[0] - means[1]) / 2
        return float(((latent - (means[0] + means[1]) / 2) * way).sum() / way.square().sum().clamp(min=1e-12))

    def _noises(self, number: int) -> Tensor:
        shape = self._pictures.data.latents[0].shape[1:]
        made = [noise(SEED, number, position, shape, "slider") for position in range(len(LEVELS))]
        return torch.stack(made).to(self._denoiser.device)

    def _levels(self) -> Tensor:
        return self._denoiser.sigma(torch.tensor(LEVELS))

    def _trained_times(self) -> Tensor:
        """`LEVELS` as places within `limits`: outside of that part the adapters do not act."""
        low, high = self._limits
        return torch.tensor([low + (high - low) * t for t in LEVELS])

    def _others_in_words(self) -> str:
        prompts = lines_of(self._request.preserve)
        if not prompts:
            return "; what else changed was not measured, since preserve has no prompts"
        own = self._change([self._target])
        if not own:
            return "; what else changed was not measured, since the predictions at target did not change"
        ratio = math.sqrt(self._change(prompts) / own)
        return (
            f"; at the trained strengths the predictions at the prompts of preserve moved {ratio:.2f} times as far as "
            "those at target (0: nothing else changed)"
        )

    def _useful_in_words(self, useful: tuple[float, float] | None) -> str:
        if useful is None:
            higher = "learning_rate" if has_pairs(self._pictures) else "learning_rate or guidance"
            return f"NO STRENGTH MOVES THE PICTURES: train for more steps, or at a higher {higher}"
        return f"useful from {in_words(useful)}"

    def _change(self, prompts: Sequence[str]) -> float:
        """The mean squared change of the prediction at these prompts, on latents that the base made of them."""
        denoiser, latents, count = self._denoiser, self._latents(), len(LEVELS)
        t, total = self._trained_times(), 0.0
        sigma = denoiser.sigma(t)
        for number, prompt in enumerate(prompts):
            indices, texts = [0] * count, [prompt] * count
            noisy = latents.at(self._noises(number), t.to(denoiser.device), indices, texts)
            base = latents.estimate(noisy, sigma, indices, texts)
            for sign in self._request.signs:
                with at_strength(sign), torch.no_grad():
                    own = denoiser.denoise(noisy, sigma, self._captions.of_batch(indices, texts))
                change = prediction_change(denoiser, own, base, sigma)
                total += change.cpu().double().mean().item() / len(self._request.signs)
        return total / len(prompts)
