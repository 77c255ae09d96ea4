"""Latent Mask Blend under guiders and samplers that replace what `CFGGuider` does, as other packs' do.

Oracles: outside the mask the result is the original, bit for bit; where the method that is replaced changes no number,
the result inside is KSampler's. What cannot be blended is refused with the node's name and the mend.
"""

import analytic
import comfy.hooks
import comfy.model_patcher
import comfy.sample
import comfy.sampler_helpers
import comfy.samplers
import pytest
import torch
from bespoke.nodes.inpaint.guider_checks import MaskGuard
from comfy.patcher_extension import WrappersMP
from comfy_extras.nodes_perpneg import Guider_PerpNeg

NAME = "Bespoke Latent Mask Blend: "
MEND = "wire the model from before Latent Mask Blend into this sampler"
SEED = 4


@pytest.fixture(scope="module")
def field(comfyui):
    return analytic.Field(16, 16, "natural")


@pytest.fixture(scope="module")
def latent(field):
    return {"samples": field.sample(2, 4, seed=3) / 0.18215}


@pytest.fixture(scope="module", params=["epsilon", "flow"])
def blended(request, run_node, field, latent):
    """(model, latent with its noise mask) of the node, for two pictures under one mask."""
    return _blended(run_node, field, latent, request.param)


def _blended(run_node, field, latent, kind="epsilon"):
    mask = torch.zeros(1, 128, 128)
    mask[:, 41:90, 50:100] = 1.0
    model = analytic.wrap(field.denoise, kind)
    return run_node("BespokeLatentMaskBlend", model=model, latent=latent, mask=mask)[:2]


def sample(guider, masked, sampler="euler", steps=4, first=None):
    """A guider's own `sample` on the latent, with noise of `SEED`."""
    sampling = guider.model_patcher.get_model_object("model_sampling")
    sigmas = comfy.samplers.calculate_sigmas(sampling, "normal", steps)
    if first is not None:
        sigmas = sigmas[first:]
    noise = comfy.sample.prepare_noise(masked["samples"], SEED)
    sampler = comfy.samplers.sampler_object(sampler) if isinstance(sampler, str) else sampler
    with torch.inference_mode():
        return guider.sample(noise, masked["samples"], sampler, sigmas, masked["noise_mask"], seed=SEED)


def guider_of(kind, model, **attributes):
    guider = kind(model)
    none = analytic.conditioning()
    if isinstance(guider, Guider_PerpNeg):
        guider.set_conds(none, none, none)
        guider.set_cfg(3.0, 1.0)
    else:
        guider.set_conds(none, none)
    vars(guider).update(attributes)
    return guider


def check_blended(result, masked):
    """Outside 0.0 from the original, and inside another picture."""
    mask = masked["noise_mask"].expand_as(result)
    difference = (result - masked["samples"]).abs()
    assert float(difference[mask == 0].max()) == 0.0
    assert float(difference[mask == 1].min()) > 0.0
    assert torch.isfinite(result).all()


class Plain(comfy.samplers.CFGGuider):
    """Core's, as the number to compare with."""


class OwnMethods(comfy.samplers.CFGGuider):
    """Every method of a run replaced by one that calls core's."""

    def sample(self, *args, **kwargs):
        return super().sample(*args, **kwargs)

    def outer_sample(self, noise, latent_image, sampler, sigmas, denoise_mask=None, *args, **kwargs):
        assert denoise_mask is not None
        return super().outer_sample(noise, latent_image, sampler, sigmas, denoise_mask, *args, **kwargs)

    def inner_sample(self, *args, **kwargs):
        return super().inner_sample(*args, **kwargs)

    def predict_noise(self, x, timestep, model_options=None, seed=None):
        return super().predict_noise(x, timestep, model_options or {}, seed)


class WithoutMask(comfy.samplers.CFGGuider):
    """Gives its sampler no mask, whatever it gets."""

    def inner_sample(self, noise, latent_image, device, sampler, sigmas, denoise_mask, *args, **kwargs):
        return super().inner_sample(noise, latent_image, device, sampler, sigmas, None, *args, **kwargs)


class SeveralCalls(comfy.samplers.CFGGuider):
    """Predicts from the mean of two calls with other batches than the state's, as perturbed guidance does."""

    def predict_noise(self, x, timestep, model_options=None, seed=None):
        twice = super().predict_noise(torch.cat([x, x]), torch.cat([timestep, timestep]), model_options or {}, seed)
        alone = [super().predict_noise(x[:1], timestep[:1], model_options or {}, seed)]
        alone.append(super().predict_noise(x[1:], timestep[1:], model_options or {}, seed))
        return (twice[: len(x)] + torch.cat(alone)) / 2


