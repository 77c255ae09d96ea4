"""Sets of pairs: which source belongs to which result, in folders and of two sets, and the geometry that both share.

The oracle is arithmetic on the pictures: each has one colour or a bright half, so that the right partner, crop and
mirrored side can be read off its pixels.
"""

from dataclasses import replace

import pytest
import torch
from bespoke.nodes.images.batch import image_set
from bespoke.nodes.images.combination.combine import combine
from bespoke.nodes.images.folder import FolderRequest, read_folder
from bespoke.nodes.images.hashing import hash_files
from bespoke.nodes.images.pairing.match import key_of, matched_names
from bespoke.nodes.images.pairing.pair import pair_sets
from bespoke.nodes.images.sheet import contact_sheet, describe
from bespoke.training.errors import InputError
from bespoke.training.images import TrainingImage
from PIL import Image


def one(path, level, size=(96, 80)):
    """A picture of one grey; size: (width, height) px."""
    Image.new("RGB", size, (level, level, level)).save(path)


def halves(path, left, right, size=(96, 80)):
    """A picture whose left and right half have other greys."""
    picture = Image.new("RGB", size, (right,) * 3)
    picture.paste((left,) * 3, (0, 0, size[0] // 2, size[1]))
    picture.save(path)


def read(folder, **changes):
    return read_folder(FolderRequest(folder, pairs=True, **changes))


def level(pixels):
    return int(pixels.float().mean().round())


def levels(images):
    """{name: (grey of the picture, of its second picture)}"""
    return {item.name: (level(item.pixels), level(item.control)) for item in images.items}


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "set").mkdir()
    return tmp_path / "set"


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("a.png", "a"),
        ("A-Control.JPG", "a"),
        ("cats/1-control.webp", "cats/1"),
        ("a.png (mirrored)", "a"),
        ("image 3", "image 3"),
        ("-control.png", "-control"),
        ("a.b", "a.b"),
    ],
)
def test_the_name_that_a_pair_has_in_common(name, key):
    assert key_of(name) == key


def test_names_before_order_and_order_where_names_give_nothing():
    assert matched_names(["b.png", "a.png"], ["a.jpg", "b.jpg"]).pairs == {0: 1, 1: 0}
    found = matched_names(["x1", "x2"], ["y7", "y8"])
    assert found.by_order
    assert found.pairs == {0: 0, 1: 1}
    # One name in common is enough for names to count: then nothing is guessed.
    found = matched_names(["a", "b"], ["a", "c"])
    assert (found.pairs, found.lonely_results, found.lonely_sources) == ({0: 0}, (1,), (1,))
    found = matched_names(["a.png", "a.jpg", "b"], ["a", "b"])
    assert (found.pairs, found.ambiguous) == ({2: 1}, (((0, 1), (0,)),))
    assert not matched_names(["a"], ["b", "c"]).by_order


def test_as_many_of_one_name_are_matched_in_order_where_that_is_asked_for():
    """The very same name first: "A.png" with "A.jpg", so that "a.png" is left for "a.webp"."""
    found = matched_names(["a.png", "A.png", "b"], ["A.jpg", "a.webp", "b"], in_order=True)
    assert found.pairs == {0: 1, 1: 0, 2: 2}
    found = matched_names(["a.png", "A.png"], ["a.jpg", "b.jpg"], in_order=True)
    assert (found.pairs, found.ambiguous, found.lonely_sources) == ({}, (((0, 1), (0,)),), (1,))


def test_second_pictures_beside_and_in_a_folder(folder):
    (folder / "control").mkdir()
    for number, name in enumerate(("a", "b"), 1):
        one(folder / f"{name}.png", 10 * number)
        (folder / f"{name}.txt").write_text(f"make it {name}")
    one(folder / "a-control.png", 110)
    one(folder / "control" / "b.jpg", 120)
    images = read(folder)
    assert levels(images) == {"a.png": (10, 110), "b.png": (20, 120)}
    assert [item.caption for item in images.items] == ["make it a", "make it b"]
    assert images.are_pairs
    assert "Pairs: each picture has a second one" in describe(images)
    assert read(folder, subfolders=True).fingerprint == images.fingerprint
    # A third picture would be NAME-control.png without pairs, which is read as one of the set, and said.
    plain = read_folder(FolderRequest(folder))
    assert [item.name for item in plain.items] == ["a-control.png", "a.png", "b.png"]
    assert "Named as second pictures and read as pictures of their own: a-control.png." in describe(plain)


def test_the_folder_of_second_pictures_may_be_written_in_capitals(folder):
    (folder / "Control").mkdir()
    one(folder / "a.png", 10)
    one(folder / "Control" / "A.PNG", 110)
    assert levels(read(folder)) == {"a.png": (10, 110)}
    assert levels(read(folder, subfolders=True)) == {"a.png": (10, 110)}


