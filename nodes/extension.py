"""The list of nodes that ComfyUI asks for."""

from __future__ import annotations

from comfy_api.latest import ComfyExtension, io

from .img2img.node import PartialDenoise
from .inpaint.node import LatentMaskBlend, RestoreUnmasked


class BespokeExtension(ComfyExtension):
    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return [PartialDenoise, LatentMaskBlend, RestoreUnmasked]
