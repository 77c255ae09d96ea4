"""Keeping the latent outside a mask while any sampler denoises inside: blends as wrappers on a cloned ModelPatcher.

Notation: m the mask (1 may change), L the original latent, n the noise the run began with, sigma the present noise
level, x the sampler's state, D(x, sigma) the model's prediction of the clean latent (x0).

    re-inject      D is asked at m x + (1 - m) noised(L, n, sigma); the answer is m D + (1 - m) L
    prediction     D is asked at x;                                 the answer is m D + (1 - m) L
    differential   as prediction, with m 1 where m >= the share of the run's noise schedule that is left, else 0

`noised` is the model's own `scale_latent_inpaint`, which is sigma n + L for epsilon and v prediction, sigma n +
(1 - sigma) L for flow, and the clean L for some video models. The first is Blended Latent Diffusion (Avrahami et al.
2023, arXiv 2206.02779) and what core does with a noise mask; the third is Differential Diffusion (Levin & Fried 2023,
arXiv 2306.00950), which never lets go where m is 0. A run that goes on from a latent with noise in it cannot know where
the first stage began, so there the share is of the model's whole schedule.

All of it hangs on `OUTER_SAMPLE`, which adds the other wrappers for one run only, so that a patched model holds no
state of a run and two runs cannot meet.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from comfy.model_base import BaseModel
from comfy.patcher_extension import WrappersMP

from ...training.errors import InputError

KEY = "bespoke_latent_mask_blend"
BLENDS = ("auto", "re-inject", "prediction", "differential")
BIAS_MIN, BIAS_MAX = 0.0, 8.0
PRESERVATION, PRESERVATION_MIN, PRESERVATION_MAX = 1.0, 0.0, 8.0


@dataclass(frozen=True)
class Blend:
    """How a run under a mask is blended. `kind` is one of `BLENDS` but "auto".

    At noise-to-signal r a mask value m acts as m ** (preservation * r ** bias): the two knobs of AUTOMATIC1111's soft
    inpainting, "preservation strength" and "schedule bias".
    """

    kind: str
    bias: float = 0.0
    original: torch.Tensor | None = None  # the clean latent, as the sampler is given it
    preservation: float = PRESERVATION

    def __post_init__(self):
        if self.kind not in BLENDS[1:]:
            raise InputError(f"blend is {self.kind!r}; give one of {', '.join(BLENDS)}")
        if not BIAS_MIN <= self.bias <= BIAS_MAX:
            raise InputError(f"bias is {self.bias}; give {BIAS_MIN:g} to {BIAS_MAX:g}")
        if not PRESERVATION_MIN <= self.preservation <= PRESERVATION_MAX:
            raise InputError(
                f"preservation is {self.preservation}; give {PRESERVATION_MIN:g} to {PRESERVATION_MAX:g} (1 leaves "
                "the mask as it is)"
            )


def has_own_inpaint_noise(model) -> bool:
    """Whether the model of a ModelPatcher keeps masked latents in its own way (most do not noise them at all)."""
    return getattr(type(model.model), "scale_latent_inpaint", None) is not BaseModel.scale_latent_inpaint


def takes_denoise_mask(scale_latent_inpaint: Callable) -> bool:
    """Whether the function takes the `denoise_mask` that ComfyUI 0.33 and newer pass to it."""
    parameters = inspect.signature(scale_latent_inpaint).parameters
    return "denoise_mask" in parameters or any(p.kind is p.VAR_KEYWORD for p in parameters.values())


def choose(cells: torch.Tensor, model) -> tuple[str, str]:
    """The blend for "auto" and why, from the cells' values [..., rows, columns] and the model."""
    if has_own_inpaint_noise(model):
        return "re-inject", "this model keeps masked latents in a way of its own"
    if bool(((cells > 0.0) & (cells < 1.0)).any()):
        return "differential", "the mask is soft, and its values are taken as strengths"
    return "re-inject", "the mask is hard"


def patch(model, blend: Blend):
    """A clone of a ModelPatcher that blends by `blend` wherever it is sampled with a noise mask.

    A blend that was there is replaced. Wrappers and a denoise-mask function that others set stay and take part.
    """
    patched = model.clone()
    patched.remove_wrappers_with_key(WrappersMP.OUTER_SAMPLE, KEY)
    patched.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, KEY, partial(_outer_sample, blend))
    return patched


