"""Crop to Mask and the way back: where it cuts, and that nothing outside the mask changes and nothing moves."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from bespoke.nodes.inpaint.colors.match import MatchSettings, match_colors
from bespoke.nodes.inpaint.crop.cut import cut
from bespoke.nodes.inpaint.crop.paste import paste
from bespoke.nodes.inpaint.crop.rectangles import LEAST, MOST_ASPECT, MOST_SCALE
from bespoke.nodes.inpaint.crop.settings import CropSettings, common_multiple
from bespoke.nodes.inpaint.fill.fill import FillSettings, fill_masked
from bespoke.nodes.inpaint.restore import RestoreSettings
from bespoke.training.errors import InputError


def noise(seed, batch=1, height=90, width=120, channels=3):
    return torch.rand(batch, height, width, channels, generator=torch.Generator().manual_seed(seed))


def boxes(*corners, height=90, width=120, count=1):
    """A mask [count, height, width] with white boxes (top, left, bottom, right)."""
    mask = torch.zeros(count, height, width)
    for top, left, bottom, right in corners:
        mask[:, top:bottom, left:right] = 1.0
    return mask


def cropped(image, mask, context_mask=None, **settings):
    return cut(image, mask, CropSettings(**{"resolution": 64, **settings}), context_mask)


def back(original, generated, mask, crop, feather=0, match_color=0.0):
    return paste(original, generated, mask, crop, RestoreSettings(feather, match_color))


# --- where it cuts ---------------------------------------------------------------------------------------------------


def test_the_crop_is_the_mask_times_the_context_in_the_middle():
    """By hand: a mask of 20 x 20 at (40..60, 30..50) with a context of 2 is 40 x 40 at (30, 20)."""
    made = cropped(noise(0), boxes((40, 30, 60, 50)), context=2.0)
    (piece,) = made.crop.pieces
    assert (piece.rect.top, piece.rect.left, piece.rect.height, piece.rect.width) == (30, 20, 40, 40)
    assert made.images.shape == (1, 64, 64, 3)
    assert made.masks.shape == (1, 64, 64)
    # 64 / 40 = 1.6, and 10 * 1.6 = 16 to 30 * 1.6 = 48.
    expected = torch.zeros(64, 64)
    expected[16:48, 16:48] = 1.0
    assert torch.equal(made.masks[0], expected)


def test_at_the_border_the_crop_moves_into_the_picture():
    """Real surroundings are better than mirrored ones: a crop that fits is never padded."""
    for corner in ((0, 0, 20, 20), (70, 100, 90, 120), (0, 50, 20, 70), (40, 0, 60, 20)):
        (piece,) = cropped(noise(0), boxes(corner), context=2.0).crop.pieces
        rect = piece.rect
        assert (rect.height, rect.width) == (40, 40)
        assert rect.within(90, 120) == rect


def test_resolution_0_cuts_without_scaling():
    image, mask = noise(0, height=300, width=300), boxes((100, 80, 170, 201), height=300, width=300)
    made = cropped(image, mask, resolution=0, context=1.5)
    rect = made.crop.pieces[0].rect
    # 70 * 1.5 = 105 to 112 and 121 * 1.5 = 181.5 to 184, the next multiples of 8.
    assert (rect.height, rect.width) == made.crop.scaled == (112, 184)
    assert torch.equal(made.images[0], image[0, rect.top : rect.bottom, rect.left : rect.right])


@pytest.mark.parametrize("resolution", [0, 64, 100, 512])
@pytest.mark.parametrize("multiple", [1, 8, 16, 24])
@pytest.mark.parametrize("keep_aspect", [True, False])
def test_the_scaled_size_is_a_multiple_near_the_area(resolution, multiple, keep_aspect):
    made = cropped(noise(0), boxes((20, 30, 61, 59)), resolution=resolution, multiple=multiple, keep_aspect=keep_aspect)
    height, width = made.crop.scaled
    assert height % multiple == width % multiple == 0
    if resolution:
        assert abs(math.sqrt(height * width) - resolution) <= multiple * 0.75
    else:
        assert min(height, width) >= LEAST
    if not keep_aspect:
        assert height == width


@pytest.mark.parametrize("size", [(10, 10), (3, 200), (200, 3), (31, 47), (113, 59), (149, 151)])
@pytest.mark.parametrize("resolution", [64, 128, 512, 1000])
def test_both_axes_are_scaled_alike_and_a_line_keeps_surroundings(size, resolution):
    """Sides are whole pixels, so the two scales of a small crop can differ a little: by less than a pixel of it."""
    height, width = size
    mask = boxes((100, 100, 100 + height, 100 + width), height=400, width=400)
    made = cropped(torch.zeros(1, 400, 400, 3), mask, resolution=resolution)
    rect, scaled = made.crop.pieces[0].rect, made.crop.scaled
    across, down = scaled[1] / rect.width, scaled[0] / rect.height
    assert abs(across / down - 1) <= 0.5 / min(rect.height, rect.width)
    assert max(across, down) <= MOST_SCALE
    assert max(rect.height / rect.width, rect.width / rect.height) <= MOST_ASPECT * 1.15  # whole multiples of 8
    assert rect.height >= height * 1.5 or rect.height == 400
    assert rect.width >= width * 1.5 or rect.width == 400


@pytest.mark.parametrize("pad", ["reflect", "edge", "none"])
def test_a_crop_larger_than_the_picture(pad):
    """A mask over all of a strip, cropped as a square. By hand: the strip is in the middle of what is mirrored."""
    image = noise(0, height=40, width=80)
    mask = boxes((5, 5, 35, 75), height=40, width=80)
    made = cropped(image, mask, resolution=0, multiple=1, context=1.1, keep_aspect=False, pad=pad)
    rect = made.crop.pieces[0].rect
    if pad == "none":
        assert rect.within(40, 80) == rect
        assert rect.top <= 5
        assert rect.bottom >= 35
        return
    assert (rect.height, rect.width) == (77, 77)
    assert rect.top < 0
    assert rect.bottom > 40
    inside = made.images[0, -rect.top : 40 - rect.top]
    assert torch.equal(inside, image[0, :, rect.left : rect.right])
    above = made.images[0, : -rect.top].flip(0)
    if pad == "edge":
        assert torch.equal(above, image[0, :1, rect.left : rect.right].expand_as(above))
    else:  # without the border's row itself, as numpy and torch mirror
        assert torch.equal(above, image[0, 1 : 1 - rect.top, rect.left : rect.right])


def test_without_padding_several_crops_share_proportions_that_fit():
    """The picture's own proportions always fit: every crop is within it and holds its mask."""
    mask = torch.zeros(2, 60, 60)
    mask[0, 0:3, 0:60] = 1.0
    mask[1, 0:60, 50:53] = 1.0
    made = cropped(noise(0, height=60, width=60), mask, pad="none", each=True)
    for piece in made.crop.pieces:
        assert piece.rect.within(60, 60) == piece.rect
        assert float(piece.mask.sum()) == 180.0


