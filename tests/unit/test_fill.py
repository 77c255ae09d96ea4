"""Filling masked places and new borders: what stays, what the fill is, and what is refused."""

import pytest
import torch
from bespoke.nodes.inpaint.fill.carry import carry
from bespoke.nodes.inpaint.fill.contents import FILLS
from bespoke.nodes.inpaint.fill.fill import FillSettings, fill_masked
from bespoke.training.errors import InputError


def picture(seed=0, batch=1, height=48, width=64, channels=3):
    """Smooth random pictures with a little grain."""
    generator = torch.Generator().manual_seed(seed)
    rough = torch.rand(batch, channels, height // 8, width // 8, generator=generator)
    smooth = torch.nn.functional.interpolate(rough, (height, width), mode="bicubic").clamp(0.05, 0.95)
    grain = 0.02 * torch.rand(batch, channels, height, width, generator=generator)
    return (smooth + grain).movedim(1, -1).contiguous()


def square(top=16, bottom=32, left=24, right=48, height=48, width=64):
    mask = torch.zeros(1, height, width)
    mask[:, top:bottom, left:right] = 1.0
    return mask


MASKS = {
    "square": square(),
    "at the border": square(top=0, left=0),
    "two holes": square(4, 12, 4, 20) + square(30, 48, 40, 64),
    "one pixel": square(20, 21, 30, 31),
    "feathered": square(14, 34, 22, 50) * 0.5 + square() * 0.5,
    "nearly all": 1.0 - square(20, 22, 30, 33),
}


def fill(image, mask=None, **settings):
    return fill_masked(image, mask, FillSettings(**settings))


@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS.keys())
@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("kind", FILLS)
def test_black_stays_bit_for_bit_and_the_rest_is_a_picture(kind, channels, mask):
    image = picture(channels=channels)
    before = image.clone()
    out, grown, _ = fill(image, mask, fill=kind, seed=3)
    assert torch.equal(image, before)
    assert torch.equal(out[mask == 0], image[mask == 0])
    assert torch.equal(grown, mask)
    assert torch.isfinite(out).all()
    assert 0.0 <= float(out.min()) <= float(out.max()) <= 1.0
    assert not torch.equal(out, image)


@pytest.mark.parametrize("kind", FILLS)
def test_a_border_is_added_on_each_side_and_masked(kind):
    image, mask = picture(batch=2), square()
    out, grown, notes = fill(image, mask, fill=kind, left=8, top=16, right=24, bottom=32)
    assert out.shape == (2, 48 + 48, 64 + 32, 3)
    assert grown.shape == (1, 96, 96)
    inner = grown[:, 16:64, 8:72].clone()
    assert torch.equal(inner, mask)
    grown[:, 16:64, 8:72] = 1.0
    assert bool((grown == 1.0).all())
    assert torch.equal(out[:, 16:64, 8:72][inner.expand(2, -1, -1) == 0], image[mask.expand(2, -1, -1) == 0])
    assert f"The picture grew from 64x48 to 96x96 px; the new border is {kind}." in notes


def test_carry_solves_laplaces_equation():
    """Oracle: x^2 - y^2, e^x cos y and x are harmonic, so their values on the edge give them inside."""
    y, x = torch.meshgrid(torch.linspace(-1, 1, 128), torch.linspace(-1, 1, 128), indexing="ij")
    values = torch.stack((x * x - y * y, torch.exp(x) * torch.cos(y), x))
    known = x * x + y * y > 0.36
    out = carry(values, known)
    assert torch.equal(out[:, known], values[:, known])
    assert float((out - values).abs().max()) < 0.01  # of a range of 2
    assert float((out - values)[:, ~known].abs().mean()) < 0.003


@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS.keys())
def test_carry_invents_no_colour(mask):
    """Each carried value lies between the least and the largest known one: a mean of means does."""
    image = picture(seed=2)
    known = mask[0] == 0
    out = carry(image[0].movedim(-1, 0), known)
    for channel, given in zip(out, image[0].unbind(-1), strict=True):
        assert float(given[known].min()) - 1e-5 <= float(channel.min())
        assert float(channel.max()) <= float(given[known].max()) + 1e-5


