"""What distinguishes one set of models from another, for runs that are resumed and for caches."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from ...training.measure import plain_tensors

_INTEGER_TYPES = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_CHUNK = 2**22  # values summed at a time: a sum in a wider dtype makes a copy in that dtype


def base_name(model) -> str:
    """The name of the file that the MODEL was loaded from, or the model's class where ComfyUI does not know it."""
    path = base_path(model)
    return type(model.model).__name__ if path is None else path.name


def base_path(model) -> Path | None:
    """The file that the MODEL was loaded from, or None where ComfyUI does not know it."""
    loader = getattr(model, "cached_patcher_init", None)
    if loader and loader[1]:
        path = loader[1][0]
        path = path[0] if isinstance(path, (list, tuple)) and path else path
        if isinstance(path, (str, Path)):
            return Path(path)
    return None


def base_tensors(patcher) -> Iterator[tuple[str, torch.Tensor]]:
    """(name, tensor) of every parameter and buffer as it was loaded from its file, and of each part of a quantised one.

    Clones share one set of weights, and ComfyUI leaves the patches of the last clone that ran in them until another one
    is loaded. The weights without patches are in the backup, which the clones share too.
    """
    for name, tensor in (*patcher.model.named_parameters(), *patcher.model.named_buffers()):
        if name.startswith("model_sampling."):
            continue  # the noise schedule: not a weight, and it may be another clone's
        backup = patcher.backup.get(name)
        for part in plain_tensors(tensor if backup is None else backup.weight):
            yield name, part


def of_patcher(patcher) -> str:
    """A patcher as text: a sample of its weights, and what nodes changed on the wire (patches, the noise schedule,
    replaced objects, injections). "" for None.
    """
    if patcher is None:
        return ""
    parts = sorted(f"{key}:{[_describe_patch(patch) for patch in patches]}" for key, patches in patcher.patches.items())
    # The class, every shape, and the first values of every sixteenth tensor: enough to distinguish two models, and
    # quick to read. The class too, since two text encoders may have the same weights, as SDXL's and SD3's do.
    tensors = list(base_tensors(patcher))
    parts += [
        f"{type(patcher.model).__module__}.{type(patcher.model).__qualname__}",
        f"{[tuple(t.shape) for _, t in tensors]}",
    ]
    parts += [f"{name}{_describe_tensor(tensor)}" for name, tensor in tensors[::16]]
    parts += [f"{name}={_describe_object(value)}" for name, value in sorted(patcher.object_patches.items())]
    parts += sorted(_describe_injection(one) for group in patcher.injections.values() for one in group)
    if hasattr(patcher.model, "model_sampling"):
        parts.append(_describe_object(patcher.get_model_object("model_sampling")))
    return "|".join(parts)


def _describe_object(value) -> str:
    """An object that a node has replaced, as text: its classes, plain settings and buffers."""
    kinds = "/".join(kind.__qualname__ for kind in type(value).__mro__[:-1])
    settings = (
        {k: v for k, v in sorted(vars(value).items()) if isinstance(v, (int, float, str, bool)) and k != "training"}
        if hasattr(value, "__dict__")
        else {}
    )
    buffers = (
        [f"{name}{_describe_tensor(tensor)}" for name, tensor in value.named_buffers()]
        if isinstance(value, torch.nn.Module)
        else []
    )
    return f"{kinds}{settings}{buffers}"


def _describe_tensor(tensor: torch.Tensor) -> str:
    # The sum of the bits as integers: the same on every device, unlike a sum of floats, whose order differs.
    bits = tensor.detach().flatten()[:64].contiguous().view(_INTEGER_TYPES[tensor.element_size()])
    return f"{tuple(tensor.shape)}{tensor.dtype}{int(bits.sum(dtype=torch.int64))}"


def _describe_injection(one) -> str:
    """An injection as text. One of another pack, which cannot be read, is equal to itself alone."""
    ours: Any = getattr(one.inject, "__self__", None)
    if not hasattr(ours, "patches"):
        return f"{getattr(one.inject, '__qualname__', type(one.inject).__name__)}@{id(one)}"
    patches = [(strength, patch.weight, _describe_patch(patch.adapter)) for strength, patch in ours.patches]
    return f"{patches}{ours.timing}"


def _describe_patch(value) -> str:
    """A patch as text: strengths and names as they are, of each tensor its first values."""
    if isinstance(value, torch.Tensor):
        return _describe_tensor(value)
    if isinstance(value, (list, tuple)):
        return f"({','.join(_describe_patch(item) for item in value)})"
    if hasattr(value, "weights"):  # one of ComfyUI's adapters
        return f"{type(value).__name__}{_describe_patch(value.weights)}"
    return repr(value) if isinstance(value, (int, float, str, bool)) else type(value).__name__


def of_clip(clip) -> str:
    """A text encoder as text, with its clip skip."""
    return f"clip skip {clip.layer_idx}|{of_patcher(clip.patcher)}"


def of_vae(vae) -> str:
    """A VAE as text."""
    return of_patcher(getattr(vae, "patcher", None))


def checksum(patcher) -> str:
    """A hash over every parameter and buffer of the base, as 16 hexadecimal digits.

    Of each one the sum of its bits as integers, computed on its own device.
    """
    out = hashlib.blake2b(digest_size=8)
    for name, tensor in base_tensors(patcher):
        to_local = getattr(tensor, "to_local", None)
        local: torch.Tensor = tensor if to_local is None else to_local()  # this process's shard of a DTensor
        bits = local.detach().contiguous().reshape(-1).view(_INTEGER_TYPES[tensor.element_size()])
        total = sum(int(chunk.sum(dtype=torch.int64)) for chunk in bits.split(_CHUNK))
        out.update(f"{name}{tuple(tensor.shape)}{total}".encode())
    return out.hexdigest()


def of_models(model, clip, vae) -> str:
    """The models of a run as text."""
    return "|".join((base_name(model), of_patcher(model), of_clip(clip), of_vae(vae)))
