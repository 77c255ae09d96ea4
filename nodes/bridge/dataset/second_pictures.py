"""Second pictures as what ComfyUI's own nodes tell a model of them, and prompts with a picture in them.

The nodes are called, so that a training gives the model what a graph gives it when it is sampled.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ....training.images import TrainingImage
from .. import identity
from ..models.second_picture import (
    CHANNELS,
    FIRST_FRAME,
    MASKED,
    QWEN_EDIT,
    QWEN_EDIT_PLUS,
    REFERENCE,
)
from ..runs.events import with_phase
from . import cache

FILM = 5  # frames of a pair: the source, and four of the result, which are one latent frame
Told = dict[str, Any]  # what a node adds to a conditioning: tensors, and lists of them
Encoded = tuple[Tensor, dict[str, Any]]  # a prompt's context [1, tokens, width], further fields
_NOTHING = [[torch.zeros(1, 1, 1), {}]]  # a conditioning that says nothing yet


def encode_seconds(vae, items: Sequence[TrainingImage], how: str) -> list[Told]:
    """What the model is told of each item's second picture, on the CPU; {} of an item without one.

    how: a key of `second_picture.WORDS`. Of a model that reads a masked picture, an item with a mask and without a
    second picture is its own source. A model that is given the first frame is given a clip's own.
    """
    vae_identity, out = identity.of_vae(vae), list[Told]()
    with torch.inference_mode(False), torch.no_grad():
        for item in with_phase("pictures", list(items)):
            source = item.control
            if source is None and how == MASKED and item.mask is not None:
                source = item.pixels
            frames = FILM
            if how == FIRST_FRAME and item.frames > 1:
                source, frames = item.first_frame, item.frames
            if source is None:
                out.append({})
                continue
            mask = _hole(item) if how == MASKED else None
            parts = [str(frames)] if mask is None else [str(tuple(mask.shape)), mask.numpy().tobytes()]
            pixels = source.contiguous()
            key = cache.key_of(vae_identity, how, str(tuple(pixels.shape)), pixels.numpy().tobytes(), *parts)

            def told(pixels: Tensor = pixels, mask: Tensor | None = mask, frames: int = frames) -> Told:
                encode = partial(_first_frame, frames=frames) if how == FIRST_FRAME else _ENCODERS[how]
                return {name: _kept(value) for name, value in encode(vae, _image(pixels), mask).items()}

            out.append(cache.latent_cache.get(key, told))
    return out


def encode_with_pictures(
    clip, wanted: Mapping[str, tuple[TrainingImage, str]], how: str
) -> dict[str, tuple[Tensor, dict[str, Any]]]:
    """The conditioning of each prompt with the second picture of its item in it; without one, of the prompt alone.

    wanted: {key: (item, prompt)}. how: one of `second_picture.IN_PROMPT`.
    """
    clip_identity, out = identity.of_clip(clip), dict[str, Encoded]()
    with torch.inference_mode(False), torch.no_grad():
        for key, (item, prompt) in with_phase("captions", list(wanted.items())):
            source = item.control
            assert source is not None
            pixels = source.contiguous()

            def encode(pixels: Tensor = pixels, prompt: str = prompt) -> Encoded:
                context, extra = _in_prompt(clip, prompt, _image(pixels), how)[0]
                return _kept(context), {name: _kept(value) for name, value in extra.items() if value is not None}

            parts = prompt, how, str(tuple(pixels.shape)), pixels.numpy().tobytes()
            known = None if "embedding:" in prompt else cache.key_of(clip_identity, *parts)
            out[key] = cache.prompt_cache.get(known, encode)
    return out


def equal_seconds(items: Iterable[TrainingImage]) -> list[int]:
    """For each item the index of the first one with the same second picture; -1 without one."""
    seen: dict[str, int] = {}
    out = list[int]()
    for index, item in enumerate(items):
        if item.control is None:
            out.append(-1)
            continue
        pixels = item.control.contiguous()
        out.append(seen.setdefault(cache.digest(str(tuple(pixels.shape)), pixels.numpy().tobytes()), index))
    return out


def film_of(item: TrainingImage) -> Tensor:
    """A pair as a film [5, H, W, 3] uint8: its first frame is the source, which becomes the result.

    Wan's VAE makes one latent frame of the first and one of each four that follow (arXiv 2503.20314, section 4.1).
    """
    assert item.control is not None
    return torch.stack([item.control, *[item.pixels] * (FILM - 1)]).contiguous()


def _image(pixels: Tensor) -> Tensor:
    """A picture [H, W, 3] uint8 as IMAGE, [1, H, W, 3] in 0..1."""
    return pixels[None].float() / 255


def _hole(item: TrainingImage) -> Tensor:
    """The mask of an item as MASK, [1, H, W]: 1 is the hole, where the loss counts; without one, everything."""
    return torch.ones(1, *item.size) if item.mask is None else item.mask[None].float()


def _kept(value: Any) -> Any:
    """A value of a conditioning with its tensors on the CPU, and none of them made in inference mode."""
    if isinstance(value, Tensor):
        return (value.float() if value.is_floating_point() else value).to("cpu", copy=True).clone()
    return type(value)(map(_kept, value)) if isinstance(value, (list, tuple)) else value


def _reference(vae, image: Tensor, _mask: Tensor | None) -> Told:
    from comfy_extras.nodes_edit_model import ReferenceLatent

    return _added(_first(ReferenceLatent.execute(_NOTHING, {"samples": vae.encode(image)})))


def _channels(vae, image: Tensor, _mask: Tensor | None) -> Told:
    from comfy_extras.nodes_ip2p import InstructPixToPixConditioning

    return _added(_first(InstructPixToPixConditioning.execute(_NOTHING, _NOTHING, image, vae)))


def _masked(vae, image: Tensor, mask: Tensor | None) -> Told:
    from nodes import InpaintModelConditioning

    return _added(InpaintModelConditioning().encode(_NOTHING, _NOTHING, image, vae, mask, noise_mask=False)[0])


def _first_frame(vae, image: Tensor, _mask: Tensor | None, frames: int = FILM) -> Told:
    from comfy_extras.nodes_wan import WanImageToVideo

    height, width = image.shape[1:3]
    given = {"width": width, "height": height, "length": frames, "batch_size": 1, "start_image": image}
    return _added(_first(WanImageToVideo.execute(_NOTHING, _NOTHING, vae, **given)))


def _qwen_latents(how: str) -> Callable[[Any, Tensor, Tensor | None], Told]:
    """The reference latents of a node that encodes a prompt too; the prompt is left out here."""

    def encode(vae, image: Tensor, _mask: Tensor | None) -> Told:
        conditioning = _in_prompt(_NoPrompt(), "", image, how, vae)
        return _added(conditioning)

    return encode


class _NoPrompt:
    """A CLIP that encodes nothing, for the part of a node that does not need it."""

    def tokenize(self, _text: str, **_more: Any) -> None:
        return None

    def encode_from_tokens_scheduled(self, _tokens: None) -> list:
        return _NOTHING


def _in_prompt(clip, prompt: str, image: Tensor, how: str, vae=None) -> list:
    """The conditioning of a prompt with a picture in it; with `vae` also with its reference latent."""
    from comfy_extras.nodes_qwen import TextEncodeQwenImageEdit, TextEncodeQwenImageEditPlus

    if how == QWEN_EDIT_PLUS:
        return _first(TextEncodeQwenImageEditPlus.execute(clip, prompt, vae=vae, image1=image))
    return _first(TextEncodeQwenImageEdit.execute(clip, prompt, vae=vae, image=image))


def _first(output: Any) -> list:
    """The first output of a node that was called, a CONDITIONING. output: ComfyUI's `NodeOutput`."""
    return output.result[0]


def _added(conditioning: list) -> Told:
    return dict(conditioning[0][1])


_ENCODERS: dict[str, Callable[[Any, Tensor, Tensor | None], Told]] = {
    REFERENCE: _reference,
    CHANNELS: _channels,
    MASKED: _masked,
    FIRST_FRAME: _first_frame,
    QWEN_EDIT: _qwen_latents(QWEN_EDIT),
    QWEN_EDIT_PLUS: _qwen_latents(QWEN_EDIT_PLUS),
}
