"""Prompts as the model's own conditioning tensors, one set a picture, joined to a batch."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import comfy.model_base
import comfy.samplers
import torch
from torch import Tensor

from . import cache, identity


@dataclass(frozen=True)
class ModelConds:
    """ComfyUI's conditioning objects by the name under which the model takes them, batch of 1 or more."""

    conds: dict[str, Any]

    def tensors(self) -> dict[str, Any]:
        return {name: cond.cond for name, cond in self.conds.items()}


def model_conds(
    base: comfy.model_base.BaseModel, cond: Tensor, extra: dict[str, Any], latent: Tensor, device: torch.device
) -> ModelConds:
    """What the model wants to know for one picture: context, and for some families the pooled vector and the size.

    cond: [1, tokens, width]. extra: what ComfyUI's CLIP gives beside it (pooled_output, attention_mask, ...).
    latent: [1, C, H, W]: its shape tells the picture's size.
    """
    made = base.extra_conds(
        cross_attn=cond,
        **extra,
        noise=latent,
        device=device,
        width=latent.shape[-1] * 8,
        height=latent.shape[-2] * 8,
        prompt_type="positive",
    )
    return ModelConds({name: value.process_cond(batch_size=1, area=None) for name, value in made.items()})


def join(parts: Sequence[ModelConds]) -> ModelConds:
    """One batch out of single conditionings, by ComfyUI's own rule (shorter contexts are repeated to fit)."""
    joined = comfy.samplers.cond_cat([part.conds for part in parts])
    return ModelConds({name: type(parts[0].conds[name])(value) for name, value in joined.items()})


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
