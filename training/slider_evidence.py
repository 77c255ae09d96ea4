"""What a slider does, from scores of pictures that were drawn at several strengths with the same seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

Scores = Mapping[float, Sequence[float]]  # strength -> the score of each seed's picture

LEAST_RISE = 0.02  # of the span of the mean scores: a step below it moves nothing, and a fall below it is none
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
    """The share of seeds whose score does not fall in any step from strength `low` to `high`; see `LEAST_RISE`."""
    strengths = [strength for strength in sorted(scores) if low <= strength <= high]
    allowed = LEAST_RISE * _span(scores)
    rows = list(zip(*(scores[strength] for strength in strengths), strict=True))
    rising = [all(later >= before - allowed for before, later in pairwise(row)) for row in rows]
    return sum(rising) / len(rising)


def useful_range(scores: Scores, errors: Scores) -> tuple[float, float] | None:
    """(lowest, highest): the strengths around 0 up to which each step still moves the pictures; None where none does.

    A step away from 0 is useful where the mean score moves outwards by `LEAST_RISE` of the span, that of `LEAST_SHARE`
    of the seeds does not move back, and the mean error is at most `WORST_FIT` times that at 0. errors: of each picture
    at the prompt that explains it better.
    """
    low, high = _end(scores, errors, -1.0), _end(scores, errors, 1.0)
    return (low, high) if low < high else None


def _end(scores: Scores, errors: Scores, sign: float) -> float:
    strengths = sorted((strength for strength in scores if strength * sign >= 0), key=abs)
    least, end = LEAST_RISE * _span(scores), 0.0
    for before, strength in pairwise(strengths):
        moves = [sign * (b - a) for a, b in zip(scores[before], scores[strength], strict=True)]
        steady = sum(move >= -least for move in moves) / len(moves)
        if _mean(moves) < least or steady < LEAST_SHARE or _mean(errors[strength]) > WORST_FIT * _mean(errors[0.0]):
            break
        end = strength
    return end


def _span(scores: Scores) -> float:
    means = [_mean(each) for each in scores.values()]
    return max(means) - min(means)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
