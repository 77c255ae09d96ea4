"""Prompts as the model's own conditioning tensors: one set for each picture, joined to a batch."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import comfy.conds
import comfy.model_base
import comfy.samplers
import torch
from torch import Tensor

from .. import identity
from ..models import learn_layers, training_conds
from ..runs.events import with_phase
from . import cache


@dataclass(frozen=True)
class ModelConds:
    """ComfyUI's conditioning objects for a batch of one or more, by the model's argument names.

    by_length: replaces `conds` where the model cannot batch prompts of several lengths: for each length (positions in
    the batch, their conditioning).
    parts: the single conditionings that a batch was joined of; empty for one.
    """

    conds: dict[str, Any]
    by_length: tuple[tuple[list[int], ModelConds], ...] = ()
    parts: tuple[ModelConds, ...] = ()

    def of(self, positions: Sequence[int]) -> ModelConds:
        """The conditioning of some of the batch, as if these had been joined alone."""
        return join_conds([self.parts[position] for position in positions]) if self.parts else self

    def tensors(self) -> dict[str, Any]:
        """The conditioning as keyword arguments of `BaseModel.apply_model`."""
        return {name: cond.cond for name, cond in self.conds.items()}


def model_conds(
    base: comfy.model_base.BaseModel, cond: Tensor, extra: dict[str, Any], latent: Tensor, device: torch.device
) -> ModelConds:
    """The conditioning of one picture: the context and, for some families, the pooled vector and the picture's size.

    cond: [1, tokens, width]. extra: what ComfyUI's CLIP gives with it (pooled_output, attention_mask, ...) and
    `Pictures.model_inputs`; it overrides the defaults. latent: [1, C, ...], of which only the shape is read.
    """
    size = {"width": latent.shape[-1] * 8, "height": latent.shape[-2] * 8}
    # As ComfyUI's sampling gives them: the pooled vector of a text encoder that has none, and the latent's parts.
    given = {"pooled_output": None, "latent_shapes": [latent.shape]}
    inputs = {**given, **size, **training_conds(base), **extra}
    made = base.extra_conds(cross_attn=cond, noise=latent, device=device, prompt_type="positive", **inputs)
    return ModelConds({name: value.process_cond(batch_size=1, area=None) for name, value in made.items()})


def learn_layers_of(base: comfy.model_base.BaseModel, encoded: Callable[[], tuple[Tensor, dict[str, Any]]]) -> None:
    """`models.learn_layers` of a model with the conditioning of a prompt.

    encoded: gives what `encode_prompt` gives; called only for a model that no record describes.
    """

    def conds(latent: Tensor) -> dict[str, Any]:
        return model_conds(base, *encoded(), latent, torch.device("cpu")).tensors()

    learn_layers(base, conds)


def join_conds(parts: Sequence[ModelConds]) -> ModelConds:
    """One batch of single conditionings, joined as ComfyUI's sampling does.

    A U-Net's shorter contexts are repeated to the common length, which does not change its output. Where a model has no
    such rule (text tokens of Flux and SD3 beyond the usual number), each length of prompts gets a call of its own.
    """
    positions: dict[Hashable, list[int]] = {}
    for position, part in enumerate(parts):
        positions.setdefault(_fixed_shapes(part), []).append(position)
    if len(positions) > 1:
        return ModelConds({}, tuple((rows, join_conds([parts[i] for i in rows])) for rows in positions.values()))
    joined = comfy.samplers.cond_cat([part.conds for part in parts])
    conds = {name: type(parts[0].conds[name])(value) for name, value in joined.items()}
    return ModelConds(conds, parts=tuple(parts))


def _fixed_shapes(part: ModelConds) -> tuple:
    """The shapes that must be equal within a batch: those of all conditioning but the context of a cross-attention."""
    return tuple(
        (name, _form(value.cond))
        for name, value in sorted(part.conds.items())
        if not isinstance(value, comfy.conds.CONDCrossAttn)
    )


def _form(value: Any) -> Hashable:
    """The shape of a tensor, those of a list of tensors, or another value as text."""
    if isinstance(value, Tensor):
        return tuple(value.shape)
    if isinstance(value, (list, tuple)) and all(isinstance(each, Tensor) for each in value):
        return tuple(tuple(each.shape) for each in value)
    return repr(value)


def encode_prompt(clip, text: str) -> tuple[Tensor, dict[str, Any]]:
    """(context [1, tokens, width], {"pooled_output": ..., ...}) of a prompt, by the user's CLIP at its clip skip."""
    encoded = clip.encode_from_tokens_scheduled(clip.tokenize(text))
    cond, extra = encoded[0]
    # Clones, since autograd cannot save tensors made in inference mode.
    return cond.clone(), {k: v.clone() if isinstance(v, Tensor) else v for k, v in extra.items() if v is not None}


def encode_prompts(clip, texts: Iterable[str]) -> dict[str, tuple[Tensor, dict[str, Any]]]:
    """`encode_prompt` of each text, cached where the CLIP can be compared with others."""
    clip_identity = identity.of_clip(clip)

    def encode(text: str) -> tuple[Tensor, dict[str, Any]]:
        if "embedding:" in text:  # its meaning may change with a file
            return encode_prompt(clip, text)
        return cache.prompt_cache.get(cache.key_of(clip_identity, text), lambda: encode_prompt(clip, text))

    with torch.inference_mode(False), torch.no_grad():
        all_texts = list(texts)
        # A single one may be that of a memory forecast, when the trainer is past the captions.
        shown = with_phase("captions", all_texts) if len(all_texts) > 1 else all_texts
        return {text: encode(text) for text in shown}
