"""More than fifty malformed files, each named in the error, and odd but valid picture files, each read correctly."""

import io
import random
import struct
import zlib

import numpy as np
import pytest
import torch
from bespoke.nodes.images.folder import FolderRequest, read_folder
from bespoke.nodes.images.hashing import hash_files
from bespoke.nodes.images.sheet import contact_sheet, describe
from bespoke.training.errors import InputError
from PIL import Image

WIDTH, HEIGHT = 120, 96
ENDINGS = {
    "PNG": "png",
    "JPEG": "jpg",
    "WEBP": "webp",
    "BMP": "bmp",
    "GIF": "gif",
    "TIFF": "tif",
    "TGA": "tga",
    "PPM": "ppm",
}


def noise(width=WIDTH, height=HEIGHT, mode="RGB"):
    pixels = np.random.default_rng(0).integers(0, 255, (height, width, 3), np.uint8)
    return Image.fromarray(pixels).convert(mode)


def encoded(picture=None, kind="PNG", **options) -> bytes:
    out = io.BytesIO()
    (picture or noise()).save(out, kind, **options)
    return out.getvalue()


def png_chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(width: int, height: int, rows: bytes, depth=8, colour=2, extra=b"") -> bytes:
    head = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + png_chunk(b"IHDR", head)
        + extra
        + png_chunk(b"IDAT", zlib.compress(rows))
        + png_chunk(b"IEND", b"")
    )


