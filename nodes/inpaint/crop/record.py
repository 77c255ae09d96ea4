"""What Restore Unmasked has to know of a crop: the value of the wire BESPOKE_CROP."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from .rectangles import Rect

SAMPLED = 32  # positions along each side at which the picture is kept to be known again


@dataclass(frozen=True)
class Piece:
    """One crop."""

    picture: int  # which one of the batch
    rect: Rect  # in the picture, and beyond it where the crop was padded
    mask: torch.Tensor  # [h, w] in 0..1: its own part of the mask, where the rectangle lies within the picture
    others: torch.Tensor | None = None  # [h, w] bool there: parts that other crops have


@dataclass(frozen=True)
class Crop:
    """Crops of one batch of pictures, all scaled to one size."""

    size: tuple[int, int]  # px: height and width of the pictures
    pictures: int
    scaled: tuple[int, int]  # px: height and width of the crops as the model gets them
    pieces: tuple[Piece, ...]
    masks: torch.Tensor  # [pieces, *scaled]: what the node gave out as the mask
    given: torch.Tensor | None  # [N, *size]: the whole mask, where its size alone cannot tell it from `masks`
    samples: torch.Tensor  # [pictures, rows, columns, C]: the pictures at some positions


def samples_of(image: torch.Tensor) -> torch.Tensor:
    """The pictures [B, H, W, C] at `SAMPLED` x `SAMPLED` positions, or all of a smaller one."""
    rows, columns = (
        torch.linspace(0, side - 1, min(side, SAMPLED)).round().to(torch.int64) for side in image.shape[1:3]
    )
    return image[:, rows][:, :, columns].to("cpu", torch.float32)
