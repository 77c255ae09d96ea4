"""The evidence card of a run and the thumbnail of a saved LoRA: when they are drawn, and that nothing overflows."""

from __future__ import annotations

import json
import math
import os
import shutil
from dataclasses import replace

import comfy.model_management
import folder_paths
import numpy as np
import pytest
import torch
from bespoke.nodes.bridge.drawing.palette import PAPER
from bespoke.nodes.bridge.evidence.card import GAP, LEFT, MARGIN, WIDTH, draw_card, prompts_of
from bespoke.nodes.bridge.evidence.curve import averaged, interval
from bespoke.nodes.bridge.evidence.facts import numbers_of, rate_of
from bespoke.nodes.bridge.evidence.kept import CARD, SHEET, card_image, write_preview
from bespoke.nodes.bridge.evidence.preview import STRIP, draw_preview
from bespoke.nodes.bridge.evidence.preview import WIDTH as PREVIEW_WIDTH
from bespoke.nodes.bridge.evidence.samples import pairs_of
from bespoke.nodes.bridge.evidence.training_sheet import COLUMNS, ROWS, draw_training_sheet
from bespoke.nodes.bridge.running_prompt import origin_of
from bespoke.nodes.bridge.runs.manage import card_of_run
from bespoke.nodes.bridge.runs.store import RunStore
from bespoke.training.images import TrainingImage
from bespoke.training.leak import LeakPoint
from bespoke.training.record import DEFAULT, SET, Run, RunInfo, RunState
from comfy_api.latest import io
from helpers import sprite_set
from PIL import Image
from run_records import RUN_FOLDERS_0_1

LONG = "a very long name without an end " * 30
UNBROKEN = "W" * 2000
SCRIPTS = "我的狗在沙滩上奔跑 नमस्ते 🐶 " * 40
SETTINGS = {"rank": 8, "alpha": 8.0, "steps": 400, "batch_size": 4, "learning_rate": 1e-4, "sample_prompt": "a dog"}
CURVE = [(0, 0.2), (100, 0.15), (200, 0.13), (300, 0.14), (400, 0.16)]


def record(**more) -> Run:
    settings = {**SETTINGS, **more.pop("settings", {})}
    info = {name: more.pop(name) for name in ("base", "trigger", "label", "technique", "images") if name in more}
    given = RunInfo(
        "lora-0123456789ab", info.pop("technique", "lora"), settings, info.pop("base", "b"), info.pop("images", 20)
    )
    losses = more.pop("losses", [0.1] * 400)
    return Run(replace(given, started=0.0, **info), losses, more.pop("held_out", CURVE), **more)


def samples_in(folder, sizes: dict[str, tuple[int, int]]):
    (folder / "samples").mkdir(parents=True, exist_ok=True)
    for i, (name, size) in enumerate(sizes.items()):
        Image.new("RGB", size, (40 * i % 256, 90, 160)).save(folder / "samples" / name)
    return folder


# --- what is drawn --------------------------------------------------------------------------------------------------

PAIR = [(0, "000000.png"), (200, "000200.png")]
HARD = {
    "no losses that are numbers": {"losses": [math.nan] * 3, "held_out": [(0, math.nan)]},
    "one step": {"losses": [0.3], "held_out": [(0, 0.3), (1, 0.2)], "settings": {"steps": 1}},
    "no validation, no samples": {"held_out": []},
    "long texts": {
        "label": LONG,
        "base": LONG,
        "settings": {"sample_prompt": LONG, "targets": LONG, "optimizer": LONG, "seed": 10**300},
        "samples": PAIR,
    },
    "texts without spaces": {"label": UNBROKEN, "base": UNBROKEN, "settings": {"sample_prompt": UNBROKEN}},
    "other scripts": {"label": SCRIPTS, "settings": {"sample_prompt": SCRIPTS}, "samples": PAIR},
    "large numbers": {
        "losses": [1e30] * 400,
        "held_out": [(0, 1e30), (400, 1e-30)],
        "seconds": 1e9,
        "memory_mb": 1e9,
        "leak": [LeakPoint(400, 1e9, 1.0)],
        "images": 10**9,
    },
    "interrupted": {"state": RunState.INTERRUPTED, "losses": [0.1] * 150, "samples": PAIR},
    "cross-validated": {"folds": 3, "samples": PAIR, "losses": [0.1] * 200},
    "a word": {"technique": "textual inversion", "settings": {"vectors": 4}, "samples": PAIR},
}


