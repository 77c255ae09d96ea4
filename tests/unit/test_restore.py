"""Pasting the original back, matching colours inside, and the audit."""

import pytest
import torch
from bespoke.nodes.inpaint.restore import (
    CELLS,
    RestoreSettings,
    audit,
    drops_frames,
    is_crop,
    ramp_inward,
    restore,
)
from bespoke.training.errors import InputError


def picture(seed, batch=1, height=48, width=64, channels=3):
    return torch.rand(batch, height, width, channels, generator=torch.Generator().manual_seed(seed))


def square(height=48, width=64):
    mask = torch.zeros(1, height, width)
    mask[:, 16:32, 24:48] = 1.0
    return mask


def run(original, generated, mask, **settings):
    return restore(original, generated, mask, RestoreSettings(**settings))


def test_outside_is_the_original_and_inside_the_generated_bit_for_bit():
    image, after, _ = run(picture(0), picture(1), square())
    inside = square()[0] > 0
    assert torch.equal(image[0][~inside], picture(0)[0][~inside])
    assert torch.equal(image[0][inside], picture(1)[0][inside])
    assert (after.changed, after.largest, after.outside) == (0, 0.0, 48 * 64 - 16 * 24)


@pytest.mark.parametrize("settings", [{}, {"feather": 5}, {"match_color": 1.0}, {"feather": 9, "match_color": 0.5}])
def test_ten_rounds_leave_the_outside_untouched(settings):
    original = picture(0)
    image = original
    for seed in range(10):
        image, after, _ = run(image, (image + 0.1 * picture(seed)).clamp(0, 1), square(), **settings)
        assert (after.changed, after.largest) == (0, 0.0)
    outside = square()[0] == 0
    assert torch.equal(image[0][outside], original[0][outside])
    assert not torch.equal(image, original)


def test_the_audit_counts_what_was_changed():
    image = picture(0)
    image[0, 3, 5, 1] += 0.25
    image[0, 40, 60] += 0.125
    image[0, 20, 30] += 0.5  # inside
    found = audit(picture(0), image, square() == 0)
    assert found.changed == 2
    assert found.largest == pytest.approx(0.25)


def test_report_of_changes_by_decoding():
    _, _, notes = run(picture(0), picture(0) + 0.25, square())
    assert notes == ["As decoded, 2688 of 2688 px outside the mask differed, by up to 0.2500."]


def test_feather_rises_inward_only_from_0_to_1():
    step = torch.zeros(1, 8, 60, dtype=torch.bool)
    step[..., 20:] = True
    for pixels in (1, 2, 7, 12):
        ramp = ramp_inward(step, pixels)[0, 4]
        assert ramp[:20].max() == 0.0
        assert (ramp.diff() >= 0.0).all()
        assert ramp[20 + pixels + 1 :].min() == 1.0
        assert 0.0 < ramp[20] < 1.0
    assert torch.equal(ramp_inward(step, 0), step.float())


def test_a_soft_mask_is_a_weight():
    image, _, _ = run(torch.zeros(1, 48, 64, 3), torch.ones(1, 48, 64, 3), square() * 0.5)
    assert torch.equal(image[..., 0], square() * 0.5)


def smooth(height=96, width=96):
    y, x = torch.meshgrid(torch.linspace(0, 1, height), torch.linspace(0, 1, width), indexing="ij")
    return torch.stack((0.05 + 0.06 * x, 0.04 - 0.08 * y, -0.05 + 0.0 * x), -1)[None]


def test_color_match_takes_off_a_smooth_shift_and_leaves_detail():
    original = 0.3 + 0.3 * picture(0, height=96, width=96)
    mask = torch.zeros(1, 96, 96)
    mask[:, 32:64, 32:64] = 1.0
    generated = original + smooth()  # the same picture with slightly different colours
    plain, _, _ = run(original, generated, mask)
    matched, after, notes = run(original, generated, mask, match_color=1.0)
    inside = mask[0] > 0
    error = [(i - original)[0][inside].abs().max() for i in (plain, matched)]
    assert error[0] > 0.08
    assert error[1] < 0.012  # the shift is measured at the border only and extrapolated inside
    assert after.changed == 0
    assert any("Colours were matched" in note for note in notes)
    # Half the strength removes half of the shift.
    half, _, _ = run(original, generated, mask, match_color=0.5)
    assert torch.allclose(half, (plain + matched) / 2, atol=1e-6)


def test_color_match_does_not_pull_new_content_toward_the_old():
    original = torch.full((1, 96, 96, 3), 0.5)
    generated = original.clone()
    generated[:, 40:56, 40:56] = torch.tensor([0.9, 0.1, 0.2])
    mask = torch.zeros(1, 96, 96)
    mask[:, 32:64, 32:64] = 1.0
    image, _, _ = run(original, generated, mask, match_color=1.0)
    assert torch.equal(image, generated)


