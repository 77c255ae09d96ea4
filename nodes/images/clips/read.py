"""The frames of clips as tensors: decoded one by one and scaled at once, so that one is held at its full size."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ....training.errors import InputError
from ..quality import counted
from ..reading.bands import Size, shrunk_whole
from .frames import Frame, Source, Told
from .plan import Clip
from .scan import MOST_FRAMES, Scan


@dataclass
class ReadClip:
    """A clip that was read. pixels: [F, h, w, 3] uint8. mask: [F, h, w] in 0..1 float32, or None."""

    pixels: Tensor
    mask: Tensor | None = None

    @property
    def nbytes(self) -> int:
        """The memory that its tensors take."""
        return self.pixels.nbytes + (0 if self.mask is None else self.mask.nbytes)


def read_clips(
    source: Source, clips: Sequence[Clip], target: Size, with_alpha: bool, tick: Callable[[], None]
) -> list[ReadClip]:
    """The clips of a film, each frame scaled to cover `target` (height, width) in px and cropped at the middle.

    with_alpha: whether transparency becomes the mask. tick: is called for each frame. Raises `InputError` where the
    film has fewer frames than it had when it was looked at.
    """
    frames = [torch.zeros(len(clip.indices), *target, 3, dtype=torch.uint8) for clip in clips]
    alphas: list[Tensor | None] = [None] * len(clips)

    def put(frame: Frame, places: Sequence[tuple[int, int]]) -> None:
        colours, alpha = frame.pixels()
        pixels = torch.from_numpy(fitted(colours, target))
        shown = None if alpha is None or not with_alpha else torch.from_numpy(fitted(alpha, target))
        for clip, position in places:
            frames[clip][position] = pixels
            if shown is not None:
                found = alphas[clip]
                if found is None:
                    found = alphas[clip] = torch.full(frames[clip].shape[:3], 255, dtype=torch.uint8)
                found[position] = shown

    _each(source, clips, put, tick)
    return [
        ReadClip(pixels, None if alpha is None else alpha.float() / 255)
        for pixels, alpha in zip(frames, alphas, strict=True)
    ]


def read_masks(
    source: Source, clips: Sequence[Clip], scan: Scan, target: Size, tick: Callable[[], None]
) -> list[Tensor]:
    """The masks [F, h, w] in 0..1 of clips, from a film of masks that has the frames of theirs.

    A frame's value is the mean of its channels, so that white counts. scan: of the film. Masks must have its size and
    its number of frames, as they belong to frames by their numbers; raises `InputError` for others.
    """
    size = scan.size
    masks = [torch.zeros(len(clip.indices), *target) for clip in clips]

    def put(frame: Frame, places: Sequence[tuple[int, int]]) -> None:
        colours = frame.pixels()[0]
        if colours.shape[:2] != size:
            height, width = colours.shape[:2]
            raise InputError(f"is {width}x{height} px and its film {size[1]}x{size[0]}; make them equal")
        grey = colours.astype(np.float32).mean(-1).round().astype(np.uint8)
        mask = torch.from_numpy(fitted(grey, target)).float() / 255
        for clip, position in places:
            masks[clip][position] = mask

    count = _each(source, clips, put, tick, to_the_end=True)
    whole = len(scan.times)
    if count != whole and not count > whole == MOST_FRAMES:
        raise InputError(f"has {counted(count, 'frame')} and its film {whole}; give it one for each frame of the film")
    return masks


def fitted(values: np.ndarray, target: Size) -> np.ndarray:
    """See `reading.bands.shrunk`; [H, W] or [H, W, 3] uint8 as it is where it has the size."""
    return values if values.shape[:2] == target else shrunk_whole(Image.fromarray(values), target)


def _each(
    source: Source,
    clips: Sequence[Clip],
    put: Callable[[Frame, Sequence[tuple[int, int]]], None],
    tick: Callable[[], None],
    to_the_end: bool = False,
) -> int:
    """Call `put` with each frame that is wanted and its places, (number of the clip, position in it).

    Returns how many frames were looked at. to_the_end: whether all are, also where some that are wanted are not there;
    else `InputError` is raised for those.
    """
    wanted: dict[int, list[tuple[int, int]]] = {}
    for number, clip in enumerate(clips):
        for position, index in enumerate(clip.indices):
            wanted.setdefault(index, []).append((number, position))
    left, count = len(wanted), 0
    for index, frame in enumerate(source.frames(Told())):
        count += 1
        tick()
        if index in wanted:
            put(frame, wanted[index])
            left -= 1
        if not left and not to_the_end:
            break
    if not left or to_the_end:
        return count
    last = max(wanted)
    raise InputError(f"has no frame {last + 1}; it has fewer frames than its film, or has changed while it was read")
