"""Runs in two stages under the mask blend: equal to one run, whatever core's batch nodes do in between, or refused.

The oracle of every two-stage run here is the same sampler over the same sigmas in one run: a sampler without memory
and without noise of its own takes the same steps in both. The oracle outside the mask is the picture itself.
"""

import itertools

import analytic
import comfy.latent_formats
import comfy.nested_tensor
import comfy.sampler_helpers
import comfy.utils
import matrix
import nodes
import pytest
import torch
from bespoke.nodes.inpaint import blend as blends
from bespoke.nodes.inpaint import stages, start
from bespoke.nodes.inpaint.stages import StageStore

pytestmark = [
    pytest.mark.filterwarnings("ignore:To copy construct from a tensor"),
    pytest.mark.filterwarnings("ignore:Should have t"),
]

KINDS = ("epsilon", "v", "flow")
BLENDS = ("re-inject", "prediction", "differential")
ONE_STEP = ("euler", "heun", "dpm_2", "ddim")  # without memory and without noise of their own
STEPS, COUNT = 8, 4
STRENGTHS = {1.0: (0, 4), 0.75: (2, 5), 0.4: (5, 6)}  # the share of the steps -> (first step, second stage's)


@pytest.fixture(scope="module")
def field(comfyui):
    return analytic.Field(16, 16, "natural")


@pytest.fixture(scope="module")
def latent(field):
    """Four clean latents [4, 4, 16, 16] of the field, as a VAE encodes them (SD1.5's scale)."""
    return {"samples": field.sample(COUNT, 4, seed=3) / 0.18215}


def hard_masks(size=128):
    masks = torch.zeros(COUNT, size, size)
    for i in range(COUNT):
        masks[i, 20 * i : 20 * i + 50, 30:90] = 1.0
    return masks


def grey_masks(size=128):
    ramp = torch.linspace(-0.3, 1, size).clamp(min=0).expand(size, size)  # a quarter is black
    return torch.stack([ramp, ramp.T, ramp.flip(1), ramp.flip(0) * 0.7])


MASKS = {
    "hard": {"mask": hard_masks(), "feather": 0},
    "grey": {"mask": grey_masks(), "feather": 0},
    "feathered": {"mask": hard_masks()},  # the node's default
}


def wrap(field, kind="epsilon"):
    return analytic.wrap(field.denoise, kind)


def ksample(model, latent, sampler="euler", first=0, last=None, noise=True, seed=11):
    """Core's KSamplerAdvanced on a LATENT, with leftover noise where `last` is before the end; a LATENT."""
    none = analytic.conditioning()
    with torch.inference_mode():
        return nodes.common_ksampler(
            model,
            seed,
            STEPS,
            1.0,
            sampler,
            "normal",
            none,
            none,
            latent,
            disable_noise=not noise,
            start_step=first,
            last_step=STEPS if last is None else last,
            force_full_denoise=last is None,
        )[0]


def largest(difference, latent):
    """In the picture's standard deviations."""
    return float(difference.abs().max() / latent["samples"].std())


def outside_error(result, clean, mask):
    return float((result - clean).abs().masked_fill(mask.expand_as(result) > 0, 0.0).max())


def pick(latent, start, length=1):
    return nodes.LatentFromBatch().frombatch(latent, start, length)[0]


def in_order(run_node, latent, order):
    """A batch of the latents in another order: each picked, then joined with core's nodes, masks alike."""
    picked = [pick(latent, i) for i in order]
    joined = picked[0]
    for one in picked[1:]:
        (joined,) = run_node("LatentBatch", samples1=joined, samples2=one)
    # Core's LatentBatch keeps the first one's mask alone.
    return {**joined, "noise_mask": torch.cat([one["noise_mask"] for one in picked])}


def rebatched(run_node, latent, size):
    return run_node("RebatchLatents", latents=[latent], batch_size=[size])[0]


