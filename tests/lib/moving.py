"""Small sets of clips: a square that moves over noise, and stills beside them."""

from __future__ import annotations

import torch
from bespoke.training.images import ImageSet, TrainingImage
from helpers import image_set


def clip_of(number: int, frames: int, size: tuple[int, int] = (64, 64), masks: bool = False, fps: float = 16.0):
    """A clip in which a white square moves to the right over noise. masks: of the square in each frame."""
    draw = torch.Generator().manual_seed(number)
    pixels = torch.randint(0, 256, (1, *size, 3), generator=draw, dtype=torch.uint8).repeat(frames, 1, 1, 1)
    mask = torch.zeros(frames, *size)
    for frame in range(frames):
        left = (4 * frame + 8 * number) % (size[1] - 16)
        pixels[frame, 16:32, left : left + 16] = 255
        mask[frame, 16:32, left : left + 16] = 1.0
    return TrainingImage(f"{number}.mp4", pixels, f"a square moves {number}", mask if masks else None, fps=fps)


def still_of(number: int, size: tuple[int, int] = (64, 64)) -> TrainingImage:
    """The first frame of `clip_of`, as a picture."""
    return TrainingImage(f"{number}.png", clip_of(number, 1, size).first_frame, f"a square {number}")


def mixed_set(frames: int = 5, size: tuple[int, int] = (64, 64), masks: bool = False) -> ImageSet:
    """Three clips of two lengths and two stills."""
    clips = [clip_of(0, frames, size, masks), clip_of(1, frames, size, masks), clip_of(2, frames + 4, size, masks)]
    return image_set([*clips, still_of(3, size), still_of(4, size)])
