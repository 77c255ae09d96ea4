"""ComfyUI's schedules, noise levels and sampling, for the image to image nodes."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace

import comfy.model_management
import comfy.nested_tensor
import comfy.sample
import comfy.samplers
import comfy.utils
import latent_preview
import torch
from torch import Tensor

from ...training.errors import InputError


def schedule_of(model, scheduler: str, sampler_name: str) -> Callable[[int], Tensor]:
    """A function from the number of steps to KSampler's sigmas [about steps + 1].

    It calls KSampler itself, which drops the penultimate sigma for some samplers. model: anything with
    `get_model_object("model_sampling")`. Raises `InputError` for names that ComfyUI does not know.
    """
    ksampler = comfy.samplers.KSampler
    for value, known, what in (
        (scheduler, ksampler.SCHEDULERS, "scheduler"),
        (sampler_name, ksampler.SAMPLERS, "sampler_name"),
    ):
        if value not in known:
            raise InputError(f"{what} {value!r} is unknown to this ComfyUI; choose one of {', '.join(known)}")
    return lambda steps: ksampler(model, steps, torch.device("cpu"), sampler=sampler_name, scheduler=scheduler).sigmas


def without_penultimate(schedule: Callable[[int], Tensor], sampler_name: str) -> Callable[[int], Tensor]:
    """A schedule as KSampler passes it to the sampler: for some, a longer schedule without its penultimate sigma."""
    if sampler_name not in comfy.samplers.KSampler.DISCARD_PENULTIMATE_SIGMA_SAMPLERS:
        return schedule

    def shortened(steps: int) -> Tensor:
        sigmas = schedule(steps + 1)
        return torch.cat([sigmas[:-2], sigmas[-1:]])

    return shortened


def sigma_at(sampling, strength: float) -> float:
    """The model's sigma at the fraction 1 - strength of the sampling, its largest sigma for strength 1 and more."""
    # At 0 percent ComfyUI gives a large number that means "before the start".
    return float(sampling.percent_to_sigma(1.0 - strength)) if strength < 1.0 else float(sampling.sigma_max)


def timestep_at(sampling, sigma: float) -> float:
    """The timestep that the network reads at this sigma: 0 to 999 for most models, 0 to 1 for some."""
    return float(sampling.timestep(torch.tensor(sigma)))


def noise_share(sampling, sigma: float) -> float:
    """The share of noise in the noised latent's variance, 0 to 1, for a latent of the variance that the model
    expects."""
    one, zero = torch.ones(1), torch.zeros(1)
    level = torch.tensor(sigma)
    noise = float(sampling.noise_scaling(level, one, zero.clone())) ** 2
    picture = (float(sampling.noise_scaling(level, zero, one.clone())) * getattr(sampling, "sigma_data", 1.0)) ** 2
    return noise / (noise + picture) if noise + picture else 0.0


def fitting_latent(model, latent: dict, name: str = "latent_image"):
    """The latent's samples with the model's channels, as KSampler makes them of empty latents.

    name: of the input, for the error. Raises `InputError` for an empty tensor and for another model's channels.
    """
    samples = latent["samples"]
    parts = samples.unbind() if samples.is_nested else [samples]
    if not parts or any(part.numel() == 0 for part in parts):
        raise InputError(
            f"{name} holds no values (its shape is {tuple(parts[0].shape) if parts else ()}); encode a picture "
            "with VAE Encode"
        )
    samples = comfy.sample.fix_empty_latent_channels(
        model, samples, latent.get("downscale_ratio_spacial"), latent.get("downscale_ratio_temporal")
    )
    channels = model.get_model_object("latent_format").latent_channels
    if not samples.is_nested and samples.shape[1] != channels:
        raise InputError(
            f"{name} has {samples.shape[1]} channels and this model's latents have {channels}; "
            "encode the picture with the VAE that belongs to the model"
        )
    return samples


def is_blank(samples) -> bool:
    """Whether the latent is empty: every value of every part is 0."""
    return all(torch.count_nonzero(part) == 0 for part in (samples.unbind() if samples.is_nested else [samples]))


def noise_for(samples, seed: int, latent: dict):
    """KSampler's noise for a seed, by the latent's `batch_index` where it has one."""
    return comfy.sample.prepare_noise(samples, seed, latent.get("batch_index"))


def noised(model, samples, noise, sigmas: Tensor):
    """The samples with noise of level sigmas[0], from which the sampler starts, in the latent's own space."""
    if samples.is_nested:
        shapes = [part.shape for part in samples.unbind()]
        flat_samples, flat_noise = (comfy.utils.pack_latents(nested.unbind())[0] for nested in (samples, noise))
        flat = noised(model, flat_samples, flat_noise, sigmas)
        return comfy.nested_tensor.NestedTensor(comfy.utils.unpack_latents(flat, shapes))
    sampling = model.get_model_object("model_sampling")
    clean, sigma = samples.to(torch.float32), sigmas[0].to(samples.device, torch.float32)
    if torch.count_nonzero(clean) > 0:  # as ComfyUI's samplers, which do not shift an empty latent
        clean = model.get_model_object("process_latent_in")(clean)
    guider = SimpleNamespace(inner_model=SimpleNamespace(model_sampling=sampling))
    from_noise = comfy.samplers.Sampler().max_denoise(guider, sigmas)
    start = sampling.noise_scaling(sigma, noise.to(samples.device, torch.float32), clean, from_noise)
    return model.get_model_object("process_latent_out")(start)


def sample(
    model, samples, noise, sigmas: Tensor, positive, negative, cfg: float, sampler_name: str, seed: int, noise_mask=None
):
    """Run a sampler over exactly these sigmas [steps + 1], with core's previews and progress bar."""
    return comfy.sample.sample_custom(
        model,
        noise,
        cfg,
        comfy.samplers.sampler_object(sampler_name),
        sigmas.clone(),  # uni_pc writes into its sigmas
        positive,
        negative,
        samples,
        noise_mask=noise_mask,
        callback=latent_preview.prepare_callback(model, len(sigmas) - 1),
        disable_pbar=not comfy.utils.PROGRESS_BAR_ENABLED,
        seed=seed,
    )


def to_intermediate(samples):
    """The samples on the device and in the dtype in which ComfyUI passes latents between nodes."""
    return samples.to(
        device=comfy.model_management.intermediate_device(), dtype=comfy.model_management.intermediate_dtype()
    )
