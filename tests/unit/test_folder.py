"""Folders of training pictures: what is read, what is refused, reports and captions."""

import numpy as np
import pytest
import torch
from bespoke.nodes.images.batch import image_set
from bespoke.nodes.images.folder import FolderRequest, hash_files, read_folder
from bespoke.nodes.images.sheet import contact_sheet, describe
from bespoke.nodes.images.sizes import target_size
from bespoke.training.errors import InputError
from PIL import Image, ImageDraw, ImageEnhance, ImageFilter


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
    assert [
        i.caption for i in read(folder, captions="template", template="a {trigger} {name} {other}", trigger="zor").items
    ] == ["a zor a red wall {other}"]


def test_missing_captions_are_reported(folder):
    picture().save(folder / "a.png")
    images = read(folder, trigger="zor")
    assert images.items[0].caption == "zor"
    assert "No caption: a.png; only 'zor' is said of them." in describe(images)
    assert "the prompt is empty for them" in describe(read(folder))


def scene(seed, width=512, height=384):
    """A picture with detail at every scale: an outline of ellipses over cloud noise."""
    draw = np.random.default_rng(seed)
    spectrum = np.fft.rfft2(draw.standard_normal((height, width, 3)), axes=(0, 1))
    k = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None])[..., None]
    clouds = np.fft.irfft2(spectrum / np.maximum(k, 1 / width), (height, width), axes=(0, 1))
    image = Image.fromarray((127 + 50 * clouds / clouds.std()).clip(0, 255).astype(np.uint8))
    pen = ImageDraw.Draw(image)
    for _ in range(8):
        x, y, size = draw.integers(0, width - 60), draw.integers(0, height - 60), draw.integers(40, 160)
        pen.ellipse((x, y, x + size, y + size), fill=tuple(draw.integers(0, 255, 3).tolist()))
    return image


def test_the_report_names_duplicates_blurry_and_small_pictures(folder):
    for i in range(4):
        scene(i).save(folder / f"good{i}.png")
    scene(0).save(folder / "twin.png")  # the same pixels
    scene(1).resize((300, 225)).save(folder / "again.jpg", quality=60)  # smaller, compressed
    ImageEnhance.Brightness(scene(2)).enhance(1.12).save(folder / "bright.png")
    scene(9).filter(ImageFilter.GaussianBlur(2)).save(folder / "soft.png")
    half = scene(10)
    half.paste(half.crop((0, 0, 256, 384)).filter(ImageFilter.GaussianBlur(3)), (0, 0))
    half.save(folder / "portrait.png")  # a soft background does not make a soft picture
    lines = describe(read(folder, captions="file names")).splitlines()
    (same,) = [line for line in lines if line.startswith("The same picture twice")]
    assert "twin.png is good0.png" in same
    (similar,) = [line for line in lines if line.startswith("Nearly the same")]
    assert "good1.png and again.jpg" in similar
    assert "good2.png and bright.png" in similar
    assert similar.count(" and ") == 2
    (soft,) = [line for line in lines if line.startswith("Blurry")]
    assert "soft.png (sharpness" in soft
    assert "below 100" in soft
    assert "good" not in soft
    assert "portrait" not in soft
    (small,) = [line for line in lines if line.startswith("Small")]
    assert "again.jpg (300x225 px)" in small
    assert "good" not in small
    assert "9 pictures: " in lines[0]


def test_clean_sets_get_no_remarks(folder):
    for i in range(3):
        scene(i).save(folder / f"good{i}.png")
    text = describe(read(folder, captions="file names"))
    assert not any(word in text for word in ("twice", "Nearly", "Blurry", "Small", "No caption"))


def test_sprites_that_differ_in_colour_only_are_no_duplicates(folder):
    for colour in ("red", "blue"):
        image = Image.new("RGB", (128, 128), "white")
        ImageDraw.Draw(image).ellipse((20, 20, 108, 108), fill=colour)
        image.save(folder / f"{colour}.png")
    assert "Nearly" not in describe(read(folder, captions="file names"))


def test_passes_count_pictures_and_not_their_copies(folder):
    for i in range(4):
        scene(i).save(folder / f"{i}.png")
    images = read(folder, captions="file names", flip=True, repeats=3)
    assert [len(copies) for copies in images.copies()] == [6] * 4
    text = describe(images)
    assert "4 pictures, 24 with mirrored and repeated ones" in text
    assert "100 steps of batch_size 4 are about 100 passes over each picture" in text


def test_an_empty_folder_and_no_folder(folder):
    with pytest.raises(InputError, match="holds no picture; put"):
        read(folder)
    with pytest.raises(InputError, match="not there"):
        read(folder / "elsewhere")


def test_all_bad_files_are_named_in_one_error(folder):
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


def test_alpha_is_composited_on_white_and_can_be_the_mask(folder):
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
        ((80, 96), True, (80, 96)),  # smaller than the resolution: never enlarged
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


def test_contact_sheet_shows_the_set(folder):
    for i in range(7):
        picture(64 + 8 * i, 80).save(folder / f"p{i}.png")
    sheet = contact_sheet(read(folder, captions="file names"))
    assert sheet.shape[0] == 1
    assert sheet.shape[-1] == 3
    assert 0 <= sheet.min() < sheet.max() <= 1
    assert (sheet[0, :, :, 0] - sheet[0, :, :, 2] > 0.4).float().mean() > 0.05  # the red pictures are on it


def test_image_batches():
    images = torch.rand(2, 70, 66, 3)
    made = image_set(images, "one\ntwo", "zor")
    assert [i.caption for i in made.items] == ["zor, one", "zor, two"]
    assert made.items[0].pixels.shape == (64, 64, 3)
    assert [i.caption for i in image_set(images, "same for all").items] == ["same for all"] * 2
    assert not made.notes
    assert image_set(images[[0, 1, 0]], "").notes[0].startswith("The same picture twice: image 3 is image 1.")
    assert "Blurry: image 1 (sharpness 0)" in describe(image_set(torch.full((1, 64, 64, 3), 0.5), ""))
    with pytest.raises(InputError, match="0 images"):
        image_set(images[:0], "")
    with pytest.raises(InputError, match="3 captions for 2 images"):
        image_set(images, "a\nb\nc")
    with pytest.raises(InputError, match="masks are 9x9"):
        image_set(images, "", masks=torch.ones(1, 9, 9))
