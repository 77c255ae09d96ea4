"""Reading a folder of large photographs: against decoding alone, the second time, and its memory.

    python3 dev.py test -m bench tests/bench/bench_picture_reading.py -s

`PICTURES` JPEGs of 12 megapixels and about 4 MB, each with its own pixels. "decoding" is Pillow's `load` of each file
in two threads and nothing else; "scaling" is that and Pillow's own Lanczos scaling to the same size, which gives the
bits that a set has and takes longer than the decoding. Reading (two threads as well: decoding, scaling, measurements,
the search for duplicates and the fingerprint) alternates with them, from an empty memory, and the medians of `ROUNDS`
are compared, since other programs may use the machine. Memory is the peak of a child process beyond the pictures at
their target size.
"""

import contextlib
import os
import statistics
import struct
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from bespoke.nodes.images import hashing
from bespoke.nodes.images.folder import FolderRequest, read_folder
from bespoke.nodes.images.hashing import hash_files
from bespoke.nodes.images.reading import pictures as reading
from bespoke.nodes.images.reading import stamps
from PIL import Image, ImageOps

pytestmark = pytest.mark.bench

PICTURES, ROUNDS, SIZE = 40, 3, (4000, 3000)
MOST_RATIO, MOST_SECOND, MOST_BEYOND = 1.25, 1.0, 300e6  # of scaling; s for 500 pictures; bytes


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder, draw = tmp_path_factory.mktemp("set"), np.random.default_rng(0)
    small = Image.fromarray(draw.integers(0, 256, (SIZE[1] // 8, SIZE[0] // 8, 3), np.uint8))
    picture = np.asarray(small.resize(SIZE, Image.Resampling.BICUBIC)).astype(np.int16)
    picture = (picture + draw.integers(-12, 13, picture.shape, np.int16)).clip(0, 255).astype(np.uint8)
    for i in range(PICTURES):
        Image.fromarray(np.roll(picture, 97 * i, (0, 1))).save(folder / f"{i:03}.jpg", quality=88)
    return folder


def timed(function):
    began = time.perf_counter()
    function()
    return time.perf_counter() - began


def decode(path):
    with Image.open(path) as picture:
        picture.load()


def scale(path):
    with Image.open(path) as picture:
        ImageOps.fit(picture, (576, 448), Image.Resampling.LANCZOS)


def test_reading_against_decoding(folder, monkeypatch):
    monkeypatch.setattr(stamps, "SETTLED", 0)
    monkeypatch.setattr(reading, "threads", lambda: 2)
    request, paths = FolderRequest(folder, captions="file names"), sorted(folder.iterdir())
    decoding, scaling, first, hashed, second = [], [], [], [], []
    with ThreadPoolExecutor(2) as pool:
        for _ in range(ROUNDS):
            reading.KEPT.clear()
            hashing.DIGESTS.clear()
            decoding.append(timed(lambda: list(pool.map(decode, paths))))
            scaling.append(timed(lambda: list(pool.map(scale, paths))))
            first.append(timed(lambda: read_folder(request)))
            hashed.append(timed(lambda: hash_files(folder)))
            second.append((timed(lambda: hash_files(folder)), timed(lambda: read_folder(request))))
    size = sum(path.stat().st_size for path in paths) / PICTURES / 1e6
    ratio, alone = (statistics.median(first) / statistics.median(each) for each in (scaling, decoding))
    queue, again = (statistics.median(each) / PICTURES * 500 for each in zip(*second, strict=True))
    print(f"\n{PICTURES} pictures of {SIZE[0]}x{SIZE[1]} px and {size:.1f} MB, two threads, medians of {ROUNDS}")
    print(
        f"reading is {alone:.2f} times decoding and {ratio:.2f} times scaling; hashing for the first time adds", end=" "
    )
    print(f"{statistics.median(hashed) / statistics.median(decoding):.2f} times decoding")
    print(
        f"second queue of 500 pictures: {queue:.3f} s to see that nothing changed, {again:.3f} s to make the set anew"
    )
    assert ratio < MOST_RATIO
    assert queue + again < MOST_SECOND


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux")
def test_memory(folder):
    here, there = os.pipe()
    child = os.fork()
    if not child:
        with contextlib.suppress(BaseException):
            reading.KEPT.clear()
            Path("/proc/self/clear_refs").write_text("5")
            before = memory("VmRSS")
            images = read_folder(FolderRequest(folder, captions="file names"))
            pixels = sum(item.pixels.nbytes for item in images.items)
            os.write(there, struct.pack("<QQ", memory("VmHWM") - before, pixels))
        os._exit(0)
    os.close(there)
    with os.fdopen(here, "rb") as answer:
        peak, pixels = struct.unpack("<QQ", answer.read())
    os.waitpid(child, 0)
    print(f"\n{reading.threads()} threads: {(peak - pixels) / 1e6:.0f} MB beyond {pixels / 1e6:.0f} MB of pixels")
    assert peak - pixels < MOST_BEYOND


def memory(key):
    status = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith(key))
