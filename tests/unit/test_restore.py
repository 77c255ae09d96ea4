"""Pasting the original back, matching colours inside, and the audit."""

import pytest
import torch
from bespoke.nodes.inpaint.restore import (
    RestoreSettings,
    audit,
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
