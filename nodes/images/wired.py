"""The pictures that a trainer gets: a training set, or IMAGE, which becomes one."""

from __future__ import annotations

import torch

from ...training.errors import InputError
from ...training.images import ImageSet
from ..bridge.running_prompt import source_of_list
from .batch import image_set


def training_set(images: ImageSet | torch.Tensor, name: str = "images") -> ImageSet:
    """The set of a trainer's input `name`.

    images: a set, or an IMAGE batch [B, H, W, C], which becomes the set that Image Batch makes of it with its defaults:
    no captions and no trigger. Raises `InputError` for what `image_set` refuses, and for an item of a list, since
    ComfyUI runs the trainer once for each.
    """
    if isinstance(images, ImageSet):
        return images
    if not isinstance(images, torch.Tensor):
        raise InputError(
            f"{name} is of the kind {type(images).__name__}; wire in the images of Bespoke Image Folder or Bespoke "
            "Image Batch, or an IMAGE"
        )
    source = source_of_list(name)
    if source:
        raise InputError(
            f"{name} comes as a list ({source}), and each picture of it would become a training of its own; wire the "
            "list into Bespoke Image Batch, which makes one set of it"
            + (", or take the images output of Bespoke Image Folder" if source == "BespokeImageFolder" else "")
        )
    return image_set(images, "")
