"""Learns a new word: one function from models and pictures to what is trained on, one from there to the result."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from ...training.config import PRECISIONS, TrainConfig, check_choice, check_range
from ...training.data import Batch
from ...training.embedding import INITS, PseudoWord, nearest_words, start_vectors
from ...training.images import ImageSet, passes
from ...training.measure import StepCost, in_words
from ...training.objective import denoising_loss, importance
from ...training.record import Run
from ...training.validation import SEED, grid, scorer
from ..bridge import identity
from ..bridge.dataset.conditioning import encode_prompts, join, model_conds
from ..bridge.dataset.encoded import EncodedDataset, about, models_digest
from ..bridge.dataset.pictures import Pictures, describe_held_out, prepare
from ..bridge.models import check_trainable
from ..bridge.runs.context import RunContext
from ..bridge.runs.cross_validation import Fold, cross_validate
from ..bridge.runs.run_training import Callbacks, follow
from ..bridge.runs.samples import SamplerSettings, as_conditioning, sampler_for
from ..bridge.training_model.denoiser import compute_type, prepare_for_training, refuse_gguf
from ..bridge.training_model.memory import OPTIMIZER_BYTES, Plan, StepMemory, forecast, plan
from ..bridge.training_model.text_encoder import clip_with_word, encoders, prepare_text_encoder, token_ids, vocabulary
from .names import check_name, prompt_word
from .templates import TEMPLATES, check_captions, prompt_for


@dataclass(frozen=True)
class InversionRequest:
    """What `BespokeTrainTextualInversion` is asked for.

    norm_limit: how many times the vocabulary's median length a vector may have; 0 is no limit. sample_prompt: `{word}`
    in it is the pseudo-word; empty takes "a photo of {word}".
    """

    train: TrainConfig
    name: str
    init_text: str
    vectors: int = 1
    init: str = "words"
    template: str = "object"
    norm_limit: float = 0.0
    precision: str = "auto"
    sample_prompt: str = ""
    resume: bool = True

    def __post_init__(self) -> None:
        check_name(self.name)
        check_range("vectors", self.vectors)
        check_range("norm_limit", self.norm_limit)
        for name, value, choices in (
            ("init", self.init, INITS),
            ("template", self.template, TEMPLATES),
            ("precision", self.precision, PRECISIONS),
        ):
            check_choice(name, value, choices)

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


def train_word(
    model,
    clip,
    vae,
    images: ImageSet,
    request: InversionRequest,
    settings: SamplerSettings | None = None,
    save: Callable[[int, dict[str, Tensor], Run], None] = lambda step, embedding, run: None,
) -> Learned:
    """Learn the word. No weight of model, CLIP or VAE changes.

    settings: how sample images are drawn. save: called with (step, embedding, run) for what is saved on the way.
    """
    return fit_word(model, clip, vae, encode_dataset(model, clip, vae, images, request), request, settings, save)


def encode_dataset(model, clip, vae, images: ImageSet, request: InversionRequest) -> EncodedDataset:
    """Encode the pictures, and note what they and the models are."""
    refuse_gguf(model)
    check_trainable(model.model)
    if request.template == "captions":
        check_captions(images.items)
    encoders(clip)  # a text encoder that can learn no word is said before the wait
    pictures = prepare(vae, model.model, request.train, images)
    # The file's metadata names the kind of embedding, and pictures of any size teach it.
    noted = about(model, clip, images) | {"architecture": "", "resolution": ""}
    return EncodedDataset(pictures, images.fingerprint, models_digest(model, clip, vae), noted)


def fit_word(
    model,
    clip,
    vae,
    material: EncodedDataset,
    request: InversionRequest,
    settings: SamplerSettings | None = None,
    save: Callable[[int, dict[str, Tensor], Run], None] = lambda step, embedding, run: None,
    where: RunContext | None = None,
) -> Learned:
    """`train_word` on what was gathered. vae: needed where samples are drawn.

    where: the page's process, or one of several that train together and all call this.
    """
    config, word, pictures, where = request.train, prompt_word(request.name), material.pictures, where or RunContext()
    share = where.world.share(config.batch_size)
    parts = encoders(clip)
    tables = {key: vocabulary(encoder) for key, (_, encoder) in parts.items()}
    start = {
        key: start_vectors(
            tables[key], token_ids(tokenizer, request.init_text), request.vectors, request.init, config.seed
        )
        for key, (tokenizer, _) in parts.items()
    }
    limits = {key: request.norm_limit * float(table.norm(dim=-1).median()) for key, table in tables.items()}
    run = material.run("textual inversion", request.settings())
    weights = (model, clip.patcher, *([vae.patcher] if vae is not None else []))
    before = [*map(identity.checksum, weights)]
    compute = compute_type(model.model, model.load_device, request.precision)
    memory = Plan()
    if not where.sharded:
        memory = plan(model, lambda: step_memory(model, clip, pictures, max(1, len(share)), compute))
    with (
        prepare_for_training(model, request.precision, leave_free=memory.leave_free) as denoiser,
        prepare_text_encoder(clip, compute) as text,
    ):
        denoiser.reload()  # the text encoder may have taken its place
        run.prediction = denoiser.prediction
        where.prepare(denoiser)
        if where.sharded:
            before[0] = identity.checksum(model)  # of this process's share, which it has from here on

        levels = importance(denoiser, config.timestep_sampling, config.loss_weighting)

        def fit(part: Fold) -> dict[str, Tensor]:
            learned = PseudoWord(start, limits if request.norm_limit > 0 else None, denoiser.device)
            part.run.trained = sum(vectors.numel() for vectors in learned.vectors.values())
            speaking = clip_with_word(
                clip, request.name, {key: (lambda key=key: learned.vectors[key]) for key in start}
            )

            def batch_loss(batch: Batch, seed: int, micro: int) -> Tensor:
                sentences = [
                    prompt_for(request.template, pictures.items[index].caption, word, seed, micro, place)
                    for place, index in zip(batch.places, batch.indices, strict=True)
                ]
                conditioning = join(
                    [
                        model_conds(
                            denoiser.base,
                            cond,
                            extra | pictures.facts(index),
                            pictures.data.latents[index],
                            denoiser.device,
                        )
                        for index, (cond, extra) in zip(batch.indices, text.encode(sentences, speaking), strict=True)
                    ]
                )
                sigma = denoiser.sigma(batch.u)
                return denoising_loss(
                    denoiser, batch.latent, batch.noise, sigma, conditioning, batch.mask, config.loss_weighting
                )

            def loss_of(micro: int) -> Tensor | None:
                if not share:
                    return None
                batch = pictures.data.batch(
                    config, micro, denoiser.device, part.trained_on, places=share, levels=levels
                )
                return batch.share_of_mean(batch_loss(batch, config.seed, micro))

            def for_sample() -> tuple[list, list]:
                said = request.sample_prompt.replace("{word}", word).strip() or f"a photo of {word}"
                return as_conditioning(text.encode([said, ""], speaking))

            score = None
            if part.held_out:
                batches = grid(pictures.data, part.held_out, denoiser.device)
                score = scorer(batches, lambda batch, number: batch_loss(batch, SEED, number), where.world)
            sample = None
            if part.config.sample_every and where.world.rank == 0:
                like = pictures.data.latents[pictures.trained_on[0]]
                sample = sampler_for(denoiser, vae, like, settings or SamplerSettings(), for_sample)
            outlets = Callbacks(
                lambda cost: part.said + preflight(part.run, request, cost, part.steps) + memory.said,
                lambda step, state: save(step, state, part.run),
                sample,
                [*denoiser.base.parameters(), *text.model.parameters(), *pictures.data.latents],
            )
            return follow(learned, loss_of, part.config, part.run, outlets, score, request.resume, part.until, where)

        embedding, run = cross_validate(pictures, config, run, fit)
    if [*map(identity.checksum, weights)] != before:
        raise RuntimeError(
            "a weight of the models changed during the training; this is a fault of Bespoke, please report it"
        )
    return Learned(embedding, start, run, describe(run, request, embedding, start, parts, tables))


def step_memory(model, clip, pictures: Pictures, count: int, compute: torch.dtype | None) -> StepMemory:
    """What a step will take of the memory, from the largest picture.

    count: the pictures of a batch that this process computes. The text encoder's own part is not in it.
    """
    latent = pictures.data.latents[pictures.largest()]
    one = model_conds(model.model, *encode_prompts(clip, ["a photo"])["a photo"], latent, torch.device("cpu"))
    return forecast(
        model.model,
        latent.expand(count, *latent.shape[1:]),
        join([one] * count),
        None,
        compute,
        False,
        OPTIMIZER_BYTES["AdamW"],
    )


def preflight(run: Run, request: InversionRequest, cost: StepCost, steps: int) -> str:
    """What is about to be learned and what it takes, in one line. The step's cost was measured on the first batch."""
    config = request.train
    return (
        f"{run.trained:,} numbers, file about {run.trained * 4 / 1e3:.0f} KB; {steps} steps of "
        f"{config.images_per_step}, each of {run.images} pictures seen about "
        f"{passes(run.images, steps, config.images_per_step):.0f} "
        f"times; about {in_words(cost.seconds * config.gradient_accumulation * steps)}; "
        f"{cost.kept / 2**20:.0f} MB beside the models"
    )


