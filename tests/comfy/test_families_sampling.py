"""Partial denoise and mask blend on every family against KSampler, bit for bit, also on latents with frames."""

import families
import pytest
import torch

# On some processors a U-Net's output depends slightly on the batch size, so it is the same for every call here.
SLOW = {"sdxl_inpainting", "sdxl_refiner", "flux_fill", "lumina2"}
each = pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.slow) if n in SLOW else n for n in families.FAMILIES]
)
SETTINGS = dict(seed=7, steps=4, cfg=2.0, sampler_name="euler", scheduler="normal")


@pytest.fixture
def models(comfyui, name):
    return families.made(name)


@pytest.fixture
def wires(run_node, models):
    """(model, {"positive", "negative"}, latent); three frames where the family has frames."""
    model, clip, _ = models
    conds = {
        side: run_node("CLIPTextEncode", clip=clip, text=text)[0]
        for side, text in (("positive", "a red circle"), ("negative", ""))
    }
    shape = families.latent_shape(model.model, frames=3)
    return model, conds, {"samples": torch.randn(1, *shape, generator=torch.Generator().manual_seed(2))}


def ksampler(run_node, model, conds, latent, **changes):
    return run_node("KSampler", model=model, latent_image=latent, **SETTINGS | {"denoise": 1.0} | conds | changes)[0][
        "samples"
    ]


@each
def test_partial_denoise_is_ksampler(run_node, wires, name):
    model, conds, latent = wires

    def partial(strength, **changes):
        out, *_, report = run_node(
            "BespokePartialDenoise", model=model, latent_image=latent, strength=strength, **SETTINGS | conds | changes
        )
        return out["samples"], report

    assert torch.equal(partial(0.0)[0], latent["samples"])
    core = ksampler(run_node, model, conds, latent)
    assert torch.isfinite(core).all()
    assert core.shape == latent["samples"].shape
    assert torch.equal(partial(1.0)[0], core)
    assert torch.equal(partial(0.5, contract="comfy")[0], ksampler(run_node, model, conds, latent, denoise=0.5))
    half, report = partial(0.5)
    assert torch.isfinite(half).all()
    assert "% of the variance is noise" in report
    near, far = (float((x - latent["samples"]).norm()) for x in (half, core))
    assert 0.0 < near < far


@each
@pytest.mark.parametrize("blend", ["re-inject", "prediction"])
def test_outside_the_mask_the_latent_is_the_original(run_node, wires, name, blend):
    model, conds, latent = wires
    mask = torch.zeros(1, 64, 96)
    mask[:, 16:40, 24:72] = 1.0
    patched, masked, *_ = run_node(
        "BespokeLatentMaskBlend", model=model, latent=latent, mask=mask, blend=blend, grow=0, feather=0
    )
    result = ksampler(run_node, patched, conds, masked)
    noise_mask = masked["noise_mask"]
    assert noise_mask.ndim == latent["samples"].ndim
    inside = noise_mask.expand_as(result) > 0
    assert 0 < int(inside.sum()) < inside.numel()
    assert torch.isfinite(result).all()
    assert float((result - latent["samples"]).abs().masked_fill(inside, 0.0).max()) == 0.0
    assert bool((result != latent["samples"])[inside].any())
    # A full mask equals no mask, for an inpainting checkpoint too.
    patched, masked, *_ = run_node(
        "BespokeLatentMaskBlend", model=model, latent=latent, mask=torch.ones(1, 64, 96), blend=blend, grow=0, feather=0
    )
    assert torch.equal(ksampler(run_node, patched, conds, masked), ksampler(run_node, model, conds, latent))
