"""Masks: from the user's pixels to latent cells and back."""

import pytest
import torch
from bespoke.nodes.inpaint.mask import (
    Grid,
    MaskSettings,
    blur,
    clean,
    feather,
    floor,
    grow,
    looks_inverted,
    shape_mask,
    to_cells,
    to_latent,
    to_picture,
)
from bespoke.training.errors import InputError


def square(height=64, width=64, top=24, bottom=40, left=24, right=40):
    mask = torch.zeros(1, height, width)
    mask[:, top:bottom, left:right] = 1.0
    return mask


# --- Growing and feathering -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("radius", [1, 2, 5, 13])
def test_grow_dilates_by_a_disc(radius):
    mask = torch.zeros(1, 41, 37)
    mask[0, 20, 18] = 1.0
    y, x = torch.meshgrid(torch.arange(41) - 20, torch.arange(37) - 18, indexing="ij")
    assert torch.equal(grow(mask, radius)[0], (y**2 + x**2 <= radius**2).float())


def test_grow_takes_the_largest_grey_and_does_not_wrap():
    mask = torch.zeros(1, 9, 9)
    mask[0, 0, 0], mask[0, 0, 4] = 0.25, 0.75
    grown = grow(mask, 2)
    assert grown[0, 0].tolist() == [0.25, 0.25, 0.75, 0.75, 0.75, 0.75, 0.75, 0.0, 0.0]
    assert float(grown[0, 6:].max()) == 0.0


def test_grow_is_symmetric_and_larger_than_the_picture_is_allowed():
    mask = (torch.rand(1, 30, 30, generator=torch.Generator().manual_seed(0)) > 0.98).float()
    assert torch.equal(grow(mask.flip(1, 2), 5).flip(1, 2), grow(mask, 5))
    assert torch.equal(grow(mask.transpose(1, 2), 5).transpose(1, 2), grow(mask, 5))
    assert float(grow(mask, 200).min()) == 1.0


def test_shrink_undoes_grow_on_a_square_and_spares_the_border():
    assert torch.equal(grow(grow(square(), 5), -5), square())
    at_border = square(top=0)
    assert torch.equal(grow(at_border, -4)[0, :, 32], (torch.arange(64) < 36).float())


def step(edge=40, width=80):
    mask = torch.zeros(1, 8, width)
    mask[..., edge:] = 1.0
    return mask


@pytest.mark.parametrize("pixels", [1, 2, 7, 16])
def test_feather_fades_outward_over_exactly_its_pixels(pixels):
    row = feather(step(), pixels)[0, 4]
    assert row[40:].min() == 1.0
    assert row[: 40 - pixels].max() == 0.0
    assert row[40 - pixels] > 0.0
    assert (row.diff() >= 0.0).all()
    mirrored = feather(step().flip(2), pixels)[0, 4]
    assert torch.allclose(mirrored.flip(0), row, atol=1e-6)
    turned = feather(step()[..., 36:44].transpose(1, 2), pixels)
    assert torch.allclose(turned.transpose(1, 2), feather(step()[..., 36:44], pixels), atol=1e-6)


def test_feather_keeps_the_strength_of_thin_strokes():
    line, dot = torch.zeros(1, 40, 40), torch.zeros(1, 40, 40)
    line[0, :, 20] = dot[0, 20, 20] = 1.0
    assert feather(line, 16)[0, 20, 20] == 1.0
    assert feather(dot, 16)[0, 20, 20] == 1.0
    assert blur(line, 16)[0, 20, 20] == pytest.approx(1 / 17)


@pytest.mark.parametrize("pixels", [1, 4, 11])
def test_blur_reaches_exactly_its_pixels_on_both_sides(pixels):
    row = blur(step(), pixels)[0, 4]
    assert row[: 40 - pixels].max() == 0.0
    assert row[40 + pixels :].min() == 1.0
    assert (row[40 - pixels : 40 + pixels] > 0.0).all()
    assert (row[40 - pixels : 40 + pixels] < 1.0).all()
    assert torch.allclose(row, 1.0 - row.flip(0), atol=1e-6)  # symmetric about the edge


def test_feather_keeps_a_border_that_is_masked():
    assert torch.equal(feather(torch.ones(1, 20, 20), 6), torch.ones(1, 20, 20))


