"""Combine Image Sets: draws, resolutions, sizes, and what is refused. The oracle is arithmetic by hand, and Pillow."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from bespoke.nodes.images.batch import image_set as batch_set
from bespoke.nodes.images.combination.combine import combine, parse_resolutions, parse_weights, shrunk_item
from bespoke.nodes.images.combination.report import describe_sets, preview
from bespoke.nodes.images.folder import FolderRequest, fingerprint, mirrored, read_folder
from bespoke.training.batch_order import batch_indices
from bespoke.training.config import TrainConfig
from bespoke.training.data import LatentSet
from bespoke.training.errors import InputError
from bespoke.training.images import ImageSet, TrainingImage, passes_in_words
from bespoke.training.timesteps import UniformTimesteps
from bespoke.training.validation import folds, split
from PIL import Image

CPU = torch.device("cpu")


def pixels(height, width, seed=0):
    return torch.randint(0, 256, (height, width, 3), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


def folder_set(source, sizes, *, flip=False, repeats=1, trigger="", syntax="literal", seed=0, mask=False):
    """The set of a folder with one picture of each of `sizes` (height, width), as Image Folder makes it."""
    items = [
        TrainingImage(
            f"{i}.png",
            pixels(*size, seed=1000 * seed + i),
            f"{trigger} picture {i}".strip(),
            torch.ones(*size) if mask else None,
            size,
            caption_syntax=syntax,
            trigger=trigger,
            source=source,
        )
        for i, size in enumerate(sizes)
    ]
    items = [copy for item in items for copy in ((item, mirrored(item)) if flip else (item,))] * repeats
    return ImageSet(tuple(items), trigger, fingerprint(items), ("a note",))


def latents_of(images):
    """The set as latents of an eighth of its size, as a VAE would give."""
    latents = [torch.zeros(1, 4, item.pixels.shape[0] // 8, item.pixels.shape[1] // 8) for item in images.items]
    return LatentSet(latents, [None] * len(latents), [item.weight for item in images.items])


def config(**changes):
    return TrainConfig(**dict(steps=1000, learning_rate=1e-3, seed=3, batch_size=4) | changes)


# (sets, weights, balance, resolutions, the share of each set by hand)
SMALL, WIDE = (64, 64), (64, 128)
DRAWS = {
    "two sets as they are": (dict(a=[SMALL] * 3, b=[SMALL] * 5), {}, "", "as they are", "", [3 / 8, 5 / 8]),
    "weight 2": (dict(a=[SMALL] * 3, b=[SMALL] * 5), {}, "2\n1", "as they are", "", [6 / 11, 5 / 11]),
    "each set the same": (dict(a=[SMALL], b=[SMALL] * 7), {}, "", "each set the same", "", [1 / 2, 1 / 2]),
    "the same, then weighted": (
        dict(a=[SMALL], b=[SMALL] * 7, c=[SMALL] * 3), {}, "1\n3\n0.5", "each set the same", "", [2 / 9, 6 / 9, 1 / 9]
    ),
    "buckets smaller than the batch": (
        dict(a=[SMALL, WIDE], b=[SMALL, (128, 64), WIDE]), {}, "1\n2.5", "as they are", "", [2 / 9.5, 7.5 / 9.5]
    ),
    "repeats and flips": (
        dict(a=[SMALL] * 2, b=[SMALL, WIDE, WIDE]),
        dict(a=dict(repeats=3), b=dict(flip=True)),
        "1\n2",
        "as they are",
        "",
        [6 / 18, 12 / 18],
    ),
    "resolutions": (
        dict(a=[(256, 256)] * 2, b=[(128, 256), (192, 192), (64, 64)]),
        {},
        "3\n1",
        "as they are",
        "64, 128, 256",
        [6 / 9, 3 / 9],
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", DRAWS)
def test_each_picture_is_drawn_by_its_share_over_1000_steps(case):
    """Of every set the share, and of every picture an equal part of its set's: chi-square of the counts of 4,000 draws
    against that. The 99 % quantile of a chi-square with k degrees of freedom is above k, and an order that is spread
    stays below it; wrong shares are far above (a weight of 2 taken for 1 gives hundreds).
    """
    sizes, kinds, weights, balance, resolutions, shares = DRAWS[case]
    sets = {name: folder_set(name, given, seed=ord(name), **kinds.get(name, {})) for name, given in sizes.items()}
    images = combine(sets, weights, balance, resolutions).images
    data, run = latents_of(images), config()
    buckets = data.buckets(range(len(images.items)))
    draws = Counter()
    for micro in range(run.steps):
        indices = batch_indices(buckets, run.batch_size, run.seed, micro)
        assert len({images.items[i].pixels.shape for i in indices}) == 1
        draws.update(images.items[i].picture for i in indices)
    total = run.steps * run.batch_size
    expected = {
        (name, f"{i}.png"): total * share / len(given)
        for (name, given), share in zip(sizes.items(), shares, strict=True)
        for i in range(len(given))
    }
    assert draws.keys() == expected.keys()
    assert sum((draws[key] - n) ** 2 / n for key, n in expected.items()) < len(expected) - 1
    counted = data.draw_counts(run, run.steps, range(len(images.items)))
    assert draws == sum_by_picture(counted, images)


def sum_by_picture(counts, images):
    out = Counter()
    for index, count in counts.items():
        out[images.items[index].picture] += count
    return out


def test_copies_of_a_picture_share_its_draws_and_its_sizes_take_turns():
    """Three sizes of one picture: each a third of the picture's draws. A picture that is smaller has two, or one."""
    images = combine(dict(a=folder_set("a", [(256, 256), (128, 128), (64, 64)])), resolutions="64 128 256").images
    data = latents_of(images)
    counts = data.draw_counts(config(steps=450), 450, range(len(images.items)))  # 1,800 draws, 600 of each picture
    found = {(item.name, item.pixels.shape[0]): counts[i] for i, item in enumerate(images.items)}
    expected = {("0.png", side): 200 for side in (256, 128, 64)} | {("1.png", side): 300 for side in (128, 64)}
    expected[("2.png", 64)] = 600
    assert found.keys() == expected.keys()
    assert all(abs(found[key] - count) <= 4 for key, count in expected.items())  # one batch


