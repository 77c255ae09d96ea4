"""Which layers of a model a LoRA's layers belong to, and whether they fit: nothing is changed here."""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from math import prod
from typing import Any

import comfy.lora
from torch import Tensor, nn

from ...training.errors import InputError
from ..bridge.models import architecture
from . import lowrank
from .files import NamedLora, layers_of
from .injection.scope import listed
from .layer_names import common_name
from .rehearsal import fits

BASES = {
    "stable-diffusion-v1": "SD1.5",
    "stable-diffusion-v2-512": "SD2",
    "stable-diffusion-v2-768-v": "SD2",
    "stable-diffusion-xl-v1-base": "SDXL",
    "Qwen-Image": "Qwen-Image",
    "wan2.1": "Wan",
    "chroma": "Chroma",
    "lumina-2": "Lumina 2",
}
_BY_METADATA = (
    ("sdxl", "SDXL"),
    ("xl-v1", "SDXL"),
    ("sd_v1", "SD1.5"),
    ("diffusion-v1", "SD1.5"),
    ("sd_v2", "SD2"),
    ("diffusion-v2", "SD2"),
    ("flux", "Flux"),
    ("sd3", "SD3"),
    ("diffusion-v3", "SD3"),
    ("qwen-image", "Qwen-Image"),
    ("wan2", "Wan"),
    ("chroma", "Chroma"),
    ("lumina-2", "Lumina 2"),
)
_BY_CONTEXT = {768: "SD1.5", 1024: "SD2", 2048: "SDXL", 1280: "the SDXL refiner"}
_BY_NAME = (("double_blocks", "Flux"), ("single_transformer_blocks", "Flux"), ("joint_blocks", "SD3"))


@dataclass(frozen=True)
class Patch:
    """One layer of a LoRA at home in a model. key: the weight's, or (key, (axis, start, length)) for a part of it."""

    key: Any
    adapter: Any  # ComfyUI's adapter, or a tuple such as ("diff", (tensor,))
    layer: str  # the file's name for it

    @property
    def weight(self) -> str:
        return self.key if isinstance(self.key, str) else self.key[0]


@dataclass
class Matched:
    """Where everything in a LoRA goes. `unmatched`: layers without a place; `no_clip`: a text encoder's, with no CLIP
    here."""

    model: list[Patch] = field(default_factory=list)
    clip: list[Patch] = field(default_factory=list)
    unmatched: list[str] = field(default_factory=list)
    no_clip: list[str] = field(default_factory=list)


def base_of_file(lora: NamedLora) -> str:
    """The base a LoRA was made for, in a user's word, by its metadata, else by its names and shapes; "" if unknown."""
    said = f"{lora.meta.get('ss_base_model_version', '')} {lora.meta.get('modelspec.architecture', '')}".lower()
    for word, base in _BY_METADATA:
        if word in said:
            return base
    for layer, parts in layers_of(lora).items():
        name = layer.replace(".", "_")
        down = parts.get(".lora_down.weight", parts.get(".hada_w1_b"))
        if name.endswith(("attn2_to_k", "attn2_to_v")) and down is not None:
            return _BY_CONTEXT.get(down.flatten(1).shape[1], "")
        for word, base in _BY_NAME:
            if word in layer:
                return base
    return ""


def base_of_model(base) -> str:
    """A model's base in the same words; its class's name where none is known."""
    return BASES.get(architecture(base), "") or type(base.model_config).__name__


_known: weakref.WeakKeyDictionary[nn.Module, tuple[dict, dict]] = weakref.WeakKeyDictionary()


def keys_and_shapes(module: nn.Module, is_clip: bool) -> tuple[dict[str, Any], dict[str, tuple[int, ...]]]:
    """({a file's layer name: the weight's key}, {key: shape}) of a base model or a text encoder, kept while it
    lives."""
    if module not in _known:
        names = comfy.lora.model_lora_keys_clip if is_clip else comfy.lora.model_lora_keys_unet
        # Quantised kinds keep packed numbers in their state dict, of another shape than the weight they stand for.
        logical = {name: tuple(tensor.shape) for name, tensor in (*module.named_parameters(), *module.named_buffers())}
        shapes = {key: logical.get(key, tuple(tensor.shape)) for key, tensor in module.state_dict().items()}
        _known[module] = names(module, {}), shapes
    return _known[module]