@pytest.mark.parametrize("kind", [OwnMethods, WithoutMask, SeveralCalls])
def test_guiders_that_replace_methods_and_keep_the_wrappers_are_blended(blended, kind):
    model, masked = blended
    expected = sample(guider_of(Plain, model), masked)
    result = sample(guider_of(kind, model), masked)
    check_blended(result, masked)
    torch.testing.assert_close(result, expected, rtol=1e-4, atol=1e-4)


def test_perp_neg_is_blended(blended):
    """The three predictions are made different, since core divides by the length of what the negative adds."""
    model, masked = blended
    model = model.clone()
    model.set_model_sampler_pre_cfg_function(
        lambda args: [f * o for f, o in zip((1, 0.8, 0.9), args["conds_out"], strict=True)]
    )
    for sampler in ("euler", "euler_cfg_pp"):
        check_blended(sample(guider_of(Guider_PerpNeg, model), masked, sampler), masked)


def test_conditioning_with_a_hook_is_blended(run_node, field, latent):
    """Core calls hooked conditioning apart from the rest, with the hook's wrappers beside those of the blend."""
    model, masked = _blended(run_node, field, latent)
    seen = []

    def watch(executor, *args, **kwargs):
        seen.append(1)
        return executor(*args, **kwargs)

    wrappers = {"wrappers": {WrappersMP.APPLY_MODEL: {"test": [watch]}}}
    group = comfy.hooks.HookGroup()
    group.add(comfy.hooks.TransformerOptionsHook(transformers_dict=wrappers))
    guider = guider_of(Plain, model)
    hooked = [[c, {**extra, "hooks": group}] for c, extra in analytic.conditioning()]
    guider.set_conds(hooked, analytic.conditioning())
    result = sample(guider, masked)
    check_blended(result, masked)
    assert seen
    torch.testing.assert_close(result, sample(guider_of(Plain, model), masked), rtol=1e-4, atol=1e-4)


class TwoPhases(comfy.samplers.CFGGuider):
    """Samples twice in one run: the second time from the state that the first left."""

    def inner_sample(self, noise, latent_image, device, sampler, sigmas, denoise_mask, callback, bar, seed, **more):
        half = len(sigmas) // 2
        run = super().inner_sample
        state = run(noise, latent_image, device, sampler, sigmas[: half + 1], denoise_mask, callback, bar, seed, **more)
        zero = torch.zeros_like(noise)
        return run(zero, state.to(noise), device, sampler, sigmas[half:], denoise_mask, callback, bar, seed, **more)


def test_a_guider_that_samples_twice_keeps_the_runs_original_and_noise(blended):
    """The oracle is one run over all sigmas: euler has no memory, so two phases give the same states."""
    model, masked = blended
    result = sample(guider_of(TwoPhases, model), masked)
    check_blended(result, masked)
    torch.testing.assert_close(result, sample(guider_of(Plain, model), masked), rtol=1e-3, atol=1e-3)


# --- What is refused ---------------------------------------------------------------------------------------------


class Pair(comfy.samplers.CFGGuider):
    def predict_noise(self, x, timestep, model_options=None, seed=None):
        found = super().predict_noise(x, timestep, model_options or {}, seed)
        return found, found


class OtherShape(comfy.samplers.CFGGuider):
    def predict_noise(self, x, timestep, model_options=None, seed=None):
        return super().predict_noise(x, timestep, model_options or {}, seed)[:, :, :8]


class NoOuterWrapper(comfy.samplers.CFGGuider):
    """Prepares its run by itself and leaves the wrappers of a run out."""

    def sample(self, noise, latent_image, sampler, sigmas, denoise_mask=None, callback=None, bar=False, seed=None):
        model = self.model_patcher.clone()
        for key in list(model.wrappers.get(WrappersMP.OUTER_SAMPLE, {})):
            model.remove_wrappers_with_key(WrappersMP.OUTER_SAMPLE, key)
        self.model_patcher = model
        return super().sample(noise, latent_image, sampler, sigmas, denoise_mask, callback, bar, seed)


class NoSamplerWrapper(comfy.samplers.CFGGuider):
    def inner_sample(self, noise, latent_image, device, sampler, sigmas, denoise_mask, callback, bar, seed, **more):
        latent_image = self.inner_model.process_latent_in(latent_image)
        self.conds = comfy.samplers.process_conds(
            self.inner_model, noise, self.conds, device, latent_image, denoise_mask, seed
        )
        arguments = {"model_options": self.model_options, "seed": seed}
        mask = denoise_mask if self.with_mask else None
        return sampler.sample(self, sigmas, arguments, callback, noise, latent_image, mask, bar)


class NoPredictionWrapper(comfy.samplers.CFGGuider):
    def __call__(self, *args, **kwargs):
        return self.predict_noise(*args, **kwargs)


class NoModel(comfy.samplers.CFGGuider):
    """Predicts with something that is not the model."""

    def __call__(self, x, timestep, model_options=None, seed=None):
        return torch.zeros_like(x)


