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
from ....training.images import TrainingImage
from ....training.sample_prompts import SamplePrompt
from ..dataset.clips import latent_frames, usable_frames
from ..drawing.animated import AnimatedPicture, SamplePicture
from ..models.clips import takes_clips

MOST_FRAMES = 33  # of a sample that is drawn at the training's own frames
FPS = 16.0  # of a film whose frames a second are not known


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


@dataclass(frozen=True)
class SampleShape:
    """What a sample has where its prompt asks for nothing else.

    latent: [1, C, ...] of a picture or clip of the set, of which only the shape is read. size: (height, width) in px of
    that. frames: of the clip, 1 for a picture. fps: frames a second.
    """

    latent: Tensor
    size: Sequence[int]
    frames: int = 1
    fps: float = FPS

    @classmethod
    def of(cls, latent: Tensor, item: TrainingImage) -> SampleShape:
        """The shape of an item's samples."""
        return cls(latent, item.size, item.frames, item.fps or FPS)


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


def frames_for(prompt: SamplePrompt, vae, shape: SampleShape) -> int | None:
    """The frames of a prompt's sample; None for a picture.

    Those of the set's clips, at most `MOST_FRAMES`, where the prompt asks for none. Raises `InputError` where a model
    of pictures is asked for frames, and for a number of frames that the VAE does not take.
    """
    wanted = prompt.frames
    if wanted is None:
        return usable_frames(vae, min(shape.frames, MOST_FRAMES)) if shape.frames > 1 else None
    if wanted == 1:
        return None
    if shape.latent.ndim != 5:
        raise InputError(f"sample_prompt has --f {wanted}, and this model makes single pictures; take it out")
    usable = usable_frames(vae, wanted)
    if usable != wanted:
        raise InputError(
            f"sample_prompt has --f {wanted}, and the VAE packs frames in groups of "
            f"{vae.temporal_compression_decode()} behind the first; write {usable}"
        )
    return wanted


def with_frames(conditioning: list, count: int) -> list:
    """A conditioning of a clip for its first `count` latent frames.

    What a model is told of the clip's first frame has the clip's frames. The VAE looks back in time alone, so that the
    first latent frames are those of a shorter clip. Raises `InputError` for more frames than there are.
    """
    out = []
    for context, fields in conditioning:
        fields = dict(fields)
        for name in ("concat_latent_image", "concat_mask"):
            told = fields.get(name)
            if not isinstance(told, Tensor) or told.ndim != 5:
                continue
            if told.shape[2] < count:
                raise InputError(
                    f"sample_prompt has --f for {count} latent frames, and the first frame of a clip was encoded for "
                    f"{told.shape[2]}; write a smaller --f, or take it out"
                )
            fields[name] = told[:, :, :count]
        out.append([context, fields])
    return out


def sampler_for(
    denoiser,
    vae,
    shape: SampleShape,
    settings: SamplerSettings,
    prompts: Sequence[SamplePrompt],
    conditioning: Callable[[SamplePrompt], tuple[list, list]],
    strip: Callable[[Callable[[], SamplePicture]], SamplePicture] = lambda draw: draw(),
) -> Callable[[], list[SamplePicture]]:
    """A function that draws one picture or film of each prompt with the model of `denoiser` as it is when called.

    shape: of a sample whose prompt asks for none. conditioning: returns the present (positive, negative) of a prompt.
    strip: makes the picture of a prompt of a function that draws one of it. Raises `InputError` as `latent_for` and
    `frames_for`.
    """
    wanted = []
    for each in prompts:
        if (each.frames or 1) > 1 and not takes_clips(denoiser.base):
            raise InputError(f"sample_prompt has --f {each.frames}, and this model makes single pictures; take it out")
        latent, frames = latent_for(each, shape.latent, shape.size), frames_for(each, vae, shape)
        if frames is not None:
            latent = _of_frames(latent, latent_frames(vae, frames))
        elif each.frames == 1:
            latent = _of_frames(latent, 1)
        wanted.append((each, latent, settings_for(each, settings), None if frames is None else shape.fps))

    def conditions(prompt: SamplePrompt, latent: Tensor) -> tuple[list, list]:
        positive, negative = conditioning(prompt)
        if latent.ndim != 5:
            return positive, negative
        return with_frames(positive, latent.shape[2]), with_frames(negative, latent.shape[2])

    def draw() -> list[SamplePicture]:
        pictures = list[SamplePicture]()
        with sampling(denoiser):
            for prompt, latent, own, fps in wanted:
                given = partial(conditions, prompt, latent)
                pictures.append(strip(partial(_draw_picture, denoiser, vae, latent, own, given, fps)))
        return pictures

    return draw


def _of_frames(latent: Tensor, count: int) -> Tensor:
    """A latent of the shape of `latent` [1, C, T, h, w] with `count` latent frames; a picture's as it is."""
    if latent.ndim != 5 or latent.shape[2] == count:
        return latent
    return torch.zeros(*latent.shape[:2], count, *latent.shape[3:], dtype=latent.dtype)


def _draw_picture(
    denoiser,
    vae,
    like: Tensor,
    settings: SamplerSettings,
    conditioning: Callable[[], tuple[list, list]],
    fps: float | None,
) -> SamplePicture:
    samples = draw_latent(denoiser, like, settings, conditioning)
    with torch.no_grad():
        pictures = _pictures(vae.decode(samples))
    # A film of a pair begins with the source, where the model is given the first frame: its last frame is shown.
    return pictures[-1] if fps is None else AnimatedPicture(tuple(pictures), fps)


def _pictures(pixels: Tensor) -> list[Image.Image]:
    """The frames of a decoded latent, [1, H, W, 3] or [1, F, H, W, 3] in 0..1."""
    frames = (pixels.reshape(-1, *pixels.shape[-3:]).float().clamp(0, 1) * 255).round().to("cpu", torch.uint8)
    return [Image.fromarray(frame.numpy()) for frame in frames]
