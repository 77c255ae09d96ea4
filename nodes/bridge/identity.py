"""What tells one set of models from another: for runs that go on, and for what is computed once and kept."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import torch

from ...training.measure import plain_tensors

_WHOLE = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_PIECE = 2**22  # numbers summed at a time: a sum in a wider type makes a copy in that type


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
    """(name, tensor) of every parameter and buffer as it was loaded from its file; a quantised one's parts each.

    Clones share one set of weights, and ComfyUI leaves the patches of the last clone that ran in them until another is
    loaded; what they replaced lies in the backup, which the clones share too.
    """
    for name, tensor in (*patcher.model.named_parameters(), *patcher.model.named_buffers()):
        if name.startswith("model_sampling."):
            continue  # the noise schedule: no weight, and another clone's may be in its place
        kept = patcher.backup.get(name)
        for part in plain_tensors(tensor if kept is None else kept.weight):
            yield name, part


def of_patcher(patcher) -> str:
    """Weights (a sample of them) and what other nodes changed on the wire: patches, the noise schedule, paths
    beside."""
    if patcher is None:
        return ""
    parts = sorted(f"{key}:{[_patch(patch) for patch in patches]}" for key, patches in patcher.patches.items())
    # The class, every shape, and every sixteenth tensor's first numbers: enough to tell two models apart, and read in a
    # moment. Two text encoders may have the same weights and say another thing, as SDXL's and SD3's do.
    tensors = list(base_tensors(patcher))
    parts += [
        f"{type(patcher.model).__module__}.{type(patcher.model).__qualname__}",
        f"{[tuple(t.shape) for _, t in tensors]}",
    ]
    parts += [f"{name}{_head(tensor)}" for name, tensor in tensors[::16]]
    parts += [f"{name}={_object(value)}" for name, value in sorted(patcher.object_patches.items())]
    parts += sorted(_injection(one) for group in patcher.injections.values() for one in group)
    if hasattr(patcher.model, "model_sampling"):
        parts.append(_object(patcher.get_model_object("model_sampling")))
    return "|".join(parts)


def _object(value) -> str:
    """What tells one object that a node put in another's place: its classes, its plain settings, its buffers."""
    kinds = "/".join(kind.__qualname__ for kind in type(value).__mro__[:-1])
    settings = (
        {k: v for k, v in sorted(vars(value).items()) if isinstance(v, (int, float, str, bool)) and k != "training"}
        if hasattr(value, "__dict__")
        else {}
    )
    buffers = (
        [f"{name}{_head(tensor)}" for name, tensor in value.named_buffers()]
        if isinstance(value, torch.nn.Module)
        else []
    )
    return f"{kinds}{settings}{buffers}"


def _head(tensor: torch.Tensor) -> str:
    # Bits as whole numbers: the same on every device, where the order of a sum of floats is not.
    bits = tensor.detach().flatten()[:64].contiguous().view(_WHOLE[tensor.element_size()])
    return f"{tuple(tensor.shape)}{tensor.dtype}{int(bits.sum(dtype=torch.int64))}"


def _injection(one) -> str:
    """What a path beside the weights computes; one of another pack, which cannot be read, is like itself alone."""
    ours = getattr(one.inject, "__self__", None)
    if not hasattr(ours, "patches"):
        return f"{getattr(one.inject, '__qualname__', type(one.inject).__name__)}@{id(one)}"
    return f"{[(strength, patch.weight, _patch(patch.adapter)) for strength, patch in ours.patches]}{ours.timing}"


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
    """A hash over every parameter and buffer of the base: the sum of each one's bits as whole numbers, where it
    lies."""
    out = hashlib.blake2b(digest_size=8)
    for name, tensor in base_tensors(patcher):
        own = tensor.to_local() if hasattr(tensor, "to_local") else tensor  # of a weight that is spread over processes
        bits = own.detach().contiguous().reshape(-1).view(_WHOLE[tensor.element_size()])
        total = sum(int(piece.sum(dtype=torch.int64)) for piece in bits.split(_PIECE))
        out.update(f"{name}{tuple(tensor.shape)}{total}".encode())
    return out.hexdigest()


def of_models(model, clip, vae) -> str:
    """The three together: what a run was trained on."""
    return "|".join((base_name(model), of_patcher(model), of_clip(clip), of_vae(vae)))
