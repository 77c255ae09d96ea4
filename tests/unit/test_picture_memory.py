"""The memory that reading a picture takes, measured by the system, against what `limits.memory_of` says beforehand."""

import contextlib
import ctypes
import gc
import os
import struct
import sys
from pathlib import Path

import numpy as np
import pytest
from bespoke.nodes.images.reading.decode import read_mask, read_picture
from PIL import Image, features

CLEAR = Path("/proc/self/clear_refs")  # "5" sets the greatest memory of a process (VmHWM) back to the present one
pytestmark = pytest.mark.skipif(not os.access(CLEAR, os.W_OK), reason="needs Linux's /proc/self/clear_refs")

LARGE = (4000, 3000)
# {file: (mode, options of Pillow)}
FILES = {
    "grey.png": ("L", {}),
    "rgb.png": ("RGB", {"compress_level": 1}),
    "rgba.png": ("RGBA", {"compress_level": 1}),
    "palette.png": ("P", {"transparency": 0}),
    "sixteen.png": ("I;16", {"compress_level": 1}),
    "usual.jpg": ("RGB", {"quality": 90}),
    "turned.jpg": ("RGB", {"quality": 90, "turned": True}),
    "cmyk.jpg": ("CMYK", {"quality": 90}),
    "progressive.jpg": ("RGB", {"quality": 90, "progressive": True, "subsampling": 0}),
    "cmyk-progressive.jpg": ("CMYK", {"quality": 90, "progressive": True}),
    "lossy.webp": ("RGB", {"quality": 80, "method": 0}),
    "lossless.webp": ("RGBA", {"lossless": True, "quality": 0, "method": 0}),
    "moving.webp": ("RGBA", {"quality": 50, "method": 0, "save_all": True, "frames": 2}),
    "moving.gif": ("P", {"save_all": True, "frames": 2}),
    "moving.png": ("RGBA", {"save_all": True, "frames": 2, "compress_level": 1}),
    "rgb.avif": ("RGB", {"quality": 60, "speed": 10}),
    "rgba.avif": ("RGBA", {"quality": 60, "speed": 10}),
    "plain.bmp": ("RGB", {}),
    "lengths.tga": ("RGB", {"compression": "tga_rle"}),
    "plain.ppm": ("RGB", {}),
    "raw.tif": ("RGB", {}),
    "lzw.tif": ("RGBA", {"compression": "tiff_lzw"}),
    "one-strip.tif": ("RGB", {"compression": "tiff_adobe_deflate", "strip_size": 10**9}),
    "turned.tif": ("RGB", {"compression": "tiff_lzw", "turned": True}),
    "pages.tif": ("RGB", {"save_all": True, "frames": 3}),
    "floats.tif": ("F", {"compression": "tiff_lzw"}),
    "rgb.jp2": ("RGB", {}),
    "rgba.jp2": ("RGBA", {}),
    "blocks.dds": ("RGB", {"pixel_format": "DXT1"}),
}


def save(path, mode, size, turned=False, frames=1, **options):
    """A picture with detail that compresses neither very well nor very badly."""
    width, height = size
    small = np.random.default_rng(0).integers(0, 256, (height // 20, width // 20, 4), np.uint8)
    picture = Image.fromarray(small).resize(size, Image.Resampling.BICUBIC)
    if mode in ("I;16", "F"):
        grey = np.asarray(picture.convert("L"))
        picture = Image.fromarray(grey.astype(np.uint16) * 257 if mode == "I;16" else grey.astype(np.float32) / 255)
    elif mode == "P":
        picture = picture.convert("RGB").quantize(64)
    elif mode == "CMYK":
        picture = picture.convert("RGB").convert("CMYK")
    else:
        picture = picture.convert(mode)
    if turned:
        options["exif"] = picture.getexif()
        options["exif"][0x0112] = 6
    if frames > 1:
        options["append_images"] = [picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)] * (frames - 1)
    picture.save(path, **options)


def memory(key):
    status = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith(key))


def return_freed_memory():
    """Give freed memory back to the system. Reading would take it again, and the peak would not show it."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)


def measure(read):
    """(bytes that `read(room)` takes at its peak, beyond those before; bytes that it says it takes), in a child."""
    here, there = os.pipe()
    child = os.fork()
    if not child:
        status = 1
        with contextlib.suppress(BaseException):
            said = []

            @contextlib.contextmanager
            def room(needed):
                said.append(needed)
                yield

            return_freed_memory()
            CLEAR.write_text("5")
            before = memory("VmRSS")
            read(room)
            os.write(there, struct.pack("<QQ", max(0, memory("VmHWM") - before), max(said)))
            status = 0
        os._exit(status)
    os.close(there)
    with os.fdopen(here, "rb") as answer:
        data = answer.read()
    assert os.waitpid(child, 0)[1] == 0
    return struct.unpack("<QQ", data)


def test_a_large_transparent_picture_is_not_copied(tmp_path):
    """3000x3000 RGBA: 4 bytes a pixel in Pillow and 3 of channels, and no float of the whole picture."""
    Image.new("RGBA", (3000, 3000), (10, 200, 30, 128)).save(tmp_path / "a.png", compress_level=1)
    peak, said = measure(lambda room: read_picture(tmp_path / "a.png", lambda *_: (512, 512), True, room))
    assert 3000 * 3000 * 4 < peak <= said + 2**22  # what else the process takes meanwhile
    assert said <= 3000 * 3000 * 8 + 2**24


@pytest.mark.slow
@pytest.mark.parametrize("name", FILES)
def test_no_picture_takes_more_than_it_says(tmp_path, name):
    """12 megapixels each: the peak of the process is below the memory that is said, which is at most 6 times it."""
    mode, options = FILES[name]
    if name.endswith((".avif", ".jp2")) and not features.check(
        {"avif": "avif", "jp2": "jpg_2000"}[name[-4:].strip(".")]
    ):
        pytest.skip("this Pillow does not write it")
    save(tmp_path / name, mode, LARGE, **options)
    peak, said = measure(lambda room: read_picture(tmp_path / name, lambda *_: (512, 640), True, room))
    pixels = LARGE[0] * LARGE[1]
    sys.stdout.write(f"\n{name:24s}{peak / pixels:6.1f} bytes a pixel at the peak, {said / pixels:5.1f} said")
    assert peak <= said <= 6 * peak


@pytest.mark.slow
def test_the_bomb_of_half_a_megabyte(tmp_path):
    """11,000x11,000 RGBA in 0.5 MB took 3.5 GB. As a picture and as a mask it takes less than 1 GB."""
    Image.new("RGBA", (11_000, 11_000), (10, 200, 30, 128)).save(tmp_path / "a.png", compress_level=9)
    size = (11_000, 11_000)
    for read in (
        lambda room: read_picture(tmp_path / "a.png", lambda *_: (512, 512), True, room),
        lambda room: read_mask(tmp_path / "a.png", size, (512, 512), room),
    ):
        peak, said = measure(read)
        sys.stdout.write(f"\n{peak / 2**20:.0f} MB at the peak, {said / 2**20:.0f} MB said")
        assert peak <= said <= 2**30
