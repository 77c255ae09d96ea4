"""The U-Net of SD1.5, SD2 and SDXL: `attn1` is self-attention, `attn2` the cross-attention to the prompt."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from ....training.layer_names.aliases import Alias
from ....training.layer_names.spelling import unet_forms
from .family import Family

_BLOCK = r".*transformer_blocks\.\d+\."
PATTERNS = {
    "cross-attention": _BLOCK + r"attn2\.(to_q|to_k|to_v|to_out\.0)",
    "attention": _BLOCK + r"attn[12]\.(to_q|to_k|to_v|to_out\.0)",
    "attention + feed-forward": _BLOCK + r"(attn[12]\.(to_q|to_k|to_v|to_out\.0)|ff\.net\.(0\.proj|2))",
}
CROSS_ATTENTION_LAYERS = "`attn2` (`to_q`, `to_k`, `to_v`, `to_out.0`) of every transformer block"


def fits(diffusion_model: nn.Module) -> bool:
    from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel

    return isinstance(diffusion_model, UNetModel)


def blocks(diffusion_model: nn.Module) -> Iterator[nn.Module]:
    """The blocks for gradient checkpointing: the residual blocks and the transformers."""
    from comfy.ldm.modules.attention import SpatialTransformer
    from comfy.ldm.modules.diffusionmodules.openaimodel import ResBlock

    return (module for module in diffusion_model.modules() if isinstance(module, (ResBlock, SpatialTransformer)))


def file_names(base) -> dict[str, dict[str, str]]:
    """{layer name: {"kohya": ..., "diffusers": ...}}: the names of the layers in LoRA files.

    kohya writes diffusers' names for SD1.5 and SD2 and the checkpoint's own for SDXL, both with underscores.
    """
    import comfy.model_base
    import comfy.utils

    sdxl = isinstance(base, (comfy.model_base.SDXL, comfy.model_base.SDXLRefiner))
    names = {}
    for diffusers, layer in comfy.utils.unet_to_diffusers(base.model_config.unet_config).items():
        if diffusers.endswith(".weight"):
            layer, diffusers = layer.removesuffix(".weight"), diffusers.removesuffix(".weight")
            names[layer] = unet_forms(layer, diffusers, kohya_as_diffusers=not sdxl)
    return names


def aliases(base) -> list[Alias]:
    """diffusers' names of the layers, by ComfyUI's table."""
    import comfy.utils

    return [
        Alias(own.removesuffix(".weight"), theirs.removesuffix(".weight"))
        for theirs, own in comfy.utils.unet_to_diffusers(base.model_config.unet_config).items()
        if theirs.endswith(".weight")
    ]


def architecture(base) -> str:
    """The base's name in Stability's model specification, or "" where it has none."""
    import comfy.model_base
    import comfy.supported_models as known

    v = base.model_type == comfy.model_base.ModelType.V_PREDICTION
    names = {
        known.SD15: "stable-diffusion-v1",
        known.SD20: "stable-diffusion-v2-768-v" if v else "stable-diffusion-v2-512",
        known.SDXL: "stable-diffusion-xl-v1-base",
    }
    return names.get(type(base.model_config), "")


def is_inpainting(base) -> bool:
    """Whether it is an inpainting checkpoint, with 9 input channels: latent, mask and masked picture."""
    return "masked_image" in base.concat_keys


FAMILY = Family(
    "U-Net (SD1.5, SD2, SDXL)",
    fits,
    PATTERNS,
    CROSS_ATTENTION_LAYERS,
    blocks,
    file_names,
    architecture,
    is_inpainting=is_inpainting,
    aliases=aliases,
)
