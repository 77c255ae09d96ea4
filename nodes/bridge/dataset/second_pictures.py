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
    BESIDE,
    BOOGU_EDIT,
    CHANNELS,
    FIRST_FRAME,
    IN_PROMPT,
    JOY_EDIT,
    KREA_REFERENCE,
    LONGCAT_EDIT,
    MAGE_EDIT,
    MASKED,
    QWEN_EDIT,
    QWEN_EDIT_PLUS,
    REFERENCE,
    REFERENCE_PICTURE,
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
                context, extra = _IN_PROMPT[how](clip, prompt, _image(pixels), None)[0]
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


def _reference_picture(_vae, image: Tensor, _mask: Tensor | None) -> Told:
    from comfy_extras.nodes_hidream_o1 import HiDreamO1ReferenceImages

    given = {"positive": _NOTHING, "negative": _NOTHING, "images": {"image_1": image}}
    return _added(_first(HiDreamO1ReferenceImages.execute(**given)))


def _latents_of(how: str) -> Callable[[Any, Tensor, Tensor | None], Told]:
    """What a node that encodes a prompt too tells besides; the prompt is left out here."""

    def encode(vae, image: Tensor, _mask: Tensor | None) -> Told:
        return _added(_IN_PROMPT[how](_NoPrompt(), "", image, vae))

    return encode


class _NoPrompt:
    """A CLIP that encodes nothing, for the part of a node that does not need it."""

    def tokenize(self, _text: str, **_more: Any) -> None:
        return None

    def encode_from_tokens_scheduled(self, _tokens: None) -> list:
        return _NOTHING


def _qwen_edit(clip, prompt: str, image: Tensor, vae) -> list:
    from comfy_extras.nodes_qwen import TextEncodeQwenImageEdit

    return _first(TextEncodeQwenImageEdit.execute(clip, prompt, vae=vae, image=image))


def _qwen_edit_plus(clip, prompt: str, image: Tensor, vae) -> list:
    from comfy_extras.nodes_qwen import TextEncodeQwenImageEditPlus

    return _first(TextEncodeQwenImageEditPlus.execute(clip, prompt, vae=vae, image1=image))


def _longcat_edit(clip, prompt: str, image: Tensor, vae) -> list:
    return _placed(_qwen_edit(clip, prompt, image, vae), "index")


def _krea_reference(clip, prompt: str, image: Tensor, vae) -> list:
    return _placed(_qwen_edit_plus(clip, prompt, image, vae), "index_timestep_zero")


def _placed(conditioning: list, method: str) -> list:
    from comfy_extras.nodes_flux import FluxKontextMultiReferenceLatentMethod

    return _first(FluxKontextMultiReferenceLatentMethod.execute(conditioning, method))


def _mage_edit(clip, prompt: str, image: Tensor, vae) -> list:
    from comfy_extras.nodes_mage import TextEncodeMageFlowEdit

    return _first(TextEncodeMageFlowEdit.execute(clip, prompt, vae=vae, images={"image_1": image}))


def _boogu_edit(clip, prompt: str, image: Tensor, vae) -> list:
    from comfy_extras.nodes_boogu import TextEncodeBooguEdit

    return _first(TextEncodeBooguEdit.execute(clip, prompt, "", vae=vae, images={"image_1": image}))


def _joy_edit(clip, prompt: str, image: Tensor, vae) -> list:
    from comfy_extras.nodes_joyimage import TextEncodeJoyImageEdit

    return _first(TextEncodeJoyImageEdit.execute(clip, prompt, vae=vae, images={"image0": image}))


def _first(output: Any) -> list:
    """The first output of a node that was called, a CONDITIONING. output: ComfyUI's `NodeOutput`."""
    return output.result[0]


def _added(conditioning: list) -> Told:
    return dict(conditioning[0][1])


# The positive conditioning of a prompt with a picture in it; with a VAE also with its reference latent.
_IN_PROMPT: dict[str, Callable[[Any, str, Tensor, Any], list]] = {
    QWEN_EDIT: _qwen_edit,
    QWEN_EDIT_PLUS: _qwen_edit_plus,
    LONGCAT_EDIT: _longcat_edit,
    KREA_REFERENCE: _krea_reference,
    MAGE_EDIT: _mage_edit,
    BOOGU_EDIT: _boogu_edit,
    JOY_EDIT: _joy_edit,
}
_ENCODERS: dict[str, Callable[[Any, Tensor, Tensor | None], Told]] = {
    REFERENCE: _reference,
    CHANNELS: _channels,
    BESIDE: _channels,
    MASKED: _masked,
    FIRST_FRAME: _first_frame,
    REFERENCE_PICTURE: _reference_picture,
    **{how: _latents_of(how) for how in IN_PROMPT},
}
