"""A training set whose pictures and prompts are encoded: all that a training needs besides the models."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from ....training.images import ImageSet, common_resolution
from ....training.record import Run, RunInfo, tag_frequency
from ....training.run_identity import run_id
from .. import identity
from ..models import architecture
from . import cache
from .pictures import Pictures


@dataclass(frozen=True)
class EncodedDataset:
    """A technique's `encode_dataset` makes it; a job folder stores it, for a training on another machine.

    pictures: latents, masks and captions, divided into training, held-out and prior pictures.
    fingerprint: a hash of all pictures and captions, and of the LoRA that the training starts from.
    models_digest: a hash of the models as they are on the wire.
    run_fields: fields of the run's record that describe models and pictures.
    prompts: prompt -> (context [1, tokens, width], further fields); empty where the text encoder runs in each step.
    start: the LoRA that the training starts from, in ComfyUI's layer names.
    """

    pictures: Pictures
    fingerprint: str
    models_digest: str
    run_fields: Mapping[str, Any]
    prompts: Mapping[str, tuple[Tensor, dict[str, Any]]] = field(default_factory=dict)
    start: Mapping[str, Tensor] | None = None

    def new_run(self, technique: str, settings: dict[str, Any], defaults: Mapping[str, Any]) -> Run:
        """The record of a run on this set, before its first step. defaults: see `run_id`."""
        name = run_id(technique, settings, self.fingerprint, self.models_digest, defaults)
        images = self.pictures.count_pictures(self.pictures.training_indices)
        return Run(RunInfo(name, technique, settings, images=images, **self.run_fields))


def describe_models(model, clip, images: ImageSet) -> dict[str, Any]:
    """The fields of a run's record that describe its models and pictures."""
    return {
        "base": identity.base_name(model),
        "base_hash": identity.checksum(model),
        "architecture": architecture(model.model),
        "clip_skip": str(clip.layer_idx or ""),
        "trigger": images.trigger_prompt,
        "tags": tag_frequency(item.caption for item in images.items),
        "resolution": common_resolution(images),
    }


def digest_of_models(model, clip, vae) -> str:
    """A short hash of the three models with all that other nodes changed on them; see `identity.of_models`."""
    return cache.digest(identity.of_models(model, clip, vae))
