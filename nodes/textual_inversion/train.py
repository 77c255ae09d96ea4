"""Learns a new word on the models of the wire: one function from request to result."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from ...training.config import PRECISIONS, TrainConfig, check_range
from ...training.data import Batch
from ...training.embedding import INITS, PseudoWord, nearest_words, start_vectors
from ...training.errors import InputError
from ...training.images import ImageSet, passes
from ...training.objective import denoising_loss
from ...training.record import Run, run_id, tag_frequency
from ...training.validation import SEED, grid, scorer
from ..bridge.conditioning import join, model_conds
from ..bridge.denoiser import compute_type, opened_for_training
from ..bridge.latents import latent_set
from ..bridge.run import base_name, follow, identity
from ..bridge.split import describe_held_out, held_out_split
from ..bridge.text import clip_with_word, encoders, opened_text, token_ids, vocabulary
from .names import check_name, prompt_word
from .templates import TEMPLATES, check_captions, prompt_for


@dataclass(frozen=True)
class InversionRequest:
    """What `BespokeTrainTextualInversion` is asked for.

    norm_limit: how many times the vocabulary's median length a vector may have; 0 is no limit.
    """

    train: TrainConfig
    name: str
    init_text: str
    vectors: int = 1
    init: str = "words"
    template: str = "object"
    norm_limit: float = 0.0
    precision: str = "auto"
    resume: bool = True

    def __post_init__(self) -> None:
        check_name(self.name)
        check_range("vectors", self.vectors)
        check_range("norm_limit", self.norm_limit)
        for name, value, choices in (("init", self.init, INITS), ("template", self.template, TEMPLATES),
                                     ("precision", self.precision, PRECISIONS)):  # fmt: skip
            if value not in choices:
                raise InputError(f"{name} is {value!r}; choose one of {', '.join(choices)}")

    def settings(self) -> dict:
        """The request by widget name."""
        own = {k: v for k, v in asdict(self).items() if k not in ("train", "resume")}
        return asdict(self.train) | own


@dataclass(frozen=True)
class Learned:
    """The word's vectors by encoder, what it began as, and the words nearest to it before and after."""

    embedding: dict[str, Tensor]
    start: dict[str, Tensor]
    run: Run
    report: str


def train_word(model, clip, vae, images: ImageSet, request: InversionRequest) -> Learned:
    """Learn the word. No weight of model, CLIP or VAE changes."""
    config, settings, word = request.train, request.settings(), prompt_word(request.name)
    if request.template == "captions":
        check_captions(images.items)
    parts = encoders(clip)
    tables = {key: vocabulary(encoder) for key, (_, encoder) in parts.items()}
    start = {
        key: start_vectors(tables[key], token_ids(tokenizer, request.init_text), request.vectors, request.init, config.seed)
        for key, (tokenizer, _) in parts.items()
    }
    limits = {key: request.norm_limit * float(table.norm(dim=-1).median()) for key, table in tables.items()}
    items, trained_on, held_out = held_out_split(images, None, config)
    with torch.inference_mode(False), torch.no_grad():
        data = latent_set(vae, model.model, items)
    run = Run(
        run_id("textual inversion", settings, images.fingerprint, identity(model, clip, vae)), "textual inversion",
        settings, base_name(model), len(trained_on), images.trigger, tag_frequency(item.caption for item in images.items),
    )  # fmt: skip
    with opened_for_training(model, request.precision) as denoiser:
        run.prediction = denoiser.prediction
        learned = PseudoWord(start, limits if request.norm_limit > 0 else None, denoiser.device)
        run.trained = sum(parameter.numel() for parameter in learned.parameters())
        speaking = clip_with_word(clip, request.name, {key: (lambda key=key: learned.vectors[key]) for key in start})
        compute = compute_type(denoiser.base, denoiser.device, request.precision)
        with opened_text(clip, compute) as text:

            def batch_loss(batch: Batch, sentences: list[str]) -> Tensor:
                conditioning = join([
                    model_conds(denoiser.base, cond, extra, data.latents[index], denoiser.device)
                    for index, (cond, extra) in zip(batch.indices, text.encode(sentences, speaking), strict=True)
                ])  # fmt: skip
                sigma = denoiser.sigma(batch.u)
                return denoising_loss(denoiser, batch.latent, batch.noise, sigma, conditioning, batch.mask)

            def sentences(batch: Batch, seed: int, micro: int) -> list[str]:
                return [
                    prompt_for(request.template, items[index].caption, word, seed, micro, place)
                    for place, index in enumerate(batch.indices)
                ]

            def loss_of(micro: int) -> Tensor:
                batch = data.batch(config, micro, denoiser.device, trained_on)
                return batch_loss(batch, sentences(batch, config.seed, micro)).mean()

            score = None
            if held_out:
                score = scorer(
                    grid(data, held_out, denoiser.device),
                    lambda batch, number: batch_loss(batch, sentences(batch, SEED, number)),
                )
            embedding = follow(
                learned, loss_of, config, run, preflight(run, request, len(trained_on)), score, request.resume
            )
    return Learned(embedding, start, run, describe(run, request, embedding, start, parts, tables))


def preflight(run: Run, request: InversionRequest, images: int) -> str:
    """What is about to be learned, in one line."""
    config = request.train
    return (
        f"{run.trained:,} numbers, file about {run.trained * 4 / 1e3:.0f} KB; {config.steps} steps of {config.batch_size}, "
        f"each picture seen about {passes(images, config.steps, config.batch_size):.0f} times"
    )


def describe(run, request, embedding, start, parts, tables) -> str:
    """What was learned, in words: size, loss, how far the word moved and what it is near to."""
    losses, config = run.losses, request.train
    quarter = max(1, len(losses) // 4)
    lines = [
        f"{prompt_word(request.name)}: {run.trained:,} numbers, {run.trained * 4 / 1e3:.0f} KB; 0 weights changed.",
        f"{len(losses)} steps of {config.batch_size * config.gradient_accumulation} in {run.seconds:.0f} s; each of "
        f"{run.images} pictures was seen about "
        f"{passes(run.images, len(losses), config.batch_size * config.gradient_accumulation):.0f} times.",
        f"Loss {sum(losses[:quarter]) / quarter:.4f} over the first quarter, {sum(losses[-quarter:]) / quarter:.4f} over the last.",
    ]
    lines += describe_held_out(run, config)
    for key, vectors in embedding.items():
        tokenizer, table = parts[key][0], tables[key]
        moved = (vectors - start[key]).norm(dim=-1).mean()
        lines.append(
            f"{key}: length {vectors.norm(dim=-1).mean():.3f} (the vocabulary's median is {table.norm(dim=-1).median():.3f}), "
            f"moved {moved:.3f} from its start."
        )
        for i, vector in enumerate(vectors):
            near = ", ".join(
                f"{tokenizer.inv_vocab.get(token, '?').removesuffix('</w>')} {cosine:.2f}"
                for token, cosine in nearest_words(vector, table)
            )
            lines.append(f"{key} vector {i + 1} is nearest to {near}.")
    return "\n".join(lines)
