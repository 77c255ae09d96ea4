"""Textual inversion as a technique of the trainer: a new word's vectors are learned, all weights stay frozen.

Gal et al. 2022, arXiv 2208.01618.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ...training.data import Batch, prompts_of
from ...training.embedding import PseudoWord, nearest_words, start_vectors
from ...training.images import ImageSet, passes_in_words
from ...training.measure import StepCost, format_duration
from ...training.objective import denoising_loss
from ...training.record import Run
from ...training.sample_prompts import SamplePrompt, parse_sample_prompts
from ..bridge.dataset.captions import CaptionConditioning
from ..bridge.dataset.conditioning import encode_prompt, encode_prompts, join_conds, learn_layers_of, model_conds
from ..bridge.dataset.encoded import EncodedDataset, describe_models, identify_models
from ..bridge.dataset.pictures import encode_pictures
from ..bridge.models import check_trainable
from ..bridge.runs.report import (
    describe_card,
    describe_draws,
    describe_held_out,
    describe_notes,
    describe_pictures,
    describe_rate,
    describe_shared,
    describe_unread,
)
from ..bridge.runs.samples import SamplerSettings, as_conditioning
from ..bridge.schedule_part import describe_part, trained_range
from ..bridge.trainer import Models
from ..bridge.training_model.denoiser import ComfyDenoiser, check_wire
from ..bridge.training_model.memory_forecast import OPTIMIZER_BYTES, StepMemory, forecast
from ..bridge.training_model.offload import MEMORY_ADVICE
from ..bridge.training_model.pseudo_word import clip_encoders, clip_with_pseudo_word, embedding_table, token_ids
from ..bridge.training_model.text_encoder import TrainableTextEncoder
from ..bridge.wire.compiled import restore_own_modules
from .names import prompt_word
from .request import InversionRequest
from .templates import WORD, check_captions, prompt_for


def encode_dataset(models: Models, images: ImageSet, request: InversionRequest) -> EncodedDataset:
    """Encode the pictures. The text encoder takes part in each step, so prompts are not encoded.

    Raises `InputError`, before anything is encoded, for models or captions that cannot be used.
    """
    model, clip, vae = models.model, models.clip, models.vae
    check_wire(model, clip)
    restore_own_modules(model)
    check_trainable(model.model)
    trained_range(model, request.train)
    if request.template == "captions":
        check_captions(images.items)
    clip_encoders(clip)
    learn_layers_of(model.model, partial(encode_prompt, clip, "a photo"))
    pictures = encode_pictures(vae, model.model, request.train, images)
    # The file's metadata names the kind of embedding as its architecture, and a word is learned at any resolution.
    fields = describe_models(model, clip, images) | {"architecture": "", "resolution": ""}
    models_fields = identify_models(model, clip, vae)
    return EncodedDataset(pictures, images.fingerprint, run_fields=fields, **models_fields)


class TextualInversionTechnique:
    """Learns the vectors of one word for every CLIP encoder. See `trainer.Technique`."""

    name = "textual inversion"
    needs_text_encoder = True
    learns_captions = False
    memory_advice = MEMORY_ADVICE

    def __init__(self, request: InversionRequest, models: Models, dataset: EncodedDataset) -> None:
        self.request, self._models, self._dataset = request, models, dataset
        self.encoders = clip_encoders(models.clip)
        self.vocabularies = {key: embedding_table(models.clip, encoder) for key, (_, encoder) in self.encoders.items()}
        self.start = {
            key: start_vectors(
                self.vocabularies[key],
                token_ids(tokenizer, request.init_text),
                request.vectors,
                request.init,
                request.train.seed,
            )
            for key, (tokenizer, _) in self.encoders.items()
        }
        # Set by `prepare` and, while a word is attached, by `attached`.
        self._denoiser: ComfyDenoiser
        self._text: TrainableTextEncoder
        self._prompts: CaptionConditioning

    def settings(self) -> dict[str, Any]:
        return self.request.settings()

    def step_memory(self, batch_size: int, compute: torch.dtype | None) -> StepMemory:
        """From the largest picture. The text encoder's own part is not in it."""
        model, pictures = self._models.model, self._dataset.pictures
        latent = pictures.data.latents[pictures.largest_index()]
        encoded = encode_prompts(self._models.clip, ["a photo"])["a photo"]
        one = model_conds(model.model, *encoded, latent, torch.device("cpu"))
        return forecast(
            model.model,
            latent.expand(batch_size, *latent.shape[1:]),
            join_conds([one] * batch_size),
            None,
            compute,
            False,
            OPTIMIZER_BYTES[self.request.train.optimizer],
        )

    def frozen_models(self) -> Sequence[Any]:
        models = self._models
        return (models.model, models.clip.patcher, *([models.vae.patcher] if models.vae is not None else []))

    def prepare(self, denoiser: ComfyDenoiser, text: TrainableTextEncoder | None) -> None:
        assert text is not None  # as needs_text_encoder is True
        self._denoiser, self._text = denoiser, text

    def layer_names(self) -> Mapping[str, Any]:
        return {}

    def new_trainable(self) -> PseudoWord:
        factor = self.request.norm_limit
        limits = {key: factor * float(table.norm(dim=-1).median()) for key, table in self.vocabularies.items()}
        return PseudoWord(self.start, limits if factor > 0 else None, self._denoiser.device)

    def clip_with(self, trainable: PseudoWord) -> Any:
        """A clone of the CLIP whose prompts say the vectors of `trainable`, as they are when a prompt is encoded."""
        vectors = {key: partial(trainable.vectors.__getitem__, key) for key in self.start}
        return clip_with_pseudo_word(self._models.clip, self.request.name, vectors)

    @contextmanager
    def attached(self, trainable: PseudoWord) -> Iterator[None]:
        clip = self.clip_with(trainable)
        self._prompts = CaptionConditioning(self._denoiser, self._dataset.pictures, clip, self._text, encoded={})
        try:
            yield
        finally:
            del self._prompts

    def loss(self, batch: Batch) -> Tensor:
        denoiser, pictures, request = self._denoiser, self._dataset.pictures, self.request
        word = prompt_word(request.name)
        prompts = [
            prompt_for(request.template, prompt, word, batch.seed, batch.number, position)
            for position, prompt in zip(batch.sample_positions, prompts_of(batch, pictures.items), strict=True)
        ]
        conditioning = self._prompts.of_batch(batch.indices, prompts)
        weighting, measure = request.train.loss_weighting, batch.measure
        sigma = denoiser.sigma(batch.t)
        given = (batch.latent, batch.noise, sigma, conditioning, batch.mask, weighting)
        return denoising_loss(denoiser, *given, measure=measure, perturbation=batch.perturbation)

    def sample_prompts(self) -> Sequence[SamplePrompt]:
        return parse_sample_prompts(self.request.sample_prompt)

    def sample_conditioning(self, prompt: SamplePrompt) -> tuple[list, list]:
        word = prompt_word(self.request.name)
        text = (prompt.prompt or f"a photo of {WORD}").replace(WORD, word)
        positive, negative = as_conditioning(self._prompts.encode([text, prompt.negative.replace(WORD, word)]))
        return positive, negative

    def drift(self, sampler: SamplerSettings, timesteps: Sequence[float]) -> None:
        return None

    def frozen_tensors(self) -> Sequence[Tensor]:
        return list(self._text.model.parameters())

    def describe_start(self, run: Run, cost: StepCost, steps: int) -> str:
        config = self.request.train
        return (
            f"{run.info.trained:,} numbers, file about {run.info.trained * 4 / 1e3:.0f} KB; {steps} steps of "
            f"{config.images_per_step}, each of {run.info.images} pictures seen "
            f"{passes_in_words(run.info.images, steps, config.images_per_step)}; "
            f"about {format_duration(cost.seconds * config.gradient_accumulation * steps)}; "
            f"{cost.kept / 2**20:.0f} MB beside the models"
        )

    def describe(self, run: Run, learned: Mapping[str, Tensor]) -> str:
        """The report: size, loss, how far each vector moved from its start, and the words that it is near to."""
        losses, request = run.losses, self.request
        config = request.train
        first, last = run.quarters()
        lines = [
            f"{prompt_word(request.name)}: {run.info.trained:,} numbers, {run.info.trained * 4 / 1e3:.0f} KB; "
            "0 weights changed (hash equal).",
            f"{len(losses)} steps of {config.images_per_step} in {run.seconds:.0f} s; "
            f"{describe_draws(self._dataset.pictures, run, config)}."
            + ("" if config.optimizer == "AdamW" else " " + " ".join(describe_rate(run, config))),
            f"Loss {first:.4f} over the first quarter, {last:.4f} over the last.",
        ]
        lines += describe_held_out(run, config) + describe_shared(self._dataset.pictures)
        lines += describe_pictures(run) + describe_notes(run) + describe_card(run)
        lines += describe_part(self._models.model, run, "A prompt is read at every step: the word acts at all of them.")
        return "\n".join(lines + describe_unread(self._dataset.unread) + self.describe_vectors(learned))

    def describe_vectors(self, learned: Mapping[str, Tensor]) -> list[str]:
        """For each encoder the length of the vectors, and how far they moved; for each vector the nearest words."""
        lines = list[str]()
        for key, vectors in learned.items():
            tokenizer, table = self.encoders[key][0], self.vocabularies[key]
            moved = (vectors - self.start[key]).norm(dim=-1).mean()
            lines.append(
                f"{key}: length {vectors.norm(dim=-1).mean():.3f} (the vocabulary's median is "
                f"{table.norm(dim=-1).median():.3f}), moved {moved:.3f} from its start."
            )
            for i, vector in enumerate(vectors):
                near = ", ".join(
                    f"{tokenizer.inv_vocab.get(token, '?').removesuffix('</w>')} {cosine:.2f}"
                    for token, cosine in nearest_words(vector, table)
                )
                lines.append(f"{key} vector {i + 1} is nearest to {near}.")
        return lines
