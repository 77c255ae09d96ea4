"""How often each picture is drawn. The oracle is arithmetic: draws times the picture's share of the set."""

from collections import Counter

import bespoke.training.data as data_module
import pytest
import torch
from bespoke.nodes.images.folder import mirrored
from bespoke.training.batch_order import (
    LONGEST_PASS,
    SHARE_ERROR,
    WeightedBucket,
    batch_draws,
    batch_indices,
    draw_counts,
    whole_shares,
)
from bespoke.training.captions import caption_number
from bespoke.training.config import TrainConfig
from bespoke.training.data import LatentSet, prompts_of
from bespoke.training.errors import InputError
from bespoke.training.images import TrainingImage, apart, by_picture, first_equal
from bespoke.training.randomness import generator
from bespoke.training.timesteps import UniformTimesteps
from bespoke.training.validation import split, validation_batches


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


def test_whole_shares_by_hand():
    assert whole_shares([0.3] * 4) == [1] * 4
    assert whole_shares([1, 2, 7]) == [1, 2, 7]
    assert whole_shares([1, 1.5]) == [2, 3]
    assert whole_shares([0.5, 0.75, 1]) == [2, 3, 4]
    assert whole_shares([1, 1.01]) == [67, 68]  # 68/67 is 1.0149, within half a percent of 1.01; no smaller pair is
    weights = [1.0, 1.2345, 3.3333, 314.159]
    for share, weight in zip(whole_shares(weights), weights, strict=True):
        assert share / whole_shares(weights)[0] == pytest.approx(weight, rel=2 * SHARE_ERROR)


def test_shares_are_bounded_where_the_weights_are_odd_and_far_apart():
    """9,999 weights of 997.3 beside one of 1: within 0.5 % they take 997 and 1, in all 9.97 million draws a pass. The
    bound of 2 million is a fifth of it, so 200 each, and 1 for the rarest, which cannot have less.
    """
    weights = [997.3] * 9999 + [1.0]
    scale = LONGEST_PASS / sum(weights)
    assert whole_shares(weights) == [round(997.3 * scale)] * 9999 + [1]
    assert round(997.3 * scale) == 200


@pytest.mark.parametrize(("weights", "text"), [([1, 0], "0"), ([1, -2], "-2"), ([float("nan"), 1], "nan")])
def test_a_weight_that_draws_nothing_is_refused(weights, text):
    with pytest.raises(InputError, match=f"the weight {text}; give a number above 0"):
        whole_shares(weights)


def test_weights_too_far_apart_are_refused():
    with pytest.raises(InputError, match="from 1 to 1001; give weights that differ by at most 1000 times"):
        whole_shares([1, 1001])


WEIGHTED = [([1, 2, 3, 1.5], [0, 0, 0, 0], 2), ([1, 1, 1, 4], [0, 0, 1, 1], 8), ([0.2, 1, 1, 1, 3], [0, 1, 1, 2, 2], 3)]


@pytest.mark.parametrize(("weights", "shapes", "count"), WEIGHTED)
def test_weighted_pictures_are_drawn_by_their_share(weights, shapes, count):
    """Over 1,000 micro-batches. The oracle is weight / sum of weights; the order is even, so the counts are closer to
    it than those of independent draws: chi-square stays far below its degrees of freedom.
    """
    data = LatentSet([torch.zeros(1, 4, 8, 8 + shape) for shape in shapes], [None] * len(weights), weights)
    buckets = data.buckets(range(len(weights)))
    draws, turns = Counter(), {index: [] for index in range(len(weights))}
    for micro in range(1000):
        drawn = batch_draws(buckets, count, 5, micro)
        assert len({shapes[index] for index, _ in drawn}) == 1
        draws.update(index for index, _ in drawn)
        for index, turn in drawn:
            turns[index].append(turn)
    expected = [1000 * count * weight / sum(weights) for weight in weights]
    assert sum((draws[i] - n) ** 2 / n for i, n in enumerate(expected)) < 0.5 * (len(weights) - 1)
    assert draw_counts(buckets, count, 5, 1000) == draws
    assert all(taken == list(range(len(taken))) for taken in turns.values())  # each turn once and in order


def test_what_a_step_draws_is_not_computed_anew_at_every_step(monkeypatch):
    """500 pictures of odd weights: the shares once for the run and the order once for each pass of a bucket, whose
    number is the draws so far over the draws of a pass. At 2 sizes of 250 pictures and batches of 4, 400 steps are
    1,600 draws, which is below one pass of each.
    """
    made, shares = [], []
    monkeypatch.setattr(WeightedBucket, "_make_pass", noting(made, WeightedBucket._make_pass))
    monkeypatch.setattr(data_module, "whole_shares", noting(shares, whole_shares))
    weights = (0.5 + 1.5 * torch.rand(500, generator=torch.Generator().manual_seed(0), dtype=torch.float64)).tolist()
    data = LatentSet([torch.zeros(1, 4, 8, 8 + i % 2) for i in range(500)], [None] * 500, weights)
    config = TrainConfig(steps=400, learning_rate=1e-3, seed=1, batch_size=4)
    for micro in range(400):
        data.batch(config, micro, torch.device("cpu"), UniformTimesteps(), range(500))
    assert len(shares) == 1
    assert sum(map(len, data.buckets(range(500)))) > 1600
    assert len(made) == 2


