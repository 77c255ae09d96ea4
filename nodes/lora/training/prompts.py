"""The captions of a LoRA training as the model takes them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ....training.config import TrainConfig
from ....training.data import Batch
from ....training.objective import denoising_loss
from ...bridge.dataset.conditioning import ModelConds, join, model_conds
from ...bridge.dataset.pictures import Pictures
from ...bridge.runs.samples import as_conditioning
from ...bridge.training_model.denoiser import ComfyDenoiser
from ...bridge.training_model.text_encoder import TrainableText


class Prompts:
    """The pictures' captions as the model's conditioning: computed once, or anew each time where the encoder learns."""

    def __init__(
        self,
        denoiser: ComfyDenoiser,
        pictures: Pictures,
        clip,
        text: TrainableText | None,
        encoded: Mapping[str, tuple[Tensor, dict[str, Any]]],
        sample: str,
    ):
        self._denoiser, self._pictures, self._clip, self._text = denoiser, pictures, clip, text
        self._encoded, self._sample = encoded, sample
        self._known: dict[tuple[int, str], ModelConds] = {}

    def loss(self, batch: Batch, config: TrainConfig) -> Tensor:
        """The loss of each image of the batch, [B]."""
        captions = ["" if i < 0 else self._pictures.items[i].caption for i in batch.captions]
        sigma = self._denoiser.sigma(batch.u)
        conditioning = self._of(batch.indices, captions)
        return denoising_loss(
            self._denoiser, batch.latent, batch.noise, sigma, conditioning, batch.mask, config.loss_weighting
        )

    def _of(self, indices: list[int], captions: list[str]) -> ModelConds:
        if self._text is not None:
            encoded = self._text.encode(captions, self._clip)
            return join([self._conds(i, *one) for i, one in zip(indices, encoded, strict=True)])
        return join([self._kept(i, caption) for i, caption in zip(indices, captions, strict=True)])

    def _kept(self, index: int, caption: str) -> ModelConds:
        # One set a picture and prompt: some families are told the picture's size.
        if (index, caption) not in self._known:
            self._known[index, caption] = self._conds(index, *self._encoded[caption])
        return self._known[index, caption]

    def _conds(self, index: int, cond: Tensor, extra: dict[str, Any]) -> ModelConds:
        pictures, denoiser = self._pictures, self._denoiser
        return model_conds(
            denoiser.base, cond, extra | pictures.facts(index), pictures.data.latents[index], denoiser.device
        )

    def for_sample(self) -> tuple[list, list]:
        """(positive, negative) of a sample image, as ComfyUI's samplers take them."""
        texts = [self._sample, ""]
        encoded = self._text.encode(texts, self._clip) if self._text is not None else [self._encoded[t] for t in texts]
        return as_conditioning(encoded)

    def tensors(self) -> list[Tensor]:
        return [cond for cond, _ in self._encoded.values()]
