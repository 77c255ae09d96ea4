"""The variation seed of Partial Denoise: the noise between those of two seeds, for the latents of every family."""

import analytic
import comfy.sample
import pytest
import torch
from bespoke.nodes.img2img.variation import Variation, slerp, varied_noise
from bespoke.training.errors import InputError
from comfy.nested_tensor import NestedTensor

SHARES = (0.0, 0.01, 0.1, 0.3, 0.5, 0.7, 0.9, 0.99, 1.0)
FIELD = analytic.Field(16, 16, "natural")


def random(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


LATENTS = {
    "picture": {"samples": random(1, 4, 16, 16)},
    "batch": {"samples": random(3, 16, 8, 8)},
    "batch index": {"samples": random(3, 4, 16, 16), "batch_index": [5, 0, 2]},
    "video": {"samples": random(2, 16, 3, 8, 8)},
    "sound": {"samples": random(2, 64, 50)},
    "picture and sound": {"samples": NestedTensor([random(1, 4, 8, 8), random(1, 2, 5, 6)])},
}


def core_noise(latent, seed):
    return comfy.sample.prepare_noise(latent["samples"], seed, latent.get("batch_index"))


def parts(samples):
    return samples.unbind() if samples.is_nested else [samples]


@pytest.mark.parametrize("latent", LATENTS.values(), ids=LATENTS.keys())
def test_the_noise_goes_from_one_seeds_to_the_others_at_its_length(comfyui, latent):
    """Oracle: ComfyUI's noise of either seed at the ends, and the arc between them: length and angle by hand.

    In each picture of a batch the length is linear between those of the two noises, and the angle from the first noise
    is `share` times the whole angle, so the distance from it rises.
    """
    first, second = (parts(core_noise(latent, seed)) for seed in (7, 8))
    before = [0.0] * len(first)
    for share in SHARES:
        varied = parts(varied_noise(latent["samples"], 7, Variation(8, share), latent))
        for part, (noise, a, b) in enumerate(zip(varied, first, second, strict=True)):
            assert noise.shape == a.shape
            assert noise.dtype == a.dtype
            if share in (0.0, 1.0):
                assert torch.equal(noise, b if share else a)
            flat, start, end = (t.flatten(1).double() for t in (noise, a, b))
            wanted = (1 - share) * start.norm(dim=1) + share * end.norm(dim=1)
            assert ((flat.norm(dim=1) / wanted - 1).abs() < 1e-5).all()
            cosine = torch.cosine_similarity
            whole, angle = torch.acos(cosine(start, end)), torch.acos(cosine(start, flat).clamp(-1, 1))
            assert torch.allclose(angle, share * whole, atol=1e-3)
            distance = float((flat - start).norm())
            assert distance > before[part] or share == 0.0
            before[part] = distance


def test_the_mean_of_two_noises_is_shorter_and_this_is_not():
    """By hand: orthogonal unit vectors have a mean of length .707, and the arc's middle has length 1."""
    a, b = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])
    assert torch.allclose(slerp(a, b, 0.5), torch.tensor([[0.5**0.5, 0.5**0.5]]))
    assert torch.allclose(slerp(a, 3 * b, 0.5), 2 * torch.tensor([[0.5**0.5, 0.5**0.5]]))
    assert torch.allclose(slerp(a, b, 1 / 3), torch.tensor([[0.75**0.5, 0.5]]))


def test_equal_and_opposite_noises_give_numbers():
    a = random(2, 8)
    assert torch.allclose(slerp(a, a, 0.4), a, rtol=1e-6)
    assert torch.isfinite(slerp(a, -a, 0.5)).all()
    assert torch.isfinite(slerp(torch.zeros(1, 4), torch.ones(1, 4), 0.5)).all()


@pytest.fixture(scope="module")
def denoise(run_node):
    none, model = analytic.conditioning(), analytic.wrap(FIELD.denoise)
    latent = {"samples": FIELD.sample(2, 4, seed=3) / 0.18215}

    def run(seed=7, strength=0.5, **more):
        return run_node(
            "BespokePartialDenoise",
            model=model,
            positive=none,
            negative=none,
            latent_image=latent,
            strength=strength,
            steps=6,
            cfg=1.0,
            sampler_name="euler",
            scheduler="normal",
            seed=seed,
            **more,
        )

    return run


def test_the_node_gives_the_pictures_of_both_seeds_at_the_ends(denoise):
    plain, *_, report = denoise(7)
    off = denoise(7, variation_seed=8, variation_strength=0.0)
    assert torch.equal(off[0]["samples"], plain["samples"])
    assert off[3] == report
    on = denoise(7, variation_seed=8, variation_strength=1.0)
    assert torch.equal(on[0]["samples"], denoise(8)[0]["samples"])
    assert on[3].endswith("\nThe noise of seed 7 is turned by 1 to seed 8's.")


def test_pictures_move_away_from_the_first_as_the_strength_rises(denoise):
    plain = denoise(7, strength=1.0)[0]["samples"]
    distances = [
        float((denoise(7, 1.0, variation_seed=8, variation_strength=share)[0]["samples"] - plain).norm())
        for share in SHARES
    ]
    assert distances == sorted(distances)
    assert distances[0] == 0.0
    assert distances[1] > 0.0


@pytest.mark.parametrize("strength", [-0.1, 1.5, float("nan")])
def test_a_strength_out_of_range_is_refused_with_the_mend(denoise, strength):
    with pytest.raises(InputError, match=r"variation_strength is .*; give a number from 0 .* to 1"):
        denoise(7, variation_seed=8, variation_strength=strength)