# name -> function of (run_node, latent) to [(indices of the pictures, LATENT)]
BATCHES = {
    "whole": lambda run, x: [(range(4), x)],
    "picked": lambda run, x: [([i], pick(x, i)) for i in (2, 0)],
    "a part": lambda run, x: [([1, 2], pick(x, 1, 2))],
    "repeated": lambda run, x: [([*range(4)] * 2, nodes.RepeatLatentBatch().repeat(x, 2)[0])],
    "one repeated": lambda run, x: [([3] * 4, nodes.RepeatLatentBatch().repeat(pick(x, 3), 4)[0])],
    "rebatched by 1": lambda run, x: [([i], one) for i, one in enumerate(rebatched(run, x, 1))],
    "rebatched by 3": lambda run, x: list(zip(([0, 1, 2], [3]), rebatched(run, x, 3), strict=True)),
    "3, 1, 0, 2": lambda run, x: [([3, 1, 0, 2], in_order(run, x, (3, 1, 0, 2)))],
    "0, 0, 2": lambda run, x: [([0, 0, 2], in_order(run, x, (0, 0, 2)))],
}


def two_stages(run_node, second, half, sampler, split, names=tuple(BATCHES)):
    """[(batch, index of the picture, result)] of a second stage after the named of `BATCHES`."""
    for name, batches in ((name, BATCHES[name]) for name in names):
        for indices, batch in batches(run_node, half):
            result = ksample(second, batch, sampler, split, noise=False)["samples"]
            yield from ((name, i, one) for i, one in zip(indices, result, strict=True))


@pytest.mark.parametrize("sampler", matrix.mark_slow(ONE_STEP, ("euler",)))
@pytest.mark.parametrize("kind", matrix.mark_slow(KINDS, ("flow",)))
@pytest.mark.parametrize("blend", BLENDS)
def test_two_stages_equal_one_run_whatever_the_batch_nodes_do(run_node, field, latent, blend, kind, sampler):
    """At any strength, under hard, grey and feathered masks: to 1e-4 of the picture's standard deviation, none refused.

    Before the original was found by its content: 15.5 off after LatentFromBatch and RebatchLatents, 2.6 for
    differential at strength .75, .395 for re-inject with a grey mask.
    """
    worst = {}
    for (first, split), (masks, options) in itertools.product(STRENGTHS.values(), MASKS.items()):
        options = {**options, "blend": blend}
        model, masked, *_ = run_node("BespokeLatentMaskBlend", model=wrap(field, kind), latent=latent, **options)
        second, *_ = run_node("BespokeLatentMaskBlend", model=wrap(field, kind), latent=latent, **options)
        one = ksample(model, masked, sampler, first)["samples"]
        half = ksample(model, masked, sampler, first, split)
        for name, i, result in two_stages(run_node, second, half, sampler, split):
            assert outside_error(result, latent["samples"][i], masked["noise_mask"][i]) == 0.0
            worst[name, first, masks] = max(largest(result - one[i], latent), worst.get((name, first, masks), 0.0))
    assert len(worst) == len(BATCHES) * len(STRENGTHS) * len(MASKS)
    assert max(worst.values()) < 1e-4, {case: error for case, error in worst.items() if error >= 1e-4}


@pytest.mark.parametrize("sampler", ["dpmpp_2m", pytest.param("uni_pc", marks=pytest.mark.slow), "lms"])
@pytest.mark.parametrize("blend", BLENDS)
def test_with_memory_a_picked_picture_gets_what_it_gets_in_its_batch(run_node, field, latent, blend, sampler):
    """These samplers begin anew in a second stage, masked or not. The oracle is the whole batch's two stages."""
    options = {**MASKS["feathered"], "blend": blend}
    model, masked, *_ = run_node("BespokeLatentMaskBlend", model=wrap(field), latent=latent, **options)
    half = ksample(model, masked, sampler, 0, 4)
    whole = ksample(model, half, sampler, 4, noise=False)["samples"]
    for name, i, result in two_stages(run_node, model, half, sampler, 4):
        assert outside_error(result, latent["samples"][i], masked["noise_mask"][i]) == 0.0
        assert largest(result - whole[i], latent) < 1e-4, name


