"""The list of nodes that ComfyUI asks for."""

from __future__ import annotations

from comfy_api.latest import ComfyExtension, io

from .images.node import ImageBatch, ImageFolder
from .img2img.node import PartialDenoise
from .inpaint.node import LatentMaskBlend, RestoreUnmasked
from .lora.node import InjectLora, LoadLora, SaveLora, TrainLora
from .textual_inversion.node import SaveEmbedding, TrainTextualInversion


class BespokeExtension(ComfyExtension):
    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return [ImageFolder, ImageBatch, TrainLora, SaveLora, LoadLora, InjectLora, PartialDenoise, LatentMaskBlend, RestoreUnmasked, TrainTextualInversion, SaveEmbedding]
