"""Folders of training pictures: what is read, what is refused, reports and captions."""

import os
import sys

import numpy as np
import pytest
import torch
from bespoke.nodes.images.batch import image_set
from bespoke.nodes.images.folder import FolderRequest, read_folder
from bespoke.nodes.images.hashing import hash_files
from bespoke.nodes.images.sheet import contact_sheet, describe
from bespoke.nodes.images.sizes import kept, target_size
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


def left_half(mode, on, off):
    """A picture of 96x80 px whose left half is `on` and whose right half is `off`."""
    image = Image.new(mode, (96, 80), off)
    image.paste(on, (0, 0, 48, 80))
    return image


@pytest.mark.parametrize(
    "mask",
    [
        left_half("L", 255, 0),
        left_half("1", 1, 0),
        left_half("RGB", (255, 255, 255), (0, 0, 0)),
        left_half("RGBA", (255, 255, 255, 255), (0, 0, 0, 255)),
        left_half("RGBA", (255, 255, 255, 255), (0, 0, 0, 0)),
        left_half("RGBA", (255, 255, 255, 255), (255, 255, 255, 0)),
        left_half("RGBA", (255, 255, 255, 255), (0, 0, 0, 0)).quantize(),
        left_half("LA", (255, 255), (255, 0)),
        Image.fromarray(np.repeat(np.where(np.arange(96) < 48, 65535, 0)[None], 80, 0).astype(np.uint16)),
    ],
    ids=["L", "1", "RGB", "RGBA", "transparent black", "transparent white", "palette", "LA", "16 bits"],
)
def test_white_counts_in_every_kind_of_mask_file(folder, mask):
    """What is seen as white on black counts: the left half, whatever lies under transparency."""
    picture().save(folder / "a.png")
    mask.save(folder / "a-mask.png")
    (item,) = read(folder, captions="file names", masks="*-mask.png").items
    assert item.mask[:, :46].min() == 1
    assert item.mask[:, 50:].max() == 0


def test_half_transparent_white_counts_half(folder):
    """Brightness times alpha: 255 at alpha 128 is 128/255, grey 100 at alpha 255 is 100/255."""
    picture().save(folder / "a.png")
    left_half("RGBA", (255, 255, 255, 128), (100, 100, 100, 255)).save(folder / "a-mask.png")
    (item,) = read(folder, captions="file names", masks="*-mask.png").items
    assert item.mask[40, 10] == pytest.approx(128 / 255, abs=1e-6)
    assert item.mask[40, 80] == pytest.approx(100 / 255, abs=1e-6)


def test_pictures_without_alpha_are_named(folder):
    left_half("RGBA", (255, 0, 0, 255), (0, 0, 0, 0)).save(folder / "cut_out.png")
    scene(1, 96, 80).save(folder / "whole.png")
    images = read(folder, captions="file names", masks="alpha")
    assert "No alpha: whole.png; the whole picture counts." in images.notes
    assert [item.mask is None for item in images.items] == [False, True]
    assert "No alpha" not in describe(read(folder, captions="file names"))


def test_a_picture_with_a_black_mask_is_left_out_and_named(folder):
    """Of such a picture nothing counts: the loss and its gradient are zero."""
    scene(1, 96, 80).save(folder / "a.png")
    scene(2, 96, 80).save(folder / "b.png")
    Image.new("L", (96, 80), 255).save(folder / "a-mask.png")
    Image.new("RGBA", (96, 80), (0, 0, 0, 0)).save(folder / "b-mask.png")
    images = read(folder, captions="file names", masks="*-mask.png", flip=True, repeats=2)
    assert {item.name for item in images.items} == {"a.png", "a.png (mirrored)"}
    assert "Left out: b.png; the mask is black everywhere, so nothing of it would be learned." in images.notes
    Image.new("L", (96, 80), 0).save(folder / "a-mask.png")
    with pytest.raises(
        InputError, match=r"masks of all pictures are black .*\(a.png, b.png\).*paint what counts white"
    ):
        read(folder, captions="file names", masks="*-mask.png")


def test_a_mask_that_is_cropped_away_is_black(folder):
    """White at the left end alone of a picture of which the middle square is taken."""
    scene(1, 400, 100).save(folder / "a.png")
    scene(2, 100, 100).save(folder / "b.png")
    mask = Image.new("L", (400, 100), 0)
    mask.paste(255, (0, 0, 20, 100))
    mask.save(folder / "a-mask.png")
    images = read(folder, captions="file names", masks="*-mask.png", bucket=False)
    assert [item.name for item in images.items] == ["b.png"]
    assert any(note.startswith("Left out: a.png; the mask is black") for note in images.notes)
    assert len(read(folder, captions="file names", masks="*-mask.png").items) == 2


