"""The sample pictures of a run: of the base and of what was kept, in pairs of one prompt and seed."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from ....training.record import Run
from ..drawing.animated import moments, side_by_side

FOLDER = "samples"  # in the run's folder
LARGEST = 50_000_000  # pixels of a sample


@dataclass(frozen=True)
class Pair:
    """Samples of one prompt and seed. base: before the first step, None where there is none. kept: of `step`.

    Of a film, its first, middle and last frame in a row, or the middle one alone.
    """

    base: Image.Image | None
    kept: Image.Image | None
    step: int


def pairs_of(run: Run, folder: Path | None, most: int = 4, frames: int = 3) -> list[Pair]:
    """The first and the kept sample of each prompt, at most `most` prompts; empty where none can be read.

    A run with several prompts has several samples of a step, in the same order at each. The sample of the step that is
    nearest to the kept one counts, the later of two. folder: the run's, or None. frames: how many of a film are shown.
    """
    by_step: dict[int, list[str]] = defaultdict(list)
    for step, name, *_ in run.samples:
        by_step[step].append(name)
    if not by_step or folder is None:
        return []
    later = [step for step in by_step if step > 0]
    step = min(later, key=lambda at: (abs(at - run.kept_step), -at), default=0)
    bases = _opened(folder, by_step.get(0, ())[:most], frames)
    kept = _opened(folder, by_step.get(step, ())[:most], frames) if step else []
    count = max(len(bases), len(kept))
    bases += [None] * (count - len(bases))
    kept += [None] * (count - len(kept))
    return [Pair(a, b, step) for a, b in zip(bases, kept, strict=True) if a or b]


def _opened(folder: Path, names: Sequence[str], frames: int) -> list[Image.Image | None]:
    return [_open(folder / FOLDER / name, frames) if Path(name).name == name else None for name in names]


def _open(path: Path, frames: int) -> Image.Image | None:
    try:
        with Image.open(path) as picture:
            shown = min(frames, getattr(picture, "n_frames", 1))
            if picture.width * picture.height * shown > LARGEST:
                return None
            return side_by_side(moments(picture, frames))
    except (OSError, UnidentifiedImageError, ValueError, Image.DecompressionBombError):
        return None
