"""Crop to Mask and Restore Unmasked as ComfyUI runs them, with the small model between."""

import math

import pytest
import sprites
import torch
from bespoke.training.errors import InputError


@pytest.fixture(scope="module")
def picture():
    """A picture [1, 150, 170, 3] with a small red circle."""
    import numpy as np

    image = torch.full((1, 150, 170, 3), 244 / 255)
    drawn = sprites.image(sprites.Sprite("red", "circle", "white", cx=8.0, cy=8.0, radius=5.0)).resize((36, 36))
    image[:, 60:96, 90:126] = torch.from_numpy(np.array(drawn)).float() / 255
    return image


def box(top=66, left=96, bottom=90, right=120):
    mask = torch.zeros(1, 150, 170)
    mask[:, top:bottom, left:right] = 1.0
    return mask


def repainted(run_node, small, images, masks, prompt="a green cross on white", steps=2):
    """(decoded crops, latent mask)."""
    model, clip, vae = small
    (words,), (nothing,) = (run_node("CLIPTextEncode", clip=clip, text=text) for text in (prompt, ""))
    (latent,) = run_node("VAEEncode", pixels=images, vae=vae)
    patched, masked, latent_mask, *_ = run_node("BespokeLatentMaskBlend", model=model, latent=latent, mask=masks)
    (made,) = run_node(
        "KSampler",
        model=patched,
        seed=1,
        steps=steps,
        cfg=2.0,
        sampler_name="euler",
        scheduler="normal",
        positive=words,
        negative=nothing,
        latent_image=masked,
        denoise=1.0,
    )
    (decoded,) = run_node("VAEDecode", vae=vae, samples=made)
    return decoded, latent_mask


def test_a_crop_is_repainted_and_put_back_with_nothing_else_changed(run_node, small, picture):
    images, masks, crop, preview, report = run_node(
        "BespokeCropToMask", image=picture, mask=box(), resolution=128, vae=small[2]
    )
    assert images.shape == (1, 128, 128, 3)
    assert masks.shape == (1, 128, 128)
    # By hand: 24 px with a context of 1.5 are 36, scaled to 128.
    assert report == "One crop.\n1: 36x36 px at (90, 60), scaled to 128x128 px (x 3.56)."
    assert preview.shape[-1] == 3
    assert 0.0 <= float(preview.min()) <= float(preview.max()) <= 1.0
    decoded, latent_mask = repainted(run_node, small, images, masks)
    result, report, changed = run_node(
        "BespokeRestoreUnmasked", generated=decoded, original=picture, mask=latent_mask, crop=crop
    )
    assert changed == 0
    assert result.shape == picture.shape
    different = (result != picture).any(-1)[0]
    assert bool(different[66:90, 96:120].any())
    different[60:96, 90:126] = False  # the crop
    assert not bool(different.any())
    assert "128x128 px were put back into 36x36 px, 90 px from the left and 60 px from the top." in report
    assert "Restored: 0 of " in report


def test_each_part_of_a_mask_is_repainted_in_one_batch(run_node, small, picture):
    mask = torch.maximum(box(), box(10, 12, 40, 30))
    images, masks, crop, preview, report = run_node(
        "BespokeCropToMask", image=picture, mask=mask, resolution=128, each=True, keep_aspect=False
    )
    assert images.shape == (2, 128, 128, 3)
    assert report.startswith("2 crops, all of one size.\n1: 45x45 px at (0, 2)")
    assert len(preview) == 1
    decoded, latent_mask = repainted(run_node, small, images, masks)
    result, _, changed = run_node(
        "BespokeRestoreUnmasked", generated=decoded, original=picture, mask=latent_mask, crop=crop
    )
    assert changed == 0
    for part in (box(), box(10, 12, 40, 30)):
        assert bool((result != picture)[part > 0].any())


def test_a_resolution_below_what_models_draw_is_named(run_node, picture):
    *_, report = run_node("BespokeCropToMask", image=picture, mask=box(), resolution=16)
    assert "A side of less than 64 px is too small for most models to draw anything: raise resolution" in report
    *_, report = run_node("BespokeCropToMask", image=picture, mask=box(), resolution=64)
    assert "too small" not in report


@pytest.mark.parametrize(("height", "width"), [(1, 2000), (2000, 1), (4, 8192), (1, 1)])
@pytest.mark.parametrize("pad", ["reflect", "none"])
def test_a_picture_of_one_line_is_cropped_and_shown(run_node, height, width, pad):
    image, mask = torch.rand(1, height, width, 3), torch.zeros(1, height, width)
    mask[:, : height // 2 + 1, : width // 2 + 1] = 1.0
    images, masks, crop, preview, _ = run_node("BespokeCropToMask", image=image, mask=mask, resolution=64, pad=pad)
    assert min(preview.shape) >= 1
    result, _, changed = run_node(
        "BespokeRestoreUnmasked", generated=1 - images, original=image, mask=masks, crop=crop, feather=0
    )
    assert changed == 0
    assert torch.equal((result != image).any(-1), mask > 0)


def test_the_multiple_fits_the_vae(run_node, small, picture, monkeypatch):
    vae = small[2]
    monkeypatch.setattr(vae, "downscale_ratio", 32)
    images, *_ = run_node("BespokeCropToMask", image=picture, mask=box(), resolution=100, multiple=12, vae=vae)
    assert images.shape[1] % math.lcm(12, 32) == images.shape[2] % 96 == 0


def test_bypassed_both_nodes_work_on_the_whole_picture(run_node, picture):
    """What a bypassed Crop to Mask passes on: the picture, its mask and no crop."""
    result, _, changed = run_node(
        "BespokeRestoreUnmasked", generated=torch.zeros_like(picture), original=picture, mask=box(), feather=0
    )
    assert changed == 0
    assert torch.equal(result == 0, (box() > 0)[..., None].expand_as(result))


def test_errors_name_the_node_and_the_mend(run_node, picture):
    with pytest.raises(InputError, match=r"^Bespoke Crop to Mask: the mask is empty, so there is nothing to crop"):
        run_node("BespokeCropToMask", image=picture, mask=torch.zeros(1, 150, 170))
    _, masks, crop, *_ = run_node("BespokeCropToMask", image=picture, mask=box())
    with pytest.raises(InputError, match=r"^Bespoke Restore Unmasked: the crop is of another picture of the same size"):
        run_node(
            "BespokeRestoreUnmasked",
            generated=torch.zeros(1, 1024, 1024, 3),
            original=1 - picture,
            mask=masks,
            crop=crop,
        )