def test_a_folder_with_mismatches_is_refused_with_every_name(folder):
    (folder / "control").mkdir()
    for name in ("a", "b", "c"):
        one(folder / f"{name}.png", 10)
    one(folder / "a-control.png", 1)
    one(folder / "d-control.png", 1)
    one(folder / "control" / "e.png", 1)
    with pytest.raises(InputError) as refused:
        read(folder)
    text = str(refused.value)
    assert "4 of the files" in text
    for part in (
        "b.png has no second picture (b-control.png beside it, or control/b.png)",
        "c.png has no second picture",
        "d-control.png is the second picture of no picture",
        "control/e.png is the second picture of no picture",
    ):
        assert part in text
    assert "a.png has" not in text


def test_a_picture_with_two_second_pictures_is_refused(folder):
    (folder / "control").mkdir()
    one(folder / "a.png", 10)
    one(folder / "a-control.png", 1)
    one(folder / "control" / "a.png", 1)
    with pytest.raises(InputError, match=r"a\.png and a-control\.png, control/a\.png have one name"):
        read(folder)


def test_a_folder_of_other_names_is_matched_by_order(folder):
    (folder / "control").mkdir()
    for number in (1, 2):
        one(folder / f"after{number}.png", 10 * number)
        one(folder / "control" / f"before{number}.png", 100 + 10 * number)
    images = read(folder)
    assert levels(images) == {"after1.png": (10, 110), "after2.png": (20, 120)}
    assert "No names in common: matched by the order of names in set (2 pairs)." in describe(images)


def test_the_second_picture_has_the_geometry_of_its_picture(folder):
    """The bucket is the result's; the source is scaled, cropped and mirrored with it."""
    halves(folder / "a.png", 200, 0, (400, 250))
    halves(folder / "a-control.png", 0, 200, (200, 125))  # half as large
    halves(folder / "b.png", 200, 0, (128, 128))
    halves(folder / "b-control.png", 0, 200, (384, 128))  # another shape: the middle third is left
    images = read(folder, resolution=128, flip=True)
    a, mirrored, b, _ = images.items
    assert a.control.shape == a.pixels.shape
    half = a.pixels.shape[1] // 2
    assert (level(a.pixels[:, : half - 4]), level(a.pixels[:, half + 4 :])) == (200, 0)
    assert (level(a.control[:, : half - 4]), level(a.control[:, half + 4 :])) == (0, 200)
    assert torch.equal(mirrored.control, a.control.flip(1))
    assert torch.equal(mirrored.pixels, a.pixels.flip(1))
    assert (level(b.control[:, :60]), level(b.control[:, 68:])) == (0, 200)
    report = describe(images)
    assert (
        "Second pictures of another shape, cropped at the middle: b-control.png (384x128 px, its picture 128x128)"
        in report
    )
    small = read(folder, resolution=512)
    assert "Second pictures enlarged to the size of their pictures: a-control.png (200x125 px)." in describe(small)
    smaller = combine({"set0": images}, resolutions="64").images
    assert all(item.control.shape == item.pixels.shape for item in smaller.items)
    assert (level(smaller.items[0].control[:, :30]), level(smaller.items[0].control[:, -30:])) == (0, 200)


def test_a_changed_second_picture_is_read_anew_and_makes_another_set(folder):
    one(folder / "a.png", 10)
    one(folder / "a-control.png", 1)
    (folder / "control").mkdir()
    before, stamp = read(folder).fingerprint, hash_files(folder, pairs=True)
    one(folder / "a-control.png", 2)
    assert read(folder).fingerprint != before
    assert hash_files(folder, pairs=True) != stamp
    (folder / "a-control.png").rename(folder / "control" / "a.png")
    stamp = hash_files(folder, pairs=True)
    one(folder / "control" / "a.png", 3)
    assert hash_files(folder, pairs=True) != stamp


def test_an_unreadable_second_picture_is_named(folder):
    (folder / "control").mkdir()
    one(folder / "a.png", 10)
    (folder / "control" / "a.png").write_bytes(b"no picture")
    with pytest.raises(InputError, match=r"control/a\.png is no picture that can be read"):
        read(folder)


# --- two sets ---------------------------------------------------------------------------------------------------------


def grey_set(names, first=0, captions=None, size=(64, 64)):
    items = [
        TrainingImage(name, torch.full((*size, 3), first + i, dtype=torch.uint8), (captions or names)[i], source="s")
        for i, name in enumerate(names)
    ]
    images = image_set(torch.zeros(1, 64, 64, 3), "")
    return replace(images, items=tuple(items))


