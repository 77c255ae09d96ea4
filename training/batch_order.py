"""The images of each micro-batch: every image is drawn equally often, whatever the sizes of the buckets.

A bucket holds the images that may share a batch, since they have one size. The images of micro-batch 317 are a pure
function of the buckets, the batch size, the seed and 317; see `randomness`. Images of different weights stand in their
bucket as often as `whole_shares` says.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache

import torch

from .errors import InputError
from .randomness import generator
from .tensors import to_list

Buckets = Sequence[Sequence[int]]
SHARE_ERROR = 0.005  # the relative error of `whole_shares`
LARGEST_RATIO = 1000  # of two weights


def whole_shares(weights: Sequence[float]) -> list[int]:
    """The smallest whole numbers in proportion to `weights`, each to within a relative error of `SHARE_ERROR`.

    Exact where the ratios are whole or simple: [1, 1.5] gives [2, 3], equal weights give ones. Raises `InputError` for
    a weight that is not above 0, and for two weights further apart than `LARGEST_RATIO`.
    """
    least, most = min(weights), max(weights)
    if not 0 < least <= most < math.inf:
        raise InputError(f"a picture has the weight {least if least <= 0 else most:g}; give a number above 0")
    if most > LARGEST_RATIO * least:
        raise InputError(
            f"the weights of the pictures go from {least:g} to {most:g}; give weights that differ by at most "
            f"{LARGEST_RATIO} times"
        )
    ratios = [weight / least for weight in weights]
    different = set(ratios)
    scale = 1  # at 1 / (2 * SHARE_ERROR) the rounding is small enough for any ratio, since none is below 1
    while any(abs(round(ratio * scale) / (ratio * scale) - 1) > SHARE_ERROR for ratio in different):
        scale += 1
    return [round(ratio * scale) for ratio in ratios]


def batch_indices(buckets: Buckets, count: int, seed: int | str, micro: int, spread: bool = False) -> list[int]:
    """The `count` indices of a micro-batch; see `batch_draws`."""
    return [index for index, _ in batch_draws(buckets, count, seed, micro, spread)]


def batch_draws(
    buckets: Buckets, count: int, seed: int | str, micro: int, spread: bool = False
) -> list[tuple[int, int]]:
    """[(index, turn)] of the `count` images of a micro-batch, all from one of `buckets`.

    turn: how often the image was drawn before, from 0. Where a bucket's last batch is filled up, a turn may come twice.

    An index may occur more than once in a bucket (repeats), and counts as often. One order serves where it draws all
    images equally often: an epoch goes through every bucket in shuffled order and fills the last batch of a bucket from
    its beginning. That is so for one bucket, and for buckets that are multiples of `count`. Any other set would show
    the images of its small buckets more often (a bucket of 1 beside one of 19 in batches of 8: 6.3 times as often).
    There, a bucket gets batches in proportion to its number of images, and goes through its images in shuffled order
    from one batch to the next: a bucket of 1 in 20 images has one batch in 20.

    spread: an index that occurs n times in its bucket comes once in each n-th part of a pass, not n times at random.
    Buckets of weighted images are drawn so: an image's count is then close to its share after any number of steps.
    """
    batches = _batches_of_epoch(buckets, count)
    if spread or not _is_even(buckets, batches):
        return _by_share(buckets, count, seed, micro, spread)
    epoch, position = divmod(micro, sum(batches))
    g, b = _epoch(seed, epoch, batches)[position]
    return _batch_of_epoch(_shuffled(buckets[g], seed, epoch, g), b, count, epoch)


def draw_counts(buckets: Buckets, count: int, seed: int | str, micros: int, spread: bool = False) -> Counter[int]:
    """{index: how often it is in the first `micros` micro-batches}, exactly; the arguments of `batch_draws`.

    Takes the time of one shuffle for each epoch of a bucket that `count` does not divide, and little time otherwise.
    """
    batches = _batches_of_epoch(buckets, count)
    if spread or not _is_even(buckets, batches):
        return _counts_by_share(buckets, count, seed, micros, spread)
    counts: Counter[int] = Counter()
    epochs, rest = divmod(micros, sum(batches))
    for g, bucket in enumerate(buckets):
        passes, over = divmod(batches[g] * count, len(bucket))  # in each epoch
        counts.update({index: times * passes * epochs for index, times in Counter(bucket).items()})
        for epoch in range(epochs if over else 0):
            counts.update(_shuffled(bucket, seed, epoch, g)[:over])
    if rest:
        orders = [_shuffled(bucket, seed, epochs, g) for g, bucket in enumerate(buckets)]
        for g, b in _epoch(seed, epochs, batches)[:rest]:
            counts.update(index for index, _ in _batch_of_epoch(orders[g], b, count, epochs))
    return counts


def _batches_of_epoch(buckets: Buckets, count: int) -> list[int]:
    """The batches of `count` that each bucket needs, the last one filled up."""
    return [-(-len(bucket) // count) for bucket in buckets]


def _is_even(buckets: Buckets, batches: Sequence[int]) -> bool:
    """Whether `batches` of each bucket draw the images of all of them equally often."""
    first = len(buckets[0])
    return all(n * first == batches[0] * len(bucket) for n, bucket in zip(batches, buckets, strict=True))


def _epoch(seed: int | str, epoch: int, batches: Sequence[int]) -> list[tuple[int, int]]:
    """(bucket, number of its batch) of each micro-batch of an epoch."""
    turns = [(g, b) for g, n in enumerate(batches) for b in range(n)]
    return [turns[i] for i in to_list(torch.randperm(len(turns), generator=generator(seed, "batches", epoch)))]


def _batch_of_epoch(order: Sequence[int], b: int, count: int, epoch: int) -> list[tuple[int, int]]:
    places = range(b * count, (b + 1) * count)
    return [(order[place % len(order)], epoch + place // len(order)) for place in places]


def _by_share(buckets: Buckets, count: int, seed: int | str, micro: int, spread: bool) -> list[tuple[int, int]]:
    """See `batch_draws`: the next `count` images of the bucket whose turn it is."""
    batches = _batches_of_period(buckets)
    period, position = divmod(micro, sum(batches))
    g, number = _period(seed, period, batches)[position]
    bucket, first = buckets[g], (period * batches[g] + number) * count  # first: images drawn from the bucket before
    passes = range(first // len(bucket), (first + count - 1) // len(bucket) + 1)
    order = [draw for number in passes for draw in _pass(bucket, seed, number, g, spread)]
    start = first % len(bucket)
    return order[start : start + count]


def _counts_by_share(buckets: Buckets, count: int, seed: int | str, micros: int, spread: bool) -> Counter[int]:
    """See `draw_counts`, for the order of `_by_share`."""
    batches, counts = _batches_of_period(buckets), Counter[int]()
    periods, rest = divmod(micros, sum(batches))
    begun = Counter(g for g, _ in _period(seed, periods, batches)[:rest])
    for g, bucket in enumerate(buckets):
        passes, over = divmod((periods * batches[g] + begun[g]) * count, len(bucket))
        counts.update({index: times * passes for index, times in Counter(bucket).items()})
        counts.update(index for index, _ in _pass(bucket, seed, passes, g, spread)[:over])
    return counts


def _batches_of_period(buckets: Buckets) -> tuple[int, ...]:
    """The batches of each bucket in one period: the smallest numbers in proportion to the numbers of images."""
    common = math.gcd(*map(len, buckets))
    return tuple(len(bucket) // common for bucket in buckets)


@lru_cache(maxsize=4)
def _period(seed: int | str, period: int, batches: tuple[int, ...]) -> list[tuple[int, int]]:
    """(bucket, number of its batch in this period) of each micro-batch of a period.

    A bucket's batch number j of n lies at a random time in the j-th of n equal parts of the period, so that also the
    beginning of a period holds each bucket by its share.
    """
    draw = generator(seed, "buckets", period)
    times = torch.cat([(torch.arange(n) + torch.rand(n, generator=draw, dtype=torch.float64)) / n for n in batches])
    turns = [(g, number) for g, n in enumerate(batches) for number in range(n)]
    return [turns[i] for i in to_list(torch.argsort(times, stable=True))]


def _pass(bucket: Sequence[int], seed: int | str, number: int, g: int, spread: bool) -> list[tuple[int, int]]:
    """[(index, turn)] of bucket number `g` in the order of its pass `number`; see `batch_draws`."""
    times = Counter(bucket)
    order = _spread(times, seed, number, g) if spread else _shuffled(bucket, seed, number, g)
    seen, draws = Counter[int](), list[tuple[int, int]]()
    for index in order:
        draws.append((index, number * times[index] + seen[index]))
        seen[index] += 1
    return draws


def _spread(times: Counter[int], seed: int | str, number: int, g: int) -> list[int]:
    """Each index as often as `times` says: its j-th of n at a random time in the j-th of n equal parts of the pass."""
    draw = generator(seed, "spread", number, g)
    parts = [(torch.arange(n) + torch.rand(n, generator=draw, dtype=torch.float64)) / n for n in times.values()]
    order = [index for index, n in times.items() for _ in range(n)]
    return [order[i] for i in to_list(torch.argsort(torch.cat(parts), stable=True))]


def _shuffled(bucket: Sequence[int], seed: int | str, number: int, g: int) -> list[int]:
    """The indices of bucket number `g` in the order of its pass (of an even set: epoch) `number`."""
    order = to_list(torch.randperm(len(bucket), generator=generator(seed, "images", number, g)))
    return [bucket[i] for i in order]