@pytest.mark.parametrize("case", DRAWS)
def test_a_resumed_training_and_two_processes_draw_the_same(case):
    """What a step draws depends on the step alone: from step 500 on, and with half of the positions each."""
    sizes, kinds, weights, balance, resolutions, _ = DRAWS[case]
    sets = {name: folder_set(name, given, **kinds.get(name, {})) for name, given in sizes.items()}
    images, run = combine(sets, weights, balance, resolutions).images, config()
    whole, resumed = latents_of(images), latents_of(images)
    one = {micro: whole.batch(run, micro, CPU, UniformTimesteps()) for micro in range(490, 520)}
    for micro in (500, 501, 519):
        assert same(resumed.batch(run, micro, CPU, UniformTimesteps()), one[micro], range(4))
        for rank in range(2):
            mine = list(range(rank, 4, 2))
            batch = resumed.batch(run, micro, CPU, UniformTimesteps(), sample_positions=mine)
            assert same(batch, one[micro], mine)


def same(batch, whole, positions):
    return (
        batch.indices == [whole.indices[p] for p in positions]
        and batch.turns == [whole.turns[p] for p in positions]
        and torch.equal(batch.noise, whole.noise[list(positions)])
        and torch.equal(batch.t, whole.t[list(positions)])
    )


def test_one_set_alone_stays_as_it_is():
    one = folder_set("a", [SMALL, WIDE], trigger="tok", mask=True)
    for weights in ("", "3"):  # a weight says nothing where there is no other set
        images = combine(dict(set0=one), weights, "each set the same").images
        assert images.items == one.items
        assert (images.fingerprint, images.trigger) == (one.fingerprint, "tok")


def test_equal_weights_are_no_weights():
    sets = dict(a=folder_set("a", [SMALL] * 3), b=folder_set("b", [SMALL] * 3, seed=1))
    plain = combine(sets).images
    assert [item.weight for item in plain.items] == [1.0] * 6
    for weights, balance in (("2\n2", "as they are"), ("", "each set the same"), ("0.3\n0.3", "each set the same")):
        assert combine(sets, weights, balance).images.fingerprint == plain.fingerprint