def test_the_context_mask_is_in_the_crop_and_is_not_repainted():
    also = boxes((10, 90, 20, 115))
    made = cropped(noise(0), boxes((60, 10, 80, 30)), also, resolution=128)
    rect = made.crop.pieces[0].rect
    assert rect.top <= 10
    assert rect.right >= 115
    assert float(made.crop.pieces[0].mask.sum()) == 400.0


# --- parts -----------------------------------------------------------------------------------------------------------


def test_each_part_is_a_crop_and_its_mask_has_that_part_only():
    mask = boxes((5, 5, 20, 15), (40, 60, 70, 100), (6, 20, 22, 40))
    made = cropped(noise(0), mask, each=True)
    assert len(made.images) == len(made.crop.pieces) == 3
    assert [float(piece.mask.sum()) for piece in made.crop.pieces] == [150.0, 320.0, 1200.0]  # from the top
    whole = torch.zeros(90, 120)
    for piece in made.crop.pieces:
        rect = piece.rect
        whole[rect.top : rect.bottom, rect.left : rect.right] += piece.mask
    assert torch.equal(whole, mask[0])
    assert len(cropped(noise(0), mask).images) == 1


def test_ten_masks_of_one_picture_are_ten_crops():
    mask = torch.zeros(10, 90, 120)
    for i in range(10):
        mask[i, 10 + 3 * i : 30 + 3 * i, 10 * i : 10 * i + 9] = 1.0
        mask[i, 88:, 119] = 1.0  # a detection of two pieces is one crop
    made = cropped(noise(0), mask, each=True)
    assert len(made.images) == 10
    assert [float(piece.mask.sum()) for piece in made.crop.pieces] == [182.0] * 10
    united = cropped(noise(0), mask)
    assert len(united.images) == 1
    assert united.notes == ("10 masks for one picture: they were united. Turn each on for a crop of every one.",)


def test_dots_of_a_few_pixels_are_left_out_and_reported():
    mask = boxes((5, 5, 20, 15), (40, 60, 43, 63), (70, 70, 71, 71))
    made = cropped(noise(0), mask, each=True)
    assert len(made.images) == 1
    assert made.notes == ("2 dots of a few pixels in the mask were left out; nothing changes there.",)
    assert len(cropped(noise(0), boxes((40, 60, 43, 63)), each=True).images) == 1  # all there is


