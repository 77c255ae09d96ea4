"""The captions of a training set as the model's conditioning."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor

from ....training.errors import InputError
from ....training.images import TrainingImage
from ..training_model.denoiser import ComfyDenoiser
from ..training_model.text_encoder import TrainableTextEncoder
from .conditioning import ModelConds, join_conds, model_conds
from .pictures import Pictures


def check_fixed_captions(items: Iterable[TrainingImage]) -> None:
    """Raise `InputError` for captions that are varied anew at each draw: they cannot be encoded before the training."""
    varied = [item.path for item in items if item.variants is not None and item.variants.at_each_draw]
    if varied:
        raise InputError(
            f"Caption Variants has variants 0 for {varied[0]!r}, a new text at each draw, and the text encoder does "
            "not run in the steps of this training; set variants to 8, or switch train_text_encoder on"
        )


class CaptionConditioning:
    """The conditioning of pictures and prompts, for techniques that train on captions.

    Without a trained text encoder it is computed once and cached; with one it is computed at each call.

    text: the trained text encoder, or None. encoded: `EncodedDataset.prompts`, used where `text` is None.
    """

    def __init__(
        self,
        denoiser: ComfyDenoiser,
        pictures: Pictures,
        clip: Any,
        text: TrainableTextEncoder | None,
        encoded: Mapping[str, tuple[Tensor, dict[str, Any]]],
    ) -> None:
        self._denoiser, self._pictures, self._clip, self._text = denoiser, pictures, clip, text
        self._encoded = encoded
        self._known: dict[tuple[int, str], ModelConds] = {}

    def of_batch(self, indices: Sequence[int], prompts: Sequence[str]) -> ModelConds:
        """The conditioning of a batch. indices, prompts: the picture and the prompt of each sample."""
        if self._text is not None:
            encoded = self._text.encode(prompts, self._clip)
            return join_conds([self._conds(i, *one) for i, one in zip(indices, encoded, strict=True)])
        return join_conds([self._kept(i, prompt) for i, prompt in zip(indices, prompts, strict=True)])

    def encode(self, prompts: Sequence[str], index: int | None = None) -> list[tuple[Tensor, dict[str, Any]]]:
        """[(context [1, tokens, width], further fields)] of each prompt, for sample images.

        index: the picture whose source is given to the model, where the set has sources; None gives none.
        """
        pictures = self._pictures
        if self._text is not None:
            encoded = self._text.encode(prompts, self._clip)
        else:
            keys = [prompt if index is None else pictures.prompt_key(index, prompt) for prompt in prompts]
            encoded = [self._encoded[key] for key in keys]
        told = {} if index is None else pictures.source_inputs(index)
        return [(context, extra | told) for context, extra in encoded]

    def tensors(self) -> list[Tensor]:
        """The contexts that were encoded before the training; empty where the text encoder is trained."""
        return [cond for cond, _ in self._encoded.values()]

    def _kept(self, index: int, prompt: str) -> ModelConds:
        # Cached by picture and prompt: some model families are conditioned on the picture's size too.
        if (index, prompt) not in self._known:
            self._known[index, prompt] = self._conds(index, *self._encoded[self._pictures.prompt_key(index, prompt)])
        return self._known[index, prompt]

    def _conds(self, index: int, cond: Tensor, extra: dict[str, Any]) -> ModelConds:
        pictures, denoiser = self._pictures, self._denoiser
        latent = pictures.data.latents[index]
        return model_conds(denoiser.base, cond, extra | pictures.model_inputs(index), latent, denoiser.device)
