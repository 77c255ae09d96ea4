"""Reading many and large pictures in bands, threads and from memory: the same bits as Pillow gives for whole ones."""

import io
import os
import struct
import threading
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from bespoke.nodes.images import hashing, quality
from bespoke.nodes.images.folder import FolderRequest, read_folder
from bespoke.nodes.images.hashing import hash_files
from bespoke.nodes.images.quality import SAME_BITS, SAME_RMS, Traits, alike, traits_of
from bespoke.nodes.images.reading import bands, limits, stamps
from bespoke.nodes.images.reading import pictures as reading
from bespoke.nodes.images.reading.decode import read_mask, read_picture
from bespoke.training.errors import InputError
from PIL import Image, ImageOps

LANCZOS = Image.Resampling.LANCZOS


@pytest.fixture(autouse=True)
def nothing_kept(monkeypatch):
    """Each test begins with empty memories, and files that were just written count as settled."""
    monkeypatch.setattr(stamps, "SETTLED", 0)
    reading.KEPT.clear()
    hashing.DIGESTS.clear()


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "set").mkdir()
    return tmp_path / "set"


def noise(width, height, mode="RGB", seed=0):
    values = np.random.default_rng(seed).integers(0, 256, (height, width, 4), np.uint8)
    return Image.fromarray(values).convert(mode) if mode != "RGBA" else Image.fromarray(values)