@pytest.mark.parametrize("blend", BLENDS)
def test_a_node_between_the_stages_finds_the_originals_of_any_batch(run_node, field, latent, blend):
    """RebatchLatents drops the key that the first node set, and LatentFromBatch leaves its count wrong."""
    options = {**MASKS["grey"], "blend": blend}
    model, masked, *_ = run_node("BespokeLatentMaskBlend", model=wrap(field), latent=latent, **options)
    one = ksample(model, masked, first=2)["samples"]
    half = ksample(model, masked, first=2, last=5)
    for name, batches in BATCHES.items():
        for indices, batch in batches(run_node, half):
            between = {**options, "mask": options["mask"][list(indices)]}
            second, again, *_ = run_node("BespokeLatentMaskBlend", model=wrap(field), latent=batch, **between)
            result = ksample(second, again, first=5, noise=False)["samples"]
            assert largest(result - one[list(indices)], latent) < 1e-4, name


@pytest.mark.parametrize("blend", BLENDS)
def test_pictures_whose_first_stages_began_at_other_noise_levels_in_one_batch(run_node, field, latent, blend):
    model, masked, *_ = run_node(
        "BespokeLatentMaskBlend", model=wrap(field), latent=latent, **MASKS["grey"], blend=blend
    )
    ones = [ksample(model, masked, first=first)["samples"] for first in (0, 2)]
    halves = [pick(ksample(model, masked, first=first, last=4), i) for i, first in enumerate((0, 2))]
    (joined,) = run_node("LatentBatch", samples1=halves[0], samples2=halves[1])
    joined = {**joined, "noise_mask": torch.cat([half["noise_mask"] for half in halves])}
    two = ksample(model, joined, first=4, noise=False)["samples"]
    for i in range(2):
        assert largest(two[i] - ones[i][i], latent) < 1e-4


def test_a_second_stage_that_adds_noise_keeps_the_original_too(run_node, field, latent):
    """The latent outside the mask holds the first stage's noise, which is no picture to keep."""
    for masks, options in MASKS.items():
        model, masked, *_ = run_node("BespokeLatentMaskBlend", model=wrap(field), latent=latent, **options)
        half = pick(ksample(model, masked, last=4), 1, 2)
        result = ksample(model, half, first=4)["samples"]
        assert outside_error(result, latent["samples"][1:3], half["noise_mask"]) == 0.0, masks


def test_three_stages_and_one_without_a_mask_in_the_middle(run_node, field, latent):
    for blend, masks in itertools.product(BLENDS, MASKS):
        options = {**MASKS[masks], "blend": blend}
        model, masked, *_ = run_node("BespokeLatentMaskBlend", model=wrap(field), latent=latent, **options)
        one = ksample(model, masked, first=2)["samples"]
        half = pick(ksample(model, masked, first=2, last=4), 1, 2)
        result = ksample(model, pick(ksample(model, half, first=4, last=6, noise=False), 1), first=6, noise=False)
        assert largest(result["samples"][0] - one[2], latent) < 1e-4, (blend, masks)
        unmasked = ksample(model, {k: v for k, v in half.items() if k != "noise_mask"}, first=4, last=6, noise=False)
        last = ksample(model, {**unmasked, "noise_mask": half["noise_mask"]}, first=6, noise=False)["samples"]
        assert outside_error(last, latent["samples"][1:3], half["noise_mask"]) == 0.0


# --- States that no blended run left ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def large_field(comfyui):
    return analytic.Field(32, 32, "natural")


@pytest.fixture(scope="module")
def large(large_field):
    return {"samples": large_field.sample(COUNT, 4, seed=8) / 0.18215}


LARGE = {
    name: options | {"mask": make(256)}
    for (name, options), make in zip(MASKS.items(), (hard_masks, grey_masks, hard_masks), strict=True)
}


