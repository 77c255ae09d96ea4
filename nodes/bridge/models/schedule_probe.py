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
    "CheckpointLoader": ("ckpt_name", "checkpoints"),
    "unCLIPCheckpointLoader": ("ckpt_name", "checkpoints"),
    "ImageOnlyCheckpointLoader": ("ckpt_name", "checkpoints"),
    "UNETLoader": ("unet_name", "diffusion_models"),
}
# Core's nodes that change a model's noise levels and depend on nothing but their widgets.
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
SMALL_TENSOR = 4096  # tensors up to this many values are read, since detection looks into a few


def probe_model(chain: Sequence[Mapping]) -> tuple[comfy.model_patcher.ModelPatcher, str | None]:
    """(the model, its file's name) of the nodes that lead to it.

    chain: [{"type": node type, "values": {widget: value}}], the loader first. Without a known loader or a readable
    file: Stable Diffusion's epsilon model, and None.
    """
    name = None
    model = default_model()
    for node in chain:
        kind, values = node.get("type"), node.get("values", {})
        if kind in LOADERS:
            widget, folder = LOADERS[kind]
            found = model_from_file(folder, str(values.get(widget)))
            if found is not None:
                model, name = found, str(values[widget])
        elif kind in SAMPLING_NODES and kind in nodes.NODE_CLASS_MAPPINGS:
            model = _apply_sampling_node(nodes.NODE_CLASS_MAPPINGS[kind], model, values)
    return model, name


def _apply_sampling_node(
    node: type, model: comfy.model_patcher.ModelPatcher, values: Mapping
) -> comfy.model_patcher.ModelPatcher:
    widgets = node.INPUT_TYPES()["required"]
    inputs = {key: value for key, value in values.items() if key in widgets and key != "model"}
    (patched,) = getattr(node(), node.FUNCTION)(model=model, **inputs)
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