# --- several pictures ------------------------------------------------------------------------------------------------


def test_a_batch_has_one_mask_or_one_each():
    image = noise(0, batch=3)
    one = cropped(image, boxes((20, 30, 40, 50)))
    assert [piece.rect for piece in one.crop.pieces] == [one.crop.pieces[0].rect] * 3
    masks = torch.cat([boxes((20 * i, 30 * i, 20 * i + 20, 30 * i + 30)) for i in range(3)])
    each = cropped(image, masks)
    assert len({piece.rect.left for piece in each.crop.pieces}) == 3
    masks[1] = 0.0
    empty = cropped(image, masks)
    assert [piece.picture for piece in empty.crop.pieces] == [0, 2]
    assert empty.notes == ("Empty masks: 1 of 3. Those pictures have no crop and stay as they are.",)
    result, after, _ = back(image, torch.zeros_like(empty.images), empty.masks, empty.crop)
    assert torch.equal(result[1], image[1])
    assert after.changed == 0
    assert after.outside == 3 * 90 * 120 - int((masks > 0).sum())


def clip_masks(frames=24):
    """A square of 20 px that shakes by 2 px on its way to the right; nothing in two frames."""
    masks = torch.zeros(frames, 90, 240)
    for i in range(frames):
        x, y = 10 + 8 * i + 2 * (i % 2), 30 + 2 * (i % 3)
        masks[i, y : y + 20, x : x + 20] = 1.0
    masks[7] = masks[8] = 0.0
    return masks


def test_a_clip_has_one_crop_or_one_that_follows_smoothly():
    frames, masks = noise(0, batch=24, width=240), clip_masks()
    clip = cropped(frames, masks, tracking="clip")
    assert len(clip.images) == 24
    assert {piece.rect for piece in clip.crop.pieces} == {clip.crop.pieces[0].rect}
    smooth = cropped(frames, masks, tracking="smooth", context=2.0)
    rects = [piece.rect for piece in smooth.crop.pieces]
    assert len(rects) == 24
    assert {(rect.height, rect.width) for rect in rects} == {(40, 40)}
    left = np.array([rect.left for rect in rects])
    top = np.array([rect.top for rect in rects])
    assert np.abs(np.diff(left[8:-8])).max() <= 9  # 8 px a frame, and whole pixels
    assert np.abs(np.diff(left[8:-8])).min() >= 7
    assert np.abs(np.diff(top)).max() <= 1
    for piece, mask in zip(smooth.crop.pieces, masks, strict=True):
        assert float(piece.mask.sum()) == float(mask.sum())  # the mask is whole in its crop
    result, after, _ = back(frames, torch.rand_like(smooth.images), smooth.masks, smooth.crop)
    assert after.changed == 0
    assert torch.equal(result[masks == 0], frames[masks == 0])


def test_a_video_of_which_the_vae_dropped_frames():
    frames, masks = noise(0, batch=24, width=240), clip_masks()
    made = cropped(frames, masks, tracking="clip")
    result, _, notes = back(frames, torch.zeros_like(made.images[:21]), made.masks, made.crop)
    assert torch.equal(result[21:], frames[21:])
    assert not torch.equal(result[20], frames[20])
    assert any("24 crops and 21 generated pictures: taken for a video" in note for note in notes)


def test_a_clip_only_drops_frames():
    """Six faces of one picture are no video: of five generated ones nobody knows which is missing."""
    image = noise(0, height=40, width=240)
    made = cropped(
        image, boxes(*((10, 40 * i + 5, 30, 40 * i + 25) for i in range(6)), height=40, width=240), each=True
    )
    assert len(made.images) == 6
    for left in (5, 1):
        with pytest.raises(InputError, match=f"{left} generated pictures for 6 crops; decode all of them"):
            back(image, made.images[:left], made.masks, made.crop)
    with pytest.raises(InputError, match="0 generated pictures for 6 crops"):
        back(image, made.images[:0], made.masks, made.crop)


# --- bad input -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"resolution": 7}, "resolution is 7; give 0 to leave the size, or 8"),
        ({"resolution": 16, "multiple": 32}, "or 32 .the multiple that the model takes. to 4096 pixels"),
        ({"resolution": 10_000}, "to 4096 pixels, such as the 512 or 1024 that the model was trained at"),
        ({"context": 0.5}, "context is 0.5; give 1 to 8"),
        ({"multiple": 0}, "multiple is 0; give 1 to 256 pixels"),
        ({"pad": "black"}, "give one of reflect, edge, none"),
        ({"tracking": "mask"}, "give one of picture, clip, smooth"),
        ({"tracking": "clip", "each": True}, "needs each off"),
    ],
)
def test_wrong_settings(settings, message):
    with pytest.raises(InputError, match=message):
        CropSettings(**settings)


