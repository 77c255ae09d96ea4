"""Partial denoising inside ComfyUI's real sampling code, against KSampler and against diffusers."""

import math
from functools import cache
from types import SimpleNamespace

import analytic
import comfy.samplers
import comfy.utils
import matrix
import nodes
import numpy as np
import pytest
import scipy.stats
import sprites
import tiny
import torch
from bespoke.nodes.bridge.drawing import palette
from bespoke.nodes.bridge.sampling import (
    noise_for,
    noise_share,
    schedule_of,
)
from bespoke.nodes.img2img import plot, report, spacing
from bespoke.nodes.img2img.strength import (
    COMFY,
    CONTRACTS,
    DIFFUSERS,
    DIFFUSERS_FLOW,
    NOISE_LEVEL,
    Strength,
    plan_sigmas,
)
from bespoke.training.errors import InputError
from comfy.nested_tensor import NestedTensor

KINDS = analytic.KINDS
SAMPLERS = comfy.samplers.KSampler.SAMPLERS
SCHEDULERS = comfy.samplers.KSampler.SCHEDULERS
MOST = matrix.mark_slow(SAMPLERS, matrix.SAMPLERS)
FIELD = analytic.Field(16, 16, "natural")


@pytest.fixture(scope="module")
def latent():
    """A picture [2, 4, 16, 16] as a VAE encodes it (SD1.5's scale)."""
    return {"samples": FIELD.sample(2, 4, seed=3) / 0.18215}


@pytest.fixture(scope="module")
def models(comfyui):
    return {kind: analytic.wrap(FIELD.denoise, kind) for kind in KINDS}


@pytest.fixture(scope="module")
def denoise(run_node):
    """denoise(model, latent, strength, ...) -> (latent, start, sigmas, report) of the node."""

    def run(model, latent, strength, steps=6, sampler="euler", scheduler="normal", cfg=1.0, seed=7, **more):
        none = analytic.conditioning()
        return run_node(
            "BespokePartialDenoise",
            model=model,
            positive=none,
            negative=none,
            latent_image=latent,
            strength=strength,
            steps=steps,
            cfg=cfg,
            sampler_name=sampler,
            scheduler=scheduler,
            seed=seed,
            **more,
        )

    return run


def ksample(model, latent, denoise=1.0, steps=6, sampler="euler", scheduler="normal", cfg=1.0, seed=7):
    """Core's KSampler."""
    none = analytic.conditioning()
    with torch.inference_mode():
        return nodes.KSampler().sample(model, seed, steps, cfg, sampler, scheduler, none, none, latent, denoise)[0][
            "samples"
        ]


# --- Against KSampler, bit for bit ---------------------------------------------------------------------------------


@pytest.mark.parametrize("sampler", MOST)
def test_the_comfy_contract_is_ksampler_for_every_sampler(denoise, models, latent, sampler):
    for kind in KINDS:
        for strength in (0.3, 0.75):
            ours = denoise(models[kind], latent, strength, sampler=sampler, contract="comfy")[0]["samples"]
            assert torch.equal(ours, ksample(models[kind], latent, strength, sampler=sampler)), (kind, strength)
            assert torch.isfinite(ours).all()


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_the_comfy_contract_is_ksampler_for_every_scheduler(denoise, models, latent, scheduler):
    for kind in KINDS:
        for strength in (0.05, 0.58, 0.9999, 0.99995):
            ours = denoise(models[kind], latent, strength, scheduler=scheduler, contract="comfy")[0]["samples"]
            assert torch.equal(ours, ksample(models[kind], latent, strength, scheduler=scheduler)), (kind, strength)


def test_the_comfy_contract_makes_ksamplers_sigmas_for_every_number_of_steps(models):
    model = models["epsilon"]
    for scheduler in SCHEDULERS:
        for steps in (2, 3, 17, 30):
            for strength in (0.01, 0.29, 0.58, 0.99):
                core = comfy.samplers.KSampler(model, steps, "cpu", "uni_pc", scheduler, strength).sigmas
                chosen = plan_sigmas(Strength(strength, steps, COMFY), schedule_of(model, scheduler, "uni_pc"), 0.0)
                assert torch.equal(chosen.sigmas, core), (scheduler, steps, strength)


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_strength_1_is_ksampler_at_denoise_1_for_every_scheduler(denoise, models, latent, scheduler):
    for kind in KINDS:
        core = ksample(models[kind], latent, steps=4, scheduler=scheduler)
        for contract in CONTRACTS:
            for exact_steps in (False, True):
                ours = denoise(
                    models[kind], latent, 1.0, steps=4, scheduler=scheduler, contract=contract, exact_steps=exact_steps
                )
                assert torch.equal(ours[0]["samples"], core), (kind, contract)


