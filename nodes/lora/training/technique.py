"""Trains a LoRA: one function from models and pictures to what is trained on, one from there to the result."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from ....training.adapters.lora import UP_RATE, LowRankAdapters
from ....training.config import PRECISIONS, TrainConfig, check_choice, check_range
from ....training.errors import InputError
from ....training.formats import COMFY_PREFIX
from ....training.images import ImageSet, passes
from ....training.measure import StepCost, in_words
from ....training.objective import importance
from ....training.record import Run
from ....training.validation import grid, scorer
from ...bridge.dataset.cache import digest
from ...bridge.dataset.conditioning import encode_prompts, join, model_conds
from ...bridge.dataset.encoded import EncodedDataset, about, models_digest
from ...bridge.dataset.pictures import Pictures, describe_held_out, prepare
from ...bridge.models import TARGETS, check_trainable, file_names, target_layers
from ...bridge.runs.context import RunContext
from ...bridge.runs.cross_validation import Fold, cross_validate
from ...bridge.runs.run_training import Callbacks, follow
from ...bridge.runs.samples import SamplerSettings, sampler_for
from ...bridge.training_model.denoiser import compute_type, prepare_for_training, refuse_gguf
from ...bridge.training_model.memory import MEMORY_ADVICE, OPTIMIZER_BYTES, Plan, StepMemory, forecast, plan
from ...bridge.training_model.text_encoder import TEXT_PREFIX, attention_layers, prepare_text_encoder
from ...bridge.training_model.text_encoder import file_names as text_file_names
from ..files import named
from ..injection.bypass import low_rank_path
from ..match import match
from .prompts import Prompts


@dataclass(frozen=True)
class LoraRequest:
    """What `BespokeTrainLora` is asked for. alpha / rank is the strength of the low-rank path.

    text_encoder_lr: the learning rate of the text encoder's adapters; 0 takes the run's. sample_prompt: empty takes the
    first picture's caption.
    """

    train: TrainConfig
    targets: str = TARGETS[0]
    rank: int = 8
    alpha: float = 8.0
    custom_targets: str = ""
    precision: str = "auto"
    sample_prompt: str = ""
    train_text_encoder: bool = False
    text_encoder_lr: float = 0.0
    resume: bool = True

    def __post_init__(self) -> None:
        for name in ("rank", "alpha", "text_encoder_lr"):
            check_range(name, getattr(self, name))
        check_choice("precision", self.precision, PRECISIONS)

    def settings(self) -> dict:
        """The request by widget name."""
        own = {k: v for k, v in asdict(self).items() if k not in ("train", "resume")}
        return asdict(self.train) | own


@dataclass(frozen=True)
class LoraData:
    """What a training reads. validation: pictures to score instead of some of `images`. prior: pictures of what must
    not change. start: the LoRA to go on from."""

    images: ImageSet
    validation: ImageSet | None = None
    prior: ImageSet | None = None
    start: Mapping[str, Tensor] | None = None

    def fingerprint(self) -> str:
        sets = [data.fingerprint if data else "" for data in (self.images, self.validation, self.prior)]
        return "|".join([*sets, fingerprint_of(self.start)])


def fingerprint_of(lora: Mapping[str, Tensor] | None) -> str:
    if not lora:
        return ""
    return digest(*(part for key in sorted(lora) for part in (key, lora[key].float().contiguous().numpy().tobytes())))


def train_lora(
    model,
    clip,
    vae,
    data: LoraData,
    request: LoraRequest,
    settings: SamplerSettings | None = None,
    save: Callable[[int, dict[str, Tensor], Run], None] = lambda step, lora, run: None,
) -> tuple[dict[str, Tensor], Run]:
    """(the LoRA in ComfyUI's key names, the run's record). The base and the user's models stay as they are.

    settings: how sample images are drawn. save: called with (step, LoRA, run) for what is saved on the way.
    """
    return fit_lora(model, clip, vae, encode_dataset(model, clip, vae, data, request), request, settings, save)


def encode_dataset(model, clip, vae, data: LoraData, request: LoraRequest) -> EncodedDataset:
    """Encode pictures and captions, and note what they and the models are."""
    refuse_gguf(model)
    check_trainable(model.model)
    target_layers(
        model.model.diffusion_model, request.targets, request.custom_targets
    )  # wrong targets are said before the wait
    if request.train_text_encoder:
        attention_layers(clip.cond_stage_model)
    pictures = prepare(vae, model.model, request.train, data.images, data.validation, data.prior)
    texts = {*pictures.captions, sample_prompt(pictures, request)}
    return EncodedDataset(
        pictures,
        data.fingerprint(),
        models_digest(model, clip, vae),
        about(model, clip, data.images),
        {} if request.train_text_encoder else encode_prompts(clip, texts),
        factors_of(data.start, model, clip) if data.start else None,
    )


def sample_prompt(pictures: Pictures, request: LoraRequest) -> str:
    return request.sample_prompt.strip() or pictures.items[0].caption


def fit_lora(
    model,
    clip,
    vae,
    material: EncodedDataset,
    request: LoraRequest,
    settings: SamplerSettings | None = None,
    save: Callable[[int, dict[str, Tensor], Run], None] = lambda step, lora, run: None,
    where: RunContext | None = None,
) -> tuple[dict[str, Tensor], Run]:
    """`train_lora` on what was gathered. clip: needed where the text encoder is trained, vae: where samples are drawn.

    where: the page's process, or one of several that train together and all call this.
    """
    config, base, pictures, where = request.train, model.model, material.pictures, where or RunContext()
    # What the up factor learns at belongs to the run: a state that was trained at another rate is another run's.
    run = material.run("lora", request.settings() | {"loraplus_lr_ratio": UP_RATE})
    share = where.world.share(config.batch_size)
    compute = compute_type(base, model.load_device, request.precision)
    checkpointing = "" if config.gradient_checkpointing else "gradient_checkpointing, "
    helps = f"{checkpointing}{MEMORY_ADVICE}, a lower rank, fewer targets"
    memory = Plan()
    if not where.sharded:
        memory = plan(model, lambda: step_memory(model, clip, material, request, compute, max(1, len(share))), helps)
    with contextlib.ExitStack() as stack:
        text = stack.enter_context(prepare_text_encoder(clip, compute)) if request.train_text_encoder else None
        denoiser = stack.enter_context(
            prepare_for_training(model, request.precision, config.gradient_checkpointing, memory.leave_free)
        )
        run.prediction = denoiser.prediction
        where.prepare(denoiser)
        # The layers are taken only now: loading may have brought the model to life under new modules.
        layers = target_layers(denoiser.base.diffusion_model, request.targets, request.custom_targets)
        layers = {COMFY_PREFIX + name: layer for name, layer in layers.items()}
        names = {COMFY_PREFIX + name: forms for name, forms in file_names(base).items()}
        if text is not None:
            layers |= {TEXT_PREFIX + name: layer for name, layer in attention_layers(text.model).items()}
            names |= {TEXT_PREFIX + name: forms for name, forms in text_file_names(clip.cond_stage_model).items()}
        rates = {TEXT_PREFIX: request.text_encoder_lr} if request.text_encoder_lr else {}
        run.names = {name: forms for name, forms in names.items() if name in layers}
        prompts = Prompts(denoiser, pictures, clip, text, material.prompts, sample_prompt(pictures, request))
        levels = importance(denoiser, config.timestep_sampling, config.loss_weighting)

        def fit(part: Fold) -> dict[str, Tensor]:
            adapters = LowRankAdapters(
                layers, request.rank, request.alpha, config.seed, denoiser.device, rates, TEXT_PREFIX
            )
            if material.start is not None:
                adapters.load_state_dict(material.start)
            part.run.trained = sum(parameter.numel() for parameter in adapters.parameters())

            def share_of_loss(micro: int, among: list[int], stream: str = "") -> Tensor:
                batch = pictures.data.batch(config, micro, denoiser.device, among, stream, share, levels)
                return batch.share_of_mean(prompts.loss(batch, config))

            def loss_of(micro: int) -> Tensor | None:
                if not share:
                    return None
                own = share_of_loss(micro, part.trained_on)
                if not pictures.prior:
                    return own
                return own + config.prior_weight * share_of_loss(micro, pictures.prior, "prior")

            score = None
            if part.held_out:
                batches = grid(pictures.data, part.held_out, denoiser.device)
                score = scorer(batches, lambda batch, _: prompts.loss(batch, config), where.world)
            sample = None
            if part.config.sample_every and where.world.rank == 0:
                like = pictures.data.latents[pictures.trained_on[0]]
                sample = sampler_for(denoiser, vae, like, settings or SamplerSettings(), prompts.for_sample)
            outlets = Callbacks(
                lambda cost: part.said + preflight(part.run, request, cost, part.steps) + memory.said,
                lambda step, state: save(step, state, part.run),
                sample,
                [*denoiser.base.parameters(), *pictures.data.latents, *prompts.tensors()],
            )
            with adapters.attached():
                return follow(
                    adapters, loss_of, part.config, part.run, outlets, score, request.resume, part.until, where
                )

        return cross_validate(pictures, config, run, fit)


def step_memory(
    model, clip, material: EncodedDataset, request: LoraRequest, compute: torch.dtype | None, count: int
) -> StepMemory:
    """What a step will take of the memory, from the largest picture and its caption.

    count: the pictures of a batch that this process computes. A trained text encoder is not in it.
    """
    config, base, pictures = request.train, model.model, material.pictures
    index = pictures.largest()
    caption, latent = pictures.items[index].caption, pictures.data.latents[index]
    encoded = material.prompts or encode_prompts(clip, [caption])
    one = model_conds(base, *encoded[caption], latent, torch.device("cpu"))
    layers = target_layers(base.diffusion_model, request.targets, request.custom_targets)
    made: list[LowRankAdapters] = []

    def learn() -> list[torch.nn.Parameter]:
        made.append(LowRankAdapters(layers, request.rank, request.alpha, 0, torch.device("cpu")))
        return made[0].parameters()

    # The pictures of the prior are a second batch, whose graph is kept beside the first's.
    batch = count * (2 if pictures.prior else 1)
    return forecast(
        base,
        latent.expand(batch, *latent.shape[1:]),
        join([one] * batch),
        learn,
        compute,
        config.gradient_checkpointing,
        OPTIMIZER_BYTES[config.optimizer] + (4 if config.ema else 0),
        lambda: made[0].attached(),
    )


def factors_of(lora: Mapping[str, Tensor], model, clip) -> dict[str, Tensor]:
    """A LoRA's factors under ComfyUI's own layer names, whatever program named them. Raises `InputError` for other
    kinds."""
    found, out = match(model, clip, named(lora)), {}
    for prefix, patches in (("", found.model), (TEXT_PREFIX, found.clip)):
        for patch in patches:
            if (
                not isinstance(patch.key, str)
                or not low_rank_path(patch.adapter)
                or patch.adapter.weights[3] is not None
            ):
                raise InputError(
                    "the LoRA to go on from is no plain one of two factors a layer; give one that was trained here"
                )
            up, down, alpha = patch.adapter.weights[:3]
            layer = prefix + patch.key.removesuffix(".weight")
            out[f"{layer}.lora_up.weight"], out[f"{layer}.lora_down.weight"] = up, down
            out[f"{layer}.alpha"] = torch.tensor(float(down.shape[0] if alpha is None else alpha))
    return out


def preflight(run: Run, request: LoraRequest, cost: StepCost, steps: int) -> str:
    """What is about to be trained and what it takes, in one line. The step's cost was measured on the first batch."""
    config = request.train
    seconds = cost.seconds * config.gradient_accumulation * steps
    # The gradient and Adam's two moments, in float32.
    memory = cost.kept + run.trained * 16
    return (
        f"{len(run.names) or 'custom'} layers, {run.trained:,} numbers, file about {run.trained * 2 / 1e6:.1f} MB in "
        f"fp16; {steps} steps of {config.images_per_step} pictures, each of {run.images} seen about "
        f"{passes(run.images, steps, config.images_per_step):.0f} times; about {in_words(seconds)}; "
        f"{memory / 2**20:.0f} MB beside the model"
    )


