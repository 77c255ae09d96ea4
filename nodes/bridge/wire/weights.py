"""The weights of a loaded model: read without other clones' patches, and told apart by a checksum."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any
from weakref import WeakKeyDictionary

import comfy.sdxl_clip
import torch
from torch import Tensor, nn

from ....training.measure import plain_tensors

INTEGER_TYPES = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_CHUNK = 2**22  # values summed at a time: a sum in a wider dtype makes a copy in that dtype
PROJECTION = "text_projection.weight"
_SAMPLED = 64  # values of a sampled tensor

_checksums: WeakKeyDictionary[nn.Module, tuple[str, str]] = WeakKeyDictionary()  # model -> (sample, checksum)


def base_tensors(patcher: Any) -> Iterator[tuple[str, Tensor]]:
    """(name, tensor) of every parameter and buffer as it was loaded from its file, and of each part of a quantised one.

    Clones share one set of weights, and ComfyUI leaves the patches of the last clone that ran in them until another one
    is loaded. The weights without patches are in the backup, and the modules that an object patch has replaced in
    `object_patches_backup`; the clones share both.
    """
    for which in ("named_parameters", "named_buffers"):
        for name, tensor in _named(patcher, which):
            if name.startswith("model_sampling."):
                continue  # the noise schedule: not a weight, and it may be another clone's
            backup = patcher.backup.get(name)
            for part in plain_tensors(tensor if backup is None else backup.weight):
                yield name, part


def base_modules(patcher: Any) -> Iterator[tuple[str, nn.Module]]:
    """The model's `named_modules`, with the modules that object patches of a loaded clone have replaced."""
    replaced = {name: each for name, each in patcher.object_patches_backup.items() if isinstance(each, nn.Module)}
    inside = tuple(f"{name}." for name in replaced)
    for place, module in patcher.model.named_modules():
        if place in replaced:
            yield from replaced[place].named_modules(prefix=place)
        elif not place.startswith(inside):
            yield place, module


def _named(patcher: Any, which: str) -> Iterator[tuple[str, Tensor]]:
    """The base's `named_parameters` or `named_buffers`, in their order."""
    seen: set[int] = set()
    for place, module in base_modules(patcher):
        for name, tensor in getattr(module, which)(place, recurse=False):
            if id(tensor) not in seen:
                seen.add(id(tensor))
                yield name, tensor


def is_gguf(patcher: Any) -> bool:
    """Whether the model comes from a GGUF file, whose layers dequantise their weights by themselves."""
    kinds = {kind.__name__ for kind in type(patcher).__mro__}
    kinds |= {kind.__name__ for layer in patcher.model.modules() for kind in type(layer).__mro__}
    return bool(kinds & {"GGUFModelPatcher", "GGMLLayer"})


def smoothed_layer(patcher: Any) -> str | None:
    """The first layer that scales its input before a quantised matrix (Lin et al. 2023, arXiv 2306.00978), or None."""
    layers = patcher.model.named_modules()
    return next((name for name, layer in layers if getattr(layer, "pre_quant_scale", None) is not None), None)


def checksum(patcher: Any) -> str:
    """A hash over every parameter and buffer of the base, as 16 hexadecimal digits, computed now.

    Of each one the sum of its bits as integers, computed on its own device. Without `never_used`.
    """
    out = hashlib.blake2b(digest_size=8)
    left_out = never_used(patcher)
    for name, tensor in base_tensors(patcher):
        if name in left_out:
            continue
        to_local = getattr(tensor, "to_local", None)
        local: Tensor = tensor if to_local is None else to_local()  # this process's shard of a DTensor
        bits = local.detach().contiguous().reshape(-1).view(INTEGER_TYPES[tensor.element_size()])
        total = sum(int(chunk.sum(dtype=torch.int64)) for chunk in bits.split(_CHUNK))
        out.update(f"{name}{tuple(tensor.shape)}{total}".encode())
    return out.hexdigest()


def never_used(patcher: Any) -> set[str]:
    """The names of weights that no output depends on: a CLIP text encoder's projection where ComfyUI takes the vector
    before it, or none.

    Files of SD1.5 and SDXL do not have it for CLIP-L. ComfyUI then leaves its memory as it was, so that the numbers
    differ after every start, and a run would not be found again by its models.
    """
    names: set[str] = set()
    for place, module in patcher.model.named_modules():
        inside = [place] if place else []
        options = getattr(module, "options_default", ())  # of comfy.sd1_clip.SDClipModel: layer, index, projected
        if isinstance(options, tuple) and len(options) == 3 and options[2] is False:
            names.add(".".join([*inside, "transformer", PROJECTION]))
        if isinstance(module, comfy.sdxl_clip.SDXLClipModel):  # its pooled vector is that of clip_g
            names.add(".".join([*inside, "clip_l", "transformer", PROJECTION]))
    return names


def loaded_checksum(patcher: Any) -> str:
    """`checksum` of the loaded model, computed once for all clones of it.

    It is computed again where a sample of the weights (the first values of every sixteenth tensor) has changed.
    """
    sample = sample_of_weights(base_tensors(patcher))
    known = _checksums.get(patcher.model)
    if known is None or known[0] != sample:
        known = sample, checksum(patcher)
        _checksums[patcher.model] = known
    return known[1]


def sample_of_weights(tensors: Iterator[tuple[str, Tensor]]) -> str:
    """Every shape, and the first values of every sixteenth tensor, as text."""
    found = list(tensors)
    parts = [f"{[tuple(t.shape) for _, t in found]}"]
    parts += [f"{name}{sample_of_tensor(tensor)}" for name, tensor in found[::16]]
    return "|".join(parts)


def sample_of_tensor(tensor: Tensor) -> str:
    """Shape, dtype and the sum of the bits of the first values as integers.

    The same on every device, unlike a sum of floats, whose order differs.
    """
    bits = tensor.detach().flatten()[:_SAMPLED].contiguous().view(INTEGER_TYPES[tensor.element_size()])
    return f"{tuple(tensor.shape)}{tensor.dtype}{int(bits.sum(dtype=torch.int64))}"
