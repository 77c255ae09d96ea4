"""Folders of pictures as users have them: what is read, what is refused, by name."""

import numpy as np
import pytest
import torch
from bespoke.nodes.images.batch import image_set
from bespoke.nodes.images.folder import FolderRequest, hash_files, read_folder, target_size
from bespoke.nodes.images.sheet import contact_sheet, describe
from bespoke.training.errors import InputError
from PIL import Image


def picture(width=96, height=80, colour=(200, 30, 40), mode="RGB"):
    return Image.new("RGB", (width, height), colour).convert(mode)


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "set").mkdir()
    return tmp_path / "set"


def read(folder, **changes):
    return read_folder(FolderRequest(folder, **changes))


def test_text_files_file_names_and_templates(folder):
    picture().save(folder / "a_red-wall.png")
    (folder / "a_red-wall.txt").write_text("a red\nwall ")
    assert [i.caption for i in read(folder).items] == ["a red wall"]
    assert [i.caption for i in read(folder, trigger="zor").items] == ["zor, a red wall"]
    assert [i.caption for i in read(folder, captions="file names").items] == ["a red wall"]
    assert [i.caption for i in read(folder, captions="template", template="a {trigger} {name} {other}", trigger="zor").items] == ["a zor a red wall {other}"]


def test_a_missing_caption_is_said(folder):
    picture().save(folder / "a.png")
    images = read(folder, trigger="zor")
    assert images.items[0].caption == "zor"
    assert "a.png: no caption file" in describe(images)


def test_an_empty_folder_and_no_folder(folder):
    with pytest.raises(InputError, match="holds no picture; put"):
        read(folder)
    with pytest.raises(InputError, match="not there"):
        read(folder / "elsewhere")


def test_everything_wrong_is_named_at_once(folder):
    picture().save(folder / "good.png")
    (folder / "notes.pdf").write_bytes(b"%PDF-1.4 not a picture")
    (folder / "fake.png").write_text("this is text")
    picture(400, 300).save(folder / "cut.jpg")
    whole = (folder / "cut.jpg").read_bytes()
    (folder / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    (folder / "lonely.txt").write_text("a caption without a picture")
    picture(20, 90).save(folder / "thin.png")
    with pytest.raises(InputError) as error:
        read(folder)
    for name in ("notes.pdf", "fake.png", "cut.jpg", "lonely.txt", "thin.png"):
        assert name in str(error.value)
    assert "good.png" not in str(error.value)
    assert "5 of the files" in str(error.value)


def test_modes_come_out_as_rgb(folder):
    picture(mode="CMYK").save(folder / "cmyk.jpg")
    picture(mode="L").save(folder / "grey.png")
    picture(mode="P").save(folder / "palette.png")
    Image.fromarray(np.full((80, 96), 51400, np.uint16)).save(folder / "sixteen.png")
    frames = [picture(), picture(colour=(0, 0, 255))]
    frames[0].save(folder / "moving.gif", save_all=True, append_images=frames[1:])
    turned = picture(96, 80)
    exif = turned.getexif()
    exif[0x0112] = 6
    turned.save(folder / "turned.jpg", exif=exif)
    images = {item.name: item for item in read(folder, captions="file names").items}
    assert all(item.pixels.dtype == torch.uint8 and item.pixels.shape[-1] == 3 for item in images.values())
    assert images["sixteen.png"].pixels.unique().tolist() == [200]
    assert images["turned.jpg"].pixels.shape == (96, 80, 3)
    assert images["moving.gif"].pixels[40, 40, 0] > 150
    assert any("first of 2 frames" in note for note in read(folder).notes)


def test_alpha_lies_on_white_and_can_be_the_mask(folder):
    rgba = picture().convert("RGBA")
    rgba.paste((0, 0, 0, 0), (0, 0, 48, 80))
    rgba.save(folder / "half.png")
    item = read(folder, captions="file names", masks="alpha").items[0]
    assert item.pixels[40, 10].tolist() == [255, 255, 255]
    assert item.mask[40, 10] == 0
    assert item.mask[40, 80] == 1
    assert item.mask.shape == item.pixels.shape[:2]


def test_mask_files(folder):
    picture().save(folder / "a.png")
    Image.new("L", (96, 80), 255).save(folder / "a-mask.png")
    images = read(folder, captions="file names", masks="*-mask.png")
    assert len(images.items) == 1
    assert images.items[0].mask.min() == 1
    Image.new("L", (50, 80), 255).save(folder / "a-mask.png")
    with pytest.raises(InputError, match="a-mask.png is 50x80 px and its picture 96x80"):
        read(folder, captions="file names", masks="*-mask.png")


@pytest.mark.parametrize(
    ("size", "bucket", "expected"),
    [
        ((80, 96), True, (80, 96)),  # smaller than asked: never enlarged
        ((1000, 1000), True, (512, 512)),
        ((600, 2400), True, (256, 1024)),
        ((1000, 600), True, (640, 384)),
        ((1000, 600), False, (512, 512)),
        ((100, 600), False, (96, 96)),
    ],
)
def test_sizes(size, bucket, expected):
    assert target_size(*size, 512, bucket) == expected


def test_flip_repeats_and_fingerprint(folder):
    image = picture()
    image.paste((0, 0, 0), (0, 0, 10, 80))
    image.save(folder / "a.png")
    plain, more = read(folder), read(folder, flip=True, repeats=3)
    assert len(more.items) == 6
    assert torch.equal(more.items[1].pixels.flip(1), more.items[0].pixels)
    assert plain.fingerprint != more.fingerprint
    before = hash_files(folder)
    (folder / "a.txt").write_text("new")
    assert hash_files(folder) != before


def test_the_sheet_is_a_picture_of_the_set(folder):
    for i in range(7):
        picture(64 + 8 * i, 80).save(folder / f"p{i}.png")
    sheet = contact_sheet(read(folder, captions="file names"))
    assert sheet.shape[0] == 1
    assert sheet.shape[-1] == 3
    assert 0 <= sheet.min() < sheet.max() <= 1
    assert (sheet[0, :, :, 0] - sheet[0, :, :, 2] > 0.4).float().mean() > 0.05  # the red pictures are on it


def test_batches_on_the_wire():
    images = torch.rand(2, 70, 66, 3)
    made = image_set(images, "one\ntwo", "zor")
    assert [i.caption for i in made.items] == ["zor, one", "zor, two"]
    assert made.items[0].pixels.shape == (64, 64, 3)
    assert [i.caption for i in image_set(images, "same for all").items] == ["same for all"] * 2
    with pytest.raises(InputError, match="0 images"):
        image_set(images[:0], "")
    with pytest.raises(InputError, match="3 captions for 2 images"):
        image_set(images, "a\nb\nc")
    with pytest.raises(InputError, match="masks are 9x9"):
        image_set(images, "", masks=torch.ones(1, 9, 9))
