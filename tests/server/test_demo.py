"""The demo's driver with the real server and core's nodes alone."""

from __future__ import annotations

import asyncio
import io
import json

import figure_pictures
import figures
import numpy as np
import pictures
import pytest
import run
import scenes
import sheet
import small_values
from host import ROOT
from PIL import Image
from test_graph import node, text_to_image, workflow


def run_flow(server, flow):
    return asyncio.run(run.run_workflow(server, flow))


def test_text_to_image(server):
    results = run_flow(server, text_to_image())
    assert list(results) == ["7"]
    assert results["7"]["title"] == "Two circles"
    images = [Image.open(io.BytesIO(data)) for data in results["7"]["images"]]
    assert [image.size for image in images] == [(128, 128), (128, 128)]
    # As in the page, the file contains its workflow.
    assert '"Two circles"' in images[0].info["workflow"]
    again = run_flow(server, text_to_image())  # from the server's cache
    assert again["7"]["images"] == results["7"]["images"]


def test_a_file_that_the_workflow_itself_writes(server):
    """A loader of a file that another node writes first: refused at first, run when the file exists."""
    flow = text_to_image()
    flow["nodes"] += [
        node(8, "VAESave", ["vae/again"], [("vae", "VAE", 8)]),
        node(9, "VAELoader", ["again_00001_.safetensors"], [], ["VAE"]),
        node(10, "VAEDecode", [], [("samples", "LATENT", 7), ("vae", "VAE", 11)], ["IMAGE"]),
        node(11, "SaveImage", ["reloaded"], [("images", "IMAGE", 12)], title="Reloaded"),
    ]
    flow["links"] += [[11, 9, 0, 10, 1, "VAE"], [12, 10, 0, 11, 0, "IMAGE"]]
    results = run_flow(server, flow)
    assert set(results) >= {"7", "11"}

    def pixels(id):
        return np.stack([np.asarray(Image.open(io.BytesIO(data))) for data in results[id]["images"]])

    assert np.array_equal(pixels("11"), pixels("7"))


def test_a_missing_file_is_named(server):
    flow = text_to_image()
    flow["nodes"].append(node(9, "VAELoader", ["absent.safetensors"], [], ["VAE"], title="Load it"))
    flow["nodes"].append(node(10, "VAEDecode", [], [("samples", "LATENT", 7), ("vae", "VAE", 11)], ["IMAGE"]))
    flow["nodes"].append(node(11, "SaveImage", ["x"], [("images", "IMAGE", 12)]))
    flow["links"] += [[11, 9, 0, 10, 1, "VAE"], [12, 10, 0, 11, 0, "IMAGE"]]
    with pytest.raises(run.DemoError, match=r"Load it \(node 9\): Value not in list: vae_name: 'absent.safetensors'"):
        run_flow(server, flow)


def test_a_node_that_fails_is_named(server):
    # An image without pixels: an error at run time alone.
    flow = workflow(
        [
            node(1, "EmptyImage", [16, 16, 1, 0], [], ["IMAGE"]),
            node(2, "ImageScaleBy", ["area", 0.01], [("image", "IMAGE", 1)], ["IMAGE"]),
            node(3, "SaveImage", ["x"], [("images", "IMAGE", 2)], title="Keep it"),
        ],
        [(1, 1, 0, 2, 0), (2, 2, 0, 3, 0)],
    )
    with pytest.raises(run.DemoError, match=r"Keep it \(node 3\) failed: ValueError: cannot write empty image"):
        run_flow(server, flow)


def test_a_refused_workflow_says_why(server):
    flow = text_to_image()
    flow["nodes"][4]["widgets_values"][2] = 0  # steps
    with pytest.raises(run.DemoError, match=r"KSampler \(node 5\): Value 0 smaller than min of 1: steps"):
        run_flow(server, flow)