def test_weights_multiply_those_of_the_pictures():
    """A set that is itself combined keeps what its pictures weigh: 2 and 1 become 6 and 3."""
    sets = dict(set0=folder_set("a", [SMALL]), set1=folder_set("b", [SMALL], seed=1))
    inner = combine(sets, "2\n1").images
    outer = combine(dict(set0=inner, set1=folder_set("c", [SMALL], seed=2)), "3\n1").images
    assert {item.source: item.weight for item in outer.items} == {"a": 6.0, "b": 3.0, "c": 1.0}


def test_every_set_keeps_captions_trigger_syntax_and_masks():
    saber = folder_set("sabers", [SMALL], trigger="saber (fate)", mask=True)
    dog = folder_set("dogs", [WIDE], trigger="(dog:1.2)", syntax="prompt", seed=1)
    images = combine(dict(set0=saber, set1=dog), "2\n1").images
    assert [(item.trigger, item.caption_syntax, item.mask is None) for item in images.items] == [
        ("saber (fate)", "literal", False),
        ("(dog:1.2)", "prompt", True),
    ]
    assert [item.prompt for item in images.items] == [r"saber \(fate\) picture 0", "(dog:1.2) picture 0"]
    assert images.triggers == ["saber (fate)", "(dog:1.2)"]
    assert images.trigger_prompt == r"saber \(fate\), (dog:1.2)"  # each as its own captions say it
    assert images.trigger == ""
    assert combine(dict(set0=saber, set1=saber)).images.trigger == "saber (fate)"


def test_the_fingerprint_tells_which_items_are_one_picture():
    """The same pixels as one picture at two places, or as two pictures, are held out differently."""
    a, b = folder_set("a", [SMALL]), folder_set("b", [SMALL])
    assert torch.equal(a.items[0].pixels, b.items[0].pixels)
    assert combine(dict(x=a, y=a)).images.fingerprint != combine(dict(x=a, y=b)).images.fingerprint
    assert combine(dict(x=a, y=b), "1\n2").images.fingerprint != combine(dict(x=a, y=b)).images.fingerprint


def test_a_folder_at_two_resolutions_is_one_set_of_pictures(tmp_path):
    """Two Image Folder nodes on one folder, one of another folder with the same file names."""
    for folder in ("cats", "dogs"):
        (tmp_path / folder).mkdir()
        for i in range(12):
            picture = pixels(256, 256, seed=i + (folder == "dogs") * 100)
            Image.fromarray(picture.numpy()).save(tmp_path / folder / f"{i}.png")
    sets = {
        f"set{n}": read_folder(FolderRequest(tmp_path / folder, resolution=side, source=folder))
        for n, (folder, side) in enumerate([("cats", 128), ("cats", 256), ("dogs", 256)])
    }
    combined = combine(sets, resolutions="64, 128, 256")
    copies = combined.images.copies()
    assert len(copies) == 24
    assert {len(own) for own in copies[:12]} == {2 + 3}
    for seed in range(20):
        for trained_on, held_out in [split(copies, 4, seed), *folds(copies, 4, seed)]:
            ours, theirs = ({combined.images.items[i].picture for i in side} for side in (trained_on, held_out))
            assert not ours & theirs
            assert len(held_out) == 4
    assert "In more than one set: cats/0.png, " in describe_sets(combined)


def test_a_batch_at_two_resolutions_is_one_set_of_pictures():
    """With other captions too; another batch is another set, and its first picture another picture."""
    images = torch.rand(2, 128, 128, 3, generator=torch.Generator().manual_seed(0))
    other = torch.rand(2, 128, 128, 3, generator=torch.Generator().manual_seed(1))
    sets = dict(a=batch_set(images, "a cat"), b=batch_set(images, "it", resolution=64), c=batch_set(other, "a cat"))
    items = combine(sets).images.items
    assert len({item.picture for item in items}) == 4
    assert items[0].picture == items[2].picture != items[4].picture


def test_sets_without_a_source_are_told_apart_by_their_content():
    """Other nodes may make items that have none: "0.png" of two such sets would be one picture."""
    one, two = (replace(folder_set("", [SMALL, SMALL], seed=seed)) for seed in (1, 2))
    assert len(combine(dict(a=one, b=two)).images.copies()) == 4
    assert len(combine(dict(a=one, b=one)).images.copies()) == 2


