"""Writing a training set into a folder and reading it again: pixels, captions, masks, order, and what is left alone."""

import errno
import os
import unicodedata
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from bespoke.nodes.images.batch import image_set
from bespoke.nodes.images.captions.text_files import match_captions
from bespoke.nodes.images.folder import FolderRequest, fingerprint, mirrored, read_folder
from bespoke.nodes.images.saving import save
from bespoke.nodes.images.saving.report import reading_settings, report_of
from bespoke.nodes.images.saving.save import pictures_of
from bespoke.nodes.images.saving.stems import stems_of
from bespoke.training.caption_variants import CaptionVariants
from bespoke.training.errors import InputError
from bespoke.training.images import ImageSet, TrainingImage
from PIL import Image

SIZES = [(64, 64), (96, 64), (64, 72)]


def pixels(height=64, width=64, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8))


def item(name="a.png", caption="a thing", seed=0, size=(64, 64), **more):
    return TrainingImage(name, pixels(*size, seed), caption, **more)


def a_set(*items):
    return ImageSet(items, "", fingerprint(items))


def save_set(images, base, name, progress=lambda done, of: None):
    return save.save_set(images, base, name, progress)


def files_in(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def read(base, saved, **changes):
    sizes = [tuple(each.item.pixels.shape[:2]) for each in saved.pictures]
    resolution, step = reading_settings(sizes)
    return read_folder(FolderRequest(base / saved.folder, resolution=resolution, bucket_step=step, **changes))


# --- the round trip ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [3, 12])
def test_a_batch_comes_back_with_its_bits_and_in_its_order(tmp_path, count):
    """Oracle: the set itself. The masks are k/255, as a file has them; of 12 pictures "image 10" sorts before "image
    2", so the numbers need a zero. The fingerprint is a hash of all that a training sees."""
    batches = [pixels(*SIZES[i % 3], seed=i)[None].float() / 255 for i in range(count)]
    masks = [(torch.rand(1, *SIZES[i % 3]) * 255).round() / 255 for i in range(count)]
    images = image_set(batches, [f"caption {i}" for i in range(count)], "zor", masks)
    saved = save_set(images, tmp_path, "mine/set")
    again = read(tmp_path, saved, trigger="zor", masks="*-mask.png")
    for ours, theirs in zip(images.items, again.items, strict=True):
        assert torch.equal(ours.pixels, theirs.pixels)
        assert torch.equal(ours.mask, theirs.mask)
        assert ours.caption == theirs.caption
    assert images.fingerprint == again.fingerprint
    assert saved.folder == "mine/set"
    report = report_of(saved, images)
    assert f"input/mine/set: {count} pictures, {count} caption files, {count} masks." in report
    assert "masks *-mask.png; trigger zor." in report
    assert "Not kept" not in report
    with Image.open(tmp_path / saved.folder / saved.pictures[0].picture_file) as picture:
        assert (picture.format, picture.mode, picture.info) == ("PNG", "RGB", {})


@pytest.mark.parametrize(
    "sizes",
    [[(64, 64)], [(512, 768), (768, 512)], [(200, 1304), (512, 512)], [(1024, 1024), (64, 64)], [(72, 4096)]],
)
def test_the_settings_of_the_report_leave_every_size(sizes):
    """Oracle: `target_size`, which Image Folder calls, on a folder of such pictures."""
    resolution, step = reading_settings(sizes)
    request = FolderRequest(Path(), resolution=resolution, bucket_step=step)
    assert [request.target(*size) for size in sizes] == sizes
    assert 64 <= resolution <= 4096
    assert resolution % 8 == step % 8 == 0


def test_sizes_beyond_every_resolution_are_said(tmp_path):
    assert reading_settings([(8192, 4096)]) is None
    assert reading_settings([(100, 100)]) is None  # no multiple of 8


def test_several_captions_are_one_a_line_and_none_has_no_file(tmp_path):
    images = a_set(
        item("a.png", "one", more_captions=("two", "one")), item("b.png", "", seed=1), item("c.png", "x\n y  z", seed=2)
    )
    saved = save_set(images, tmp_path, "set")
    found = files_in(tmp_path / "set")
    assert found["a.txt"] == b"one\ntwo\none\n"
    assert found["c.txt"] == b"x y z\n"
    assert sorted(found) == ["a.png", "a.txt", "b.png", "c.png", "c.txt"]
    report = report_of(saved, images)
    assert "captions text files, one caption a line;" in report
    assert "Captions in one line, with single blanks: c.png." in report


def test_the_variants_of_captions_are_not_kept_which_is_said(tmp_path):
    """The captions are written as they are, and `variants` of a picture stand in no file."""
    images = a_set(item(caption="a, b, c", variants=CaptionVariants()))
    assert "Not kept: the variants of Caption Variants" in report_of(save_set(images, tmp_path, "set"), images)


def test_copies_are_written_once_at_the_largest_size(tmp_path):
    small, large = item(size=(64, 64)), item(size=(96, 96), seed=1, weight=2.0)
    items = [mirrored(small), small, large, mirrored(large)] * 2
    images = ImageSet(tuple(items))
    saved = save_set(images, tmp_path, "set")
    assert sorted(files_in(tmp_path / "set")) == ["a.png", "a.txt"]
    assert torch.equal(read(tmp_path, saved).items[0].pixels, large.pixels)
    report = report_of(saved, images)
    assert "Written once: the set has 8 pictures" in report
    assert "Not kept: how often each picture is drawn" in report


def test_a_picture_of_two_sets_keeps_the_captions_of_both(tmp_path):
    """One folder read twice, with captions and triggers of its own: what was made in the graph is written, and what a
    folder cannot hold is said."""
    first = item("a.png", "cat, one", source="cats", trigger="cat", mask=torch.ones(64, 64))
    second = item("a.png", "tok, two", source="cats", trigger="tok", more_captions=("cat, one",))
    images = a_set(first, mirrored(first), second)
    saved = save_set(images, tmp_path, "both")
    assert (tmp_path / "both" / "a.txt").read_text() == "cat, one\ntok, two\n"
    again = read(tmp_path, saved, captions="text files, one caption a line", masks="*-mask.png")
    assert again.items[0].captions == ("cat, one", "tok, two")
    report = report_of(saved, images)
    assert "captions text files, one caption a line" in report
    assert "Not kept: which picture has which trigger (cat, tok)." in report
    assert "Not kept: a second mask of cats/a.png" in report
    assert "Not kept" not in report_of(saved, a_set(first, mirrored(first)))


def test_the_mark_of_another_place_is_no_name(tmp_path):
    """Image Folder would look for "mine [datasets]" elsewhere than where it was written."""
    with pytest.raises(InputError, match=r"'mine \[datasets\]' ends with \[datasets\].*leave the mark out"):
        save_set(a_set(item()), tmp_path, "mine [datasets]")
    assert not list(tmp_path.iterdir())


def test_what_a_folder_cannot_hold_is_said(tmp_path):
    mask = torch.full((64, 64), 0.3)
    images = a_set(item(mask=mask, original=(640, 480), caption_syntax="prompt"))
    report = report_of(save_set(images, tmp_path, "set"), images)
    assert "Masks are rounded to 256 steps: a.png." in report
    assert "Not kept: the size before scaling and cropping of 1 picture" in report
    assert "caption_syntax prompt" in report


# --- names ------------------------------------------------------------------------------------------------------------


def names(*items):
    return stems_of([item(name, source=source) for source, name in items])


def test_a_files_stem_stays():
    assert names(("x", "a b.png"), ("x", "c.v2.JPG"), ("x", "ünï.webp")) == ["a b", "c.v2", "ünï"]


def test_two_folders_1_png_get_the_folders_name():
    assert names(("x/cats", "1.png"), ("dogs", "1.png")) == ["cats_1", "dogs_1"]


@pytest.mark.parametrize(
    "given",
    [
        [("dogs", "1.png"), ("cats", "1.png")],  # the wrong order
        [("x", "a.jpg"), ("x", "a.png")],  # one stem, one source
        [("x", "A.png"), ("x", "a.png")],  # one name on Windows
        [("x", "\u00e9.png"), ("x", "e\u0301.png")],  # one name on macOS
        [("x", "a.jpg"), ("x", "a b.png")],  # " " sorts before "."
        [("x", "z" * 300 + "1.png"), ("x", "z" * 300 + "2.png")],
        [("x", "..png"), ("x", "a/b.png"), ("x", "con.png"), ("x", "a-mask.png"), ("x", 'a<>:"|?*\0.png'), ("", "")],
        [("", f"image {i}") for i in range(1, 101)],
    ],
)
def test_names_are_valid_different_and_in_order(tmp_path, given):
    """Oracle: the folder as Image Folder reads it, with a picture of its own for each item."""
    items = [item(name, f"number {i}", i, source=source) for i, (source, name) in enumerate(given)]
    saved = save_set(ImageSet(tuple(items)), tmp_path, "set")
    again = read(tmp_path, saved)
    assert [each.caption for each in again.items] == [each.caption for each in items]
    for ours, theirs in zip(items, again.items, strict=True):
        assert torch.equal(ours.pixels, theirs.pixels)
    stems = [each.stem for each in saved.pictures]
    assert len({unicodedata.normalize("NFC", stem).casefold() for stem in stems}) == len(items)
    for stem in stems:
        assert not set(stem) & set('<>:"|?*/\\\0')
        assert stem.split(".")[0].upper() != "CON"
        assert len(f"{stem}-mask.png".encode()) <= 255
    assert not match_captions([Path("none.png")], [Path(f"{stem}.txt") for stem in stems])


# --- what is there already --------------------------------------------------------------------------------------------


def test_an_equal_set_is_not_written_again(tmp_path, monkeypatch):
    images = a_set(item(), item("b.png", seed=1, mask=torch.ones(64, 64)))
    save_set(images, tmp_path, "set")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "set").iterdir()}
    monkeypatch.setattr(save, "_write_folder", lambda *_: pytest.fail("written again"))
    saved = save_set(images, tmp_path, "set")
    assert saved.was_there
    assert saved.folder == "set"
    assert report_of(saved, images).startswith("Already there: input/set holds 2 pictures, 2 caption files, 1 mask;")
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "set").iterdir()} == before