def test_two_sets_become_pairs_by_name():
    images = pair_sets(grey_set(["b.jpg", "a-control.png"], 100), grey_set(["a.png", "b.png"], 1))
    assert levels(images) == {"a.png": (1, 101), "b.png": (2, 100)}
    assert [item.caption for item in images.items] == ["a.png", "b.png"]
    assert (
        images.fingerprint != pair_sets(grey_set(["b.jpg", "a.jpg"], 50), grey_set(["a.png", "b.png"], 1)).fingerprint
    )


def test_two_sets_with_mismatches_are_refused_with_every_name():
    with pytest.raises(InputError) as refused:
        pair_sets(grey_set(["a.png", "x.png", "y.png"]), grey_set(["a.png", "b.png", "c.png"]))
    text = str(refused.value)
    for part in (
        "4 of the pictures",
        "s/b.png of result",
        "s/c.png of result",
        "s/x.png of source",
        "s/y.png of source",
    ):
        assert part in text
    assert "s/a.png" not in text


def test_two_batches_are_matched_by_their_numbers_and_others_by_order():
    source, result = image_set(torch.rand(2, 64, 64, 3), ""), image_set(torch.rand(2, 64, 64, 3), "a\nb")
    images = pair_sets(source, result)
    assert torch.equal(images.items[1].control, source.items[1].pixels)
    images = pair_sets(source, grey_set(["p", "q"]))
    assert torch.equal(images.items[1].control, source.items[1].pixels)
    assert "No names in common: 2 pairs matched by order, image 1 to p up to image 2 to q." in describe(images)


def test_sources_that_were_cropped_otherwise_are_named(tmp_path):
    """One picture in two sizes. Two folders have it in two buckets: the column at which its half begins is then another
    in the source. With pairs of one folder it is the same."""
    for name, size in (("result", (500, 350)), ("source", (1000, 700)), ("small", (500, 350))):
        (tmp_path / name).mkdir()
        halves(tmp_path / name / "a.png", 0, 255, size)
        strip = Image.open(tmp_path / name / "a.png").copy()
        strip.paste((0, 255, 0), (0, 0, size[0] // 4, size[1]))  # its edge is off the middle, so that a zoom moves it
        strip.save(tmp_path / name / "a.png")
    source, result, small = (read_folder(FolderRequest(tmp_path / name)) for name in ("source", "result", "small"))

    def edge(pixels):
        return int((pixels[pixels.shape[0] // 2, :, 1] < 128).nonzero()[0])  # the first column that is not green

    odd = pair_sets(source, result)
    one, other = (edge(pixels) for pixels in (odd.items[0].pixels, odd.items[0].control))
    assert abs(one - other) > 3
    assert "Sources that show another part of the picture than their results: a.png." in describe(odd)
    alike = pair_sets(small, result)
    assert torch.equal(alike.items[0].pixels, alike.items[0].control)
    assert "another part" not in describe(alike)
    (tmp_path / "result" / "control").mkdir()
    (tmp_path / "source" / "a.png").rename(tmp_path / "result" / "control" / "a.png")
    aligned = read(tmp_path / "result").items[0]
    assert abs(edge(aligned.pixels) - edge(aligned.control)) <= 1


def test_a_folder_says_which_pictures_are_their_own_sources(folder):
    one(folder / "a.png", 10)
    one(folder / "a-control.png", 10)
    assert "Nothing changes in a.png: both pictures are the same." in describe(read(folder))


def test_empty_instructions_equal_pictures_and_pairs_of_pairs_are_said():
    same = pair_sets(grey_set(["a"]), grey_set(["a"], captions=[""]))
    assert "Nothing changes in s/a: source and result are the same picture." in describe(same)
    assert "No instructions: the captions of result are empty" in describe(same)
    with pytest.raises(InputError, match="the set result is one of pairs already"):
        pair_sets(grey_set(["a"]), same)
    with pytest.raises(InputError, match="has a second picture of the shape"):
        replace(same.items[0], control=torch.zeros(8, 8, 3, dtype=torch.uint8))


def test_the_sheet_shows_both_pictures_side_by_side():
    """Source to the left: the greys are found in the two places of the cell, by its sizes."""
    sheet = contact_sheet(pair_sets(grey_set(["a"], 100), grey_set(["a"], 200)))
    assert sheet.shape == (1, 12 + 192 + 54 + 12, 12 + 2 * 192 + 24 + 12, 3)
    row = (sheet[0, 12 + 96, :, 0] * 255).round()
    assert row[12 + 96] == 100
    assert row[12 + 192 + 24 + 96] == 200
