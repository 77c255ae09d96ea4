"""The frames of a film one after another, each with the time at which it is shown, read through PyAV (FFmpeg)."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Generator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import av
import av.error
import numpy as np
from av.stream import Disposition
from PIL import Image

from ....training.errors import InputError
from ...bridge.files.headers import open_regular

SMALL = 32  # px, the sides of the thumbnails that scene changes are found in
MOST_FRAME_PIXELS = 64_000_000  # of one frame; 8K has 33 million
# FFmpeg's readers of films. Others are refused: playlists and the like would open further files or addresses.
READERS = "mov,matroska,avi,mpegts,mpeg,mpegvideo,flv,ogg,asf,h264,hevc,m4v,ivf,mxf,nut,y4m,yuv4mpegpipe,av1,obu,dv"
HDR_CURVES = {16: "PQ", 18: "HLG"}  # ITU-T H.273, table 3
UPRIGHT = 1, 0, 0, 1  # a display matrix that changes nothing (ISO/IEC 14496-12, 6.2.2)
NO_FRAMES = "has a video of 0 frames that can be decoded; export it again"
UNKNOWN_RATE = 24.0  # frames a second, where a file says nothing


class Frame(Protocol):
    """One frame. time: s, as the file has it, or None where it says nothing. after_gap: broken ones were before it."""

    @property
    def time(self) -> float | None: ...

    @property
    def after_gap(self) -> bool: ...

    def small(self) -> np.ndarray:
        """Its brightness, [SMALL, SMALL] float32 in 0..255."""
        ...

    def pixels(self) -> tuple[np.ndarray, np.ndarray | None]:
        """(colours [H, W, 3] uint8 on white; alpha [H, W] uint8 or None), as it is shown: turned, pixels square."""
        ...


@dataclass
class Told:
    """What a source of frames says of itself while it is read.

    rate: frames a second by its header, 0 where it says nothing. ended: why the reading ended early, "" where it did
    not. broken: {time in s of the last frame before a broken place: why it is}. notes: for the report, each once.
    """

    rate: float = 0.0
    ended: str = ""
    broken: dict[float | None, str] = field(default_factory=dict)
    notes: dict[str, None] = field(default_factory=dict)

    def note(self, text: str) -> None:
        """Add a note, once."""
        self.notes.setdefault(text)


class Source(Protocol):
    """What frames come from: a film, an animation or a folder of frames."""

    @property
    def path(self) -> Path: ...

    def frames(self, told: Told) -> Iterator[Frame]:
        """The frames in the order in which they are shown. Raises `InputError` where there is none to be had."""
        ...


@dataclass(frozen=True)
class FilmFrame:
    """A frame of a film. matrix: rotation and mirroring (a, b, c, d) of the display matrix. aspect: of a pixel."""

    decoded: av.VideoFrame
    time: float | None
    matrix: tuple[int, int, int, int]
    aspect: float
    after_gap: bool = False

    def small(self) -> np.ndarray:
        """See `Frame`. Not turned: only differences of frames of one film are taken."""
        grey = self.decoded.reformat(width=SMALL, height=SMALL, format="gray", interpolation="AREA")
        return grey.to_ndarray().astype(np.float32)

    def pixels(self) -> tuple[np.ndarray, np.ndarray | None]:
        """See `Frame`."""
        has_alpha = _has_alpha(self.decoded)
        values = self.decoded.to_ndarray(format="rgba" if has_alpha else "rgb24")
        if abs(self.aspect - 1) > 1e-3:
            width = max(1, round(values.shape[1] * self.aspect))
            values = np.array(Image.fromarray(values).resize((width, values.shape[0]), Image.Resampling.LANCZOS))
        return on_white(turned(values, self.matrix))


def on_white(values: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
    """(colours [H, W, 3] laid on white, alpha [H, W] or None) of [H, W, 3] or [H, W, 4] uint8, as of a picture."""
    if values.shape[-1] == 3:
        return values, None
    picture = Image.fromarray(values, "RGBA")
    shown = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture).convert("RGB")
    return np.array(shown), np.ascontiguousarray(values[..., 3])


def turned(values: np.ndarray, matrix: tuple[int, int, int, int]) -> np.ndarray:
    """A picture [H, W, ...] as a display matrix says: the point (x, y) goes to (a x + c y, b x + d y), y down."""
    a, b, c, d = matrix
    if abs(b) + abs(c) > abs(a) + abs(d):  # rows become columns: the point (x, y) goes to (+-y, +-x)
        values = values.swapaxes(0, 1)
        down, across = b, c
    else:
        down, across = d, a
    return np.ascontiguousarray(values[:: -1 if down < 0 else 1, :: -1 if across < 0 else 1])


@dataclass(frozen=True)
class Film:
    """A file with a film in it. Its first stream of pictures that is no cover is read."""

    path: Path

    def frames(self, told: Told) -> Generator[Frame, None, None]:
        """See `Source`. What is broken is left out up to the next key frame, which `Told.broken` says."""
        try:
            with open_regular(self.path) as file:
                if not os.fstat(file.fileno()).st_size:
                    raise InputError("is a file of 0 bytes; download or export it again")
                with _opened(file) as container:
                    yield from _decoded(container, _stream_of(container), told)
        except InputError:
            raise
        except av.error.EOFError as error:
            raise InputError(NO_FRAMES) from error
        except (av.error.FFmpegError, ValueError) as error:
            raise InputError(
                f"is no film that can be read ({_reason(error)}); download or export it again, as .mp4 or .webm"
            ) from error
        except OSError as error:
            raise InputError(f"cannot be read from the disk ({error.strerror or error})") from error


@contextlib.contextmanager
def _opened(file: BinaryIO) -> Iterator[Any]:
    options = {"format_whitelist": READERS, "protocol_whitelist": "file"}
    with av.open(file, "r", container_options=options, metadata_errors="replace") as container:
        yield container


def _stream_of(container: Any) -> Any:
    """The first stream of pictures that is no cover. Raises `InputError` without one."""
    found = [each for each in container.streams.video if not _is_cover(each)]
    if found:
        found[0].thread_type = "SLICE"  # threads over frames would end at another frame of a broken file
        return found[0]
    if container.streams.video:
        raise InputError("has no video but a cover picture; it is a sound file: take it out of the folder")
    if container.streams.audio:
        raise InputError("has sound and no video; take it out of the folder, or export it with its picture")
    raise InputError("has no video; take it out of the folder, or export it again")


def _is_cover(stream: Any) -> bool:
    return bool(stream.disposition & Disposition.attached_pic)


def _decoded(container: Any, stream: Any, told: Told) -> Iterator[Frame]:
    told.rate = float(stream.average_rate or stream.guessed_rate or 0)
    _note_transparency(stream, told)
    last: float | None = None
    end: float | None = None
    after_gap, any_frame = False, False
    rotation: int | None = None
    matrix = UPRIGHT
    try:
        for decoded in _frames_or_errors(container, stream):
            if isinstance(decoded, str):
                after_gap = True
                if any_frame:
                    told.broken.setdefault(last, decoded)
                continue
            if after_gap and not decoded.key_frame:  # it may be made of the broken one
                continue
            check_frame_size(decoded.width, decoded.height)
            if decoded.rotation != rotation:  # asked for the matrix, PyAV keeps the frame until garbage is collected
                rotation, matrix = decoded.rotation, _matrix_of(decoded, told)
            _note_kind(decoded, told)
            yield FilmFrame(decoded, decoded.time, matrix, _aspect_of(stream), after_gap and any_frame)
            after_gap, any_frame, last, end = False, True, decoded.time, _end_of(decoded)
    except av.error.FFmpegError as error:  # of the container
        if not any_frame:
            raise
        told.ended = _reason(error)
    if not any_frame:
        raise InputError(NO_FRAMES)
    _note_missing_end(container, stream, end, told)


def _frames_or_errors(container: Any, stream: Any) -> Iterator[Any]:
    """The decoded frames; in the place of one that cannot be decoded a text that says why.

    What a decoder hides, as many repair small damage from the frame before and say nothing, is not noticed.
    """
    for packet in container.demux(stream):
        try:
            frames = packet.decode()
        except av.error.EOFError:
            return
        except av.error.FFmpegError as error:
            yield _reason(error)
            continue
        for frame in frames:
            yield "a frame is not whole" if frame.is_corrupt else frame


def check_frame_size(width: int, height: int) -> None:
    """Raises `InputError`, without the film's name, for frames of more than `MOST_FRAME_PIXELS`."""
    if width * height > MOST_FRAME_PIXELS:
        raise InputError(
            f"has frames of {width}x{height} px; at most {MOST_FRAME_PIXELS:,} pixels are read. Make it smaller"
        )


