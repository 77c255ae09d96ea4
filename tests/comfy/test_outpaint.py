"""Fill Masked and Match Colors as nodes, and a picture that grows through the whole chain of nodes."""

import analytic
import pytest
import torch
from bespoke.training.errors import InputError
from seams import decode, encode

pytestmark = pytest.mark.filterwarnings("ignore:To copy construct from a tensor")

FIELD = analytic.Field(16, 16, "natural")
EDGE = 96  # px: what was there of a picture of 128 px


@pytest.fixture(scope="module")
def whole():
    """Two pictures [2, 128, 128, 3] that the model's prior holds."""
    return decode(FIELD.sample(2, 4, 3) / 0.18215)


def grow(run_node, picture, strength=0.9, **blend):
    """(the restored picture, the filled one, latent_mask)."""
    filled, mask, _ = run_node("BespokeFillMasked", image=picture, right=128 - EDGE)
    model, latent, latent_mask, *_ = run_node(
        "BespokeLatentMaskBlend",
        model=analytic.wrap(FIELD.denoise, "flow"),
        latent={"samples": encode(filled)},
        mask=mask,
        **blend,
    )
    none = analytic.conditioning()
    out, *_ = run_node(
        "BespokePartialDenoise",
        model=model,
        positive=none,
        negative=none,
        latent_image=latent,
        strength=strength,
        steps=8,
        cfg=1.0,
        sampler_name="euler",
        scheduler="normal",
        seed=1,
    )
    image, _, changed = run_node(
        "BespokeRestoreUnmasked", generated=decode(out["samples"]), original=filled, mask=latent_mask
    )
    assert changed == 0
    return image, filled, latent_mask


def test_a_picture_grows_and_keeps_what_it_was_bit_for_bit(run_node, whole):
    old = whole[:, :, :EDGE]
    image, filled, latent_mask = grow(run_node, old)
    assert image.shape == whole.shape
    kept = latent_mask[0] == 0
    assert bool(kept[:, : EDGE - 32].all())
    assert not bool(kept[:, EDGE:].any())
    assert torch.equal(image[:, kept], torch.cat((old, filled[:, :, EDGE:]), 2)[:, kept])
    assert float((image - filled)[:, :, EDGE + 8 :].abs().mean()) > 0.01


def test_the_ramp_changes_the_old_picture_the_less_the_farther_away(run_node, whole):
    """The latent's mask is 1 in the border and falls by 8 / (48 + 8) for each cell; so does the change."""
    old = whole[:, :, :EDGE]
    filled, mask, _ = run_node("BespokeFillMasked", image=old, right=128 - EDGE)
    _, latent, *_, report = run_node(
        "BespokeLatentMaskBlend",
        model=analytic.wrap(FIELD.denoise, "flow"),
        latent={"samples": encode(filled)},
        mask=mask,
        feather=0,
        ramp=48,
    )
    row = latent["noise_mask"][0, 0, 4]
    assert torch.allclose(row[12:], torch.ones(4))
    assert torch.allclose(row[5:12], torch.arange(7).float() / 7, atol=1e-6)
    assert report.startswith("Blend: differential")
    image, *_ = grow(run_node, old, strength=1.0, feather=0, ramp=48)
    change = (image - filled).abs().mean((0, 1, 3))[:EDGE].unflatten(0, (-1, 8)).mean(1)  # of each column of cells
    assert float(change[:6].max()) == 0.0
    assert float(change[6:8].mean()) < float(change[8:10].mean()) < float(change[10:12].mean())


def test_errors_name_the_node(run_node, whole):
    with pytest.raises(InputError, match="^Bespoke Fill Masked: the mask is black everywhere"):
        run_node("BespokeFillMasked", image=whole, mask=torch.zeros(1, 128, 128))
    with pytest.raises(InputError, match="^Bespoke Match Colors: 3 references for 2 pictures"):
        run_node("BespokeMatchColors", image=whole, reference=whole[:1].expand(3, -1, -1, -1))


def test_ten_rounds_of_a_drifting_vae_leave_the_colours_outside(run_node, whole):
    """tests/bench/bench_color_drift.py has the small model: here each round darkens and tints by a formula.

    .985 ** 10 alone takes 14 % off. Matched to the first picture where nothing was repainted, the mean colours there
    stay within 1 of 255, by each method.
    """
    mask = torch.zeros(1, 128, 128)
    mask[:, 40:80, 40:80] = 1.0
    tint, new = torch.tensor([0.006, 0.0, 0.008]), whole.flip(2)
    outside = mask[0] == 0
    for method in (None, "mean and deviation", "smooth field", "histogram"):
        image = whole
        for _ in range(10):
            image = torch.where(outside[..., None], image, 0.7 * image + 0.3 * new)
            image = (0.985 * image + tint).clamp(0, 1)
            if method:
                image, _ = run_node("BespokeMatchColors", image=image, reference=whole, mask=1.0 - mask, method=method)
        drift = (255 * (image - whole)[:, outside].mean(1)).abs().mean()
        assert float(drift) < 1.0 if method else float(drift) > 3.0, (method, float(drift))