def test_a_smaller_copy_is_what_image_folder_reads(tmp_path):
    """At a size that keeps the shape, against Image Folder at that resolution: size, original, crop, and pixels to
    within what scaling twice differs from scaling once.
    """
    y, x = np.mgrid[0:600, 0:900]
    smooth = np.stack([y * 255 / 599, x * 255 / 899, (x + y) * 255 / 1498], -1).round().astype(np.uint8)
    (tmp_path / "a").mkdir()
    Image.fromarray(smooth).save(tmp_path / "a" / "0.png")
    large, small = (read_folder(FolderRequest(tmp_path / "a", resolution=r, source="a")) for r in (512, 256))
    copy = combine(dict(set0=large), resolutions="256").images.items[0]
    expected = small.items[0]
    assert copy.pixels.shape == expected.pixels.shape
    assert copy.original == expected.original == (600, 900)
    assert max(abs(a - b) for a, b in zip(copy.crop, expected.crop, strict=True)) <= 1
    assert (copy.pixels.int() - expected.pixels.int()).abs().max() <= 2
    assert copy.caption == expected.caption


def test_original_and_crop_by_hand():
    """A file of 1000x2000 (high, wide) px was scaled to 500x1000 and cropped to 500x600: 200 px at the left. Half of
    that is 250x300 with 100 px at the left; 256x256 covers it at 256/500, so it is 307.2 wide: 25.6 more are cut.
    """
    item = TrainingImage("0.png", pixels(500, 600), "", torch.rand(500, 600), (1000, 2000), (0, 200), source="a")
    copy = shrunk_item(item, (256, 256))
    assert copy.pixels.shape == (256, 256, 3)
    assert copy.original == (1000, 2000)
    scale = 256 / 500
    assert copy.crop == (0, round(200 * scale) + round((600 * scale - 256) / 2)) == (0, 102 + 26)
    box = (50, 0, 550, 500)
    expected = Image.fromarray(item.pixels.numpy()).resize((256, 256), Image.Resampling.LANCZOS, box=box)
    assert np.array_equal(copy.pixels.numpy(), np.array(expected))
    mask = Image.fromarray((item.mask.numpy() * 255).round().astype(np.uint8))
    expected = np.array(mask.resize((256, 256), Image.Resampling.LANCZOS, box=box), np.float32) / 255
    assert np.allclose(copy.mask.numpy(), expected)


def test_nothing_is_enlarged_and_no_size_comes_twice():
    sizes = [(256, 256), (128, 192), (64, 64), (300, 310)]
    images = combine(dict(a=folder_set("a", sizes)), resolutions="1024, 512, 192, 128, 128").images
    found = {}
    for item in images.items:
        found.setdefault(item.name, []).append(tuple(item.pixels.shape[:2]))
    assert found["0.png"] == [(256, 256), (192, 192), (128, 128)]  # the largest first: it is the one that is held out
    assert found["1.png"] == [
        (128, 192),
        (96, 144),
    ]  # 128 x 192 fits into 192 squared; of 128 squared the whole picture fits at 2:3
    assert found["2.png"] == [(64, 64)]
    assert found["3.png"][0] == (300, 310)  # also where it is in no step, as another pack may make it


def test_an_interrupt_ends_the_making_of_copies():
    """What the progress raises, as ComfyUI's does where the prompt is cancelled, comes out, after few pictures."""
    seen = []

    def cancelled_at_three(done, of):
        seen.append((done, of))
        if done == 3:
            raise KeyboardInterrupt

    sets = dict(a=folder_set("a", [(128, 128)] * 8), b=folder_set("b", [(128, 128)] * 2, seed=1))
    with pytest.raises(KeyboardInterrupt):
        combine(sets, resolutions="64", progress=cancelled_at_three)
    assert seen == [(0, 10), (1, 10), (2, 10), (3, 10)]
    seen.clear()
    combine(sets, resolutions="64", progress=lambda done, of: seen.append((done, of)))
    assert seen == [(done, 10) for done in range(11)]


def test_a_set_keeps_the_step_between_its_sizes():
    """Sides of 64 give sides of 64; a set that was read with bucket_step 32 has others."""
    coarse = combine(dict(a=folder_set("a", [(512, 768), (640, 640)])), resolutions="400").images
    fine = combine(dict(a=folder_set("a", [(480, 736), (640, 640)])), resolutions="400").images
    assert all(side % 64 == 0 for item in coarse.items for side in item.pixels.shape[:2] if side >= 256)
    sides = [side for item in fine.items for side in item.pixels.shape[:2] if side >= 256]
    assert all(side % 32 == 0 for side in sides)
    assert any(side % 64 for side in sides)


