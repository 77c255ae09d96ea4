"""The loss of a model on pictures at fixed noise levels, with a LoRA at a strength."""

from __future__ import annotations

from typing import Any

import torch

from ....training.config import TrainConfig
from ....training.images import ImageSet
from ....training.validation import grid_within, validation_batches, validation_scorer
from ...bridge.schedule_part import trained_range
from ...bridge.trainer import Models
from ...bridge.training_model.denoiser import prepare_for_training
from ...lora.training.request import LoraData, LoraRequest
from ...lora.training.technique import LoraTechnique, encode_dataset


def loss_on(images: ImageSet, model: Any, clip: Any, vae: Any) -> float:
    """The mean loss over all pictures at the noise levels and noises of a training's validation.

    model, clip: with a LoRA or without. The captions are encoded by `clip`. Pictures and prompts that were encoded
    before are not encoded again. Raises `InputError` for a model that cannot be trained.
    """
    models, request = (
        Models(model, clip, vae),
        LoraRequest(TrainConfig(steps=1, learning_rate=0.0, batch_size=1, seed=0)),
    )
    dataset = encode_dataset(models, LoraData(images), request)
    technique = LoraTechnique(request, models, dataset)
    with prepare_for_training(model, request.precision) as denoiser, torch.no_grad():
        technique.prepare(denoiser, None)
        part = trained_range(model, request.train)
        limits = (0.0, 1.0) if part.is_whole else denoiser.timesteps_between(part.low, part.high)
        data, indices, grid = dataset.pictures.data, range(len(images.items)), grid_within(*limits)
        return validation_scorer(validation_batches(data, indices, denoiser.device, grid), technique.loss)()