@pytest.mark.parametrize("case", list(HARD))
def test_nothing_overflows(case, tmp_path):
    """The margins and the gap between the two columns stay blank, whatever the record holds."""
    samples_in(tmp_path, {"000000.png": (832, 480), "000200.png": (832, 480)})
    run = record(**HARD[case])
    items = [TrainingImage(f"{i}.png", torch.full((32, 64, 3), i % 256, dtype=torch.uint8), LONG) for i in range(500)]
    sheet = draw_training_sheet(items[:480], items[480:])
    card = np.asarray(draw_card(run, tmp_path, sheet))
    assert card.shape[1] == WIDTH
    for edge in (card[:, :MARGIN], card[:, -MARGIN:], card[:MARGIN], card[-MARGIN:]):
        assert (edge == PAPER).all()
    plain = np.asarray(draw_card(run, tmp_path, None))
    below_the_verdict = plain[320:, MARGIN + LEFT + 2 : MARGIN + LEFT + GAP - 2]
    assert (below_the_verdict == PAPER).all()


def test_a_card_shows_base_and_result_and_the_sheet(tmp_path):
    """The colours of both samples are on it; with the sheet it is higher by the sheet and a gap."""
    samples_in(tmp_path, {"000000.png": (64, 64), "000200.png": (64, 64)})
    run = record(samples=PAIR)
    card = draw_card(run, tmp_path, None)
    colours = {colour for _, colour in card.getcolors(2**20)}
    assert {(0, 90, 160), (40, 90, 160)} <= colours
    sheet = draw_training_sheet([TrainingImage("a.png", torch.zeros(8, 8, 3, dtype=torch.uint8), "x")], [])
    assert draw_card(run, tmp_path, sheet).height == card.height + sheet.height + GAP


def test_a_sample_that_cannot_be_read_is_left_out(tmp_path):
    samples_in(tmp_path, {"000000.png": (64, 64)})
    (tmp_path / "samples" / "000200.png").write_bytes(b"no picture")
    (pair,) = pairs_of(record(samples=PAIR), tmp_path)
    assert pair.base is not None
    assert pair.kept is None
    assert pairs_of(record(samples=[(0, "../../secret.png")]), tmp_path) == []
    assert draw_preview(record(samples=PAIR), tmp_path) is None


def test_samples_of_several_prompts_are_paired_by_their_order(tmp_path):
    """Kept is step 200 of `CURVE`, to which 210 is nearer than 400."""
    names = {f"{step:06}-{i}.png": (8 + i, 8) for step in (0, 210, 400) for i in range(3)}
    samples_in(tmp_path, names)
    found = pairs_of(record(samples=[(int(name[:6]), name) for name in names]), tmp_path)
    assert [(pair.base.width, pair.kept.width, pair.step) for pair in found] == [(8 + i, 8 + i, 210) for i in range(3)]
    assert draw_card(record(samples=[(int(name[:6]), name) for name in names]), tmp_path, None).width == WIDTH


@pytest.mark.parametrize(
    ("technique", "text", "shown", "told"),
    [
        ("lora", "", 1, "Drawn with the first picture's caption"),
        ("textual inversion", "--d 5", 1, "Drawn with a photo of the word"),
        ("lora", "a\t--n blurry\r\n\r\n--d 5\r\nc -- d", 3, "a | (the first picture's caption) | c -- d"),
        ("lora", "\n".join("abcdef"), 4, "a | b | c | d | and 2 more"),
    ],
)
def test_the_prompts_are_those_of_the_samples_that_are_shown(technique, text, shown, told):
    run = record(settings={"sample_prompt": text})
    run.info = replace(run.info, technique=technique)
    assert prompts_of(run, shown) == told


