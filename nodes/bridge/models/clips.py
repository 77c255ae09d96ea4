"""Which models are trained on clips.

By the names of the classes in `comfy.model_base`: a host that lacks a class needs nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

from ....training.errors import InputError
from ....training.images import TrainingImage

# Classes that make single pictures, though their latents have frames: they have a video model's VAE.
_PICTURES_ALONE = {"QwenImage", "Krea2", "Anima", "CosmosPredict2", "JoyImage"}


def takes_clips(base) -> bool:
    """Whether a model (ComfyUI's `BaseModel`) makes films."""
    names = {kind.__name__ for kind in type(base).__mro__}
    return base.latent_format.latent_dimensions == 3 and _PICTURES_ALONE.isdisjoint(names)


def check_clips(base, items: Sequence[TrainingImage]) -> None:
    """Raise `InputError` for a clip of two frames or more where the model makes pictures."""
    clips = [item for item in items if item.frames > 1]
    if not clips or takes_clips(base):
        return
    raise InputError(
        f"the set has {len(clips)} clips, such as {clips[0].path!r} of {clips[0].frames} frames, and this model "
        f"({type(base).__name__}) makes single pictures; wire in a model that makes films (Wan, LTX-Video, "
        "HunyuanVideo, CogVideoX, Mochi), or a set of pictures: set frames of Bespoke Clip Folder to 1"
    )
