"""A slider as a technique of the trainer: a LoRA that is trained at strength 1 and at strength -1."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch
from torch import Tensor

from ....training.adapters.strength import at_strength
from ....training.data import Batch
from ....training.objective import denoising_loss, prediction_change
from ....training.randomness import generator
from ....training.record import Run
from ....training.sample_prompts import SamplePrompt
from ....training.slider import pulled
from ...bridge.dataset.conditioning import ModelConds
from ...bridge.drawing.animated import SamplePicture, joined
from ...bridge.runs.samples import SamplerSettings
from ...bridge.schedule_part import trained_range
from ..training.preserve import drawn_prompts, lines_of
from ..training.technique import LoraTechnique
from .card import strip_of
from .dataset import ends_of, has_pairs
from .evidence import SliderEvidence
from .latents import BaseLatents
from .request import SliderRequest

SAMPLE_SEEDS = (1, 2)  # of the sample images without a sample_prompt


class SliderTechnique(LoraTechnique):
    """Trains low-rank adapters so that their strength moves one thing. See `trainer.Technique`.

    On words the base's own predictions are the target, at latents that the base itself has denoised in part. On pairs
    it is the noise of the pictures, of the positive one at strength 1 and of the negative one at strength -1.
    """

    name = "slider"
    learns_captions = False
    request: SliderRequest

    @property
    def _trains_on_pairs(self) -> bool:
        return has_pairs(self._dataset.pictures)

    @property
    def _trained_calls(self) -> int:
        return len(self.request.signs)

    def _loss(self, batch: Batch) -> Tensor:
        return self._loss_of_pairs(batch) if self._trains_on_pairs else self._loss_of_words(batch)

    def _loss_of_words(self, batch: Batch) -> Tensor:
        """The sum over the trained strengths of the error against `pulled` predictions of the base, [B]."""
        request, denoiser, count = self.request, self._denoiser, len(batch.indices)
        sigma, targets = denoiser.sigma(batch.t), [request.target] * count
        more, less = zip(*self._drawn_ends(batch), strict=True)
        noisy = self._latents.at(batch.noise, batch.t, batch.indices, targets)
        to_more, to_less = (self._latents.estimate(noisy, sigma, batch.indices, prompts) for prompts in (more, less))
        own = to_more if request.erases else self._latents.estimate(noisy, sigma, batch.indices, targets)
        return self._errors(batch, noisy, sigma, [own, to_more, to_less])

    def _errors(self, batch: Batch, noisy: Tensor, sigma: Tensor, base: Sequence[Tensor]) -> Tensor:
        """base: the base's estimates `own`, `more` and `less` of `pulled`."""
        request, denoiser, (own, more, less) = self.request, self._denoiser, base
        conditioning = self._conds(batch, [request.target] * len(batch.indices))
        losses: list[Tensor] = []
        for sign in request.signs:
            wanted = pulled(own, more, less, sign * request.guidance)
            with at_strength(sign):
                estimate = denoiser.denoise(noisy, sigma, conditioning)
            losses.append(prediction_change(denoiser, estimate, wanted, sigma, request.train.loss_weighting))
        return torch.stack(losses).sum(0)

    def _loss_of_pairs(self, batch: Batch) -> Tensor:
        """The sum of the denoising losses of both pictures of each pair with one noise, at strength 1 and -1: [B]."""
        denoiser, data, items = self._denoiser, self._dataset.pictures.data, self._dataset.pictures.items
        pairs = len(items) // 2
        positive = [index % pairs for index in batch.indices]
        sigma, losses = denoiser.sigma(batch.t), list[Tensor]()
        for sign, indices in ((1.0, positive), (-1.0, [index + pairs for index in positive])):
            latent = torch.cat([data.latents[index] for index in indices]).to(batch.latent.device)
            conditioning = self._captions.of_batch(indices, [items[index].prompt for index in positive])
            mask = data.mask(indices, batch.latent.device)
            given = (latent, batch.noise, sigma, conditioning, mask, self.request.train.loss_weighting)
            with at_strength(sign):
                losses.append(denoising_loss(denoiser, *given, measure=batch.measure))
        return torch.stack(losses).sum(0)

    def preservation_loss(self, batch: Batch) -> Tensor | None:
        """`preserve_weight` times how far the prediction at a drawn prompt of `preserve` is from the base's, [B].

        At strength 1 and at -1 by turns. The latents are those of the pairs, or what the base denoises of that prompt.
        """
        request, denoiser, prompts = self.request, self._denoiser, lines_of(self.request.preserve)
        if not prompts or not request.preserve_weight:
            return None
        drawn, sigma = drawn_prompts(batch, prompts), denoiser.sigma(batch.t)
        if self._trains_on_pairs:
            noisy = denoiser.add_noise(sigma, batch.noise, batch.latent)
        else:
            noisy = self._latents.at(batch.noise, batch.t, batch.indices, drawn)
        conditioning = self._conds(batch, drawn)
        base = self._latents.estimate(noisy, sigma, batch.indices, drawn)
        with at_strength(request.signs[batch.number % len(request.signs)]):
            own = denoiser.denoise(noisy, sigma, conditioning)
        return request.preserve_weight * prediction_change(denoiser, own, base, sigma, request.train.loss_weighting)

    def _drawn_ends(self, batch: Batch) -> list[tuple[str, str]]:
        """The prompts of both ends for each sample: one of `ends_of`, a function of seed, batch and position.

        The mean over the draws is the mean over p, which is the sum of the paper's eq. 8 with a guidance that does not
        grow with the number of prompts.
        """
        ends = ends_of(self.request)
        draws = (generator(batch.seed, "ends", batch.number, position) for position in batch.sample_positions)
        return [ends[int(torch.randint(len(ends), (), generator=draw))] for draw in draws]

    @property
    def _latents(self) -> BaseLatents:
        assert self._trainable is not None
        return BaseLatents(self._denoiser, self._captions, self._trainable)

    def _conds(self, batch: Batch, prompts: Sequence[str]) -> ModelConds:
        return self._captions.of_batch(batch.indices, prompts)

    def sample_prompts(self) -> Sequence[SamplePrompt]:
        if self.request.sample_prompt.strip():
            return super().sample_prompts()
        return [SamplePrompt(seed=seed) for seed in SAMPLE_SEEDS]

    def sample_strip(self, draw: Callable[[], SamplePicture]) -> SamplePicture:
        """The picture at each of the request's `drawn_strengths`, side by side; before the first step they are one."""
        strengths, pictures = self.request.drawn_strengths, list[SamplePicture]()
        for strength in strengths[:1] if self._changes_nothing() else strengths:
            with at_strength(strength):
                pictures.append(draw())
        pictures *= len(strengths) // len(pictures)
        return joined(pictures, partial(strip_of, strengths=strengths))

    def _changes_nothing(self) -> bool:
        """Whether all parts that start at zero are zero still."""
        assert self._trainable is not None
        state = self._trainable.state_dict()
        return not any(bool(part.any()) for name, part in state.items() if name.endswith(self._kind.ZERO_PARTS))

    def drift(self, sampler: SamplerSettings, timesteps: Sequence[float]) -> SliderEvidence:
        """What measures the slider of the result; see `SliderEvidence`."""
        part, denoiser = trained_range(self._models.model, self.request.train), self._denoiser
        limits = (0.0, 1.0) if part.is_whole else denoiser.timesteps_between(part.low, part.high)
        return SliderEvidence(
            denoiser, self._captions, self._dataset.pictures, self.request, sampler, lambda: self._latents, limits
        )

    def _describe_plan(self, run: Run, steps: int) -> str:
        if self._trains_on_pairs:
            return super()._describe_plan(run, steps).replace("pictures", "pairs", 1)
        per_step, target = self.request.train.images_per_step, self.request.target
        return f"{steps} steps of {per_step} latents that the model makes of {target!r}"

    def _describe_data(self, run: Run) -> str:
        if self._trains_on_pairs:
            return super()._describe_data(run).replace("pictures", "pairs", 1)
        return f"latents that the model made of {self.request.target!r}, no pictures"

    def _passes(self, run: Run) -> float:
        return super()._passes(run) if self._trains_on_pairs else 0.0

    def describe(self, run: Run, learned: Mapping[str, Tensor]) -> str:
        """The report of the LoRA, below a line on what its strength does."""
        return "\n".join([self._describe_use(), super().describe(run, learned)])

    def _describe_use(self) -> str:
        request = self.request
        if request.erases:
            instead = f"{request.more.strip()!r}" if request.more.strip() else "what it draws without a prompt"
            note = "" if not request.less.strip() else " less is not read in this mode."
            return f"At strength 1 {request.target!r} is erased, towards {instead}.{note}"
        if self._trains_on_pairs:
            return "A slider: strength 1 is towards positive_images, -1 towards negative_images."
        return f"A slider of {request.target!r}: strength 1 is towards {request.more!r}, -1 towards {request.less!r}."
