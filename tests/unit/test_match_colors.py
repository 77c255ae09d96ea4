"""Matching a whole picture's colours: three methods against arithmetic by hand, and what is refused."""

import pytest
import torch
from bespoke.nodes.inpaint.colors.match import KNOTS, METHODS, MatchSettings, match_colors, through_quantiles
from bespoke.training.errors import InputError


def picture(seed=0, batch=1, height=96, width=128, channels=3):
    generator = torch.Generator().manual_seed(seed)
    rough = torch.rand(batch, channels, height // 8, width // 8, generator=generator)
    smooth = torch.nn.functional.interpolate(rough, (height, width), mode="bicubic").clamp(0.1, 0.85)
    return (smooth + 0.04 * torch.rand(batch, channels, height, width, generator=generator)).movedim(1, -1)


def match(image, reference, mask=None, **settings):
    return match_colors(image, reference, mask, MatchSettings(**settings))


def drift(shape):
    """A smooth difference of colour that changes over the picture."""
    y, x = torch.meshgrid(torch.linspace(0, 1, shape[0]), torch.linspace(0, 1, shape[1]), indexing="ij")
    return torch.stack((0.03 * x, -0.04 * y, 0.02 * (x - y)), -1)[None]


def repainted():
    """(a mask of what was repainted, that part's new colour)."""
    mask = torch.zeros(1, 96, 128)
    mask[:, 32:64, 40:80] = 1.0
    return mask, torch.tensor([0.1, 0.75, 0.2])


@pytest.mark.parametrize("method", METHODS)
def test_a_picture_in_the_right_colours_stays(method):
    image = picture()
    out, _ = match(image, image, method=method)
    assert float((out - image).abs().max()) < 1e-6


@pytest.mark.parametrize("method", METHODS)
def test_a_tint_is_taken_off(method):
    """The drift that reports name, such as darker and towards magenta: x -> .94 x + (.02, -.01, .02)."""
    reference = picture()
    out, notes = match(0.94 * reference + torch.tensor([0.02, -0.01, 0.02]), reference, method=method)
    assert float((out - reference).abs().max()) < (0.02 if method == "smooth field" else 0.002)
    assert float((out - reference).mean((0, 1, 2)).abs().max()) < 0.1 / 255
    assert any(note.startswith(f"Matched by {method}, by 1:") for note in notes)


@pytest.mark.parametrize("method", METHODS)
def test_what_was_repainted_does_not_count_and_takes_part(method):
    """With the mask the outside's tint is found exactly; the new content gets the same change and no other."""
    reference, (mask, colour) = picture(), repainted()
    clean = reference.clone()
    clean[mask > 0] = colour
    given = 0.94 * clean + 0.02
    out, _ = match(given, reference, 1.0 - mask, method=method)
    outside = mask == 0
    limit = 0.03 if method == "smooth field" else 0.002
    assert float((out - reference)[outside].abs().max()) < limit
    assert float((out[mask > 0] - colour).abs().max()) < 0.05
    blind, _ = match(given, reference, method=method)
    assert float((blind - reference)[outside].abs().mean()) > float((out - reference)[outside].abs().mean())


def test_the_smooth_field_takes_off_what_differs_from_place_to_place():
    reference = picture()
    given = reference + drift((96, 128))
    errors = {method: float((match(given, reference, method=method)[0] - reference).abs().max()) for method in METHODS}
    assert errors["smooth field"] < 0.004
    assert errors["mean and deviation"] > 0.015


def test_mean_and_deviation_are_the_references():
    image, reference = picture(1), 0.5 * picture(2) + 0.3
    out, _ = match(image, reference)
    assert torch.allclose(out.mean((0, 1, 2)), reference.mean((0, 1, 2)), atol=1e-4)
    assert torch.allclose(out.std((0, 1, 2)), reference.std((0, 1, 2)), atol=1e-3)


def test_the_histogram_is_the_references():
    """Each quantile of the result is the reference's, for pictures of different content."""
    image, reference = picture(1), picture(2) ** 2
    out, _ = match(image, reference, method="histogram")
    shares = torch.linspace(0, 1, 21)
    for channel in range(3):
        found, wanted = (torch.quantile(each[..., channel].flatten(), shares) for each in (out, reference))
        assert torch.allclose(found, wanted, atol=0.01)


def test_the_histograms_curve_rises_and_goes_on_beyond_what_it_was_measured_on():
    """By hand: a plain of equal values goes to the mean of its share; beyond the ends the slope is 1."""

    def histogram(channel, given, wanted):
        shares = torch.linspace(0, 1, KNOTS + 1, dtype=torch.float64)
        return through_quantiles(channel, *(torch.quantile(each.double(), shares) for each in (given, wanted)))

    given, wanted = torch.full((100,), 0.5), torch.linspace(0.2, 0.4, 100)
    assert torch.allclose(histogram(torch.tensor([[0.5, 0.6]]), given, wanted), torch.tensor([[0.3, 0.4]]), atol=1e-6)
    given = torch.linspace(0.4, 0.6, 100)
    curve = histogram(torch.linspace(0, 1, 50)[None], given, wanted)[0]
    assert bool((curve[1:] >= curve[:-1]).all())
    assert torch.allclose(histogram(torch.tensor([[0.3, 0.7]]), given, wanted), torch.tensor([[0.1, 0.5]]), atol=1e-6)


def test_many_pixels_and_a_mask_of_columns_are_measured(monkeypatch):
    """Of more pixels than are sorted a share is taken; a mask of every second column, which that share would miss."""
    image, reference = picture(1), picture(2) ** 2
    mask = torch.zeros(1, 96, 128)
    mask[..., 1::2] = 1.0
    for where in (None, mask):
        exact, _ = match(image, reference, where, method="histogram")
        monkeypatch.setattr("bespoke.nodes.inpaint.colors.match.MOST_SORTED", 3000)
        thinned, _ = match(image, reference, where, method="histogram")
        monkeypatch.undo()
        assert 0 < float((exact - thinned).abs().mean()) < 0.005


def test_amount_and_an_alpha_channel():
    image, reference = picture(1, channels=4), picture(2)
    full, _ = match(image, reference)
    assert torch.equal(full[..., 3], image[..., 3])
    half, _ = match(image, reference, amount=0.5)
    assert torch.allclose(half, (image + full) / 2, atol=1e-6)
    none, _ = match(image, reference, amount=0.0)
    assert torch.equal(none, image)


def test_batches_and_other_sizes():
    images, references = picture(1, batch=3), picture(2, batch=3)
    together, _ = match(images, references)
    assert torch.allclose(together[1:2], match(images[1:2], references[1:2])[0])
    one, _ = match(images, references[:1])
    assert torch.allclose(one[2:], match(images[2:], references[:1])[0])
    # Without places to compare a reference may have any size; with them it is resized.
    match(images, picture(3, height=64, width=64))
    _, notes = match(images, picture(3, height=192, width=256), method="smooth field")
    assert "The reference is 256x192 px and the picture 128x96 px: the reference was resized." in notes


def test_pixels_that_are_no_numbers_do_not_spread():
    image, reference = picture(), picture() * 0.9
    image[0, 10, 10], reference[0, 50, 50] = torch.nan, torch.inf
    for method in METHODS:
        out, _ = match(image, reference, method=method)
        assert int((~torch.isfinite(out)).any(-1).sum()) == 1


def test_a_flat_picture_is_moved_and_not_stretched():
    image, reference = torch.full((1, 32, 32, 3), 0.4), picture(height=32, width=32)
    for method in METHODS[::2]:
        out, _ = match(image, reference, method=method)
        assert torch.allclose(out.mean((0, 1, 2)), reference.mean((0, 1, 2)), atol=1e-3)
        assert float(out.std((0, 1, 2)).max()) < 1e-5


@pytest.mark.parametrize(
    ("inputs", "settings", "words"),
    [
        ({"mask": torch.zeros(1, 96, 128)}, {}, "too few pixels can be compared.*make the mask white"),
        ({"mask": torch.ones(1, 96, 96)}, {}, "the mask is 96x96 px and the picture 128x96 px.*give the mask at"),
        ({"mask": torch.ones(2, 96, 128)}, {}, "2 masks for 1 pictures; give one"),
        ({"reference": picture(batch=2)}, {}, "2 references for 1 pictures; give one"),
        ({"reference": torch.zeros(96, 128, 3)}, {}, "reference has the shape .*give an IMAGE"),
        ({"reference": picture(height=128, width=64)}, {"method": "smooth field"}, "of other proportions.*crop one"),
        ({"reference": torch.full((1, 96, 128, 3), torch.nan)}, {}, "hold no numbers"),
        ({}, {"amount": -1}, "amount is -1; give 0"),
        ({}, {"method": "lab"}, "method is 'lab'; give one of mean and deviation, smooth field, histogram"),
    ],
)
def test_what_cannot_be_matched_is_refused_with_the_mend(inputs, settings, words):
    given = {"image": picture(), "reference": picture(2), "mask": None} | inputs
    with pytest.raises(InputError, match=f"(?s){words}"):
        match(**given, **settings)