def test_a_mask_of_which_nothing_is_left_is_not_trained_on():
    """A mask of one faint pixel of 512 is 0 at 64: the smaller copy is left out by name, the larger one stays."""
    mask = torch.zeros(512, 512)
    mask[200, 200] = 1 / 255
    item = TrainingImage("0.png", pixels(512, 512), "", mask, (512, 512), source="a")
    one = ImageSet((item, replace(item, name="1.png", mask=torch.ones(512, 512))), "", "")
    images = combine(dict(a=one), resolutions="64, 512").images
    sizes = [(i.name, i.pixels.shape[0], i.weight) for i in images.items]
    assert sizes == [("0.png", 512, 1.0), ("1.png", 512, 0.5), ("1.png", 64, 0.5)]
    assert any("Smaller copies left out: 0.png; nothing of the mask is left" in note for note in images.notes)
    only = combine(dict(a=one), resolutions="64").images.items
    assert [(i.name, i.pixels.shape[0]) for i in only] == [("0.png", 512), ("1.png", 64)]


def test_the_largest_latent_is_that_of_the_largest_resolution():
    """What the memory forecast takes; see `Pictures.largest_index`."""
    images = combine(dict(a=folder_set("a", [(64, 64), (256, 192)])), resolutions="64, 128, 256").images
    data = latents_of(images)
    largest = max(range(len(images.items)), key=lambda i: data.latents[i].numel())
    assert tuple(data.latents[largest].shape[-2:]) == (32, 24)


WRONG_WEIGHTS = [
    ("1\nx", "line 2 of weights is 'x'; write one number above 0 on each line"),
    ("1\n\n 0", "line 3 of weights is 0, so that no picture of set1 would be drawn; unwire that set"),
    ("-1\n2", "line 1 of weights is '-1'"),
    ("1, 2", "line 1 of weights is '1, 2'"),
    ("nan\n1", "line 1 of weights is 'nan'"),
    ("1\ninf", "line 2 of weights is 'inf'"),
    ("1e308\n1e307", "line 1 of weights is '1e308'; write numbers from 1e-06 to 1,000,000"),  # their sum is inf
    ("1\n1e-320", "line 2 of weights is '1e-320'"),  # a half of it is less exact
    ("1", r"weights has 1 line for 2 sets \(set0, set1\); write one number a line for each set, or leave it empty"),
    ("1\n2\n3", "weights has 3 lines for 2 sets"),
]


@pytest.mark.parametrize(("text", "says"), WRONG_WEIGHTS)
def test_wrong_weights_are_named_with_line_value_and_mend(text, says):
    with pytest.raises(InputError, match=says):
        parse_weights(text, ["set0", "set1"])


def test_weights_in_the_order_of_the_sockets():
    assert parse_weights("\n 2\n\n0.5 \n", ["set0", "set1"]) == [2.0, 0.5]
    assert parse_weights(" \n", ["set0", "set1"]) == [1.0, 1.0]


@pytest.mark.parametrize("text", ["512x768", "32", "5000", "-512", "512.5", "½", "٥١٢"])
def test_wrong_resolutions_are_named(text):
    with pytest.raises(InputError, match=f"resolutions has {text!r}; write whole numbers from 64 to 4096 pixels"):
        parse_resolutions(f"1024, {text}")


def test_resolutions_as_people_write_them():
    assert parse_resolutions("512, 768;1024\n512") == [1024, 768, 512]
    assert parse_resolutions(" ") == []


def test_pictures_too_far_apart_are_refused_by_name():
    sets = dict(set0=folder_set("cats", [SMALL]), set1=folder_set("dogs", [SMALL], seed=1))
    with pytest.raises(InputError, match=r"a picture of set1 \(dogs\) .* 1,001 times as often as one of set0 \(cats\)"):
        combine(sets, "1\n1001")
    with pytest.raises(InputError, match="no set is wired in"):
        combine({})
    with pytest.raises(InputError, match="balance is 'equal'; choose one of as they are, each set the same"):
        combine(sets, balance="equal")


