"""The held-out loss: images that are not trained on, at fixed noise levels and noises, so that the curve is comparable.

A single step's training loss scatters with the noise levels and pictures that were drawn. The same images at the same
levels with the same noises, scored again and again, say whether the model got better at pictures that it has not seen.

A set of fewer than ten pictures cannot spare any. There the question is asked in rotation (cross-validation; Kohavi
1995): a few trainings, each without some of the pictures, say at which step pictures that were left out are predicted
best; then one training on all pictures goes as far as that step.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from .data import Batch, LatentSet
from .distributed import World
from .errors import InputError
from .randomness import generator, noise

LEVELS = (0.1, 0.3, 0.5, 0.7, 0.9)  # places in the noise schedule
SEED = 0x5EED  # the grid is the same for every run, whatever its seed
FEW = 10  # pictures; below it nothing is held out for good
MOST_ROTATIONS = 3


def split(copies: Sequence[Sequence[int]], held_out: int, seed: int) -> tuple[list[int], list[int]]:
    """(trained on, held out): `held_out` of the pictures are chosen by the seed, the others are trained on.

    copies: the indices of each picture's copies (mirrored, repeated); a picture goes to one side with all of them, and
    is scored once. Raises `InputError` when none would be left to train on.
    """
    order = _shuffled(copies, held_out, seed)
    return _without(copies, order[:held_out])


def rotations(copies: Sequence[Sequence[int]], held_out: int, seed: int) -> list[tuple[list[int], list[int]]]:
    """[(trained on, held out)] of up to three trainings that each leave out `held_out` other pictures; see `split`."""
    order = _shuffled(copies, held_out, seed)
    folds = [order[at : at + held_out] for at in range(0, len(order) - held_out + 1, held_out)]
    return [_without(copies, fold) for fold in folds[:MOST_ROTATIONS]]


def _shuffled(copies: Sequence[Sequence[int]], held_out: int, seed: int) -> list[int]:
    if held_out >= len(copies):
        raise InputError(f"validation is {held_out} of {len(copies)} pictures, so none is left to train on; give fewer")
    return torch.randperm(len(copies), generator=generator(seed, "held out")).tolist()


def _without(copies: Sequence[Sequence[int]], out: Sequence[int]) -> tuple[list[int], list[int]]:
    trained_on = sorted(i for number, own in enumerate(copies) if number not in out for i in own)
    return trained_on, sorted(copies[number][0] for number in out)


def mean_curve(curves: Sequence[Sequence[tuple[int, float]]]) -> list[tuple[int, float]]:
    """[(step, loss)]: the mean of held-out curves over the steps that all of them have."""
    common = set.intersection(*({step for step, _ in curve} for curve in curves))
    losses = [dict(curve) for curve in curves]
    return [(step, sum(one[step] for one in losses) / len(losses)) for step in sorted(common)]


def grid(
    data: LatentSet, indices: Sequence[int], device: torch.device, levels: Sequence[float] = LEVELS
) -> list[Batch]:
    """One batch a held-out image: the image at each level, with a noise of its own."""
    batches = []
    for number, index in enumerate(indices):
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
                list(range(len(levels))),
                len(levels),
                seed=SEED,
                number=number,
            )
        )
    return batches


def scorer(
    batches: Sequence[Batch], loss_of: Callable[[Batch], Tensor], world: World | None = None
) -> Callable[[], float]:
    """The mean loss over the grid as the model stands. loss_of: batch -> [B].

    world: the processes that share the batches out. Each computes as many, so that those of a model that is spread over
    them call it together; what is one too many is not counted. The sum is the same whoever computed its parts.
    """
    world = World() if world is None else world

    def score() -> float:
        losses = [0.0] * len(batches)
        for first in range(0, len(batches), world.size):
            number = min(first + world.rank, len(batches) - 1)
            loss = loss_of(batches[number]).cpu().double().mean().item()
            if first + world.rank == number:
                losses[number] = loss
        losses = world.add_numbers(losses)
        return sum(losses) / len(losses)

    return score
