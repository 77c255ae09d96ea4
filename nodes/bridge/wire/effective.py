"""The weights that a MODEL or CLIP computes with, as float values: from its file, with the patches on the wire.

Whatever is loaded at present: the stored weights are those of the file, since ComfyUI keeps them in the patcher's
backup while a clone's patches are merged. Reading a merged weight and adding the patches again would count them twice.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import comfy.lora
import comfy.utils
import torch
from torch import Tensor, nn

from ....training.errors import InputError
from .compiled import restore_names
from .foreign_code import code_name, functions_in
from .table import is_set
from .weights import INTEGER_TYPES, base_modules, is_gguf, smoothed_layer

_CHUNK = 2**22  # numbers that are converted at a time

# Attributes of a patcher that change what its layers compute and are no weights: what to do instead.
_BESIDE_WEIGHTS: Mapping[str, tuple[str, str]] = {
    "injections": (
        "a path beside its weights",
        "set Bespoke Inject LoRA to the mode merge, or use a loader that merges",
    ),
    "hook_patches": ("hooks, which change its weights while it samples", "use a LoRA loader without hooks"),
    "forced_hooks": ("hooks, which change its weights while it samples", "use a LoRA loader without hooks"),
    "weight_wrapper_patches": ("a function that changes its weights at each call", "leave that node out"),
}


@dataclass(frozen=True)
class Weight:
    """One parameter of a patcher's model. stored: as in its file. patches: those of the wire, in ComfyUI's form."""

    name: str
    stored: Tensor
    patches: tuple[Any, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.stored.shape)

    def own_value(self) -> Tensor:
        """The weight without the patches, in float32 on the CPU, which the caller may change."""
        return _float(self.stored, copy=True)

    def value(self) -> Tensor:
        """The weight in float32 on the CPU, which the caller may change. Patches may give it another shape."""
        value = self.own_value()
        if not self.patches:
            return value
        return comfy.lora.calculate_weight(list(self.patches), value, self.name)

    def parts(self) -> Iterator[Tensor]:
        """The weight's rows in float32 on the CPU, a few at a time, in their order; not to be changed."""
        whole = self.value() if self.patches else _float(self.stored) if _is_quantised(self.stored) else self.stored
        rows = max(1, _CHUNK // max(1, whole[0].numel())) if whole.ndim else 1
        yield from (_float(part) for part in (whole.detach().split(rows) if whole.ndim else (whole.detach()[None],)))

    def is_same_as(self, other: Weight) -> bool:
        """Whether both are plain and hold the same numbers, up to the rounding to the coarser of their types."""
        if self.patches or other.patches or self.shape != other.shape:
            return False
        if self.stored is other.stored:
            return True
        one, two = self.stored, other.stored
        if _is_quantised(one) or _is_quantised(two):
            return type(one) is type(two) and torch.equal(_float(one), _float(two))
        one, two = one.detach().reshape(-1), two.detach().reshape(-1)
        if one.dtype == two.dtype:
            bits = INTEGER_TYPES[one.dtype.itemsize]
            return torch.equal(one.cpu().view(bits), two.cpu().view(bits))
        coarse = one.dtype if one.dtype.itemsize <= two.dtype.itemsize else two.dtype
        parts = zip(one.split(_CHUNK), two.split(_CHUNK), strict=True)
        return all(torch.equal(_rounded(a, coarse), _rounded(b, coarse)) for a, b in parts)


def weights_of(patcher: Any, prefix: str = "") -> Iterator[Weight]:
    """The parameters whose names begin with `prefix`, each once."""
    seen: set[int] = set()
    for place, module in base_modules(patcher):
        for name, parameter in module.named_parameters(place, recurse=False):
            if id(parameter) in seen or not name.startswith(prefix):
                continue
            seen.add(id(parameter))
            yield _weight(patcher, name, parameter)


def weight_of(patcher: Any, name: str) -> Weight:
    """One parameter or buffer by its name in the state dict."""
    return _weight(patcher, name, comfy.utils.get_attr(patcher.model, name))


def _weight(patcher: Any, name: str, present: Tensor) -> Weight:
    """present: what the module holds now, which may have patches or hooks merged into it."""
    backup, hooked = patcher.backup.get(name), patcher.hook_backup.get(name)
    stored = hooked[0] if hooked is not None else present if backup is None else backup.weight
    return Weight(name, stored, tuple(patcher.patches.get(name, ())))


def difference(tuned: Weight, base: Weight) -> Tensor:
    """tuned - base in float32 on the CPU, in memory of one such tensor where the base carries no patches.

    Raises `InputError` where their shapes differ.
    """
    out, start = tuned.value(), 0
    shape = tuple(comfy.lora.calculate_shape(list(base.patches), base.stored, base.name))
    if tuple(out.shape) != shape:
        raise InputError(
            f"{tuned.name} is {tuple(out.shape)} in the tuned model and {shape} in the base, and no LoRA changes a "
            "weight's shape; wire in the base that the tuned model was made from (an inpainting or control checkpoint "
            "has a base of its own kind)"
        )
    flat = out if out.ndim else out[None]
    for part in base.parts():
        flat[start : start + len(part)].sub_(part)
        start += len(part)
    return out


def check_weights_alone(patcher: Any, wire: str) -> None:
    """Raise `InputError` where a MODEL or CLIP computes with more than the weights that `weights_of` reads.

    wire: the input's name, for the error.
    """
    restore_names(patcher)
    if is_gguf(patcher):
        raise InputError(
            f"{wire} comes from a GGUF file, whose weights are packed in a way that is not read here; load the same "
            "model from a safetensors file (bf16 or fp8) with Load Diffusion Model"
        )
    layer = smoothed_layer(patcher)
    if layer is not None:
        raise InputError(
            f"{wire} has layers that scale their input before a quantised matrix ({layer}.pre_quant_scale), beside "
            "which its weights mean something else; load the same model from a bf16 or fp8 file"
        )
    for name, (what, mend) in _BESIDE_WEIGHTS.items():
        value = getattr(patcher, name, None)
        if is_set(value):
            raise InputError(
                f"{wire} carries {what}{_names(functions_in(value))}, so its weights are not all that it computes "
                f"with; {mend}, or wire it from before that node"
            )
    replaced = [name for name, value in patcher.object_patches.items() if _holds_weights(value)]
    if replaced:
        raise InputError(
            f"{wire} carries another module in the place of {replaced[0]}, whose weights are not those of its file; "
            "wire it from before the node that replaces it"
        )


def _names(code: Iterable[Any]) -> str:
    found = dict.fromkeys(code_name(each) for each in code)
    return f" ({', '.join(list(found)[:3])})" if found else ""


def _holds_weights(value: Any) -> bool:
    return isinstance(value, nn.Module) and any(True for _ in value.parameters())


def _is_quantised(tensor: Tensor) -> bool:
    return hasattr(tensor, "__tensor_flatten__")


def _float(tensor: Tensor, copy: bool = False) -> Tensor:
    """A stored tensor in float32 on the CPU."""
    tensor = tensor.detach()
    if _is_quantised(tensor):
        # float32 is then the type that it is dequantised to, as where ComfyUI merges a patch.
        quantised: Any = tensor.to("cpu", torch.float32, copy=True)
        return quantised.dequantize().float()
    return tensor.to("cpu", torch.float32, copy=copy)


def _rounded(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    return tensor.to("cpu", dtype).float()
