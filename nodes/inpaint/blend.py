"""Blends that keep the latent outside a mask with any sampler, as wrappers on a cloned ModelPatcher.

Notation: m the mask (1 may change), L the original latent, n the noise that the run began with, sigma the present noise
level, x the sampler's state, D(x, sigma) the model's prediction of the clean latent (x0).

    re-inject      D is evaluated at m x + (1 - m) noised(L, n, sigma); the result is m D + (1 - m) L
    prediction     D is evaluated at x;                                 the result is m D + (1 - m) L
    differential   as prediction, with m replaced by 1 where m >= the share of the noise schedule that is left, else 0

`noised` is the model's own `scale_latent_inpaint`: sigma n + L for epsilon and v prediction, sigma n + (1 - sigma) L
for flow, and the clean L for some video models. Re-inject is Blended Latent Diffusion (Avrahami et al. 2023, arXiv
2206.02779) and what core does with a noise mask. Differential is Differential Diffusion (Levin & Fried 2023, arXiv
2306.00950), except that a place where m is 0 is always kept. The share is of the schedule from the sigma at which the
first stage of a run began. Of a run that goes on from a state of unknown make, it is of the model's whole schedule.
n is the first stage's, too: where 0 < m < 1 a later state does not tell it.

`patch` adds one wrapper, `OUTER_SAMPLE`, which adds the others for one run and removes them afterwards. So a patched
model holds no state of a run, and runs cannot disturb each other. A guider or sampler of another pack that leaves one
of them out is refused (`guider_checks`). What a later stage has to know of an earlier one is found by the content of
the latent that it gets (`stages`, `start`).
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from comfy.model_base import BaseModel
from comfy.patcher_extension import WrappersMP

from ...training.errors import InputError
from .guider_checks import MaskGuard, check_guider, check_state, checked_prediction, checked_result, refuse, unguarded
from .mask_conds import misreads_noise_mask, without_noise_mask
from .noise_levels import noise_that_gives, noise_to_signal, schedule_left
from .stages import STORE
from .start import Start, chained, find_start, fresh, is_soft

KEY = "bespoke_latent_mask_blend"
BLENDS = ("auto", "re-inject", "prediction", "differential")
BIAS_MIN, BIAS_MAX = 0.0, 8.0
PRESERVATION, PRESERVATION_MIN, PRESERVATION_MAX = 1.0, 0.0, 8.0


@dataclass(frozen=True)
class Blend:
    """How a run under a mask is blended.

    kind: one of `BLENDS` except "auto". original: the clean latent in the space of LATENT, or None. At the
    noise-to-signal ratio r a mask value m becomes m ** (preservation * r ** bias), 0 <= bias, preservation <= 8: the
    settings "schedule bias" and "preservation strength" of AUTOMATIC1111's soft inpainting. Raises `InputError` for a
    value out of range.
    """

    kind: str
    bias: float = 0.0
    original: torch.Tensor | None = None
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
    """Whether the model of a ModelPatcher has a `scale_latent_inpaint` of its own; most of those add no noise."""
    return getattr(type(model.model), "scale_latent_inpaint", None) is not BaseModel.scale_latent_inpaint


def uses_noise(blend: Blend, model: BaseModel) -> bool:
    """Whether the model's input outside the mask is made from the original and the noise that a run began with."""
    return blend.kind == "re-inject" or type(model).scale_latent_inpaint is not BaseModel.scale_latent_inpaint


def takes_denoise_mask(scale_latent_inpaint: Callable) -> bool:
    """Whether the function takes the `denoise_mask` that ComfyUI 0.33 and newer pass to it."""
    parameters = inspect.signature(scale_latent_inpaint).parameters
    return "denoise_mask" in parameters or any(p.kind is p.VAR_KEYWORD for p in parameters.values())


def choose(cells: torch.Tensor, model) -> tuple[str, str]:
    """(blend, reason) for "auto", from the mask's cells [..., rows, columns] in 0..1 and the ModelPatcher."""
    if has_own_inpaint_noise(model):
        return "re-inject", "this model keeps masked latents in a way of its own"
    if bool(((cells > 0.0) & (cells < 1.0)).any()):
        return "differential", "the mask is soft, and its values are taken as strengths"
    return "re-inject", "the mask is hard"


def patch(model, blend: Blend):
    """A clone of a ModelPatcher that applies `blend` when it is sampled with a noise mask.

    It replaces an earlier blend. Wrappers and a denoise-mask function that others set are kept and used. A sampler that
    never comes to the wrapper is refused when it uses its mask.
    """
    patched = model.clone()
    patched.set_model_denoise_mask_function(MaskGuard(patched.model_options.get("denoise_mask_function")))
    patched.remove_wrappers_with_key(WrappersMP.OUTER_SAMPLE, KEY)
    patched.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, KEY, partial(_outer_sample, blend))
    return patched


