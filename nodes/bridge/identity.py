"""What distinguishes one set of models from another, for runs that are resumed and for caches."""

from __future__ import annotations

from pathlib import Path

from .wire import text_0_1
from .wire.reading import NOTHING, Reading, read_clip, read_model, read_vae
from .wire.weights import base_tensors, checksum, loaded_checksum

__all__ = [
    "base_checksum",
    "base_name",
    "base_tensors",
    "checksum",
    "of_clip",
    "of_models",
    "of_models_in_0_1",
    "of_patcher",
    "of_vae",
]


def base_name(model) -> str:
    """The name of the file that the MODEL was loaded from, or the model's class where ComfyUI does not know it."""
    path = base_path(model)
    return type(model.model).__name__ if path is None else path.name


def base_path(model) -> Path | None:
    """The file that the MODEL was loaded from, or None where ComfyUI does not know it."""
    loader = getattr(model, "cached_patcher_init", None)
    if loader and loader[1]:
        path = loader[1][0]
        path = path[0] if isinstance(path, (list, tuple)) and path else path
        if isinstance(path, (str, Path)):
            return Path(path)
    return None


def base_checksum(model) -> str:
    """`checksum` of the MODEL's base, computed once while it is loaded."""
    return loaded_checksum(model)


def of_patcher(patcher) -> Reading:
    """A MODEL: every bit of its weights, and what nodes changed on the wire."""
    return read_model(patcher)


def of_clip(clip) -> Reading:
    """A text encoder with its clip skip, tokenizer options, hooks and schedules."""
    return read_clip(clip)


def of_vae(vae) -> Reading:
    """A VAE."""
    return read_vae(vae)


def of_models(model, clip, vae) -> Reading:
    """The models of a run. clip, vae: None where there is none."""
    parts = (
        Reading(base_name(model)),
        of_patcher(model),
        NOTHING if clip is None else of_clip(clip),
        of_vae(vae),
    )
    return sum(parts[1:], parts[0])


def of_models_in_0_1(model, clip, vae, reading: Reading) -> str:
    """The text by which version 0.1 knew these models, or "" where it did not read all that they carry.

    reading: `of_models` of them.
    """
    if not reading.as_in_0_1 or clip is None:
        return ""
    return "|".join((base_name(model), *text_0_1.texts(model, clip, vae)))