@pytest.mark.parametrize("kind", ["epsilon", pytest.param("v", marks=pytest.mark.slow)])
@pytest.mark.parametrize("first", [2, pytest.param(5, marks=pytest.mark.slow)])
def test_a_latent_with_noise_added_by_a_node_equals_one_run(run_node, large_field, large, kind, first):
    """Core's AddNoise, then a run without noise: the original is found by the likelihood of the node's own latents.

    Not for flow, where core itself scales the state of such a run by 1 - sigma once more.
    """
    from comfy_extras.nodes_custom_sampler import RandomNoise

    for blend, masks in itertools.product(BLENDS, LARGE):
        options = {**LARGE[masks], "blend": blend}
        model, masked, *_ = run_node("BespokeLatentMaskBlend", model=wrap(large_field, kind), latent=large, **options)
        (sigmas,) = run_node("BasicScheduler", model=model, scheduler="normal", steps=STEPS, denoise=1.0)
        one = ksample(model, masked, first=first)["samples"]
        (noised,) = run_node(
            "AddNoise", model=model, noise=RandomNoise.execute(11).args[0], sigmas=sigmas[first:], latent_image=masked
        )
        for name, i, result in two_stages(run_node, model, noised, "euler", first, ("picked", "3, 1, 0, 2", "0, 0, 2")):
            assert largest(result - one[i], large) < 1e-4, (name, blend, masks, first)


def plain_half(field, latent, kind="epsilon", first=0, last=4):
    """The unfinished result of a model without the blend."""
    return ksample(wrap(field, kind), {"samples": latent["samples"]}, first=first, last=last)


@pytest.mark.parametrize("blend", BLENDS)
def test_noise_of_an_unknown_origin_is_refused_with_the_reason(run_node, large_field, large, blend):
    options = {**LARGE["hard"], "blend": blend}
    model, masked, *_ = run_node("BespokeLatentMaskBlend", model=wrap(large_field), latent=large, **options)
    half = {
        **masked,
        "samples": plain_half(large_field, {"samples": large_field.sample(4, 4, seed=99) / 0.18215})["samples"],
    }
    # Another picture's state in the model of these pictures, and a node on the state itself.
    with pytest.raises(ValueError, match="Latent Mask Blend: latent 1 of 1 holds an earlier stage's noise"):
        ksample(model, pick(half, 0), first=4, noise=False)
    second, again, *_ = run_node(
        "BespokeLatentMaskBlend", model=wrap(large_field), latent={"samples": half["samples"]}, **options
    )
    with pytest.raises(
        ValueError, match="the clean original to keep outside the mask is not known; give the first stage"
    ):
        ksample(second, again, first=4, noise=False)


@pytest.mark.parametrize("change", ["another batch", "flipped"])
@pytest.mark.parametrize(("kind", "split"), [("epsilon", 2), ("epsilon", 4), ("flow", 2), ("flow", 4), ("flow", 6)])
def test_no_original_of_the_batch_is_taken_for_a_state_that_none_of_them_explains(
    run_node, large_field, large, kind, split, change
):
    """The oracle is that the states were made from none of the node's pictures. At much noise one of the others in the
    batch was decisively nearer than the one in its place, by chance, and its pixels came outside the mask.
    """
    model, masked, *_ = run_node(
        "BespokeLatentMaskBlend", model=wrap(large_field, kind), latent=large, **LARGE["hard"], blend="prediction"
    )
    if change == "flipped":
        half = ksample(model, masked, last=split)
        (half,) = run_node("LatentFlip", samples=half, flip_method="y-axis: horizontally")
    else:
        others = {"samples": large_field.sample(COUNT, 4, seed=77) / 0.18215}
        half = {**masked, "samples": plain_half(large_field, others, kind, last=split)["samples"]}
    with pytest.raises(ValueError, match="holds an earlier stage's noise"):
        ksample(model, half, first=split, noise=False)


@pytest.mark.parametrize("kind", ["epsilon", "flow"])
def test_an_inverted_latent_keeps_the_picture_that_it_was_inverted_from(run_node, large_field, large, kind):
    """Its noise is no independent draw: it was computed from the picture, by a run upwards without the node."""
    plain = wrap(large_field, kind)
    (sigmas,) = run_node("BasicScheduler", model=plain, scheduler="normal", steps=STEPS, denoise=1.0)
    (guider,) = run_node("BasicGuider", model=plain, conditioning=analytic.conditioning())
    (nothing,), (euler,) = run_node("DisableNoise"), run_node("KSamplerSelect", sampler_name="euler")
    model, masked, *_ = run_node(
        "BespokeLatentMaskBlend", model=wrap(large_field, kind), latent=large, **LARGE["hard"], blend="prediction"
    )
    for split in (1, 3, 6):
        upwards = torch.linspace(1e-3, float(sigmas[split]), 31)
        noised, _ = run_node(
            "SamplerCustomAdvanced", noise=nothing, guider=guider, sampler=euler, sigmas=upwards, latent_image=large
        )
        result = ksample(model, {**masked, "samples": noised["samples"]}, first=split, noise=False)["samples"]
        assert outside_error(result, large["samples"], masked["noise_mask"]) == 0.0