def _outer_sample(
    blend: Blend,
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
) -> torch.Tensor:
    """The `OUTER_SAMPLE` wrapper around one whole run, in the space of LATENT.

    Returns early for masks of only 0 or only 1, and gives the original exactly where the mask is 0, unless noise is
    left for another stage.
    """
    leaves_noise = float(sigmas[-1]) > 0.0  # read now: uni_pc writes 0.001 over the last of the sigmas that it gets
    given_sigmas, sigmas = sigmas, sigmas.clone()

    def run(latent, mask):
        return executor(noise, latent, sampler, sigmas, mask, callback, disable_pbar, seed, **others)

    if denoise_mask is None or bool((denoise_mask == 1).all()):
        start = chained(latent_image, noise, given_sigmas)
        out = run(latent_image, None)
        if start is not None or not leaves_noise:
            start = start or fresh(latent_image, given_sigmas)
            STORE.add(out, start.original, start.first, None, finished=not leaves_noise)
        return out
    guider = executor.class_obj
    check_guider(guider)
    model = guider.model_patcher
    needs_noise = uses_noise(blend, model.model)
    start = find_start(blend.original, latent_image, noise, given_sigmas, denoise_mask, model, needs_noise)
    original = start.original
    if not bool((denoise_mask > 0).any()):
        logging.info(
            "Bespoke Latent Mask Blend: the mask is empty; the original is returned and the model is not called."
        )
        return original.to(torch.float32).clone()
    blended = _Run(blend, start, latent_image, denoise_mask)
    misread = misreads_noise_mask(model.model, latent_image, denoise_mask)
    with _added_wrappers(guider, blended), without_noise_mask(guider, latent_image if misread else None):
        out = checked_result(run(original, denoise_mask), latent_image, guider)
    blended.check_reached(guider, len(sigmas) - 1)
    if not leaves_noise:
        # Samplers that stop short of 0 and the latent format's scaling both change the original by rounding or more.
        out = torch.where(denoise_mask.to(out.device) > 0, out, original.to(out.device, out.dtype))
    # Noise is left outside the mask, too: the next stage restores the original there.
    STORE.add(out, original, start.first, blended.kept_noise if leaves_noise else None, finished=not leaves_noise)
    return out


@contextmanager
def _added_wrappers(guider, run: _Run) -> Iterator[None]:
    """The wrappers of a run in a guider's model options, which are as before at the end."""
    wrappers = guider.model_options.setdefault("transformer_options", {}).setdefault("wrappers", {})
    added = {
        WrappersMP.SAMPLER_SAMPLE: run.sampler_sample,
        WrappersMP.PREDICT_NOISE: run.predict_noise,
        WrappersMP.APPLY_MODEL: run.apply_model,
    }
    before = {kind: wrappers.get(kind) for kind in added}
    try:
        # The first is the outermost: other packs' wrappers are called by this one and see the model.
        for kind, wrapper in added.items():
            wrappers[kind] = {KEY: [wrapper], **(before[kind] or {})}
        yield
    finally:
        for kind, earlier in before.items():
            wrappers.pop(kind, None) if earlier is None else wrappers.update({kind: earlier})


