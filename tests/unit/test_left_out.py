"""Everything in a folder that is not used is in the report, by reason; and names that only look equal."""

import sys
import types
import unicodedata
from importlib.machinery import ModuleSpec

import numpy as np
import pytest
from bespoke.nodes.images.folder import FolderRequest, read_folder
from bespoke.nodes.images.reading import decode
from bespoke.nodes.images.sheet import describe
from bespoke.training.errors import InputError
from PIL import Image, PngImagePlugin

NFC, NFD = (unicodedata.normalize(form, "é") for form in ("NFC", "NFD"))


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "set").mkdir()
    return tmp_path / "set"


def draw(path, colour=(200, 30, 40)):
    path.parent.mkdir(exist_ok=True)
    Image.new("RGB", (96, 80), colour).save(path)


def report(folder, **changes):
    return describe(read_folder(FolderRequest(folder, **changes)))


def captions(folder):
    return {item.name: item.caption for item in read_folder(FolderRequest(folder)).items}


def test_each_reason_is_counted(folder):
    draw(folder / "a.png")
    draw(folder / "10_dog" / "b.png")
    draw(folder / "10_dog" / "c.JPG")
    draw(folder / "0_cat" / "d.png")
    (folder / "empty").mkdir()
    for name in ("a.txt", "a.caption", "metadata.jsonl", "a.npz", "b.npz", "set.json", ".DS_Store", "._a.png"):
        (folder / name).write_text("x")
    (folder / "gone.png").symlink_to(folder / "nowhere.png")
    text = report(folder)
    assert "NOT READ: 2 pictures in subfolders: 10_dog (2). Only the folder itself is read" in text
    assert "Passed over: subfolders without pictures: empty." in text
    assert "NOT READ: a.caption, as the same picture has another caption file." in text
    assert "Passed over: metadata.jsonl, as every picture has a caption file of its own." in text
    assert "Passed over, as they are no pictures: 2 .npz, 1 .json, for example a.npz." in text
    assert "Passed over, as their names ask for 0 repeats: 0_cat." in text
    assert "Passed over, as their names begin with a dot: ._a.png, .DS_Store." in text
    assert "Passed over, as they are broken links or no files: gone.png." in text
    text = report(folder, captions="file names")
    for what in ("1 .txt file", "1 .caption file", "metadata.jsonl"):
        assert f"Passed over: {what}, as captions is 'file names'." in text


def test_a_clean_folder_has_no_such_notes(folder):
    draw(folder / "a.png")
    (folder / "a.txt").write_text("x")
    text = report(folder)
    assert "NOT READ" not in text
    assert "Passed over" not in text


def test_pictures_in_subfolders_alone_are_named_in_the_error(folder):
    draw(folder / "dogs" / "b.png")
    with pytest.raises(InputError, match=r"holds no picture; .* NOT READ: 1 picture in subfolders: dogs \(1\)"):
        read_folder(FolderRequest(folder))


def test_endings_in_capitals_are_read(folder):
    draw(folder / "a.PNG")
    (folder / "a.TXT").write_text("a dog")
    assert captions(folder) == {"a.PNG": "a dog"}
    (folder / "b.Txt").write_text("a caption without a picture")
    with pytest.raises(InputError, match="b.Txt is a caption without a picture of that name"):
        captions(folder)


def test_the_second_caption_file_of_a_picture_is_named(folder):
    draw(folder / "a.png")
    (folder / "a.txt").write_text("a dog")
    (folder / "a.TXT").write_text("a cat")
    if len(list(folder.iterdir())) == 3:  # not where the file system takes both for one
        assert captions(folder) == {"a.png": "a dog"}
        assert "NOT READ: a.TXT, as the same picture has another caption file." in report(folder)


def test_two_pictures_that_share_a_caption_are_named(folder):
    draw(folder / "a.png")
    draw(folder / "a.jpg", (0, 200, 0))
    (folder / "a.txt").write_text("a dog")
    assert captions(folder) == {"a.jpg": "a dog", "a.png": "a dog"}
    assert "One caption file for several pictures: a.jpg and a.png (a.txt)." in report(folder)


@pytest.mark.parametrize(("picture", "caption"), [(NFC, NFD), (NFD, NFC), (NFC, NFC), (NFD, NFD)])
def test_a_caption_in_another_unicode_form_is_found(folder, picture, caption):
    draw(folder / f"{picture}.png")
    (folder / f"{caption}.txt").write_text("a dog")
    assert list(captions(folder).values()) == ["a dog"]


def test_names_that_look_alike_are_named_and_keep_their_own_captions(folder):
    for name, colour in ((NFC, (200, 0, 0)), (NFD, (0, 200, 0))):
        draw(folder / f"{name}.png", colour)
        (folder / f"{name}.txt").write_text("a dog" if name == NFC else "a cat")
    if len(list(folder.iterdir())) == 4:
        assert captions(folder) == {f"{NFC}.png": "a dog", f"{NFD}.png": "a cat"}
        assert f"Names that look the same and differ in their Unicode form (NFC, NFD): {NFC}.png (2 times)" in report(
            folder
        )