def test_color_match_without_an_outside_is_reported():
    image, _, notes = run(picture(0), picture(1), torch.ones(1, 48, 64), match_color=1.0)
    assert torch.equal(image, picture(1))
    assert "Colours were not matched: no pixel lies outside the mask to compare." in notes


def test_a_batch_with_an_empty_mask_among_others_is_matched_where_it_can_be():
    original, mask = torch.full((2, 96, 96, 3), 0.5), torch.zeros(2, 96, 96)
    mask[0, 32:64, 32:64] = 1.0
    image, _, _ = run(original, original + 0.1, mask, match_color=1.0)
    assert torch.allclose(image, original, atol=1e-6)


def test_nan_pixels_are_reported_and_do_not_spread():
    original, generated = torch.full((1, 96, 96, 3), 0.5), torch.full((1, 96, 96, 3), 0.6)
    mask = torch.zeros(1, 96, 96)
    mask[:, 32:64, 32:64] = 1.0
    generated[0, 30, 40] = generated[0, 50, 50, 1] = float("nan")  # one on the ring outside, one inside
    image, after, notes = run(original, generated, mask, match_color=1.0)
    assert (after.changed, after.largest) == (0, 0.0)
    assert torch.equal(image[0][mask[0] == 0], original[0][mask[0] == 0])
    assert int((~torch.isfinite(image)).any(-1).sum()) == 1
    assert torch.allclose(image[torch.isfinite(image)], torch.tensor(0.5), atol=1e-6)
    assert notes[0].startswith("2 px of the generated picture are not numbers; inside the mask they stay so.")


def test_the_audit_counts_a_nan_pixel():
    image = picture(0)
    image[0, 3, 5, 1] = float("nan")
    assert audit(picture(0), image, square() == 0).changed == 1


def test_a_vae_crop_is_centred_and_the_border_kept():
    original = picture(0, height=53, width=64)
    generated = picture(1, height=48, width=64)
    image, after, notes = run(original, generated, torch.ones(1, 53, 64))
    assert torch.equal(image[:, 2:50], generated)
    assert torch.equal(image[:, :2], original[:, :2])
    assert torch.equal(image[:, 50:], original[:, 50:])
    assert any("64x48 px, the VAE's crop of 64x53 px" in note for note in notes)
    assert after.changed == 0


def test_a_crop_leaves_whole_cells_and_takes_less_than_one():
    # 1080 rows: cells of 8 px take none of them, of 16 px 8, of 32 px 24. 1024 rows are a smaller picture.
    assert is_crop((1080, 1920), (1072, 1920))
    assert is_crop((1080, 1920), (1056, 1920))
    assert not is_crop((1080, 1920), (1024, 1920))
    assert not is_crop((1080, 1920), (1040, 1920))
    # Both sides by the same cell: 1056 is cells of 32 px, which leave 1888 of 1919 and not 1912.
    assert is_crop((1080, 1919), (1056, 1888))
    assert not is_crop((1080, 1919), (1056, 1912))
    assert not is_crop((48, 64), (56, 64))


def test_every_crop_is_one_and_no_other_size_is():
    """By hand for all sides up to 100: what is left is the largest multiple of a cell of 4, 8, 16 or 32 px."""
    for side in range(32, 100):
        lefts = {left for left in range(1, side + 1) if is_crop((side, 64), (left, 64))}
        assert lefts == {side - side % cell for cell in CELLS}


def dots(height, width, step=9):
    """A picture of which no part is like another: its pixel (y, x) has the value of its place."""
    y, x = torch.meshgrid(torch.arange(float(height)), torch.arange(float(width)), indexing="ij")
    return torch.stack((y / height, x / width, ((y * step + x) % 7) / 7), -1)[None]


def test_a_smaller_picture_is_resized_and_not_displaced():
    """1080 rows made 1024: laid into the middle, the row 1002 would show what belongs 22 px lower."""
    original = dots(1080, 64)
    generated = torch.nn.functional.interpolate(original.movedim(-1, 1), (1024, 64), mode="area").movedim(1, -1)
    mask = torch.zeros(1, 1080, 64)
    mask[:, 1000:1010] = 1.0
    image, after, notes = run(original, generated, mask)
    assert after.changed == 0
    assert (image - original)[0, 1000:1010, :, 0].abs().max() < 1 / 1080  # the row is right to less than a pixel
    assert notes[0] == "The generated picture is 64x1024 px and the original 64x1080 px: it was resized."
    assert not any("crop" in note for note in notes)