@pytest.mark.parametrize("sampler", MOST)
def test_strength_1_is_ksampler_at_denoise_1_for_every_sampler(denoise, models, latent, sampler):
    for kind in KINDS:
        ours = denoise(models[kind], latent, 1.0, sampler=sampler)[0]["samples"]
        assert torch.equal(ours, ksample(models[kind], latent, sampler=sampler)), kind


@pytest.mark.slow
@pytest.mark.parametrize("scheduler", SCHEDULERS)
@pytest.mark.parametrize("kind", KINDS)
def test_every_contract_samples_as_core_does_on_the_same_sigmas(denoise, models, kind, scheduler):
    """For every contract, sampler, scheduler and prediction type only the sigmas differ from core."""
    import comfy.sample

    small = {"samples": FIELD.sample(1, 4, seed=3) / 0.18215}
    none, runs = analytic.conditioning(), 0
    for sampler in SAMPLERS:
        for contract in CONTRACTS:
            ours, _, sigmas, _ = denoise(
                models[kind], small, 0.6, steps=5, sampler=sampler, scheduler=scheduler, contract=contract
            )
            noise = noise_for(small["samples"], 7, small)
            with torch.inference_mode():
                core = comfy.sample.sample(
                    models[kind],
                    noise,
                    5,
                    1.0,
                    sampler,
                    scheduler,
                    none,
                    none,
                    small["samples"],
                    sigmas=sigmas.clone(),
                    disable_pbar=True,
                    seed=7,
                )
            assert torch.isfinite(ours["samples"]).all(), (sampler, contract)
            assert torch.equal(ours["samples"], core), (sampler, contract)
            runs += 1
    assert runs == len(SAMPLERS) * 5


def test_strength_1_makes_a_picture_from_an_empty_latent(denoise, models):
    empty = {"samples": torch.zeros(1, 4, 16, 16)}
    assert torch.equal(denoise(models["flow"], empty, 1.0)[0]["samples"], ksample(models["flow"], empty))


# --- Strength 0 -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("contract", CONTRACTS)
@pytest.mark.parametrize("kind", KINDS)
def test_strength_0_is_the_input_bit_for_bit_without_a_model_call(denoise, latent, contract, kind):
    model = analytic.wrap(FIELD.denoise, kind)
    for samples in (latent["samples"], latent["samples"].half(), torch.zeros(1, 4, 8, 8)):
        before = samples.clone()
        given = {"samples": samples, "noise_mask": torch.ones(1, 1, 128, 128), "batch_index": [4, 2]}
        for exact_steps in (False, True):
            out, start, sigmas, text = denoise(
                model, given, 0.0, sampler="uni_pc", contract=contract, exact_steps=exact_steps
            )
            assert out["samples"].dtype == samples.dtype
            assert torch.equal(out["samples"], before)
            assert torch.equal(start["samples"], before)
            assert sigmas.shape == (0,)
            assert set(out) == set(given)
            assert "runs 0 of 6 steps, the picture comes back as it is" in text
    assert model.model.diffusion_model.calls == 0


def test_a_strength_that_rounds_to_no_step_is_the_input_too(denoise, latent):
    model = analytic.wrap(FIELD.denoise)
    out, _, sigmas, text = denoise(model, latent, 0.1, steps=6, contract="diffusers")
    assert torch.equal(out["samples"], latent["samples"])
    assert (len(sigmas), model.model.diffusion_model.calls) == (0, 0)
    assert "first strength that changes it is 0.167" in text


# --- Against diffusers ----------------------------------------------------------------------------------------------


def _timesteps(pipeline: str, scheduler, steps: int, strength: float):
    """(timesteps, steps that run) by the pipeline's own get_timesteps, which needs only its scheduler."""
    import diffusers

    return getattr(diffusers, pipeline).get_timesteps(SimpleNamespace(scheduler=scheduler), steps, strength, "cpu")


