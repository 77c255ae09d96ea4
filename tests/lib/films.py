"""Films for tests, of which every frame says its number by its grey level, made with PyAV."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

STEP = 5  # grey levels between two numbers
MS = Fraction(1, 1000)


def grey(number: int, size: tuple[int, int] = (96, 128)) -> np.ndarray:
    """The frame of a number, 0 to 51: [H, W, 3] uint8 of the grey `STEP` times the number. size: (height, width)."""
    return np.full((*size, 3), number * STEP, np.uint8)


def numbers(pixels) -> list[int]:
    """The numbers that the frames of a clip [F, H, W, 3] say. A frame of two colours has none and fails."""
    assert bool((pixels == pixels[:, :1, :1, :1]).all())
    return [int(value) // STEP for value in pixels[:, 0, 0, 0]]


def write_film(
    path: Path,
    frames: Sequence[np.ndarray],
    rate: Fraction | int = 24,
    codec: str = "ffv1",
    pixel_format: str = "bgr0",
    times_ms: Sequence[int] | None = None,
    **options: str,
) -> Path:
    """Write frames [H, W, 3 or 4] as a film, without loss by default. times_ms: when each is shown, else by `rate`."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate, options=options)
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = pixel_format
        if times_ms is not None:
            stream.codec_context.time_base = MS
        for number, values in enumerate(frames):
            kind = "rgba" if values.shape[-1] == 4 else "rgb24"
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(values), format=kind)
            if times_ms is not None:
                frame.pts, frame.time_base = times_ms[number], MS
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path