# --- Cells ----------------------------------------------------------------------------------------------------------


def strokes(generator, count=200, size=128):
    """One stroke each, 1 to 12 px wide and 1 to 60 px long, at any place and angle."""
    y, x = torch.meshgrid(torch.arange(size).float(), torch.arange(size).float(), indexing="ij")
    for _ in range(count):
        r = torch.rand(5, generator=generator)
        cy, cx, angle, width, length = r[0] * size, r[1] * size, r[2] * torch.pi, 1 + 11 * r[3], 1 + 59 * r[4]
        along = (x - cx) * angle.cos() + (y - cy) * angle.sin()
        across = -(x - cx) * angle.sin() + (y - cy) * angle.cos()
        stroke = (along.abs() <= length / 2) & (across.abs() <= width / 2)
        if stroke.any():
            yield stroke.float()[None]


@pytest.mark.parametrize("coverage", ["any", "area"])
@pytest.mark.parametrize("cell", [8, 16])
def test_every_touched_cell_is_found_for_random_strokes(coverage, cell):
    seen = 0
    for stroke in strokes(torch.Generator().manual_seed(7)):
        grid = Grid.of(128 // cell, 128 // cell, cell, 128, 128)
        touched = torch.zeros(128 // cell, 128 // cell)
        for y, x in stroke[0].nonzero().tolist():
            touched[y // cell, x // cell] = 1.0
        cells = to_cells(stroke, grid, coverage)[0]
        assert torch.equal((cells > 0).float(), touched)
        assert torch.equal(cells == 1.0, touched == 1.0) or coverage == "area"
        assert torch.equal(
            to_picture(cells[None], grid)[0], touched.repeat_interleave(cell, 0).repeat_interleave(cell, 1)
        )
        seen += 1
    assert seen > 150


def test_one_pixel_stroke_is_found_at_every_offset():
    found = bilinear = 0
    for offset in range(8):
        mask = torch.zeros(1, 64, 64)
        mask[..., 24 + offset] = 1.0
        found += bool((to_cells(mask, Grid.of(8, 8, 8, 64, 64), "any")[0, :, 3] == 1.0).all())
        bilinear += bool(torch.nn.functional.interpolate(mask[:, None], (8, 8), mode="bilinear")[0, 0, :, 3].any())
    assert (found, bilinear) == (8, 2)


def test_area_is_the_share_of_the_cell():
    mask = torch.zeros(1, 16, 16)
    mask[0, :8, :3] = 1.0
    assert to_cells(mask, Grid.of(2, 2, 8, 16, 16), "area")[0].tolist() == [[0.375, 0.0], [0.0, 0.0]]


def test_the_grid_follows_the_vaes_centre_crop():
    # 77 x 61 px: the VAE keeps 72 x 56, from (2, 2). The pixel at (2, 2) is the first of cell (0, 0).
    grid = Grid.of(9, 7, 8, 77, 61)
    assert (grid.top, grid.left, grid.height, grid.width) == (2, 2, 77, 61)
    mask = torch.zeros(1, 77, 61)
    mask[0, 2, 2] = mask[0, 10, 9] = 1.0
    cells = to_cells(mask, grid, "any")[0]
    assert cells.nonzero().tolist() == [[0, 0], [1, 0]]
    picture = to_picture(cells[None], grid)
    assert picture.shape == (1, 77, 61)
    assert picture[0].nonzero().min(0).values.tolist() == [2, 2]
    assert picture[0].nonzero().max(0).values.tolist() == [17, 9]


def test_floor_lifts_touched_cells_only():
    assert floor(torch.tensor([0.0, 0.05, 0.4]), 0.2).tolist() == pytest.approx([0.0, 0.2, 0.4])


# --- Masks of users -----------------------------------------------------------------------------------------------


def test_a_nearly_opaque_mask_counts_as_opaque_and_is_reported():
    mask, notes = clean(square() * 0.98)
    assert torch.equal(mask, square())
    assert any("Nearly opaque mask: 256 px" in note for note in notes)


def test_a_nearly_transparent_background_counts_as_kept_and_is_reported():
    mask, notes = clean(square() + (1 - square()) / 255)
    assert torch.equal(mask, square())
    assert any(note.startswith("3840 px masked at 2% or less") for note in notes)


def test_an_inverted_mask_is_reported_and_not_changed():
    mask, notes = clean(1.0 - square())
    assert torch.equal(mask, 1.0 - square())
    assert any("invert it" in note for note in notes)
    assert not looks_inverted(square())
    assert not looks_inverted(torch.ones(1, 64, 64))


def test_a_weak_mask_is_reported():
    assert any("highest value is 0.50" in note for note in clean(square() * 0.5)[1])


def test_a_plain_mask_gives_no_notes():
    assert clean(square())[1] == []
    assert shape_mask(square(), 8, 8, 8, MaskSettings()).notes == ()


@pytest.mark.parametrize("bad", [torch.zeros(1, 3, 8, 8), torch.zeros(0, 8, 8), torch.full((1, 8, 8), float("nan"))])
def test_a_mask_that_cannot_be_used_is_refused(bad):
    with pytest.raises(InputError, match="the mask"):
        clean(bad)


@pytest.mark.parametrize("settings", [{"grow": 300}, {"feather": -1}, {"coverage": "most"}, {"min_strength": 1.5}])
def test_settings_out_of_range_are_refused_with_their_value(settings):
    ((name, value),) = settings.items()
    with pytest.raises(InputError, match=f"{name} is '?{value}"):
        MaskSettings(**settings)


def test_a_mask_of_the_wrong_size_is_fitted_and_reported():
    mask = torch.zeros(1, 1000, 900)
    mask[0, 501, 333] = 1.0  # one pixel
    shaped = shape_mask(mask, 8, 8, 8, MaskSettings())
    assert (shaped.cells[0] > 0).nonzero().tolist() == [[4, 2]]
    assert any("900x1000 px and the picture 64x64 px" in note for note in shaped.notes)


# --- Batches and videos ---------------------------------------------------------------------------------------------


def each(count, rows=2, columns=3):
    return torch.arange(1.0, count + 1).view(-1, 1, 1).expand(-1, rows, columns) / count


def test_one_mask_for_all_or_one_for_each():
    one, notes = to_latent(each(1), (3, 4, 2, 3), 1, "any")
    assert one.shape == (3, 1, 2, 3)
    assert notes == []
    three, notes = to_latent(each(3), (3, 4, 2, 3), 1, "any")
    assert torch.equal(three[:, 0], each(3))
    assert notes == []


def test_other_counts_are_repeated_or_cut_and_reported():
    cut, notes = to_latent(each(5), (2, 4, 2, 3), 1, "any")
    assert torch.equal(cut[:, 0], each(5)[:2])
    assert notes == ["5 masks for 2 latents: the rest are not used."]
    again, notes = to_latent(each(2), (3, 4, 2, 3), 1, "any")
    assert torch.equal(again[:, 0], each(2)[[0, 1, 0]])
    assert notes == ["2 masks for 3 latents: repeated in order."]


def test_a_batch_of_videos_gets_a_mask_each_over_all_frames():
    masks, _ = to_latent(each(3), (3, 16, 5, 2, 3), 4, "any")
    assert masks.shape == (3, 1, 5, 2, 3)
    assert torch.equal(masks[:, 0], each(3)[:, None].expand(-1, 5, -1, -1))


def test_one_video_gets_a_mask_a_frame():
    latent_frames, _ = to_latent(each(3), (1, 16, 3, 2, 3), 4, "any")
    assert torch.equal(latent_frames[0, 0], each(3))
    # 9 picture frames are 3 latent frames: the first alone, then four each.
    largest, notes = to_latent(each(9), (1, 16, 3, 2, 3), 4, "any")
    assert largest[0, 0, :, 0, 0].tolist() == pytest.approx([1 / 9, 5 / 9, 1.0])
    mean, _ = to_latent(each(9), (1, 16, 3, 2, 3), 4, "area")
    assert mean[0, 0, :, 0, 0].tolist() == pytest.approx([1 / 9, 3.5 / 9, 7.5 / 9])
    assert notes == []
    _, notes = to_latent(each(6), (1, 16, 3, 2, 3), 4, "any")
    assert notes == ["6 masks for 3 latent frames: spread over them in order."]