def malformed() -> dict[str, bytes]:
    """{file name: bytes} of files that must be refused."""
    out = {
        "empty.png": b"",
        "one-byte.jpg": b"\xff",
        "zeros.png": b"\0" * 4096,
        "text.png": b"this is text",
        "html.jpg": b"<!doctype html><title>404</title>",
        "script.webp": b"#!/bin/sh\nrm -rf /\n",
        "svg.svg": b'<svg xmlns="http://www.w3.org/2000/svg" width="99" height="99"/>',
        "document.pdf": b"%PDF-1.4\n1 0 obj\n",
        "drawing.eps": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 100 100\nshowpage\n",
        "drawing-as.png": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 100 100\nshowpage\n",
        "archive.zip": b"PK\x03\x04" + b"\0" * 64,
        "pickle.png": b"\x80\x04cos\nsystem\n(S'true'\ntR.",
        "no-ending": b"\x13\x37" * 50,
        "signature-only.png": b"\x89PNG\r\n\x1a\n",
        "bomb.png": png(30_000, 30_000, b"\0" * 1000),  # 900 million pixels in a few bytes
        "tall-bomb.png": png(1, 2**31 - 1, b"\0" * 1000),
        "wide-bomb.png": png(2**31 - 1, 1, b"\0" * 1000),
        "no-size.png": png(0, 0, b""),
        "no-rows.png": png(WIDTH, HEIGHT, b""),
        "odd-depth.png": png(WIDTH, HEIGHT, b"\0" * 99, depth=7),
        "odd-colour.png": png(WIDTH, HEIGHT, b"\0" * 99, colour=9),
        "text-bomb.png": png(
            WIDTH, HEIGHT, b"\0" * 99, extra=png_chunk(b"zTXt", b"a\0\0" + zlib.compress(b"\0" * 80_000_000, 9))
        ),
        "profile-bomb.png": png(
            WIDTH, HEIGHT, b"\0" * 99, extra=png_chunk(b"iCCP", b"a\0\0" + zlib.compress(b"\0" * 80_000_000, 9))
        ),
        "bomb.bmp": b"BM" + struct.pack("<IHHIIiiHHIIiiII", 54, 0, 0, 54, 40, 40_000, 40_000, 1, 24, 0, 0, 0, 0, 0, 0),
        "bomb.gif": b"GIF89a" + struct.pack("<HHBBB", 65535, 65535, 0, 0, 0) + b";",
        "lying.tga": struct.pack("<BBBHHBHHHHBB", 0, 0, 2, 0, 0, 0, 0, 0, 60_000, 60_000, 24, 0),
        "header.webp": b"RIFF\xff\xff\xff\xffWEBPVP8 " + b"\0" * 30,
        "self-pointing.tif": b"II*\0\x08\0\0\0" + struct.pack("<HHHIII", 1, 256, 4, 1, 100, 8),
        "nan.tif": encoded(Image.fromarray(np.full((HEIGHT, WIDTH), np.nan, np.float32)), "TIFF"),
        "thin.png": encoded(noise(12, 200)),
        "dot.gif": encoded(noise(1, 1), "GIF"),
        "huge-header.png": b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 2**31 - 1) + b"IHDR" + b"\0" * 64,
        "wrong-sum.png": encoded()[:29] + b"\0\0\0\0" + encoded()[33:],
    }
    for kind, ending in ENDINGS.items():
        whole = encoded(kind=kind)
        out[f"cut-early.{ending}"] = whole[: len(whole) // 20]
        out[f"cut-late.{ending}"] = whole[: len(whole) * 2 // 3]
    broken = bytearray(encoded())
    broken[len(broken) // 2 : len(broken) // 2 + 200] = b"\0" * 200
    out["scrambled.png"] = bytes(broken)
    return out


def good() -> dict[str, tuple[bytes, object]]:
    """{file name: (bytes, check of the pixels [H, W, 3])} of odd but valid picture files."""

    def like(picture, tolerance=0):
        want = torch.from_numpy(np.array(picture.convert("RGB"))).int()
        return lambda pixels: pixels.shape == want.shape and (pixels.int() - want).abs().float().mean() <= tolerance

    def one_colour(*rgb, tolerance=3):
        return lambda pixels: (pixels.reshape(-1, 3).int() - torch.tensor(rgb)).abs().max() <= tolerance

    def plain(mode, colour):
        return Image.new(mode, (WIDTH, HEIGHT), colour)

    turned = noise()
    exif = turned.getexif()
    exif[0x0112] = 6  # to be shown rotated by 90 degrees to the right
    palette = noise().quantize(16)
    half = noise(mode="RGBA")
    half.paste((0, 0, 0, 0), (0, 0, WIDTH // 2, HEIGHT))
    clear = plain("P", 0)
    clear.putpalette([10, 20, 30] * 256)
    frames = [plain("RGB", (200, 30, 40)), plain("RGB", (0, 0, 255))]
    wide = np.zeros((HEIGHT, WIDTH), np.uint16) + 51400  # 200 of 255
    return {
        "jpeg-named.png": (encoded(kind="JPEG", quality=100, subsampling=0), like(noise(), 3)),
        "png-named.jpg": (encoded(), like(noise())),
        "no-ending-at-all": (encoded(), like(noise())),
        "ends-late.png": (encoded() + b"garbage behind the end" * 20, like(noise())),
        "turned.jpg": (
            encoded(turned, "JPEG", exif=exif, quality=100, subsampling=0),
            like(noise().transpose(Image.ROTATE_270), 3),
        ),
        "cmyk.jpg": (
            encoded(plain("RGB", (200, 30, 40)).convert("CMYK"), "JPEG", quality=100),
            one_colour(200, 30, 40, tolerance=6),
        ),
        "grey.png": (encoded(plain("L", 77)), one_colour(77, 77, 77)),
        "bits.png": (encoded(plain("1", 1)), one_colour(255, 255, 255)),
        "sixteen.png": (encoded(Image.fromarray(wide)), one_colour(200, 200, 200)),
        "sixteen.tif": (encoded(Image.fromarray(wide), "TIFF"), one_colour(200, 200, 200)),
        "float.tif": (
            encoded(Image.fromarray(np.full((HEIGHT, WIDTH), 0.5, np.float32)), "TIFF"),
            one_colour(128, 128, 128, tolerance=0),
        ),
        "palette.png": (encoded(palette), like(palette)),
        "palette-alpha.png": (encoded(clear, transparency=0), one_colour(255, 255, 255)),
        "grey-alpha.png": (encoded(plain("LA", (9, 0))), one_colour(255, 255, 255)),
        "half.png": (
            encoded(half),
            lambda p: (p[:, : WIDTH // 2] == 255).all() and not (p[:, WIDTH // 2 :] == 255).all(),
        ),
        "moving.gif": (encoded(frames[0], "GIF", save_all=True, append_images=frames[1:]), one_colour(200, 30, 40)),
        "moving.webp": (
            encoded(frames[0], "WEBP", save_all=True, append_images=frames[1:], lossless=True),
            one_colour(200, 30, 40),
        ),
        "moving.png": (encoded(frames[0], "PNG", save_all=True, append_images=frames[1:]), one_colour(200, 30, 40)),
        "pages.tif": (encoded(frames[0], "TIFF", save_all=True, append_images=frames[1:]), one_colour(200, 30, 40)),
        "progressive.jpg": (encoded(kind="JPEG", quality=100, subsampling=0, progressive=True), like(noise(), 3)),
        "Übergröße 图片 .PNG": (encoded(), like(noise())),
    }


BAD, GOOD = malformed(), good()


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "set").mkdir()
    return tmp_path / "set"


def request(folder, **changes):
    return FolderRequest(folder, **{"captions": "file names"} | changes)


def test_at_least_fifty_malformed_files():
    assert len(BAD) >= 50


def test_every_malformed_file_is_named_and_no_good_one(folder):
    for name, data in BAD.items():
        (folder / name).write_bytes(data)
    for name, (data, _) in GOOD.items():
        (folder / name).write_bytes(data)
    (folder / "a folder.png").mkdir()
    assert hash_files(folder)
    with pytest.raises(InputError) as error:
        read_folder(request(folder))
    text = str(error.value)
    assert text.startswith(f"{len(BAD)} of the files")
    for name in BAD:
        assert f" {name} " in text, name
    for name in GOOD:
        assert f" {name} " not in text, name


def test_odd_but_valid_files_are_read(folder):
    for name, (data, _) in GOOD.items():
        (folder / name).write_bytes(data)
    images = read_folder(request(folder))
    pixels = {item.name: item.pixels for item in images.items}
    assert pixels.keys() == GOOD.keys()
    for name, (_, right) in GOOD.items():
        assert pixels[name].dtype == torch.uint8
        assert right(pixels[name]), name
    text = describe(images)
    for name in ("moving.gif", "moving.webp", "moving.png", "pages.tif"):
        assert f"{name}: animated, the first of 2 frames is used" in text
    assert contact_sheet(images).shape[-1] == 3


def test_malformed_masks_are_named(folder):
    for i, data in enumerate(BAD.values()):
        (folder / f"{i:02}.png").write_bytes(GOOD["png-named.jpg"][0])
        (folder / f"{i:02}-mask.png").write_bytes(data)
    with pytest.raises(InputError) as error:
        read_folder(request(folder, masks="*-mask.png"))
    for i in range(len(BAD)):
        assert f" {i:02}-mask.png " in str(error.value)


def test_odd_captions_are_read(folder):
    for name, text in {
        "latin": b"caf\xe9",
        "nul": b"a\0b",
        "bom": "\ufeffa cat".encode(),
        "wide": "a cat".encode("utf-16"),
        "long": b"x " * 50_000,
    }.items():
        (folder / f"{name}.png").write_bytes(GOOD["png-named.jpg"][0])
        (folder / f"{name}.txt").write_bytes(text)
    images = read_folder(request(folder, captions="text files"))
    captions = {item.name: item.caption for item in images.items}
    assert captions["bom.png"] == "a cat"
    assert captions["wide.png"] == "a cat"
    assert captions["latin.png"] == "café"
    assert captions["nul.png"] == "a b"
    assert "No caption" not in describe(images)
    (folder / "nul.txt").write_bytes(b"\0 \n")
    assert "No caption: nul.png;" in describe(read_folder(request(folder, captions="text files")))


def test_random_byte_changes_raise_input_errors_only(folder):
    """Two hundred pictures with random bytes changed are read or named in an InputError."""
    draw = random.Random(0)
    wholes = [data for data, _ in GOOD.values()]
    messages = []
    for _ in range(200):
        data = bytearray(draw.choice(wholes))
        for _ in range(draw.randint(1, 12)):
            data[draw.randrange(len(data))] = draw.randrange(256)
        (folder / "x.png").write_bytes(bytes(data))
        try:
            read_folder(request(folder))
            messages.append("")
        except InputError as error:
            messages.append(str(error))
    assert "" in messages
    assert all("x.png" in text for text in messages if text)
    assert any(messages)
