"""A short film as an animated picture: WebP, which a page plays in place of a still one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

QUALITY = 90  # of WebP's lossy frames, 0 to 100


@dataclass(frozen=True)
class AnimatedPicture:
    """The frames of a film, RGB of one size, and how many are shown a second."""

    frames: tuple[Image.Image, ...]
    fps: float

    def save(self, path: Path) -> None:
        """Write it as an animated WebP that plays again and again."""
        first, *more = self.frames
        duration = max(1, round(1000 / self.fps))
        first.save(
            path, "WEBP", save_all=True, append_images=more, duration=duration, loop=0, quality=QUALITY, method=4
        )


SamplePicture = Image.Image | AnimatedPicture


def joined(pictures: Sequence[SamplePicture], join: Callable[[Sequence[Image.Image]], Image.Image]) -> SamplePicture:
    """What `join` makes of pictures; of films, of their frames of one time, as long as the shortest."""
    films = [each for each in pictures if isinstance(each, AnimatedPicture)]
    if not films:
        return join([each for each in pictures if isinstance(each, Image.Image)])
    times = zip(*(each.frames for each in films), strict=False)
    return AnimatedPicture(tuple(join(frames) for frames in times), films[0].fps)


def moments(picture: Image.Image, count: int = 3) -> list[Image.Image]:
    """RGB pictures of a picture that was opened: of an animated one `count` frames from the first to the last."""
    length = getattr(picture, "n_frames", 1)
    count = min(count, length)
    numbers = [round(i * (length - 1) / max(1, count - 1)) for i in range(count)] if count > 1 else [length // 2]
    out = list[Image.Image]()
    for number in numbers:
        picture.seek(number)
        out.append(picture.convert("RGB"))
    return out


def side_by_side(pictures: Sequence[Image.Image]) -> Image.Image:
    """Pictures of one height in a row."""
    sheet = Image.new("RGB", (sum(each.width for each in pictures), pictures[0].height))
    left = 0
    for each in pictures:
        sheet.paste(each, (left, 0))
        left += each.width
    return sheet
