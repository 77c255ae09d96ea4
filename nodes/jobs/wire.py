"""What other nodes changed on a MODEL or CLIP before the trainer: as tensors and plain JSON, and back on another
machine.

What cannot be carried is refused with the reason: a job that trained on something else than the graph shows would be
worse than none.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import comfy.model_sampling
import comfy.weight_adapter
import torch
from torch import Tensor

from ...training.errors import InputError

SAMPLING = "model_sampling"
_ADAPTERS = {kind.__name__: kind for kind in comfy.weight_adapter.adapters}
_ELSEWHERE = {
    "injections": "a path beside its weights (such as Bespoke Inject LoRA's mode bypass; mode merge can be carried)",
    "wrappers": "a wrapper of another node",
    "callbacks": "a callback of another node",
    "hook_patches": "hooks of another node",
    "additional_models": "a further model that another node hung on it",
    "weight_wrapper_patches": "a weight wrapper of another node",
    "attachments": "an attachment of another node",
}


def carry(patcher, what: str, drawn: bool = False) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """(plan, tensors) of what was changed. what: the input's name, for errors. drawn: whether samples are drawn with
    it.

    The plan is plain JSON that names the tensors. Raises `InputError` for what is neither numbers nor a tensor.
    """
    for attribute, name in _ELSEWHERE.items():
        if _holds_something(getattr(patcher, attribute, None)):
            raise InputError(f"the {what} on the wire carries {name}, which cannot go into a job; take that node off")
    options = dict(patcher.model_options)
    inner = options.pop("transformer_options", {})
    if drawn and options:
        raise InputError(
            f"the {what} on the wire carries {', '.join(sorted(options))} for its sampler, which cannot go into a job "
            "and would be missing in the sample images; take that node off, or set sample_every to 0"
        )
    tensors: dict[str, Tensor] = {}
    pack = _Pack(what, tensors)
    plan = {
        "patches": [[key, [pack(patch) for patch in patches]] for key, patches in patcher.patches.items()],
        "objects": {name: _object(name, value, pack) for name, value in patcher.object_patches.items()},
        "options": {name: pack(value) for name, value in inner.items() if _holds_something(value)},
    }
    return plan, tensors


def put_back(patcher, plan: Mapping[str, Any], tensors: Mapping[str, Tensor], what: str):
    """A clone of a freshly loaded patcher with what `carry` took. Raises `InputError` where this ComfyUI lacks a class
    of it."""
    try:
        return _put_back(patcher, plan, tensors, what)
    except (AttributeError, KeyError) as error:
        raise InputError(
            f"this ComfyUI cannot make what the job changes on the {what} ({error}); use the version that exported "
            "the job"
        ) from error


def _put_back(patcher, plan: Mapping[str, Any], tensors: Mapping[str, Tensor], what: str):
    out = patcher.clone()
    for key, patches in plan["patches"]:
        for patch in patches:
            strength, value, strength_model, offset, _ = _unpack(patch, tensors)
            if not out.add_patches({key if offset is None else (key, offset): value}, strength, strength_model):
                raise InputError(
                    f"the {what} that was loaded has no {key}, which the job changes; export the job again"
                )
    for name, value in plan["objects"].items():
        out.add_object_patch(
            name, _sampling(value, tensors) if "classes" in value else _unpack(value["value"], tensors)
        )
        if name == "manual_cast_dtype":
            out.force_cast_weights = True
    out.model_options["transformer_options"] |= {
        name: _unpack(value, tensors) for name, value in plan["options"].items()
    }
    return out


def _holds_something(value: Any) -> bool:
    if isinstance(value, Mapping):
        return any(map(_holds_something, value.values()))
    if isinstance(value, (list, tuple)):
        return any(map(_holds_something, value))
    return value is not None


class _Pack:
    """Turns a value into JSON, tensors into names under which they are put aside."""

    def __init__(self, what: str, tensors: dict[str, Tensor]):
        self.what, self.tensors = what, tensors

    def __call__(self, value: Any) -> Any:
        if type(value) in (Tensor, torch.nn.Parameter):
            name = f"{self.what}/{len(self.tensors)}"
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
        if _ADAPTERS.get(type(value).__name__) is type(value):
            return {"adapter": type(value).__name__, "keys": sorted(value.loaded_keys), "weights": self(value.weights)}
        raise InputError(
            f"the {self.what} on the wire carries a {type(value).__name__} of another node, which cannot go into a "
            "job; take that node off"
        )


def _unpack(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    if not isinstance(value, dict):
        return value
    if "adapter" in value:
        return _ADAPTERS[value["adapter"]](set(value["keys"]), _unpack(value["weights"], tensors))
    ((kind, inner),) = value.items()
    if kind == "tensor":
        return tensors[inner]
    if kind == "dtype":
        return getattr(torch, inner)
    if kind == "dict":
        return {key: _unpack(item, tensors) for key, item in inner.items()}
    return {"list": list, "tuple": tuple}[kind](_unpack(item, tensors) for item in inner)


def _object(name: str, value: Any, pack: _Pack) -> dict[str, Any]:
    """An object that a node put in another's place: a noise schedule by classes and numbers, else a plain value."""
    if name != SAMPLING:
        return {"value": pack(value)}
    settings = {key: item for key, item in vars(value).items() if not key.startswith("_") and key != "training"}
    return {
        "classes": _classes(type(value)),
        "settings": {key: pack(item) for key, item in settings.items()},
        "buffers": {key: pack(buffer) for key, buffer in value.named_buffers()},
    }


def _classes(kind: type) -> list[str]:
    """ComfyUI's classes that a noise schedule is made of. Nodes join them in a class of their own that adds nothing."""
    if getattr(comfy.model_sampling, kind.__name__, None) is kind:
        return [kind.__name__]
    adds = {name for name in vars(kind) if not (name.startswith("__") and name.endswith("__"))}
    if adds or "__init__" in vars(kind) or kind in (object, torch.nn.Module):
        raise InputError(
            f"the model on the wire has the noise schedule {kind.__name__} of another node, which cannot go into a "
            "job; take that node off"
        )
    return [name for base in kind.__bases__ for name in _classes(base)]


def _sampling(plan: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> torch.nn.Module:
    bases = tuple(getattr(comfy.model_sampling, name) for name in plan["classes"])
    kind = type("ModelSampling", bases, {})
    made = kind.__new__(kind)
    torch.nn.Module.__init__(made)  # not the classes' own, which compute what is read from the job
    for name, value in plan["settings"].items():
        setattr(made, name, _unpack(value, tensors))
    for name, buffer in plan["buffers"].items():
        made.register_buffer(name, _unpack(buffer, tensors))
    return made
