"""Bespoke Compare: pictures side by side, and the table of runs."""

import numpy as np
import pytest
import torch
from bespoke.nodes.bridge.files import writing as storage
from PIL import Image
from run_records import make_run


def flat(colour, count=1, height=64, width=64, channels=3):
    """A batch of pictures of one colour."""
    values = torch.tensor([*colour, 1.0][:channels]).float()
    return values.expand(count, height, width, channels).clone()


def grown(prefix, values):
    return {f"{prefix}{i}": value for i, value in enumerate(values)}


def compare(run_node, images=(), labels="", runs=()):
    image, report = run_node("BespokeCompare", images=grown("image", images), labels=labels, runs=grown("run", runs))
    assert image.ndim == 4
    assert image.shape[0] == 1
    assert float(image.min()) >= 0.0
    assert float(image.max()) <= 1.0
    return (image[0].numpy() * 255).round().astype(np.uint8), report


def area(image, colour):
    return int((image == np.array(colour, np.uint8) * 255).all(-1).sum())


def test_a_row_for_each_input_and_a_column_for_each_seed(run_node):
    image, report = compare(run_node, [flat((1, 0, 0), 3), flat((0, 1, 0), 3)], "base\nLoRA")
    assert "2 images in 2 rows and 3 columns" in report
    assert area(image, (1, 0, 0)) == area(image, (0, 1, 0)) == 3 * 128 * 128
    red, green = (np.argwhere((image == np.array(c, np.uint8) * 255).all(-1)) for c in ((1, 0, 0), (0, 1, 0)))
    assert red[:, 0].max() < green[:, 0].min()  # the second row is below the first
    assert set(red[:, 1]) == set(green[:, 1])  # in the same columns


def test_labels_that_name_row_and_column(run_node):
    images = [flat((1, 0, 0)), flat((0, 1, 0)), flat((0, 0, 1))]
    image, report = compare(run_node, images, "LoRA | weak\nLoRA | strong\nword | strong")
    assert "3 images in 2 rows and 2 columns" in report
    centres = {
        c: np.argwhere((image == np.array(c, np.uint8) * 255).all(-1)).mean(0)
        for c in ((1, 0, 0), (0, 1, 0), (0, 0, 1))
    }
    assert centres[1, 0, 0][0] == centres[0, 1, 0][0] < centres[0, 0, 1][0]
    assert centres[1, 0, 0][1] < centres[0, 1, 0][1] == centres[0, 0, 1][1]


def test_sizes_batches_channels_and_nans(run_node):
    broken = flat((0, 0, 1))
    broken[:, :2] = float("nan")
    images = [
        flat((1, 0, 0), 2, 96, 64),
        flat((0, 1, 0), 1, 640, 1200),
        broken,
        flat((0.5, 0.5, 0.5), 1, channels=1),
        flat((1, 0, 1), 5, channels=4),
    ]
    image, report = compare(run_node, images, "tall\nwide")
    assert "5 images in 5 rows and 5 columns" in report
    assert area(image, (0, 1, 0)) == 512 * 273  # 1200x640 brought down to 512 px
    assert image.shape[0] <= 8192
    assert image.shape[1] <= 4096


def test_thirty_inputs(run_node):
    colours = [(i / 51, 1, 0) for i in range(30)]
    image, report = compare(run_node, [flat(c) for c in colours], "\n".join(f"input {i}" for i in range(32)))
    assert "30 images in 30 rows and 1 column." in report
    assert "32 labels for 30 images: left over are 'input 30', 'input 31'." in report
    tops = [np.argwhere((image == np.round(np.array(c) * 255).astype(np.uint8)).all(-1))[:, 0].min() for c in colours]
    assert tops == sorted(tops)  # image10 after image9
    assert len(set(tops)) == 30


def test_a_long_batch_and_two_rows_of_one_name(run_node):
    _, report = compare(run_node, [flat((1, 0, 0), 70, 16, 16), flat((0, 1, 0), 1, 16, 16)], "same\nsame")
    assert "same: the first 64 of 70 pictures are shown." in report
    assert "2 images in 2 rows and 64 columns" in report


def test_nothing_connected_is_an_error(run_node):
    with pytest.raises(ValueError, match="Bespoke Compare: 0 images and 0 runs are connected; wire in"):
        compare(run_node)


def test_bad_images_are_refused(run_node):
    with pytest.raises(ValueError, match=r"Bespoke Compare: image 1 is \(1, 0, 64, 3\)"):
        compare(run_node, [torch.zeros(1, 0, 64, 3)])


