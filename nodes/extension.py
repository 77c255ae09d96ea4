"""The list of nodes that ComfyUI asks for."""

from __future__ import annotations

from comfy_api.latest import ComfyExtension, io

from .bridge.runs import routes as run_routes
from .bridge.runs.shutdown import end_runs_at_exit
from .compare.inspection.node import InspectRun
from .compare.node import Compare
from .compare.sweep.node import LoraSweep
from .images import routes as image_routes
from .images.clips.node import ClipFolder
from .images.combination.node import CombineImageSets
from .images.node import ImageBatch, ImageFolder
from .images.pairing.node import PairImageSets
from .images.saving.node import SaveImageSet
from .images.thumbnails import routes as thumbnail_routes
from .images.variants.node import CaptionVariantsNode
from .img2img import routes as schedule_routes
from .img2img.node import PartialDenoise, StrengthSigmas
from .inpaint.colors.node import MatchColors
from .inpaint.crop.node import CropToMask
from .inpaint.fill.node import FillMasked
from .inpaint.node import LatentMaskBlend
from .inpaint.restore_node import RestoreUnmasked
from .jobs.node import ExportLoraJob, ExportSliderJob, ExportTextualInversionJob, ExportWordAndLoraJob
from .jobs.techniques import setting_defaults
from .lora.composition.node import ComposeLoras
from .lora.extraction.node import ExtractLora
from .lora.injection import routes as lora_routes
from .lora.injection.node import InjectLora, LoadLora
from .lora.inspection.node import InspectLora
from .lora.learning_rate.node import FindLearningRate
from .lora.settings import routes as settings_routes
from .lora.slider.node import TrainSlider
from .lora.stacks.node import LoraStackFromRun
from .lora.training.node import SaveLora, TrainLora
from .textual_inversion.node import ApplyEmbedding, InspectEmbedding, SaveEmbedding, TrainTextualInversion
from .textual_inversion.rate_node import FindWordLearningRate
from .word_and_lora.node import TrainWordAndLora


class BespokeExtension(ComfyExtension):
    async def on_load(self) -> None:
        from server import PromptServer

        if getattr(PromptServer, "instance", None) is not None:
            end_runs_at_exit()
            run_routes.register(PromptServer.instance, setting_defaults())
            image_routes.register(PromptServer.instance)
            thumbnail_routes.register(PromptServer.instance)
            schedule_routes.register(PromptServer.instance)
            lora_routes.register(PromptServer.instance)
            settings_routes.register(PromptServer.instance)

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return [
            ImageFolder,
            ClipFolder,
            ImageBatch,
            CaptionVariantsNode,
            CombineImageSets,
            PairImageSets,
            SaveImageSet,
            TrainLora,
            TrainSlider,
            FindLearningRate,
            SaveLora,
            LoadLora,
            InjectLora,
            ComposeLoras,
            ExtractLora,
            InspectLora,
            LoraStackFromRun,
            PartialDenoise,
            StrengthSigmas,
            CropToMask,
            FillMasked,
            LatentMaskBlend,
            RestoreUnmasked,
            MatchColors,
            TrainTextualInversion,
            FindWordLearningRate,
            SaveEmbedding,
            ApplyEmbedding,
            InspectEmbedding,
            TrainWordAndLora,
            Compare,
            InspectRun,
            LoraSweep,
            ExportLoraJob,
            ExportSliderJob,
            ExportTextualInversionJob,
            ExportWordAndLoraJob,
        ]