STABLE_DIFFUSION = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}


@pytest.mark.parametrize(
    ("pipeline", "contract", "kind"),
    [
        ("StableDiffusionImg2ImgPipeline", DIFFUSERS, "epsilon"),
        pytest.param("StableDiffusionXLImg2ImgPipeline", DIFFUSERS, "epsilon", marks=pytest.mark.slow),
        ("StableDiffusion3Img2ImgPipeline", DIFFUSERS_FLOW, "flow"),
        pytest.param("FluxImg2ImgPipeline", DIFFUSERS_FLOW, "flow", marks=pytest.mark.slow),
    ],
)
def test_10000_of_10000_start_indices_and_their_sigmas_are_diffusers(models, pipeline, contract, kind):
    import diffusers

    if kind == "epsilon":
        peer = diffusers.EulerDiscreteScheduler(**STABLE_DIFFUSION, timestep_spacing="linspace")
    else:
        peer = diffusers.FlowMatchEulerDiscreteScheduler(shift=models[kind].get_model_object("model_sampling").shift)
    schedule = cache(schedule_of(models[kind], "normal", "euler"))
    same, worst = 0, 0.0
    for steps in range(1, 101):
        peer.set_timesteps(steps)
        diffusers_sigmas = peer.sigmas.tolist()
        for strength in (i / 100 for i in range(1, 101)):
            if "XL" in pipeline:
                run = _xl_steps(peer, steps, strength)
            else:
                run = _timesteps(pipeline, peer, steps, strength)[1]
            ours = plan_sigmas(Strength(strength, steps, contract), schedule, math.nan)
            same += ours.total - ours.run == steps - run
            if steps >= 2 and run:
                found, theirs = ours.sigmas.tolist(), diffusers_sigmas[steps - run :]
                assert len(found) == len(theirs)
                assert found[-1] == theirs[-1] == 0
                worst = max(worst, max(abs(a / b - 1) for a, b in zip(found[:-1], theirs[:-1], strict=True)))
    assert same == 10_000
    assert worst < 5e-4, worst


def _xl_steps(peer, steps: int, strength: float) -> int:
    import diffusers

    pipeline = SimpleNamespace(scheduler=peer)
    return diffusers.StableDiffusionXLImg2ImgPipeline.get_timesteps(pipeline, steps, strength, "cpu")[1]


@pytest.mark.parametrize("spaced", spacing.SPACINGS)
def test_the_schedules_built_here_are_diffusers_own(spaced):
    """To 1e-6 on diffusers' own table of noise levels; ComfyUI's table itself is within 1.3e-5 of it."""
    import diffusers

    model = analytic.wrap(FIELD.denoise)
    sampling = model.get_model_object("model_sampling")
    peer = diffusers.EulerDiscreteScheduler(**STABLE_DIFFUSION, timestep_spacing=spaced.removeprefix("diffusers "))
    table = ((1 - peer.alphas_cumprod) / peer.alphas_cumprod) ** 0.5
    assert float((table / sampling.sigmas - 1).abs().max()) < 1.3e-5
    sampling.set_sigmas(table)
    for steps in range(1, 101):
        peer.set_timesteps(steps)
        if (spaced, steps) == (spacing.TRAILING, 61):
            assert len(peer.sigmas) == 63  # numpy's arange returns one too many there; ours has the requested steps
            continue
        ours = spacing.spaced(sampling, spaced, steps)
        assert ours.shape == (steps + 1,)
        assert float(((ours - peer.sigmas)[:-1] / peer.sigmas[:-1]).abs().max()) < 1e-6, steps


def test_leading_is_the_schedule_of_stable_diffusions_own_pipelines(models):
    """The timesteps of DDIM as the SD1.5 pipelines configure it."""
    import diffusers

    peer = diffusers.DDIMScheduler(**STABLE_DIFFUSION, set_alpha_to_one=False)
    sampling = models["epsilon"].get_model_object("model_sampling")
    for steps in range(1, 101):
        peer.set_timesteps(steps)
        assert torch.equal(sampling.timestep(spacing.spaced(sampling, spacing.LEADING, steps)[:-1]), peer.timesteps)


