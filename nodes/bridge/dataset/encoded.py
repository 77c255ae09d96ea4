"""A training set whose pictures and prompts are encoded: all that a training needs besides the models."""

from __future__ import annotations

from collections.abc import Callable, Mapping
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
    fingerprint: a hash of all pictures and captions, and of the LoRAs below.
    models_digest: a hash of the models as they are on the wire.
    digest_in_0_1: the hash that version 0.1 made of them; "" where it did not read all that the wires carry.
    unread: what the wires carry that cannot be compared; with any of it, no other run has the same `models_digest`.
    run_fields: fields of the run's record that describe models and pictures; `images` 0 where there are no pictures.
    prompts: prompt -> (context [1, tokens, width], further fields); empty where the text encoder runs in each step.
    start: the LoRA that the training starts from, in ComfyUI's layer names.
    training_adapter: the LoRA that is part of the base in the steps alone, as its file has it.
    """

    pictures: Pictures
    fingerprint: str
    models_digest: str
    run_fields: Mapping[str, Any]
    prompts: Mapping[str, tuple[Tensor, dict[str, Any]]] = field(default_factory=dict)
    start: Mapping[str, Tensor] | None = None
    digest_in_0_1: str = ""
    unread: tuple[str, ...] = ()
    training_adapter: Mapping[str, Tensor] | None = None

    def new_run(
        self,
        technique: str,
        settings: dict[str, Any],
        defaults: Mapping[str, Any],
        saved: Callable[[str], Run | None] = lambda run_id: None,
    ) -> Run:
        """The record of a run on this set, before its first step. defaults: see `run_id`.

        saved: the record that was saved under an id, or None. A run that version 0.1 saved keeps its id, if its base
        has the same checksum.
        """
        name, in_0_1 = (
            run_id(technique, settings, self.fingerprint, models, defaults) if models else ""
            for models in (self.models_digest, self.digest_in_0_1)
        )
        if in_0_1 and saved(name) is None:
            earlier = saved(in_0_1)
            if earlier is not None and earlier.info.base_hash == self.run_fields["base_hash"]:
                name = in_0_1
        images = self.pictures.count_pictures(self.pictures.training_indices)
        return Run(RunInfo(name, technique, settings, **{"images": images, **self.run_fields}))


def describe_models(model, clip, images: ImageSet) -> dict[str, Any]:
    """The fields of a run's record that describe its models and pictures."""
    return {
        "base": identity.base_name(model),
        "base_hash": identity.base_checksum(model),
        "architecture": architecture(model.model),
        "clip_skip": str(clip.layer_idx or ""),
        "trigger": images.trigger_prompt,
        "tags": tag_frequency(caption for item in images.items for caption in item.captions),
        "resolution": common_resolution(images),
    }


def identify_models(model, clip, vae) -> dict[str, Any]:
    """The fields of `EncodedDataset` that tell the three models, with all that other nodes changed on them, apart."""
    reading = identity.of_models(model, clip, vae)
    in_0_1 = identity.of_models_in_0_1(model, clip, vae, reading)
    return {
        "models_digest": cache.digest(reading.text),
        "digest_in_0_1": cache.digest(in_0_1) if in_0_1 else "",
        "unread": reading.unread,
    }