@pytest.mark.parametrize("change", ["pixels", "another picture", "one less", "renamed", "a file", "not decodable"])
def test_a_folder_of_other_pictures_is_left_alone_and_numbered(tmp_path, change):
    images = a_set(item(), item("b.png", seed=1))
    folder = tmp_path / "set"
    if change == "a file":
        folder.write_text("a file")
    else:
        save_set(images, tmp_path, "set")
    if change == "pixels":
        Image.fromarray(pixels(seed=7).numpy()).save(folder / "b.png")
    elif change == "another picture":
        Image.new("RGB", (64, 64)).save(folder / "c.webp")
    elif change == "one less":
        (folder / "b.png").unlink()
    elif change == "renamed":
        (folder / "b.png").rename(folder / "c.png")
    elif change == "not decodable":
        (folder / "b.png").write_bytes(b"no picture")
    before = folder.read_text() if change == "a file" else files_in(folder)
    saved = save_set(images, tmp_path, "set")
    assert saved.folder == "set_2"
    assert not saved.was_there
    assert (folder.read_text() if change == "a file" else files_in(folder)) == before
    assert save_set(images, tmp_path, "set").folder == "set_2"  # the third time: it is there
    assert sorted(path.name for path in tmp_path.iterdir()) == ["set", "set_2"]