def test_trailing_on_flux_is_its_pipelines_schedule(comfyui):
    import comfy.model_sampling
    import diffusers

    class Flux(comfy.model_sampling.ModelSamplingFlux, comfy.model_sampling.CONST):
        pass

    sampling = Flux()
    peer = diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    for steps in range(1, 101):
        peer.set_timesteps(sigmas=np.linspace(1.0, 1 / steps, steps), mu=sampling.shift)
        ours = spacing.spaced(sampling, spacing.TRAILING, steps)
        assert float(((ours - peer.sigmas)[:-1] / peer.sigmas[:-1]).abs().max()) < 1e-6, steps


def test_a_picture_by_the_diffusers_contract_is_diffusers_own_loop(denoise, latent):
    """The img2img loop of diffusers (add_noise, then step by step) on the same network ends in the same latent."""
    import diffusers

    model = analytic.wrap(FIELD.denoise)
    steps, strength = 20, 0.6
    peer = diffusers.EulerDiscreteScheduler(**STABLE_DIFFUSION, timestep_spacing="leading")
    peer.set_timesteps(steps)
    timesteps, _ = _timesteps("StableDiffusionImg2ImgPipeline", peer, steps, strength)
    clean = latent["samples"] * 0.18215
    noise = noise_for(latent["samples"], 7, latent)
    x = peer.add_noise(clean, noise, timesteps[:1])
    for t in timesteps:
        sigma = peer.sigmas[peer.step_index if peer.step_index is not None else steps - len(timesteps)]
        epsilon = (x - FIELD.denoise(x, sigma)) / sigma
        x = peer.step(epsilon, t, x).prev_sample
    ours = denoise(model, latent, strength, steps=steps, scheduler=spacing.LEADING, contract="diffusers")
    assert len(ours[2]) - 1 == len(timesteps) == 12
    assert float((ours[0]["samples"] * 0.18215 - x).abs().max()) < 1e-4


# --- Noise level ----------------------------------------------------------------------------------------------------


def rises(distances) -> float:
    return scipy.stats.spearmanr(range(len(distances)), distances).statistic


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("steps", [1, 4, 20])
def test_distance_from_the_picture_rises_with_strength(denoise, models, latent, kind, steps):
    out = [denoise(models[kind], latent, (i + 1) / 20, steps=steps)[0]["samples"] for i in range(20)]
    distances = [float((x - latent["samples"]).pow(2).mean()) for x in out]
    assert rises(distances) >= 0.99, distances
    assert all(not torch.equal(a, b) for a, b in zip(out, out[1:], strict=False))


@pytest.fixture(scope="module")
def unet(comfyui):
    """(model, latent, positive, negative) of a small U-Net of SD1.5's class with random weights."""
    generator = torch.Generator().manual_seed(4)
    positive, negative = ([[torch.randn(1, 7, tiny.CONTEXT, generator=generator), {}]] for _ in range(2))
    return tiny.patcher(), {"samples": torch.randn(1, 4, 8, 8, generator=generator)}, positive, negative


@pytest.mark.parametrize("sampler", ["euler", "uni_pc"])
def test_a_network_gives_ksamplers_picture(run_node, unet, sampler):
    model, latent, positive, negative = unet
    same = dict(
        model=model,
        positive=positive,
        negative=negative,
        latent_image=latent,
        steps=3,
        cfg=4.0,
        sampler_name=sampler,
        scheduler="karras",
        seed=1,
    )
    for strength in (0.5, 1.0):
        (core,) = run_node("KSampler", denoise=strength, **same)
        assert torch.equal(
            run_node("BespokePartialDenoise", strength=strength, contract="comfy", **same)[0]["samples"],
            core["samples"],
        )
    assert torch.equal(run_node("BespokePartialDenoise", strength=1.0, **same)[0]["samples"], core["samples"])


PICTURES = 8


