"""Writing a clip as a film without loss."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from torch import Tensor

from ...bridge.files.writing import replacing, sync

ENDING = ".mkv"
# FFV1 (RFC 9043) keeps every bit of RGB, with a checksum of each part of a frame.
CODEC, PIXELS, OPTIONS = "ffv1", "bgr0", {"level": "3", "slicecrc": "1"}
LARGEST_DENOMINATOR = 1001  # of a rate: 24000/1001 is 23.976


def write_clip(path: Path, pixels: Tensor, fps: float) -> None:
    """Write a clip, or its mask, whole or not at all. pixels: [F, H, W, 3] or [F, H, W] uint8. fps: frames a second."""
    rate = Fraction(fps or 24).limit_denominator(LARGEST_DENOMINATOR)
    with replacing(path) as temporary, open(temporary, "wb") as file:
        with av.open(file, "w", format="matroska") as container:
            stream = container.add_stream(CODEC, rate=rate, options=OPTIONS)
            stream.height, stream.width = pixels.shape[1:3]
            stream.pix_fmt = PIXELS
            for values in pixels:
                colours = values if values.ndim == 3 else values[..., None].expand(-1, -1, 3)
                frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(colours.numpy()), format="rgb24")
                container.mux(stream.encode(frame))
            container.mux(stream.encode())
        file.flush()
        sync(file.fileno())
