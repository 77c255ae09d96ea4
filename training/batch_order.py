"""The images of each micro-batch: every image is drawn equally often, whatever the sizes of the buckets.

A bucket holds the images that may share a batch, since they have one size. The images of micro-batch 317 are a pure
function of the buckets, the batch size, the seed and 317; see `randomness`. Images of different weights are in a
`WeightedBucket`, as often in each pass as `whole_shares` says.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

from .errors import InputError
from .randomness import generator
from .tensors import to_list

SHARE_ERROR = 0.005  # the relative error of `whole_shares`
LARGEST_RATIO = 1000  # of two weights
LONGEST_PASS = 2_000_000  # draws, in all buckets together: bounds the memory (16 bytes a draw) and time of a pass
PASSES_KEPT = 2  # of each bucket: a batch may lie in two


class WeightedBucket:
    """Images of one size, each as often in a pass as its share says.

    indices: the images. shares: for each, how often it is drawn in a pass. An image of share n comes once in each n-th
    part of a pass, not n times at random: its count is then close to its share after any number of steps. The last
    passes are kept, since all batches of a pass need the same order.
    """

    def __init__(self, indices: Sequence[int], shares: Sequence[int]):
        self.shares = dict(zip(indices, shares, strict=True))  # {index: how often in a pass}
        self._length = sum(shares)
        self._passes: dict[tuple[int | str, int, int], tuple[Tensor, Tensor]] = {}

    def __len__(self) -> int:
        """The draws of a pass."""
        return self._length

    def passed(self, seed: int | str, number: int, g: int) -> tuple[Tensor, Tensor]:
        """(index, turn) of each draw of pass `number`, int32 [len(self)]; see `batch_draws`. g: the bucket's number."""
        key = seed, number, g
        if key not in self._passes:
            while len(self._passes) >= PASSES_KEPT:
                del self._passes[next(iter(self._passes))]
            self._passes[key] = self._make_pass(seed, number, g)
        return self._passes[key]

    def _make_pass(self, seed: int | str, number: int, g: int) -> tuple[Tensor, Tensor]:
        """An image's draw number j of n lies at a random time in the j-th of n equal parts of the pass."""
        shares = torch.tensor(list(self.shares.values()))
        owners = torch.repeat_interleave(torch.arange(len(shares)), shares)
        parts = torch.arange(self._length) - (shares.cumsum(0) - shares)[owners]
        draw = generator(seed, "spread", number, g)
        times = (parts + torch.rand(self._length, generator=draw, dtype=torch.float64)) / shares[owners]
        order = torch.argsort(times, stable=True)
        indices = torch.tensor(list(self.shares), dtype=torch.int32)[owners[order]]
        return indices, (number * shares[owners] + parts)[order].to(torch.int32)


Bucket = Sequence[int] | WeightedBucket
Buckets = Sequence[Sequence[int]] | Sequence[WeightedBucket]


