"""Flux and SD3: transformers in which the tokens of text and picture attend to each other in one attention.

Text and picture have projections of their own in a block of two streams (Esser et al. 2024, arXiv 2403.03206, figure
2b); there both meet, as in a U-Net's cross-attention. Flux adds blocks of one stream, whose two matrices hold attention
and feed-forward in one: q, k, v and the first layer in `linear1`, the output projection and the second in `linear2`.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

_FLUX_JOINT = r"double_blocks\.\d+\.(img|txt)_attn\.(qkv|proj)"
_FLUX_SINGLE = r"single_blocks\.\d+\.linear[12]"
_FLUX_MLP = r"double_blocks\.\d+\.(img|txt)_mlp\.(0|2|gate_proj|up_proj|down_proj)"
FLUX_PATTERNS = {
    "cross-attention": _FLUX_JOINT,
    "attention": f"{_FLUX_JOINT}|{_FLUX_SINGLE}",
    "attention + feed-forward": f"{_FLUX_JOINT}|{_FLUX_SINGLE}|{_FLUX_MLP}",
}
_SD3_JOINT = r"joint_blocks\.\d+\.(context|x)_block\.attn\.(qkv|proj)"
_SD3_SELF = r"joint_blocks\.\d+\.x_block\.attn2\.(qkv|proj)"  # SD3.5 medium's picture tokens among themselves
_SD3_MLP = r"joint_blocks\.\d+\.(context|x)_block\.mlp\.fc[12]"
SD3_PATTERNS = {
    "cross-attention": _SD3_JOINT,
    "attention": f"{_SD3_JOINT}|{_SD3_SELF}",
    "attention + feed-forward": f"{_SD3_JOINT}|{_SD3_SELF}|{_SD3_MLP}",
}
# Flux dev was distilled to take the strength of guidance as an input. At 1 it stands for no guidance, and only there
# is the plain velocity of the training pictures what it should answer.
FLUX_CONDS = {"guidance": 1.0}


def is_flux(diffusion_model: nn.Module) -> bool:
    from comfy.ldm.flux.model import Flux

    return type(diffusion_model) is Flux


def is_sd3(diffusion_model: nn.Module) -> bool:
    from comfy.ldm.modules.diffusionmodules.mmdit import MMDiT

    return isinstance(diffusion_model, MMDiT)


def flux_blocks(diffusion_model: nn.Module) -> Iterator[nn.Module]:
    """What gradient checkpointing computes anew."""
    yield from diffusion_model.double_blocks
    yield from diffusion_model.single_blocks


def sd3_blocks(diffusion_model: nn.Module) -> Iterator[nn.Module]:
    """What gradient checkpointing computes anew."""
    yield from diffusion_model.joint_blocks


def flux_overwritten(diffusion_model: nn.Module) -> Iterator[nn.Module]:
    """The layers whose input is overwritten after they have read it: each block adds to its streams in place."""
    for block in diffusion_model.double_blocks:
        yield from (block.img_norm1, block.img_norm2, block.txt_norm1, block.txt_norm2)
    for block in diffusion_model.single_blocks:
        yield block.pre_norm


def flux_names(base) -> dict[str, dict]:
    """{layer: {"kohya": ..., "diffusers": ...}}; see `_names`."""
    import comfy.model_base
    import comfy.utils

    known = comfy.utils.flux_to_diffusers(base.model_config.unet_config)
    if isinstance(base, comfy.model_base.Flux2):
        # Its one-stream blocks keep their matrices whole in diffusers too.
        known = {name: layer for name, layer in known.items() if "single_transformer_blocks" not in name or isinstance(layer, str)}
    return _names(base, known)


def sd3_names(base) -> dict[str, dict]:
    """{layer: {"kohya": ..., "diffusers": ...}}; see `_names`."""
    import comfy.utils

    return _names(base, comfy.utils.mmdit_to_diffusers(base.model_config.unet_config))


def _names(base, diffusers: dict) -> dict[str, dict]:
    """kohya writes the checkpoint's own names with underscores. diffusers has a layer for q, k and v each, so a fused
    layer is a list of (name, first row, rows) there. `diffusers`: its name -> ComfyUI's, or (ComfyUI's, (0, first, rows)).
    """
    model = base.diffusion_model
    names = {
        name: {"kohya": "lora_unet_" + name.replace(".", "_")}
        for name, layer in model.named_modules()
        if isinstance(layer, nn.Linear)
    }
    rows_of = {name: layer.out_features for name, layer in model.named_modules() if isinstance(layer, nn.Linear)}
    parts: dict[str, list[tuple[str, int, int]]] = {}
    for theirs, ours in diffusers.items():
        if not theirs.endswith(".weight"):
            continue
        theirs = "transformer." + theirs.removesuffix(".weight")
        if isinstance(ours, str):
            forms = names.get(ours.removesuffix(".weight"))
            if forms is not None:
                forms.setdefault("diffusers", theirs)
        elif len(ours) == 2:
            parts.setdefault(ours[0].removesuffix(".weight"), []).append((theirs, ours[1][1], ours[1][2]))
    for layer, pieces in parts.items():
        pieces = sorted(pieces, key=lambda piece: piece[1])
        # Only where the pieces are the whole layer: ComfyUI's table knows one width of the feed-forward.
        if layer in names and sum(rows for _, _, rows in pieces) == rows_of[layer]:
            names[layer]["diffusers"] = pieces
    return names


def architecture(base) -> str:
    """The base's name in Stability's model specification, or nothing where it has none."""
    import comfy.supported_models as known

    return {known.Flux: "flux-1-dev", known.FluxSchnell: "flux-1-schnell"}.get(type(base.model_config), "")