@pytest.mark.parametrize("change", ["edited", "removed", "added", "mask"])
def test_edited_captions_and_masks_are_not_passed_over(tmp_path, change):
    """A second copy with the captions of the graph would be trained on in place of the edited ones."""
    images = a_set(item(mask=torch.ones(64, 64)), item("b.png", "", seed=1))
    save_set(images, tmp_path, "set")
    folder = tmp_path / "set"
    file = {"edited": "a.txt", "removed": "a.txt", "added": "b.txt", "mask": "a-mask.png"}[change]
    if change == "removed":
        (folder / file).unlink()
    elif change == "mask":
        Image.new("L", (64, 64), 7).save(folder / file)
    else:
        (folder / file).write_text("my own words")
    before = files_in(folder)
    with pytest.raises(InputError, match=rf"'set' holds these pictures already.*\({file}\); nothing was .*bypass"):
        save_set(images, tmp_path, "set")
    assert files_in(folder) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["set"]


def test_caches_and_line_ends_of_other_programs_do_not_count(tmp_path):
    images = a_set(item())
    save_set(images, tmp_path, "set")
    (tmp_path / "set" / "a.npz").write_bytes(b"cache")
    (tmp_path / "set" / ".DS_Store").write_bytes(b"x")
    (tmp_path / "set" / "a.txt").write_bytes(b"\xef\xbb\xbfa thing\r\n")
    assert save_set(images, tmp_path, "set").was_there


def test_an_empty_folder_is_filled(tmp_path):
    (tmp_path / "set").mkdir()
    assert save_set(a_set(item()), tmp_path, "set").folder == "set"
    assert sorted(files_in(tmp_path / "set")) == ["a.png", "a.txt"]