@pytest.mark.parametrize(
    ("size", "height"),
    [((512, 512), 512), ((64, 64), 512), ((1024, 512), 256), ((512, 1400), 768)],
    ids=["square", "small", "wide", "high"],
)
def test_a_thumbnail_is_the_sample_and_a_strip(size, height, tmp_path):
    """512 px wide; a sample is cropped to a height of 1.5 times its width."""
    samples_in(tmp_path, {"000000.png": size, "000200.png": size})
    picture = draw_preview(record(samples=PAIR, label=LONG), tmp_path)
    assert picture.size == (PREVIEW_WIDTH, height + STRIP)
    assert picture.getpixel((256, height // 2)) == (40, 90, 160)
    assert (np.asarray(picture)[height:, -8:] == PAPER).all()


def test_a_sheet_shows_some_of_both_roles():
    """24 places: of 30 trained and 8 held-out pictures 20 and 4, the sixth part of the places."""

    def items(first, count):
        shape = (4, 4, 3)
        return [
            TrainingImage(f"{first}-{i}.png", torch.full(shape, first + i, dtype=torch.uint8), "") for i in range(count)
        ]

    sheet = draw_training_sheet(items(0, 30), items(100, 8))
    greys = {colour[0] for _, colour in sheet.getcolors(2**20) if len(set(colour)) == 1}
    assert {*range(20), *range(100, 104)} <= greys
    assert not greys & {*range(20, 30), *range(104, 108)}
    assert draw_training_sheet([TrainingImage("job.png", torch.zeros(4, 4, 0, dtype=torch.uint8), "")], []) is None
    assert COLUMNS * ROWS == 24


def test_the_numbers_of_a_run():
    """400 steps of 4 pictures in 100 s are 16 a second; 0.13 / 0.2 is 35 % less; sqrt(0.25) is 0.5."""
    run = record(seconds=100.0, memory_mb=2048.0, leak=[LeakPoint(200, 0.25, 1.0)])
    found = dict(numbers_of(run))
    assert found["trained"] == "LoRA, rank 8, alpha 8"
    assert found["steps"] == "400, batch 4"
    assert found["time"] == "1:40, 16 pictures/s"
    assert found["memory"] == "2.0 GB at most"
    assert found["held-out loss"] == "0.2 -> 0.13 (-35 %)"
    assert found["leak"] == "0.50 at step 200 (0: none)"


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("", "1e-4"),
        (DEFAULT, "1e-4, the default: not measured for this set"),
        (SET, "1e-4, set by hand"),
        ("BespokeFindLearningRate", "1e-4, measured by Find Learning Rate"),
        ("PrimitiveFloat", "1e-4, from the node PrimitiveFloat"),
    ],
)
def test_how_the_rate_was_found(source, text):
    run = record()
    run.info = replace(run.info, rate_source=source)
    assert rate_of(run) == text
    found = record(settings={"optimizer": "Prodigy (built in)"}, found_rate=3.21e-4)
    assert rate_of(found) == "3.21e-4, found by Prodigy (built in)"


def test_the_training_loss_is_a_mean_over_a_25th():
    """Of 100 losses 0 to 99 the window is 100 / 25 = 4, two on each side: at step 50 the mean of 47 to 51 is 49."""
    points = dict(averaged([float(i) for i in range(100)]))
    assert points[50] == 49.0
    assert points[100] == 97.0  # the last five: 95 to 99
    assert averaged([math.nan, -1.0]) == []


@pytest.mark.parametrize(("last", "step"), [(1, 1), (7, 2), (400, 100), (401, 200), (2000, 500), (130, 50)])
def test_marks_of_the_step_axis(last, step):
    assert interval(last) == step


# --- when it is drawn -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(sd15, run_node):
    """(the node's outputs, the run's folder) of six steps with validation and samples."""
    model, clip, vae = sd15
    sampler = {"inputs": {"steps": 2, "cfg": 1.0, "sampler_name": "euler", "scheduler": "normal"}}
    out = run_node(
        "BespokeTrainLora",
        model=model,
        clip=clip,
        vae=vae,
        images=sprite_set(2, 12, side=64, colour="teal"),
        steps=6,
        validation=3,
        batch_size=2,
        sample_every=3,
        precision="fp32",
        hidden={io.Hidden.prompt: {"1": sampler}},
    )
    return out, RunStore(out[3].id).folder


def test_a_run_leaves_its_card(trained):
    (_, _, _, run, report, _), folder = trained
    with Image.open(folder / CARD) as card, Image.open(folder / SHEET) as sheet:
        assert card.width == WIDTH
        assert card.height > sheet.height
    assert f"card.jpg in the folder of the run {run.id}" in report
    assert run.memory_mb > 0
    assert RunStore(run.id).record().memory_mb == run.memory_mb
    assert run.info.rate_source == ""  # no prompt is queued here
    assert card_image(run, folder).size == Image.open(folder / CARD).size


def test_the_page_gets_the_card_and_a_new_one_after_a_change(trained):
    (_, _, _, run, *_), folder = trained
    path = card_of_run(run.id)
    assert path == folder / CARD
    first = path.stat().st_mtime_ns
    assert card_of_run(run.id).stat().st_mtime_ns == first
    os.utime(path, ns=(0, 0))  # older than the record, as after a new label
    assert card_of_run(run.id).stat().st_mtime_ns > 0
    path.unlink()
    assert card_of_run(run.id).is_file()
    assert card_of_run("lora-ffffffffffff") is None
    assert card_of_run("../..") is None