@pytest.fixture(scope="module")
def sprites_and_prompts(run_node, small):
    """(model, latents, positive, negative): the trained small model and eight of its pictures with their captions."""
    model, clip, vae = small
    pairs = sprites.training_set(np.random.default_rng(5), PICTURES)
    pixels = torch.stack([torch.from_numpy(np.array(picture, dtype=np.float32) / 255.0) for picture, _ in pairs])
    (latent,) = run_node("VAEEncode", vae=vae, pixels=pixels)

    def encoded(texts):
        return [[torch.cat([run_node("CLIPTextEncode", clip=clip, text=text)[0][0][0] for text in texts]), {}]]

    return model, latent, encoded([caption for _, caption in pairs]), encoded([""] * PICTURES)


@pytest.mark.slow
@pytest.mark.parametrize(("steps", "pictures"), [(4, PICTURES), (20, 2)])
def test_distance_rises_with_strength_on_the_trained_model(run_node, sprites_and_prompts, steps, pictures):
    """The mean over pictures, each with its own noise: at few steps one picture's distance may fall again."""
    model, latent, *prompts = sprites_and_prompts
    latent = {"samples": latent["samples"][:pictures]}
    positive, negative = ([[prompt[0][0][:pictures], {}]] for prompt in prompts)
    out = [
        run_node(
            "BespokePartialDenoise",
            model=model,
            positive=positive,
            negative=negative,
            latent_image=latent,
            steps=steps,
            strength=(i + 1) / 20,
            cfg=2.0,
            sampler_name="euler",
            scheduler="normal",
            seed=1,
        )[0]["samples"]
        for i in range(20)
    ]
    distances = torch.stack([(x - latent["samples"]).pow(2).mean((1, 2, 3)) for x in out])  # [strengths, pictures]
    print(
        f"\n{steps} steps, mean squared distance at strength .05 to 1:", [round(float(d), 4) for d in distances.mean(1)]
    )
    print("Spearman of each picture:", [round(rises(column), 3) for column in distances.T.tolist()])
    assert rises(distances.mean(1).tolist()) >= 0.99
    for a, b in zip(out, out[1:], strict=False):
        assert all(not torch.equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize(
    "all_steps", [pytest.param((4,), id="some"), pytest.param((2, 4, 20), marks=pytest.mark.slow, id="all")]
)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_every_scheduler_starts_at_the_models_noise_level(models, kind, scheduler, all_steps):
    sampling = models[kind].get_model_object("model_sampling")
    schedule = schedule_of(models[kind], scheduler, "euler")
    for steps in all_steps:
        for strength in (0.02, 0.37, 0.58, 0.96, 0.999):
            for exact in (False, True):
                sigma = sampling.percent_to_sigma(1 - strength)
                try:
                    sigmas = plan_sigmas(Strength(strength, steps, NOISE_LEVEL, exact), schedule, sigma).sigmas
                except InputError as error:
                    assert exact and strength == 0.02 and "too few for exactly" in str(error)  # noqa: PT017, PT018
                    continue
                assert float(sigmas[0]) == pytest.approx(sigma, rel=1e-6)
                assert (sigmas.diff() < 0).all()
                assert len(sigmas) - 1 == steps if exact else 1 <= len(sigmas) - 1 <= steps


@pytest.mark.parametrize("sampler", MOST)
def test_a_start_just_above_a_step_is_safe_for_multistep_samplers(denoise, models, latent, sampler):
    """With the short remainder as a separate step, dpmpp_2m_sde, ipndm_v and others would diverge."""
    model = models["epsilon"]
    sampling = model.get_model_object("model_sampling")
    step = float(sampling.timestep(schedule_of(model, "normal", sampler)(10)[5]))

    def spread(t):
        return float(denoise(model, latent, t / 999, steps=10, sampler=sampler)[0]["samples"].std())

    assert spread(step + 0.05) < 1.5 * spread(step + 55)


# --- Start, noise and sampling --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("strength", [0.3, 1.0])
def test_start_is_what_the_first_model_call_gets(denoise, latent, kind, strength):
    model = analytic.wrap(FIELD.denoise, kind)
    model.model.diffusion_model.keep_inputs = True
    _, start, sigmas, _ = denoise(model, latent, strength)
    sigma, x = model.model.diffusion_model.inputs[0]
    assert sigma == float(sigmas[0])
    assert torch.allclose(start["samples"] * 0.18215, x, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_start_has_the_noise_share_of_the_report(denoise, kind):
    model = analytic.wrap(lambda y, sigma: y / (1.0 + sigma**2), kind)
    picture = torch.randn(1, 4, 128, 128, generator=torch.Generator().manual_seed(1)) / 0.18215
    _, start, sigmas, text = denoise(model, {"samples": picture}, 0.5, seed=2)
    sampling = model.get_model_object("model_sampling")
    share = noise_share(sampling, float(sigmas[0]))
    noise = noise_for(picture, 2, {})
    measured = torch.corrcoef(torch.stack([start["samples"].flatten(), noise.flatten()]))[0, 1] ** 2
    assert float(measured) == pytest.approx(share, abs=0.01)
    assert f"{100 * share:.0f} % of the variance is noise" in text


@pytest.mark.parametrize("contract", CONTRACTS)
@pytest.mark.parametrize("sampler", ["euler", "uni_pc", "dpmpp_2m_sde"])
def test_the_sigmas_in_sampler_custom_advanced_give_the_same_picture(
    run_node, denoise, models, latent, contract, sampler
):
    none = analytic.conditioning()
    for kind in KINDS:
        ours, _, sigmas, _ = denoise(models[kind], latent, 0.6, sampler=sampler, contract=contract)
        (noise,) = run_node("RandomNoise", noise_seed=7)
        (guider,) = run_node("CFGGuider", model=models[kind], positive=none, negative=none, cfg=1.0)
        (method,) = run_node("KSamplerSelect", sampler_name=sampler)
        custom = run_node(
            "SamplerCustomAdvanced",
            noise=noise,
            guider=guider,
            sampler=method,
            sigmas=sigmas.clone(),
            latent_image=latent,
        )
        assert torch.equal(custom[0]["samples"], ours["samples"])
        (again, *_) = run_node(
            "BespokeStrengthSigmas",
            model=models[kind],
            scheduler="normal",
            steps=6,
            strength=0.6,
            contract=contract,
            sampler_name=sampler,
        )
        assert torch.equal(again, sigmas)


def test_batch_index_and_mask_are_ksamplers(denoise, models, latent):
    mask = torch.zeros(1, 1, 128, 128)
    mask[..., 40:90, 30:100] = 1.0
    given = {"samples": latent["samples"], "noise_mask": mask, "batch_index": [5, 2]}
    for kind in KINDS:
        for sampler in ("euler", "ddim", "dpmpp_2m_sde"):
            out = denoise(models[kind], given, 0.5, sampler=sampler, contract="comfy")[0]
            assert torch.equal(out["samples"], ksample(models[kind], given, 0.5, sampler=sampler)), (kind, sampler)
            assert out["batch_index"] == [5, 2]
            assert out["noise_mask"] is mask
    single = {"samples": latent["samples"][1:], "batch_index": [2]}
    whole = {"samples": latent["samples"], "batch_index": [5, 2]}
    one, two = (denoise(models["flow"], given, 0.5)[0]["samples"] for given in (single, whole))
    assert torch.allclose(one[0], two[1], atol=1e-4)


def video_model(kind):
    import comfy.latent_formats

    class Video(comfy.latent_formats.LatentFormat):
        latent_channels, latent_dimensions = 4, 3
        scale_factor = 0.5

    return analytic.wrap(lambda y, sigma: y / (1.0 + sigma**2), kind, latent_format=Video())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(1, 4, 3, 8, 8), (2, 4, 8, 8)])