class NoSampler(comfy.samplers.CFGGuider):
    def inner_sample(self, noise, latent_image, *args, **kwargs):
        return noise


class WrongResult(comfy.samplers.CFGGuider):
    def outer_sample(self, *args, **kwargs):
        return super().outer_sample(*args, **kwargs), None


@pytest.mark.parametrize(
    ("kind", "attributes", "words"),
    [
        (Pair, {}, "predict_noise of the guider Pair gave a tuple of 2 where one prediction is due"),
        (OtherShape, {}, r"gave the shape \[2, 4, 8, 16\] for a state of \[2, 4, 16, 16\]"),
        (NoOuterWrapper, {}, "the sampler masks by itself and leaves out the sampling wrappers"),
        (NoSamplerWrapper, {"with_mask": True}, "the sampler masks by itself and leaves out the sampling wrappers"),
        (NoSamplerWrapper, {"with_mask": False}, "NoSamplerWrapper predicts before its sampler is called through"),
        (NoPredictionWrapper, {}, "calls the model past the guider's predictions"),
        (NoModel, {}, "the sampler made 4 steps and asked the guider NoModel for no prediction"),
        (NoSampler, {}, "the guider NoSampler samples without the wrappers of its samplers"),
        (WrongResult, {}, r"the guider WrongResult returned tuple for a latent of \[2, 4, 16, 16\]"),
    ],
)
def test_guiders_that_pass_the_blend_by_are_refused_with_the_mend(blended, kind, attributes, words):
    model, masked = blended
    with pytest.raises(ValueError, match=NAME + ".*" + words + ".*" + MEND):
        sample(guider_of(kind, model, **attributes), masked)
    # The model is unharmed: the next sampler gets its blend.
    check_blended(sample(guider_of(Plain, model), masked), masked)


def _tiles(model, x, sigmas, extra_args=None, callback=None, disable=None):
    """A sampler that asks for a part of the state."""
    model(x[..., :8], sigmas[:1].expand(len(x)), **extra_args)
    return x


def _one_at_a_time(model, x, sigmas, extra_args=None, callback=None, disable=None):
    model(x[:1], sigmas[:1], **extra_args)
    return x


@pytest.mark.parametrize(
    ("function", "words"),
    [(_tiles, r"\[2, 4, 16, 8\] and the latent has \[2, 4, 16, 16\]"), (_one_at_a_time, r"\[1, 4, 16, 16\] and")],
)
def test_a_sampler_that_asks_for_parts_of_the_state_is_refused(blended, function, words):
    model, masked = blended
    with pytest.raises(ValueError, match=NAME + "the sampler asks for a prediction of the shape " + words):
        sample(guider_of(Plain, model), masked, comfy.samplers.KSAMPLER(function))


def _twice_as_many(model, x, sigmas, extra_args=None, callback=None, disable=None):
    """Euler whose model call gets the state twice, of which the second counts."""
    for sigma, following in zip(sigmas, sigmas[1:], strict=False):
        both = model(torch.cat([x, x]), sigma.expand(2 * len(x)), **extra_args)
        x = x + (x - both[len(x) :]) / sigma * (following - sigma)
    return x


def test_one_picture_may_be_asked_for_several_states_at_once(run_node, field, latent):
    model, masked = _blended(run_node, field, {"samples": latent["samples"][:1]})
    result = sample(guider_of(Plain, model), masked, comfy.samplers.KSAMPLER(_twice_as_many))
    check_blended(result, masked)
    torch.testing.assert_close(result, sample(guider_of(Plain, model), masked), rtol=1e-4, atol=1e-4)


def test_without_a_mask_or_with_the_model_from_before_nothing_is_refused(run_node, field, latent):
    """The mend that the refusals name, and a run that has nothing to blend."""
    model, masked = _blended(run_node, field, latent)
    before = analytic.wrap(field.denoise, "epsilon")
    for kind, found in ((NoOuterWrapper, before), (NoPredictionWrapper, before)):
        found.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, "other", lambda executor, *a, **k: executor(*a, **k))
        assert torch.isfinite(sample(guider_of(kind, found), masked)).all()
    whole = {"samples": latent["samples"], "noise_mask": None}
    for kind in (NoOuterWrapper, NoPredictionWrapper):
        result = sample(guider_of(kind, model), whole)
        assert torch.isfinite(result).all()


def test_the_guard_keeps_the_function_of_another_node_and_is_never_doubled(run_node, field, latent):
    model = analytic.wrap(field.denoise, "epsilon")
    (model,) = run_node("DifferentialDiffusion", model=model)
    others = model.model_options["denoise_mask_function"]
    for _ in range(2):
        model = run_node("BespokeLatentMaskBlend", model=model, latent=latent, mask=torch.ones(1, 128, 128))[0]
        guard = model.model_options["denoise_mask_function"]
        assert isinstance(guard, MaskGuard)
        assert guard.earlier is others