def test_foreign_folders_are_not_cleared(tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    workflows = tmp_path / "workflows"
    workflows.mkdir()
    (workflows / "lora.json").write_text("{}")
    with pytest.raises(run.DemoError, match="choose another --base"):
        run.demo(tmp_path, None, workflows)
    assert (tmp_path / "thesis.txt").exists()


# --- sections and the sheet ---------------------------------------------------------------------------------------


def test_sections_by_file_name():
    names = ["unheard_of", "textual_inversion", "inpaint_region", "lora_train_and_use", "strength_ladder"]
    placed = sorted(run.section_of(name) for name in names)
    assert [technique or headline for _, technique, headline, _ in placed] == [
        "LoRA",
        "Strength",
        "Inpainting",
        "Textual inversion",
        "Unheard of",
    ]
    assert len(run.SECTIONS) > run.ESSENTIAL == 4


def png(colour, size=(128, 128)) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", size, colour).save(out, "PNG")
    return out.getvalue()


def test_pictures_stand_in_reading_order(tmp_path):
    flow = {"nodes": [{"id": 3, "pos": [900, 0]}, {"id": 7, "pos": {"0": 100, "1": 0}}, {"id": 5, "pos": [500, 0]}]}
    results = {
        "3": {"title": "last", "images": [png("red")]},
        "5": {"title": "text only", "images": []},
        "7": {"title": "first", "images": [png("blue"), png("green")]},
    }
    section = run.to_section("lora_train_and_use", flow, results)
    assert (section.technique, section.title) == ("LoRA", "A style from twelve pictures")
    assert [(group.label, len(group.pictures)) for group in section.groups] == [("first", 2), ("last", 1)]
    assert run.keep_pictures(tmp_path, "lora", results) == 3
    assert sorted(path.name for path in (tmp_path / "lora").iterdir()) == [
        "3_last_1.png",
        "7_first_1.png",
        "7_first_2.png",
    ]


def test_the_sheet_is_1600_wide_and_holds_every_picture():
    colours = [(250, 3 * i, 20) for i in range(30)]
    group = sheet.Group("many", [Image.new("RGB", (128, 128), colour) for colour in colours])
    wide = sheet.Group("wide", [Image.new("RGB", (1024, 512), (1, 2, 250))])
    page = sheet.contact_sheet(
        [sheet.Section("Technique", "Title", "Sentence " * 40, [group, wide])], "Heading", "Foot"
    )
    assert page.width == 1600
    counts = {colour: count for count, colour in page.getcolors(maxcolors=1 << 24)}
    for colour in colours:
        assert counts[colour] == sheet.TILE**2
    assert counts[(1, 2, 250)] == sheet.TILE * sheet.TILE // 2


def test_pictures_of_one_seed_stand_below_each_other():
    """The training set at the left is larger, and no picture covers another one."""
    alone = sheet.Group("the set", [Image.new("RGB", (128, 128), (9, 9, 250))])
    rows = [
        sheet.Group(f"row {i}", [Image.new("RGB", (128, 128), (250, 60 * i, 40 * k)) for k in range(4)])
        for i in range(2)
    ]
    page = np.asarray(sheet.contact_sheet([sheet.Section("LoRA", "Title", "Sentence", [alone, *rows])], "Heading"))
    corners = {}
    for colour in [(9, 9, 250), *((250, 60 * i, 40 * k) for i in range(2) for k in range(4))]:
        ys, xs = (page == colour).all(-1).nonzero()
        corners[colour] = xs.min(), ys.min()
        assert len(xs) == (2 * sheet.TILE + sheet.GAP if colour == (9, 9, 250) else sheet.TILE) ** 2
    for k in range(4):
        assert corners[250, 0, 40 * k][0] == corners[250, 60, 40 * k][0]
        assert corners[250, 0, 40 * k][1] < corners[250, 60, 40 * k][1]
    assert corners[9, 9, 250][0] < corners[250, 0, 0][0]


@pytest.mark.parametrize("count", [1, 2, 3])
def test_a_card_shows_the_first_of_each_named_group(count):
    groups = [
        sheet.Group(f"group {i}", [Image.new("RGB", (128, 128), (250, 20 * i, 9)), Image.new("RGB", (9, 9))])
        for i in range(5)
    ]
    names = {f"group {i}": "W" * 40 for i in range(4, 4 - count, -1)}
    page = sheet.thumbnail(sheet.Section("Technique", "Title", "Sentence", groups), names)
    assert page.size == (480, 320)
    areas = {colour: n for n, colour in page.getcolors(maxcolors=1 << 24)}
    shown = [areas[250, 20 * i, 9] for i in range(4, 4 - count, -1)]
    assert len(set(shown)) == 1  # of one size, and nothing covers a picture
    assert shown[0] == round(shown[0] ** 0.5) ** 2 >= 140**2
    assert (250, 20 * (4 - count), 9) not in areas
    assert sheet.INK in areas


def test_the_time_left_follows_the_work_done(monkeypatch):
    """100 calls of 400 in 30 s: 90 s are left, and in the middle of a further node of 100 in 40 s, 67 s."""
    clock = [100.0]
    monkeypatch.setattr(run.time, "monotonic", lambda: clock[0])
    whole = run.Whole(400.0)
    assert whole.left() == ""
    shown = run.Progress(3, whole)
    shown.node("Train", 100.0)
    clock[0] = 130.0
    shown.node("Sample", 100.0)
    assert whole.left() == ", about 2 min left in all"
    clock[0] = 140.0
    assert whole.left(50.0) == ", about 67 s left in all"
    shown.end()
    assert whole.done == 200.0


def test_the_work_of_a_node():
    latent = {"class_type": "EmptyLatentImage", "inputs": {"batch_size": 4}}
    sampler = {"class_type": "KSampler", "inputs": {"steps": 16}}
    trainer = {"class_type": "BespokeTrainLora", "inputs": {"steps": 300, "batch_size": 2}}
    prompt = {"1": latent, "2": sampler, "3": trainer}
    assert [run.work_of(node, prompt) for node in prompt.values()] == [0.0, 2 * 16 * 4, 3 * 300 * 2]
    assert run.work_of(sampler, {"2": sampler}) == 2 * 16


def test_letters_of_a_card_can_be_read_at_220_px():
    assert sheet.CARD_TEXT * 220 / sheet.CARD[0] >= 11


def test_every_workflow_has_a_headline_of_five_words_and_a_card():
    assert set(run.CARDS) == set(run.SECTIONS)
    for name, (technique, headline, sentence) in run.SECTIONS.items():
        assert technique
        assert len(headline.split()) == 5, headline
        assert sentence.endswith(".")
        flow = json.loads((ROOT / "example_workflows" / f"{name}.json").read_text("utf-8"))
        titles = {node.get("title") for node in flow["nodes"]}
        assert set(run.CARDS[name]) <= titles, name
        assert 1 <= len(run.CARDS[name]) <= 3


def test_sprites_are_enlarged_without_smoothing(tmp_path):
    pictures.make(tmp_path)
    sprite = Image.open(tmp_path / pictures.PICTURE)
    small = sheet.tile(sprite)
    assert small.size == (176, 176)
    cells = np.asarray(sprite)[::8, ::8]
    assert np.array_equal(np.asarray(small), cells.repeat(11, 0).repeat(11, 1))


def test_the_inputs(tmp_path):
    pictures.make(tmp_path)
    for folder, count in (
        (pictures.TEAL, 12),
        (pictures.TEAL_WORD, 12),
        (pictures.HEART, 12),
        (pictures.CLASS, 12),
        (pictures.PINK, 8),
    ):
        images, captions = (sorted((tmp_path / folder).glob(f"*.{kind}")) for kind in ("png", "txt"))
        assert [path.stem for path in images] == [path.stem for path in captions]
        assert len(images) == count
    assert (tmp_path / pictures.TEAL / "03.txt").read_text() == "a teal triangle on white\n"
    assert all(
        "{word}" in path.read_text() and "pink" not in path.read_text()
        for path in (tmp_path / pictures.PINK).glob("*.txt")
    )
    mask = np.asarray(Image.open(tmp_path / pictures.MASK))[..., 0]
    picture = np.asarray(Image.open(tmp_path / pictures.PICTURE)).astype(int)
    assert (mask == 255).sum() == 96**2
    figure = np.abs(picture - picture[0, 0]).sum(-1) > 0
    assert figure.any()
    assert not (figure & (mask == 0)).any()  # the mask covers the whole circle


def names_of(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_the_inputs_for_the_picture_model_are_the_same_files(tmp_path):
    pictures.make(tmp_path / "sprites")
    pictures.make(tmp_path / "figures", tmp_path / "bespoke-picture-1.safetensors")
    assert names_of(tmp_path / "figures") == names_of(tmp_path / "sprites")
    for path in (tmp_path / "figures").rglob("*.png"):
        assert Image.open(path).size == (128, 128)
    for folder, word in ((pictures.TEAL, "teal"), (pictures.HEART, "octopus"), (pictures.TEAL_WORD, "{word}")):
        for path in (tmp_path / "figures" / folder).glob("*.txt"):
            assert word in path.read_text("utf-8")


def test_the_picture_model_is_told_what_it_knows():
    """Every prompt for the small model has one for the picture model, made of words that it was trained on, or of those
    that the demo teaches it."""
    known = {*figures.COLOURS, *figures.SUBJECTS, *figures.MOODS, "teal", "octopus", "embedding:my-word"}
    known |= set(" ".join(scenes.GROUNDS.values()).split()) | {"a", "an"}
    spoken = [value for value in small_values.VALUES["CLIPTextEncode"]["text"].values() if value]
    assert {text for text in spoken if text != pictures.EDIT} <= set(figure_pictures.FIGURE_TEXTS)
    for text in figure_pictures.FIGURE_TEXTS.values():
        assert set(text.split()) <= known, text
    assert small_values.figure_text("a teal heart on white") == "a happy teal octopus on the beach"
    assert small_values.figure_text("(no folder yet)") == "(no folder yet)"


def test_a_model_without_an_edit_form_leaves_that_workflow_out(tmp_path):
    one = tmp_path / "bespoke-picture-1.safetensors"
    assert not run.has_edit_form(one)
    (tmp_path / "bespoke-picture-1-edit.safetensors").touch()
    assert run.has_edit_form(one)
    assert run.has_edit_form(None)
    assert set(run.SECTIONS) >= run.NEED_EDIT_FORM