def test_5d_latents_are_ksamplers(denoise, kind, shape):
    model = video_model(kind)
    clip = {"samples": torch.randn(shape, generator=torch.Generator().manual_seed(0))}
    for strength in (0.5, 1.0):
        out, start, _, _ = denoise(model, clip, strength, contract="comfy")
        assert out["samples"].ndim == 5
        assert start["samples"].shape == out["samples"].shape
        assert torch.equal(out["samples"], ksample(model, clip, strength))


@pytest.mark.parametrize("kind", KINDS)
def test_nested_latents_are_ksamplers(denoise, kind):
    model = analytic.wrap(lambda y, sigma: y / (1.0 + sigma**2), kind)
    generator = torch.Generator().manual_seed(0)
    picture, audio = torch.randn(1, 4, 8, 8, generator=generator), torch.randn(1, 2, 5, 6, generator=generator)
    given = {"samples": NestedTensor([picture, audio])}
    for strength, contract in ((0.5, "comfy"), (1.0, "noise level"), (0.0, "noise level")):
        out, start, _, _ = denoise(model, given, strength, contract=contract)
        core = ksample(model, given, strength)
        for ours, theirs, first in zip(out["samples"].unbind(), core.unbind(), start["samples"].unbind(), strict=True):
            assert torch.equal(ours, theirs)
            assert first.shape == theirs.shape
    assert torch.equal(out["samples"].unbind()[1], audio)