@pytest.mark.parametrize("left", [1072, 1056])
def test_a_picture_of_a_crops_size_lies_where_its_outside_fits(left):
    original = dots(1080, 64)
    top = (1080 - left) // 2
    mask = torch.zeros(1, 1080, 64)
    mask[:, 900:950] = 1.0
    noise = 0.02 * (picture(3, height=left, width=64) - 0.5)  # of encoding and decoding
    cropped = original[:, top : top + left] + noise
    image, _, notes = run(original, cropped, mask)
    assert torch.equal(image[:, 900:950], cropped[:, 900 - top : 950 - top])
    assert f"it was laid 0 px from the left and {top} px from the top" in notes[0]
    scaled = torch.nn.functional.interpolate(original.movedim(-1, 1), (left, 64), mode="area").movedim(1, -1) + noise
    image, _, notes = run(original, scaled, mask)
    assert (image - original)[0, 900:950, :, 0].abs().max() < 0.02
    assert notes[1] == "Outside the mask it agrees with the whole original, not with the VAE's crop of it."


def test_a_few_pixels_outside_decide_nothing():
    """Three rows of 64 px are too few to tell the placement from chance, so the size decides; five are enough."""
    original = dots(1080, 64)
    generated = torch.nn.functional.interpolate(original.movedim(-1, 1), (1056, 64), mode="area").movedim(1, -1)
    for rows, decided in ((3, False), (5, True)):
        mask = torch.ones(1, 1080, 64)
        mask[:, 900 : 900 + rows] = 0.0
        _, _, notes = run(original, generated, mask)
        assert any("agrees with the whole original" in note for note in notes) is decided


def test_a_crop_of_another_size_is_laid_where_its_outside_fits():
    """The middle 1024 of 1080 rows, as a user's own node crops them: the outside alone can tell."""
    original, mask = dots(1080, 64), torch.zeros(1, 1080, 64)
    mask[:, 900:950] = 1.0
    cropped = original[:, 28:1052] + 0.02 * (picture(3, height=1024, width=64) - 0.5)
    image, after, notes = run(original, cropped, mask)
    assert torch.equal(image[:, 900:950], cropped[:, 872:922])
    assert after.changed == 0
    assert "and outside the mask it agrees with the original's middle: it was laid 0 px from" in notes[0]


def test_a_mask_of_the_generated_pictures_size_lies_where_the_picture_does():
    """77 x 61 px, of which the VAE leaves 72 x 56 from (2, 2): pixel (y, x) of both belongs at (y + 2, x + 2)."""
    original, generated = picture(0, height=77, width=61), picture(1, height=72, width=56)
    for y, x in ((0, 0), (71, 55), (13, 40)):
        mask = torch.zeros(1, 72, 56)
        mask[0, y, x] = 1.0
        image, after, notes = run(original, generated, mask)
        assert (image != original).any(-1)[0].nonzero().tolist() == [[y + 2, x + 2]]
        assert torch.equal(image[0, y + 2, x + 2], generated[0, y, x])
        assert (after.changed, after.outside) == (0, 77 * 61 - 1)
        assert not any("stretched" in note for note in notes)


@pytest.mark.parametrize(
    ("size", "place"),
    [((154, 122), lambda y, x: (2 * y, 2 * x)), ((144, 112), lambda y, x: (2 * (y - 2), 2 * (x - 2)))],
    ids=["twice the original", "twice the generated"],
)
def test_a_mask_of_twice_the_size_lies_where_its_picture_does(size, place):
    original, generated = picture(0, height=77, width=61), picture(1, height=72, width=56)
    for y, x in ((2, 2), (73, 57), (30, 20)):
        mask = torch.zeros(1, *size)
        mask[(0, *place(y, x))] = 1.0
        image, *_ = run(original, generated, mask)
        assert (image != original).any(-1)[0].nonzero().tolist() == [[y, x]]


def test_random_crops_put_every_pixel_where_it_was():
    """For random sizes, cells and masks: inside the generated pixel of the place, outside the original's."""
    generator = torch.Generator().manual_seed(9)
    for _ in range(60):
        cell = CELLS[int(torch.randint(4, (), generator=generator))]
        height, width = (int(n) for n in torch.randint(2 * cell, 4 * cell, (2,), generator=generator))
        h, w = height // cell * cell, width // cell * cell
        top, left = height % cell // 2, width % cell // 2
        original = torch.rand(1, height, width, 3, generator=generator)
        generated = original[:, top : top + h, left : left + w] + 0.1 * torch.rand(1, h, w, 3, generator=generator)
        mask = (torch.rand(1, height, width, generator=generator) > 0.5).float()
        image, after, _ = run(original, generated, mask)
        wanted = original.clone()
        wanted[:, top : top + h, left : left + w] = generated
        wanted = torch.where(mask[..., None] > 0, wanted, original)
        assert torch.equal(image, wanted)
        assert (after.changed, after.outside) == (0, int((mask == 0).sum()))