def _outer_sample(
    blend,
    executor,
    noise,
    latent_image,
    sampler,
    sigmas,
    denoise_mask=None,
    callback=None,
    disable_pbar=False,
    seed=None,
    **others,
):
    """Around one whole run, in raw latent space: the ends that need no model, the stages, and the pin at the end."""
    # uni_pc writes 0.001 over the last of the sigmas that it is given: a copy, and the last one read before.
    leaves_noise = float(sigmas[-1]) > 0.0
    sigmas = sigmas.clone()

    def run(latent, mask):
        return executor(noise, latent, sampler, sigmas, mask, callback, disable_pbar, seed, **others)

    if denoise_mask is None or bool((denoise_mask == 1).all()):
        return run(latent_image, None)
    resumed = _resumed_from(blend.original, latent_image, noise, sigmas)
    original = latent_image if resumed is None else resumed
    if not bool((denoise_mask > 0).any()):
        logging.info(
            "Bespoke Latent Mask Blend: the mask is empty; the original is returned and the model is not called."
        )
        return original.to(torch.float32).clone()

    guider = executor.class_obj
    wrappers = guider.model_options["transformer_options"].setdefault("wrappers", {})
    before = {kind: wrappers.get(kind) for kind in (WrappersMP.SAMPLER_SAMPLE, WrappersMP.PREDICT_NOISE)}
    state = _Run(blend, start=None if resumed is None else latent_image)
    try:
        # First in order is outermost: other packs' wrappers see the model, and this blend sees their answer.
        for kind, wrapper in (
            (WrappersMP.SAMPLER_SAMPLE, state.sampler_sample),
            (WrappersMP.PREDICT_NOISE, state.predict_noise),
        ):
            wrappers[kind] = {KEY: [wrapper], **(before[kind] or {})}
        out = run(original, denoise_mask)
    finally:
        for kind, was in before.items():
            wrappers.pop(kind, None) if was is None else wrappers.update({kind: was})
    if leaves_noise:
        return out  # noise is left for the next stage, outside the mask too: that stage pins
    # Samplers that stop short of 0 and the latent format's scaling both miss L by a little, or by a lot.
    return torch.where(denoise_mask.to(out.device) > 0, out, original.to(out.device, out.dtype))


