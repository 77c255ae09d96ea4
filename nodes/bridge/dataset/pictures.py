"""The pictures of a training as the model sees them, and which are trained on, only scored, or keep the prior."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import comfy.model_base
import torch
from torch import Tensor

from ....training.config import TrainConfig
from ....training.data import LatentSet
from ....training.errors import InputError
from ....training.images import ImageSet, TrainingImage, by_picture
from ....training.record import Run
from ....training.validation import MIN_SPLIT, folds, split
from .. import identity
from ..models import wants_masked_picture
from . import cache


@dataclass(frozen=True)
class Pictures:
    """items and data go together; trained_on, held_out and prior are indices into both.

    rotations: (trained on, held out) of the trainings that come first, where the set is too small to spare a picture.
    blank: for a model that reads a picture with a hole, the latent [1, C, h, w] of a grey picture by its
    (height, width) in px, not yet scaled.
    counts: see `arrange`.
    """

    items: list[TrainingImage]
    data: LatentSet
    trained_on: list[int]
    held_out: list[int]
    prior: list[int]
    rotations: list[tuple[list[int], list[int]]]
    blank: dict[tuple[int, ...], Tensor] = field(default_factory=dict)
    counts: tuple[int, int, int] = (0, 0, 0)

    def facts(self, index: int) -> dict[str, Any]:
        """What a model may want to know of a picture, by the names of ComfyUI's `extra_conds`.

        Its size before it was scaled and what was cut away, in px: SDXL learns from small and cropped pictures without
        drawing like them (Podell et al. 2023, arXiv 2307.01952, section 2.2). For an inpainting model a picture of
        which
        nothing is kept, as InpaintModelConditioning makes it of a mask of ones: grey, the colour of a hole.
        """
        item, latent = self.items[index], self.data.latents[index]
        known: dict[str, Any] = {}
        if item.original is not None:
            height, width = item.original
            known = {
                "height": height,
                "width": width,
                "crop_h": item.crop[0],
                "crop_w": item.crop[1],
                "target_height": latent.shape[-2] * 8,
                "target_width": latent.shape[-1] * 8,
            }
        if self.blank:
            known["concat_latent_image"] = self.blank[tuple(item.pixels.shape[:2])]
            known["concat_mask"] = torch.ones(1, 1, *latent.shape[-2:])
        return known

    def count(self, indices: Sequence[int]) -> int:
        """How many different pictures `indices` are."""
        return len(by_picture(self.items[i] for i in indices))

    def largest(self) -> int:
        """Which of the pictures that are trained on has the largest latent."""
        return max(self.trained_on, key=lambda i: self.data.latents[i].numel())

    @property
    def captions(self) -> list[str]:
        """Every caption that may be asked for, the empty prompt too."""
        return sorted({item.caption for item in self.items} | {""})


def prepare(
    vae,
    base: comfy.model_base.BaseModel,
    config: TrainConfig,
    images: ImageSet,
    validation: ImageSet | None = None,
    prior: ImageSet | None = None,
) -> Pictures:
    """Encode everything once. validation: pictures to score instead of some of `images`. prior: pictures to keep."""
    sets = [list(given.items) if given is not None else [] for given in (images, validation, prior)]
    items = [item for one in sets for item in one]
    plan = arrange(
        items, LatentSet([], []), [len(one) for one in sets], config
    )  # before the wait, as it may be refused
    with torch.inference_mode(False), torch.no_grad():
        latents = _encoded(vae, base, items)
    masks = [
        None if item.mask is None else mask_to_latent(item.mask, latent)
        for item, latent in zip(items, latents, strict=True)
    ]
    return replace(plan, data=LatentSet(latents, masks), blank=_blank(vae, items) if wants_masked_picture(base) else {})


def arrange(items: list[TrainingImage], data: LatentSet, counts: Sequence[int], config: TrainConfig) -> Pictures:
    """Which pictures are trained on, scored, and kept. counts: how many are the training set's, pictures to score, and
    prior pictures, in this order. Of the items only names and captions are read."""
    count, scored, prior = counts
    copies = by_picture(items[:count])
    trained_on, held_out, rotated = list(range(count)), [], []
    if scored:
        held_out = list(range(count, count + scored))
    elif config.validation and len(copies) < MIN_SPLIT:
        rotated = folds(copies, config.validation, config.seed)
    elif config.validation:
        trained_on, held_out = split(copies, config.validation, config.seed)
    return Pictures(
        items,
        data,
        trained_on,
        held_out,
        list(range(count + scored, len(items))),
        rotated,
        counts=(count, scored, prior),
    )


def _blank(vae, items: list[TrainingImage]) -> dict[tuple[int, ...], Tensor]:
    """{(height, width) in px: a grey picture of that size through the VAE}, unscaled, on the CPU."""
    with torch.inference_mode(False), torch.no_grad():
        return {
            size: vae.encode(torch.full((1, *size, 3), 0.5)).float().to("cpu", copy=True).clone()
            for size in {tuple(item.pixels.shape[:2]) for item in items}
        }


def _encoded(vae, base: comfy.model_base.BaseModel, items: list[TrainingImage]) -> list[Tensor]:
    """One latent [1, C, H, W] a picture, float32 on the CPU, scaled and shifted as the model was trained."""
    of_vae, out = identity.of_vae(vae), []
    for item in items:
        pixels = item.pixels.contiguous()
        key = cache.digest(
            of_vae, type(base.latent_format).__name__, str(tuple(pixels.shape)), pixels.numpy().tobytes()
        )

        def encode(pixels=pixels) -> Tensor:
            latent = _of_the_model(base, vae.encode(pixels[None].float() / 255))
            return base.process_latent_in(latent).float().to("cpu", copy=True).clone()

        out.append(cache.latents.get(key, encode))
    return out


def _of_the_model(base: comfy.model_base.BaseModel, latent: Tensor) -> Tensor:
    """What a VAE made, in the shape of the model's latents; a video model's have one frame. Raises `InputError`
    otherwise."""
    channels, axes = base.latent_format.latent_channels, base.latent_format.latent_dimensions
    if axes == 3 and latent.ndim == 4:
        latent = latent.unsqueeze(2)
    if latent.shape[1] != channels or latent.ndim != axes + 2:
        raise InputError(
            f"the VAE makes latents of {latent.shape[1]} channels in {latent.ndim} dimensions, and this model's have "
            f"{channels} in {axes + 2}; wire in the VAE that belongs to the model"
        )
    return latent


def mask_to_latent(mask: Tensor, latent: Tensor) -> Tensor:
    """A pixel mask [H, W] as [1, 1, h, w], or [1, 1, 1, h, w] for one frame, at the latent's size: the mean of each
    cell."""
    cells = torch.nn.functional.adaptive_avg_pool2d(mask[None, None].float(), latent.shape[-2:])
    return cells.reshape(1, *[1] * (latent.ndim - 3), *latent.shape[-2:])


def describe_held_out(run: Run, config: TrainConfig) -> list[str]:
    """The held-out curve in words: where it was lowest, what was kept, where over-fitting began."""
    if run.best is None:
        return []
    step, loss = run.best
    first = run.held_out[0]
    lines = [
        (
            f"Held-out loss {first[1]:.4f} at step {first[0]}, lowest {loss:.4f} at step {step}, "
            f"{run.held_out[-1][1]:.4f} at the end."
        )
    ]
    if run.rotations:
        lines[0] = (
            f"{run.rotations} trainings, each without {config.validation} other pictures, said when to stop; then all "
            f"{run.images} were trained on. Of those left out: {lines[0]}"
        )
    since = run.over_fitting_since()
    if since is not None:
        lines.append(f"From step {since} on it only rose: that is over-fitting, so fewer steps would do.")
    lines.append(f"Kept: {'step ' + str(step) if config.keep == 'best' else 'the last step'}.")
    return lines