def test_another_size_is_resized_and_reported():
    image, after, notes = run(picture(0), picture(1, height=192, width=256), square())
    assert image.shape == (1, 48, 64, 3)
    assert after.changed == 0
    assert any("256x192 px and the original 64x48 px: it was resized" in note for note in notes)


def test_one_original_serves_a_batch_and_an_alpha_channel_stays():
    original = picture(0, channels=4)
    image, after, _ = run(original, picture(1, batch=3), square())
    assert image.shape == (3, 48, 64, 4)
    assert torch.equal(image[..., 3], original[..., 3].expand(3, -1, -1))
    assert after.outside == 3 * 2688


def test_several_masks_for_one_picture_are_united():
    masks = torch.zeros(3, 48, 64)
    masks[0, :8], masks[2, 40:] = 1.0, 1.0
    image, after, notes = run(picture(0), picture(1), masks)
    assert torch.equal(image[:, :8], picture(1)[:, :8])
    assert torch.equal(image[:, 40:], picture(1)[:, 40:])
    assert torch.equal(image[:, 8:40], picture(0)[:, 8:40])
    assert (after.changed, notes[0]) == (0, "3 masks for one picture: they were united.")


def test_originals_that_divide_the_pictures_are_repeated_in_order():
    """As RepeatLatentBatch repeats their latents: a, b, a, b."""
    masks = torch.zeros(2, 48, 64)
    masks[0, :8], masks[1, 40:] = 1.0, 1.0
    for given in (masks, masks.repeat(2, 1, 1)):
        image, after, notes = run(picture(0, batch=2), picture(1, batch=4), given)
        wanted = torch.where(
            masks.repeat(2, 1, 1)[..., None] > 0, picture(1, batch=4), picture(0, batch=2).repeat(2, 1, 1, 1)
        )
        assert torch.equal(image, wanted)
        assert (after.changed, notes[0]) == (0, "2 originals for 4 pictures: repeated in order.")


def test_frames_that_a_video_vae_drops_stay_the_originals():
    """12 frames, of which Wan's VAE leaves 9."""
    original, generated = picture(0, batch=12), picture(1, batch=9)
    for masks in (torch.ones(12, 48, 64), torch.ones(9, 48, 64), torch.ones(1, 48, 64)):
        image, after, notes = run(original, generated, masks)
        assert torch.equal(image, torch.cat((generated, original[9:])))
        assert after.changed == 0
        assert notes[0].startswith("12 originals and 9 generated pictures: taken for a video")
    assert [n for n in range(1, 20) if drops_frames(n, 9)] == [9, 10, 11, 12, 13, 14, 15, 16]  # groups of 4, or of 8
    with pytest.raises(InputError, match="8 generated pictures for 12 pictures; give one, or 12"):
        run(original, picture(1, batch=8), torch.ones(1, 48, 64))


def test_batches_that_do_not_fit_are_refused():
    with pytest.raises(InputError, match="2 originals for 3 pictures; give one, or 3"):
        run(picture(0, batch=2), picture(1, batch=3), square())
    with pytest.raises(InputError, match="2 masks for 3 pictures"):
        run(picture(0), picture(1, batch=3), square().repeat(2, 1, 1))


def test_settings_out_of_range_are_refused_with_their_value():
    with pytest.raises(InputError, match="feather is -1"):
        RestoreSettings(feather=-1)
    with pytest.raises(InputError, match="match_color is 2"):
        RestoreSettings(match_color=2)


def test_a_fade_that_hides_a_narrow_mask_is_named():
    """By hand: a line of 6 px has no pixel 8 px from both of its edges, so a fade of 16 px leaves nothing of it."""
    mask = torch.zeros(2, 48, 64)
    mask[0, 20:26] = 1.0
    mask[1, 8:40, 8:56] = 1.0
    image, _, notes = run(torch.zeros(2, 48, 64, 3), torch.ones(2, 48, 64, 3), mask, feather=16)
    assert float(image[0].max()) == 0.0
    assert float(image[1].max()) > 0.99
    assert sum("The mask is so narrow that feather" in note for note in notes) == 1
    _, _, notes = run(torch.zeros(2, 48, 64, 3), torch.ones(2, 48, 64, 3), mask, feather=2)
    assert not any("lower feather" in note for note in notes)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_what_is_no_number_in_the_original_and_stays_so_has_not_changed(value):
    """The original's pixel is kept bit for bit, so 0 pixels differ; one that becomes a number does."""
    original = picture(0)
    original[0, 3, 5, 1] = value
    image, after, _ = run(original, picture(1), square())
    assert torch.equal(image[0, 3, 5].nan_to_num(9.0), original[0, 3, 5].nan_to_num(9.0))
    assert (after.changed, after.largest) == (0, 0.0)
    found = audit(original, picture(0), square() == 0)
    assert (found.changed, found.largest) == (1, float("inf"))