def test_the_progress_bar_counts_the_steps_that_run(denoise, models, latent):
    seen = []
    comfy.utils.set_progress_bar_global_hook(
        lambda value, total, preview, node_id=None, **_: seen.append((value, total))
    )
    try:
        denoise(models["epsilon"], latent, 0.5, steps=20, contract="a1111")
    finally:
        comfy.utils.set_progress_bar_global_hook(None)
    assert (seen[0], seen[-1]) == ((1, 11), (11, 11))  # core skips some updates between them


def test_inputs_are_not_written_to(denoise, models, latent):
    model, before = models["epsilon"], latent["samples"].clone()
    options = repr(model.model_options)
    for sampler in ("uni_pc", "dpmpp_2m", "euler"):
        denoise(model, latent, 0.5, sampler=sampler)
    assert torch.equal(latent["samples"], before)
    assert set(latent) == {"samples"}
    assert repr(model.model_options) == options


# --- Report and plot ----------------------------------------------------------------------------------------------


def test_report_text(denoise, models, latent):
    text = denoise(models["epsilon"], latent, 0.5, steps=20, contract="diffusers")[3]
    assert text == "diffusers: runs 10 of 20 steps, from sigma 1.48 (t = 473), 69 % of the variance is noise."
    text = denoise(models["flow"], latent, 0.5, steps=20)[3]
    assert text == "noise level: runs 11 of 20 steps, from sigma 0.75 (t = 750), 90 % of the variance is noise."
    text = denoise(models["v"], latent, 1.0, steps=20)[3]
    assert text == "noise level: runs 20 of 20 steps, from sigma 14.6 (t = 999), 99.53 % of the variance is noise."
    text = denoise(models["epsilon"], latent, 0.5, steps=30, scheduler="ddim_uniform", contract="a1111")[3].splitlines()
    assert text[0].startswith("a1111: runs 16 of 31 steps")
    assert text[1] == "The scheduler gave 31 steps where 30 were asked for."


@pytest.mark.parametrize(
    ("share", "text"),
    [(0.0, "0 %"), (0.00085, "0.085 %"), (0.685, "68 %"), (0.9953, "99.53 %"), (0.999999, "99.99 %"), (1.0, "100 %")],
)
def test_percentages_do_not_round_to_nothing_or_all(share, text):
    assert report.percent(share) == text


def test_the_plot_marks_the_start_where_it_is(run_node, models):
    *_, image = run_node(
        "BespokeStrengthSigmas", model=models["flow"], scheduler="simple", steps=20, strength=0.6, contract="comfy"
    )
    assert image.shape == (1, plot.HEIGHT, plot.WIDTH, 3)
    marked = (image[0] - torch.tensor(palette.START) / 255).abs().amax(-1) < 0.02
    _, xs = marked.nonzero(as_tuple=True)
    column = xs.mode().values.item()
    schedule_steps = int(20 / 0.6)
    wanted = plot.LEFT + (plot.WIDTH - plot.LEFT - plot.RIGHT) * (schedule_steps - 20) / schedule_steps
    assert abs(column - wanted) <= 1
    bar = image[0, :, plot.WIDTH - 96]
    noise = ((bar - torch.tensor(palette.NOISE) / 255).abs().amax(-1) < 0.02).sum().item()
    sigma = float(
        run_node(
            "BespokeStrengthSigmas", model=models["flow"], scheduler="simple", steps=20, strength=0.6, contract="comfy"
        )[0][0]
    )
    share = sigma**2 / (sigma**2 + (1 - sigma) ** 2)
    height = plot.HEIGHT - plot.TOP - plot.BOTTOM
    assert noise == pytest.approx(share * height, abs=14)  # and the text below the bar