def match(model, clip, lora: NamedLora) -> Matched:
    """Every layer of the LoRA at its place in `model` (and `clip`, which may be None).

    Raises `InputError`, before anything is changed, when no layer has a place or one does not fit.
    """
    found = Matched()
    homes = [(found.model, *keys_and_shapes(model.model, False))]
    if clip is not None:
        homes.append((found.clip, *keys_and_shapes(clip.cond_stage_model, True)))
    rounds: list[dict[str, str]] = []  # [{weight's key: (layer, home)}]: two spellings of one layer are added, not lost
    for layer, parts in layers_of(lora).items():
        if set(parts) <= {"", ".alpha"}:
            found.unmatched.append(layer)
            continue
        for home, (_, names, shapes) in enumerate(homes):
            name = next((name for name in _spellings(layer) if name in names), None)
            if name is not None:
                _check_shape(layer, names[name], parts, shapes, lora, model)
                group = next((group for group in rounds if (home, names[name]) not in group), None)
                if group is None:
                    rounds.append(group := {})
                group[home, names[name]] = layer
                break
        else:
            text = common_name(layer).startswith("te")
            (found.no_clip if text and clip is None else found.unmatched).append(layer)
    for group in rounds:
        for home, (patches, _, shapes) in enumerate(homes):
            to_load = {layer: key for (where, key), layer in group.items() if where == home}
            by_key = {key: layer for layer, key in to_load.items()}
            for key, adapter in comfy.lora.load_lora(lora, to_load, log_missing=False).items():
                patch = Patch(key, adapter, by_key.get(key, str(key)))
                if patch.weight in shapes:  # a bias that the file has and the model lacks is none
                    _rehearse(patch, shapes[patch.weight], lora)
                    patches.append(patch)
    if not found.model and not found.clip:
        raise InputError(_wrong_base(model, lora, found))
    return found


def _rehearse(patch: Patch, shape: tuple[int, ...], lora: NamedLora) -> None:
    if not fits(patch.adapter, patch.weight, shape, None if isinstance(patch.key, str) else patch.key[1]):
        parts = ", ".join(
            f"{part} {tuple(tensor.shape)}" for part, tensor in layers_of(lora).get(patch.layer, {}).items() if part
        )
        raise InputError(
            f"{lora.name}: the parts of {patch.layer} ({parts}) cannot be put together for a layer of "
            f"{tuple(shape)}; one is "
            "missing or damaged, so fetch the file again"
        )


def _spellings(layer: str) -> Iterator[str]:
    """A layer's name as it is, then as other programs' wrappings of it would have it."""
    yield layer
    bare = layer
    for prefix in ("base_model.model.", "unet.", "transformer.", "model.", "diffusion_model."):
        bare = bare.removeprefix(prefix)
    for prefix in ("diffusion_model.", "transformer.", "base_model.model.", "text_encoders.", ""):
        yield prefix + bare


def _wrong_base(model, lora: NamedLora, found: Matched) -> str:
    ours, theirs = base_of_model(model.model), base_of_file(lora)
    if found.no_clip and not found.unmatched:
        return f"{lora.name} adapts the text encoder only, and no clip is wired in; wire in the checkpoint's CLIP"
    some = next(iter(found.unmatched or found.no_clip or lora))
    made = f"made for {theirs}" if theirs and theirs != ours else "made for another kind of model"
    return (
        f"no layer of this model ({ours}) has a name like {some!r}: {lora.name} was {made}; "
        "wire in the base it was trained on"
    )


def delta_shape(parts: Mapping[str, Tensor]) -> tuple[int, int | None] | None:
    """(out, in * kernel) of what a layer's parts make, by their shapes alone; None where any shape would do.

    The second is None where only the output's side is known (OFT).
    """
    what = "LoRA" if ".lora_up.weight" in parts else lowrank.kind(parts)
    if what == "LoRA":
        down, mid = parts[".lora_down.weight"], parts.get(".lora_mid.weight")
        inner = down[0].numel() if mid is None else down.flatten(1).shape[1] * prod(mid.shape[2:])
        return parts[".lora_up.weight"].shape[0], inner
    if ".hada_w1_a" in parts:
        shapes = set()
        for n in "12":
            a, b, core = parts[f".hada_w{n}_a"], parts[f".hada_w{n}_b"], parts.get(f".hada_t{n}")
            shapes.add((a.shape[0], b.shape[1]) if core is None else (a.shape[1], b.shape[1] * prod(core.shape[2:])))
        return shapes.pop() if len(shapes) == 1 else (0, 0)
    if any(part.startswith(".lokr_") for part in parts):
        return _kronecker_shape(parts)
    if ".oft_blocks" in parts and parts[".oft_blocks"].ndim in (3, 4):  # OFT, and BOFT with one more axis in front
        *_, count, size, other = parts[".oft_blocks"].shape
        return (count * size, None) if size == other else (0, None)
    if ".a1.weight" in parts:
        return _glora_shape(parts)
    return None