@pytest.mark.parametrize(
    "name", ["../out", "/tmp/out", "a/../../out", "", " a", "a\0b", "con", "a/nul.x/b", "a.", "x" * 300]
)
def test_names_that_lead_out_or_are_no_folders_are_refused(tmp_path, name):
    base = tmp_path / "input"
    base.mkdir()
    with pytest.raises(InputError, match=r"the name "):
        save_set(a_set(item()), base, name)
    assert not list(base.iterdir())
    assert [path.name for path in tmp_path.iterdir()] == ["input"]


@pytest.mark.skipif(os.name == "nt", reason="links to folders need a privilege there")
def test_a_link_out_of_the_folder_is_refused(tmp_path):
    (tmp_path / "input").mkdir()
    (tmp_path / "out").mkdir()
    (tmp_path / "input" / "link").symlink_to(tmp_path / "out")
    with pytest.raises(InputError, match="leads out"):
        save_set(a_set(item()), tmp_path / "input", "link/set")
    assert not list((tmp_path / "out").iterdir())


# --- whole or not at all ----------------------------------------------------------------------------------------------


def test_a_full_disk_leaves_nothing_and_is_a_sentence(tmp_path, monkeypatch):
    written = save._write_png

    def full(path, pixels):
        if path.name == "b.png":
            raise OSError(errno.ENOSPC, "No space left on device")
        written(path, pixels)

    monkeypatch.setattr(save, "_write_png", full)
    with pytest.raises(InputError, match=r"'deep/er/set' \(no space left on device\); make room"):
        save_set(a_set(item(), item("b.png", seed=1)), tmp_path, "deep/er/set")
    assert not list(tmp_path.iterdir())


def test_an_interrupt_leaves_nothing(tmp_path):
    def stop(done, of):
        if done == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        save_set(a_set(item(), item("b.png", seed=1)), tmp_path, "set", stop)
    assert not list(tmp_path.iterdir())


def test_a_killed_processs_files_are_taken_over(tmp_path, monkeypatch):
    """The first picture is whole, the second is cut off, a temporary file is left; only what is missing is written."""
    images = a_set(item(), item("b.png", seed=1), item("c.png", seed=2))
    save_set(images, tmp_path, "set")
    whole = files_in(tmp_path / "set")
    unfinished = tmp_path / f"{save.UNFINISHED}{save._digest('set', pictures_of(images))}.part"
    (tmp_path / "set").rename(unfinished)
    (unfinished / "b.png").write_bytes(whole["b.png"][:100])
    (unfinished / "c.png").unlink()
    (unfinished / ".bespoke-0-1-2.part").write_bytes(b"x")
    written, paths = save._write_png, []
    monkeypatch.setattr(save, "_write_png", lambda path, pixels: (paths.append(path.name), written(path, pixels)))
    assert save_set(images, tmp_path, "set").folder == "set"
    assert paths == ["b.png", "c.png"]
    assert files_in(tmp_path / "set") == whole
    assert [path.name for path in tmp_path.iterdir()] == ["set"]


def test_a_name_that_is_taken_meanwhile_is_left_alone(tmp_path, monkeypatch):
    """Another process makes the folder while this one writes its pictures."""
    written = save._write_files

    def taken(folder, *more):
        written(folder, *more)
        if not (tmp_path / "set").exists():
            (tmp_path / "set").mkdir()
            (tmp_path / "set" / "mine.png").write_bytes(b"mine")

    monkeypatch.setattr(save, "_write_files", taken)
    assert save_set(a_set(item()), tmp_path, "set").folder == "set_2"
    assert files_in(tmp_path / "set") == {"mine.png": b"mine"}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["set", "set_2"]


def test_old_unfinished_folders_are_removed_and_others_stay(tmp_path):
    old, new, foreign = tmp_path / ".bespoke-set-0.part", tmp_path / ".bespoke-set-1.part", tmp_path / "old"
    for path in (old, new, foreign):
        path.mkdir()
        (path / "a.png").write_bytes(b"x")
    for path in (old, foreign):
        os.utime(path, (1e9, 1e9))
    save_set(a_set(item()), tmp_path, "set")
    assert sorted(path.name for path in tmp_path.iterdir()) == [".bespoke-set-1.part", "old", "set"]


def test_a_caption_that_no_file_may_have_is_refused(tmp_path):
    with pytest.raises(InputError, match="the captions of a.png have 1,000,001 characters"):
        save_set(a_set(replace(item(), caption="x" * 1_000_000)), tmp_path, "set")
    assert not list(tmp_path.iterdir())
