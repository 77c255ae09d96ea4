"""The letters of plots and heatmaps can be read where the page shows them, and workflows show them that large."""

from __future__ import annotations

import json
from pathlib import Path

import plot_samples
import pytest
from bespoke.nodes.bridge.drawing import palette
from bespoke.nodes.bridge.drawing.shown import LEAST_TEXT, SHOWN_WIDTH
from bespoke.nodes.bridge.evidence import card
from bespoke.nodes.compare.layout import Grid
from bespoke.nodes.compare.sheet import draw_grid
from PIL import Image, ImageDraw

ROOT = Path(__file__).resolve().parents[2]
CARD_SHOWN = 1100  # px: the width of an evidence card that is opened in a window of 1400 px
# (type, output) of a plot or a heatmap
SHOWN = {
    ("BespokeStrengthSigmas", "plot"),
    ("BespokeFindLearningRate", "plot"),
    ("BespokeFindWordLearningRate", "plot"),
    ("BespokeComposeLoras", "heatmap"),
    ("BespokeInspectLora", "heatmap"),
    ("BespokeExtractLora", "heatmap"),
}


@pytest.fixture
def letters(monkeypatch):
    """(height of the letters in px, the text, width in px of what it is drawn on) of every text that is drawn."""
    found = []
    for name in ("text", "multiline_text"):
        plain = getattr(ImageDraw.ImageDraw, name)

        def noted(self, xy, text, *args, plain=plain, **more):
            font = next(each for each in (*args, more.get("font")) if hasattr(each, "size"))
            found.append((font.size, text, self.im.size[0]))
            return plain(self, xy, text, *args, **more)

        monkeypatch.setattr(ImageDraw.ImageDraw, name, noted)
    return found


@pytest.mark.parametrize("name", plot_samples.SAMPLES)
def test_no_letter_is_smaller_than_11_px_as_it_is_shown(name, letters):
    picture = plot_samples.as_picture(plot_samples.SAMPLES[name]())
    assert picture.size[0] >= 400
    assert letters
    # The curve is a part of the evidence card; the others are pictures of nodes.
    shown, whole = (CARD_SHOWN, card.WIDTH) if name == "curve" else (SHOWN_WIDTH, picture.size[0])
    for size, text, width in letters:
        scale = width / picture.size[0]  # a pen draws larger than the picture
        assert size / scale * shown / whole >= LEAST_TEXT, text


@pytest.mark.parametrize(("pictures", "side"), [(1, 512), (4, 512), (6, 256), (3, 128)])
def test_the_names_of_a_grid_grow_with_it(letters, pictures, side):
    grid = Grid()
    for i in range(pictures):
        grid.put("a row", f"column {i}", [Image.new("RGB", (side, side))])
        grid.under["a row", f"column {i}"] = "0.1234"
    drawn = draw_grid(grid)
    assert drawn is not None
    for size, text, _ in letters:
        assert size * min(1.0, SHOWN_WIDTH / drawn.width) >= LEAST_TEXT * 0.85, text  # small letters have less room


def luminance(colour) -> float:
    """The relative luminance of WCAG 2.1."""
    parts = [value / 255 for value in colour]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one, other) -> float:
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("name", ["INK", "FAINT", "BAR", "WARNING", "NO_CAPTION"])
def test_letters_on_paper_have_the_contrast_of_wcag_aa(name):
    assert contrast(getattr(palette, name), palette.PAPER) >= 4.5


@pytest.mark.parametrize("name", ["DARK_TEXT", "DARK_FAINT", "SKIPPED", "RUNS", "START", "NOISE", "PICTURE"])
def test_letters_on_the_dark_ground_have_the_contrast_of_wcag_aa(name):
    assert contrast(getattr(palette, name), palette.DARK_GROUND) >= 4.5


@pytest.mark.parametrize("scale", [palette.RISING, palette.SIGNED])
def test_the_number_in_a_cell_can_be_read_on_every_colour_of_a_scale(scale):
    for i in range(101):
        colour = palette.interpolate(scale, i / 100)
        ink = palette.PAPER if palette.is_dark(colour) else palette.INK
        assert contrast(ink, colour) >= 3, i


def as_deuteranopes_see(colour) -> tuple[float, ...]:
    """Linear RGB after Machado, Oliveira and Fernandes 2009, table 1 (deuteranomaly, severity 1)."""
    linear = [((v / 255 + 0.055) / 1.055) ** 2.4 if v > 10 else v / 255 / 12.92 for v in colour]
    matrix = (
        (0.367322, 0.860646, -0.227968),
        (0.280085, 0.672501, 0.047413),
        (-0.011820, 0.042940, 0.968881),
    )
    return tuple(sum(weight * part for weight, part in zip(row, linear, strict=True)) for row in matrix)


@pytest.mark.parametrize(
    ("one", "other"),
    [("RUNS", "SKIPPED"), ("RUNS", "START"), ("NOISE", "PICTURE"), ("BAR", "WARNING"), ("FAINT", "WARNING")],
)
def test_colours_that_mean_something_differ_for_colour_blind_readers(one, other):
    seen = [as_deuteranopes_see(getattr(palette, name)) for name in (one, other)]
    assert max(abs(a - b) for a, b in zip(*seen, strict=True)) >= 0.08


def test_the_example_workflows_show_them_as_large():
    count = 0
    for path in (ROOT / "example_workflows").glob("*.json"):
        flow = json.loads(path.read_text("utf-8"))
        nodes = {node["id"]: node for node in flow["nodes"]}
        for _, source, slot, target, _, _ in flow["links"]:
            output = nodes[source]["outputs"][slot]["name"]
            if (nodes[source]["type"], output) in SHOWN:
                count += 1
                assert nodes[target]["size"][0] >= SHOWN_WIDTH, f"{path.name}: {nodes[target].get('title')}"
    assert count >= 3