def png_chunk(name, data):
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(width, height, colour=6, rows=b""):
    head = struct.pack(">IIBBBBB", width, height, 8, colour, 0, 0, 0)
    chunks = ((b"IHDR", head), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(png_chunk(*chunk) for chunk in chunks)


def whole(path, target):
    """(pixels, alpha) of a picture by Pillow's own functions on the whole picture: the rule that the bands follow."""
    with Image.open(path) as opened:
        picture = ImageOps.exif_transpose(opened)
    alpha = None
    if picture.mode.startswith("I") or picture.mode == "F":
        values = np.asarray(picture, np.float64)
        picture = Image.fromarray((values / (1 if picture.mode == "F" else 65535) * 255).round().astype(np.uint8))
    elif picture.has_transparency_data:
        picture = picture.convert("RGBA")
        alpha = picture.getchannel("A")
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
    size = target[::-1]
    pixels = np.array(ImageOps.fit(picture.convert("RGB"), size, LANCZOS))
    return pixels, None if alpha is None else np.array(ImageOps.fit(alpha, size, LANCZOS)).astype(np.float32) / 255


def saved(folder, kind):
    """A picture of 150x110 px of a kind that Pillow writes."""
    plain, path = noise(150, 110), folder / "x.png"
    if kind in ("RGB", "RGBA", "L", "LA", "1"):
        noise(150, 110, kind).save(path)
    elif kind == "palette":
        plain.quantize(40).save(path)
    elif kind == "palette with a clear colour":
        plain.quantize(40).save(path, transparency=3)
    elif kind == "a clear colour":
        Image.new("RGB", (150, 110), (9, 8, 7)).save(path, transparency=(9, 8, 7))
    elif kind == "16 bits":
        Image.fromarray(np.random.default_rng(1).integers(0, 65536, (110, 150), np.uint16)).save(path)
    elif kind == "floats":
        path = folder / "x.tif"
        Image.fromarray(np.random.default_rng(1).random((110, 150), np.float32)).save(path)
    else:
        path = folder / "x.jpg"
        plain.convert(kind.split()[0]).save(path, progressive="progressive" in kind)
    return path


KINDS = ["RGB", "RGBA", "L", "LA", "1", "palette", "palette with a clear colour", "a clear colour", "16 bits", "floats"]


@pytest.mark.parametrize("at_once", [0, 10**9])
@pytest.mark.parametrize("band", [1000, 2**18])
@pytest.mark.parametrize("kind", [*KINDS, "RGB jpeg", "CMYK jpeg", "RGB progressive jpeg"])
def test_bands_give_the_bits_of_the_whole_picture(folder, monkeypatch, kind, band, at_once):
    """Oracle: Pillow's exif_transpose, alpha_composite, convert and ImageOps.fit on the whole picture."""
    monkeypatch.setattr(bands, "BAND", band)
    monkeypatch.setattr(bands, "MOST_AT_ONCE", at_once)
    path = saved(folder, kind)
    for target in ((64, 64), (64, 128), (104, 72), (110, 150), (110, 80), (70, 150)):
        read = read_picture(path, lambda *_, target=target: target, with_alpha=True)
        pixels, alpha = whole(path, target)
        assert np.array_equal(read.pixels.numpy(), pixels)
        assert read.original == (110, 150)
        assert (read.alpha is None) == (alpha is None)
        assert alpha is None or np.array_equal(read.alpha.numpy(), alpha)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation_is_turned_band_by_band(folder, monkeypatch, orientation):
    """Oracle: Pillow's exif_transpose, which turns the whole picture."""
    monkeypatch.setattr(bands, "BAND", 700)
    picture = noise(150, 110, "RGBA")
    exif = picture.getexif()
    exif[0x0112] = orientation
    picture.save(folder / "x.png", exif=exif)
    for target in ((64, 96), (96, 64)):
        read = read_picture(folder / "x.png", lambda *_, target=target: target, with_alpha=True)
        pixels, alpha = whole(folder / "x.png", target)
        assert np.array_equal(read.pixels.numpy(), pixels)
        assert np.array_equal(read.alpha.numpy(), alpha)
        assert read.original == ((150, 110) if orientation >= 5 else (110, 150))


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA"])
def test_masks_in_bands(folder, monkeypatch, mode):
    """By hand: the mean of the channels on white, less what is transparent; scaled with 8 bits, or as it is."""
    monkeypatch.setattr(bands, "BAND", 500)
    noise(150, 110, mode).save(folder / "m.png")
    values = np.asarray(noise(150, 110, mode).convert("RGBA"))
    on_white = np.asarray(Image.alpha_composite(Image.new("RGBA", (150, 110), "white"), Image.fromarray(values)))
    mask = (torch.from_numpy(on_white[..., :3].astype(np.float32)).mean(-1) / 255).numpy()
    mask = (mask + values[..., 3].astype(np.float32) / 255 - 1).clip(0, 1) if mode == "RGBA" else mask
    assert np.array_equal(read_mask(folder / "m.png", (110, 150), (110, 150)).numpy(), mask)
    scaled = ImageOps.fit(Image.fromarray((mask * 255).round().astype(np.uint8)), (72, 64), LANCZOS)
    read = read_mask(folder / "m.png", (110, 150), (64, 72))
    assert np.array_equal(read.numpy(), np.array(scaled).astype(np.float32) / 255)


def test_what_takes_more_than_a_gigabyte_is_refused_by_its_header(folder, monkeypatch):
    """None of these files holds the pixels that its header claims, so decoding would give another error."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)  # as other packs set it: the limit is our own
    (folder / "pixels.png").write_bytes(png(20_000, 20_000))
    webp = io.BytesIO()
    noise(64, 64).save(webp, "WEBP", lossless=True)
    lying = bytearray(webp.getvalue())
    lying[21:25] = struct.pack("<I", 8000 - 1 | (8000 - 1) << 14)  # VP8L: 14 bits of width - 1, 14 of height - 1
    (folder / "memory.webp").write_bytes(bytes(lying))
    (folder / "slow.qoi").write_bytes(b"qoif" + struct.pack(">IIBB", 5000, 5000, 3, 0) + b"\0" * 20)
    inner = png(12_000, 12_000)
    icon = struct.pack("<HHH", 0, 1, 1) + struct.pack("<BBBBHHII", 0, 0, 0, 0, 1, 32, len(inner), 22)
    (folder / "icon.ico").write_bytes(icon + inner)
    with (folder / "long.png").open("wb") as file:
        file.truncate(limits.MOST_MEMORY + 1)  # sparse
    with pytest.raises(InputError) as error:
        read_folder(FolderRequest(folder))
    text = str(error.value)
    assert "pixels.png has 20000x20000 px; at most 200,000,000 pixels are read. Make it smaller" in text
    assert "memory.webp has 8000x8000 px and takes 1.2 GB of memory to be decoded; at most 1 GB is" in text
    assert "slow.qoi has 5000x5000 px, and a QOI file of its kind is read with at most 16,000,000 pixels" in text
    assert "icon.ico is an icon with a picture of 12000x12000 px" in text
    assert "long.png has 1,073,741,825 bytes" in text


def test_metadata_counts(folder, monkeypatch):
    """A chunk of EXIF or of a profile is memory too."""
    monkeypatch.setattr(limits, "MOST_MEMORY", limits.BASE_BYTES + limits.USUAL_BYTES * 64 * 64 + 1000)
    picture, exif = noise(64, 64), Image.Exif()
    picture.save(folder / "a.png")
    read_folder(FolderRequest(folder))
    exif[0x010E] = "x" * 2000
    picture.save(folder / "b.png", exif=exif)
    with pytest.raises(InputError, match="1 of the files.*b.png has 64x64 px and takes"):
        read_folder(FolderRequest(folder))


def test_a_progressive_jpeg_with_a_thousand_scans_is_refused(folder):
    """Each scan of a progressive JPEG is a pass over the whole picture."""
    noise(64, 64).save(folder / "a.jpg", progressive=True)
    read_folder(FolderRequest(folder))
    data = (folder / "a.jpg").read_bytes()
    last = data.rindex(b"\xff\xda")
    (folder / "a.jpg").write_bytes(data[:last] + data[last:-2] * 1000 + data[-2:])
    with pytest.raises(InputError, match=r"a.jpg is a progressive JPEG with 1,0\d\d scans; at most 500 are read"):
        read_folder(FolderRequest(folder))


def test_frames_and_pages_are_counted_within_bounds(folder, monkeypatch):
    frames = [noise(64, 64, seed=i) for i in range(5)]
    for ending in ("gif", "tif", "webp", "png"):
        frames[0].save(folder / f"x.{ending}", save_all=True, append_images=frames[1:])
    notes = read_folder(FolderRequest(folder)).notes
    for ending in ("gif", "tif", "webp", "png"):
        assert f"x.{ending}: animated, the first of 5 frames is used" in notes
    monkeypatch.setattr(limits, "MOST_COUNTED_BYTES", 100)
    monkeypatch.setattr(limits, "MOST_COUNTED_PAGES", 3)
    reading.KEPT.clear()
    notes = read_folder(FolderRequest(folder)).notes
    assert "x.gif: animated, the first frame is used" in notes
    assert "x.tif: animated, the first of 3 or more frames is used" in notes


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_pipe_that_takes_a_pictures_place_does_not_block(folder, monkeypatch):
    """Also where it appears after the folder was listed: every reader opens regular files only."""
    os.mkfifo(folder / "a.png")
    os.mkfifo(folder / "a.txt")
    monkeypatch.setattr(Path, "is_file", lambda self, **_: self.name.startswith("a."))
    assert hash_files(folder)
    with pytest.raises(
        InputError, match=r"a.png is no picture that can be read \(ValueError: a.png is no regular file"
    ):
        read_folder(FolderRequest(folder))


def six(folder):
    """Six pictures of several kinds and sizes, with captions."""
    for i, mode in enumerate(("RGB", "RGBA", "L", "RGB", "LA", "RGB")):
        noise(160 - 8 * i, 100 + 8 * i, mode, i).save(folder / f"{i}.png")
        (folder / f"{i}.txt").write_text(f"picture {i}")


@pytest.mark.parametrize("count", [1, 2, 8])
def test_threads_change_neither_order_nor_numbers(folder, monkeypatch, count):
    six(folder)
    monkeypatch.setattr(reading, "threads", lambda: count)
    images = read_folder(FolderRequest(folder, resolution=96, masks="alpha"))
    assert [item.name for item in images.items] == [f"{i}.png" for i in range(6)]
    for i, item in enumerate(images.items):
        assert item.caption == f"picture {i}"
        pixels, alpha = whole(folder / item.name, item.pixels.shape[:2])
        assert np.array_equal(item.pixels.numpy(), pixels)
        assert (item.mask is None) == (alpha is None)
        assert alpha is None or np.array_equal(item.mask.numpy(), alpha)


def test_what_has_not_changed_is_not_decoded_again(folder, monkeypatch):
    six(folder)
    decoded = []
    real = reading.read_picture
    monkeypatch.setattr(reading, "read_picture", lambda path, *args: decoded.append(path.name) or real(path, *args))
    first = read_folder(FolderRequest(folder, resolution=96))
    assert sorted(decoded) == [f"{i}.png" for i in range(6)]
    again = read_folder(FolderRequest(folder, resolution=96, trigger="zor", flip=True))
    assert len(decoded) == 6
    assert all(a.pixels is b.pixels for a, b in zip(first.items, again.items[::2], strict=True))
    noise(100, 100, seed=9).save(folder / "3.png")
    read_folder(FolderRequest(folder, resolution=96))
    assert decoded[6:] == ["3.png"]
    read_folder(FolderRequest(folder, resolution=64))  # another size of all
    assert len(decoded) == 13
    monkeypatch.setattr(stamps, "SETTLED", 10**12)  # now all of them count as written just now
    read_folder(FolderRequest(folder, resolution=64))
    assert len(decoded) == 19


def test_a_file_that_is_replaced_with_the_same_size_and_time_is_seen(folder):
    """The time of the last change of the inode, and the inode, are part of the stamp."""
    Image.new("RGB", (64, 64), "red").save(folder / "a.bmp")
    before = (folder / "a.bmp").stat()
    assert read_folder(FolderRequest(folder)).items[0].pixels[0, 0].tolist() == [255, 0, 0]
    hashed = hash_files(folder)
    Image.new("RGB", (64, 64), "blue").save(folder / "a.bmp")
    os.utime(folder / "a.bmp", ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (folder / "a.bmp").stat().st_size == before.st_size
    assert read_folder(FolderRequest(folder)).items[0].pixels[0, 0].tolist() == [0, 0, 255]
    assert hash_files(folder) != hashed


def test_what_is_kept_is_bounded():
    """10 bytes at most. A reading drops what earlier ones used, the oldest first, and never what it uses itself."""
    kept = stamps.Kept(10)
    first = kept.new_reading()
    for key in "abc":
        kept.put(key, key.upper(), 4, first)
    assert [kept.get(key, first) for key in "abc"] == ["A", "B", None]
    second = kept.new_reading()
    assert kept.get("a", second) == "A"
    kept.put("d", "D", 4, second)
    kept.put("e", "E", 4, second)
    assert [kept.get(key, second) for key in "abcde"] == ["A", None, None, "D", None]
    kept.put("f", "F", 11, kept.new_reading())
    assert kept.nbytes <= 10
    assert kept.get("f", 3) is None


def test_progress_is_shown_and_an_exception_ends_the_reading(folder, monkeypatch):
    for i in range(40):
        noise(64, 64, seed=i).save(folder / f"{i:02}.png")
    seen = []
    read_folder(FolderRequest(folder), lambda done, of: seen.append((done, of)))
    assert seen == sorted(seen)
    assert seen[0] == (0, 40)
    assert seen[-1] == (40, 40)
    assert len(seen) >= 20
    reading.KEPT.clear()
    monkeypatch.setattr(reading, "threads", lambda: 2)
    decoded, caller = [], threading.get_ident()
    real = reading.read_picture
    monkeypatch.setattr(reading, "read_picture", lambda path, *args: decoded.append(path.name) or real(path, *args))

    def interrupt(done, of):
        assert threading.get_ident() == caller
        if done >= 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        read_folder(FolderRequest(folder), interrupt)
    assert len(decoded) <= 3 + 2 * 2 + 2  # what was read, and what the threads had been given


def test_an_interrupt_does_not_wait_for_a_slow_picture(folder, monkeypatch):
    noise(64, 64).save(folder / "a.png")
    free, calls = threading.Event(), []
    real = reading.read_picture

    def slow(*args):
        free.wait(30)
        return real(*args)

    def interrupt(done, of):
        calls.append(done)
        if len(calls) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(reading, "read_picture", slow)
    with pytest.raises(KeyboardInterrupt):
        read_folder(FolderRequest(folder), interrupt)
    assert calls == [0, 0, 0]
    assert not free.is_set()
    free.set()


def test_pictures_together_take_no_more_than_the_room():
    """Threads that want 40, 40, 40 and 150 of 100 bytes: two of the first at once, the last one alone."""
    room, lock = reading.Room(100), threading.Lock()
    now, most, alone = [], [], []

    def take(needed):
        with room(needed):
            with lock:
                now.append(needed)
                most.append(sum(now))
                alone.append(needed != 150 or now == [150])
            threading.Event().wait(0.02)
            with lock:
                now.remove(needed)

    threads = [threading.Thread(target=take, args=(needed,)) for needed in (40, 40, 40, 150) * 3]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert max(total for total in most if total != 150) <= 100
    assert all(alone)


def pairs(pictures):
    """The definition, picture by picture: the first earlier one that is equal, else the first that looks the same."""
    equal, similar = [], []
    for i, each in enumerate(pictures):
        near = [
            j
            for j, other in enumerate(pictures[:i])
            if (other.signs != each.signs).sum() <= SAME_BITS
            and np.sqrt(((other.colours - each.colours) ** 2).mean()) <= SAME_RMS
        ]
        same = [j for j in near if pictures[j].digest == each.digest]
        if same:
            equal.append((same[0], i))
        elif near:
            similar.append((near[0], i))
    return equal, similar


@pytest.mark.parametrize("seed", range(2))
def test_pairs_are_those_of_the_definition(monkeypatch, seed):
    """300 pictures in blocks of 64: copies, near copies at every distance, flat ones, and others."""
    monkeypatch.setattr(quality, "BLOCK", 64)
    draw, pictures = np.random.default_rng(seed), []
    for i in range(300):
        kind = draw.integers(0, 5) if pictures else 4
        if kind == 0:
            pictures.append(pictures[draw.integers(len(pictures))])
            continue
        if kind < 3:
            origin = pictures[draw.integers(len(pictures))]
            signs = origin.signs ^ (draw.random(64) < draw.random() * 0.3)
            colours = origin.colours + draw.normal(0, draw.random() * 60, 192)
        else:
            signs = np.zeros(64, bool) if kind == 3 else draw.random(64) < 0.5
            colours = np.full(192, draw.integers(0, 256)) if kind == 3 else draw.integers(0, 256, 192)
        pictures.append(Traits(0.0, signs, np.asarray(colours, np.float32), b"%d" % i))
    found = alike(pictures)
    assert found == pairs(pictures)
    assert min(map(len, found)) > 25


def test_traits_tell_sizes_apart():
    """The same bytes as 64x128 and as 128x64 px are no copies."""
    pixels = torch.from_numpy(np.asarray(noise(64, 128)).copy())
    assert traits_of(pixels).digest != traits_of(pixels.reshape(64, 128, 3)).digest
    assert traits_of(pixels).digest == traits_of(pixels.clone()).digest


def test_hashes_are_kept_and_changes_are_seen(folder, monkeypatch):
    six(folder)
    (folder / "cache.npz").write_bytes(b"x")
    hashed = []
    real = hashing._hash_file
    monkeypatch.setattr(hashing, "_hash_file", lambda path: hashed.append(path.name) or real(path))
    first = hash_files(folder)
    assert len(hashed) == 12
    assert hash_files(folder) == first
    assert len(hashed) == 12
    (folder / "2.txt").write_text("picture X")
    second = hash_files(folder)
    assert second != first
    assert hashed[12:] == ["2.txt"]
    os.utime(folder / "2.txt")  # the same bytes: hashed again, with the same result
    assert hash_files(folder) == second
    (folder / "2.png").rename(folder / "9.png")
    assert hash_files(folder) != second
    assert hash_files(folder, lambda: True) is None


def test_files_that_are_refused_unread_are_not_hashed(folder, monkeypatch):
    noise(64, 64).save(folder / "a.png")
    for name, size in (("a.txt", 1_000_001), ("b.png", limits.MOST_MEMORY + 1)):
        with (folder / name).open("wb") as file:
            file.truncate(size)
    opened = []
    real = hashing.open_regular
    monkeypatch.setattr(hashing, "open_regular", lambda path: opened.append(Path(path).name) or real(path))
    assert hash_files(folder)
    assert opened == ["a.png"]


# Parts of a PNG beside its pixels that Pillow gives up the picture for.
BIG = b"x" * 2_000_000
BAD_PARTS = {
    "a long packed text": png_chunk(b"zTXt", b"workflow\0\0" + zlib.compress(BIG)),
    "a long packed Unicode text": png_chunk(b"iTXt", b"workflow\0\1\0\0\0" + zlib.compress(BIG)),
    "a large colour profile": png_chunk(b"iCCP", b"icc\0\0" + zlib.compress(BIG)),
    "a wrong checksum": png_chunk(b"tEXt", b"a\0b")[:-1] + b"?",
    "a short chunk": png_chunk(b"pHYs", b"\0"),
    "EXIF that is none": png_chunk(b"eXIf", b"rubbish"),
}
TURNED = b"II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0"  # EXIF of orientation 6


def with_chunks(picture, before=b"", after=b""):
    """The bytes of a PNG with further chunks before or after its pixels."""
    file = io.BytesIO()
    picture.save(file, "PNG")
    data = file.getvalue()
    return data[:33] + before + data[33:-12] + after + data[-12:]  # behind the signature and IHDR; before IEND


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "palette"])
@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("part", BAD_PARTS)
def test_bad_parts_beside_the_pixels_of_a_png_do_not_cost_the_picture(folder, part, after, mode):
    """The oracle is Pillow on the same picture without the part."""
    picture = noise(120, 80, "RGBA" if mode == "RGBA" else "RGB")
    picture = picture.quantize(40) if mode == "palette" else picture
    (folder / "plain.png").write_bytes(with_chunks(picture))
    bad = {"after" if after else "before": BAD_PARTS[part]}
    (folder / "bad.png").write_bytes(with_chunks(picture, **bad))
    expected, alpha = whole(folder / "plain.png", (64, 72))
    read = read_picture(folder / "bad.png", lambda *size: (64, 72), with_alpha=True)
    assert np.array_equal(read.pixels.numpy(), expected)
    assert (read.alpha is None) == (alpha is None)
    assert alpha is None or np.array_equal(read.alpha.numpy(), alpha)
    # A checksum behind the pixels is not looked at.
    assert ("left out" in read.note) == (not (after and part == "a wrong checksum"))


def test_a_png_with_a_bad_part_keeps_its_orientation(folder):
    picture = noise(120, 80)
    (folder / "x.png").write_bytes(with_chunks(picture, png_chunk(b"eXIf", TURNED) + BAD_PARTS["a long packed text"]))
    read = read_picture(folder / "x.png", lambda *size: size)
    assert np.array_equal(read.pixels.numpy(), np.rot90(np.asarray(picture), -1))


def test_pictures_that_are_cut_off_are_refused_with_what_to_do(folder):
    data = with_chunks(noise(120, 80), BAD_PARTS["a long packed text"])
    (folder / "x.png").write_bytes(data[: len(data) // 2])
    noise(120, 80).save(folder / "whole.jpg")
    (folder / "x.jpg").write_bytes((folder / "whole.jpg").read_bytes()[:2000])
    for name in ("x.png", "x.jpg"):
        with pytest.raises(InputError, match="is cut off.*download or save it again"):
            read_picture(folder / name, lambda *size: size)