def test_onetrainers_masks_are_masks(folder):
    picture().save(folder / "a.png")
    left_half("L", 255, 0).save(folder / "a-masklabel.png")
    (item,) = read(folder, captions="file names", masks="*-mask.png").items
    assert item.name == "a.png"
    assert item.mask[:, :46].min() == 1
    assert item.mask[:, 50:].max() == 0
    images = read(folder, captions="file names")
    assert [item.name for item in images.items] == ["a.png"]
    (note,) = [note for note in images.notes if note.startswith("Left out: a-masklabel.png; named as a mask.")]
    assert "with masks *-mask.png it is a mask, if it is a .png beside a picture of its name" in note


@pytest.mark.parametrize("masks", ["none", "alpha", "*-mask.png"])
def test_onetrainers_conditioning_image_is_no_picture(folder, masks):
    """OneTrainer leaves `-masklabel` and `-condlabel` files out of the pictures (`DataLoaderText2ImageMixin.py`)."""
    picture().save(folder / "a.png")
    picture().save(folder / "a-condlabel.png")
    images = read(folder, captions="file names", masks=masks)
    assert [item.name for item in images.items] == ["a.png"]
    (note,) = [note for note in images.notes if note.startswith("Left out: ")]
    assert note.startswith("Left out: a-condlabel.png; named as OneTrainer's conditioning image")
    (folder / "a-condlabel.txt").write_text("a red wall")
    (folder / "a.txt").write_text("another")
    assert [item.name for item in read(folder, masks=masks).items] == ["a-condlabel.png", "a.png"]


@pytest.mark.parametrize(("name", "caption"), [("b-mask", "b-mask.TXT"), ("caf\u00e9-mask", "cafe\u0301-mask.txt")])
def test_any_caption_file_makes_a_picture_of_a_file_named_as_a_mask(folder, name, caption):
    """The rule is that of every other picture: any case of ".txt", and any Unicode form of the name."""
    picture().save(folder / f"{name}.png")
    (folder / caption).write_text("the mask of a fox")
    assert [item.caption for item in read(folder).items] == ["the mask of a fox"]


@pytest.mark.parametrize("name", ["iron-mask.png", "iron-mask.jpg", "iron-masklabel.webp", "IRON-MASK.PNG"])
@pytest.mark.parametrize("masks", ["none", "alpha", "*-mask.png"])
def test_a_picture_that_is_named_as_a_mask(folder, name, masks):
    """With a caption of its own it is a picture; without one it is left out and named."""
    scene(1, 96, 80).save(folder / "a.png")
    scene(2, 96, 80).save(folder / name)
    images = read(folder, captions="file names", masks=masks)
    assert [item.name for item in images.items] == ["a.png"]
    (note,) = [note for note in images.notes if note.startswith(f"Left out: {name}; named as a mask.")]
    assert "give it a caption in a .txt of its name" in note
    (folder / name).with_suffix(".txt").write_text("a man in an iron mask")
    images = read(folder, masks=masks)
    assert {item.name: item.caption for item in images.items} == {"a.png": "", name: "a man in an iron mask"}
    assert "Left out" not in describe(images)
    (folder / "a.png").unlink()
    (folder / name).with_suffix(".txt").unlink()
    with pytest.raises(InputError, match=f"holds no picture; .*Left out: {name}"):
        read(folder, masks=masks)


def test_a_mask_with_a_caption_is_the_mask_of_its_picture(folder):
    """Programs that write captions write one for every file. Where masks are asked for, the mask is one."""
    picture().save(folder / "a.png")
    left_half("L", 255, 0).save(folder / "a-mask.png")
    for stem in ("a", "a-mask"):
        (folder / f"{stem}.txt").write_text(f"caption of {stem}")
    images = read(folder, masks="*-mask.png")
    assert [(item.name, item.caption) for item in images.items] == [("a.png", "caption of a")]
    assert images.items[0].mask.mean() == pytest.approx(0.5, abs=0.02)
    assert "Masks with a caption: a-mask.png; used as masks, and the captions are not used." in images.notes
    assert [item.name for item in read(folder).items] == ["a-mask.png", "a.png"]