@pytest.mark.parametrize("kind", ["carry", "blur", "noise"])
def test_the_fill_meets_the_picture_at_the_edge(kind):
    """The step across the edge of the hole is no larger than twice the step between neighbours next to it."""
    y, x = torch.meshgrid(torch.linspace(0, 1, 96), torch.linspace(0, 1, 96), indexing="ij")
    image = torch.stack((0.2 + 0.6 * x, 0.8 - 0.5 * y, 0.5 + 0.3 * torch.sin(5 * x) * y), -1)[None]
    mask = square(32, 64, 32, 64, 96, 96)
    out, *_ = fill(image, mask, fill=kind, seed=1)
    across = (out[:, 32:64, 32] - out[:, 32:64, 31]).abs().mean()
    inside = (out[:, 32:64, 34:63] - out[:, 32:64, 33:62]).abs().mean()
    assert float(across) < 2.0 * float(inside)
    flat, *_ = fill(image, mask, fill="neutral")
    assert float((flat[:, 32:64, 32] - flat[:, 32:64, 31]).abs().mean()) > 2.0 * float(across)


def test_a_plain_picture_grows_by_the_same_colour():
    image = torch.full((1, 40, 40, 3), 0.3)
    for kind in ("carry", "blur", "mean", "noise"):
        out, *_ = fill(image, None, fill=kind, left=40, bottom=24)
        assert float((out - 0.3).abs().max()) < 1e-5, kind