def describe(run: Run, request: LoraRequest, trigger: str, layer_count: int) -> str:
    """What was trained and how it went, in words."""
    losses, config = run.losses, request.train
    seen = passes(run.images, len(losses), config.images_per_step)
    first, last = run.quarters()
    lines = [
        f"LoRA of rank {request.rank}, alpha {request.alpha:g} (strength alpha/rank = "
        f"{request.alpha / request.rank:g}) on "
        f"{layer_count} layers ({request.targets}{', text encoder' if request.train_text_encoder else ''}): "
        f"{run.trained:,} numbers trained, 0 of the model's own changed.",
        f"{len(losses)} steps of {config.images_per_step} in {run.seconds:.0f} s "
        f"({len(losses) * config.images_per_step / max(run.seconds, 1e-9):.1f} images/s); "
        f"each of {run.images} pictures was seen about {seen:.0f} times. The learning rate was "
        f"{config.learning_rate:g} at most, "
        f"for the factor that started at zero {UP_RATE:g} times that.",
        f"Loss {first:.4f} over the first quarter, {last:.4f} over the last. A single step's loss scatters with "
        "the noise levels and pictures that were drawn.",
    ]
    lines += describe_held_out(run, config)
    if seen > 400:
        lines.append("That is a lot: look at images from an earlier number of steps too, for over-training.")
    if trigger:
        lines.append(f"Call it with: {trigger}")
    return "\n".join(lines)
