"""Reading the pictures of a folder in threads, and keeping what was read while the server runs."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Hashable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from ....training.errors import InputError
from ..quality import Traits, traits_of
from .bands import Size
from .decode import Picture, read_mask, read_picture
from .stamps import Kept, stamp_of

MOST_THREADS = 8
MOST_AT_ONCE = 2**28  # bytes of memory that pictures take together while they are decoded; a larger one is read alone
MOST_KEPT = 2**30  # bytes of pictures that are kept at the size that they are trained at
LONGEST_WAIT = 0.25  # s between two calls of `Progress` while a picture is read

Progress = Callable[[int, int], None]  # (pictures that are read, all): called often; what it raises ends the reading


def no_progress(done: int, of: int) -> None:
    """The `Progress` of work that nobody watches."""


@dataclass(frozen=True)
class PictureFile:
    """What is read of a picture. mask: its mask file. with_alpha: whether its own transparency is read.

    control: the file of its second picture, see `TrainingImage`.
    """

    path: Path
    mask: Path | None = None
    with_alpha: bool = False
    control: Path | None = None


@dataclass(frozen=True)
class ReadPicture:
    """A picture that was read. mask: [h, w] in 0..1 from its mask file or its transparency, or None.

    second: its second picture, scaled to cover the picture's own size and cropped at the middle, or None.
    """

    picture: Picture
    mask: Tensor | None
    traits: Traits
    second: Picture | None = None

    @property
    def control(self) -> Tensor | None:
        """The pixels of the second picture, [h, w, 3] uint8."""
        return None if self.second is None else self.second.pixels

    @property
    def nbytes(self) -> int:
        """The memory that its tensors take."""
        return sum(each.nbytes for each in (self.picture.pixels, self.mask, self.control) if each is not None)


class Room:
    """Lets threads take memory, `most` bytes together; what needs more than that waits until it is alone."""

    def __init__(self, most: int):
        self._most, self._taken = most, 0
        self._freed = threading.Condition()

    @contextlib.contextmanager
    def __call__(self, needed: int) -> Iterator[None]:
        """Wait until `needed` bytes may be taken, and take them for the block."""
        with self._freed:
            self._freed.wait_for(lambda: not self._taken or self._taken + needed <= self._most)
            self._taken += needed
        try:
            yield
        finally:
            with self._freed:
                self._taken -= needed
                self._freed.notify_all()


KEPT: Kept[ReadPicture] = Kept(MOST_KEPT)


def read_pictures(
    files: Sequence[PictureFile], target: Callable[[int, int], Size], settings: Hashable, progress: Progress
) -> list[ReadPicture | InputError]:
    """Each file as it was read, or why it cannot be used, in the order of `files`.

    target: see `read_picture`; settings: all that it depends on. progress: is called in this thread. A file that was
    read before with the same settings and has not changed since, see `stamps`, is not read again.
    """
    reading, room = KEPT.new_reading(), Room(MOST_AT_ONCE)
    keys = [_key(file, settings) for file in files]
    results = [None if key is None else KEPT.get(key, reading) for key in keys]
    left = [i for i, result in enumerate(results) if result is None][::-1]
    done: list[ReadPicture | InputError | None] = list(results)
    waiting: dict[Future[ReadPicture | InputError], int] = {}
    pool = ThreadPoolExecutor(threads(), "bespoke-pictures")
    try:
        while left or waiting:
            while left and len(waiting) < 2 * threads():
                i = left.pop()
                waiting[pool.submit(_read, files[i], target, room)] = i
            progress(len(files) - len(left) - len(waiting), len(files))
            for future in wait(waiting, LONGEST_WAIT, FIRST_COMPLETED).done:
                i = waiting.pop(future)
                done[i] = result = future.result()
                key = keys[i]
                # The key once more: the file may have changed while it was read.
                if isinstance(result, ReadPicture) and key is not None and key == _key(files[i], settings):
                    KEPT.put(key, result, result.nbytes, reading)
        progress(len(files), len(files))
    finally:
        pool.shutdown(wait=False, cancel_futures=True)  # an interrupt does not wait for a picture that takes long
    return [result for result in done if result is not None]


def _key(file: PictureFile, settings: Hashable) -> Hashable | None:
    """What the result of reading a file depends on; None where that cannot be told."""
    paths = (file.path, file.mask, file.control)
    stamps = [stamp_of(path) for path in paths if path is not None]
    there = tuple(path is not None for path in paths)
    return None if None in stamps else (*stamps, there, file.with_alpha, settings)


def _read(file: PictureFile, target: Callable[[int, int], Size], room: Room) -> ReadPicture | InputError:
    try:
        with _naming(file.path):
            picture = read_picture(file.path, target, file.with_alpha, room)
        mask, second = picture.alpha, None
        size = picture.pixels.shape[0], picture.pixels.shape[1]
        if file.mask is not None:
            with _naming(file.mask):
                mask = read_mask(file.mask, picture.original, size, room)
        if file.control is not None:
            with _naming(file.control, file.path.parent):
                second = read_picture(file.control, lambda _height, _width: size, room=room)
        return ReadPicture(picture, mask, traits_of(picture.pixels), second)
    except InputError as error:
        return error


@contextlib.contextmanager
def _naming(path: Path, folder: Path | None = None) -> Iterator[None]:
    """Puts the file's name, with its path below `folder`, before an `InputError`."""
    try:
        yield
    except InputError as error:
        name = path.name if folder is None else path.relative_to(folder).as_posix()
        raise InputError(f"{name} {error}") from error


def threads() -> int:
    """How many threads read files: one for each core that this process may use, up to `MOST_THREADS`."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(MOST_THREADS, cores)