def test_save_lora_writes_a_thumbnail_and_replaces_none(trained, run_node):
    (_, lora, _, run, *_), _ = trained
    folder = folder_paths.get_folder_paths("loras")[0]
    name, *_ = run_node("BespokeSaveLora", lora=lora, run=run, filename_prefix="card/one")
    preview = os.path.join(folder, name.replace(".safetensors", ".preview.png"))
    with Image.open(preview) as picture:
        assert picture.width == PREVIEW_WIDTH
    os.remove(os.path.join(folder, name))
    with open(preview, "wb") as file:
        file.write(b"the user's own")
    again, *_ = run_node("BespokeSaveLora", lora=lora, run=run, filename_prefix="card/one")
    assert again == name
    with open(preview, "rb") as file:
        assert file.read() == b"the user's own"
    name, *_ = run_node("BespokeSaveLora", lora=lora, run=run, filename_prefix="card/off", preview=False)
    assert not os.path.exists(os.path.join(folder, name.replace(".safetensors", ".preview.png")))


@pytest.mark.parametrize("taken", [".png", ".webp", ".preview.jpg", ".mp4"])
def test_a_picture_under_any_name_that_programs_read_stays(trained, tmp_path, taken):
    (_, _, _, run, *_), folder = trained
    lora = tmp_path / "a.b_00001.safetensors"
    (tmp_path / f"a.b_00001{taken}").write_bytes(b"mine")
    assert "was there already and stays" in write_preview(run, folder, lora)
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"a.b_00001{taken}"]


def test_a_run_without_samples_has_no_thumbnail(tmp_path):
    told = write_preview(record(), tmp_path, tmp_path / "a.safetensors")
    assert "set sample_every" in told
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", ["lora", "word"])
def test_a_run_of_version_0_1_has_a_card(kind, runs):
    source = RUN_FOLDERS_0_1 / kind
    run_id = json.loads((source / "record.json").read_text())["id"]
    shutil.copytree(source, runs / run_id)
    path = card_of_run(run_id)
    with Image.open(path) as card:
        assert card.width == WIDTH


def test_an_interrupted_run_has_a_card_and_a_resumed_one_a_new_one(sd15, run_node, at_step, runs):
    model, clip, vae = sd15
    images = sprite_set(2, 4, side=64, colour="teal")
    given = dict(model=model, clip=clip, vae=vae, images=images, steps=6, batch_size=2, precision="fp32")
    at_step(3, comfy.model_management.interrupt_current_processing)
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        run_node("BespokeTrainLora", **given)
    (card,) = runs.glob(f"*/{CARD}")
    first = card.read_bytes()
    run = run_node("BespokeTrainLora", **given)[3]
    assert card.parent.name == run.id
    assert run.state is RunState.FINISHED
    assert card.read_bytes() != first


def test_a_card_that_cannot_be_drawn_is_a_note(sd15, run_node, monkeypatch, runs):
    def fails(*_):
        raise ValueError("no font")

    monkeypatch.setattr("bespoke.nodes.bridge.trainer.keep_card", fails)
    model, clip, vae = sd15
    images = sprite_set(2, 4, side=64, colour="teal")
    given = dict(model=model, clip=clip, vae=vae, images=images, steps=2, batch_size=2, precision="fp32")
    _, _, _, run, report, _ = run_node("BespokeTrainLora", **given)
    assert run.state is RunState.FINISHED
    assert "The evidence card could not be drawn (no font)." in report
    assert "card.jpg" not in report


class _Probe:
    """A node with a learning rate; keeps where it came from."""

    found: list[str] = []  # noqa: RUF012
    RETURN_TYPES = ()
    FUNCTION = "look"
    CATEGORY = "tests"
    OUTPUT_NODE = True

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"learning_rate": ("FLOAT", {"default": 1e-4, "step": 1e-6})}}

    def look(self, learning_rate):
        self.found.append(origin_of("learning_rate"))
        return ()


def test_where_the_rate_of_a_queued_node_comes_from(queue):
    import nodes

    nodes.NODE_CLASS_MAPPINGS["TestProbe"] = _Probe
    _Probe.found.clear()
    queue.run(a=("TestProbe", {"learning_rate": 1e-4}))
    queue.run(a=("TestProbe", {"learning_rate": 3e-4}))
    queue.run(a=("TestProbe", {"learning_rate": ["b", 0]}), b=("PrimitiveFloat", {"value": 2e-4}))
    assert _Probe.found == [DEFAULT, SET, "PrimitiveFloat"]
    assert origin_of("learning_rate") == ""  # no prompt runs