@pytest.mark.parametrize(
    ("stem", "caption"), [("iron-mask", "iron-mask.TXT"), ("caf\u0065\u0301-mask", "caf\u00e9-mask.txt")]
)
def test_every_caption_file_that_is_found_makes_a_file_named_as_a_mask_a_picture(folder, stem, caption):
    """By an ending in capitals, and in the other Unicode form of an accent (NFD and NFC)."""
    picture().save(folder / f"{stem}.png")
    (folder / caption).write_text("a man in a mask")
    (item,) = read(folder).items
    assert item.caption == "a man in a mask"


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


@pytest.mark.parametrize(
    ("width", "height", "expected", "share"),
    [
        (3024, 4032, (448, 576), 0.964),
        (1000, 1002, (512, 512), 0.998),
        (1001, 1000, (512, 512), 0.999),
        (512, 513, (512, 512), 0.998),
        (640, 480, (576, 448), 0.964),
        (1920, 1080, (640, 384), 0.9375),
    ],
)
def test_the_bucket_keeps_most_of_the_picture(width, height, expected, share):
    """(width, height) of buckets at 512, by hand: 448/576 is .778 and 3024/4032 .75, so .75/.778 of it is kept."""
    assert target_size(height, width, 512, True) == expected[::-1]
    assert float(kept(height, width, *expected[::-1])) == pytest.approx(share, abs=5e-4)


