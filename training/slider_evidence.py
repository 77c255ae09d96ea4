"""What a slider does, from scores of pictures that were drawn at several strengths with the same seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate, pairwise

Scores = Mapping[float, Sequence[float]]  # strength -> the score of each seed's picture

# Of the span of the mean scores: a fall below it is none. A classifier tells which prompt explains a picture better and
# not by how much, so the score saturates once a picture shows an end, and falls a little where the picture moves on.
SATURATION = 0.25
LEAST_SPAN = 0.05  # of the mean scores, which are -1 to 1: with less nothing moves
LEAST_SHARE = 0.75  # of the seeds that must not fall in a useful step
WORST_FIT = 1.5  # times the error at strength 0: pictures above it are no longer ones that the base would draw


def score(error_less: float, error_more: float) -> float:
    """How much better a picture is explained by the one prompt than by the other, -1 (`less`) to 1 (`more`).

    error_less, error_more: the base's mean squared errors on the noised picture at both prompts. A diffusion model's
    errors tell what a picture shows (Li et al. 2023, "Your Diffusion Model is Secretly a Zero-Shot Classifier", arXiv
    2303.16203, eq. 6).
    """
    total = error_less + error_more
    return (error_less - error_more) / total if total else 0.0


def monotone_share(scores: Scores, low: float, high: float) -> float:
    """The share of seeds that go from `low` to `high`: the score ends higher, and at no strength on the way lies below
    an earlier one by more than `SATURATION`."""
    strengths = [strength for strength in sorted(scores) if low <= strength <= high]
    allowed = SATURATION * _span(scores)
    rows = list(zip(*(scores[strength] for strength in strengths), strict=True))
    rising = [
        row[-1] > row[0]
        and all(later >= best - allowed for best, later in zip(accumulate(row, max), row[1:], strict=False))
        for row in rows
    ]
    return sum(rising) / len(rising)


def useful_range(scores: Scores, errors: Scores) -> tuple[float, float] | None:
    """(lowest, highest): the strengths around 0 whose pictures show what they are to show; None where none does.

    A strength is useful where neither the mean score nor that of more than a quarter of the seeds has moved back by
    `SATURATION` of the span, and where the mean error is at most `WORST_FIT` times that at 0. errors: of each picture
    at the prompt that explains it better.
    """
    if _span(scores) < LEAST_SPAN:
        return None
    low, high = _end(scores, errors, -1.0), _end(scores, errors, 1.0)
    return (low, high) if low < high else None


def _end(scores: Scores, errors: Scores, sign: float) -> float:
    strengths = sorted((strength for strength in scores if strength * sign >= 0), key=abs)
    allowed, best, end = SATURATION * _span(scores), sign * _mean(scores[0.0]), 0.0
    for before, strength in pairwise(strengths):
        moves = [sign * (b - a) for a, b in zip(scores[before], scores[strength], strict=True)]
        steady = sum(move >= -allowed for move in moves) / len(moves)
        here = sign * _mean(scores[strength])
        if here < best - allowed or steady < LEAST_SHARE or _mean(errors[strength]) > WORST_FIT * _mean(errors[0.0]):
            break
        best, end = max(best, here), strength
    return end


def _span(scores: Scores) -> float:
    means = [_mean(each) for each in scores.values()]
    return max(means) - min(means)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