def _resumed_from(original, latent_image, noise, sigmas) -> torch.Tensor | None:
    """The clean original, where a run goes on from a latent that still holds noise; None where it starts from clean."""
    if original is None or float(sigmas[0]) <= 0.0 or bool(torch.count_nonzero(noise)):
        return None
    batch, ours = latent_image.shape[0], original.shape[0]
    if original.shape[1:] != latent_image.shape[1:] or batch % ours:
        return None
    original = original.to(latent_image.device, latent_image.dtype)
    original = original.repeat(batch // ours, *[1] * (original.ndim - 1))
    return None if torch.equal(original, latent_image) else original


class _Run:
    """What one run needs at every step. Made and dropped inside `_outer_sample`."""

    def __init__(self, blend: Blend, start: torch.Tensor | None):
        self.blend, self.start = blend, start

    def sampler_sample(
        self,
        executor,
        guider,
        sigmas,
        extra_args,
        callback,
        noise,
        latent_image=None,
        denoise_mask=None,
        disable_pbar=False,
    ):
        """Around the sampler, in the model's latent space: keep mask, original and noise; the sampler gets no mask."""
        model, sigma = guider.inner_model, sigmas[0]
        sampler = executor.class_obj
        from_noise = bool(sampler.max_denoise(guider, sigmas)) if hasattr(sampler, "max_denoise") else False
        start = latent_image if self.start is None else model.process_latent_in(self.start.to(latent_image))
        state = model.model_sampling.noise_scaling(sigma, noise.clone(), start, from_noise)
        # From full noise, epsilon and v start at sqrt(1 + sigma^2) n; what is held outside has to stay on that path.
        held = noise_that_gives(model.model_sampling, sigma, state, latent_image, False)
        if self.start is not None:
            noise = noise_that_gives(model.model_sampling, sigma, state, latent_image, from_noise)
        self.model, self.guider, self.sigmas = model, guider, sigmas
        self.mask, self.original, self.noise = denoise_mask, latent_image, held
        self.allowed = (denoise_mask > 0).to(denoise_mask.dtype)
        self.own_way = type(model).scale_latent_inpaint is not BaseModel.scale_latent_inpaint
        self.inject = self.blend.kind == "re-inject" or self.own_way
        self.takes_mask = takes_denoise_mask(model.scale_latent_inpaint)
        return executor(guider, sigmas, extra_args, callback, noise, latent_image, None, disable_pbar)

    def predict_noise(self, executor, x, timestep, model_options=None, seed=None):
        """Around one prediction of x0, guidance included."""
        model_options = model_options or {}
        mask = self.mask_at(timestep, model_options)
        keep = 1.0 - mask
        if self.inject:
            # The mask that is blended with, as core does: after its functions, [B, C, ...] like the latent.
            given = {"denoise_mask": mask} if self.takes_mask else {}
            held = self.model.scale_latent_inpaint(
                x=x, sigma=timestep, noise=self.noise, latent_image=self.original, **given
            )
            x = x * mask + held * keep

        def blended(prediction):
            return prediction * mask + self.original * keep

        return blended(executor(x, timestep, self._with_blended_uncond(model_options, blended), seed))

    def mask_at(self, sigma: torch.Tensor, model_options: dict) -> torch.Tensor:
        """m at the noise level `sigma` [B], shaped like the latent."""
        mask = self.mask
        level = sigma.reshape(-1, *[1] * (mask.ndim - 1))
        sampling = self.model.model_sampling
        if self.blend.bias or self.blend.preservation != PRESERVATION:
            power = self.blend.preservation * noise_to_signal(sampling, level) ** self.blend.bias
            mask = mask ** power.nan_to_num(0.0, torch.inf)  # 0 times flow's infinite ratio at sigma 1 is 0
        if self.blend.kind == "differential":
            began = self.sigmas[:1] if self.start is None else sampling.sigma_max.reshape(1)
            mask = (mask >= schedule_left(sampling, level, began.to(level))).to(mask.dtype)
        others = model_options.get("denoise_mask_function")
        if others is not None:
            mask = others(sigma, mask, extra_options={"model": self.guider, "sigmas": self.sigmas})
        return mask * self.allowed

    def _with_blended_uncond(self, model_options: dict, blended) -> dict:
        # The CFG++ samplers step along the unconditional prediction, which they pick up with a post-CFG function of
        # their own. It has to hold the original outside the mask as well, or their state drifts away there.
        functions = model_options.get("sampler_post_cfg_function", [])
        own = len(self.guider.model_options.get("sampler_post_cfg_function", []))
        if len(functions) <= own:
            return model_options

        def seeing_blended(function):
            return lambda args: function({**args, "uncond_denoised": blended(args["uncond_denoised"])})

        return {
            **model_options,
            "sampler_post_cfg_function": functions[:own] + [seeing_blended(f) for f in functions[own:]],
        }


def noise_that_gives(sampling, sigma, state, original, from_noise: bool) -> torch.Tensor:
    """The noise n with noise_scaling(sigma, n, original, from_noise) = state.

    `noise_scaling` is affine in the noise, so this holds for every kind of prediction: (x - L) / sigma for epsilon and
    v, (x - (1 - sigma) L) / sigma for flow.
    """
    signal = sampling.noise_scaling(sigma, torch.zeros_like(state), original, from_noise)
    one = state.new_ones([1] * state.ndim)
    scale = sampling.noise_scaling(sigma, one, torch.zeros_like(one), from_noise)
    return (state - signal) / torch.where(scale == 0, one, scale)


def noise_to_signal(sampling, sigma: torch.Tensor) -> torch.Tensor:
    """How many times stronger the noise is than the signal at `sigma` [B, 1, ...]: sigma, or sigma / (1 - sigma) for
    flow."""
    one = torch.ones_like(sigma)
    noise, signal = (sampling.noise_scaling(sigma.flatten(), a, b) for a, b in ((one, 0 * one), (0 * one, one)))
    return noise / signal


def schedule_left(sampling, sigma: torch.Tensor, began: torch.Tensor) -> torch.Tensor:
    """The share of a schedule from `began` [1] that is left at `sigma` [B, 1, ...], in the model's timesteps.

    1 at `began`, 0 at the model's least sigma. For flow, timesteps are sigma itself.
    """
    at, top, bottom = (
        sampling.timestep(s).to(torch.float32)
        for s in (sigma.flatten(), began, sampling.sigma_min.reshape(1).to(sigma))
    )
    return ((at - bottom) / (top - bottom).clamp(min=1e-9)).clamp(0.0, 1.0).reshape(sigma.shape)
