"""How often each picture is drawn. The oracle is arithmetic: draws times the picture's share of the set."""

from collections import Counter

import pytest
import torch
from bespoke.training.batch_order import batch_indices, draw_counts
from bespoke.training.randomness import generator


def buckets_of(*sizes):
    """[[0, 1, ...], ...]: buckets of the given sizes."""
    numbers = iter(range(sum(sizes)))
    return [[next(numbers) for _ in range(size)] for size in sizes]


# Sets in which filling up the last batch of a bucket would favour the pictures of some.
UNEVEN = [((19, 1), 8), ((9, 16), 8), ((5, 4), 4), ((1, 2, 3), 4), ((30, 26, 12, 3, 11, 20), 16), ((50, 3, 1), 2)]
EVEN = [((20,), 8), ((3,), 8), ((8, 16), 8), ((3, 3), 8), ((7, 5, 1), 1)]


def test_one_wide_picture_among_squares_counts_as_one_of_twenty():
    """19 squares and 1 wide picture at batch 8: 20 micro-batches are 160 draws, 8 of each picture."""
    for seed in range(5):
        drawn = [batch_indices(buckets_of(19, 1), 8, seed, micro) for micro in range(200)]
        assert [batch for batch in drawn if 19 in batch] == [[19] * 8] * 10
        assert Counter(sum(drawn, [])) == dict.fromkeys(range(20), 80)
    # Not always the same one of twenty: a short training must be as likely to see it as any other.
    assert len({next(m for m in range(20) if 19 in batch_indices(buckets_of(19, 1), 8, s, m)) for s in range(40)}) > 8


@pytest.mark.parametrize(("sizes", "count"), UNEVEN)
def test_each_picture_counts_by_its_share(sizes, count):
    """At every step. With k buckets, each is within 1 - p + p (k - 1) batches of its share p: each bucket is within a
    batch of its share of time, and time within the sum of that over the others of the number of batches.
    """
    buckets, total = buckets_of(*sizes), sum(sizes)
    batches, draws = Counter(), Counter()
    for micro in range(2 * total):
        drawn = batch_indices(buckets, count, 3, micro)
        g = next(g for g, bucket in enumerate(buckets) if drawn[0] in bucket)
        assert len(drawn) == count
        assert set(drawn) <= set(buckets[g])
        batches[g] += 1
        draws.update(drawn)
        for g, bucket in enumerate(buckets):
            share = len(bucket) / total
            assert abs(batches[g] - share * (micro + 1)) < 1 - share + share * (len(sizes) - 1) + 1e-9
            assert max(draws[i] for i in bucket) - min(draws[i] for i in bucket) <= 1  # none twice before all once
    assert set(draws.values()) == {2 * count}  # every period of `total` micro-batches draws each picture `count` times


def test_repeats_count():
    """A picture that stands three times in its bucket is drawn three times as often as one that stands once."""
    draws = Counter(sum((batch_indices([[0, 0, 0, 1, 2], [3]], 4, 0, micro) for micro in range(6)), []))
    assert draws == {0: 12, 1: 4, 2: 4, 3: 4}


@pytest.mark.parametrize(("sizes", "count"), EVEN)
def test_sets_that_were_even_keep_their_order(sizes, count):
    """As in 0.1: shuffled batches of shuffled buckets, the last batch filled from the bucket's beginning."""
    buckets = buckets_of(*sizes)
    turns = [(g, b) for g, size in enumerate(sizes) for b in range(-(-size // count))]
    for micro in range(5 * len(turns)):
        epoch, position = divmod(micro, len(turns))
        g, b = turns[torch.randperm(len(turns), generator=generator(9, "batches", epoch))[position]]
        order = torch.randperm(sizes[g], generator=generator(9, "images", epoch, g)).tolist()
        expected = [buckets[g][order[(b * count + i) % sizes[g]]] for i in range(count)]
        assert batch_indices(buckets, count, 9, micro) == expected


@pytest.mark.parametrize(("sizes", "count"), UNEVEN + EVEN)
def test_counts_are_those_of_the_draws(sizes, count):
    buckets = buckets_of(*sizes)
    counts = Counter()
    for micro in range(150):
        assert draw_counts(buckets, count, 5, micro) == counts
        counts.update(batch_indices(buckets, count, 5, micro))


def test_the_order_is_a_pure_function_of_seed_and_step():
    for sizes, count in UNEVEN[:3] + EVEN[:3]:
        buckets = buckets_of(*sizes)
        order = [batch_indices(buckets, count, 11, micro) for micro in range(30)]
        for micro in reversed(range(30)):
            assert batch_indices(buckets, count, 11, micro) == order[micro]
        assert [batch_indices(buckets, count, 12, micro) for micro in range(30)] != order
