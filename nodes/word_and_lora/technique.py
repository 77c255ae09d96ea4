"""A word and a LoRA as one technique of the trainer: the two techniques put together.

The word's technique encodes the prompts, with a graph to the vectors; the LoRA's has the adapters and the loss.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ...training.bundles import split_bundle
from ...training.data import Batch
from ...training.distributed import World
from ...training.leak import LeakMeter
from ...training.measure import StepCost
from ...training.record import Run
from ...training.sample_prompts import SamplePrompt
from ...training.word_and_adapters import WordAndAdapters
from ..bridge.dataset.captions import CaptionConditioning
from ..bridge.dataset.conditioning import ModelConds
from ..bridge.dataset.encoded import EncodedDataset
from ..bridge.dataset.pictures import Pictures
from ..bridge.runs.samples import SamplerSettings
from ..bridge.runs.task import Drift
from ..bridge.trainer import Models
from ..bridge.training_model.denoiser import ComfyDenoiser
from ..bridge.training_model.memory_forecast import StepMemory
from ..bridge.training_model.pseudo_word import text_encoders
from ..bridge.training_model.text_encoder import TrainableTextEncoder
from ..lora.training.request import LoraData
from ..lora.training.technique import LoraTechnique
from ..lora.training.technique import encode_dataset as encode_lora_dataset
from ..textual_inversion.technique import TextualInversionTechnique, describe_learned
from ..textual_inversion.templates import called_by_words, check_captions, check_taught
from ..textual_inversion.words import prompt_words
from .request import WordAndLoraRequest


def encode_dataset(models: Models, data: LoraData, request: WordAndLoraRequest) -> EncodedDataset:
    """Encode the pictures. The text encoder takes part in each step, so prompts are not encoded.

    The record's trigger is what prompts say for the word. Raises `InputError`, before anything is encoded, for models
    or captions that cannot be used: every caption but those of prior pictures has to hold `{word}`.
    """
    names = request.word.names
    check_captions(data.images.items, names, has_template=False)
    if data.validation is not None:
        check_captions(data.validation.items, names, has_template=False, all_said=False)
    text_encoders(models.clip, request.encoders)
    data = replace(
        data,
        images=called_by_words(data.images, names),
        validation=None if data.validation is None else called_by_words(data.validation, names),
    )
    dataset = encode_lora_dataset(models, data, request)
    pictures = dataset.pictures
    check_taught([pictures.items[i] for i in pictures.training_indices], names)
    return replace(dataset, run_fields={**dataset.run_fields, "trigger": prompt_words(request.word_names)})


class WordCaptions(CaptionConditioning):
    """The conditioning of prompts in which `{word}` or `{name}` stands for a word.

    clip: tokenizes the prompts, and knows the words. spoken: a prompt -> the text that says the words.
    """

    def __init__(
        self,
        denoiser: ComfyDenoiser,
        pictures: Pictures,
        clip: Any,
        text: TrainableTextEncoder,
        spoken: Callable[[str], str],
    ) -> None:
        super().__init__(denoiser, pictures, clip, text, encoded={})
        self._spoken = spoken

    def of_batch(self, indices: Sequence[int], prompts: Sequence[str]) -> ModelConds:
        return super().of_batch(indices, list(map(self._spoken, prompts)))

    def encode(self, prompts: Sequence[str], index: int | None = None) -> list[tuple[Tensor, dict[str, Any]]]:
        return super().encode(list(map(self._spoken, prompts)), index)


class WordAndLoraTechnique:
    """Learns a word's vectors and adapters by one loss. See `trainer.Technique` and `trainer.ComparesWithBase`."""

    name = "word and lora"
    needs_text_encoder = True
    learns_captions = True

    def __init__(self, request: WordAndLoraRequest, models: Models, dataset: EncodedDataset) -> None:
        self.request, self._models, self._dataset = request, models, dataset
        self._lora = LoraTechnique(request, models, dataset)
        self._word = TextualInversionTechnique(request.word, models, dataset)
        self.memory_advice = self._lora.memory_advice
        self.learned_encoders = self._word.learned_encoders
        # Set by `prepare`.
        self._denoiser: ComfyDenoiser
        self._text: TrainableTextEncoder

    def settings(self) -> dict[str, Any]:
        return self._lora.settings() | self._word.encoder_settings()

    def step_memory(self, batch_size: int, compute: torch.dtype | None) -> StepMemory:
        """That of the LoRA with the encoders that are no CLIP; a CLIP's own part is not in it."""
        return self._word.with_encoders(self._lora.step_memory(batch_size, compute), batch_size, compute)

    def frozen_models(self) -> Sequence[Any]:
        return self._word.frozen_models()

    def prepare(self, denoiser: ComfyDenoiser, text: TrainableTextEncoder | None) -> None:
        assert text is not None  # as needs_text_encoder is True
        self._denoiser, self._text = denoiser, text
        self._lora.prepare(denoiser, text if self.request.train_text_encoder else None)
        self._word.prepare(denoiser, text)
        self._lora.take_captions(self._captions(self._models.clip))  # for `drift`, whose prompts have no word

    def _captions(self, clip: Any) -> WordCaptions:
        return WordCaptions(self._denoiser, self._dataset.pictures, clip, self._text, self._word.spoken)

    def layer_names(self) -> Mapping[str, Any]:
        return self._lora.layer_names()

    def new_trainable(self) -> WordAndAdapters:
        request = self.request
        return WordAndAdapters(
            self._lora.new_trainable(),
            self._word.new_trainable(),
            self._word.slots,
            request.word_learning_rate,
            request.word_steps,
            word_is_rare=request.train.caption_dropout > 0 or len(self._word.words) > 1,
        )

    @contextmanager
    def attached(self, trainable: WordAndAdapters) -> Iterator[None]:
        self._lora.take_captions(self._captions(self._word.clip_with(trainable.word)))
        with self._lora.attached(trainable.adapters):
            yield

    def loss(self, batch: Batch) -> Tensor:
        return self._lora.loss(batch)

    def preservation_loss(self, batch: Batch) -> Tensor | None:
        return self._lora.preservation_loss(batch)

    def leak_meter(
        self, indices: Sequence[int], steps: Sequence[int], timesteps: Sequence[float], world: World
    ) -> LeakMeter:
        return self._lora.leak_meter(indices, steps, timesteps, world)

    def sample_prompts(self) -> Sequence[SamplePrompt]:
        return self._lora.sample_prompts()

    def sample_conditioning(self, prompt: SamplePrompt) -> tuple[list, list]:
        return self._lora.sample_conditioning(prompt)

    def drift(self, sampler: SamplerSettings, timesteps: Sequence[float]) -> Drift | None:
        return self._lora.drift(sampler, timesteps)

    def frozen_tensors(self) -> Sequence[Tensor]:
        return self._word.frozen_tensors()

    def describe_start(self, run: Run, cost: StepCost, steps: int) -> str:
        return f"{self._lora.describe_start(run, cost, steps)}; and {prompt_words(self.request.word_names)}"

    def describe(self, run: Run, learned: Mapping[str, Tensor]) -> str:
        """The LoRA's report, and the words': their rate, how far the vectors moved, and the words they are near to.

        learned: see `WordAndAdapters.state_dict`.
        """
        request, (layers, words) = self.request, split_bundle(learned)
        vectors = {slot: words[name][key] for name, slots in self._word.slots.items() for key, slot in slots.items()}
        until = ""
        if request.word_steps < request.train.steps:
            until = f" Trained in the first {request.word_steps} steps only, and kept as they were after them."
        return "\n".join(
            [
                self._lora.describe(run, layers),
                f"{prompt_words(request.word_names)}: {sum(each.numel() for each in vectors.values()):,} numbers of "
                f"these, at the learning rate {request.word_learning_rate:g}.{until}",
                *self._word.describe_use(),
                *describe_learned(self._word, vectors),
            ]
        )
