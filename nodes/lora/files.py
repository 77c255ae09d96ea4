"""LoRA files: read safely, explained, applied."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import comfy.lora
import comfy.lora_convert
import torch
from torch import Tensor

from ...training.errors import InputError
from ...training.formats import from_diffusers, trigger_words
from ..bridge.safe_files import read_safetensors


def read_lora(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """(tensors, metadata) of a LoRA file."""
    return read_safetensors(path, "LoRA")


def describe(tensors: Mapping[str, Tensor], meta: Mapping[str, str], name: str) -> str:
    """The file in words: format, rank, alpha, layers, trigger words."""
    downs = {k: t for k, t in tensors.items() if re.search(r"\.(lora_down|lora_A)\.weight$", k)}
    ranks = sorted({t.shape[0] for t in downs.values()})
    alphas = sorted({float(t) for k, t in tensors.items() if k.endswith(".alpha") and t.numel() == 1})
    size = sum(t.numel() for t in tensors.values())
    lines = [f"{name}: {len(downs)} low-rank layers, rank {', '.join(map(str, ranks)) or 'none'}, {size:,} numbers."]
    if alphas:
        lines.append(f"alpha {', '.join(f'{a:g}' for a in alphas)}.")
    elif downs:
        lines.append("No alpha in the file: it acts at strength 1, not at 1/rank.")
    words = trigger_words(meta)
    lines.append(f"Trigger words: {words}." if words else "The file names no trigger words.")
    if meta.get("ss_sd_model_name"):
        lines.append(f"Trained on {meta['ss_sd_model_name']}.")
    return "\n".join(lines)


PROJECTIONS = {"query": r"to_q|q_proj", "key": r"to_k|k_proj", "value": r"to_v|v_proj", "out": r"to_out|out_proj"}


def projection_of(key: str) -> str | None:
    """Which of the four attention projections a model key belongs to, if any."""
    return next((name for name, pattern in PROJECTIONS.items() if re.search(rf"\.({pattern})\b", key)), None)


def apply_lora(
    model, clip, tensors: Mapping[str, Tensor], strength_model: float, strength_clip: float, scales: Mapping[str, float]
) -> tuple[object, object, str]:
    """(model, clip, report): clones with the LoRA patched in through ComfyUI's own adapters.

    scales: strength by projection (query, key, value, out), multiplied into both strengths.
    """
    key_map = comfy.lora.model_lora_keys_unet(model.model, {})
    if clip is not None:
        key_map = comfy.lora.model_lora_keys_clip(clip.cond_stage_model, key_map)
    converted = comfy.lora_convert.convert_lora(from_diffusers(tensors))
    loaded = comfy.lora.load_lora(converted, key_map, log_missing=False)
    model_keys, clip_keys = set(model.model.state_dict()), set()
    if clip is not None:
        clip_keys = set(clip.cond_stage_model.state_dict())
    own = {key: patch for key, patch in loaded.items() if _weight(key) in model_keys}
    text = {key: patch for key, patch in loaded.items() if _weight(key) in clip_keys}
    if not own and not text:
        some = next(iter(tensors))
        raise InputError(
            f"no layer of this model has a name like {some!r}: the LoRA was made for another kind of model; "
            "wire in the base it was trained on"
        )
    shapes = model.model.state_dict()
    for key, patch in own.items():
        fits = getattr(patch, "calculate_shape", None)
        if fits is None or isinstance(key, tuple):
            continue
        weights = getattr(patch, "weights", None)
        if weights and len(weights) > 1 and torch.is_tensor(weights[0]) and getattr(patch, "name", "") == "lora":
            up, down = weights[0], weights[1]
            if (up.shape[0], down.shape[1]) != tuple(shapes[key].shape[:2]):
                raise InputError(
                    f"{key} is {tuple(shapes[key].shape[:2])} in the model and {(up.shape[0], down.shape[1])} in the "
                    "LoRA: it was made for another model; wire in the base it was trained on"
                )
    new_model, new_clip = model.clone(), None if clip is None else clip.clone()
    for target, patches, strength in ((new_model, own, strength_model), (new_clip, text, strength_clip)):
        for scale in sorted({scales.get(projection_of(_weight(key)), 1.0) for key in patches}):
            part = {k: p for k, p in patches.items() if scales.get(projection_of(_weight(k)), 1.0) == scale}
            if scale != 0.0 and strength != 0.0:
                target.add_patches(part, strength * scale)
    layers = {re.sub(r"\.(lora_.*|alpha|hada_.*|lokr_.*|oft_.*|dora_scale|diff.*)$", "", key) for key in converted}
    unmatched = len(layers) - len(own) - len(text)
    report = f"{len(own)} layers of the model, {len(text)} of the text encoder."
    if unmatched > 0:
        report += f" {unmatched} layers of the file matched nothing here" + (
            " (no CLIP is wired in, so its text-encoder part is left out)." if clip is None else "."
        )
    return new_model, new_clip, report


def _weight(key) -> str:
    return key if isinstance(key, str) else key[0]