def _glora_shape(parts: Mapping[str, Tensor]) -> tuple[int, int]:
    """GLoRA: W A1 A2 + B1 B2 with A1 [in, r], A2 [r, in], B1 [out, r], B2 [r, in, *kernel]; in old files W A2 A1 + B2
    B1."""
    a1, a2, b1, b2 = (parts[f".{name}.weight"] for name in ("a1", "a2", "b1", "b2"))
    if b2.shape[0] == b1.shape[1] == a1.shape[1] == a2.shape[0] and b2.shape[1] == a1.shape[0] == a2.shape[1]:
        return b1.shape[0], b2[0].numel()
    if b2.shape[1] == b1.shape[0] == a1.shape[0] == a2.shape[1] and b1.shape[1] == a2.shape[0] == a1.shape[1]:
        return b2.shape[0], b1[0].numel()
    return 0, 0


def _kronecker_shape(parts: Mapping[str, Tensor]) -> tuple[int, int]:
    sides = []
    for n in "12":
        if f".lokr_w{n}" in parts:
            whole = parts[f".lokr_w{n}"]
            sides.append((whole.shape[0], whole[0].numel()))
            continue
        a, b, core = parts[f".lokr_w{n}_a"], parts[f".lokr_w{n}_b"], parts.get(f".lokr_t{n}")
        sides.append((a.shape[0], b[0].numel()) if core is None else (a.shape[1], b.shape[1] * prod(core.shape[2:])))
    return sides[0][0] * sides[1][0], sides[0][1] * sides[1][1]


def _check_shape(layer: str, key: Any, parts: Mapping[str, Tensor], shapes: Mapping, lora: NamedLora, model) -> None:
    weight = shapes[key if isinstance(key, str) else key[0]]
    out, inner = weight[0] if weight else 1, prod(weight[1:])
    if not isinstance(key, str):
        out = key[1][2] if key[1][0] == 0 else out
    for part in (".diff", ".set_weight", ".w_norm"):
        if part in parts and tuple(parts[part].shape) != weight:
            raise _misfit(layer, tuple(parts[part].shape), weight, lora, model)
    bias = shapes.get(f"{key[:-7]}.bias") if isinstance(key, str) else None
    for part in (".diff_b", ".b_norm"):
        if part in parts and bias is not None and tuple(parts[part].shape) != bias:
            raise _misfit(layer, tuple(parts[part].shape), bias, lora, model)
    if ".reshape_weight" in parts:  # a LoRA that means to change the layer's shape
        return
    scale = parts.get(".dora_scale")
    ones = (1,) * (len(weight) - 2)
    if scale is not None and tuple(scale.shape) not in ((out, 1, *ones), (1, *weight[1:2], *ones)):
        raise _misfit(layer, tuple(scale.shape), weight, lora, model)
    for n in ("1", "2"):  # a LoHa's halves: core multiplies each pair without a look
        a, b = parts.get(f".hada_w{n}_a"), parts.get(f".hada_w{n}_b")
        if (
            a is not None
            and b is not None
            and (a.ndim != 2 or b.ndim != 2 or (f".hada_t{n}" not in parts and a.shape[1] != b.shape[0]))
        ):
            raise _misfit(layer, (*a.shape, *b.shape), weight, lora, model)
    made = delta_shape(parts)
    if made is not None and (made[0] != out or made[1] not in (None, inner)):
        raise _misfit(layer, made, (out, inner), lora, model)


def _misfit(layer: str, theirs: tuple, ours: tuple, lora: NamedLora, model) -> InputError:
    base, made = base_of_model(model.model), base_of_file(lora)
    what = f"{made}, and this is {base}" if made and made != base else "another model"
    return InputError(
        f"{layer} is {ours} in the model and {theirs} in {lora.name}: it was made for {what}; "
        "wire in the base it was trained on"
    )


def describe_unmatched(found: Matched, lora: NamedLora, model) -> list[str]:
    """What found no place, by name, and why."""
    lines = []
    if found.no_clip:
        lines.append(
            f"{len(found.no_clip)} layers are for the text encoder; no clip is wired in, so they are left out."
        )
    if found.unmatched:
        lines.append(f"{len(found.unmatched)} layers of the file matched nothing here: {listed(found.unmatched, 8)}.")
        made, ours = base_of_file(lora), base_of_model(model.model)
        if made and made != ours:
            lines.append(f"The file was made for {made} and this model is {ours}: most likely it does not belong here.")
    return lines
