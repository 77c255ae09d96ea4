"""A decoded picture as it is shown, read in bands of rows, so that its copies at the full size stay small.

`shrunk` gives the bits that Pillow's `ImageOps.fit` gives for the whole RGB picture: Pillow scales each channel by
itself, and it is given each whole channel. Bands of rows cannot be scaled one by one, since Pillow scales the rows or
the columns first, as its version and the sizes make it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch
from PIL import ExifTags, Image

from ....training.errors import InputError

BAND = 1 << 18  # pixels of a band
MOST_AT_ONCE = 32_000_000  # pixels of a picture whose channels are copied together; those of a larger one, one by one
HIGHLIGHTS = 16.0  # lights of a float picture in 0..1 may go beyond 1 up to this; one in 0..255 would be black there
# {EXIF orientation: how to turn the picture}, see CIPA DC-008, tag 274.
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
SIDEWAYS = (5, 6, 7, 8)  # orientations that exchange height and width
FROM_THE_END = (3, 4, 7, 8)  # orientations whose first rows are the last rows, or columns, of the file

Size = tuple[int, int]  # (height, width) in px
Rows = Callable[[int, int], Image.Image]  # (first row, row behind the last) -> these rows


class Upright:
    """A picture turned as its EXIF orientation says, with 8 bits a channel.

    height, width: px. has_alpha: whether parts of it may be transparent. note: how numbers that are no 8 bits were
    scaled, or "".
    """

    def __init__(self, picture: Image.Image):
        """picture: loaded. Raises `InputError` for numbers that are not finite."""
        self._picture = picture
        self._orientation = picture.getexif().get(ExifTags.Base.Orientation, 1)
        sides = picture.size
        self.width, self.height = sides[::-1] if self._orientation in SIDEWAYS else sides
        self._white, self.note = _white_of(picture)
        self.has_alpha = self._white is None and picture.has_transparency_data

    @property
    def plain(self) -> Image.Image | None:
        """The whole picture, where it is RGB as it was decoded; else None."""
        as_decoded = self._picture.mode == "RGB" and not self.has_alpha and self._orientation not in TURNS
        return self._picture if as_decoded else None

    def on_white(self, first: int, last: int) -> Image.Image:
        """Rows as RGB, transparency laid on white."""
        band = self._band(first, last)
        if self.has_alpha:
            band = band.convert("RGBA")
            band = Image.alpha_composite(Image.new("RGBA", band.size, "white"), band)
        return band.convert("RGB")

    def alpha(self, first: int, last: int) -> Image.Image:
        """Rows of the alpha channel, 0..255; only where it `has_alpha`."""
        return self._band(first, last).convert("RGBA").getchannel("A")

    def _band(self, first: int, last: int) -> Image.Image:
        across, down = self._picture.size
        length = across if self._orientation in SIDEWAYS else down
        if self._orientation in FROM_THE_END:
            first, last = length - last, length - first
        sideways = self._orientation in SIDEWAYS
        band = self._picture.crop((first, 0, last, down) if sideways else (0, first, across, last))
        if self._orientation in TURNS:
            band = band.transpose(TURNS[self._orientation])
        return band if self._white is None else _scaled(band, self._white)


def bands(height: int, width: int) -> Iterator[tuple[int, int]]:
    """(first row, row behind the last) of bands of about `BAND` pixels."""
    rows = max(1, BAND // width)
    for first in range(0, height, rows):
        yield first, min(height, first + rows)


def shrunk(rows: Rows, channels: int, size: Size, target: Size) -> np.ndarray:
    """The picture scaled to cover `target` and cropped at the middle (Lanczos): [h, w] or [h, w, 3] uint8.

    rows: gives its rows, of mode L or RGB. channels: 1 or 3. size, target: (height, width) in px. The picture as it is
    where they are equal.
    """
    height, width = size
    at_once = channels if height * width <= MOST_AT_ONCE else 1
    scaled = []
    for group in (range(first, first + at_once) for first in range(0, channels, at_once)):
        planes = [Image.new("L", (width, height)) for _ in group]
        for first, last in bands(height, width):
            band = rows(first, last)
            for channel, plane in zip(group, planes, strict=True):
                plane.paste(band.getchannel(channel), (0, first))
        scaled += [shrunk_whole(plane, target) for plane in planes]
        del planes
    return scaled[0] if channels == 1 else np.stack(scaled, -1)


def shrunk_whole(picture: Image.Image, target: Size) -> np.ndarray:
    """`shrunk` of a picture of mode L or RGB."""
    size = picture.height, picture.width
    return np.array(picture.resize((target[1], target[0]), Image.Resampling.LANCZOS, box=_box(size, target)))


def fit(pixels: torch.Tensor, target: Size) -> torch.Tensor:
    """`shrunk` of a picture [H, W, 3] uint8 or a mask [H, W] in 0..1; gives the same kind."""
    if tuple(pixels.shape[:2]) == target:
        return pixels
    is_mask = pixels.ndim == 2
    values = (pixels.numpy() * 255).round().astype(np.uint8) if is_mask else pixels.numpy()
    fitted = shrunk_whole(Image.fromarray(values), target)
    return torch.from_numpy(fitted.astype(np.float32) / 255 if is_mask else fitted)


def fit_item(values: torch.Tensor | None, target: Size, is_clip: bool) -> torch.Tensor | None:
    """`fit` of the pixels or the mask of an item; of a clip of each frame. None as it is."""
    if values is None or not is_clip:
        return None if values is None else fit(values, target)
    return torch.stack([fit(frame, target) for frame in values])


def _box(size: Size, target: Size) -> tuple[float, float, float, float]:
    """(left, top, right, bottom) in px of the middle part of a picture that has the shape of `target`."""
    height, width = size
    shape = target[1] / target[0]
    across, down = float(width), float(height)
    if width / height > shape:
        across = shape * height
    elif width / height < shape:
        down = width / shape
    left, top = (width - across) * 0.5, (height - down) * 0.5
    return left, top, left + across, top + down


def _white_of(picture: Image.Image) -> tuple[float | None, str]:
    """(the number that is white in a greyscale picture of 16 or 32 bits or of floats, else None; a note or "").

    White is 65535 for integers and 1 for floats. Floats up to `HIGHLIGHTS` keep that white, and what is brighter is
    cut, as in a picture with a high dynamic range. Where the values go further, white is 255 or 65535 for floats that
    fit, else the largest value; the note says so. Pillow's own conversion clips instead of scaling.
    """
    if not picture.mode.startswith("I") and picture.mode != "F":
        return None, ""
    low, high = np.inf, -np.inf
    across, down = picture.size
    for first, last in bands(down, across):
        values = np.asarray(picture.crop((0, first, across, last)), np.float64)
        if not np.isfinite(values).all():
            raise InputError("holds numbers that are not finite; save it again")
        low, high = min(low, float(values.min())), max(high, float(values.max()))
    whites = (65535.0,) if picture.mode.startswith("I") else (1.0, 255.0, 65535.0)
    white = whites[0] if picture.mode == "F" and high <= HIGHLIGHTS else next((w for w in whites if high <= w), high)
    if white == whites[0] and low >= 0 and high <= white:
        return white, ""
    return white, f"its numbers go from {low:g} to {high:g}: 0 is taken as black and {white:g} as white"


def _scaled(band: Image.Image, white: float) -> Image.Image:
    values = np.asarray(band, np.float64)
    return Image.fromarray((values / white * 255).clip(0, 255).round().astype(np.uint8))
