"""Masks: from the user's pixels to latent cells and back."""

import pytest
import torch
from bespoke.nodes.inpaint.assignment import Layout, to_frames, to_latent
from bespoke.nodes.inpaint.mask import (
    Grid,
    MaskSettings,
    blur,
    clean,
    distance,
    feather,
    floor,
    grow,
    looks_inverted,
    picture_size,
    ramp,
    shape_mask,
    to_cells,
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


def each(count, rows=16, columns=24):
    """`count` masks; the i-th, counted from 1, is i / count everywhere."""
    return torch.arange(1.0, count + 1).view(-1, 1, 1).expand(-1, rows, columns) / count


def used(count, shape, coverage="any", temporal=4, chunk=0, **settings):
    """(the noise mask of a latent, latent_mask, notes) of `each(count)`, for 2 x 3 cells of 8 px."""
    layout = Layout.of(shape, temporal, chunk)
    shaped = shape_mask(each(count), 2, 3, 8, MaskSettings(coverage=coverage, **settings), layout)
    notes = [note for note in shaped.notes if " masks for " in note]
    noise_mask = to_latent(shaped.cells, layout, len(shape))
    return noise_mask, to_frames(to_picture(shaped.cells, shaped.grid), layout), notes


def first_cells(noise_mask):
    """One value of each picture or latent frame, in order, where all cells of each are equal."""
    frames = noise_mask[:, 0].flatten(0, -3)
    assert torch.equal(frames, frames[:, :1, :1].expand_as(frames))
    return frames[:, 0, 0].tolist()


PICTURES, VIDEO = (3, 4, 2, 3), (1, 16, 3, 2, 3)


def test_one_mask_for_all_or_one_for_each():
    one, shown, notes = used(1, PICTURES)
    assert (one.shape, shown.shape, notes) == ((3, 1, 2, 3), (1, 16, 24), [])
    three, shown, notes = used(3, PICTURES)
    assert first_cells(three) == pytest.approx([1 / 3, 2 / 3, 1])
    assert (shown.shape, notes) == ((3, 16, 24), [])


def test_masks_are_repeated_in_order_for_more_pictures():
    """As core's `repeat_to_batch_size` does with a noise mask, and `RepeatLatentBatch` with the pictures."""
    again, shown, notes = used(2, PICTURES)
    assert first_cells(again) == [0.5, 1.0, 0.5]
    assert (shown.shape, notes) == ((3, 16, 24), ["2 masks for 3 pictures: repeated in order."])


def test_more_masks_than_pictures_are_refused():
    with pytest.raises(InputError, match="5 masks for 2 pictures; give one for all or 2, one each"):
        used(5, (2, 4, 2, 3))


@pytest.mark.parametrize("shape", [(1, 4, 2, 3), (1, 16, 1, 2, 3)], ids=["4-D", "5-D, as Qwen-Image"])
def test_several_masks_of_one_picture_are_united(shape):
    """The union by hand: four detections, of which the first touches cell (0, 0) and the last cell (1, 2)."""
    masks = torch.zeros(4, 16, 24)
    masks[0, 3, 5] = masks[1, 3, 5] = 0.5
    masks[3, 15, 23] = 1.0
    layout = Layout.of(shape, 4)
    shaped = shape_mask(masks, 2, 3, 8, MaskSettings(), layout)
    assert shaped.cells.tolist() == [[[0.5, 0.0, 0.0], [0.0, 0.0, 1.0]]]
    assert torch.equal(shaped.user, masks.amax(0, keepdim=True))
    assert shaped.notes[0] == "4 masks for one picture: they were united."
    assert to_latent(shaped.cells, layout, len(shape)).shape == (1, 1, *shape[2:])


def test_united_masks_are_feathered_as_one():
    halves = torch.zeros(2, 16, 64)
    halves[0, :, :20], halves[1, :, 20:40] = 1.0, 1.0
    both = halves.amax(0, keepdim=True)
    settings = MaskSettings(grow=-3, feather=12)
    # Each half alone would shrink at the seam between them, which is no edge.
    assert torch.equal(shape_mask(halves, 2, 8, 8, settings).shaped, shape_mask(both, 2, 8, 8, settings).shaped)


def test_a_batch_of_videos_gets_a_mask_each_over_all_frames():
    masks, shown, _ = used(3, (3, 16, 5, 2, 3))
    assert masks.shape == (3, 1, 5, 2, 3)
    assert first_cells(masks) == pytest.approx([i / 3 for i in (1, 2, 3) for _ in range(5)])
    assert shown.shape == (3 * 17, 16, 24)  # decoded, 5 latent frames are 17 pictures


def test_one_video_gets_a_mask_a_latent_frame():
    masks, shown, notes = used(3, VIDEO)
    assert first_cells(masks) == pytest.approx([1 / 3, 2 / 3, 1])
    assert (shown.shape, notes) == ((9, 16, 24), [])


@pytest.mark.parametrize("count", [9, 10, 11, 12])
def test_one_video_gets_the_masks_of_its_groups_of_frames(count):
    """9 to 12 frames are 3 latent frames, of frames 1, 2 to 5 and 6 to 9; the VAE drops the others (Wan: 4n + 1)."""
    largest, shown, notes = used(count, VIDEO)
    assert first_cells(largest) == pytest.approx([1 / count, 5 / count, 9 / count])
    mean, *_ = used(count, VIDEO, "area")
    assert first_cells(mean) == pytest.approx([1 / count, 3.5 / count, 7.5 / count])
    assert shown.shape == (9, 16, 24)
    dropped = f"{count} masks for a video of 9 usable frames: those of dropped frames are not used."
    assert notes == ([] if count == 9 else [dropped])


@pytest.mark.parametrize("count", [2, 4, 6, 8, 13])
def test_other_numbers_of_masks_for_a_video_are_refused(count):
    text = rf"{count} masks are given for one video of 3 latent frames \(9 picture frames\); give 1, 3, 9 "
    with pytest.raises(InputError, match=text):
        used(count, VIDEO)


@pytest.mark.parametrize(
    ("count", "indices"),
    [
        (1, [0] * 6),
        (2, [0] * 3 + [1] * 3),
        (3, [0, 1, 2] * 2),  # the latent frames of one video, for both
        (6, [0, 1, 2, 3, 4, 5]),  # the latent frames of both
        (9, [0, 4, 8] * 2),  # the picture frames of one: the last of a group has the largest value
        (18, [0, 4, 8, 9, 13, 17]),  # the picture frames of both
        (24, [0, 4, 8, 12, 16, 20]),  # the same with three more each, which the VAE drops
    ],
)
def test_two_videos(count, indices):
    masks, shown, _ = used(count, (2, 16, 3, 2, 3))
    assert masks.shape == (2, 1, 3, 2, 3)
    assert first_cells(masks) == pytest.approx([(i + 1) / count for i in indices])
    assert len(shown) == (1 if count == 1 else 18)


def test_numbers_for_videos_that_mean_nothing_or_two_things_are_refused():
    with pytest.raises(InputError, match="5 masks are given for 2 videos of 3 latent frames"):
        used(5, (2, 16, 3, 2, 3))
    # 9 for 3 videos of 3 latent frames: all latent frames, or the 9 picture frames of one?
    with pytest.raises(InputError, match="9 masks are given for 3 videos .* can be read in two ways"):
        used(9, (3, 16, 3, 2, 3))


def test_a_latent_mask_covers_what_each_frame_of_the_video_may_change():
    """One dot moves by a cell a frame, so group 2 to 5 covers four cells in each of its frames: 1 + 4 * 4 + 4 * 4."""
    masks = torch.zeros(9, 8, 72)
    for frame in range(9):
        masks[frame, 4, 8 * frame + 4] = 1.0
    layout = Layout.of((1, 16, 3, 1, 9), 4)
    shaped = shape_mask(masks, 1, 9, 8, MaskSettings(), layout)
    shown = to_frames(to_picture(shaped.cells, shaped.grid), layout)
    assert int(shown.sum()) == (1 + 4 * 4 + 4 * 4) * 64
    assert [int(frame.sum()) // 64 for frame in shown] == [1, 4, 4, 4, 4, 4, 4, 4, 4]
    assert bool((shown >= masks).all())


def test_frames_that_are_to_be_kept_and_share_a_latent_frame_are_named():
    """30 of 33 frames black: latent frame 8 holds the frames 30 to 33, so the last of the 30 may change."""
    masks = torch.ones(33, 16, 24)
    masks[:30] = 0.0
    layout = Layout.of((1, 16, 9, 2, 3), 4)
    shaped = shape_mask(masks, 2, 3, 8, MaskSettings(), layout)
    assert (
        to_frames(to_picture(shaped.cells, shaped.grid), layout).flatten(1).any(1).tolist() == [False] * 29 + [True] * 4
    )
    assert shaped.notes[-1].startswith("1 frames with a black mask share a latent frame with others and may change")
    masks[29] = 1.0
    assert not any("black mask" in note for note in shape_mask(masks, 2, 3, 8, MaskSettings(), layout).notes)


def test_min_strength_is_the_least_value_of_a_group_too():
    mean, *_ = used(9, VIDEO, "area", min_strength=0.9)
    assert first_cells(mean) == pytest.approx([0.9, 0.9, 0.9])


def test_the_frames_of_a_vae_that_packs_chunks():
    """MiniMax H3: 17 frames are 5 latent frames, of 1 and four times 4 frames; 22 frames are 7 of them."""
    layout = Layout.of((1, 24, 7, 2, 3), 4, 5)
    assert layout.groups == (1, 4, 4, 4, 4, 1, 4)
    masks, shown, _ = used(22, (1, 24, 7, 2, 3), chunk=5)
    assert first_cells(masks) == pytest.approx([n / 22 for n in (1, 5, 9, 13, 17, 18, 22)])
    assert len(shown) == 22


@pytest.mark.parametrize(("temporal", "frames", "latent_frames"), [(4, 81, 21), (6, 25, 5), (8, 97, 13), (1, 7, 7)])
def test_the_frames_of_other_vaes(temporal, frames, latent_frames):
    """Wan 81 -> 21, Mochi 25 -> 5, LTX 97 -> 13, as their VAEs' `downscale_ratio` gives; 1 packs nothing."""
    assert Layout.of((1, 16, latent_frames, 2, 3), temporal).frames == frames


def test_random_counts_give_the_union_of_what_each_latent_frame_holds():
    """Every accepted mask pixel of a frame opens the cell of its latent frame, and no other cell is open."""
    generator = torch.Generator().manual_seed(3)

    def draw(low, high):
        return int(torch.randint(low, high + 1, (), generator=generator))

    seen = 0
    for _ in range(60):
        videos, latent_frames, temporal = draw(1, 3), draw(1, 4), (1, 4, 8)[draw(0, 2)]
        frames = (latent_frames - 1) * temporal + 1
        count = videos * frames
        masks = (torch.rand(count, 16, 24, generator=generator) > 0.995).float()
        layout = Layout.of((videos, 4, latent_frames, 2, 3), temporal)
        try:
            shaped = shape_mask(masks, 2, 3, 8, MaskSettings(), layout)
        except InputError as error:
            assert "two ways" in str(error)  # noqa: PT017
            continue
        wanted = torch.zeros(videos, latent_frames, 2, 3)
        for i, y, x in masks.nonzero().tolist():
            frame = i % frames
            wanted[i // frames, -(-frame // temporal), y // 8, x // 8] = 1.0
        assert torch.equal(to_latent(shaped.cells, layout, 5)[:, 0], wanted)
        shown = to_frames(to_picture(shaped.cells, shaped.grid), layout).expand(count, -1, -1)
        assert bool((shown >= masks).all())
        seen += 1
    assert seen > 40


# --- The picture's size ---------------------------------------------------------------------------------------------


def test_a_mask_of_twice_the_pictures_size_lies_where_the_picture_does():
    """77 x 61 px, of which the VAE keeps 72 x 56 from (2, 2). Pixel (2y, 2x) of the mask is pixel (y, x)."""
    for y, x in ((2, 2), (9, 9), (10, 10), (40, 33), (73, 57)):
        mask = torch.zeros(1, 154, 122)
        mask[0, 2 * y, 2 * x] = 1.0
        shaped = shape_mask(mask, 9, 7, 8, MaskSettings())
        assert shaped.cells[0].nonzero().tolist() == [[(y - 2) // 8, (x - 2) // 8]], (y, x)
        assert (shaped.grid.height, shaped.grid.width) == (77, 61)
    assert shaped.notes == (
        "The mask is 122x154 px and the picture 61x77 px: it was stretched to fit.",
        "The picture is 61x77 px, not whole 8 px cells: the VAE crops it to 56x72 px, and the cropped border is kept.",
    )


def test_the_size_of_a_picture_from_a_mask_of_its_proportions():
    # 1920 x 1080 in cells of 32 px leaves 1920 x 1056; half of it is 960 x 540.
    assert picture_size(33, 60, 32, 540, 960) == (1080, 1920)
    assert picture_size(33, 60, 32, 1056 // 2, 960) == (1056, 1920)  # whole cells where they fit
    assert picture_size(8, 8, 8, 1000, 900) == (64, 64)  # no size of these cells has its proportions
    assert picture_size(9, 12, 8, 150, 200) == (72, 96)  # 75 x 100 would fit too
    note = shape_mask(square(), 9, 7, 8, MaskSettings()).notes[1]
    assert note.endswith("the mask lies up to 7 px off: give it at the picture's own size.")


def test_random_sizes_of_pictures_and_masks():
    """A dot in a mask of k times the picture's size opens the cell of its pixel, if the size can be told."""
    generator = torch.Generator().manual_seed(5)
    told = 0
    for _ in range(300):
        cell = (8, 16, 32)[int(torch.randint(3, (), generator=generator))]
        height, width = (int(n) for n in torch.randint(cell, 5 * cell, (2,), generator=generator))
        k = int(torch.randint(1, 4, (), generator=generator))
        rows, columns = height // cell, width // cell
        y = height % cell // 2 + int(torch.randint(rows * cell, (), generator=generator))
        x = width % cell // 2 + int(torch.randint(columns * cell, (), generator=generator))
        if k > 1 and picture_size(rows, columns, cell, k * height, k * width) != (height, width):
            continue
        mask = torch.zeros(1, k * height, k * width)
        mask[0, k * y, k * x] = 1.0
        cells = shape_mask(mask, rows, columns, cell, MaskSettings()).cells[0]
        wanted = [(y - height % cell // 2) // cell, (x - width % cell // 2) // cell]
        assert cells.nonzero().tolist() == [wanted]
        told += 1
    assert told > 200


# --- The ramp --------------------------------------------------------------------------------------------------------


def test_distance_is_the_nearest_marked_place():
    """Oracle: the least of all distances, computed for every pair of places."""
    marked = torch.rand(2, 13, 19, generator=torch.Generator().manual_seed(0)) > 0.97
    places = torch.stack(torch.meshgrid(torch.arange(13), torch.arange(19), indexing="ij"), -1).reshape(-1, 2).float()
    for one, found in zip(marked, distance(marked, 6), strict=True):
        exact = torch.cdist(places, places[one.flatten()]).amin(1).reshape(13, 19)
        assert torch.allclose(found[exact <= 6], exact[exact <= 6], atol=1e-6)
        assert (found[exact > 6 * 2**0.5] == torch.inf).all()


def test_the_ramp_falls_evenly_from_full_cells_to_0():
    """By hand: 24 px in cells of 8 px are the values 3/4, 2/4 and 1/4 of the three cells beyond a full one."""
    cells = torch.zeros(1, 9, 9)
    cells[0, 4, 4] = 1.0
    out = ramp(cells, 24, 8)
    assert torch.allclose(out[0, 4], torch.tensor([0, 0.25, 0.5, 0.75, 1, 0.75, 0.5, 0.25, 0]))
    assert torch.equal(out, out.transpose(1, 2))
    assert torch.allclose(out[0, 3, 3], torch.tensor(1 - 2**0.5 / 4))


def test_the_ramp_starts_at_full_places_alone_and_lowers_nothing():
    cells = torch.rand(3, 12, 12, generator=torch.Generator().manual_seed(1)) * 0.99
    assert torch.equal(ramp(cells, 64, 8), cells)
    cells[0, 0, 0] = 1.0
    out = ramp(cells, 64, 8)
    assert (out >= cells).all()
    assert torch.equal(out[1:], cells[1:])
    assert torch.equal(ramp(cells, 0, 8), cells)


def test_a_ramp_goes_beyond_the_feather_and_is_named_where_it_cannot_start():
    plain = shape_mask(square(), 8, 8, 8, MaskSettings(feather=8)).cells
    ramped = shape_mask(square(), 8, 8, 8, MaskSettings(feather=8, ramp=32))
    assert (ramped.cells >= plain).all()
    assert int((ramped.cells > 0).sum()) > int((plain > 0).sum())
    assert not ramped.notes
    grey = shape_mask(square() * 0.5, 8, 8, 8, MaskSettings(ramp=32))
    assert "The ramp begins at places that are masked fully, and this mask has none: there is no ramp." in grey.notes
    with pytest.raises(InputError, match="ramp is -8; give 0 to 1024 pixels"):
        MaskSettings(ramp=-8)
