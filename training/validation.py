"""The validation loss: held-out images at fixed timesteps and noises, so that losses of different steps compare.

The training loss of a single step scatters with the timesteps and images that were drawn. The same images at the same
timesteps with the same noises show whether the model predicts images better that it was not trained on.

A set of fewer than `MIN_SPLIT` images cannot spare any. There, cross-validation (Kohavi 1995) finds the number of
steps: a few trainings, each without some of the images, show at which step left-out images are predicted best; then
one training on all images runs up to that step.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from .data import Batch, LatentSet
from .distributed import World
from .errors import InputError
from .randomness import generator, noise
from .tensors import to_list

TIMESTEPS = (0.1, 0.3, 0.5, 0.7, 0.9)  # t of each validation image
SEED = 0x5EED  # of the validation noises: the same for every run, whatever its seed
MIN_SPLIT = 10  # images; a smaller set is cross-validated instead of split
MAX_FOLDS = 3


def split(copies: Sequence[Sequence[int]], held_out: int, seed: int) -> tuple[list[int], list[int]]:
    """(trained on, held out): `held_out` images drawn by the seed, and the others.

    copies: the indices of each image's copies (mirrored, repeated). All copies of an image go to the same side; of a
    held-out image only the first is returned. Raises `InputError` when none would be left to train on.
    """
    order = _shuffled(copies, held_out, seed)
    return _without(copies, order[:held_out])


def folds(copies: Sequence[Sequence[int]], held_out: int, seed: int) -> list[tuple[list[int], list[int]]]:
    """[(trained on, held out)] of up to `MAX_FOLDS` trainings, each without `held_out` other images; see `split`."""
    order = _shuffled(copies, held_out, seed)
    parts = [order[start : start + held_out] for start in range(0, len(order) - held_out + 1, held_out)]
    return [_without(copies, part) for part in parts[:MAX_FOLDS]]


def _shuffled(copies: Sequence[Sequence[int]], held_out: int, seed: int) -> list[int]:
    if held_out >= len(copies):
        raise InputError(f"validation is {held_out} of {len(copies)} pictures, so none is left to train on; give fewer")
    return to_list(torch.randperm(len(copies), generator=generator(seed, "held out")))


def _without(copies: Sequence[Sequence[int]], out: Sequence[int]) -> tuple[list[int], list[int]]:
    trained_on = sorted(i for number, own in enumerate(copies) if number not in out for i in own)
    return trained_on, sorted(copies[number][0] for number in out)


def mean_curve(curves: Sequence[Sequence[tuple[int, float]]]) -> list[tuple[int, float]]:
    """[(step, loss)]: the mean of validation curves over the steps that all of them have."""
    steps = [{step for step, _ in curve} for curve in curves]
    common = steps[0].intersection(*steps[1:])
    losses = [dict(curve) for curve in curves]
    return [(step, sum(one[step] for one in losses) / len(losses)) for step in sorted(common)]


def grid_within(low: float, high: float) -> list[float]:
    """The timesteps at which pictures are scored: `TIMESTEPS` within the range `low` to `high` that is trained on."""
    return [low + (high - low) * t for t in TIMESTEPS]


def validation_batches(
    data: LatentSet, indices: Sequence[int], device: torch.device, timesteps: Sequence[float] = TIMESTEPS
) -> list[Batch]:
    """One batch per held-out image: the image at each of `timesteps`, each with its own noise."""
    return [grid_batch(data, index, number, device, timesteps) for number, index in enumerate(indices)]


def grid_batch(
    data: LatentSet,
    index: int,
    number: int,
    device: torch.device,
    timesteps: Sequence[float] = TIMESTEPS,
    captioned: bool = True,
    positions: Sequence[int] | None = None,
) -> Batch:
    """One image at each of `timesteps`, each with a noise that depends on `index` and the timestep's position only.

    number: of the batch, for a technique's own draws. captioned: whether the samples have the image's caption.
    positions: of the timesteps to return, all by default.
    """
    positions = range(len(timesteps)) if positions is None else positions
    count = len(positions)
    latent, mask = data.latents[index], data.masks[index]
    noises = [noise(SEED, index, position, latent.shape[1:], "held out") for position in positions]
    return Batch(
        indices=[index] * count,
        caption_indices=[index if captioned else -1] * count,
        latent=latent.expand(count, *latent.shape[1:]).to(device),
        noise=torch.stack(noises).to(device),
        t=torch.tensor([timesteps[position] for position in positions], device=device),
        mask=None if mask is None else mask.expand(count, *mask.shape[1:]).to(device),
        sample_positions=list(positions),
        count=count,
        seed=SEED,
        number=number,
    )


def validation_scorer(
    batches: Sequence[Batch],
    loss: Callable[[Batch], Tensor],
    world: World | None = None,
    keep: Callable[[list[float]], None] = lambda losses: None,
    keep_samples: Callable[[list[float]], None] | None = None,
) -> Callable[[], float]:
    """A function that computes the mean loss over `batches`. loss: batch -> [B]. keep: is given that of each batch.

    keep_samples: is given the loss of each sample, batch after batch; all batches then have as many samples. world: the
    processes that share the batches; see `shared_numbers`. The sum does not depend on their number.
    """
    width = 1 if keep_samples is None or not batches else 1 + len(batches[0].indices)

    def numbers(number: int) -> list[float]:
        losses = loss(batches[number]).cpu().double()
        return [losses.mean().item(), *(to_list(losses) if width > 1 else ())]

    def score() -> float:
        found = shared_numbers(len(batches), width, numbers, world)
        assert found is not None
        losses = found[::width]
        keep(losses)
        if keep_samples is not None:
            keep_samples([each for start in range(0, len(found), width) for each in found[start + 1 : start + width]])
        return sum(losses) / len(losses)

    return score


def shared_numbers(
    count: int,
    width: int,
    compute: Callable[[int], Sequence[float]],
    world: World | None = None,
    goes_on: Callable[[int], bool] = lambda done: True,
) -> list[float] | None:
    """The `width` numbers of each of `count` items, one after the other, the same in every process.

    compute: item -> its numbers. world: the processes that share the items. A model that is sharded over processes must
    be called by all of them equally often, so a process without an item in the last round computes one that another
    counts. goes_on: called before each round with how many are done, in every process alike; False ends with None.
    """
    world = World() if world is None else world
    numbers = [0.0] * (count * width)
    for first in range(0, count, world.size):
        if not goes_on(first):
            return None
        number = min(first + world.rank, count - 1)
        own = compute(number)
        if first + world.rank == number:
            numbers[number * width : (number + 1) * width] = own
    return world.all_reduce_numbers(numbers)
