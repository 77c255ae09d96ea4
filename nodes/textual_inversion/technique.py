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
from ..bridge.training_model.encoder_forecast import EncoderMemory, encoder_memory, with_encoders
from ..bridge.training_model.memory_forecast import OPTIMIZER_BYTES, StepMemory, forecast
from ..bridge.training_model.offload import MEMORY_ADVICE
from ..bridge.training_model.pseudo_word import (
    clip_with_pseudo_word,
    is_clip_model,
    not_from_files,
    spaces_needed,
    text_encoders,
    token_ids,
    vocabulary,
)
from ..bridge.training_model.spelling import spelling
from ..bridge.training_model.text_encoder import TrainableTextEncoder
from ..bridge.wire.compiled import restore_own_modules
from .names import prompt_word
from .request import InversionRequest
from .templates import (
    NEGATIVE_WORD,
    WORD,
    called_by_words,
    check_captions,
    check_taught,
    longest_sentence,
    marks_of,
    sentence_for,
)
from .words import Word, prompt_words, say_words


def encode_dataset(models: Models, images: ImageSet, request: InversionRequest) -> EncodedDataset:
    """Encode the pictures. The text encoder takes part in each step, so prompts are not encoded.

    Raises `InputError`, before anything is encoded, for models or captions that cannot be used.
    """
    model, clip, vae = models.model, models.clip, models.vae
    check_wire(model, clip)
    restore_own_modules(model)
    check_trainable(model.model, takes_pairs=False)
    trained_range(model, request.train)
    if request.template == "captions":
        check_captions(images.items, request.names)
    called = called_by_words(images, request.names) if request.names else images
    text_encoders(clip, request.encoders)
    learn_layers_of(model.model, partial(encode_prompt, clip, "a photo"))
    pictures = encode_pictures(vae, model.model, request.train, called)
    check_taught([pictures.items[i] for i in pictures.training_indices], request.names)
    # The file's metadata names the kind of embedding as its architecture, and a word is learned at any resolution.
    fields = describe_models(model, clip, images) | {"architecture": "", "resolution": ""}
    models_fields = identify_models(model, clip, vae)
    return EncodedDataset(pictures, images.fingerprint, run_fields=fields, **models_fields)