def test_the_multiple_of_a_vae():
    assert [common_multiple(8, 8), common_multiple(8, 16), common_multiple(24, 16)] == [8, 16, 48]
    with pytest.raises(InputError, match="no common multiple up to 256; give a multiple of 32"):
        common_multiple(9, 32)


def test_wrong_pictures_and_masks():
    with pytest.raises(InputError, match="the mask is empty, so there is nothing to crop; paint in it"):
        cropped(noise(0), torch.zeros(1, 90, 120))
    with pytest.raises(InputError, match="mask is 64x64 px and the picture 120x90 px; give a mask of the picture"):
        cropped(noise(0), torch.zeros(1, 64, 64))
    with pytest.raises(InputError, match="2 masks for 3 pictures; give one, or 3"):
        cropped(noise(0, batch=3), boxes((1, 1, 9, 9), count=2))
    with pytest.raises(InputError, match="context_mask is 64x64 px"):
        cropped(noise(0), boxes((1, 1, 9, 9)), torch.ones(1, 64, 64))
    with pytest.raises(InputError, match="values that are not numbers"):
        cropped(noise(0) * torch.inf, boxes((1, 1, 9, 9)))
    checks = torch.zeros(1, 200, 200)
    checks[:, ::8, ::8] = 1.0
    with pytest.raises(InputError, match="the mask has 625 separate parts and each crops up to 64; close its gaps"):
        cropped(noise(0, height=200, width=200), checks, each=True)


def test_what_does_not_belong_to_the_crop():
    image, mask = noise(0), boxes((20, 30, 40, 50))
    made = cropped(image, mask)
    with pytest.raises(InputError, match="original is 1 of 100x90 px and the crop is of 1 of 120x90 px; wire"):
        back(image[:, :, :100], made.images, made.masks, made.crop)
    with pytest.raises(InputError, match="the crop is of another picture of the same size"):
        back(noise(1), made.images, made.masks, made.crop)
    with pytest.raises(InputError, match="mask is 50x50 px; with a crop give latent_mask of Latent Mask Blend"):
        back(image, made.images, torch.ones(1, 50, 50), made.crop)
    with pytest.raises(InputError, match="has other proportions than the crop of 64x64 px"):
        back(image, made.images[:, :40], made.masks, made.crop)
    three = cropped(noise(0, batch=3), mask)
    with pytest.raises(InputError, match="2 generated pictures for 3 crops; decode all of them"):
        back(noise(0, batch=3), three.images[:2], three.masks, three.crop)
    with pytest.raises(InputError, match="2 masks for 3 generated crops"):
        back(noise(0, batch=3), three.images, three.masks[:2], three.crop)


def test_an_original_that_changed_elsewhere_is_taken_and_reported():
    """Two crops of one picture can be restored one after the other."""
    image = noise(0)
    first, second = cropped(image, boxes((5, 5, 25, 25))), cropped(image, boxes((50, 80, 70, 100)))
    once, _, _ = back(image, torch.zeros_like(first.images), first.masks, first.crop)
    twice, after, notes = back(once, torch.zeros_like(second.images), second.masks, second.crop)
    assert after.changed == 0
    assert float(twice[0, 5:25, 5:25].max()) == float(twice[0, 50:70, 80:100].max()) == 0.0
    assert any(note.startswith("original is not quite the picture that was cropped") for note in notes)


# --- the way back ----------------------------------------------------------------------------------------------------


def random_mask(rng, height, width):
    """One to three ellipses or boxes, hard or soft, that often reach over the border."""
    y, x = np.mgrid[0:height, 0:width]
    mask = np.zeros((height, width), np.float32)
    for _ in range(rng.integers(1, 4)):
        cy, cx = rng.uniform(-0.05, 1.05, 2) * (height, width)
        ry, rx = rng.uniform(0.04, 0.35, 2) * (height, width) + 1
        far = (
            np.maximum(abs((y - cy) / ry), abs((x - cx) / rx))
            if rng.random() < 0.5
            else np.hypot((y - cy) / ry, (x - cx) / rx)
        )
        shape = (far <= 1).astype(np.float32)
        mask = np.maximum(mask, shape * rng.choice([1.0, 1.0, 0.6]))
    if not mask.any():
        mask[int(rng.integers(height)), int(rng.integers(width))] = 1.0
    return torch.from_numpy(mask)


