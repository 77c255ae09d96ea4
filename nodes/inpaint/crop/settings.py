"""How a mask is cropped: the request and its ranges."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ....training.errors import InputError

CONTEXT_MIN, CONTEXT_MAX, CONTEXT = 1.0, 8.0, 1.5  # the crop's side over the mask's
RESOLUTION_MAX, RESOLUTION = 4096, 1024  # px: the side of a square with the crop's area
MULTIPLE_MAX, MULTIPLE = 256, 8  # px
PADS = ("reflect", "edge", "none")
TRACKINGS = ("picture", "clip", "smooth")


@dataclass(frozen=True)
class CropSettings:
    """Raises `InputError` for a value out of range and for a resolution below `multiple`.

    context: the crop's side over the mask's. resolution: px, the side of a square with the scaled crop's area; 0 leaves
    the crop's size. multiple: px, of which both sides of the scaled crop are multiples. tracking: the
    input `follow`, one of `TRACKINGS`.
    """

    context: float = CONTEXT
    resolution: int = RESOLUTION
    multiple: int = MULTIPLE
    keep_aspect: bool = True
    pad: str = "reflect"
    each: bool = False
    tracking: str = "picture"

    def __post_init__(self):
        if not CONTEXT_MIN <= self.context <= CONTEXT_MAX:
            raise InputError(f"context is {self.context}; give {CONTEXT_MIN:g} to {CONTEXT_MAX:g}")
        if not 1 <= self.multiple <= MULTIPLE_MAX:
            raise InputError(f"multiple is {self.multiple}; give 1 to {MULTIPLE_MAX} pixels")
        if self.resolution and not self.multiple <= self.resolution <= RESOLUTION_MAX:
            raise InputError(
                f"resolution is {self.resolution}; give 0 to leave the size, or {self.multiple} (the multiple that "
                f"the model takes) to {RESOLUTION_MAX} pixels, such as the 512 or 1024 that the model was trained at"
            )
        if self.pad not in PADS:
            raise InputError(f"pad is {self.pad!r}; give one of {', '.join(PADS)}")
        if self.tracking not in TRACKINGS:
            raise InputError(f"follow is {self.tracking!r}; give one of {', '.join(TRACKINGS)}")
        if self.each and self.tracking != "picture":
            raise InputError(
                f"each is on and follow is {self.tracking!r}; follow 'picture' crops every part by itself, and a crop "
                "that follows a clip needs each off"
            )


def common_multiple(multiple: int, downscale: int) -> int:
    """The multiple in px that fits a VAE as well, which makes one latent cell of `downscale` px.

    Raises `InputError` where it is too large to be meant.
    """
    both = math.lcm(multiple, downscale)
    if both > MULTIPLE_MAX:
        raise InputError(
            f"multiple is {multiple} and the VAE's cells have {downscale} px, which have no common multiple up to "
            f"{MULTIPLE_MAX}; give a multiple of {downscale}"
        )
    return both
