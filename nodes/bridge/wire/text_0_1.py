"""The text by which version 0.1 told models apart: the ids of its runs are made of it. It must never change."""

from __future__ import annotations

from typing import Any

import torch

from .weights import base_tensors, sample_of_tensor, sample_of_weights


def texts(model: Any, clip: Any, vae: Any) -> tuple[str, str, str]:
    """The texts of MODEL, CLIP and VAE."""
    vae_text = _of_patcher(getattr(vae, "patcher", None))
    return _of_patcher(model), f"clip skip {clip.layer_idx}|{_of_patcher(clip.patcher)}", vae_text


def _of_patcher(patcher: Any) -> str:
    """A sample of the weights, patches, replaced objects, this pack's injections and the noise schedule."""
    if patcher is None:
        return ""
    parts = sorted(f"{key}:{[_describe_patch(patch) for patch in patches]}" for key, patches in patcher.patches.items())
    parts += [
        f"{type(patcher.model).__module__}.{type(patcher.model).__qualname__}",
        sample_of_weights(base_tensors(patcher)),
    ]
    parts += [f"{name}={_describe_object(value)}" for name, value in sorted(patcher.object_patches.items())]
    parts += sorted(_describe_injection(one) for group in patcher.injections.values() for one in group)
    if hasattr(patcher.model, "model_sampling"):
        parts.append(_describe_object(patcher.get_model_object("model_sampling")))
    return "|".join(parts)


def _describe_object(value: Any) -> str:
    kinds = "/".join(kind.__qualname__ for kind in type(value).__mro__[:-1])
    settings = (
        {k: v for k, v in sorted(vars(value).items()) if isinstance(v, (int, float, str, bool)) and k != "training"}
        if hasattr(value, "__dict__")
        else {}
    )
    buffers = (
        [f"{name}{sample_of_tensor(tensor)}" for name, tensor in value.named_buffers()]
        if isinstance(value, torch.nn.Module)
        else []
    )
    return f"{kinds}{settings}{buffers}"


def _describe_injection(one: Any) -> str:
    ours: Any = getattr(one.inject, "__self__", None)
    if not hasattr(ours, "patches"):
        return ""
    patches = [(strength, patch.weight, _describe_patch(patch.adapter)) for strength, patch in ours.patches]
    return f"{patches}{ours.timing}"


def _describe_patch(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        return sample_of_tensor(value)
    if isinstance(value, (list, tuple)):
        return f"({','.join(_describe_patch(item) for item in value)})"
    if hasattr(value, "weights"):  # one of ComfyUI's adapters
        return f"{type(value).__name__}{_describe_patch(value.weights)}"
    return repr(value) if isinstance(value, (int, float, str, bool)) else type(value).__name__
