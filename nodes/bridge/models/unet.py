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
# kohya's `conv_dim`: all of the residual blocks, of the down- and upsamplers, and the first and last layer of each
# transformer (sd-scripts' `LoRANetwork.UNET_TARGET_REPLACE_MODULE` and `..._CONV2D_3X3`).
CONVOLUTIONS = r".*\.(in_layers\.2|emb_layers\.1|out_layers\.3|skip_connection|op|conv|proj_in|proj_out)"
# B-LoRA (Frenkel et al. 2024, arXiv 2403.14572): SDXL's up_blocks.0.attentions.0 (the paper's W4) learns the content
# and up_blocks.0.attentions.1 (W5) the style; both are trained together and used apart. InstantStyle (Wang et al. 2024,
# arXiv 2404.02733) has the same block of style. B-LoRA's code adapts their attention layers. ComfyUI calls the two
# output_blocks.0.1 and output_blocks.1.1.
_CONTENT, _STYLE = r"output_blocks\.0\.1", r"output_blocks\.1\.1"
_ATTENTION = r"\.transformer_blocks\.\d+\.attn[12]\.(to_q|to_k|to_v|to_out\.0)"
BLOCK_PATTERNS = {
    "style blocks": _STYLE + _ATTENTION,
    "content blocks": _CONTENT + _ATTENTION,
    "style + content blocks": f"({_CONTENT}|{_STYLE}){_ATTENTION}",
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


def block_patterns(diffusion_model: nn.Module) -> dict[str, str]:
    """`BLOCK_PATTERNS` for a network with SDXL's blocks; {} for others, of which nothing is published.

    SDXL has nine blocks on the way up, transformers in the first six and in the middle, and none at full size. Its
    refiner and SD1.5 have twelve, SSD-1B has no transformer in the middle.
    """
    from comfy.ldm.modules.attention import SpatialTransformer

    names = {name for name, module in diffusion_model.named_modules() if isinstance(module, SpatialTransformer)}
    up = [f"output_blocks.{number}.1" for number in range(6)]
    down = [f"input_blocks.{number}.1" for number in (4, 5, 7, 8)]
    return BLOCK_PATTERNS if names == {*up, *down, "middle_block.1"} else {}


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
    convolutions=CONVOLUTIONS,
    block_patterns=block_patterns,
)
