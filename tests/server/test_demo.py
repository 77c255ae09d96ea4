"""The demo's driver with the real server and core's nodes alone."""

from __future__ import annotations

import asyncio
import io

import numpy as np
import pictures
import pytest
import run
import sheet
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
    assert [run.section_of(name)[1] for name in sorted(names, key=lambda n: run.section_of(n)[0])] == [
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
    assert section.title == "LoRA"
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
    page = sheet.contact_sheet([sheet.Section("Title", "Sentence " * 40, [group, wide])], "Heading", "Foot")
    assert page.width == 1600
    counts = {colour: count for count, colour in page.getcolors(maxcolors=1 << 24)}
    for colour in colours:
        assert counts[colour] == sheet.TILE**2
    assert counts[(1, 2, 250)] == sheet.TILE * sheet.TILE // 2


@pytest.mark.parametrize("count", [1, 3, 4, 6, 9])
def test_a_thumbnail_shows_the_first_of_each_group_under_its_label(count):
    groups = [
        sheet.Group(
            "a label that is far too long for a thumbnail",
            [Image.new("RGB", (128, 128), (250, 20 * i, 9)), Image.new("RGB", (9, 9))],
        )
        for i in range(count)
    ]
    page = sheet.thumbnail(sheet.Section("Title", "Sentence", groups))
    assert page.size == (480, 320)
    areas = {colour: n for n, colour in page.getcolors(maxcolors=1 << 24)}
    shown = [areas[250, 20 * i, 9] for i in range(min(count, 6))]
    assert len(set(shown)) == 1  # of one size, and nothing covers a picture
    assert shown[0] == round(shown[0] ** 0.5) ** 2 > 120**2
    assert (250, 120, 9) not in areas
    assert sheet.INK in areas


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
