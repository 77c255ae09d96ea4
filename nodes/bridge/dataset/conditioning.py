"""Prompts as the model's own conditioning tensors, one set a picture, joined to a batch."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import comfy.conds
import comfy.model_base
import comfy.samplers
import torch
from torch import Tensor

from .. import identity
from ..models import training_conds
from . import cache


@dataclass(frozen=True)
class ModelConds:
    """ComfyUI's conditioning objects by the name under which the model takes them, batch of 1 or more.

    apart: instead of `conds`, [(places in the batch, their conditioning)] where prompts of several lengths cannot share
    a call of the model.
    """

    conds: dict[str, Any]
    apart: tuple[tuple[list[int], ModelConds], ...] = ()

    def tensors(self) -> dict[str, Any]:
        return {name: cond.cond for name, cond in self.conds.items()}


def model_conds(
    base: comfy.model_base.BaseModel, cond: Tensor, extra: dict[str, Any], latent: Tensor, device: torch.device
) -> ModelConds:
    """What the model wants to know for one picture: context, and for some families the pooled vector and the size.

    cond: [1, tokens, width]. extra: what ComfyUI's CLIP gives beside it (pooled_output, attention_mask, ...) and what
    is
    known of the picture, see `Pictures.facts`; it goes before what is taken by default. latent: [1, C, ...]: its shape
    tells the picture's size.
    """
    size = {"width": latent.shape[-1] * 8, "height": latent.shape[-2] * 8}
    given = {**size, **training_conds(base), **extra}
    made = base.extra_conds(cross_attn=cond, noise=latent, device=device, prompt_type="positive", **given)
    return ModelConds({name: value.process_cond(batch_size=1, area=None) for name, value in made.items()})


def join(parts: Sequence[ModelConds]) -> ModelConds:
    """One batch out of single conditionings, by ComfyUI's own rule.

    A U-Net's shorter contexts are repeated to fit, which changes nothing for it. Where a model has no such rule (text
    tokens of Flux and SD3 beyond the usual number), prompts of one length stay together, each length a call of its own.
    """
    together: dict[tuple, list[int]] = {}
    for place, part in enumerate(parts):
        together.setdefault(_fixed_shapes(part), []).append(place)
    if len(together) > 1:
        return ModelConds({}, tuple((where, join([parts[i] for i in where])) for where in together.values()))
    joined = comfy.samplers.cond_cat([part.conds for part in parts])
    return ModelConds({name: type(parts[0].conds[name])(value) for name, value in joined.items()})


def _fixed_shapes(part: ModelConds) -> tuple:
    return tuple(
        (name, tuple(value.cond.shape) if isinstance(value.cond, Tensor) else repr(value.cond))
        for name, value in sorted(part.conds.items())
        if not isinstance(value, comfy.conds.CONDCrossAttn)
    )


def encode_prompt(clip, text: str) -> tuple[Tensor, dict[str, Any]]:
    """(context [1, tokens, width], what goes with it) for a prompt, through the user's CLIP and its clip skip."""
    encoded = clip.encode_from_tokens_scheduled(clip.tokenize(text))
    cond, extra = encoded[0]
    # Copies: a tensor made under inference mode cannot take part in a graph.
    return cond.clone(), {k: v.clone() if isinstance(v, Tensor) else v for k, v in extra.items() if v is not None}


def encode_prompts(clip, texts: Iterable[str]) -> dict[str, tuple[Tensor, dict[str, Any]]]:
    """`encode_prompt` of each text, computed once and kept by content."""
    known = identity.of_clip(clip)

    def encoded(text: str) -> tuple[Tensor, dict[str, Any]]:
        if "embedding:" in text:  # what it means may change with a file
            return encode_prompt(clip, text)
        return cache.prompts.get(cache.digest(known, text), lambda: encode_prompt(clip, text))

    with torch.inference_mode(False), torch.no_grad():
        return {text: encoded(text) for text in texts}
