"""What tells one set of models from another: for runs that go on, and for what is computed once and kept."""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch
from torch import nn

_WHOLE = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def base_name(model) -> str:
    """The file that the MODEL came from, as far as ComfyUI knows it."""
    made_from = getattr(model, "cached_patcher_init", None)
    if made_from and made_from[1]:
        path = made_from[1][0]
        path = path[0] if isinstance(path, (list, tuple)) and path else path
        if isinstance(path, (str, Path)):
            return Path(path).name
    return type(model.model).__name__


def of_patcher(patcher) -> str:
    """Weights (a sample of them) and the patches on the wire."""
    if patcher is None:
        return ""
    parts = sorted(f"{key}:{[strength for strength, *_ in patches]}" for key, patches in patcher.patches.items())
    # Every sixteenth tensor's first numbers: enough to tell two models apart, and read in a moment.
    for name, parameter in list(patcher.model.named_parameters())[::16]:
        head = parameter.detach().flatten()[:64].float()
        parts.append(f"{name}{tuple(parameter.shape)}{float(head.sum()):.6e}")
    return "|".join(parts)


def of_clip(clip) -> str:
    return f"clip skip {clip.layer_idx}|{of_patcher(clip.patcher)}"


def of_vae(vae) -> str:
    return of_patcher(getattr(vae, "patcher", None))


def checksum(module: nn.Module) -> str:
    """A hash over every parameter and buffer: the sum of each one's bits as whole numbers, computed where it lies."""
    out = hashlib.blake2b(digest_size=8)
    for name, tensor in (*module.named_parameters(), *module.named_buffers()):
        bits = tensor.detach().contiguous().reshape(-1).view(_WHOLE[tensor.element_size()])
        out.update(f"{name}{tuple(tensor.shape)}{int(bits.sum(dtype=torch.int64))}".encode())
    return out.hexdigest()


def of_models(model, clip, vae) -> str:
    """The three together: what a run was trained on."""
    return "|".join((base_name(model), of_patcher(model), of_clip(clip), of_vae(vae)))
