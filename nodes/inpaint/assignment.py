"""Which of several masks is used for which picture of a batch, or for which frame of a video.

A video model's VAE packs frames: the first latent frame holds one picture frame, each later one a group of them (four
for Wan and Hunyuan Video, six for Mochi, eight for LTX and Cosmos). Frames that fill no group are dropped.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ...training.errors import InputError
from ..bridge.latent_frames import frame_groups


@dataclass(frozen=True)
class Layout:
    """What a latent holds: `count` pictures, or `count` videos.

    groups: the picture frames of each latent frame; (1,) for a picture, (1, 4, 4) for a video of 9 frames. spare: how
    many more frames a video may have had that its VAE drops.
    """

    count: int = 1
    groups: tuple[int, ...] = (1,)
    spare: int = 0

    @property
    def latent_frames(self) -> int:
        return len(self.groups)

    @property
    def frames(self) -> int:
        """The picture frames of one video, 1 for a picture."""
        return sum(self.groups)

    @property
    def is_video(self) -> bool:
        return self.latent_frames > 1

    @classmethod
    def of(cls, shape: tuple[int, ...], temporal: int, chunk: int = 0) -> Layout:
        """The layout of a latent [B, C, rows, columns] or [B, C, T, rows, columns].

        temporal: picture frames to a latent frame. chunk: latent frames after which a VAE starts again with a single
        frame; 0 if it does not.
        """
        if len(shape) == 4 or shape[2] == 1:
            return cls(shape[0])
        groups = frame_groups(shape[2], temporal, chunk)
        # A VAE with chunks repeats the last frame up to a whole chunk and drops the latent frames made of it.
        spare = temporal * ((-len(groups)) % chunk) if chunk else temporal - 1
        return cls(shape[0], groups, spare)


@dataclass(frozen=True)
class Assignment:
    """The masks that are used: one for all pictures, one for each picture or video, or one for each latent frame.

    members: of each used mask, the given masks that it is made of. unite: whether members are to be united before
    they are grown and feathered, as masks of one picture. note: what was done, or "".
    """

    members: tuple[tuple[int, ...], ...]
    unite: bool = False
    note: str = ""


def assign(given: int, layout: Layout) -> Assignment:
    """The use of `given` masks for a latent.

    For one picture several masks are united. For several pictures, N masks up to their number are repeated in order,
    as core repeats a noise mask. A video takes one mask, one for each latent frame, or one for each picture frame,
    of which those of a group belong to its latent frame; frames that the VAE drops are left out. Several videos take
    one for all, one each (repeated in order), or the frames of one video for all, or the frames of all in order.
    Raises `InputError` for any other number, and for one that can be read in two ways.
    """
    if given == 1:
        return Assignment(((0,),))
    if layout.count == 1 and not layout.is_video:
        return Assignment((tuple(range(given)),), True, f"{given} masks for one picture: they were united.")
    if given <= layout.count:
        members = tuple((i % given,) for i in range(layout.count))
        what = "videos" if layout.is_video else "pictures"
        repeated = f"{given} masks for {layout.count} {what}: repeated in order."
        return Assignment(members, note="" if given == layout.count else repeated)
    if not layout.is_video:
        raise InputError(
            f"{given} masks for {layout.count} pictures; give one for all or {layout.count}, one each. Unite those of "
            "one picture first"
        )
    return _of_frames(given, layout)


def _of_frames(given: int, layout: Layout) -> Assignment:
    readings = {
        members: note
        for members, note in (
            _read(given, given, layout, shared=True),
            _read(given, given // layout.count, layout, shared=False) if given % layout.count == 0 else (None, ""),
        )
        if members is not None
    }
    if len(readings) == 1:
        ((members, note),) = readings.items()
        return Assignment(members, note=note)
    frames, latent_frames = layout.frames, layout.latent_frames
    videos = "one video" if layout.count == 1 else f"{layout.count} videos"
    each = "" if layout.count == 1 else " each"
    wanted = {1, latent_frames, frames} | ({1, layout.count, layout.count * frames} if layout.count > 1 else set())
    numbers = ", ".join(str(number) for number in sorted(wanted))
    why = " and can be read in two ways" if readings else ""
    raise InputError(
        f"{given} masks are given for {videos} of {latent_frames} latent frames ({frames} picture frames){each}{why}; "
        f"give {numbers} (one for all, one a latent frame or one a picture frame)"
    )


def _read(given: int, each: int, layout: Layout, shared: bool) -> tuple[tuple[tuple[int, ...], ...] | None, str]:
    """(members, note) if `each` masks a video, the same for all videos if `shared`, are one for each frame."""
    latent_frames, frames = layout.latent_frames, layout.frames
    if each == latent_frames:
        groups = [range(t, t + 1) for t in range(latent_frames)]
    elif frames <= each <= frames + layout.spare:
        starts = [sum(layout.groups[:t]) for t in range(latent_frames)]
        groups = [range(start, start + length) for start, length in zip(starts, layout.groups, strict=True)]
    else:
        return None, ""
    firsts = [0 if shared else video * each for video in range(layout.count)]
    note = ""
    if each not in (latent_frames, frames):
        note = f"{each} masks for a video of {frames} usable frames: those of dropped frames are not used."
    return tuple(tuple(first + i for i in group) for first in firsts for group in groups), note


def pool(masks: torch.Tensor, members: tuple[tuple[int, ...], ...], coverage: str) -> torch.Tensor:
    """[N, ...] -> [M, ...]: the largest value ("any") or the mean ("area") of each used mask's members."""
    if members == tuple((i,) for i in range(len(masks))):
        return masks
    groups = [masks[list(group)] for group in members]
    return torch.stack([group.amax(0) if coverage == "any" else group.mean(0) for group in groups])


def to_latent(cells: torch.Tensor, layout: Layout, dimensions: int) -> torch.Tensor:
    """The noise mask of a latent: [M, rows, columns] -> [B, 1, rows, columns], or [B, 1, T, rows, columns].

    cells: one of each used mask of `assign`. dimensions: the latent's, 4 or 5. The whole shape is made here, since
    core's resizing folds a batch of masks for a 5-D latent into time.
    """
    spread = cells[_indices(len(cells), layout, (1,) * layout.latent_frames)]
    spread = spread.unflatten(0, (layout.count, layout.latent_frames))  # [B, T, rows, columns]
    return spread if dimensions == 4 else spread[:, None]


def to_frames(pictures: torch.Tensor, layout: Layout) -> torch.Tensor:
    """[M, H, W] of each used mask -> [1, H, W] for all, or [pictures, H, W] or [videos * frames, H, W] as decoded."""
    return pictures if len(pictures) == 1 else pictures[_indices(len(pictures), layout, layout.groups)]


def _indices(used: int, layout: Layout, lengths: tuple[int, ...]) -> list[int]:
    """The used mask of each frame of all videos, where a latent frame t stands for lengths[t] frames."""
    one_each = used == layout.count * layout.latent_frames
    frames = [(v, t) for v in range(layout.count) for t, length in enumerate(lengths) for _ in range(length)]
    if used == 1:
        return [0] * len(frames)
    return [v * layout.latent_frames + t if one_each else v for v, t in frames]
