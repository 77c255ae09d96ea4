"""The frames of an animated picture and of a folder of pictures."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from PIL import Image, ImageSequence

from ....training.errors import InputError
from ...bridge.files.headers import open_regular
from ..reading.decode import read_picture
from ..reading.limits import check_file
from .frames import SMALL, Frame, Told, check_frame_size, on_white

ANIMATIONS = (".gif", ".webp", ".png", ".apng")
DEFAULT_DURATION = 0.1  # s of a frame that says 0, as browsers take it
FASTEST_GIF = 0.01  # s; browsers take a GIF's frame of it or less as one that says 0


@dataclass(frozen=True)
class PictureFrame:
    """A frame as arrays. time: s, or None. colours: [H, W, 3] uint8. alpha: [H, W] uint8, or None."""

    time: float | None
    colours: np.ndarray
    alpha: np.ndarray | None
    after_gap: bool = False

    def small(self) -> np.ndarray:
        """See `frames.Frame`."""
        picture = Image.fromarray(self.colours).convert("L")
        return np.asarray(picture.resize((SMALL, SMALL), Image.Resampling.BOX), np.float32)

    def pixels(self) -> tuple[np.ndarray, np.ndarray | None]:
        """See `frames.Frame`."""
        return self.colours, self.alpha


@dataclass(frozen=True)
class Animation:
    """An animated GIF, WebP or PNG; each frame is shown for the time that the file says.

    The default image of a PNG that is no part of its animation (PNG, third edition, section 4.9) is left out.
    """

    path: Path

    def frames(self, told: Told) -> Iterator[Frame]:
        """See `frames.Source`."""
        time, count = 0.0, 0
        try:
            with open_regular(self.path) as file:
                check_file(file, self.path.stat().st_size)
                with Image.open(file, formats=("GIF", "WEBP", "PNG")) as opened:
                    check_frame_size(opened.width, opened.height)
                    shortest = FASTEST_GIF if opened.format == "GIF" else 0.0
                    hidden = int(bool(opened.info.get("default_image")))
                    for frame in itertools.islice(ImageSequence.Iterator(opened), hidden, None):
                        has_alpha = frame.has_transparency_data
                        values = np.array(frame.convert("RGBA" if has_alpha else "RGB"))
                        yield PictureFrame(time, *on_white(values))
                        count += 1
                        shown = frame.info.get("duration", 0) / 1000
                        time += shown if shown > shortest else DEFAULT_DURATION
        except (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError) as error:
            if not count:
                raise InputError(f"is no animation that can be read ({error}); save it again") from error
            told.ended = f"its file is broken there ({error})"


def is_animated(path: Path) -> bool:
    """Whether a picture file has several frames; False for what cannot be read."""
    if path.suffix.lower() not in ANIMATIONS:
        return False
    try:
        with open_regular(path) as file:
            check_file(file, path.stat().st_size)
            with Image.open(file, formats=("GIF", "WEBP", "PNG")) as opened:
                return bool(getattr(opened, "is_animated", False))
    except (InputError, OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError):
        return False


@dataclass(frozen=True)
class FrameFolder:
    """A folder of pictures as a film of `rate` frames a second, in the order of the numbers in their names."""

    path: Path
    pictures: tuple[Path, ...]
    rate: float

    def frames(self, told: Told) -> Iterator[Frame]:
        """See `frames.Source`. Raises `InputError` for a picture that cannot be read or has another size."""
        told.rate = self.rate
        size: tuple[int, ...] | None = None
        for number, path in enumerate(self._ordered):
            try:
                picture = read_picture(path, lambda height, width: (height, width), with_alpha=True)
            except InputError as error:
                raise InputError(f"has the frame {path.name}, which {error}") from error
            if size is not None and picture.original != size:
                height, width = picture.original
                raise InputError(
                    f"has the frame {path.name} of {width}x{height} px and others of {size[1]}x{size[0]}; make them "
                    "equal"
                )
            size = picture.original
            alpha = None if picture.alpha is None else (picture.alpha.numpy() * 255).round().astype(np.uint8)
            yield PictureFrame(number / self.rate, picture.pixels.numpy(), alpha)

    @cached_property
    def _ordered(self) -> list[Path]:
        return sorted(self.pictures, key=lambda path: _numbers_in(path.name))


def _numbers_in(name: str) -> tuple[list[tuple[int, int, str]], str]:
    """A key that sorts frame2.png before frame10.png."""
    parts, digits, text = list[tuple[int, int, str]](), "", ""
    for character in [*name.lower(), ""]:
        if character.isascii() and character.isdigit():
            if text:
                parts.append((1, 0, text))
            digits, text = digits + character, ""
            continue
        if digits:
            parts.append((0, int(digits), ""))
        digits, text = "", text + character
    return [*parts, (1, 0, text)], name