def test_a_border_continues_what_is_next_to_it():
    """Rows of one colour each go on into the border beside them; far off they even out."""
    image = (torch.arange(48) // 16 / 2.0)[None, :, None, None].expand(1, 48, 64, 3)
    out, *_ = fill(image, None, right=64)
    for row, value in ((4, 0.0), (24, 0.5), (44, 1.0)):
        assert float((out[0, row, 64:66] - value).abs().max()) < 0.1
    steps = (out[0, 1:, 64:] - out[0, :-1, 64:]).abs().amax((0, 2))
    assert float(steps[0]) > float(steps[20]) > float(steps[60])


def test_mean_is_the_mean_of_what_is_not_masked():
    image, mask = picture(), square()
    out, *_ = fill(image, mask, fill="mean")
    wanted = image[mask == 0].mean(0)
    assert torch.allclose(out[mask > 0], wanted.expand(int(mask.sum()), 3), atol=1e-6)
    grown, *_ = fill(image, mask, fill="mean", left=8)
    assert torch.allclose(grown[0, 20, :8], wanted.expand(8, 3), atol=1e-6)


def test_noise_has_the_pictures_colours_and_is_the_seeds():
    """Its mean and covariance are those of the rest, within what one draw of few large patches leaves."""
    image = picture(height=256, width=256, batch=1, seed=5)
    mask = square(32, 224, 32, 224, 256, 256)
    out, *_ = fill(image, mask, fill="noise", seed=1)
    again, *_ = fill(image, mask, fill="noise", seed=1)
    other, *_ = fill(image, mask, fill="noise", seed=2)
    assert torch.equal(out, again)
    assert not torch.equal(out, other)
    rest, made = image[mask == 0], out[mask > 0]
    assert float((rest.mean(0) - made.mean(0)).abs().max()) < 0.12
    ratio = made.std(0) / rest.std(0)
    assert 0.6 < float(ratio.min()) <= float(ratio.max()) < 1.5
    both, *_ = fill(torch.cat((image, image)), torch.cat((torch.zeros_like(mask), mask)), fill="noise", seed=1)
    assert torch.equal(both[1:], other)  # each picture of a batch has a seed of its own
    for kind in ("carry", "blur", "mean", "neutral"):
        assert torch.equal(fill(image, mask, fill=kind, seed=1)[0], fill(image, mask, fill=kind, seed=2)[0])


def test_blur_keeps_the_colours_under_the_mask_and_none_of_the_shapes():
    image = torch.full((1, 96, 96, 3), 0.5)
    image[:, 32:64, 32:64] = torch.tensor([0.9, 0.2, 0.1])
    image[:, 32:64, 32:64:4] = 0.0  # stripes
    mask = square(24, 72, 24, 72, 96, 96)
    out, *_ = fill(image, mask, fill="blur")
    middle = out[0, 40:56, 40:56]
    assert float(middle[..., 0].mean()) > float(middle[..., 2].mean()) + 0.2
    assert float((middle[:, 1:] - middle[:, :-1]).abs().max()) < 0.02


def test_amount_mixes_and_grey_masks_mix_again():
    image, mask = picture(), square()
    full, *_ = fill(image, mask)
    half, *_ = fill(image, mask, amount=0.5)
    assert torch.allclose(half, (image + full) / 2, atol=1e-6)
    assert torch.allclose(fill(image, mask * 0.5)[0], half, atol=1e-6)
    none, _, notes = fill(image, mask, amount=0.0)
    assert torch.equal(none, image)
    assert "amount is 0: what was under the mask is unchanged." in notes
    # In a border there was nothing: the picture's continuation takes its place.
    flat, *_ = fill(image, None, fill="neutral", amount=0.5, right=8)
    assert torch.allclose(flat[:, :, 64:], (fill(image, None, right=8)[0][:, :, 64:] + 0.5) / 2, atol=1e-6)


def test_a_filled_place_is_opaque_and_hidden_colours_are_not_used():
    image = picture(channels=4)
    image[..., 3] = 1.0
    image[:, :, :20, 3] = 0.0
    image[:, :, :20, :3] = torch.tensor([1.0, 0.0, 1.0])  # what a painting program leaves in transparent places
    mask = square(0, 48, 16, 40)
    out, *_ = fill(image, mask, left=8)
    assert bool((out[:, :, 24:48, 3] == 1.0).all())
    assert bool((out[:, :, :8, 3] == 1.0).all())
    assert torch.equal(out[:, :, 8:24], image[:, :, :16])
    shown = image[:, :, 40:, :3]
    assert float(out[:, :, 24:48, :3].max()) <= float(shown.max()) + 1e-5
    assert float(out[:, :, 24:48, 1].min()) >= float(shown[..., 1].min()) - 1e-5


def test_each_picture_of_a_batch_is_filled_by_its_own_mask_or_the_one_for_all():
    images, masks = picture(batch=2), torch.cat((square(), square(2, 10, 2, 10)))
    together, grown, _ = fill(images, masks, left=8)
    for i in range(2):
        alone, one, _ = fill(images[i : i + 1], masks[i : i + 1], left=8)
        assert torch.equal(together[i : i + 1], alone)
        assert torch.equal(grown[i : i + 1], one)
    shared, one, _ = fill(images, masks[:1])
    assert len(one) == 1
    assert torch.equal(shared[1], fill(images[1:], masks[:1])[0][0])


def test_masks_are_united_for_one_picture_and_repeated_for_more():
    masks = torch.cat((square(), square(2, 10, 2, 10)))
    one, grown, notes = fill(picture(), masks)
    assert torch.equal(grown, masks.amax(0, keepdim=True))
    assert torch.equal(one, fill(picture(), grown)[0])
    assert "2 masks for one picture: they were united." in notes
    _, grown, notes = fill(picture(batch=4), masks)
    assert torch.equal(grown, masks.repeat(2, 1, 1))
    assert "2 masks for 4 pictures: repeated in order." in notes


def test_an_empty_mask_among_others_leaves_its_picture_and_is_counted():
    images, masks = picture(batch=2), torch.cat((square(), torch.zeros(1, 48, 64)))
    out, _, notes = fill(images, masks)
    assert torch.equal(out[1], images[1])
    assert "Empty masks: 1 of 2. Nothing changes there." in notes


def test_pixels_that_are_no_numbers_are_not_carried_on():
    image = picture()
    image[0, 15, 24:30] = torch.nan
    out, *_ = fill(image, square())
    assert torch.isfinite(out[square() > 0]).all()
    assert torch.isnan(out[0, 15, 24:30]).all()


def test_sizes_that_a_vae_would_crop_are_named():
    *_, notes = fill(picture(), None, left=5, top=3)
    assert any("69x51 px are not whole cells of 8 px" in note for note in notes)
    assert any("give 3 px more to left or right and 5 px more to top or bottom." in note for note in notes)
    *_, notes = fill(picture(), None, left=8)
    assert not any("whole cells" in note for note in notes)


def test_a_mask_of_the_same_proportions_is_stretched_and_load_images_black_one_is_none():
    half = square(8, 16, 12, 24, 24, 32)
    _, grown, notes = fill(picture(), half)
    assert torch.equal(grown, square())
    assert "The mask is 32x24 px and the picture 64x48 px: it was stretched to fit." in notes
    _, grown, _ = fill(picture(), torch.zeros(1, 64, 64), left=8)
    assert float(grown[..., 8:].max()) == 0.0


@pytest.mark.parametrize(
    ("mask", "settings", "words"),
    [
        (None, {}, "no mask is wired in and no border is asked for.*paint the mask white"),
        (torch.zeros(1, 48, 64), {}, "the mask is black everywhere.*give left, top, right or bottom"),
        (square(height=64, width=64), {}, "the mask is 64x64 px and the picture 64x48 px, of other proportions; give"),
        (torch.ones(1, 48, 64), {}, "covers the whole picture, and carry takes.*shrink the mask, or choose blur or"),
        (torch.ones(1, 48, 64), {"fill": "noise", "left": 8}, "covers the whole picture, and noise takes"),
        (torch.ones(3, 48, 64).flip(0), {"batch": 2}, "3 masks for 2 pictures; give one for all or 2"),
        (square() * torch.nan, {"left": 8}, "not numbers"),
        (None, {"left": -8}, "left is -8; give 0 to 8192 px of new border. To cut a border off, use ImageCrop"),
        (None, {"bottom": 9000}, "bottom is 9000; give 0 to 8192"),
        (None, {"left": 8192, "right": 8192, "top": 8192}, "1 picture of 16448x8240 px, 1.6 GB.*give less border"),
        (square(), {"amount": 1.5}, "amount is 1.5; give 0"),
        (square(), {"fill": "telea"}, "fill is 'telea'; give one of carry, blur, mean, noise, neutral"),
    ],
)
def test_what_cannot_be_filled_is_refused_with_the_mend(mask, settings, words):
    settings = dict(settings)
    image = picture(batch=settings.pop("batch", 1))
    with pytest.raises(InputError, match=f"(?s){words}"):
        fill(image, mask, **settings)


def test_an_image_of_another_shape_is_refused():
    with pytest.raises(InputError, match="give an IMAGE"):
        fill(torch.zeros(48, 64, 3), square())


def test_a_line_at_the_old_edge_is_not_carried_into_the_border_where_it_is_masked():
    """Scans and screenshots often have a pale line at the edge, which would become a bar of the same colour."""
    image = torch.full((1, 48, 64, 3), 0.3)
    image[:, :, 62:] = 1.0
    line = square(0, 48, 61, 64)
    carried, *_ = fill(image, None, right=32)
    assert float(carried[:, :, 64:].min()) > 0.9
    out, *_ = fill(image, line, right=32)
    assert float((out[:, :, 61:] - 0.3).abs().max()) < 1e-5


@pytest.mark.parametrize("kind", ["carry", "mean", "noise"])
def test_colours_come_from_afar_where_the_mask_is_in_a_transparent_place(kind):
    """By hand: an object of one colour in a transparent picture is all that is known, so that colour fills the mask."""
    image = torch.zeros(1, 200, 200, 4)
    image[:, :40, :40] = torch.tensor([0.75, 0.25, 0.5, 1.0])
    mask = square(120, 140, 120, 140, 200, 200)
    out, *_ = fill(image, mask, fill=kind)
    assert torch.allclose(out[mask > 0], torch.tensor([0.75, 0.25, 0.5, 1.0]), atol=1e-4)
    assert torch.equal(out[mask == 0], image[mask == 0])
    image[..., 3] = 0.0
    with pytest.raises(InputError, match="what is not masked is fully transparent or holds no numbers, and"):
        fill(image, mask, fill=kind)


@pytest.mark.parametrize("value", [float("inf"), float("-inf"), float("nan")])
@pytest.mark.parametrize("kind", FILLS)
def test_the_fill_of_a_place_without_numbers_is_a_picture(kind, value):
    """An infinite pixel under the mask is at most as bright as white, and at least as dark as black."""
    image, mask = picture(), square()
    image[0, 20, 30] = value
    out, *_ = fill(image, mask, fill=kind, amount=0.5)
    assert 0.0 <= float(out.min()) <= float(out.max()) <= 1.0


def test_pixels_without_numbers_that_are_not_masked_are_counted():
    image = picture()
    image[0, 2, 3] = image[0, 40, 60, 1] = image[0, 20, 30] = float("nan")  # the last is under the mask
    *_, notes = fill(image, square())
    assert notes[-1].startswith("2 px that are not masked are not numbers, and stay so")
    *_, notes = fill(picture(), square())
    assert not any("not numbers" in note for note in notes)