def test_the_report_has_a_row_for_each_set_and_names_what_is_odd():
    sets = dict(
        set0=folder_set("cats", [(128, 128)] * 3, trigger="tok cat", flip=True),
        set1=folder_set("many", [(64, 64)] * 4, seed=1, trigger="saber (fate)"),
        set2=folder_set("rare", [(64, 64)], seed=2),
    )
    combined = combine(sets, "10\n10\n0.5", resolutions="64, 128")
    lines = describe_sets(combined).splitlines()
    assert lines[0] == "8 pictures in 3 sets, 17 with mirrored, repeated and smaller ones."
    columns = ("set", "pictures", "weight", "share of draws", "for each picture", "sizes", "trigger")
    assert [word for word in columns if word in lines[1]] == list(columns)
    # 60 of 100.5, 40 of 100.5 and 0.5 of 100.5
    cells = [[cell.strip() for cell in line.split("  ") if cell.strip()] for line in lines[2:5]]
    assert cells == [
        ["set0 (cats)", "3", "10", "59.7%", "19.90%", "128x128, 64x64", "tok cat"],
        ["set1 (many)", "4", "10", "39.8%", "9.95%", "64x64", r"saber \(fate\)"],
        ["set2 (rare)", "1", "0.5", "0.5%", "0.50%", "64x64", "none"],
    ]
    text = "\n".join(lines)
    assert r"In prompts write tok cat, saber \(fate\)." in text
    assert "set2 (rare) gets 0.50% of the draws, about 2.0 of the 400 in 100 steps of batch_size 4" in text
    assert "No trigger: set2 (rare); the other sets have one." in text
    assert all(f"{name} ({images.items[0].source}): a note" in text for name, images in sets.items())
    assert "set1 (many): Not at 128 px: all its pictures were read at a smaller size" in text


def test_repeats_that_count_besides_the_weights_are_told():
    """By hand: 6 pictures with 10 and 5 with 5 repeats are 85 draws of 11 pictures, 85 / 11 = 7.73 for one."""
    kohya = folder_set("pets", [SMALL] * 11)
    items = tuple(replace(item, weight=10.0 if i < 6 else 5.0) for i, item in enumerate(kohya.items))
    sets = dict(set0=replace(kohya, items=items), set1=folder_set("many", [SMALL] * 4, seed=1))
    text = describe_sets(combine(sets, "2\n1"))
    assert "each picture of set0 (pets) 7.73 times as often as its weight alone says" in text
    assert "alone says" not in describe_sets(combine(sets, "2\n1", "each set the same"))
    plain = dict(sets, set0=kohya)
    assert "alone says" not in describe_sets(combine(plain, "2\n1"))
    assert "alone says" not in describe_sets(combine(plain, "2\n1", resolutions="64, 128"))


def test_pictures_that_are_the_same_under_two_names_are_told():
    sets = dict(set0=folder_set("cats", [SMALL, WIDE]), set1=folder_set("pets", [SMALL]))
    assert "The same picture under two names: pets/0.png is cats/0.png." in describe_sets(combine(sets))


def test_the_preview_shows_every_set_under_its_heading():
    """Bands of the heading's colour across the sheet: one for each set; and no more pictures than 60."""
    sets = {f"set{n}": folder_set(f"folder {n}", [SMALL] * count, seed=n) for n, count in enumerate((2, 70, 5))}
    sheet = preview(combine(sets))
    assert sheet.shape[0] == 1
    assert 0 <= sheet.min() <= sheet.max() <= 1
    band = torch.tensor([222, 218, 208]) / 255
    is_band = ((sheet[0, :, 0] - band).abs().max(-1).values < 1e-6).int()
    assert int((is_band.diff() == 1).sum()) + int(is_band[0]) == 3
    rows = -(-2 // 6) + -(-53 // 6) + -(-5 // 6)  # 60 pictures: 2, 5, and 53 of the 70
    assert sheet.shape[1] == 3 * (32 + 12) + rows * (192 + 54 + 12)


def test_passes_in_words():
    """steps x batch_size / pictures: 200 / 4, 10 x 2 / 23 and 2 / 23."""
    words = [passes_in_words(*numbers) for numbers in ((4, 50, 4), (23, 10, 2), (23, 1, 2))]
    assert words == ["about 50 times", "about once", "less than once"]
