"""Sample images while a training runs: the model as it stands, with the user's own sampler settings and a fixed
seed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import comfy.model_management
import comfy.sample
import comfy.samplers
import torch
from PIL import Image
from torch import Tensor


@dataclass(frozen=True)
class SamplerSettings:
    """As KSampler's widgets. seed: the same for every sample of a run, so that only the training changes the image."""

    steps: int = 20
    cfg: float = 7.0
    sampler_name: str = "euler"
    scheduler: str = "normal"
    seed: int = 0


def settings_in(prompt: Mapping[str, Any] | None) -> SamplerSettings:
    """The settings of the graph's first sampler node that has them as widgets; KSampler's defaults where there is
    none."""
    for node in (prompt or {}).values():
        values = node.get("inputs", {}) if isinstance(node, Mapping) else {}
        steps, cfg = values.get("steps"), values.get("cfg")
        name, scheduler, seed = values.get("sampler_name"), values.get("scheduler"), values.get("seed", 0)
        if (
            isinstance(steps, int)
            and 0 < steps <= 200
            and isinstance(cfg, (int, float))
            and name in comfy.samplers.KSampler.SAMPLERS
            and scheduler in comfy.samplers.KSampler.SCHEDULERS
        ):
            return SamplerSettings(steps, float(cfg), name, scheduler, seed if isinstance(seed, int) else 0)
    return SamplerSettings()


def as_conditioning(encoded: Iterable[tuple[Tensor, dict[str, Any]]]) -> tuple[list, ...]:
    """Encoded prompts, (context, what goes with it) each, as ComfyUI's samplers take them."""
    return tuple([[cond, {key: value for key, value in extra.items() if value is not None}]] for cond, extra in encoded)


def sampler_for(
    denoiser, vae, like: Tensor, settings: SamplerSettings, conditioning: Callable[[], tuple[list, list]]
) -> Callable[[], Image.Image]:
    """A function that draws one image with the model of `denoiser` as it stands, adapters included.

    like: a latent [1, C, ...] of the size to draw. conditioning: gives (positive, negative) as they stand.
    """

    def draw() -> Image.Image:
        was_training = comfy.model_management.in_training
        comfy.model_management.in_training = False
        try:
            with torch.no_grad(), denoiser.autocast():
                positive, negative = conditioning()
                latent = torch.zeros_like(like)
                noise = comfy.sample.prepare_noise(latent, settings.seed)
                samples = comfy.sample.sample(
                    denoiser.patcher,
                    noise,
                    settings.steps,
                    settings.cfg,
                    settings.sampler_name,
                    settings.scheduler,
                    positive,
                    negative,
                    latent,
                    denoise=1.0,
                    disable_pbar=True,
                    seed=settings.seed,
                )
            with torch.no_grad():
                pixels = vae.decode(samples)  # [1, H, W, 3] in 0..1
        finally:
            comfy.model_management.in_training = was_training
            denoiser.reload()
        picture = (pixels.reshape(-1, *pixels.shape[-3:])[0].float().clamp(0, 1) * 255).round().to("cpu", torch.uint8)
        return Image.fromarray(picture.numpy())

    return draw
