"""What a film is before clips are cut from it: when each frame is shown, and where a new scene begins."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ....training.errors import InputError
from ..quality import counted
from .frames import UNKNOWN_RATE, Source, Told

MOST_FRAMES = 200_000  # of one film that are looked at: more than two hours at 24 a second
# A frame begins a scene where its thumbnail differs from the one before by more than the threshold (mean absolute
# difference of the brightness, of 255), and by more than this many times what is usual around it: a fast camera
# changes every frame by much. Measured on 60 random pictures with the spectrum of photographs (amplitude 1 / f^1.2,
# 640x360 px): all 1,770 cuts between two of them change by more than 24; a pan of 5 px a frame by at most 9, one of 20
# px by up to 29, so that only the second rule tells it from a cut; a picture that gets 15 of 255 brighter by 15.
TIMES_THE_USUAL = 3.0
AROUND = 4  # frames to each side
# A frame is followed by a gap where the next one is later by more than `LONGEST_HOLD` s and by more than `HOLDS` times
# the usual distance: the clock of the file jumps, or nothing is shown but one picture.
LONGEST_HOLD, HOLDS = 10.0, 10.0
SAME_RATE = 0.01  # a header's rate that is so near to the measured one is taken
UNEVEN = 0.5  # of the usual distance of two frames; one that differs by more makes the rate variable
HALFWAY = 1.5e-3  # s: .mkv rounds times to 1 ms; a time so close to the middle of two frames takes the earlier


@dataclass(frozen=True)
class Scan:
    """A film that was looked at once.

    times: [N] s from the first frame. changes: [N], the mean absolute difference of each frame's thumbnail from the one
    before, of 255. size: (height, width) px as it is shown. rate: its own frames a second. notes: for the report.
    gaps: frames before which broken ones are left out or the time jumps.
    """

    times: np.ndarray
    changes: np.ndarray
    size: tuple[int, int]
    rate: float
    notes: tuple[str, ...] = ()
    gaps: tuple[int, ...] = ()

    @property
    def nbytes(self) -> int:
        """The memory that it takes."""
        return self.times.nbytes + self.changes.nbytes

    def scenes(self, threshold: float) -> list[tuple[int, int]]:
        """(first frame, frame behind the last) of each scene; a gap ends one too. threshold: see `cuts_in`."""
        starts = {0, *self.gaps, *cuts_in(self.changes, threshold), len(self.times)}
        return list(itertools.pairwise(sorted(starts)))

    def nearest(self, wanted: np.ndarray, first: int, behind: int) -> np.ndarray:
        """Of the frames `first` up to `behind` the nearest in time to each of `wanted`, in s; halfway the earlier."""
        times = self.times[first:behind]
        middles = (times[1:] + times[:-1]) / 2
        slack = min(HALFWAY, float(np.diff(times).min()) / 10) if len(times) > 1 else 0.0
        return first + np.searchsorted(middles, wanted - slack, side="left")


def cuts_in(changes: np.ndarray, threshold: float) -> list[int]:
    """The frames that begin a new scene, without the first. changes: see `Scan`. threshold: of 255, 0 for none."""
    if not threshold:
        return []
    found = []
    for i in np.flatnonzero(changes > threshold).tolist():
        around = np.concatenate([changes[max(1, i - AROUND) : i], changes[i + 1 : i + 1 + AROUND]])
        usual = float(np.median(around)) if len(around) else 0.0
        if i > 0 and changes[i] > TIMES_THE_USUAL * usual:
            found.append(i)
    return found


def scan(source: Source, tick: Callable[[], None]) -> Scan:
    """Look at every frame of a source once. tick: is called for each. Raises `InputError` without a frame."""
    told, size = Told(), (0, 0)
    times, changes, gaps = list[float](), list[float](), list[int]()
    before: np.ndarray | None = None
    for frame in source.frames(told):
        tick()
        if len(times) == MOST_FRAMES:
            told.note(f"only its first {MOST_FRAMES:,} frames are read; cut it into parts")
            break
        if frame.after_gap:
            gaps.append(len(times))
        small = frame.small()
        changes.append(0.0 if before is None else float(np.abs(small - before).mean()))
        before = small
        if not times:
            shape = frame.pixels()[0].shape
            size = shape[0], shape[1]
        times.append(_time_of(frame.time, times, told.rate))
    if not times:
        raise InputError("has 0 frames; take it out of the folder, or export it again")
    of_frames = np.array(times, np.float64) - times[0]
    gaps = sorted({*gaps, *_jumps(of_frames, told)})
    rate = _rate_of(of_frames, gaps, told)
    if told.ended:
        told.note(
            f"ends early, after {len(times)} frames ({of_frames[-1]:.2f} s): {told.ended}; what is before it is used"
        )
    if told.broken:
        first, reason = next(iter(told.broken.items()))
        told.note(
            f"broken in {counted(len(told.broken), 'place')}, first after {(first or 0) - times[0]:.2f} s ({reason}); "
            "the frames up to the next key frame are left out, and no clip goes across; export it again to have them"
        )
    return Scan(of_frames, np.array(changes, np.float32), size, rate, tuple(told.notes), tuple(gaps))


def _time_of(time: float | None, before: list[float], rate: float) -> float:
    """The time of a frame; one that has none, or no later one than the frame before, follows it at the usual rate."""
    if time is not None and (not before or time > before[-1]):
        return time
    return before[-1] + 1 / (rate or UNKNOWN_RATE) if before else 0.0


def _jumps(times: np.ndarray, told: Told) -> list[int]:
    """The frames before which the time jumps, see `LONGEST_HOLD`; a note where there is one."""
    distances = np.diff(times)
    usual = float(np.median(distances)) if len(distances) else 0.0
    found = [int(i) for i in np.flatnonzero((distances > LONGEST_HOLD) & (distances > HOLDS * usual))]
    if found:
        told.note(
            f"no new frame for {distances[found[0]]:,.0f} s after {times[found[0]]:.2f} s"
            + (f", and {counted(len(found) - 1, 'more such place')}" if len(found) > 1 else "")
            + "; no clip goes across"
        )
    return [i + 1 for i in found]


def _rate_of(times: np.ndarray, gaps: list[int], told: Told) -> float:
    """Frames a second: the header's where the frames' times agree with it, else what they say."""
    if len(times) < 2:
        return told.rate or UNKNOWN_RATE
    distances = np.delete(np.diff(times), [gap - 1 for gap in gaps])
    measured = len(distances) / float(distances.sum()) if len(distances) else told.rate or UNKNOWN_RATE
    usual = float(np.median(distances)) if len(distances) else 1 / (told.rate or UNKNOWN_RATE)
    if (np.abs(distances - usual) > UNEVEN * usual).any():
        told.note(f"its frame rate varies ({measured:.4g} a second on average); frames are taken by their times")
    elif told.rate and abs(told.rate / measured - 1) <= SAME_RATE:
        return told.rate
    return measured
