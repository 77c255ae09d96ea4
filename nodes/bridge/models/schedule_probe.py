"""A model without its weights: enough to ask for noise levels before anything is loaded.

The page shows a schedule while its user still wires the graph. What it needs to know of the model - epsilon, v or flow,
the shift, the range of sigma - ComfyUI reads off a checkpoint's header, and its ModelSampling nodes change. Both are
core's own code here, run on a model that is created without a network.
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
from safetensors import safe_open

# node type -> (its file widget, ComfyUI's folder of such files)
LOADERS = {
    "CheckpointLoaderSimple": ("ckpt_name", "checkpoints"),
    "CheckpointLoader": ("ckpt_name", "checkpoints"),
    "unCLIPCheckpointLoader": ("ckpt_name", "checkpoints"),
    "ImageOnlyCheckpointLoader": ("ckpt_name", "checkpoints"),
    "UNETLoader": ("unet_name", "diffusion_models"),
}
# Core's nodes that change a model's noise levels and look at nothing but their widgets.
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
SMALL = 4096  # tensors up to this many values are read: detection looks into a few


def model_of(chain: Sequence[Mapping]) -> tuple[comfy.model_patcher.ModelPatcher, str | None]:
    """(the model, its file's name) of the nodes that lead to it, the loader first: [{"type", "values": {widget:
    value}}].

    Without a loader that is known, or a file that can be read: Stable Diffusion's epsilon model, and None.
    """
    name = None
    model = default_model()
    for step in chain:
        kind, values = step.get("type"), step.get("values", {})
        if kind in LOADERS:
            widget, folder = LOADERS[kind]
            found = from_file(folder, str(values.get(widget)))
            if found is not None:
                model, name = found, str(values[widget])
        elif kind in SAMPLING_NODES and kind in nodes.NODE_CLASS_MAPPINGS:
            patch = nodes.NODE_CLASS_MAPPINGS[kind]
            wanted = patch.INPUT_TYPES()["required"]
            (model,) = getattr(patch(), patch.FUNCTION)(
                model=model, **{k: v for k, v in values.items() if k in wanted and k != "model"}
            )
    return model, name


@functools.cache
def default_model() -> comfy.model_patcher.ModelPatcher:
    config = comfy.supported_models.SD15({"in_channels": 4})
    return _wrap(config, {}, "")


def from_file(folder: str, name: str) -> comfy.model_patcher.ModelPatcher | None:
    """The model of a safetensors file in one of ComfyUI's folders, or None where it cannot be told."""
    path = folder_paths.get_full_path(folder, name)
    if path is None or Path(path).suffix not in (".safetensors", ".sft"):
        return None
    return _detect(path, Path(path).stat().st_mtime_ns)


@functools.lru_cache(maxsize=32)
def _detect(path: str, _modified: int) -> comfy.model_patcher.ModelPatcher | None:
    try:
        tensors, metadata = header_of(path)
        prefix = comfy.model_detection.unet_prefix_from_state_dict(tensors)
        config = comfy.model_detection.model_config_from_unet(tensors, prefix, metadata=metadata)
        if config is None:
            config, prefix = comfy.model_detection.model_config_from_unet(tensors, "", metadata=metadata), ""
        if config is None:
            config = comfy.model_detection.model_config_from_diffusers_unet(tensors)
        return None if config is None else _wrap(config, tensors, prefix)
    except Exception:  # a file of any kind may lie there; detection is not made for all of them
        return None


def header_of(path: str) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """The names and shapes of a safetensors file: large tensors without their values."""
    tensors = {}
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata() or {}
        for name in file.keys():  # noqa: SIM118 - the file has keys() and cannot be iterated
            part = file.get_slice(name)
            shape = part.get_shape()
            small = torch.Size(shape).numel() <= SMALL
            tensors[name] = file.get_tensor(name) if small else torch.empty(shape, device="meta")
    return tensors, metadata


def _wrap(config, tensors, prefix: str) -> comfy.model_patcher.ModelPatcher:
    config.unet_config["disable_unet_model_creation"] = True
    cpu = torch.device("cpu")
    return comfy.model_patcher.ModelPatcher(config.get_model(tensors, prefix, device=cpu), cpu, cpu)