@pytest.mark.parametrize("block", range(10))
def test_500_random_cases_change_no_pixel_outside_the_mask(block):
    """What may change is read from the mask that was drawn, or from the cells of a latent, not from the code's count.

    Sizes odd and even, masks at borders, scales of .3 to 4, batches, several crops, any feather; the generated pictures
    are noise, with some pixels that are no numbers.
    """
    for case in range(50):
        rng = np.random.default_rng(1000 * block + case)
        height, width, batch = (int(v) for v in (rng.integers(17, 90), rng.integers(17, 90), rng.integers(1, 4)))
        image = noise(case, batch, height, width, int(rng.choice([3, 3, 4, 1])))
        masks = torch.stack([random_mask(rng, height, width) for _ in range(int(rng.choice([1, batch])))])
        side = math.sqrt(max(float((masks > 0).sum() / len(masks)), 20.0)) * 1.5
        resolution = int(np.clip(side * rng.uniform(0.3, 4.0), 16, 220)) if rng.random() < 0.9 else 0
        made = cropped(
            image,
            masks,
            resolution=resolution,
            context=float(rng.uniform(1.0, 3.0)),
            multiple=int(rng.choice([1, 4, 8])),
            keep_aspect=bool(rng.random() < 0.5),
            pad=str(rng.choice(["reflect", "edge", "none"])),
            each=bool(rng.random() < 0.5),
        )
        generated = torch.rand_like(made.images)
        if rng.random() < 0.2:
            generated[0, 3, 5] = torch.nan
        used, may_change = made.masks, (masks > 0).expand(batch, -1, -1)
        if rng.random() < 0.5:  # the cells of a latent, as Latent Mask Blend gives them
            used, may_change = cells_of(made), None
        feather, match = int(rng.integers(0, 12)), float(rng.choice([0.0, 1.0]))
        result, after, _ = back(image, generated, used, made.crop, feather, match)
        if may_change is None:
            may_change = covered(made.crop, used)
        outside = ~may_change
        assert torch.equal(result[outside], image[outside]), (block, case)
        assert after.changed == 0
        assert after.outside >= int(outside.sum()), (block, case)
        assert bool(torch.isfinite(result).all())
        changed = (result != image).any(-1)
        assert bool(changed.any()) or feather, (block, case)


def cells_of(made, cell=4):
    """The mask of a latent with cells of 4 px: each cell that the mask touches."""
    pooled = F.max_pool2d(made.masks[:, None], cell, ceil_mode=True)
    height, width = made.masks.shape[1:]
    return F.interpolate((pooled > 0).float(), scale_factor=cell)[:, 0, :height, :width].contiguous()


def covered(crop, masks):
    """[B, H, W]: the pixels of which any part lies on a masked pixel of a scaled crop, one by one."""
    out = torch.zeros(crop.pictures, *crop.size, dtype=torch.bool)
    for piece, mask in zip(crop.pieces, masks, strict=True):
        rect = piece.rect
        rows = touching(rect.height, mask.shape[0])  # [h, scaled]
        columns = touching(rect.width, mask.shape[1])
        here = (rows @ (mask > 0).float() @ columns.T) > 0
        seen = rect.within(*crop.size)
        out[piece.picture, seen.top : seen.bottom, seen.left : seen.right] |= here[
            seen.top - rect.top : seen.bottom - rect.top, seen.left - rect.left : seen.right - rect.left
        ]
    return out


def touching(side, scaled):
    """[side, scaled]: 1 where a pixel and a scaled pixel share an interval."""
    low, high = np.arange(side)[:, None] * scaled, (np.arange(side)[:, None] + 1) * scaled  # in 1 / side scaled pixels
    pixels = np.arange(scaled)[None] * side
    return torch.from_numpy(((low < pixels + side) & (high > pixels)).astype(np.float32))


def detail(height, width, seed=0):
    """A picture of detail at all scales down to 4 px."""
    rng = np.random.default_rng(seed)
    fy, fx = np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None]
    radius = np.hypot(fy, fx)
    spectrum = np.where((radius > 0.01) & (radius < 0.25), 1 / np.maximum(radius, 0.01), 0.0)
    field = np.fft.irfft2(np.fft.rfft2(rng.standard_normal((height, width))) * spectrum, (height, width))
    return torch.from_numpy(0.5 + 0.1 * field / field.std()).float().clamp(0, 1)[None, ..., None].expand(-1, -1, -1, 3)


