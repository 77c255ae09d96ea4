"""What a training works on once pictures and prompts are encoded: all that it takes besides the models themselves."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from ....training.images import ImageSet, common_resolution
from ....training.record import Run, run_id, tag_frequency
from .. import identity
from ..models import architecture
from . import cache
from .pictures import Pictures


@dataclass(frozen=True)
class EncodedDataset:
    """Made where the VAE and the text encoder are, trained on there or anywhere else.

    fingerprint: a hash of all pictures and captions, and of what is gone on from. models: a hash of the models as they
    are on the wire. about: fields of the run's record that tell of models and pictures. prompts: the conditioning of
    each caption, where no text encoder is needed at each step. start: a LoRA to go on from, in ComfyUI's layer names.
    """

    pictures: Pictures
    fingerprint: str
    models: str
    about: Mapping[str, Any]
    prompts: Mapping[str, tuple[Tensor, dict[str, Any]]] = field(default_factory=dict)
    start: Mapping[str, Tensor] | None = None

    def run(self, technique: str, settings: dict[str, Any]) -> Run:
        """The record of a run on this, before its first step."""
        name = run_id(technique, settings, self.fingerprint, self.models)
        return Run(name, technique, settings, images=self.pictures.count(self.pictures.trained_on), **self.about)


def about(model, clip, images: ImageSet) -> dict[str, Any]:
    """What a run's record says of its models and pictures."""
    return {
        "base": identity.base_name(model),
        "base_hash": identity.checksum(model),
        "architecture": architecture(model.model),
        "clip_skip": str(clip.layer_idx or ""),
        "trigger": images.trigger,
        "tags": tag_frequency(item.caption for item in images.items),
        "resolution": common_resolution(images),
    }


def models_digest(model, clip, vae) -> str:
    """What tells these three models from others, short enough to be carried about."""
    return cache.digest(identity.of_models(model, clip, vae))
