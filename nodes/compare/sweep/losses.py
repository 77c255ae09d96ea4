"""The loss of a model on pictures at fixed noise levels, and its leak, with a LoRA at a strength."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import comfy.model_management
import torch
from torch import Tensor

from ....training.config import TrainConfig
from ....training.data import Batch
from ....training.images import ImageSet, TrainingImage
from ....training.leak import LeakPoint
from ....training.objective import prediction_change
from ....training.validation import grid_batch, grid_within, validation_batches, validation_scorer
from ...bridge.dataset.captions import CaptionConditioning
from ...bridge.dataset.conditioning import encode_prompts
from ...bridge.dataset.pictures import Pictures
from ...bridge.schedule_part import trained_range
from ...bridge.trainer import Models
from ...bridge.training_model.denoiser import ComfyDenoiser, prepare_for_training
from ...lora.training.preserve import leak_pictures, untriggered_prompt
from ...lora.training.request import LoraData, LoraRequest
from ...lora.training.technique import LoraTechnique, encode_dataset
from .plan import without_triggers


class Score(NamedTuple):
    """loss: the mean over all pictures. leak: see `LeakPoint.leak`; NaN where it is not known."""

    loss: float
    leak: float = math.nan


class Predictions(NamedTuple):
    """What a model makes of the pictures. other, own: its estimates of the clean latents [levels, C, ...] of some of
    them on the CPU, at prompts that do not call the LoRA and at the captions."""

    loss: float
    other: list[Tensor]
    own: list[Tensor]


def predictions_on(images: ImageSet, trigger: str, models: Models) -> Predictions:
    """The loss over all pictures at the noise levels and noises of a training's validation, and the predictions.

    models: with a LoRA or without. The captions are encoded by its CLIP. Pictures and prompts that were encoded before
    are not encoded again. trigger: the words that call the LoRAs. Raises `InputError` for a model that cannot be
    trained.
    """
    with _prepared(images, trigger, models) as pictures:
        other, own = pictures.estimates()
        return Predictions(pictures.loss(), other, own)


def score_beside(base: Predictions, images: ImageSet, trigger: str, models: Models) -> Score:
    """The loss of a model with a LoRA, and how far its predictions have moved from those of the base."""
    with _prepared(images, trigger, models) as pictures:
        other, own = (pictures.change(now, before) for now, before in zip(pictures.estimates(), base[1:], strict=True))
        return Score(pictures.loss(), LeakPoint(0, other, own).leak)


@contextmanager
def _prepared(images: ImageSet, trigger: str, models: Models) -> Iterator[_Pictures]:
    """The pictures with the model prepared for its loss on them. A block."""
    request = LoraRequest(TrainConfig(steps=1, learning_rate=0.0, batch_size=1, seed=0))
    dataset = encode_dataset(models, LoraData(images), request)
    technique = LoraTechnique(request, models, dataset)
    with prepare_for_training(models.model, request.precision) as denoiser:
        technique.prepare(denoiser, None)
        part = trained_range(models.model, request.train)
        limits = (0.0, 1.0) if part.is_whole else denoiser.timesteps_between(part.low, part.high)
        yield _Pictures(images, trigger, models, dataset.pictures, technique, denoiser, grid_within(*limits))


@dataclass(frozen=True)
class _Pictures:
    """grid: the timesteps at which each picture is scored."""

    images: ImageSet
    trigger: str
    models: Models
    pictures: Pictures
    technique: LoraTechnique
    denoiser: ComfyDenoiser
    grid: Sequence[float]

    def loss(self) -> float:
        """The mean over all pictures."""
        data = self.pictures.data
        batches = validation_batches(data, range(len(data.latents)), self.denoiser.device, self.grid)
        with torch.no_grad():
            return validation_scorer(batches, self.technique.loss)()

    def estimates(self) -> tuple[list[Tensor], list[Tensor]]:
        """(at the prompts that do not call the LoRA, at the captions), see `Predictions`."""
        items = [self.images.items[index] for index in self._measured]
        prompts = [_without_call(item, self.trigger) for item in items], [item.prompt for item in items]
        clip = self.models.clip
        encoded = encode_prompts(clip, {text for texts in prompts for text in texts})
        captions = CaptionConditioning(self.denoiser, self.pictures, clip, None, encoded)
        other, own = (
            [self._estimate(captions, *each) for each in zip(self._batches(), texts, strict=True)] for texts in prompts
        )
        return other, own

    def change(self, now: Sequence[Tensor], before: Sequence[Tensor]) -> float:
        """The mean of `prediction_change` over the pictures, each at all levels."""
        changes = [
            prediction_change(self.denoiser, one, base, self.denoiser.sigma(batch.t).cpu()).double().mean().item()
            for batch, one, base in zip(self._batches(), now, before, strict=True)
        ]
        return sum(changes) / len(changes)

    @property
    def _measured(self) -> list[int]:
        return leak_pictures(self.pictures, range(len(self.images.items)))

    def _batches(self) -> list[Batch]:
        data, device = self.pictures.data, self.denoiser.device
        return [grid_batch(data, index, number, device, self.grid) for number, index in enumerate(self._measured)]

    def _estimate(self, captions: CaptionConditioning, batch: Batch, prompt: str) -> Tensor:
        comfy.model_management.throw_exception_if_processing_interrupted()
        denoiser, sigma = self.denoiser, self.denoiser.sigma(batch.t)
        noisy = denoiser.add_noise(sigma, batch.noise, batch.latent)
        with torch.no_grad():
            return denoiser.denoise(noisy, sigma, captions.of_batch(batch.indices, [prompt] * len(batch.indices))).cpu()


def _without_call(item: TrainingImage, trigger: str) -> str:
    """The picture's prompt without the trigger words, its own or those of the LoRAs; "" where it says none."""
    if item.trigger:
        return untriggered_prompt(item)
    plain = without_triggers(item.prompt, trigger)
    return "" if plain == item.prompt else plain
