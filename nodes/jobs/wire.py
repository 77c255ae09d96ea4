"""What other nodes changed on a MODEL or CLIP before the trainer, as tensors and JSON, and applied again elsewhere.

A change that cannot be exported is refused with the reason: the job would train on another model than the graph shows.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import comfy.model_sampling
import comfy.weight_adapter
import torch
from comfy.weight_adapter.base import WeightAdapterBase
from torch import Tensor

from ...training.errors import InputError
from ..bridge.wire.table import PATCHER, Role, Row, carried, is_set
from ..lora.base_adapters import BASE_ADAPTERS
from .source import DTYPES

SAMPLING = "model_sampling"
_ADAPTERS: dict[str, type[Any]] = {kind.__name__: kind for kind in (*comfy.weight_adapter.adapters, *BASE_ADAPTERS)}


def export_changes(patcher: Any, role: str, for_samples: bool = False) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """(changes, tensors): what was changed on a patcher, as JSON that refers to the tensors by name.

    role: "model", "clip" or "vae". for_samples: whether sample images are drawn with the patcher. Raises `InputError`
    for a change that is neither JSON nor a tensor, nor an adapter or noise schedule of ComfyUI or this pack. What only
    a sampler reads is not needed for training: its names are in changes["left_out"].
    """
    check_exportable(patcher, PATCHER, role)
    options = dict(patcher.model_options)
    transformer_options = options.pop("transformer_options", {})
    if for_samples and options:
        raise InputError(
            f"the {role} on the wire carries {', '.join(sorted(options))} for its sampler, which cannot go into a job "
            "and would be missing in the sample images; take that node off, or set sample_every to 0"
        )
    tensors: dict[str, Tensor] = {}
    encode = _Encoder(role, tensors)
    changes = {
        "patches": [[key, [encode(patch) for patch in patches]] for key, patches in patcher.patches.items()],
        "objects": {name: _encode_object(name, value, encode) for name, value in patcher.object_patches.items()},
        "options": {name: encode(value) for name, value in transformer_options.items() if is_set(value)},
        "left_out": sorted(name for name, value in options.items() if is_set(value)),
    }
    return changes, tensors


def check_exportable(thing: Any, table: Mapping[str, Row], role: str) -> None:
    """Raise `InputError` for what is set on a patcher, CLIP or VAE and that a job does not carry."""
    for name, row, _ in carried(thing, table):
        if row is not None and (row.exported or row.role is Role.LOADED):
            continue
        words = f"{name}, which this version of Bespoke does not know and" if row is None else f"{row.words}, which"
        raise InputError(f"the {role} on the wire carries {words} cannot go into a job; take that node off")


def apply_changes(patcher: Any, changes: Mapping[str, Any], tensors: Mapping[str, Tensor], role: str) -> Any:
    """A clone of a freshly loaded patcher, changed as `export_changes` recorded it.

    Raises `InputError` where this ComfyUI has no class of a recorded name, or the model no weight of one.
    """
    try:
        return _apply(patcher, changes, tensors, role)
    except (AttributeError, KeyError) as error:
        raise InputError(
            f"this ComfyUI cannot make what the job changes on the {role} ({error}); use the version that exported "
            "the job"
        ) from error


def _apply(patcher: Any, changes: Mapping[str, Any], tensors: Mapping[str, Tensor], role: str) -> Any:
    out = patcher.clone()
    for key, patches in changes["patches"]:
        for patch in patches:
            strength, value, strength_model, offset, _ = _decode(patch, tensors)
            if not out.add_patches({key if offset is None else (key, offset): value}, strength, strength_model):
                raise InputError(
                    f"the {role} that was loaded has no {key}, which the job changes; export the job again"
                )
    for name, value in changes["objects"].items():
        out.add_object_patch(
            name, _decode_sampling(value, tensors) if "classes" in value else _decode(value["value"], tensors)
        )
        if name == "manual_cast_dtype":
            out.force_cast_weights = True
    out.model_options["transformer_options"] |= {
        name: _decode(value, tensors) for name, value in changes["options"].items()
    }
    return out


class _Encoder:
    """Encodes values as JSON. Tensors are added to `tensors`; the JSON has their names."""

    def __init__(self, role: str, tensors: dict[str, Tensor]) -> None:
        self.role, self.tensors = role, tensors

    def __call__(self, value: Any) -> Any:
        if type(value) in (Tensor, torch.nn.Parameter):
            name = f"{self.role}/{len(self.tensors)}"
            self.tensors[name] = value.detach().to("cpu", copy=True).contiguous()
            return {"tensor": name}
        if value is None or isinstance(value, (bool, int, float, str)):
            return value
        if isinstance(value, torch.dtype):
            return {"dtype": str(value).removeprefix("torch.")}
        if isinstance(value, (list, tuple)):
            return {type(value).__name__: [self(item) for item in value]}
        if isinstance(value, dict) and all(isinstance(key, str) for key in value):
            return {"dict": {key: self(item) for key, item in value.items()}}
        if isinstance(value, WeightAdapterBase) and _ADAPTERS.get(type(value).__name__) is type(value):
            return {"adapter": type(value).__name__, "keys": sorted(value.loaded_keys), "weights": self(value.weights)}
        raise InputError(
            f"the {self.role} on the wire carries a {type(value).__name__} of another node, which cannot go into a "
            "job; take that node off"
        )


def _decode(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    """The value that `_Encoder` encoded."""
    if not isinstance(value, dict):
        return value
    if "adapter" in value:
        return _ADAPTERS[value["adapter"]](set(value["keys"]), _decode(value["weights"], tensors))
    ((kind, inner),) = value.items()
    if kind == "tensor":
        return tensors[inner]
    if kind == "dtype":
        return DTYPES[inner]
    if kind == "dict":
        return {key: _decode(item, tensors) for key, item in inner.items()}
    return {"list": list, "tuple": tuple}[kind](_decode(item, tensors) for item in inner)


def _encode_object(name: str, value: Any, encode: _Encoder) -> dict[str, Any]:
    """An object patch: a noise schedule as its classes, settings and buffers; any other as a plain value."""
    if name != SAMPLING:
        return {"value": encode(value)}
    settings = {key: item for key, item in vars(value).items() if not key.startswith("_") and key != "training"}
    return {
        "classes": _sampling_classes(type(value)),
        "settings": {key: encode(item) for key, item in settings.items()},
        "buffers": {key: encode(buffer) for key, buffer in value.named_buffers()},
    }


def _sampling_classes(kind: type) -> list[str]:
    """The classes of `comfy.model_sampling` that a noise schedule is derived from.

    Nodes join them in a class of their own. One that adds something of its own is refused with `InputError`.
    """
    if getattr(comfy.model_sampling, kind.__name__, None) is kind:
        return [kind.__name__]
    own = {name for name in vars(kind) if not (name.startswith("__") and name.endswith("__"))}
    if own or "__init__" in vars(kind) or kind in (object, torch.nn.Module):
        raise InputError(
            f"the model on the wire has the noise schedule {kind.__name__} of another node, which cannot go into a "
            "job; take that node off"
        )
    return [name for base in kind.__bases__ for name in _sampling_classes(base)]


def _decode_sampling(encoded: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> torch.nn.Module:
    bases = tuple(getattr(comfy.model_sampling, name) for name in encoded["classes"])
    kind = type("ModelSampling", bases, {})
    made = kind.__new__(kind)
    # The classes' own __init__ would compute what is read from the job.
    torch.nn.Module.__init__(made)
    for name, value in encoded["settings"].items():
        setattr(made, name, _decode(value, tensors))
    for name, buffer in encoded["buffers"].items():
        made.register_buffer(name, _decode(buffer, tensors))
    return made