@pytest.mark.parametrize("step", [8, 32, 64, 128])
@pytest.mark.parametrize("resolution", [320, 512, 1024])
def test_no_other_bucket_keeps_more(resolution, step):
    """Held against every size of the step with 80 to 100 % of the area, for pictures of random shapes."""
    draw = np.random.default_rng(step)
    sides = np.arange(step, resolution**2 // 64 + 1, step)
    sides = sides[sides >= 64]
    h, w = (grid.ravel() for grid in np.meshgrid(sides, sides, indexing="ij"))
    right_area = (h * w <= resolution**2) & (h * w >= 0.8 * resolution**2)
    h, w = h[right_area], w[right_area]
    found = 0
    for area, ratio in zip(draw.uniform(0.7, 12, 60), np.exp(draw.uniform(-1.2, 1.2, 60)), strict=True):
        height, width = (round(resolution * (area * r) ** 0.5) for r in (ratio, 1 / ratio))
        fits = (h <= height) & (w <= width)
        size = target_size(height, width, resolution, True, step)
        assert size[0] <= height
        assert size[1] <= width
        if not fits.any():
            continue
        scale = np.maximum(h[fits] / height, w[fits] / width)
        best = (h[fits] * w[fits] / (height * width * scale**2)).max()  # of the picture, scaled to cover
        own = max(size[0] / height, size[1] / width)
        assert size[0] * size[1] / (height * width * own**2) == pytest.approx(best, abs=1e-9)
        assert 0.8 * resolution**2 <= size[0] * size[1] <= resolution**2
        assert size[0] % step == size[1] % step == 0
        found += 1
    assert found >= 30


@pytest.mark.parametrize("resolution", [64, 128, 256, 512])
def test_small_and_long_pictures_get_a_size_within_them(resolution):
    """Where no bucket of the step fits: sides in multiples of 8 px, or of 64 px from 256 px on, never enlarged."""
    draw = np.random.default_rng(0)
    for height, width in [*draw.integers(64, 400, (100, 2)).tolist(), [64, 3000], [3000, 70]]:
        size = target_size(height, width, resolution, True)
        assert all(64 <= side <= own for side, own in zip(size, (height, width), strict=True))
        assert all(side % (64 if side >= 256 else 8) == 0 for side in size)
        assert size[0] * size[1] <= resolution**2
        assert target_size(height, width, resolution, True) == target_size(width, height, resolution, True)[::-1] or (
            height == width
        )


def test_a_finer_step_and_its_limits(folder):
    assert target_size(4032, 3024, 512, True, 16) == (576, 432)  # 3:4, all of it
    scene(1, 640, 480).save(folder / "a.png")
    assert read(folder).items[0].pixels.shape == (448, 576, 3)
    assert read(folder, bucket_step=8).items[0].pixels.shape[0] / 480 == pytest.approx(
        read(folder, bucket_step=8).items[0].pixels.shape[1] / 640, rel=0.01
    )
    for wrong in (0, 4, 50, 136):
        with pytest.raises(InputError, match=f"bucket_step is {wrong}; give a multiple of 8 from 8 to 128"):
            read(folder, bucket_step=wrong)


def test_pictures_of_which_much_is_cropped_are_named(folder):
    """2600x65 px at resolution 128: 256x64 is the longest bucket, and 256/64 of 2600/65 is a tenth."""
    scene(1, 2600, 65).save(folder / "long.png")
    scene(2, 640, 480).save(folder / "b.png")
    (note,) = [note for note in read(folder, resolution=128).notes if note.startswith("Cropped")]
    assert "long.png (10% of 2600x65 px is kept)" in note
    assert "b.png" not in note


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


def test_the_placeholder_of_ai_toolkit_is_replaced_wherever_captions_come_from(folder):
    """ai-toolkit replaces [trigger] in each caption (README.md, "Dataset Preparation"). A list of core's loader through
    Image Batch has the captions of Image Folder; without a trigger nothing is left of it.
    """
    picture().save(folder / "[trigger] on a hill.png")
    (folder / "[trigger] on a hill.txt").write_text("[trigger] on a hill")
    image = torch.rand(1, 80, 96, 3)
    for trigger, caption in (("zor", "zor on a hill"), ("", "on a hill")):
        made = [
            read(folder, trigger=trigger),
            read(folder, captions="file names", trigger=trigger),
            read(folder, captions="template", template="[trigger] on a hill", trigger=trigger),
            image_set(image, "[trigger] on a hill", trigger),
            image_set([image], ["[trigger] on a hill"], trigger),
        ]
        assert [item.caption for images in made for item in images.items] == [caption] * 5


def test_a_text_of_several_lines_is_the_caption_of_one_picture():
    """A language model's caption has paragraphs. A list of two such texts gives two captions, so a list of one gives
    one, and so do the batches of a list.
    """
    image, text = torch.rand(1, 80, 96, 3), "A cat.\n\nIt sits."
    for images, captions in (([image] * 2, [text] * 2), ([image], [text]), (image, text)):
        assert {item.caption for item in image_set(images, captions).items} == {"A cat. It sits."}
    both = image_set([image, torch.rand(2, 80, 96, 3)], [text, "a dog\na fox"])
    assert [item.caption for item in both.items] == ["A cat. It sits.", "a dog", "a fox"]


def test_a_byte_order_mark_is_no_part_of_a_caption(folder):
    """Notepad writes one before UTF-8, ComfyUI's loader of datasets leaves it in the text, and files that are put
    together have some within. Image Folder and Image Batch give the caption without it, whose first tag is the trigger.
    """
    picture().save(folder / "a.png")
    image = torch.rand(1, 80, 96, 3)
    for text in ("\ufeffzor, hat", "\ufeff\ufeffzor,\ufeff hat"):
        (folder / "a.txt").write_text(text, "utf-8")
        made = [read(folder), image_set(image, text), image_set([image, image], [text, text])]
        assert {item.caption for images in made for item in images.items} == {"zor, hat"}


@pytest.mark.parametrize("character", "\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029")
def test_a_caption_ends_where_its_line_ends(folder, character):
    """Line ends are those of a text editor. `str.splitlines` knows more, which language models and web pages put into
    texts: one caption would become those of two pictures.
    """
    images = torch.rand(2, 80, 96, 3)
    text = f"a cat{character}on a mat"
    assert [item.caption for item in image_set(images, text).items] == ["a cat on a mat"] * 2
    assert [item.caption for item in image_set(images, f"{text}\r\na dog").items] == ["a cat on a mat", "a dog"]
    picture().save(folder / "a.png")
    (folder / "a.txt").write_text(text, "utf-8")
    assert read(folder).items[0].caption == "a cat on a mat"


def test_masks_of_every_shape_are_cropped_as_the_picture_is():
    """70x66 px are cropped to 64x64 at (3, 1). Each pixel of the mask has its own value."""
    masks = torch.rand(2, 70, 66)
    images = torch.rand(2, 70, 66, 3)
    for given in (masks, masks[:, None], masks[..., None]):
        for item, mask in zip(image_set(images, "", masks=given).items, masks, strict=True):
            assert torch.equal(item.mask, mask[3:67, 1:65])
    for given in (masks[0], masks[:1], masks[:1, None], masks[0, ..., None][None]):
        assert all(torch.equal(item.mask, masks[0, 3:67, 1:65]) for item in image_set(images, "", masks=given).items)
    one = image_set(images[:1], "", masks=masks[0] > 0.5).items[0].mask
    assert torch.equal(one, (masks[0] > 0.5)[3:67, 1:65].float())
    # As many images as rows of a mask: its shape says what it is.
    square = torch.rand(1, 1, 64, 64)
    assert torch.equal(image_set(torch.rand(1, 64, 64, 3), "", masks=square).items[0].mask, square[0, 0])


@pytest.mark.parametrize(
    ("shape", "error"),
    [
        ((3, 70, 66), "3 masks for 2 images"),
        ((3, 1, 70, 66), "3 masks for 2 images"),
        ((2, 66, 70), "masks are 70x66 px and the images 66x70"),
        ((2, 1, 66, 70), r"the shape \[2, 1, 66, 70\]; give \[B, H, W\]"),
        ((2, 3, 70, 66), r"the shape \[2, 3, 70, 66\]"),
        ((2, 70, 66, 3), r"the shape \[2, 70, 66, 3\]"),
        ((70,), r"the shape \[70\]"),
    ],
)
def test_masks_of_a_wrong_shape_are_refused(shape, error):
    with pytest.raises(InputError, match=error):
        image_set(torch.rand(2, 70, 66, 3), "", masks=torch.rand(shape))


def test_a_batch_leaves_out_what_a_black_mask_hides():
    images, masks = torch.rand(3, 64, 64, 3), torch.ones(3, 64, 64)
    masks[1] = 0
    made = image_set(images, "one\ntwo\nthree", masks=masks)
    assert [(item.name, item.caption) for item in made.items] == [("image 1", "one"), ("image 3", "three")]
    assert "Left out: image 2; the mask is black everywhere, so nothing of it would be learned." in made.notes
    with pytest.raises(InputError, match="masks of all pictures are black"):
        image_set(images, "", masks=torch.zeros(1, 64, 64))


def test_numbers_that_are_no_pictures_are_refused():
    images = torch.rand(2, 64, 64, 3)
    images[1, 3, 4, 0] = torch.nan
    with pytest.raises(InputError, match="images hold numbers that are not finite"):
        image_set(images, "")
    with pytest.raises(InputError, match="masks hold numbers that are not finite"):
        image_set(images[:1], "", masks=torch.full((64, 64), torch.inf))
    with pytest.raises(InputError, match=r"images have the shape \[2, 64, 64, 2\]; give \[B, H, W, C\]"):
        image_set(images[..., :2], "")
    alpha = torch.cat([torch.rand(1, 64, 64, 3), torch.full((1, 64, 64, 1), 0.5)], -1)
    assert any("alpha channel, which is not used" in note for note in image_set(alpha, "").notes)
    assert not any("alpha" in note for note in image_set(alpha, "", masks=torch.ones(64, 64)).notes)


WRONG_KINDS = {
    "bytes": (
        dict(images=torch.full((1, 64, 64, 3), 128, dtype=torch.uint8)),
        "images hold .* torch.uint8; give floats",
    ),
    "complex": (dict(images=torch.zeros(1, 64, 64, 3, dtype=torch.complex64)), "torch.complex64; give floats"),
    "no data": (dict(images=torch.empty(1, 64, 64, 3, device="meta")), "images are a tensor without data"),
    "sparse": (dict(images=torch.rand(1, 64, 64, 3).to_sparse()), "images are a tensor of the layout"),
    "no mask": (dict(masks=[None]), "a mask is of the kind NoneType"),
    "mask of bytes": (dict(masks=torch.full((1, 64, 64), 128, dtype=torch.uint8)), "masks hold .* torch.uint8"),
    "trigger": (dict(trigger=None), "trigger is of the kind NoneType; wire text in"),
    "resolution": (dict(resolution="128"), "resolution is '128'; give a whole number"),
    "half a character": (dict(captions="a \ud800"), r"'image 1' has the caption 'a \\ud800'.*surrogate pair"),
}


@pytest.mark.parametrize("name", WRONG_KINDS)
def test_values_of_other_kinds_are_named(name):
    """By definition IMAGE and MASK are floats in 0..1: bytes would all count as white."""
    changes, words = WRONG_KINDS[name]
    with pytest.raises(InputError, match=words):
        image_set(**dict(images=torch.rand(1, 64, 64, 3), captions="") | changes)


@pytest.mark.skipif(sys.platform != "linux", reason="other systems refuse such names")
@pytest.mark.parametrize("captions", ["file names", "template"])
def test_a_name_that_is_no_utf8_is_named(tmp_path, captions):
    Image.new("RGB", (64, 64)).save(os.path.join(os.fsencode(tmp_path), b"\xff.png"))
    with pytest.raises(InputError, match=r"1 of the files .* has the caption .*rename the file"):
        read_folder(FolderRequest(tmp_path, captions=captions, template="{name}"))
    assert len(read_folder(FolderRequest(tmp_path)).items) == 1  # its caption is not made of the name
