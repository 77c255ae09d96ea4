"""The pictures of a training as the model sees them, and which are trained on, only scored, or keep the prior."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import comfy.model_base
import torch
from torch import Tensor

from ...training.config import TrainConfig
from ...training.data import LatentSet
from ...training.images import ImageSet, TrainingImage, by_picture
from ...training.record import Run
from ...training.validation import FEW, rotations, split
from . import cache, identity


@dataclass(frozen=True)
class Pictures:
    """items and data go together; trained_on, held_out and prior are indices into both.

    rotations: (trained on, held out) of the trainings that come first, where the set is too small to spare a picture.
    counts: see `arrange`.
    """

    items: list[TrainingImage]
    data: LatentSet
    trained_on: list[int]
    held_out: list[int]
    prior: list[int]
    rotations: list[tuple[list[int], list[int]]]
    counts: tuple[int, int, int] = (0, 0, 0)

    def count(self, indices: Sequence[int]) -> int:
        """How many different pictures `indices` are."""
        return len(by_picture(self.items[i] for i in indices))

    @property
    def captions(self) -> list[str]:
        """Every caption that may be asked for, the empty prompt too."""
        return sorted({item.caption for item in self.items} | {""})


def prepare(
    vae, base: comfy.model_base.BaseModel, config: TrainConfig, images: ImageSet, validation: ImageSet | None = None,
    prior: ImageSet | None = None,
) -> Pictures:  # fmt: skip
    """Encode everything once. validation: pictures to score instead of some of `images`. prior: pictures to keep."""
    sets = [list(given.items) if given is not None else [] for given in (images, validation, prior)]
    items = [item for one in sets for item in one]
    plan = arrange(items, LatentSet([], []), [len(one) for one in sets], config)  # before the wait, as it may be refused
    with torch.inference_mode(False), torch.no_grad():
        latents = _encoded(vae, base, items)
    masks = [None if item.mask is None else mask_to_latent(item.mask, latent) for item, latent in zip(items, latents, strict=True)]
    return replace(plan, data=LatentSet(latents, masks))


def arrange(items: list[TrainingImage], data: LatentSet, counts: Sequence[int], config: TrainConfig) -> Pictures:
    """Which pictures are trained on, scored, and kept. counts: how many are the training set's, pictures to score, and
    prior pictures, in this order. Of the items only names and captions are read."""
    count, scored, prior = counts
    copies = by_picture(items[:count])
    trained_on, held_out, rotated = list(range(count)), [], []
    if scored:
        held_out = list(range(count, count + scored))
    elif config.validation and len(copies) < FEW:
        rotated = rotations(copies, config.validation, config.seed)
    elif config.validation:
        trained_on, held_out = split(copies, config.validation, config.seed)
    return Pictures(items, data, trained_on, held_out, list(range(count + scored, len(items))), rotated, (count, scored, prior))


def _encoded(vae, base: comfy.model_base.BaseModel, items: list[TrainingImage]) -> list[Tensor]:
    """One latent [1, C, H, W] a picture, float32 on the CPU, scaled and shifted as the model was trained."""
    of_vae, out = identity.of_vae(vae), []
    for item in items:
        pixels = item.pixels.contiguous()
        key = cache.digest(of_vae, type(base.latent_format).__name__, str(tuple(pixels.shape)), pixels.numpy().tobytes())

        def encode(pixels=pixels) -> Tensor:
            return base.process_latent_in(vae.encode(pixels[None].float() / 255)).float().to("cpu", copy=True).clone()

        out.append(cache.latents.get(key, encode))
    return out


def mask_to_latent(mask: Tensor, latent: Tensor) -> Tensor:
    """A pixel mask [H, W] as [1, 1, h, w] at the latent's size: the mean of each cell."""
    return torch.nn.functional.adaptive_avg_pool2d(mask[None, None].float(), latent.shape[-2:])


def describe_held_out(run: Run, config: TrainConfig) -> list[str]:
    """The held-out curve in words: where it was lowest, what was kept, where over-fitting began."""
    if run.best is None:
        return []
    step, loss = run.best
    first = run.held_out[0]
    lines = [f"Held-out loss {first[1]:.4f} at step {first[0]}, lowest {loss:.4f} at step {step}, {run.held_out[-1][1]:.4f} at the end."]
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