def describe(run, request, embedding, start, parts, tables) -> str:
    """What was learned, in words: size, loss, how far the word moved and what it is near to."""
    losses, config = run.losses, request.train
    first, last = run.quarters()
    lines = [
        (
            f"{prompt_word(request.name)}: {run.trained:,} numbers, {run.trained * 4 / 1e3:.0f} KB; 0 weights changed "
            "(hash equal)."
        ),
        f"{len(losses)} steps of {config.images_per_step} in {run.seconds:.0f} s; each of "
        f"{run.images} pictures was seen about "
        f"{passes(run.images, len(losses), config.images_per_step):.0f} times.",
        f"Loss {first:.4f} over the first quarter, {last:.4f} over the last.",
    ]
    lines += describe_held_out(run, config)
    for key, vectors in embedding.items():
        tokenizer, table = parts[key][0], tables[key]
        moved = (vectors - start[key]).norm(dim=-1).mean()
        lines.append(
            f"{key}: length {vectors.norm(dim=-1).mean():.3f} (the vocabulary's median is "
            f"{table.norm(dim=-1).median():.3f}), "
            f"moved {moved:.3f} from its start."
        )
        for i, vector in enumerate(vectors):
            near = ", ".join(
                f"{tokenizer.inv_vocab.get(token, '?').removesuffix('</w>')} {cosine:.2f}"
                for token, cosine in nearest_words(vector, table)
            )
            lines.append(f"{key} vector {i + 1} is nearest to {near}.")
    return "\n".join(lines)
