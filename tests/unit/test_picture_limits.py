"""Files that keep Pillow's loops in Python busy are refused in time; a failing disk or memory is called by its name."""

import errno
import io
import struct
import time
import zlib

import numpy as np
import pytest
from bespoke.nodes.images.reading import decode, reads
from bespoke.nodes.images.reading.decode import read_picture, read_thumbnail
from bespoke.training.errors import InputError
from PIL import Image, features

LONGEST = 3.0  # s, on a busy machine; Pillow alone takes 2 to 27 (ten times what a tenth of each file takes it)
MANY = 1_000_000


def encoded(kind, mode="RGB", **options):
    file = io.BytesIO()
    Image.new("RGB", (64, 64), (9, 80, 7)).convert(mode).save(file, kind, **options)
    return file.getvalue()


def chunk(name, data=b""):
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def jpeg(between):
    data = encoded("JPEG")
    return data[:20] + between + data[20:]  # behind the first segment


def gif(between=b"", frames=b""):
    data = encoded("GIF", "P")
    first = data.index(b",", 13)
    return data[:first] + between + data[first:-1] + frames + b";"


def many_tags():
    """A BigTIFF (Adobe's design of 2007: 8-byte counts) of one page with very many private tags."""
    tags = b"".join(struct.pack("<HHQQ", 40000 + i % 20000, 3, 1, 0) for i in range(20_000)) * (MANY // 20_000)
    return b"II+\0\x08\0\0\0" + struct.pack("<QQ", 16, MANY) + tags + bytes(8)


SLOW = {
    "jpeg of empty segments": lambda: jpeg(b"\xff\xef\0\2" * 4 * MANY),
    "jpeg of filling bytes": lambda: jpeg(b"\xff" * 8 * MANY),
    "jpeg of other bytes": lambda: jpeg(b"\0" * 20 * MANY),
    "png of empty chunks before": lambda: encoded("PNG")[:33] + chunk(b"abCd") * MANY + encoded("PNG")[33:],
    "png of empty chunks behind": lambda: encoded("PNG")[:-12] + chunk(b"abCd") * MANY + encoded("PNG")[-12:],
    "png of empty pixels": lambda: encoded("PNG")[:33] + chunk(b"IDAT") * MANY + encoded("PNG")[33:],
    "gif of empty extensions": lambda: gif(b"\x21\xfe\0" * 4 * MANY),
    "tiff of a million tags": many_tags,
    "ppm of a comment": lambda: b"P6\n#" + b"a" * 40 * MANY + b"\n64 64\n255\n" + bytes(64 * 64 * 3),
}


@pytest.mark.parametrize("kind", SLOW)
def test_a_file_of_very_many_parts_is_refused_in_time(tmp_path, kind):
    """The bound is on the time as a user has it."""
    path = tmp_path / f"x.{kind[:4].strip()}"
    path.write_bytes(SLOW[kind]())
    began = time.perf_counter()
    with pytest.raises(InputError, match=r"very many very small parts .*: \d\d,\d\d\d reads .*save it again"):
        read_picture(path, lambda *size: size)
    assert time.perf_counter() - began < LONGEST


def test_a_gif_of_600_000_frames_is_read_and_not_counted_to_its_end(tmp_path):
    """The picture is the first frame; how many follow is not worth seconds."""
    frame = b",\0\0\0\0\1\0\1\0\0\2\2D\1\0"
    (tmp_path / "x.gif").write_bytes(gif(frames=frame * 600_000))
    began = time.perf_counter()
    read = read_picture(tmp_path / "x.gif", lambda *size: size)
    assert time.perf_counter() - began < LONGEST
    assert read.note == "animated, the first frame is used"
    assert np.array_equal(read.pixels, np.asarray(Image.open(io.BytesIO(gif())).convert("RGB")))


def test_what_is_read_again_and_again_is_refused(monkeypatch):
    """Values of a TIFF's tags may all be the same megabytes of the file."""
    monkeypatch.setattr(reads, "MOST_BYTES", 1000)
    file = reads.BoundedReads(io.BytesIO(bytes(1000)), 1000)
    for _ in range(4):
        file.seek(0)
        assert len(file.read()) == 1000
    file.seek(0)
    with pytest.raises(InputError, match="lie over each other: of 1,000 bytes 5,000 were read"):
        file.read()


def usual():
    """(name, bytes): a noisy picture in each format, with small parts where its writer can make them."""
    draw = np.random.default_rng(0)
    noise = Image.fromarray(draw.integers(0, 256, (150, 200, 3), np.uint8))
    kinds = {"PNG": {}, "JPEG": {}, "GIF": {}, "TIFF": {"compression": "raw"}, "BMP": {}, "PPM": {}, "TGA": {}}
    kinds |= {"WEBP": {}} if features.check("webp") else {}
    kinds |= {"JPEG2000": {}} if features.check("jpg_2000") else {}
    for kind, options in kinds.items():
        file = io.BytesIO()
        noise.save(file, kind, **options)
        yield kind, file.getvalue()
    file = io.BytesIO()
    noise.save(file, "GIF", save_all=True, append_images=[noise.rotate(i) for i in range(1, 6)])
    yield "GIF of frames", file.getvalue()
    file = io.BytesIO()
    noise.save(file, "PNG")
    data = file.getvalue()
    pixels = b"".join(
        data[at + 8 : at + 8 + struct.unpack(">I", data[at : at + 4])[0]]
        for at in _chunks(data)
        if data[at + 4 : at + 8] == b"IDAT"
    )
    parts = b"".join(chunk(b"IDAT", pixels[i : i + 1024]) for i in range(0, len(pixels), 1024))
    yield "PNG in parts of 1 kB", data[:33] + parts + data[-12:]


def _chunks(data):
    at = 8
    while at < len(data):
        yield at
        at += 12 + struct.unpack(">I", data[at : at + 4])[0]


def test_usual_files_stay_far_below_the_bound(tmp_path, monkeypatch):
    """Oracle: Pillow's own decoding. A tenth of the bound is enough for each."""
    monkeypatch.setattr(reads, "MOST_READS", reads.MOST_READS // 10)
    for name, data in usual():
        (tmp_path / "x").write_bytes(data)
        read = read_picture(tmp_path / "x", lambda *size: size)
        with Image.open(io.BytesIO(data)) as opened:
            assert np.array_equal(read.pixels, np.asarray(opened.convert("RGB"))), name
        assert read.note == ("animated, the first of 6 frames is used" if name == "GIF of frames" else "")


# --- errors that are not the file's -----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
@pytest.mark.parametrize(
    ("error", "text"),
    [
        (MemoryError(), "needs more memory to be decoded than is free; close other programs"),
        (OSError(errno.EIO, "Input/output error"), r"cannot be read from the disk \(input/output error\); look"),
        (PermissionError(errno.EACCES, "Permission denied"), r"cannot be read from the disk \(permission denied\)"),
    ],
)
def test_an_error_of_memory_or_disk_is_not_the_pictures(tmp_path, monkeypatch, kind, error, text):
    """In the middle of decoding, as a bad sector or a lost network drive gives it."""
    (tmp_path / "x").write_bytes(encoded(kind))
    real, count = reads.BoundedReads.read, 0

    def failing(self, size=-1):
        nonlocal count
        count += 1
        if count > 5:
            raise error
        return real(self, size)

    monkeypatch.setattr(reads.BoundedReads, "read", failing)
    with pytest.raises(InputError, match=text):
        read_picture(tmp_path / "x", lambda *size: size)


def test_a_file_that_has_gone_is_said(tmp_path):
    with pytest.raises(InputError, match=r"cannot be read from the disk \(no such file or directory\)"):
        read_picture(tmp_path / "x.png", lambda *size: size)


def test_a_malformed_file_is_still_no_picture(tmp_path):
    """Pillow's own errors have no number; EINVAL comes of a place before the file's beginning."""
    assert decode._disk_error(OSError("broken data stream")) == ""
    assert decode._disk_error(OSError(errno.EINVAL, "Invalid argument")) == ""
    (tmp_path / "x.png").write_bytes(b"no picture")
    with pytest.raises(InputError, match="is no picture that can be read"):
        read_picture(tmp_path / "x.png", lambda *size: size)


# --- thumbnails -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("size", "expected"), [((1200, 900), (128, 96)), ((64, 900), (9, 128)), ((40, 30), (40, 30))])
@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_a_thumbnail_keeps_the_shape_and_the_colours(tmp_path, kind, size, expected):
    """Oracle: Pillow's `Image.thumbnail` of the whole picture, up to the decoder's own scaling (5 of 255)."""
    small = np.random.default_rng(0).integers(0, 256, (size[1] // 10, size[0] // 10 or 1, 3), np.uint8)
    Image.fromarray(small).resize(size, Image.Resampling.BICUBIC).save(tmp_path / "x", kind)
    made = read_thumbnail(tmp_path / "x", 128)
    assert made.size == expected
    with Image.open(tmp_path / "x") as opened:
        whole = opened.resize(expected, Image.Resampling.LANCZOS)
    assert np.abs(np.asarray(made, np.int16) - np.asarray(whole, np.int16)).mean() < 5
