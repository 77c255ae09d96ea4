"""What a slider is trained on, encoded: pairs of pictures, or nothing but the size of the latents."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ....training.captions import PROMPT
from ....training.data import LatentSet
from ....training.errors import InputError
from ....training.images import ImageSet, TrainingImage
from ...bridge.dataset.cache import digest
from ...bridge.dataset.captions import check_fixed_captions
from ...bridge.dataset.conditioning import encode_prompt, encode_prompts, learn_layers_of
from ...bridge.dataset.encoded import EncodedDataset, describe_models, identify_models
from ...bridge.dataset.pictures import Pictures, encode_blanks, encode_pictures, split_pictures
from ...bridge.models import check_picture_sizes, check_trainable, is_inpainting_model
from ...bridge.schedule_part import trained_range
from ...bridge.trainer import Models
from ...bridge.training_model.denoiser import check_wire
from ...bridge.wire.compiled import restore_own_modules
from ...images.fingerprint import fingerprint
from ..match import starting_parts
from ..training.preserve import lines_of
from ..training.technique import needed_prompts
from .card import words_card
from .pairs import paired
from .request import SliderData, SliderRequest

WORDS = "words"  # the name of the only item of a set without pictures


def encode_slider_dataset(models: Models, data: SliderData, request: SliderRequest) -> EncodedDataset:
    """Encode the pairs, or make the latent of a training on words, and encode the prompts.

    Raises `InputError`, before anything is encoded, for words that tell nothing, for pictures without a pair, and for
    a model or targets that cannot be trained.
    """
    model, clip, vae = models.model, models.clip, models.vae
    items = _items(data, request)
    if vae is None and (items or request.train.sample_every):
        why = "positive_images and negative_images are wired" if items else "sample_every is not 0"
        other = "" if items else ", or set sample_every to 0"
        raise InputError(f"{why} and vae is not wired; wire in the VAE that belongs to the model{other}")
    check_wire(model, clip)
    restore_own_modules(model)
    check_trainable(model.model, takes_pairs=False)
    trained_range(model, request.train)
    learn_layers_of(model.model, partial(encode_prompt, clip, "a photo"))
    request.layers(model.model.diffusion_model)
    check_fixed_captions(items)
    images = ImageSet(tuple(items or [_item_of_words(request)]))
    if items:
        pictures = encode_pictures(vae, model.model, request.train, images)
    else:
        pictures = _without_pictures(model.model, vae, images, request)
    return EncodedDataset(
        pictures,
        # Names decide which pictures are a pair, and are in no fingerprint of a set.
        fingerprint=digest("slider", data.fingerprint(), *([fingerprint(items)] if items else [])),
        run_fields=describe_models(model, clip, images) | ({} if items else {"images": 0, "tags": {}}),
        prompts=encode_prompts(clip, slider_prompts(pictures, request)),
        start=starting_parts(data.start, model, clip, request.adapter) if data.start else None,
        **identify_models(model, clip, vae),
    )


def slider_prompts(pictures: Pictures, request: SliderRequest) -> set[str]:
    """Every prompt that a training needs."""
    prompts = needed_prompts(pictures, request) | {""}
    if has_pairs(pictures):
        return prompts
    return prompts.union(plain_ends(request), *ends_of(request))


def ends_of(request: SliderRequest) -> list[tuple[str, str]]:
    """[(more, less)]: the prompts of both ends, once with each prompt p of `preserve` (Concept Sliders, eq. 8), which
    keeps p out of the direction; without any, and in erase mode, `plain_ends` alone.
    """
    more, less = plain_ends(request)
    kept = [] if request.erases else lines_of(request.preserve)
    return [(_joined(more, p), _joined(less, p)) for p in kept] or [(more, less)]


def plain_ends(request: SliderRequest) -> tuple[str, str]:
    """(more, less) without the prompts of `preserve`; in erase mode (what is drawn instead, target)."""
    return (request.more.strip(), request.target) if request.erases else (request.more, request.less)


def _joined(prompt: str, kept: str) -> str:
    return f"{prompt}, {kept}" if prompt.strip() else kept


def has_pairs(pictures: Pictures) -> bool:
    """Whether a slider is trained on pairs of pictures; else there is one item, for words."""
    return len(pictures.items) > 1


def _items(data: SliderData, request: SliderRequest) -> list[TrainingImage]:
    """See `pairs.paired`; empty for a training on words."""
    if data.positive is None or data.negative is None:
        request.check_words()
        if request.train.validation:
            raise InputError(
                f"validation is {request.train.validation}, and a training on words has no pictures to hold out; set "
                "it to 0"
            )
        return []
    if request.erases:
        raise InputError("mode is erase, which learns from words; take the pictures off, or set mode to slider")
    return paired(data.positive, data.negative, request.target)


def _item_of_words(request: SliderRequest) -> TrainingImage:
    """The item that stands for the latents of a training on words; it shows the words."""
    side = request.resolution
    return TrainingImage(WORDS, words_card(request, side), request.target, caption_syntax=PROMPT)


def _without_pictures(base: Any, vae: Any, images: ImageSet, request: SliderRequest) -> Pictures:
    """A set of one latent of zeros, of `resolution` px a side. Raises `InputError` for a size that does not fit."""
    check_picture_sizes(base, [("resolution", request.resolution, request.resolution)])
    items, config = list(images.items), request.train
    pictures = split_pictures(items, LatentSet([], []), [1, 0, 0], config)
    blanks = {}
    if is_inpainting_model(base):
        if vae is None:
            raise InputError("this model reads a masked picture, which the VAE encodes; wire in vae")
        blanks = encode_blanks(vae, items)
    return replace(pictures, data=LatentSet([_blank_latent(base, request.resolution)], [None]), blank_latents=blanks)


def _blank_latent(base: Any, side: int) -> Tensor:
    """Zeros [1, C, (1,) h, w] of the model's latents for a picture of `side` px."""
    format_of = base.latent_format
    cell = getattr(format_of, "spacial_downscale_ratio", 8)
    if side % cell:
        raise InputError(
            f"resolution is {side}, and this model's pictures are multiples of {cell} px; give {side // cell * cell}"
        )
    frames = [1] if format_of.latent_dimensions == 3 else []
    if format_of.latent_dimensions == 1:
        raise InputError("this model makes no pictures, so a slider cannot be trained for it; choose another model")
    return torch.zeros(1, format_of.latent_channels, *frames, side // cell, side // cell)
