"""Sample images during a training, drawn with the sampler settings of the user's graph and a fixed seed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import comfy.model_management
import comfy.sample
import comfy.samplers
import torch
from PIL import Image
from torch import Tensor

from ....training.errors import InputError
from ....training.sample_prompts import SamplePrompt


@dataclass(frozen=True)
class SamplerSettings:
    """The widgets of KSampler. All samples of a run have the same seed, so only the training changes the image."""

    steps: int = 20
    cfg: float = 7.0
    sampler_name: str = "euler"
    scheduler: str = "normal"
    seed: int = 0


def settings_in(prompt: Mapping[str, Any] | None, default: SamplerSettings | None = None) -> SamplerSettings:
    """The settings of the first sampler node in a graph whose settings are widgets, else `default`.

    prompt: ComfyUI's graph, {node id: {"inputs": ...}}, or None.
    """
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
    return default or SamplerSettings()


def as_conditioning(encoded: Iterable[tuple[Tensor, dict[str, Any]]]) -> tuple[list, ...]:
    """Encoded prompts, each (context [1, tokens, width], further fields), in the form of ComfyUI's CONDITIONING."""
    return tuple([[cond, {key: value for key, value in extra.items() if value is not None}]] for cond, extra in encoded)


@contextmanager
def sampling(denoiser) -> Iterator[None]:
    """Within the block the model of `denoiser` can be drawn with: what acts in the steps alone is taken off.

    Afterwards the weights are ready for the next step.
    """
    was_training = comfy.model_management.in_training
    with denoiser.without_steps_only():
        comfy.model_management.in_training = False
        try:
            yield
        finally:
            comfy.model_management.in_training = was_training
            denoiser.reload()


def draw_latent(
    denoiser, like: Tensor, settings: SamplerSettings, conditioning: Callable[[], tuple[list, list]]
) -> Tensor:
    """What ComfyUI's sampler makes of noise of the shape of `like` [1, C, ...], as the VAE decodes it.

    Call it within `sampling`. conditioning: returns (positive, negative).
    """
    with torch.no_grad(), denoiser.autocast():
        positive, negative = conditioning()
        latent = torch.zeros_like(like)
        noise = comfy.sample.prepare_noise(latent, settings.seed)
        return comfy.sample.sample(
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


def settings_for(prompt: SamplePrompt, settings: SamplerSettings) -> SamplerSettings:
    """The settings with what the prompt sets of its own."""
    own = {name: getattr(prompt, name) for name in ("seed", "cfg", "steps")}
    return replace(settings, **{name: value for name, value in own.items() if value is not None})


def latent_for(prompt: SamplePrompt, like: Tensor, size: Sequence[int]) -> Tensor:
    """A latent of the size that the prompt asks for; `like` where it asks for none.

    like: a latent [1, C, ...] of a picture of `size`, (height, width) in px, which gives the px of a latent cell.
    Raises `InputError` for a size that is no whole number of cells.
    """
    if prompt.width is None and prompt.height is None:
        return like
    cells = []
    for option, wanted, own, count in (
        ("--h", prompt.height, size[0], like.shape[-2]),
        ("--w", prompt.width, size[1], like.shape[-1]),
    ):
        cell = max(1, own // count)
        if wanted is not None and wanted % cell:
            near = max(cell, wanted // cell * cell)
            raise InputError(
                f"sample_prompt has {option} {wanted}, and pictures of this model are multiples of {cell} px; "
                f"write {near}"
            )
        cells.append(count if wanted is None else wanted // cell)
    return torch.zeros(*like.shape[:-2], *cells, dtype=like.dtype)


def sampler_for(
    denoiser,
    vae,
    like: tuple[Tensor, Sequence[int]],
    settings: SamplerSettings,
    prompts: Sequence[SamplePrompt],
    conditioning: Callable[[SamplePrompt], tuple[list, list]],
    strip: Callable[[Callable[[], Image.Image]], Image.Image] = lambda draw: draw(),
) -> Callable[[], list[Image.Image]]:
    """A function that draws one image of each prompt with the model of `denoiser` as it is when called.

    like: (a latent [1, C, ...] of the size to draw where a prompt names none, the size of its picture in px).
    conditioning: returns the present (positive, negative) of a prompt. strip: makes the image of a prompt of a function
    that draws one picture of it. Raises `InputError` as `latent_for`.
    """
    wanted = [(each, latent_for(each, *like), settings_for(each, settings)) for each in prompts]

    def draw() -> list[Image.Image]:
        pictures = list[Image.Image]()
        with sampling(denoiser):
            for prompt, latent, own in wanted:
                pictures.append(
                    strip(partial(_draw_picture, denoiser, vae, latent, own, partial(conditioning, prompt)))
                )
        return pictures

    return draw


def _draw_picture(
    denoiser, vae, like: Tensor, settings: SamplerSettings, conditioning: Callable[[], tuple[list, list]]
) -> Image.Image:
    samples = draw_latent(denoiser, like, settings, conditioning)
    with torch.no_grad():
        return _picture(vae.decode(samples))


def _picture(pixels: Tensor) -> Image.Image:
    """The picture of a decoded latent [1, H, W, 3], the last of a film [1, T, H, W, 3], in 0..1.

    A film begins with the source where the model is given the first frame.
    """
    picture = (pixels.reshape(-1, *pixels.shape[-3:])[-1].float().clamp(0, 1) * 255).round().to("cpu", torch.uint8)
    return Image.fromarray(picture.numpy())