def test_a_clean_latent_of_another_picture_keeps_itself(run_node, large_field, large):
    """A noise-free pass over a clean latent, with the model of another picture's node: the latent is the original.

    At little noise it cannot be told from a state that holds it, and is refused.
    """
    model, masked, *_ = run_node("BespokeLatentMaskBlend", model=wrap(large_field), latent=large, **LARGE["feathered"])
    other = {**masked, "samples": large_field.sample(COUNT, 4, seed=50) / 0.18215}
    for batch in (other, pick(other, 2, 2)):
        for first in (2, 3):
            result = ksample(model, batch, first=first, noise=False)["samples"]
            assert outside_error(result, batch["samples"], batch["noise_mask"]) == 0.0
            assert not torch.equal(result, batch["samples"])
        with pytest.raises(ValueError, match="set this node on the clean latents"):
            ksample(model, batch, first=7, noise=False)


def test_two_pictures_of_one_model_in_turn(run_node, field, latent):
    """Both go through the model of the first one's node: each keeps its own picture."""
    other = {"samples": field.sample(COUNT, 4, seed=77) / 0.18215}
    model, masked, *_ = run_node("BespokeLatentMaskBlend", model=wrap(field), latent=latent, **MASKS["hard"])
    both = [masked, {"samples": other["samples"], "noise_mask": masked["noise_mask"]}]
    ones = [ksample(model, each, first=2)["samples"] for each in both]
    halves = [ksample(model, each, first=2, last=4) for each in both]
    for clean, one, half in zip((latent, other), ones, halves, strict=True):
        two = ksample(model, pick(half, 3), first=4, noise=False)["samples"]
        assert outside_error(two, clean["samples"][3:], masked["noise_mask"][3:]) == 0.0
        assert largest(two - one[3:], latent) < 1e-4


@pytest.mark.parametrize("between", ["a node", "core's mask"])
def test_after_a_run_under_a_white_mask_its_result_is_the_original(run_node, field, latent, between):
    """The first run repaints everything; the second, masked and without noise, keeps that and not the first picture."""
    white = torch.ones(COUNT, 128, 128)
    model, masked, *_ = run_node("BespokeLatentMaskBlend", model=wrap(field), latent=latent, mask=white)
    repainted = ksample(model, masked)
    assert largest(repainted["samples"] - latent["samples"], latent) > 1.0
    if between == "a node":
        model, again, *_ = run_node("BespokeLatentMaskBlend", model=wrap(field), latent=repainted, mask=hard_masks())
    else:
        (again,) = run_node("SetLatentNoiseMask", samples=repainted, mask=hard_masks())
    result = ksample(model, again, first=5, noise=False)["samples"]
    # Core scales its mask bilinearly, so the mask is read where it was used.
    mask = comfy.sampler_helpers.prepare_mask(again["noise_mask"], result.shape, "cpu")
    assert outside_error(result, repainted["samples"], mask) == 0.0
    assert not torch.equal(result, repainted["samples"])


def test_another_mask_in_the_second_stage_keeps_the_first_picture(run_node, field, latent):
    for masks in MASKS.values():
        model, masked, *_ = run_node("BespokeLatentMaskBlend", model=wrap(field), latent=latent, **MASKS["hard"])
        half = ksample(model, masked, last=4)
        model, again, *_ = run_node("BespokeLatentMaskBlend", model=wrap(field), latent=half, **masks)
        result = ksample(model, again, first=4, noise=False)["samples"]
        assert outside_error(result, latent["samples"], again["noise_mask"]) == 0.0


