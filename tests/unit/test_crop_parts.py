"""The mathematics below Crop to Mask: connected parts, exact scaling, distances."""

import math

import numpy as np
import pytest
import torch
from bespoke.nodes.inpaint.crop.parts import SPECK, box_of, parts_of
from bespoke.nodes.inpaint.crop.resample import area, resample, resample_mask
from bespoke.nodes.inpaint.distance import FARTHEST, distance_within


def flooded(inside):
    """The parts of [H, W] bool by flood fill, one pixel after the other, in the order of reading."""
    seen, parts = np.zeros_like(inside), []
    for start in zip(*np.nonzero(inside), strict=True):
        if seen[start]:
            continue
        part, open_ends = set(), [start]
        seen[start] = True
        while open_ends:
            y, x = open_ends.pop()
            part.add((y, x))
            for near in [(y + dy, x + dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)]:
                within = 0 <= near[0] < inside.shape[0] and 0 <= near[1] < inside.shape[1]
                if within and inside[near] and not seen[near]:
                    seen[near] = True
                    open_ends.append(near)
        parts.append(part)
    return parts


@pytest.mark.parametrize("seed", range(30))
def test_parts_are_those_of_a_flood_fill(seed):
    rng = np.random.default_rng(seed)
    inside = np.kron(rng.random((12, 15)) < rng.uniform(0.2, 0.6), np.ones((4, 4))).astype(bool)
    found, expected = parts_of(inside), flooded(inside)
    large = [part for part in expected if len(part) >= SPECK]
    assert len(found.boxes) == len(large)
    for number, (box, part) in enumerate(zip(found.boxes, large, strict=True), 1):
        assert set(zip(*np.nonzero(found.labels == number), strict=True)) == part
        ys, xs = zip(*part, strict=True)
        assert (box.top, box.left, box.bottom, box.right) == (min(ys), min(xs), max(ys) + 1, max(xs) + 1)


def test_a_spiral_is_one_part_and_corners_connect():
    spiral = np.zeros((41, 41), bool)
    y = x = 20
    for turn in range(1, 20):
        for _ in range(2 * turn):
            dy, dx = ((0, 1), (1, 0), (0, -1), (-1, 0))[turn % 4]
            y, x = y + dy, x + dx
            spiral[y, x] = True
        if not (2 * turn + 2 < 40):
            break
    assert len(parts_of(spiral).boxes) == len(flooded(spiral)) == 1
    corners = np.kron(np.eye(3), np.ones((5, 5))).astype(bool)
    assert len(parts_of(corners).boxes) == 1


def test_the_box_of_a_mask():
    inside = np.zeros((20, 30), bool)
    assert box_of(inside) is None
    inside[3, 7] = inside[11, 25] = True
    box = box_of(inside)
    assert (box.top, box.left, box.bottom, box.right) == (3, 7, 12, 26)


def test_area_by_hand():
    """3 px to 2: each new pixel is one and a half. 2 px to 3: the middle one is half of each."""
    row = torch.tensor([3.0, 6.0, 12.0]).view(1, 3, 1) / 12
    assert (resample(row, 1, 2, area).flatten() * 12).tolist() == pytest.approx([4.0, 10.0])
    assert (resample(row.view(3, 1, 1), 2, 1, area).flatten() * 12).tolist() == pytest.approx([4.0, 10.0])
    assert resample_mask(torch.tensor([[0.0, 1.0]]), 1, 3).flatten().tolist() == [0.0, pytest.approx(0.5), 1.0]


@pytest.mark.parametrize(("before", "after"), [(7, 3), (100, 33), (64, 63), (401, 128), (30, 30)])
def test_area_keeps_the_mean_and_the_centre_of_mass(before, after):
    image = torch.rand(before, 5, 3, generator=torch.Generator().manual_seed(0))
    scaled = resample(image, after, 5, area)
    assert scaled.mean(0) == pytest.approx(image.mean(0), abs=1e-5)

    def centre(rows):
        places = (torch.arange(len(rows)) + 0.5) / len(rows)
        return float((rows.mean((1, 2)) * places).sum() / rows.mean((1, 2)).sum())

    assert centre(scaled) == pytest.approx(centre(image), abs=0.1 / before)


@pytest.mark.parametrize(("before", "after"), [(20, 21), (32, 80), (33, 128), (50, 131), (90, 50), (200, 61)])
def test_lanczos_goes_through_a_wave_at_the_centres(before, after):
    """A wave of 10 px, or of 10 new ones, sampled at pixel centres: scaled, it is the same wave at its own centres."""
    period = 10 * max(before / after, 1)
    x = (torch.arange(before) + 0.5).view(1, -1, 1)
    wave = 0.5 + 0.4 * torch.sin(2 * math.pi * x / period)
    at = ((torch.arange(after) + 0.5) * before / after).view(1, -1, 1)
    expected = 0.5 + 0.4 * torch.sin(2 * math.pi * at / period)
    border = round(4 * max(after / before, 1))
    inner = slice(border, -border)
    assert float((resample(wave, 1, after) - expected)[:, inner].abs().max()) < 0.01
    constant = torch.full((9, before, 3), 0.3)
    assert torch.allclose(resample(constant, 23, after), torch.tensor(0.3), atol=1e-6)


def test_overshoot_is_cut_where_the_picture_has_none():
    step = torch.zeros(1, 40, 1)
    step[:, 20:] = 1.0
    large = resample(step, 1, 160)
    assert float(large.min()) == 0.0
    assert float(large.max()) == 1.0
    bright = resample(step * 3, 1, 160)
    assert float(bright.max()) == 3.0


def test_a_scaled_mask_is_exactly_0_and_1_where_all_of_it_is():
    mask = torch.zeros(60, 60)
    mask[20:40, 13:47] = 1.0
    for size in ((17, 23), (60, 59), (131, 200)):
        scaled = resample_mask(mask, *size)
        low, high = math.ceil(20 / 60 * size[0]), math.floor(40 / 60 * size[0])
        left, right = math.ceil(13 / 60 * size[1]), math.floor(47 / 60 * size[1])
        assert torch.equal(scaled[low:high, left:right], torch.ones(high - low, right - left))
        scaled[low - 1 : high + 1, left - 1 : right + 1] = 0.0
        assert float(scaled.max()) == 0.0
        assert resample_mask(mask, *size).mean() == pytest.approx(float(mask.mean()), abs=1e-4)


def test_distances_by_hand_and_one_by_one():
    rng = np.random.default_rng(0)
    inside = rng.random((23, 31)) < 0.9
    found = distance_within(torch.from_numpy(inside))
    outside = np.argwhere(~inside)
    for y in range(23):
        for x in range(31):
            nearest = math.sqrt(((outside - (y, x)) ** 2).sum(1).min())
            assert float(found[y, x]) == pytest.approx(nearest, abs=1e-4)
    assert float(distance_within(torch.ones(4, 9, dtype=torch.bool)).min()) == FARTHEST
    assert float(distance_within(torch.zeros(4, 9, dtype=torch.bool)).max()) == 0.0