class TextualInversionTechnique:
    """Learns the vectors of one word or several, for every text encoder or the CLIPs. See `trainer.Technique`.

    learned_encoders: the keys of the encoders that learn, which `prepare_text_encoder` lets gradients flow through.
    """

    name = "textual inversion"
    needs_text_encoder = True
    learns_captions = False
    memory_advice = MEMORY_ADVICE

    def __init__(self, request: InversionRequest, models: Models, dataset: EncodedDataset) -> None:
        self.request, self._models, self._dataset = request, models, dataset
        self.words = request.words
        self.encoders = text_encoders(models.clip, request.encoders)
        self.learned_encoders = tuple(self.encoders)
        self.vocabularies = {key: vocabulary(models.clip, encoder) for key, (_, encoder) in self.encoders.items()}
        self.start = {
            word.slot(key, self._several): self._start_of(word, key) for word in self.words for key in self.encoders
        }
        self._spaces = spaces_needed(
            clip_with_pseudo_word(
                models.clip, "w", {key: partial(torch.clone, v) for key, v in self._of(0, self.start)}
            ),
            "w",
        )
        # Set by `prepare` and, while a word is attached, by `attached`.
        self._denoiser: ComfyDenoiser
        self._text: TrainableTextEncoder
        self._prompts: CaptionConditioning

    @property
    def _several(self) -> bool:
        return len(self.words) > 1

    @property
    def slots(self) -> dict[str, dict[str, str]]:
        """{name of a word: {encoder: name of the trained tensor}}."""
        return {word.name: {key: word.slot(key, self._several) for key in self.encoders} for word in self.words}

    def _start_of(self, word: Word, key: str) -> Tensor:
        """The vectors that a word begins with in one encoder. Several words begin with noises of their own."""
        request, tokenizer = self.request, self.encoders[key][0]
        seed = f"{request.train.seed} {word.name}" if self._several else request.train.seed
        ids = token_ids(tokenizer, word.init_text)
        return start_vectors(self.vocabularies[key], ids, word.vectors, request.init, seed)

    def _of(self, number: int, tensors: Mapping[str, Tensor]) -> list[tuple[str, Tensor]]:
        """(encoder, tensor) of the word with a number, of tensors by slot."""
        return [(key, tensors[self.words[number].slot(key, self._several)]) for key in self.encoders]

    def settings(self) -> dict[str, Any]:
        return self.request.settings() | self.encoder_settings()

    def encoder_settings(self) -> dict[str, Any]:
        """The encoders that learn. Version 0.1 learned by CLIPs alone, so others are told apart from its runs."""
        others = [key for key, (_, encoder) in self.encoders.items() if not is_clip_model(encoder)]
        return {"learned_encoders": list(self.learned_encoders)} if others else {}

    def step_memory(self, batch_size: int, compute: torch.dtype | None) -> StepMemory:
        """From the largest picture, with the encoders that are no CLIP; a CLIP's own part is not in it."""
        model, pictures = self._models.model, self._dataset.pictures
        latent = pictures.data.latents[pictures.largest_index()]
        encoded = encode_prompts(self._models.clip, ["a photo"])["a photo"]
        context, extra = encoded
        told = pictures.source_inputs(pictures.largest_index())
        one = model_conds(model.model, context, extra | told, latent, torch.device("cpu"))
        step = forecast(
            model.model,
            latent.expand(batch_size, *latent.shape[1:]),
            join_conds([one] * batch_size),
            None,
            compute,
            False,
            OPTIMIZER_BYTES[self.request.train.optimizer],
        )
        return self.with_encoders(step, batch_size, compute)

    def with_encoders(self, step: StepMemory, prompts: int, compute: torch.dtype | None) -> StepMemory:
        """A step's memory with that of the encoders that learn, over `prompts` prompts."""
        return with_encoders(step, [self._encoder_memory(each, prompts, compute) for each in self.encoders.values()])

    def _encoder_memory(self, encoder: tuple[Any, Any], prompts: int, compute: torch.dtype | None) -> EncoderMemory:
        tokenizer, model = encoder
        if is_clip_model(model):
            return EncoderMemory(0, 0, 0)
        tokens = tokenizer.tokenize_with_weights(self._longest_prompt())[0]
        return encoder_memory(model, [token for token, *_ in tokens], prompts, compute)

    def _longest_prompt(self) -> str:
        """The longest prompt of the training, with a short word in the place of each vector."""
        captions = [prompt for item in self._dataset.pictures.items for prompt in item.prompts]
        text = max((longest_sentence(self.request.template, caption) for caption in captions), key=len)
        for mark, word in zip(marks_of(self.request.names), self.words, strict=True):
            text = text.replace(mark, " ".join(["a"] * word.vectors))
        return text

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
        limits = {
            word.slot(key, self._several): factor * words.median
            for word in self.words
            for key, words in self.vocabularies.items()
        }
        return PseudoWord(self.start, limits if factor > 0 else None, self._denoiser.device, self._several)

    def clip_with(self, trainable: PseudoWord) -> Any:
        """A clone of the CLIP that knows the words by the vectors of `trainable`, as they are when it encodes."""
        clip = self._models.clip
        for name, slots in self.slots.items():
            vectors = {key: partial(trainable.vectors.__getitem__, slot) for key, slot in slots.items()}
            clip = clip_with_pseudo_word(clip, name, vectors)
        return clip

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
        sentences = [
            sentence_for(request.template, prompt, batch.seed, batch.number, position)
            for position, prompt in zip(batch.sample_positions, prompts_of(batch, pictures.items), strict=True)
        ]
        conditioning = self._prompts.of_batch(batch.indices, list(map(self.spoken, sentences)))
        weighting, measure = request.train.loss_weighting, batch.measure
        sigma = denoiser.sigma(batch.t)
        given = (batch.latent, batch.noise, sigma, conditioning, batch.mask, weighting)
        return denoising_loss(denoiser, *given, measure=measure, perturbation=batch.perturbation)

    def spoken(self, sentence: str) -> str:
        """The sentence with its words, and with the spaces that ComfyUI needs to find one at its start or end."""
        text = say_words(sentence, self.words)
        names = [prompt_word(word.name) for word in self.words]
        before, behind = self._spaces
        starts, ends = text.startswith(tuple(names)), text.endswith(tuple(names))
        return (before if starts else "") + text + (behind if ends else "")

    def sample_prompts(self) -> Sequence[SamplePrompt]:
        return parse_sample_prompts(self.request.sample_prompt)

    def sample_conditioning(self, prompt: SamplePrompt) -> tuple[list, list]:
        words = " and ".join(f"{{{word.name}}}" for word in self.words) if self._several else WORD
        shown, negative = prompt.prompt or f"a photo of {words}", prompt.negative
        if self.request.template == NEGATIVE_WORD and not prompt.prompt:
            shown, negative = "a photo", prompt.negative or words
        texts = [self.spoken(shown), self.spoken(negative)]
        positive, negative = as_conditioning(self._prompts.encode(texts, self._dataset.pictures.sample_index))
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
            f"{prompt_words([word.name for word in self.words])}: {run.info.trained:,} numbers, "
            f"{run.info.trained * 4 / 1e3:.0f} KB; 0 weights changed (hash equal).",
            f"{len(losses)} steps of {config.images_per_step} in {run.seconds:.0f} s; "
            f"{describe_draws(self._dataset.pictures, run, config)}."
            + ("" if config.optimizer == "AdamW" else " " + " ".join(describe_rate(run, config))),
            f"Loss {first:.4f} over the first quarter, {last:.4f} over the last.",
        ]
        lines += describe_held_out(run, config) + describe_shared(self._dataset.pictures)
        lines += describe_pictures(run) + describe_notes(run) + describe_card(run)
        lines += describe_part(self._models.model, run, "A prompt is read at every step: the word acts at all of them.")
        lines += describe_unread(self._dataset.unread) + self.describe_use()
        return "\n".join(lines + describe_learned(self, learned))

    def describe_use(self) -> list[str]:
        """How prompts say the words, where it is not as for CLIP."""
        lines = list[str]()
        if self.request.template == NEGATIVE_WORD:
            lines.append("Put it into the negative prompt: it means what the pictures have and yours are not to have.")
        before, behind = self._spaces
        places = [
            place for place, space in (("before it at the start", before), ("behind it at the end", behind)) if space
        ]
        if places:
            lines.append(f"ComfyUI finds the word only with a space {' and '.join(places)} of a prompt.")
        reason = not_from_files(self._models.clip, self.encoders)
        if reason:
            lines.append(
                f"A prompt does not read it from a file: {reason}. Use the clip of this node, or Bespoke Apply "
                "Embedding."
            )
        return lines


def describe_learned(technique: TextualInversionTechnique, learned: Mapping[str, Tensor]) -> list[str]:
    """For each word and encoder: the length, how far the vectors moved, and the words that they are near to."""
    lines = list[str]()
    several = len(technique.words) > 1
    for word in technique.words:
        for key, (tokenizer, _) in technique.encoders.items():
            slot, words = word.slot(key, several), technique.vocabularies[key]
            vectors, name = learned[slot], f"{word.name}, {key}" if several else key
            moved = (vectors - technique.start[slot]).norm(dim=-1).mean()
            lines.append(
                f"{name}: length {vectors.norm(dim=-1).mean():.3f} (the vocabulary's median is {words.median:.3f}), "
                f"moved {moved:.3f} from its start."
            )
            for i, vector in enumerate(vectors):
                near = ", ".join(
                    f"{spelling(tokenizer, token)} {cosine:.2f}" for token, cosine in nearest_words(vector, words)
                )
                lines.append(f"{name} vector {i + 1} is nearest to {near}.")
    return lines