@dataclass(frozen=True)
class _Sampling:
    """One call of the sampler, in the model's own latent space. mask, original and noise have the latent's shape."""

    model: BaseModel
    guider: Any  # comfy.samplers.CFGGuider or another pack's
    sigmas: torch.Tensor  # [steps + 1]
    mask: torch.Tensor
    original: torch.Tensor
    noise: torch.Tensor

    @property
    def has_own_inpaint_noise(self) -> bool:
        return type(self.model).scale_latent_inpaint is not BaseModel.scale_latent_inpaint

    def noised_original(self, x: torch.Tensor, sigma: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """The original as the model keeps it outside the mask at `sigma` [B], by the model's `scale_latent_inpaint`."""
        scale = self.model.scale_latent_inpaint
        # Like core: the mask that is blended with, after other packs' functions, shaped like the latent.
        given = {"denoise_mask": mask} if takes_denoise_mask(scale) else {}
        return scale(x=x, sigma=sigma, noise=self.noise, latent_image=self.original, **given)


class _Run:
    """The blend of one run, from `_outer_sample`.

    latent: what the run gets, which holds noise if `start` goes on. mask: [B, ...] as the run gets it.
    """

    def __init__(self, blend: Blend, start: Start, latent: torch.Tensor, mask: torch.Tensor):
        self.blend, self.start, self.latent, self.mask = blend, start, latent, mask
        self._sampling: _Sampling | None = None
        self._predictions, self._predicting = 0, 0

    def check_reached(self, guider: Any, steps: int) -> None:
        """Refuse a run of `steps` steps in which nothing was blended."""
        name = type(guider).__name__
        if self._sampling is None:
            refuse(f"the guider {name} samples without the wrappers of its samplers, so the blend is missed")
        if steps > 0 and not self._predictions:
            refuse(
                f"the sampler made {steps} steps and asked the guider {name} for no prediction, so nothing was blended"
            )

    @property
    def kept_noise(self) -> torch.Tensor | None:
        """The first stage's noise [B, ...], if a later stage needs it and will not find it in its state."""
        sampling = self._sampling
        if sampling is None or not uses_noise(self.blend, sampling.model) or not is_soft(sampling.mask):
            return None
        return sampling.noise

    def sampler_sample(
        self,
        executor,
        guider,
        sigmas,
        extra_args,
        callback,
        noise: torch.Tensor,
        latent_image: torch.Tensor,
        denoise_mask: torch.Tensor | None,
        disable_pbar=False,
    ):
        """The `SAMPLER_SAMPLE` wrapper: keeps mask, original and noise, and gives the sampler no mask.

        A guider may sample several times in a run. From the second time on the latent is its own, and the original is
        the first's.
        """
        model, sigma = guider.inner_model, sigmas[0]
        sampler, first = executor.class_obj, self._sampling
        original = latent_image if first is None else first.original
        if denoise_mask is None:
            denoise_mask = self.mask.to(latent_image)
        goes_on = self.start.goes_on and first is None
        from_noise = bool(sampler.max_denoise(guider, sigmas)) if hasattr(sampler, "max_denoise") else False
        state = latent_image if not goes_on else model.process_latent_in(self.latent.to(latent_image))
        state = model.model_sampling.noise_scaling(sigma, noise.clone(), state, from_noise)
        # From full noise, epsilon and v start at sqrt(1 + sigma^2) n; the latent outside has to stay on that path.
        kept_noise = noise_that_gives(model.model_sampling, sigma, state, original, False)
        if goes_on:
            noise = noise_that_gives(model.model_sampling, sigma, state, latent_image, from_noise)
            firsts = zip(kept_noise, self.start.noise, strict=True)
            kept_noise = torch.stack([n if first is None else first.to(n) for n, first in firsts])
        self._sampling = _Sampling(model, guider, sigmas, denoise_mask, original, kept_noise)
        return executor(guider, sigmas, extra_args, callback, noise, latent_image, None, disable_pbar)

    def predict_noise(self, executor, x, timestep, model_options=None, seed=None):
        """The `PREDICT_NOISE` wrapper around one prediction of x0, guidance included. timestep: sigma [B]."""
        sampling, model_options = self._sampling, model_options or {}
        guider = executor.class_obj
        if sampling is None:
            refuse(f"the guider {type(guider).__name__} predicts before its sampler is called through the wrappers")
        check_state(x, sampling.mask)
        self._predictions += 1
        mask = self._mask_at(sampling, timestep, model_options)
        keep = 1.0 - mask
        if self.blend.kind == "re-inject" or sampling.has_own_inpaint_noise:
            held = sampling.noised_original(x, timestep, mask)
            x = x * mask + held * keep

        def blended(prediction: torch.Tensor) -> torch.Tensor:
            return prediction * mask + sampling.original * keep

        self._predicting += 1
        try:
            found = executor(x, timestep, _with_blended_uncond(sampling.guider, model_options, blended), seed)
        finally:
            self._predicting -= 1
        return blended(checked_prediction(guider, found, x))

    def apply_model(self, executor, *args, **kwargs):
        """The `APPLY_MODEL` wrapper around a call of the model, which has to come from `predict_noise`."""
        if not self._predicting:
            refuse("the sampler calls the model past the guider's predictions, so this call is not blended")
        return executor(*args, **kwargs)

    def _mask_at(self, run: _Sampling, sigma: torch.Tensor, model_options: dict) -> torch.Tensor:
        """m at the noise level `sigma` [B], shaped like the latent."""
        mask, model_sampling = run.mask, run.model.model_sampling
        level = sigma.reshape(-1, *[1] * (mask.ndim - 1))
        if self.blend.bias or self.blend.preservation != PRESERVATION:
            power = self.blend.preservation * noise_to_signal(model_sampling, level) ** self.blend.bias
            mask = mask ** power.nan_to_num(0.0, torch.inf)  # 0 times flow's infinite ratio at sigma 1 is 0
        if self.blend.kind == "differential":
            highest = float(model_sampling.sigma_max)
            first = level.new_tensor([highest if first is None else first for first in self.start.first])
            if bool((first == first[0]).all()):
                first = first[:1]
            else:
                level = level.expand(len(first), *level.shape[1:])
            mask = (mask >= schedule_left(model_sampling, level, first)).to(mask.dtype)
        others = unguarded(model_options.get("denoise_mask_function"))
        if others is not None:
            mask = others(sigma, mask, extra_options={"model": run.guider, "sigmas": run.sigmas})
        return mask * (run.mask > 0).to(run.mask.dtype)


def _with_blended_uncond(guider, model_options: dict, blended: Callable[[torch.Tensor], torch.Tensor]) -> dict:
    """Model options in which a sampler's own post-CFG functions get the blended unconditional prediction.

    The CFG++ samplers step along the unconditional prediction, which they read with such a function. Without the
    original in it their state drifts away outside the mask.
    """
    functions = model_options.get("sampler_post_cfg_function", [])
    own = len(guider.model_options.get("sampler_post_cfg_function", []))
    if len(functions) <= own:
        return model_options

    def with_blended(function):
        def call(args: dict):
            found = args.get("uncond_denoised")
            return function(args if found is None else {**args, "uncond_denoised": blended(found)})

        return call

    samplers_own = [with_blended(function) for function in functions[own:]]
    return {**model_options, "sampler_post_cfg_function": functions[:own] + samplers_own}
