"""Which base a LoRA was made for and which one a model is, in the same words."""

from __future__ import annotations

from ...training.layer_names.parts import DOWN, HADA_W1_B, layers_of
from ..bridge.models import architecture
from .named_lora import NamedLora

_BY_ARCHITECTURE = {
    "stable-diffusion-v1": "SD1.5",
    "stable-diffusion-v2-512": "SD2",
    "stable-diffusion-v2-768-v": "SD2",
    "stable-diffusion-xl-v1-base": "SDXL",
    "Qwen-Image": "Qwen-Image",
    "wan2.1": "Wan",
    "chroma": "Chroma",
    "lumina-2": "Lumina 2",
}
# Words of a file's metadata, the first one that is in it counts.
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
# The width of the text that a U-Net's cross-attention reads.
_BY_CONTEXT = {768: "SD1.5", 1024: "SD2", 2048: "SDXL", 1280: "the SDXL refiner"}
_BY_LAYER = (("double_blocks", "Flux"), ("single_transformer_blocks", "Flux"), ("joint_blocks", "SD3"))


def base_of_file(lora: NamedLora) -> str:
    """The base a LoRA was made for, by its metadata, else by its layers' names and shapes; "" if unknown."""
    meta = f"{lora.meta.get('ss_base_model_version', '')} {lora.meta.get('modelspec.architecture', '')}".lower()
    for word, base in _BY_METADATA:
        if word in meta:
            return base
    for layer, parts in layers_of(lora).items():
        name = layer.replace(".", "_")
        down = parts.get(DOWN, parts.get(HADA_W1_B))
        if name.endswith(("attn2_to_k", "attn2_to_v")) and down is not None:
            return _BY_CONTEXT.get(down.flatten(1).shape[1], "")
        for word, base in _BY_LAYER:
            if word in layer:
                return base
    return ""


def base_of_model(base) -> str:
    """A base model's own word; its configuration's class name where none is known."""
    return _BY_ARCHITECTURE.get(architecture(base), "") or type(base.model_config).__name__
