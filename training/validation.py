"""The held-out loss: images that are not trained on, at fixed noise levels and noises, so that the curve is comparable.

A single step's training loss mostly says which noise levels were drawn. The same images at the same levels with the
same noises, scored again and again, say whether the model got better at pictures that it has not seen.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from .data import Batch, LatentSet
from .errors import InputError
from .randomness import generator, noise

LEVELS = (0.1, 0.3, 0.5, 0.7, 0.9)  # places in the noise schedule
SEED = 0x5EED  # the grid is the same for every run, whatever its seed


def split(count: int, held_out: int, seed: int) -> tuple[list[int], list[int]]:
    """(trained on, held out): indices of `count` images, `held_out` of them chosen by the seed."""
    if held_out >= count:
        raise InputError(f"validation is {held_out} of {count} pictures, so none is left to train on; give fewer")
    order = torch.randperm(count, generator=generator(seed, "held out")).tolist()
    return sorted(order[held_out:]), sorted(order[:held_out])


def grid(data: LatentSet, indices: Sequence[int], device: torch.device, levels: Sequence[float] = LEVELS) -> list[Batch]:
    """One batch a held-out image: the image at each level, with a noise of its own."""
    batches = []
    for index in indices:
        latent = data.latents[index]
        noises = torch.stack([noise(SEED, index, place, latent.shape[1:], "held out") for place in range(len(levels))])
        mask = data.masks[index]
        batches.append(
            Batch(
                [index] * len(levels),
                [index] * len(levels),
                latent.expand(len(levels), *latent.shape[1:]).to(device),
                noises.to(device),
                torch.tensor(levels, device=device),
                None if mask is None else mask.expand(len(levels), *mask.shape[1:]).to(device),
            )
        )
    return batches


def scorer(batches: Sequence[Batch], loss_of: Callable[[Batch, int], Tensor]) -> Callable[[], float]:
    """The mean loss over the grid as the model stands. loss_of: (batch, its number) -> [B]."""

    def score() -> float:
        losses = [loss_of(batch, number).double().mean().item() for number, batch in enumerate(batches)]
        return sum(losses) / len(losses)

    return score
