"""A model without its network: enough to compute its noise levels before anything is loaded.

The page shows a schedule while the user still wires the graph. It needs the model's prediction type (epsilon, v or
flow), its shift and its range of sigma. ComfyUI detects them from a checkpoint's header, and its ModelSampling nodes
change them. Both run core's own code here, on a model that is created without a network.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path

import comfy.latent_formats
import comfy.model_base
import comfy.model_detection
import comfy.model_patcher
import comfy.supported_models
import folder_paths
import nodes
import torch

from ..files.headers import read_small_tensors

# node type -> (its file widget, ComfyUI's folder of such files)
LOADERS = {
    "CheckpointLoaderSimple": ("ckpt_name", "checkpoints"),
    "unCLIPCheckpointLoader": ("ckpt_name", "checkpoints"),
    "ImageOnlyCheckpointLoader": ("ckpt_name", "checkpoints"),
    "UNETLoader": ("unet_name", "diffusion_models"),
}
# Core's nodes that change a model's noise levels and depend on nothing but their widgets and the model before them.
SAMPLING_NODES = (
    "ModelSamplingDiscrete",
    "ModelSamplingStableCascade",
    "ModelSamplingSD3",
    "ModelSamplingAuraFlow",
    "ModelSamplingFlux",
    "ModelSamplingContinuousEDM",
    "ModelSamplingContinuousV",
    "ModelNoiseScale",
)
# Nodes that hand on the model of their input "model", or "model1", with its noise levels: core's and this pack's. Any
# node that is in no table here may do anything.
PASSING_NODES = frozenset(
    [
        "APG",
        "CFGNorm",
        "CFGOverride",
        "CFGZeroStar",
        "ContextWindowsManual",
        "DifferentialDiffusion",
        "EasyCache",
        "FreSca",
        "FreeU",
        "FreeU_V2",
        "HyperTile",
        "HypernetworkLoader",
        "LatentApplyOperationCFG",
        "LazyCache",
        "LoraLoader",
        "LoraLoaderBypass",
        "LoraLoaderBypassModelOnly",
        "LoraLoaderModelOnly",
        "LoraModelLoader",
        "Mahiro",
        "ModelComputeDtype",
        "ModelMergeAdd",
        "ModelMergeAuraflow",
        "ModelMergeBlocks",
        "ModelMergeCosmos14B",
        "ModelMergeCosmos7B",
        "ModelMergeCosmosPredict2_14B",
        "ModelMergeCosmosPredict2_2B",
        "ModelMergeFlux1",
        "ModelMergeLTXV",
        "ModelMergeMochiPreview",
        "ModelMergeQwenImage",
        "ModelMergeSD1",
        "ModelMergeSD2",
        "ModelMergeSD35_Large",
        "ModelMergeSD3_2B",
        "ModelMergeSDXL",
        "ModelMergeSimple",
        "ModelMergeSubtract",
        "ModelMergeWAN2_1",
        "NAGuidance",
        "PatchModelAddDownscale",
        "PerpNeg",
        "PerturbedAttentionGuidance",
        "RenormCFG",
        "RescaleCFG",
        "ScaleROPE",
        "SelfAttentionGuidance",
        "SkipLayerGuidanceDiT",
        "SkipLayerGuidanceDiTSimple",
        "SkipLayerGuidanceSD3",
        "TCFG",
        "TemporalScoreRescaling",
        "TomePatchModel",
        "TorchCompileModel",
        "UNetCrossAttentionMultiply",
        "UNetSelfAttentionMultiply",
        "UNetTemporalAttentionMultiply",
        "VideoLinearCFGGuidance",
        "VideoTriangleCFGGuidance",
        "WanContextWindowsManual",
        "BespokeInjectLora",
        "BespokeLatentMaskBlend",
        "BespokeTrainLora",
    ]
) | {"Epsilon Scaling"}
PASSED_INPUTS = ("model", "model1")
SMALL_TENSOR = 4096  # tensors up to this many values are read, since detection looks into a few


def probe_model(
    chain: Sequence[Mapping], is_whole: bool = True
) -> tuple[comfy.model_patcher.ModelPatcher, str | None] | None:
    """(the model, its file's name) of the nodes that lead to it. None where they do not say for certain what it is.

    chain: [{"type": node type, "input": the input that its model comes from or None, "values": {widget: value}}], the
    loader first. Widgets whose value is not known are left out. Nothing linked, an empty chain, gives Stable
    Diffusion's epsilon model and None. is_whole: whether the chain begins with a loader. Where not, the result is not
    None where all of its nodes are known, and the model in it stands for nothing.
    """
    model, name = default_model(), None
    for place, step in enumerate(chain):
        starts = is_whole and place == 0
        if starts and step.get("type") in LOADERS:
            name = _loaded_file(step)
            loaded = None if name is None else model_from_file(LOADERS[step["type"]][1], name)
        else:
            loaded = None if starts else _changed(model, step)
        if loaded is None:
            return None
        model = loaded
    return model, name


def _loaded_file(step: Mapping) -> str | None:
    """The file that a loader of core loads, or None where it is not known."""
    name = _values(step).get(LOADERS[step["type"]][0])
    return str(name) if isinstance(name, str) and _class_of(step["type"]) is not None else None


def _changed(model: comfy.model_patcher.ModelPatcher, step: Mapping) -> comfy.model_patcher.ModelPatcher | None:
    """What a node makes of a model, as far as its noise levels are concerned. None for a node that is not known."""
    kind = step.get("type")
    node = _class_of(kind)
    if node is None or step.get("input") not in PASSED_INPUTS:
        return None
    if kind in PASSING_NODES:
        return model
    return _apply_sampling_node(node, model, _values(step)) if kind in SAMPLING_NODES else None


def _class_of(kind) -> type | None:
    """The class of a node of core or of this pack. Other packs can put a class of theirs in the place of core's."""
    node = nodes.NODE_CLASS_MAPPINGS.get(kind) if isinstance(kind, str) else None
    is_foreign = str(getattr(node, "RELATIVE_PYTHON_MODULE", "nodes")).startswith("custom_nodes")
    return None if node is None or (is_foreign and not str(kind).startswith("Bespoke")) else node


def _values(step: Mapping) -> Mapping:
    values = step.get("values")
    return values if isinstance(values, Mapping) else {}


def _apply_sampling_node(
    node: type, model: comfy.model_patcher.ModelPatcher, values: Mapping
) -> comfy.model_patcher.ModelPatcher | None:
    """The model after a node of `SAMPLING_NODES`. None where a value is not known or does not go with the model."""
    widgets = set(node.INPUT_TYPES()["required"]) - {"model"}
    if not widgets <= set(values):
        return None
    try:
        (patched,) = getattr(node(), node.FUNCTION)(model=model, **{name: values[name] for name in widgets})
    except Exception:  # core's node does not check what it is given: the prompt would fail in the same way
        return None
    return patched


@functools.cache
def default_model() -> comfy.model_patcher.ModelPatcher:
    """Stable Diffusion 1.5, which predicts epsilon."""
    config = comfy.supported_models.SD15({"in_channels": 4})
    return _without_network(config, {}, "")


def model_from_file(folder: str, name: str) -> comfy.model_patcher.ModelPatcher | None:
    """The model of a safetensors file in one of ComfyUI's folders, or None where it cannot be detected."""
    path = folder_paths.get_full_path(folder, name)
    if path is None or Path(path).suffix not in (".safetensors", ".sft"):
        return None
    return _detect(path, Path(path).stat().st_mtime_ns)


@functools.lru_cache(maxsize=32)
def _detect(path: str, _modified: int) -> comfy.model_patcher.ModelPatcher | None:
    try:
        tensors, metadata = read_small_tensors(path, SMALL_TENSOR)
        prefix = comfy.model_detection.unet_prefix_from_state_dict(tensors)
        config = comfy.model_detection.model_config_from_unet(tensors, prefix, metadata=metadata)
        if config is None:
            config, prefix = comfy.model_detection.model_config_from_unet(tensors, "", metadata=metadata), ""
        if config is None:
            config = comfy.model_detection.model_config_from_diffusers_unet(tensors)
        return None if config is None else _without_network(config, tensors, prefix)
    except Exception:  # the file may be of any kind, and detection is not written for all of them
        return None


def _without_network(config, tensors, prefix: str) -> comfy.model_patcher.ModelPatcher:
    config.unet_config["disable_unet_model_creation"] = True
    cpu = torch.device("cpu")
    return comfy.model_patcher.ModelPatcher(config.get_model(tensors, prefix, device=cpu), cpu, cpu)
