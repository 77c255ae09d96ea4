"""With which frames, size or batch a step on a clip would fit into the memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from ....training.images import TrainingImage

SCALES = (0.75, 0.5, 0.25)  # of a side
PATCH = 2  # latent cells of a side that networks put together


def what_fits(item: TrainingImage, latent: Tensor, batch_size: int, fits: Callable[[Tensor, int], bool]) -> str:
    """What to lower, in words: of frames, size and batch each value that fits where the others stay.

    item, latent: the largest clip, [1, C, T, h, w]. fits: whether a step on latents of a shape fits, and on how many.
    """
    if item.frames == 1:
        return ""
    found = list[str]()
    frames = next((count for count, shape in _fewer_frames(item, latent) if fits(shape, batch_size)), None)
    if frames is not None:
        found.append(f"frames {frames}")
    size = next((size for size, shape in _smaller(item, latent) if fits(shape, batch_size)), None)
    if size is not None:
        found.append(f"a size of {size[1]}x{size[0]} px")
    if batch_size > 1 and fits(latent, 1):
        found.append("batch_size 1")
    height, width = item.size
    given = f"the largest clip has {item.frames} frames of {width}x{height} px at batch_size {batch_size}"
    if found:
        return f"{given}, and any one of these fits: {', '.join(found)}"
    return f"{given}, and none of fewer frames, a quarter of the size and batch_size 1 fits alone: lower several"


def _fewer_frames(item: TrainingImage, latent: Tensor) -> Iterator[tuple[int, Tensor]]:
    """(frames, a latent of them), each about half as many as the one before, down to one frame."""
    whole = latent.shape[2]
    group = (item.frames - 1) // max(1, whole - 1)
    count = whole // 2
    while count >= 1:
        yield 1 + (count - 1) * group, torch.empty(*latent.shape[:2], count, *latent.shape[3:])
        count //= 2


def _smaller(item: TrainingImage, latent: Tensor) -> Iterator[tuple[tuple[int, int], Tensor]]:
    """((height, width) in px, a latent of it) for each of `SCALES`."""
    (height, width), (rows, columns) = item.size, latent.shape[-2:]
    for scale in SCALES:
        own = [max(PATCH, int(side * scale) // PATCH * PATCH) for side in (rows, columns)]
        size = own[0] * height // rows, own[1] * width // columns
        yield size, torch.empty(*latent.shape[:3], *own)