HEIC = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + b"\0" * 99
JXL = b"\0\0\0\x0cJXL \r\n\x87\n" + b"\0" * 99


@pytest.mark.parametrize(
    ("name", "data", "kind", "package"),
    [
        ("phone.heic", HEIC, "HEIC", "pillow-heif"),
        ("phone.jpg", HEIC, "HEIC", "pillow-heif"),
        ("new.jxl", JXL, "JPEG XL", "pillow-jxl-plugin"),
        ("bare.jxl", b"\xff\x0a" + b"\0" * 99, "JPEG XL", "pillow-jxl-plugin"),
    ],
)
def test_pictures_of_phones_say_what_to_do(folder, name, data, kind, package):
    (folder / name).write_bytes(data)
    with pytest.raises(InputError) as error:
        read_folder(FolderRequest(folder))
    assert f"{name} is a {kind} picture, which Pillow cannot read by itself; convert it" in str(error.value)
    assert f"install the Python package {package}" in str(error.value)
    assert str(folder) not in str(error.value)


def test_no_error_has_a_path(folder):
    for name, data in {
        "a.png": b"",
        "b.png": b"text",
        "c.tif": b"II*\0" + b"\0" * 20,
        "d.jpg": b"\xff\xd8\xff",
    }.items():
        (folder / name).write_bytes(data)
    with pytest.raises(InputError, match="a.png is no picture that can be read; its content has no format") as error:
        read_folder(FolderRequest(folder))
    assert str(folder) not in str(error.value)
    assert str(folder.parent) not in str(error.value)


def test_an_installed_opener_is_used(folder, monkeypatch):
    """The package is the test's own: it reads PNG under the name HEIF, registered as pillow-heif's function does."""

    class Picture(PngImagePlugin.PngImageFile):
        format = "HEIF"

    def register_heif_opener():
        Image.register_open("HEIF", Picture, lambda start: start.startswith(b"\x89PNG"))

    package = types.ModuleType("pillow_heif")
    package.__spec__ = ModuleSpec("pillow_heif", None)
    package.register_heif_opener = register_heif_opener
    monkeypatch.setitem(sys.modules, "pillow_heif", package)
    monkeypatch.setattr(decode, "FORMATS", ())
    decode._formats.cache_clear()
    try:
        draw(folder / "a.png")
        assert [item.name for item in read_folder(FolderRequest(folder)).items] == ["a.png"]
    finally:
        decode._formats.cache_clear()
        Image.OPEN.pop("HEIF", None)
        Image.ID.remove("HEIF")


@pytest.mark.parametrize(
    ("low", "high", "grey", "note"),
    [
        (0.0, 0.5, 128, ""),  # 0.5 * 255, not stretched to white
        (0.0, 1.0, 255, ""),
        (0.0, 200.0, 200, "its numbers go from 0 to 200: 0 is taken as black and 255 as white"),
        (0.0, 51400.0, 200, "its numbers go from 0 to 51400: 0 is taken as black and 65535 as white"),
        (0.0, 1e6, 255, "its numbers go from 0 to 1e+06: 0 is taken as black and 1e+06 as white"),
        (-1.0, 0.5, 128, "its numbers go from -1 to 0.5: 0 is taken as black and 1 as white"),
    ],
)
def test_float_pictures(folder, low, high, grey, note):
    values = np.full((80, 96), high, np.float32)
    values[:, 0] = low
    Image.fromarray(values).save(folder / "a.tif")
    images = read_folder(FolderRequest(folder))
    assert images.items[0].pixels[40, 40].tolist() == [grey] * 3
    assert any(note in line for line in images.notes)
    assert bool(note) == any("is taken as black" in line for line in images.notes)


def test_lights_of_a_float_picture_are_cut_and_the_rest_keeps_its_brightness(folder):
    """0.5 is a middle grey, 128 of 255, whatever the brightest light is (by hand); 255 as white would make it 1."""
    values = np.full((80, 96), 0.5, np.float32)
    values[:, 0] = 3.0
    Image.fromarray(values).save(folder / "a.tif")
    images = read_folder(FolderRequest(folder))
    assert images.items[0].pixels[40, 40].tolist() == [128] * 3
    assert images.items[0].pixels[40, 0].tolist() == [255] * 3
    assert "a.tif: its numbers go from 0.5 to 3: 0 is taken as black and 1 as white" in images.notes


def test_integers_beyond_16_bits_are_scaled_and_said(folder):
    Image.fromarray(np.full((80, 96), 100_000, np.int32)).save(folder / "a.tif")
    images = read_folder(FolderRequest(folder))
    assert images.items[0].pixels[40, 40].tolist() == [255] * 3
    assert "a.tif: its numbers go from 100000 to 100000: 0 is taken as black and 100000 as white" in images.notes
