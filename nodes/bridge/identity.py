"""What tells one set of models from another: for runs that go on, and for what is computed once and kept."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import torch

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


def base_tensors(patcher) -> Iterator[tuple[str, torch.Tensor]]:
    """(name, tensor) of every parameter and buffer as it was loaded from its file.

    Clones share one set of weights, and ComfyUI leaves the patches of the last clone that ran in them until another is
    loaded; what they replaced lies in the backup, which the clones share too.
    """
    for name, tensor in (*patcher.model.named_parameters(), *patcher.model.named_buffers()):
        kept = patcher.backup.get(name)
        yield name, tensor if kept is None else kept.weight


def of_patcher(patcher) -> str:
    """Weights (a sample of them) and the patches on the wire."""
    if patcher is None:
        return ""
    parts = sorted(f"{key}:{[_patch(patch) for patch in patches]}" for key, patches in patcher.patches.items())
    # Every sixteenth tensor's first numbers: enough to tell two models apart, and read in a moment.
    parts += [f"{name}{_head(tensor)}" for name, tensor in list(base_tensors(patcher))[::16]]
    return "|".join(parts)


def _head(tensor: torch.Tensor) -> str:
    return f"{tuple(tensor.shape)}{float(tensor.detach().flatten()[:64].float().sum()):.6e}"


def _patch(value) -> str:
    """What tells one patch from another: strengths and names as they are, of each tensor its first numbers."""
    if isinstance(value, torch.Tensor):
        return _head(value)
    if isinstance(value, (list, tuple)):
        return f"({','.join(_patch(item) for item in value)})"
    if hasattr(value, "weights"):  # one of ComfyUI's adapters
        return f"{type(value).__name__}{_patch(value.weights)}"
    return repr(value) if isinstance(value, (int, float, str, bool)) else type(value).__name__


def of_clip(clip) -> str:
    return f"clip skip {clip.layer_idx}|{of_patcher(clip.patcher)}"


def of_vae(vae) -> str:
    return of_patcher(getattr(vae, "patcher", None))


def checksum(patcher) -> str:
    """A hash over every parameter and buffer of the base: the sum of each one's bits as whole numbers, where it lies."""
    out = hashlib.blake2b(digest_size=8)
    for name, tensor in base_tensors(patcher):
        bits = tensor.detach().contiguous().reshape(-1).view(_WHOLE[tensor.element_size()])
        out.update(f"{name}{tuple(tensor.shape)}{int(bits.sum(dtype=torch.int64))}".encode())
    return out.hexdigest()


def of_models(model, clip, vae) -> str:
    """The three together: what a run was trained on."""
    return "|".join((base_name(model), of_patcher(model), of_clip(clip), of_vae(vae)))