def noting(calls, function):
    """`function`, which also notes each of its calls."""

    def noted(*arguments):
        calls.append(arguments)
        return function(*arguments)

    return noted


def test_few_passes_are_kept():
    """Drawing on and on takes no more memory: the first of three passes is made again."""
    bucket = WeightedBucket([0, 1], [1, 2])
    first = bucket.passed(5, 0, 0)
    assert bucket.passed(5, 0, 0) is first
    bucket.passed(5, 1, 0), bucket.passed(5, 2, 0)
    again = bucket.passed(5, 0, 0)
    assert again is not first
    assert all(torch.equal(a, b) for a, b in zip(again, first, strict=True))


@pytest.mark.parametrize(("sizes", "count"), [((19, 1), 8), ((20,), 4), ((7, 5, 1), 1)])
def test_turns_count_how_often_a_picture_was_drawn(sizes, count):
    turns = {}
    for micro in range(200):
        for index, turn in batch_draws(buckets_of(*sizes), count, 5, micro):
            assert turn == turns.get(index, -1) + 1
            turns[index] = turn


def test_captions_come_by_turns():
    """Of 3 captions each comes once in every 3 turns, in an order that differs by picture and seed."""
    for index in range(4):
        numbers = [caption_number(3, turn, 7, index) for turn in range(30)]
        assert all(sorted(numbers[i : i + 3]) == [0, 1, 2] for i in range(0, 30, 3))
    orders = {(s, i): tuple(caption_number(3, t, s, i) for t in range(30)) for s in (7, 8) for i in range(4)}
    assert len(set(orders.values())) == len(orders)


def test_a_batch_takes_the_caption_whose_turn_it_is():
    images = [TrainingImage(f"{i}.png", torch.zeros(64, 64, 3), "a", more_captions=("b", "c")) for i in range(2)]
    data = LatentSet([torch.zeros(1, 4, 8, 8)] * 2, [None] * 2, [1.0, 2.0])
    config = TrainConfig(steps=30, learning_rate=1e-3, seed=1, batch_size=3)
    said = Counter()
    for micro in range(30):
        batch = data.batch(config, micro, torch.device("cpu"), UniformTimesteps())
        said.update(zip(batch.indices, prompts_of(batch, images), strict=True))
    assert {key: said[key] for key in said} == {(0, c): 10 for c in "abc"} | {(1, c): 20 for c in "abc"}
    held_out = validation_batches(data, [1], torch.device("cpu"))[0]
    assert set(prompts_of(held_out, images)) == {"a"}


def test_pictures_of_one_name_in_two_folders_are_two():
    cat = TrainingImage("1.png", torch.zeros(64, 64, 3), "a cat", source="cats")
    dog = TrainingImage("1.png", torch.zeros(64, 64, 3), "a dog", source="dogs")
    small = TrainingImage("1.png (mirrored)", torch.zeros(32, 32, 3), "a cat", source="cats")
    assert by_picture([cat, dog, small]) == [[0, 2], [1]]
    deep = TrainingImage("cats/1.png", torch.zeros(64, 64, 3), "a cat", source="pets")  # read with its subfolders
    same = TrainingImage("1.png", torch.zeros(64, 64, 3), "a cat", source="pets/cats")  # the subfolder read by itself
    assert by_picture([deep, same, cat]) == [[0, 1], [2]]
    assert [item.path for item in (cat, dog, small)] == ["cats/1.png", "dogs/1.png", "cats/1.png"]


def test_equal_pixels_are_never_on_both_sides_of_a_split():
    """What is held out may not be trained on under another name: ComfyUI's loader of kohya's folders repeats pictures
    in its list, and people copy files. By hand: 12 pictures, each there 3 times under different names, are 12 groups
    of 3, whatever their captions; 4 held out leave 8 x 3 items to train on.
    """
    seen = [torch.full((64, 64, 3), shade, dtype=torch.uint8) for shade in range(12) for _ in range(3)]
    items = [TrainingImage(f"image {n}", pixels, f"caption {n}") for n, pixels in enumerate(seen)]
    equal = first_equal(items)
    assert equal == [n // 3 * 3 for n in range(36)]
    assert apart(items, equal) == [[n, n + 1, n + 2] for n in range(0, 36, 3)]
    for seed in range(5):
        trained_on, held_out = split(apart(items, equal), 4, seed)
        assert len(held_out) == 4
        assert len(trained_on) == 24
        assert not {equal[i] for i in held_out} & {equal[i] for i in trained_on}


def test_groups_that_share_pixels_are_one():
    """A picture that is the mirrored copy of another joins both; without equal pixels the groups are `by_picture`."""
    slope = torch.arange(64, dtype=torch.uint8).expand(64, 64)[..., None].expand(64, 64, 3)
    first = TrainingImage("a.png", slope, "a")
    second = TrainingImage("b.png", slope.flip(1), "b")
    third = TrainingImage("c.png", slope // 2, "c")
    items = [third, first, mirrored(first), second, mirrored(second)]
    assert apart(items, first_equal(items)) == [[0], [1, 2, 3, 4]]
    assert apart(items[:3], first_equal(items[:3])) == by_picture(items[:3]) == [[0], [1, 2]]