def test_an_upscaled_result_is_the_original_of_the_next_pass(run_node, field, latent, large_field):
    """As a second pass at a higher resolution: a finished latent, enlarged, with a node and noise of its own."""
    model, masked, *_ = run_node("BespokeLatentMaskBlend", model=wrap(field), latent=latent, **MASKS["feathered"])
    done = ksample(model, masked)
    (larger,) = run_node(
        "LatentUpscale", samples=done, upscale_method="bilinear", width=256, height=256, crop="disabled"
    )
    second, again, *_ = run_node("BespokeLatentMaskBlend", model=wrap(large_field), latent=larger, **LARGE["feathered"])
    for noise in (True, False):
        result = ksample(second, again, first=5, noise=noise)["samples"]
        assert outside_error(result, larger["samples"], again["noise_mask"]) == 0.0
        assert not torch.equal(result, larger["samples"])


@pytest.mark.parametrize("dtype", stages.ROUNDINGS)
def test_a_result_is_known_again_in_the_precision_that_nodes_pass_on(run_node, field, latent, dtype):
    """ComfyUI's `--fp16-intermediates` rounds each result. Outside, what is kept is not rounded."""
    options = {**MASKS["grey"], "blend": "re-inject"}
    model, masked, *_ = run_node("BespokeLatentMaskBlend", model=wrap(field), latent=latent, **options)
    one = ksample(model, masked)["samples"]
    half = ksample(model, masked, last=4)
    rounded = {**half, "samples": half["samples"].to(dtype)}
    for given in (rounded, {**half, "samples": rounded["samples"].float()}):
        result = ksample(model, pick(given, 2), first=4, noise=False)["samples"]
        assert outside_error(result, latent["samples"][2:3], masked["noise_mask"][2:3]) == 0.0
        assert largest(result - one[2:3], latent) < (1e-4 if dtype is torch.float32 else 0.02)


# --- Other shapes ----------------------------------------------------------------------------------------------------


def video_model(field):
    def denoise(y, sigma):
        frames = field.denoise(y.movedim(2, 1).flatten(0, 1), sigma.flatten()[:1].view(1, 1, 1, 1))
        return frames.unflatten(0, (y.shape[0], y.shape[2])).movedim(1, 2)

    return analytic.wrap(denoise, "flow", latent_format=comfy.latent_formats.Wan21())


@pytest.mark.parametrize("blend", BLENDS)
def test_a_batch_of_videos_is_picked_and_repeated_between_stages(run_node, field, blend):
    videos = {"samples": field.sample(9, 16, seed=5).reshape(3, 3, 16, 16, 16).movedim(1, 2)}  # [B, C, T, H, W]
    options = {"mask": grey_masks()[:3], "feather": 0, "blend": blend}
    model, masked, *_ = run_node("BespokeLatentMaskBlend", model=video_model(field), latent=videos, **options)
    one = ksample(model, masked, first=2)["samples"]
    half = ksample(model, masked, first=2, last=4)
    for indices, batch in (([2], pick(half, 2)), ([0, 1, 2] * 2, nodes.RepeatLatentBatch().repeat(half, 2)[0])):
        result = ksample(model, batch, first=4, noise=False)["samples"]
        assert outside_error(result, videos["samples"][indices], masked["noise_mask"][indices]) == 0.0
        assert largest(result - one[indices], videos) < 1e-4


