"""What stands out among the losses of pictures: the arithmetic is done here by hand."""

from __future__ import annotations

import math

import pytest
from bespoke.training.picture_findings import BY_HEART, CAPTION, HARD, centre, find, in_order
from bespoke.training.picture_scores import PictureLosses


def rows(start, end=None, uncaptioned=None, held_out=()):
    """A row for each number of `start`, a log loss; `end` and `uncaptioned` likewise. held_out: (start, end) pairs."""
    out = [
        PictureLosses(
            "",
            f"{i}",
            False,
            [(0, math.exp(value)), *([] if end is None else [(40, math.exp(end[i]))])],
            None if uncaptioned is None else uncaptioned[i] - value,
        )
        for i, value in enumerate(start)
    ]
    return out + [
        PictureLosses("", f"held out {i}", True, [(0, math.exp(a)), (40, math.exp(b))])
        for i, (a, b) in enumerate(held_out)
    ]


def named(found):
    return [(each.row.name, each.kind) for each in found]


def test_the_centre_is_not_moved_by_bad_pictures():
    """Below the median 3 lie 1 and 2, at distances of 2 and 1, whose median is 1.5."""
    assert centre([1.0, 2.0, 3.0, 4.0, 1000.0]) == (3.0, pytest.approx(1.5 * 1.4826))
    assert centre([5.0, 5.0, 6.0]) == (5.0, 0.0)


@pytest.mark.parametrize(("value", "is_named"), [(0.85, True), (0.83, False)])
def test_a_hard_picture_is_two_and_a_half_robust_deviations_above_the_median(value, is_named):
    """The median of -.1 four times, .1 four times and the value is .1, and those below lie .2 from it.

    The limit is .1 + 2.5 * 1.4826 * .2 = .8413.
    """
    found = find(rows([-0.1, 0.1] * 4 + [value]))
    assert named(found) == ([("8", HARD)] if is_named else [])
    if found:
        assert found[0].strength == pytest.approx((value - 0.1) / (1.4826 * 0.2))


def test_a_picture_that_is_hardly_harder_is_not_named_where_all_are_alike():
    """The spread is 0, so only the ratio decides: 1.7 is below the limit of 1.8, 1.9 above."""
    assert find(rows([0.0] * 9 + [math.log(1.7)])) == []
    assert named(find(rows([0.0] * 9 + [math.log(1.9)]))) == [("9", HARD)]


def test_a_caption_with_which_the_picture_is_harder_does_not_fit():
    """Without its caption the loss of picture 3 is 0.8 of that with it; of the others it is 1.1."""
    uncaptioned = [math.log(1.1)] * 9
    uncaptioned[3] = math.log(0.8)
    assert named(find(rows([0.0] * 9, uncaptioned=uncaptioned))) == [("3", CAPTION)]
    uncaptioned[3] = math.log(1.01)  # it helps less than that of the others, but it helps
    assert find(rows([0.0] * 9, uncaptioned=uncaptioned)) == []
    # Captions of words that the model does not know change nothing, or make all pictures harder.
    assert find(rows([0.0] * 9, uncaptioned=[math.log(0.8)] * 9)) == []


def test_pictures_are_learned_by_heart_beside_the_held_out_ones():
    """Held out: to 0.9 of the start. Trained: to 0.9 but one to 0.5, which is 0.56 of 0.9 and below two thirds."""
    end = [math.log(0.9)] * 9
    end[4] = math.log(0.5)
    held_out = [(0.0, math.log(0.9))] * 2
    assert named(find(rows([0.0] * 9, end, held_out=held_out))) == [("4", BY_HEART)]
    all_low = [math.log(0.5)] * 9
    assert len(find(rows([0.0] * 9, all_low, held_out=held_out))) == 9
    assert find(rows([0.0] * 9, all_low)) == []  # beside each other none has fallen further
    assert named(find(rows([0.0] * 9, end))) == [("4", BY_HEART)]


def test_too_few_pictures_and_losses_that_are_no_numbers_are_not_judged():
    assert find([]) == []
    assert find(rows([0.0] * 6 + [3.0])) == []
    assert find(rows([math.nan] * 9)) == []
    assert find([PictureLosses("", f"{i}", False, []) for i in range(9)]) == []
    assert named(find(rows([*([0.0] * 8), math.nan, 3.0]))) == [("9", HARD)]


def test_what_was_found_comes_first_then_the_hardest():
    every = rows([-0.1, 0.1, -0.2, 0.2, 0.0, 0.3, -0.3, 0.0, 3.0])
    assert [row.name for row in in_order(every, find(every))] == ["8", "5", "3", "1", "4", "7", "0", "2", "6"]
    bad = PictureLosses("", "x", False, [(0, math.nan)])
    assert in_order([every[0], bad], [])[0] is bad