def _matrix_of(decoded: av.VideoFrame, told: Told) -> tuple[int, int, int, int]:
    """The rotation and mirroring of a frame's display matrix, `UPRIGHT` without one; a note on one that turns it."""
    sides: Any = decoded.side_data
    found = sides.get("DISPLAYMATRIX")
    if found is None:
        return UPRIGHT
    numbers = np.frombuffer(bytes(found), np.int32)
    a, b, c, d = (int(numbers[i]) for i in (0, 1, 3, 4))
    if b or c or a < 0 or d < 0:
        told.note("turned as its rotation says")
    return a, b, c, d


def _aspect_of(stream: Any) -> float:
    """Width over height of a pixel."""
    return float(stream.sample_aspect_ratio or stream.codec_context.sample_aspect_ratio or 1)


def _has_alpha(decoded: av.VideoFrame) -> bool:
    return any(each.is_alpha for each in decoded.format.components)


def _note_kind(decoded: av.VideoFrame, told: Told) -> None:
    """Notes on what is converted when a frame becomes 8-bit RGB."""
    bits = max(each.bits for each in decoded.format.components)
    curve = HDR_CURVES.get(int(decoded.color_trc))
    if curve:
        told.note(
            f"high dynamic range ({curve}), read without tone mapping, so its colours are flat and dark; convert it to "
            "SDR first, for example with ffmpeg's filters zscale and tonemap"
        )
    elif bits > 8:
        told.note(f"{bits} bits a channel, read as 8")
    if decoded.interlaced_frame:
        told.note("interlaced, so moving edges are combs; deinterlace it first, for example with ffmpeg's filter bwdif")


