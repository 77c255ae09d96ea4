"""The script of the pictures: it keeps their limits, and makes all pictures of the page in README and help."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "tests" / "browser" / "screenshots.py"


@pytest.fixture(scope="module")
def shots():
    spec = importlib.util.spec_from_file_location("screenshots", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def noise(width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 255, (height, width, 3), np.uint8))


def test_a_picture_is_made_narrower_and_keeps_its_limit(shots, tmp_path, monkeypatch):
    monkeypatch.setattr(shots.host, "ROOT", tmp_path)
    path = shots.write(Image.new("RGB", (2 * shots.WIDEST, 1000), "orange"), tmp_path / "a.webp")
    with Image.open(path) as kept:
        assert kept.size == (shots.WIDEST, 500)
    monkeypatch.setattr(shots, "MOST", 60_000)
    best = noise(300, 200)
    path = shots.write(best, tmp_path / "b.jpg")
    assert path.stat().st_size <= 60_000
    with pytest.raises(shots.ShotError, match="c.jpg has .* more than 60000"):
        shots.write(noise(900, 900), tmp_path / "c.jpg")
    assert not (tmp_path / "c.jpg").exists()


def test_a_moving_picture_ends_with_a_longer_frame(shots, tmp_path, monkeypatch):
    monkeypatch.setattr(shots.host, "ROOT", tmp_path)
    frames = [Image.new("RGB", (1920, 1000), (60 * i, 90, 120)) for i in range(4)]
    path = shots.write_moving(frames, tmp_path / "a.webp")
    with Image.open(path) as kept:
        assert kept.n_frames == 4
        assert kept.size == (960, 500)
        durations = []
        for i in range(4):
            kept.seek(i)
            kept.load()
            durations.append(kept.info["duration"])
    assert durations == [shots.FRAME_MS] * 3 + [shots.LAST_MS]


def test_every_picture_of_the_page_is_made_by_a_scene(shots):
    made = set(re.findall(r'(?:OUT|HELP) / f?"([\w{}]+\.\w+)"', SCRIPT.read_text("utf-8")))
    made |= {f"training_{name}.webp" for name in ("light", "dark")}
    assert {path.name for path in shots.OUT.glob("*")} <= made
    for page in [ROOT / "README.md", *(ROOT / "js" / "docs").glob("Bespoke*.md")]:
        shown = re.findall(r"(?:\]\(|src=\")(?:docs/pictures|js/docs/img|img)/([\w.]+)[)\"]", page.read_text("utf-8"))
        drawn = {"demo.png", "crop.jpg", "fill_masked.jpg", "match_colors.jpg"}  # of tests/demo
        assert set(shown) - drawn <= made, page.name