def displacement(a, b):
    """(dy, dx) in px by which [h, w] `b` lies off `a`: the slope of the phase of their cross spectrum.

    Frequencies below 1 / 8 px, weighted by their power, so that a symmetric blur does not count.
    """
    h, w = a.shape
    window = torch.from_numpy(np.hanning(h)[:, None] * np.hanning(w)[None]).float()
    fa, fb = (np.fft.fft2(((one - one.mean()) * window).numpy()) for one in (a, b))
    cross = fa * np.conj(fb)
    fy, fx = np.meshgrid(np.fft.fftfreq(h), np.fft.fftfreq(w), indexing="ij")
    low = (np.hypot(fy, fx) < 0.125) & (np.abs(cross) > 0)
    weight, phase = np.abs(cross[low]), np.angle(cross[low]) / (2 * np.pi)
    f = np.stack((fy[low], fx[low]))
    return np.linalg.solve((f * weight) @ f.T, (f * weight) @ phase)


def test_the_measure_of_displacement():
    """A picture shifted by a Fourier phase, and the half pixel that scaling by corners moves."""
    picture = detail(160, 160)[0, ..., 0]
    fy, fx = np.fft.fftfreq(160)[:, None], np.fft.rfftfreq(160)[None]
    moved = np.fft.irfft2(np.fft.rfft2(picture.numpy()) * np.exp(-2j * np.pi * (0.1 * fy - 0.3 * fx)), (160, 160))
    found = displacement(picture[8:-8, 8:-8], torch.from_numpy(moved).float()[8:-8, 8:-8])
    assert found == pytest.approx([0.1, -0.3], abs=0.01)
    small = picture[None, None, ::2, ::2]
    wrong = F.interpolate(small, (160, 160), mode="bilinear")[0, 0]  # as if a pixel were its first corner
    assert np.abs(displacement(picture[8:-8, 8:-8], wrong[8:-8, 8:-8])).max() > 0.3


@pytest.mark.parametrize("scale", [0.3, 0.5, 0.77, 1.0, 1.37, 2.0, 3.2, 4.0])
def test_nothing_moves_on_the_way_there_and_back(scale):
    """Phase of what was restored against the original: below .05 px for every scale and offset of the crop."""
    image = detail(200, 220)
    worst = 0.0
    for top, left, height, width in ((20, 30, 100, 110), (33, 41, 97, 105), (0, 0, 120, 101), (71, 92, 129, 128)):
        mask = boxes((top, left, top + height, left + width), height=200, width=220)
        side = math.sqrt(height * width) * 1.2
        made = cropped(image, mask, context=1.2, resolution=round(side * scale), multiple=8)
        rect = made.crop.pieces[0].rect
        assert made.crop.scaled[1] / rect.width == pytest.approx(scale, rel=0.2)
        result, _, _ = back(image, made.images, made.masks, made.crop)
        inside = (0, slice(top, top + height), slice(left, left + width), 0)
        worst = max(worst, float(np.abs(displacement(image[inside], result[inside])).max()))
        # And where the crop lies: the scaled crop, put back by its rectangle alone.
        assert result[inside].sub(image[inside]).square().mean().sqrt() < (0.09 if scale < 0.6 else 0.02)
    assert worst < 0.05, worst


def test_at_scale_1_the_round_trip_is_the_picture_bit_for_bit():
    image = noise(0)
    made = cropped(image, boxes((20, 30, 60, 70)), resolution=0)
    result, after, notes = back(image, made.images, made.masks, made.crop, feather=6, match_color=1.0)
    assert torch.allclose(result, image, atol=1e-6)
    assert notes[0].startswith("As decoded and scaled back, 0 of ")
    assert after.changed == 0


def test_the_generated_part_is_seen_in_the_mask_and_fades_in():
    image = torch.zeros(1, 90, 120, 3)
    made = cropped(image, boxes((20, 30, 70, 90)))
    full, _, _ = back(image, torch.ones_like(made.images), made.masks, made.crop)
    assert torch.allclose(full[0, ..., 0], boxes((20, 30, 70, 90))[0], atol=1e-5)
    made = cropped(image, boxes((20, 30, 70, 90)), resolution=0)  # at scale 1
    soft, _, _ = back(image, torch.ones_like(made.images), made.masks, made.crop, feather=8)
    row = soft[0, 45, :, 0]
    assert float(row[:30].max()) == 0.0
    assert bool((row[30:40].diff() >= 0).all())
    assert 0.0 < float(row[30]) < 0.2
    assert float(row[39:80].min()) == pytest.approx(1.0, abs=1e-5)