def _note_transparency(stream: Any, told: Told) -> None:
    if stream.metadata.get("alpha_mode", stream.metadata.get("ALPHA_MODE")) == "1":
        told.note("its transparency is not read, as the decoder leaves it out; to use it, save the clip as PNG frames")
    aspect = _aspect_of(stream)
    if abs(aspect - 1) > 1e-3:
        told.note(f"its pixels are {aspect:.4g} times as wide as high and are made square")


def _end_of(decoded: av.VideoFrame) -> float | None:
    """The time in s until which a frame is shown, as far as the file says; None without a time."""
    if decoded.time is None:
        return None
    return decoded.time + float((decoded.duration or 0) * (decoded.time_base or 0))


def _note_missing_end(container: Any, stream: Any, end: float | None, told: Told) -> None:
    """Says in `told` where a film ends long before its header says. end: of its last frame, s."""
    if end is None or told.ended:
        return
    whole = 0.0
    if stream.duration and stream.time_base:
        whole = float((stream.duration + (stream.start_time or 0)) * stream.time_base)
    elif container.duration and not container.streams.audio:
        whole = container.duration / av.time_base
    if whole - end > max(0.5, 3 / (told.rate or UNKNOWN_RATE)):
        told.ended = f"its header says {whole:.2f} s"


def _reason(error: Exception) -> str:
    """FFmpeg's words without the name of the file object."""
    return str(getattr(error, "strerror", None) or error)