@pytest.mark.parametrize("blend", BLENDS)
def test_a_nested_latent_in_two_stages(run_node, field, latent, blend):
    """Two parts in one latent, as a video and its sound: ComfyUI samples them packed as [B, 1, values]."""
    parts = [latent["samples"], field.sample(COUNT, 2, seed=9)]
    nested = {"samples": comfy.nested_tensor.NestedTensor(parts)}
    wrapped = analytic.wrap(lambda y, sigma: y / (1 + sigma**2), "flow")
    options = {**MASKS["grey"], "blend": blend}
    model, masked, *_ = run_node("BespokeLatentMaskBlend", model=wrapped, latent=nested, **options)
    none = analytic.conditioning()
    (guider,) = run_node("BasicGuider", model=model, conditioning=none)
    (sampler,) = run_node("KSamplerSelect", sampler_name="euler")
    sigmas = torch.linspace(0.75, 0, 9)
    noise = comfy.nested_tensor.NestedTensor(
        [torch.randn(part.shape, generator=torch.Generator().manual_seed(1)) for part in parts]
    )
    zeros = comfy.nested_tensor.NestedTensor([torch.zeros_like(part) for part in parts])

    def sample(samples, noise, sigmas):
        with torch.inference_mode():
            return guider.sample(noise, samples, sampler, sigmas, denoise_mask=masked["noise_mask"])

    one = sample(nested["samples"], noise, sigmas)
    half = sample(nested["samples"], noise, sigmas[:4])
    order = [3, 1, 0, 2]
    picked = comfy.nested_tensor.NestedTensor([part[order] for part in half.unbind()])
    masked["noise_mask"] = masked["noise_mask"][order]
    two = sample(picked, zeros, sigmas[3:])
    for first, second in zip(one.unbind(), two.unbind(), strict=True):
        assert float((second - first[order]).abs().max() / first.std()) < 1e-4
    assert outside_error(two.unbind()[0], parts[0][order], masked["noise_mask"]) == 0.0


# --- Memory ----------------------------------------------------------------------------------------------------------


def test_the_store_holds_few_tensors_and_forgets_the_oldest_runs():
    store = StageStore(most_bytes=3 * 400, most_runs=6)
    results = [torch.randn(2, 50, generator=torch.Generator().manual_seed(i)) for i in range(10)]
    held = []
    for i, result in enumerate(results):
        original = torch.full((2, 50), float(i))  # 400 bytes
        held += [original] * (i == 5)
        store.add(result, original, (1.0, 2.0), None, finished=False)
        assert store.bytes <= 3 * 400
    del original
    found = [store.find(result)[1] for result in results]
    assert [sample is None for sample in found] == [True] * 4 + [False] * 6
    assert [float(sample.original[0, 0]) if sample.original is not None else None for sample in found[4:]] == [
        None,
        5.0,  # held elsewhere
        None,
        7.0,
        8.0,
        9.0,
    ]
    assert found[-1].index == 1
    assert found[-1].first == 2.0
    assert len(store._places) == 6 * 2 * 3
    store.add(results[0], torch.zeros(2, 5000), (1.0, 1.0), None, finished=False)
    assert store.bytes == 40000  # the newest is held whatever its size
    store.add(results[0], torch.zeros(2, 5000), (1.0, 1.0), None, finished=True)
    assert store.find(results[0])[0].finished
    assert store.find(results[0])[0].original is None


# --- Another size between the stages -----------------------------------------------------------------------------


class Sizes:
    """One model for latents of 24, 32 and 64 cells a side."""

    def __init__(self):
        self.fields = {size: analytic.Field(size, size, "natural") for size in (24, 32, 64)}

    def denoise(self, y, sigma):
        return self.fields[y.shape[-1]].denoise(y, sigma)


def resize(run_node, way, latent):
    if way == "crop":
        return run_node("LatentCrop", samples=latent, width=192, height=192, x=32, y=32)[0]
    return run_node("LatentUpscale", samples=latent, upscale_method=way, width=512, height=512, crop="disabled")[0]


@pytest.mark.parametrize("kind", ["epsilon", "flow"])
@pytest.mark.parametrize("way", ["crop", "nearest-exact", "bilinear", "bicubic"])
def test_a_noisy_latent_of_another_size_is_refused_at_every_noise_level(run_node, comfyui, kind, way):
    """Its noise stayed outside the mask: .29 to 7.6 of the latent's deviation where sigma was .34 to 3.5."""
    sizes = Sizes()
    clean = {"samples": sizes.fields[32].sample(1, 4, seed=5) / 0.18215}
    mask = torch.zeros(1, 256, 256)
    mask[:, 80:160, 90:200] = 1.0
    base = wrap(sizes, kind)
    model, masked, *_ = run_node("BespokeLatentMaskBlend", model=base, latent=clean, mask=mask, feather=0)
    for split in (1, 2, 4, 5, 6, 7):
        half = resize(run_node, way, ksample(model, masked, last=split))
        with pytest.raises(ValueError, match=r"(24x24|64x64) cells and goes on without new noise, .* has 32x32"):
            ksample(model, half, first=split, noise=False)
        report = run_node("BespokeLatentMaskBlend", model=base, latent=half, mask=mask)[4]
        assert way != "crop" or "was cropped or resized" in report
        assert split > 4 or "was cropped or resized" in report  # where the noise is more than a blur of the picture


