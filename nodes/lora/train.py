"""Trains a LoRA on the models of the wire: one function from request to result."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from ...training.config import PRECISIONS, TrainConfig, check_range
from ...training.data import Batch
from ...training.errors import InputError
from ...training.formats import COMFY_PREFIX
from ...training.images import ImageSet, common_resolution, passes
from ...training.lora import LowRankAdapters, count_parameters
from ...training.objective import denoising_loss
from ...training.record import Run, run_id, tag_frequency
from ...training.validation import grid, scorer
from ..bridge.conditioning import ModelConds, encode_prompt, join, model_conds
from ..bridge.denoiser import opened_for_training
from ..bridge.latents import latent_set
from ..bridge.models import TARGETS, architecture, file_names, target_layers
from ..bridge.run import base_name, follow, identity
from ..bridge.split import describe_held_out, held_out_split


@dataclass(frozen=True)
class LoraRequest:
    """What `BespokeTrainLora` is asked for. alpha / rank is the strength of the low-rank path."""

    train: TrainConfig
    targets: str = TARGETS[0]
    rank: int = 8
    alpha: float = 8.0
    custom_targets: str = ""
    precision: str = "auto"
    resume: bool = True

    def __post_init__(self) -> None:
        check_range("rank", self.rank)
        check_range("alpha", self.alpha)
        if self.precision not in PRECISIONS:
            raise InputError(f"precision is {self.precision!r}; choose one of {', '.join(PRECISIONS)}")

    def settings(self) -> dict:
        """The request by widget name."""
        own = {k: v for k, v in asdict(self).items() if k not in ("train", "resume")}
        return asdict(self.train) | own


def train_lora(
    model, clip, vae, images: ImageSet, request: LoraRequest, validation: ImageSet | None = None,
    save: Callable[[int, dict[str, Tensor], Run], None] = lambda step, lora, run: None,
) -> tuple[dict[str, Tensor], Run]:  # fmt: skip
    """(the LoRA in ComfyUI's key names, the run's record). The base and the user's MODEL stay as they are.

    validation: pictures to score instead of some of `images`. save: called with (step, LoRA, run) for what is saved
    on the way.
    """
    config, settings, base = request.train, request.settings(), model.model
    layers = target_layers(base.diffusion_model, request.targets, request.custom_targets)
    items, trained_on, held_out = held_out_split(images, validation, config)
    with torch.inference_mode(False), torch.no_grad():
        data = latent_set(vae, base, items)
        prompts = {text: encode_prompt(clip, text) for text in sorted({item.caption for item in items} | {""})}
    fingerprints = images.fingerprint + (validation.fingerprint if validation else "")
    run = Run(
        run_id("lora", settings, fingerprints, identity(model, clip, vae)), "lora", settings, base_name(model),
        len(trained_on), images.trigger, tag_frequency(item.caption for item in images.items),
        resolution=common_resolution(images), architecture=architecture(base),
        names={layer: names for layer, names in file_names(base).items() if layer in layers},
    )  # fmt: skip
    with opened_for_training(model, request.precision) as denoiser:
        run.prediction = denoiser.prediction
        # The layers are taken again: loading may have brought the model to life under new modules.
        layers = target_layers(denoiser.base.diffusion_model, request.targets, request.custom_targets)
        adapters = LowRankAdapters(layers, request.rank, request.alpha, config.seed, denoiser.device)
        run.trained = count_parameters(adapters)
        known: dict[tuple[int, str], ModelConds] = {}

        def conds_of(index: int, text: str) -> ModelConds:
            # One set a picture and prompt: some families are told the picture's size.
            if (index, text) not in known:
                cond, extra = prompts[text]
                known[index, text] = model_conds(denoiser.base, cond, extra, data.latents[index], denoiser.device)
            return known[index, text]

        def batch_loss(batch: Batch) -> Tensor:
            conditioning = join([
                conds_of(index, "" if caption < 0 else items[caption].caption)
                for index, caption in zip(batch.indices, batch.captions, strict=True)
            ])  # fmt: skip
            return denoising_loss(
                denoiser, batch.latent, batch.noise, denoiser.sigma(batch.u), conditioning, batch.mask
            )

        def loss_of(micro: int) -> Tensor:
            return batch_loss(data.batch(config, micro, denoiser.device, trained_on)).mean()

        score = None
        if held_out:
            score = scorer(grid(data, held_out, denoiser.device), lambda batch, _: batch_loss(batch))
        with adapters.attached():
            state = follow(
                adapters, loss_of, config, run, preflight(run, request, len(trained_on)), score, request.resume,
                lambda step, state: save(step, to_comfy(state), run),
            )  # fmt: skip
    return to_comfy(state), run


def to_comfy(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The adapters' state under ComfyUI's key names."""
    return {COMFY_PREFIX + key: tensor for key, tensor in state.items()}


def preflight(run: Run, request: LoraRequest, images: int) -> str:
    """What is about to be trained, in one line."""
    config = request.train
    return (
        f"{len(run.names) or 'custom'} layers, {run.trained:,} numbers, file about {run.trained * 2 / 1e6:.1f} MB in "
        f"fp16; {config.steps} steps of {config.batch_size * config.gradient_accumulation} pictures, each seen about "
        f"{passes(images, config.steps, config.batch_size * config.gradient_accumulation):.0f} times"
    )


def describe(run: Run, request: LoraRequest, images: ImageSet, layer_count: int) -> str:
    """What was trained and how it went, in words."""
    losses, config = run.losses, request.train
    seen = passes(run.images, len(losses), config.batch_size * config.gradient_accumulation)
    quarter = max(1, len(losses) // 4)
    first, last = sum(losses[:quarter]) / quarter, sum(losses[-quarter:]) / quarter
    lines = [
        f"LoRA of rank {request.rank}, alpha {request.alpha:g} (strength alpha/rank = {request.alpha / request.rank:g}) on "
        f"{layer_count} layers ({request.targets}): {run.trained:,} numbers trained, 0 of the model's own changed.",
        f"{len(losses)} steps of {config.batch_size * config.gradient_accumulation} in {run.seconds:.0f} s "
        f"({len(losses) * config.batch_size * config.gradient_accumulation / max(run.seconds, 1e-9):.1f} images/s); "
        f"each of {run.images} pictures was seen about {seen:.0f} times.",
        f"Loss {first:.4f} over the first quarter, {last:.4f} over the last. A single step's loss mostly says which "
        "noise levels were drawn.",
    ]
    lines += describe_held_out(run, config)
    if seen > 400:
        lines.append("That is a lot: look at images from an earlier number of steps too, for over-training.")
    if images.trigger:
        lines.append(f"Call it with: {images.trigger}")
    return "\n".join(lines)