# --- Bad input ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("strength", [math.nan, -0.1, 1.01, math.inf])
def test_an_invalid_strength_is_an_error(run_node, denoise, models, latent, strength):
    with pytest.raises(InputError, match=f"Bespoke Partial Denoise: strength is {strength}; give a number from 0"):
        denoise(models["epsilon"], latent, strength)
    with pytest.raises(InputError, match=f"Bespoke Strength Sigmas: strength is {strength}"):
        run_node("BespokeStrengthSigmas", model=models["epsilon"], scheduler="normal", steps=20, strength=strength)


def test_steps_0_is_an_error(denoise, models, latent):
    with pytest.raises(InputError, match="Bespoke Partial Denoise: steps is 0; give a whole number from 1"):
        denoise(models["epsilon"], latent, 0.5, steps=0)


@pytest.mark.parametrize("contract", CONTRACTS)
def test_an_empty_latent_is_an_error_below_strength_1(denoise, models, contract):
    with pytest.raises(
        InputError, match="latent_image is empty .all zeros.*encode a picture with VAE Encode, or set strength to 1"
    ):
        denoise(models["epsilon"], {"samples": torch.zeros(1, 4, 16, 16)}, 0.5, contract=contract)


@pytest.mark.parametrize("strength", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("shape", [(0, 4, 16, 16), (1, 4, 0, 16)])
def test_a_latent_without_values_is_an_error(denoise, models, shape, strength):
    with pytest.raises(InputError, match="latent_image holds no values"):
        denoise(models["epsilon"], {"samples": torch.zeros(shape)}, strength)


@pytest.mark.parametrize("strength", [0.0, 0.5, 1.0])
def test_channels_that_do_not_fit_are_an_error(denoise, models, strength):
    with pytest.raises(
        InputError,
        match="latent_image has 16 channels and this model's latents have 4; encode the picture with the VAE",
    ):
        denoise(models["epsilon"], {"samples": torch.ones(1, 16, 16, 16)}, strength)


def test_a_scheduler_that_gives_too_few_sigmas_is_reported_or_an_error(denoise, models, latent, monkeypatch):
    few = comfy.samplers.SchedulerHandler(lambda sampling, steps: torch.tensor([14.6, 5.0, 1.0, 0.2, 0.0]))
    monkeypatch.setitem(comfy.samplers.SCHEDULER_HANDLERS, "few", few)
    monkeypatch.setattr(comfy.samplers.KSampler, "SCHEDULERS", [*SCHEDULERS, "few"])
    for contract in CONTRACTS[:4]:
        text = denoise(models["epsilon"], latent, 0.5, steps=20, scheduler="few", contract=contract)[3]
        assert "of 4 steps" in text
        assert "The scheduler gave 4 steps where 20 were asked for." in text
        with pytest.raises(InputError, match="the scheduler (gives 4 steps at most|has 2 noise levels)"):
            denoise(models["epsilon"], latent, 0.5, steps=20, scheduler="few", contract=contract, exact_steps=True)
    text = denoise(models["epsilon"], latent, 0.5, steps=20, scheduler="few", contract="comfy")[3]
    assert "The scheduler gave 4 steps where 40 were asked for.\nSo the whole schedule runs, from pure noise" in text


def test_a_scheduler_that_gives_no_number_is_an_error(denoise, models, latent):
    with pytest.raises(InputError, match="no usable sigmas for 1 steps"):  # kl_optimal divides by steps - 1
        denoise(models["epsilon"], latent, 1.0, steps=1, scheduler="kl_optimal")


def test_names_that_comfyui_does_not_know_are_an_error(denoise, models, latent):
    with pytest.raises(InputError, match="sampler_name 'none' is unknown"):
        denoise(models["epsilon"], latent, 0.5, sampler="none")
    with pytest.raises(InputError, match="scheduler 'none' is unknown"):
        denoise(models["epsilon"], latent, 0.5, scheduler="none")


def test_spacings_are_refused_where_they_do_not_apply(denoise, models, latent):
    with pytest.raises(InputError, match="'diffusers leading' is one of epsilon and v models"):
        denoise(models["flow"], latent, 0.5, scheduler="diffusers leading")
    with pytest.raises(InputError, match="1200 steps are more than the 1000 training timesteps"):
        denoise(models["v"], latent, 0.5, steps=1200, scheduler="diffusers leading")