@pytest.mark.parametrize("way", ["crop", "bicubic"])
def test_a_finished_latent_of_another_size_with_new_noise_is_kept(run_node, comfyui, way):
    """The mend that the refusal names. Nothing is said of an upscaled picture without noise."""
    sizes = Sizes()
    clean = {"samples": sizes.fields[32].sample(1, 4, seed=5) / 0.18215}
    mask = torch.zeros(1, 256, 256)
    mask[:, 80:160, 90:200] = 1.0
    base = wrap(sizes)
    model, masked, *_ = run_node("BespokeLatentMaskBlend", model=base, latent=clean, mask=mask, feather=0)
    done = resize(run_node, way, ksample(model, masked))
    model, again, *_, report = run_node("BespokeLatentMaskBlend", model=base, latent=done, mask=mask, feather=0)
    assert way == "crop" or "was cropped or resized" not in report
    result = ksample(model, again, first=4)["samples"]
    assert outside_error(result, done["samples"], again["noise_mask"]) == 0.0


def test_a_clean_latent_of_another_size_keeps_itself(run_node, comfyui):
    """Sampled without noise from a level that a picture cannot be taken for."""
    sizes = Sizes()
    clean = {"samples": sizes.fields[32].sample(1, 4, seed=5) / 0.18215}
    mask = torch.zeros(1, 256, 256)
    mask[:, 80:160, 90:200] = 1.0
    model, masked, *_ = run_node("BespokeLatentMaskBlend", model=wrap(sizes), latent=clean, mask=mask, feather=0)
    other = {**masked, "samples": sizes.fields[64].sample(1, 4, seed=6) / 0.18215}
    result = ksample(model, other, first=2, noise=False)["samples"]
    mask = comfy.utils.reshape_mask(other["noise_mask"], result.shape)
    assert outside_error(result, other["samples"], mask) == 0.0


def forgetful(monkeypatch):
    """A store that holds no tensors but the newest run's."""
    monkeypatch.setattr(start, "STORE", StageStore(most_bytes=0))
    monkeypatch.setattr(blends, "STORE", start.STORE)


def test_what_is_no_longer_in_memory_is_found_in_the_node_or_refused(run_node, field, latent, monkeypatch):
    forgetful(monkeypatch)
    options = {**MASKS["hard"], "blend": "re-inject"}
    given = {"samples": latent["samples"].clone()}
    model, masked, *_ = run_node("BespokeLatentMaskBlend", model=wrap(field), latent=given, **options)
    one = ksample(model, masked, first=2)["samples"]
    half = ksample(model, masked, first=2, last=6)
    other = {**masked, "samples": latent["samples"] + 1.0}
    ksample(model, other, last=4)  # a newer run, so that the older one's tensors are let go
    assert start.STORE.find(half["samples"])[0].original is not None  # held by `masked`
    copy = {"samples": latent["samples"].clone()}
    second, *_ = run_node("BespokeLatentMaskBlend", model=wrap(field), latent=copy, **options)
    half = {key: half[key] for key in ("samples", "noise_mask")}
    del given, masked, other, model
    assert start.STORE.find(half["samples"])[0].original is None
    two = ksample(second, pick(half, 2), first=6, noise=False)["samples"]
    assert largest(two - one[2:3], latent) < 1e-4


def test_re_inject_without_the_first_noise_is_refused_under_a_soft_mask(run_node, field, latent, monkeypatch):
    forgetful(monkeypatch)
    options = {**MASKS["grey"], "blend": "re-inject"}
    model, masked, *_ = run_node("BespokeLatentMaskBlend", model=wrap(field), latent=latent, **options)
    half = ksample(model, masked, last=4)
    ksample(model, masked, last=2)
    with pytest.raises(ValueError, match="re-inject with a soft mask needs the noise of the first stage, and"):
        ksample(model, half, first=4, noise=False)
