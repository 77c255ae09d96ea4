"""Which frames of a film make which clips."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ....training.errors import InputError
from .scan import Scan

LONGEST = 4096  # frames of a clip
FASTEST = 240.0  # frames a second
MOST_SAMPLES = 4_000_000  # of a scene: 46 hours at 24 a second
LAST_FRAME = 0.25  # of the distance of two samples: a last one may lie so far behind the scene's last frame


def rounded_frames(frames: int, step: int) -> int:
    """The largest multiple of `step` plus 1 that is at most `frames`."""
    return (frames - 1) // step * step + 1


@dataclass(frozen=True)
class Cutting:
    """How films are cut into clips.

    frames: of a clip, at most; a scene that is shorter makes one clip of its own length. The number is rounded down to
    a multiple of `frame_step` plus 1. fps: frames a second, 0 for the film's own. stride: frames from the beginning of
    one clip to that of the next, 0 for `frames`. most: clips of a film, 0 for all; fewer are spread evenly over it.
    threshold: of scene changes, see `scan.cuts_in`. Raises `InputError` for a value out of range.
    """

    frames: int = 33
    fps: float = 0.0
    frame_step: int = 4
    stride: int = 0
    most: int = 0
    threshold: float = 20.0

    def __post_init__(self) -> None:
        if not 1 <= self.frames <= LONGEST:
            raise InputError(f"frames is {self.frames}; give 1 to {LONGEST}")
        if not 0 <= self.fps <= FASTEST:
            raise InputError(f"fps is {self.fps:g}; give 0 for the film's own, or up to {FASTEST:g}")
        if not 1 <= self.frame_step <= LONGEST:
            raise InputError(f"frame_step is {self.frame_step}; give 1 to {LONGEST}")
        if self.stride < 0 or self.most < 0:
            raise InputError(f"stride is {self.stride} and max_clips {self.most}; give 0 or more")
        if not 0 <= self.threshold <= 255:
            raise InputError(f"scene_threshold is {self.threshold:g}; give 0 for off, or up to 255")

    def rounded(self, frames: int) -> int:
        """The number of frames that a clip of at most `frames` has."""
        return rounded_frames(frames, self.frame_step)

    @property
    def least(self) -> int:
        """The frames that a scene must have. A single frame is a clip where nothing longer is asked for.

        So it is where every frame counts: films that were cut into clips before, with frame_step 1.
        """
        if self.whole == 1 or (self.frame_step == 1 and not self.threshold):
            return 1
        return min(self.frame_step + 1, self.whole)

    @property
    def whole(self) -> int:
        """The frames of a clip of the full length."""
        return self.rounded(self.frames)


@dataclass(frozen=True)
class Clip:
    """A clip to be read. indices: of the film's frames, one may be there twice. start: s. fps: frames a second."""

    indices: tuple[int, ...]
    start: float
    fps: float


@dataclass(frozen=True)
class Planned:
    """The clips of a film. scenes: how many it has. short: of them, those of one clip below the full length.

    left_out: scenes that are too short for a clip. spread: how many clips there would be without `Cutting.most`.
    """

    clips: tuple[Clip, ...]
    scenes: int
    short: int
    left_out: int
    spread: int


def plan(scan: Scan, cutting: Cutting) -> Planned:
    """The clips of a film. No clip has frames of two scenes. Raises `InputError` for a scene that is far too long."""
    fps = cutting.fps or scan.rate
    least = cutting.least
    clips, short, left_out = list[Clip](), 0, 0
    scenes = scan.scenes(cutting.threshold)
    for first, behind in scenes:
        begin, end = float(scan.times[first]), float(scan.times[behind - 1])
        if (end - begin) * fps > MOST_SAMPLES:
            raise InputError(
                f"has {behind - first} frames that last {(end - begin) / 3600:,.0f} hours by their times; export it "
                "again, so that each frame has its own time"
            )
        samples = int((end - begin) * fps + LAST_FRAME) + 1
        frames = min(cutting.whole, cutting.rounded(samples))
        if frames < least:
            left_out += 1
            continue
        short += frames < cutting.whole
        found = scan.nearest(begin + np.arange(samples) / fps, first, behind)
        last = samples - frames if frames == cutting.whole else 0
        for at in range(0, last + 1, cutting.stride or frames):
            indices = tuple(found[at : at + frames].tolist())
            clips.append(Clip(indices, begin + at / fps, fps))
    count = len(clips)
    if cutting.most and count > cutting.most:
        last = max(1, cutting.most - 1)
        clips = [clips[round(i * (count - 1) / last)] for i in range(cutting.most)]
    return Planned(tuple(clips), len(scenes), short, left_out, count)
