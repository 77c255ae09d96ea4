"""Which weight of a model or a text encoder a layer of a LoRA file belongs to, in any program's spelling."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import comfy.lora
import torch
from torch import Tensor, nn

from ...training.layer_names.dialects import Place, readings, text_readings
from ...training.layer_names.spelling import COMFY_PREFIX, TEXT_PREFIX, candidates
from ..bridge.models import file_names, layer_places, recorded_family
from ..bridge.training_model.text_encoder import file_names as text_file_names


@dataclass(frozen=True)
class Keys:
    """The weights of a model or a text encoder by the names that files have for them.

    shapes: {key: shape} of the state dict. places: the layers of a diffusion model by `readings`. exact: {a file's
    layer name: key} by ComfyUI's tables, which count after `places`. texts: the text encoders' keys by `text_readings`.
    """

    shapes: Mapping[str, tuple[int, ...]]
    exact: Mapping[str, Any]
    places: Mapping[str, Place]
    texts: Mapping[str, str]

    def find(self, layer: str) -> tuple[Any, str] | None:
        """(key, part) of the weight that a file's layer belongs to, see `Patch`; None where it belongs to none."""
        for name in readings(layer) if self.places else ():
            if name in self.places:
                return self._weight(self.places[name])
        for name in candidates(layer):
            if name in self.exact:
                return self.exact[name], ""
        return next(((self.texts[name], "") for name in text_readings(layer) if name in self.texts), None)

    def _weight(self, place: Place) -> tuple[Any, str]:
        name = COMFY_PREFIX + place.layer
        key = f"{name}.weight" if f"{name}.weight" in self.shapes else name
        if place.rows is not None:
            return (key, (0, *place.rows)), COMFY_PREFIX + place.part
        return ((key, None, swapped_halves), "") if place.swapped else (key, "")


def swapped_halves(change: Tensor) -> Tensor:
    """A change of a modulation's scale and shift as one of shift and scale, along the first axis."""
    return torch.cat(change.chunk(2, dim=0)[::-1], dim=0)


_known: weakref.WeakKeyDictionary[nn.Module, Keys] = weakref.WeakKeyDictionary()


def names_in_files(base: Any, text_encoder: Any = None) -> dict[str, Any]:
    """What other programs call the layers of a MODEL's `BaseModel` and of a CLIP's model: {layer: {format: name}}."""
    names = {COMFY_PREFIX + layer: forms for layer, forms in file_names(base).items()}
    if text_encoder is not None:
        names |= {TEXT_PREFIX + layer: forms for layer, forms in text_file_names(text_encoder).items()}
    return names


def keys_of(module: Any, is_clip: bool) -> Keys:
    """The weights of a base model or a text encoder. Cached until the module is freed."""
    if module not in _known:
        # Quantised kinds keep packed numbers in their state dict, of another shape than the weight they stand for.
        logical = {name: tuple(tensor.shape) for name, tensor in (*module.named_parameters(), *module.named_buffers())}
        shapes = {key: logical.get(key, tuple(tensor.shape)) for key, tensor in module.state_dict().items()}
        if is_clip:
            exact = comfy.lora.model_lora_keys_clip(module, {})
            _known[module] = Keys(shapes, exact, {}, _texts(shapes))
        else:
            rows = {
                key.removeprefix(COMFY_PREFIX).removesuffix(".weight"): shape[0] if shape else 1
                for key, shape in shapes.items()
                if key.startswith(COMFY_PREFIX)
            }
            exact = comfy.lora.model_lora_keys_unet(module, {})
            if recorded_family(module.diffusion_model):  # ComfyUI's rows of some fused layers are another model's
                exact = {name: key for name, key in exact.items() if isinstance(key, str)}
            _known[module] = Keys(shapes, exact, layer_places(module, rows), {})
    return _known[module]


def _texts(keys: Iterable[str]) -> dict[str, str]:
    """{name as `text_readings` gives it: key} of the text encoders, which diffusers and kohya number in this order."""
    encoders: dict[str, list[str]] = {}
    for key in keys:
        encoder, found, _ = key.partition(".transformer.")
        if found and key.endswith(".weight"):
            encoders.setdefault(encoder, []).append(key)
    out: dict[str, str] = {}
    for number, encoder in enumerate(encoders, 1):
        for key in encoders[encoder]:
            layer = key.partition(".transformer.")[2].removesuffix(".weight")
            for name in text_readings(f"text_encoder{f'_{number}' if number > 1 else ''}.{layer}"):
                out.setdefault(name, key)
    return out