def test_table_of_runs(run_node, comfyui):
    lora = make_run(
        "lora-0123456789ab",
        "lora",
        {},
        "sd15",
        12,
        trained=797184,
        losses=[0.2] * 300,
        seconds=754.0,
        held_out=[(0, 0.2), (200, 0.15), (300, 0.16)],
    )
    word = make_run(
        "textual-inversion-0123456789ab",
        "textual inversion",
        {},
        "sd15",
        5,
        trained=768,
        losses=[0.2] * 80,
        seconds=31.4,
    )
    storage.write_safetensors(
        comfyui / "models" / "loras" / "compared.safetensors",
        {"x": torch.zeros(1000, dtype=torch.float32)},
        {"bespoke.run": lora.id},
        overwrite=True,
    )
    image, report = compare(run_node, runs=[lora, word])
    lines = [line.split("  ") for line in report.splitlines()]
    assert [[cell.strip() for cell in line if cell.strip()] for line in lines] == [
        ["technique", "numbers trained", "file", "steps", "time", "held-out loss"],
        ["LoRA", "797,184", "4.12 kB", "300", "13 min", "0.2000 to 0.1500 (-25%) at step 200"],
        ["textual inversion", "768", "not saved yet", "80", "31 s", "not measured"],
    ]
    assert image.shape[0] > 100
    with_pictures, both = compare(run_node, [flat((1, 0, 0))], "base", [lora])
    assert "1 image in 1 row and 1 column." in both
    assert with_pictures.shape[0] > image.shape[0]


def test_a_run_whose_held_out_losses_are_not_finite(run_node):
    """All are NaN where the training diverged, so none is the best."""
    run = make_run("lora-0123456789ac", "lora", {}, "sd15", 12, losses=[0.2], held_out=[(0, float("nan"))])
    _, report = compare(run_node, runs=[run])
    assert report.splitlines()[1].endswith("not a number at any step")


def test_a_run_in_which_no_step_was_better_than_the_start(run_node):
    """The lowest loss at step 0 is that of the base, so it is no result of the run."""
    run = make_run(
        "lora-0123456789ac", "lora", {}, "sd15", 12, losses=[0.2] * 20, held_out=[(0, 0.25), (10, 0.25), (20, 0.3)]
    )
    _, report = compare(run_node, runs=[run])
    assert report.splitlines()[1].endswith("0.2500 at the start, no step lower")


@pytest.mark.parametrize(
    "word", ["LoRA, 300 steps", "résumé", "ночь", "νύχτα", "夜の絵", "밤", "रात", "\U000fabcd rest"]
)
def test_no_letter_is_drawn_as_a_box(run_node, word):
    """Each letter is drawn in a font that has it or as its code, whichever fonts this machine has."""
    from bespoke.nodes.bridge.drawing.fonts import drawable

    shown, font = drawable(word, 17)
    box = font.getmask("\U0010ffff")
    for letter in set(shown) - {" "}:
        drawn = font.getmask(letter)
        assert (drawn.size, bytes(drawn)) != (box.size, bytes(box)), letter
    codes = [letter for letter in word if letter not in shown]
    _, report = compare(run_node, [flat((1, 0, 0))], word)
    assert ("No font here has" in report) == bool(codes)
    assert all(f"U+{ord(letter):04X}" in shown and letter in report for letter in codes)
    assert "\U000fabcd" not in word or codes  # a private-use character: no font has it
    assert "LoRA" not in word or not codes  # Pillow's own font has ASCII


def test_a_long_label_fits_its_row(run_node):
    """A label of many words, and one of a single word of wide letters."""
    from bespoke.nodes.bridge.drawing.fonts import drawable
    from bespoke.nodes.bridge.drawing.text_layout import fit_lines

    for label in ("a label of many words that goes on and on " * 9, "W" * 300, "夜" * 300, "two\nlines"):
        shown, font = drawable(label, 17)
        rows = fit_lines(shown, font, 184, 3)
        assert 1 <= len(rows) <= 3
        assert all(font.getlength(row) <= 184 for row in rows)
        assert rows[-1].endswith("...") == (len(label) > 20)
    assert fit_lines("", font, 184, 3) == [""]
    image, _ = compare(run_node, [flat((1, 0, 0))], "W" * 300)
    left = np.argwhere((image == np.array((255, 0, 0))).all(-1))[:, 1].min()
    assert (image[:, 28 + 190 : left] == np.array((250, 249, 246))).all()  # background, no letters


def test_example_sheet(run_node, tmp_path):
    rng = np.random.default_rng(0)
    noise = [torch.from_numpy(rng.random((4, 128, 128, 3), np.float32)) for _ in range(3)]
    run = make_run(
        "lora-0123456789ab",
        "lora",
        {},
        "sd15.safetensors",
        12,
        trained=797184,
        losses=[0.2] * 300,
        seconds=754.0,
        held_out=[(0, 0.2), (200, 0.15)],
    )
    image, _ = compare(run_node, noise, "the base model\nwith the LoRA, 300 steps at 1e-3\nthe word", [run])
    Image.fromarray(image).save(tmp_path / "compare.png")
    print(tmp_path / "compare.png")
    assert image.shape[1] > 4 * 128