def whole_shares(weights: Sequence[float]) -> list[int]:
    """The smallest whole numbers in proportion to `weights`, each to within a relative error of `SHARE_ERROR`.

    Exact where the ratios are whole or simple: [1, 1.5] gives [2, 3], equal weights give ones. Where the numbers would
    add up to more than `LONGEST_PASS` they are made as large as it allows, at least 1: only the numbers below 100, of
    the rarest images, are then less exact. Raises `InputError` for a weight that is not above 0, and for two weights
    further apart than `LARGEST_RATIO`.
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
    scale = 1.0  # at 1 / (2 * SHARE_ERROR) the rounding is small enough for any ratio, since none is below 1
    while any(abs(round(ratio * scale) / (ratio * scale) - 1) > SHARE_ERROR for ratio in different):
        scale += 1
    scale = min(scale, LONGEST_PASS / sum(ratios))
    return [max(1, round(ratio * scale)) for ratio in ratios]


def batch_indices(buckets: Buckets, count: int, seed: int | str, micro: int) -> list[int]:
    """The `count` indices of a micro-batch; see `batch_draws`."""
    return [index for index, _ in batch_draws(buckets, count, seed, micro)]


def batch_draws(buckets: Buckets, count: int, seed: int | str, micro: int) -> list[tuple[int, int]]:
    """[(index, turn)] of the `count` images of a micro-batch, all from one of `buckets`.

    turn: how often the image was drawn before, from 0. Where a bucket's last batch is filled up, a turn may come twice.

    An index may occur more than once in a bucket (repeats), and counts as often. One order serves where it draws all
    images equally often: an epoch goes through every bucket in shuffled order and fills the last batch of a bucket from
    its beginning. That is so for one bucket, and for buckets that are multiples of `count`. Any other set would show
    the images of its small buckets more often (a bucket of 1 beside one of 19 in batches of 8: 6.3 times as often).
    There, a bucket gets batches in proportion to its number of images, and goes through its images in shuffled order
    from one batch to the next: a bucket of 1 in 20 images has one batch in 20.
    Weighted buckets are drawn in that second way, in the order of their passes.
    """
    batches = _batches_of_epoch(buckets, count)
    plain = _plain(buckets)
    if plain is None or not _is_even(plain, batches):
        return _by_share(buckets, count, seed, micro)
    epoch, position = divmod(micro, sum(batches))
    g, b = _epoch(seed, epoch, batches)[position]
    return _batch_of_epoch(_shuffled(plain[g], seed, epoch, g), b, count, epoch)


def draw_counts(buckets: Buckets, count: int, seed: int | str, micros: int) -> Counter[int]:
    """{index: how often it is in the first `micros` micro-batches}, exactly; the arguments of `batch_draws`.

    Takes the time of one shuffle for each epoch of a bucket that `count` does not divide, and little time otherwise.
    """
    batches = _batches_of_epoch(buckets, count)
    plain = _plain(buckets)
    if plain is None or not _is_even(plain, batches):
        return _counts_by_share(buckets, count, seed, micros)
    counts: Counter[int] = Counter()
    epochs, rest = divmod(micros, sum(batches))
    for g, bucket in enumerate(plain):
        passes, over = divmod(batches[g] * count, len(bucket))  # in each epoch
        counts.update({index: times * passes * epochs for index, times in Counter(bucket).items()})
        for epoch in range(epochs if over else 0):
            counts.update(_shuffled(bucket, seed, epoch, g)[:over])
    if rest:
        orders = [_shuffled(bucket, seed, epochs, g) for g, bucket in enumerate(plain)]
        for g, b in _epoch(seed, epochs, batches)[:rest]:
            counts.update(index for index, _ in _batch_of_epoch(orders[g], b, count, epochs))
    return counts


def _plain(buckets: Buckets) -> list[Sequence[int]] | None:
    """The buckets where they are not weighted, else None."""
    plain = [bucket for bucket in buckets if not isinstance(bucket, WeightedBucket)]
    return plain if len(plain) == len(buckets) else None


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


def _by_share(buckets: Buckets, count: int, seed: int | str, micro: int) -> list[tuple[int, int]]:
    """See `batch_draws`: the next `count` images of the bucket whose turn it is."""
    batches = _batches_of_period(buckets)
    period, position = divmod(micro, sum(batches))
    of_bucket, numbers = _period(seed, period, batches)
    g, number = int(of_bucket[position]), int(numbers[position])
    bucket, first = buckets[g], (period * batches[g] + number) * count  # first: images drawn from the bucket before
    draws, length = list[tuple[int, int]](), len(bucket)
    for passed in range(first // length, (first + count - 1) // length + 1):
        start = passed * length
        draws += _of_pass(bucket, seed, passed, g, max(first - start, 0), min(first + count - start, length))
    return draws


def _counts_by_share(buckets: Buckets, count: int, seed: int | str, micros: int) -> Counter[int]:
    """See `draw_counts`, for the order of `_by_share`."""
    batches, counts = _batches_of_period(buckets), Counter[int]()
    periods, rest = divmod(micros, sum(batches))
    begun = to_list(torch.bincount(_period(seed, periods, batches)[0][:rest], minlength=len(batches)))
    for g, bucket in enumerate(buckets):
        passes, over = divmod((periods * batches[g] + begun[g]) * count, len(bucket))
        times = bucket.shares if isinstance(bucket, WeightedBucket) else Counter(bucket)
        counts.update({index: n * passes for index, n in times.items()})
        counts.update(index for index, _ in _of_pass(bucket, seed, passes, g, 0, over))
    return counts


def _batches_of_period(buckets: Buckets) -> tuple[int, ...]:
    """The batches of each bucket in one period: the smallest numbers in proportion to the numbers of images."""
    common = math.gcd(*map(len, buckets))
    return tuple(len(bucket) // common for bucket in buckets)


@lru_cache(maxsize=4)
def _period(seed: int | str, period: int, batches: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """(bucket, number of its batch in this period) of each micro-batch of a period, int64 and int32.

    A bucket's batch number j of n lies at a random time in the j-th of n equal parts of the period, so that also the
    beginning of a period holds each bucket by its share.
    """
    draw = generator(seed, "buckets", period)
    times = torch.cat([(torch.arange(n) + torch.rand(n, generator=draw, dtype=torch.float64)) / n for n in batches])
    order = torch.argsort(times, stable=True)
    of_bucket = torch.repeat_interleave(torch.arange(len(batches)), torch.tensor(batches))
    numbers = torch.cat([torch.arange(n, dtype=torch.int32) for n in batches])
    return of_bucket[order], numbers[order]


def _of_pass(bucket: Bucket, seed: int | str, number: int, g: int, start: int, stop: int) -> list[tuple[int, int]]:
    """[(index, turn)] of the draws `start` to `stop` of pass `number` of bucket number `g`; see `batch_draws`."""
    if isinstance(bucket, WeightedBucket):
        indices, turns = bucket.passed(seed, number, g)
        return list(zip(to_list(indices[start:stop]), to_list(turns[start:stop]), strict=True))
    times, seen, draws = Counter(bucket), Counter[int](), list[tuple[int, int]]()
    for index in _shuffled(bucket, seed, number, g)[:stop]:
        draws.append((index, number * times[index] + seen[index]))
        seen[index] += 1
    return draws[start:]


def _shuffled(bucket: Sequence[int], seed: int | str, number: int, g: int) -> list[int]:
    """The indices of bucket number `g` in the order of its pass (of an even set: epoch) `number`."""
    order = to_list(torch.randperm(len(bucket), generator=generator(seed, "images", number, g)))
    return [bucket[i] for i in order]