def test_a_mask_at_the_border_of_the_crop_fades_and_at_the_border_of_the_picture_does_not():
    image = torch.zeros(1, 90, 120, 3)
    made = cropped(image, boxes((0, 30, 40, 70)), context=1.0)
    result, _, _ = back(image, torch.ones_like(made.images), torch.ones_like(made.masks), made.crop, feather=8)
    rect = made.crop.pieces[0].rect
    assert rect.top == 0
    middle = rect.left + rect.width // 2
    assert float(result[0, 0, middle, 0]) == pytest.approx(1.0, abs=1e-5)
    assert float(result[0, rect.bottom - 1, middle, 0]) < 0.2
    assert float(result[0, 20, rect.left, 0]) < 0.2


def test_overlapping_crops_are_mixed_by_the_distance_from_their_edges():
    """By hand: on the overlap's row the shares are own / (own + other) with the distances to each mask's edge."""
    image = torch.zeros(1, 90, 120, 3)
    masks = torch.stack((boxes((20, 20, 60, 70))[0], boxes((20, 50, 60, 100))[0]))
    made = cropped(image, masks, each=True, resolution=0, multiple=1, context=1.0)
    generated = torch.zeros_like(made.images)
    generated[0], generated[1] = 0.2, 0.8
    result, after, notes = back(image, generated, made.masks, made.crop)
    row = result[0, 40, :, 0]
    assert torch.allclose(row[20:50], torch.tensor(0.2))
    assert torch.allclose(row[70:100], torch.tensor(0.8))
    for x in range(50, 70):  # row 40 lies 20 or 21 px from the upper and lower edge
        first, second = min(70 - x, 20), min(x - 49, 20)
        assert float(row[x]) == pytest.approx((0.2 * first + 0.8 * second) / (first + second), abs=0.004)
    assert bool((row[45:75].diff() >= -1e-6).all())
    assert after.changed == 0
    assert "800 px lie in several crops and were mixed by the distance from their edges." in notes
    other, _, _ = back(image, generated, made.masks, made.crop, feather=8)
    assert float(other[0, 40, 30:90, 0].min()) > 0.19  # no seam to the original where one crop ends in the other


def test_the_mask_of_the_whole_picture_is_known_by_its_size_or_content():
    image, mask = noise(0, height=64, width=64), boxes((10, 10, 30, 30), height=64, width=64)
    made = cropped(image, mask)  # both are 64 x 64
    assert made.crop.scaled == (64, 64)
    for given in (mask, made.masks):
        result, after, _ = back(image, torch.zeros_like(made.images), given, made.crop)
        assert after.outside == 64 * 64 - 400
        assert torch.equal(result == 0, (mask > 0)[..., None].expand_as(result))
    parts = boxes((5, 5, 20, 15), (5, 20, 20, 30))
    made = cropped(noise(0), parts, each=True)
    result, after, _ = back(noise(0), torch.zeros_like(made.images), parts, made.crop)
    assert after.outside == 90 * 120 - 300


def test_repeated_latents_give_a_result_each():
    image = noise(0, batch=2)
    made = cropped(image, boxes((20, 30, 40, 50)))
    generated = torch.cat((torch.zeros_like(made.images), torch.ones_like(made.images)))
    result, after, notes = back(image, generated, made.masks, made.crop)
    assert result.shape[0] == 4
    assert [float(one[30, 40, 0]) for one in result] == pytest.approx([0.0, 0.0, 1.0, 1.0])
    assert after.changed == 0
    assert "4 generated pictures for 2 crops: 2 results, one after the other." in notes


def test_a_crop_that_was_scaled_on_and_one_that_the_vae_cropped():
    image = detail(90, 120)
    made = cropped(image, boxes((20, 30, 60, 70)), resolution=120)
    large = F.interpolate(made.images.movedim(-1, 1), scale_factor=2, mode="bicubic").movedim(1, -1)
    result, after, notes = back(image, large, made.masks, made.crop)
    assert after.changed == 0
    assert float((result - image).abs().max()) < 0.03
    assert any("240x240 px and the crop 120x120 px: it was scaled" in note for note in notes)
    cropped_by_vae = made.images[:, 4:-4, 4:-4]  # 112 is 7 cells of 16 px
    result, after, notes = back(image, cropped_by_vae, made.masks, made.crop)
    assert after.changed == 0
    assert float((result - image).abs().max()) < 0.03
    assert any("laid into the middle, as a VAE crops to whole cells" in note for note in notes)


def test_colours_are_matched_at_the_border_in_the_crop():
    image = detail(90, 120) * 0.5 + 0.2
    made = cropped(image, boxes((30, 40, 60, 80)), resolution=96, context=2.0)
    result, _, notes = back(image, made.images + 0.1, made.masks, made.crop, match_color=1.0)
    assert float((result - image)[0, 30:60, 40:80].mean().abs()) < 0.003
    assert any(note.startswith("Colours were matched at the border: mean change 0.1") for note in notes)


