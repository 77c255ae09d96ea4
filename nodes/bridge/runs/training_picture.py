"""A picture of the training set, kept in the run's folder: the page shows it beside the samples."""

from __future__ import annotations

import contextlib
from pathlib import Path

from PIL import Image
from torch import Tensor

from ..files.writing import replacing

PICTURE = "picture.png"
LONGEST_SIDE = 768  # px


def keep_training_picture(folder: Path, pixels: Tensor | None) -> None:
    """Write the picture into the run's folder, made smaller to `LONGEST_SIDE`; one that is there already stays.

    pixels: uint8 [H, W, 3], or None; [H, W, 0] in a job, which holds no pictures. A picture that cannot be written is
    left out: no result depends on it.
    """
    path = folder / PICTURE
    if pixels is None or pixels.shape[-1] != 3 or path.is_file():
        return
    picture = Image.fromarray(pixels.contiguous().numpy())
    picture.thumbnail((LONGEST_SIDE, LONGEST_SIDE))
    with contextlib.suppress(OSError), replacing(path) as temporary:
        picture.save(temporary, "PNG")