def test_alpha_of_the_original_stays():
    image = noise(0, channels=4)
    made = cropped(image, boxes((20, 30, 40, 50)))
    result, _, _ = back(image, torch.zeros_like(made.images[..., :3]), made.masks, made.crop)
    assert torch.equal(result[..., 3], image[..., 3])
    assert float(result[0, 25:35, 35:45, :3].max()) == 0.0


def test_whole_masks_belong_to_their_pictures_where_there_are_as_many_crops():
    """Two parts in the first picture and none in the second are two crops, as many as the pictures."""
    image = noise(0, batch=2)
    masks = torch.cat((boxes((5, 5, 25, 25), (50, 70, 80, 100)), boxes()))
    made = cropped(image, masks, each=True)
    assert [piece.picture for piece in made.crop.pieces] == [0, 0]
    result, after, _ = back(image, torch.zeros_like(made.images), masks, made.crop)
    assert torch.equal((result == 0).all(-1), masks > 0)
    assert after.outside == 2 * 90 * 120 - 400 - 900


def test_the_fade_is_as_wide_as_in_an_enlarged_crop():
    """By hand: 8 px of a crop that was enlarged 4 times are 2 px of the picture. A reduced one fades over 8 px."""
    for side, resolution, width in ((32, 128, 2), (128, 64, 8)):
        image = torch.zeros(1, 300, 300, 3)
        mask = boxes((100, 100, 100 + side, 100 + side), height=300, width=300)
        made = cropped(image, mask, resolution=resolution, context=1.0)
        result, *_ = back(image, torch.ones_like(made.images), made.masks, made.crop, feather=8)
        row = result[0, 100 + side // 2, :, 0]
        assert float(row[:100].max()) == 0.0
        assert 0.0 < float(row[100]) < 0.5
        assert float(row[100 + width - 2]) < 0.999
        assert float(row[100 + width + 1 : 100 + side // 2].min()) == pytest.approx(1.0, abs=1e-5)


def test_a_small_place_is_seen_and_a_fade_that_hides_one_is_named():
    """A place of 6 px is enlarged 8 times, so a fade of 8 px is 1 px and shows all but its edge.

    At scale 1 a fade of 16 px from both sides leaves nothing of it.
    """
    image, mask = torch.zeros(1, 90, 120, 3), boxes((40, 50, 46, 56))
    made = cropped(image, mask, resolution=512, context=1.5)
    result, _, notes = back(image, torch.ones_like(made.images), made.masks, made.crop, feather=8)
    assert float(result[0, 42:44, 52:54].min()) > 0.99
    assert float(result[0, 41:45, 51:55].min()) > 0.5
    assert not any("lower feather" in note for note in notes)
    made = cropped(image, mask, resolution=0)
    result, _, notes = back(image, torch.ones_like(made.images), made.masks, made.crop, feather=16)
    assert torch.equal(result, image)
    assert (
        "The mask is so narrow that feather leaves less than half of the new picture anywhere: lower feather." in notes
    )


def test_a_new_border_goes_through_a_crop():
    """Fill Masked, Crop to Mask and Restore Unmasked together: the old picture stays bit for bit, the border is new."""
    image = noise(0) * 0.5
    filled, mask, _ = fill_masked(image, None, FillSettings(right=48, top=16))
    assert filled.shape == (1, 106, 168, 3)
    made = cropped(filled, mask, resolution=128, context=1.3)
    result, after, _ = back(filled, torch.ones_like(made.images), made.masks, made.crop, feather=6)
    assert after.changed == 0
    assert torch.equal(result[:, 16:, :120], image)
    assert float(result[0, :6].min()) > 0.99
    assert float(result[0, :, 130:].min()) > 0.99


def test_colours_of_a_crop_are_matched_before_it_is_put_back():
    """A tint of the decoded crop, measured against the crop where the mask is black, is gone in the picture."""
    image = detail(90, 120) * 0.5 + 0.2
    made = cropped(image, boxes((30, 40, 60, 80)), resolution=96, context=2.0)
    tinted = made.images * 0.9 + torch.tensor([0.05, 0.0, 0.08])
    matched, _ = match_colors(tinted, made.images, 1.0 - made.masks, MatchSettings())
    result, *_ = back(image, matched, made.masks, made.crop)
    assert float((result - image).abs().max()) < 0.03
    assert float((back(image, tinted, made.masks, made.crop)[0] - image)[0, 30:60, 40:80].abs().mean()) > 0.025
