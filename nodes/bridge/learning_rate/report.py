"""A search for a learning rate in words."""

from __future__ import annotations

from collections.abc import Sequence

from ....training.config import RANGES
from ....training.measure import format_duration
from ....training.rate_search import HORIZON, SHARE
from .book import Probe
from .search import Found

FLAT = 0.02  # of the loss: rates that differ by less are as good as each other
LEAST_FALL = 1e-3  # of the untrained model's loss; with less, a rate has not begun to learn


def report(found: Found, differing: Sequence[str] = ()) -> str:
    """What was tried and found, how sure that is, and what to do next. differing: names of settings that a trainer at
    the output has otherwise."""
    chosen, best = found.probes[found.rate], found.probes[found.best]
    swinging = [probe for _, probe in sorted(found.probes.items()) if probe.loss < best.loss]
    lines = [
        f"Learning rate {found.rate:g} for {chosen.of} steps. Wire the output into learning_rate of the trainer.",
        _choice(found, best, bool(swinging)),
        _how(found, chosen),
        _judged(found, chosen),
        "rate | loss | against the start",
        *(_row(found, probe) for _, probe in sorted(found.probes.items())),
        *(_swings(probe) for probe in swinging if probe is not chosen),
        *_sureness(found, best),
        *_edge(found, best),
        _next(found, chosen),
    ]
    if differing:
        lines.append(
            f"THE TRAINER HAS OTHER SETTINGS: {', '.join(differing)}. The rate is for those of this node; set them "
            "alike and queue again."
        )
    return "\n".join(lines)


def _choice(found: Found, best: Probe, is_swinging: bool) -> str:
    lowest = "the lowest loss with steady steps" if is_swinging else "the lowest loss"
    told = (
        f"Of {len(found.probes)} rates that were tried, of {len(found.rates)} from {found.rates[0]:g} to "
        f"{found.rates[-1]:g}, {found.best:g} has {lowest} after {best.steps} steps. The best rate for {best.of} steps "
        f"is lower, about {(best.steps / best.of) ** HORIZON:.2f} of the lowest point of that curve: "
    )
    return told + (
        f"{found.rate:g} is nearest to it." if found.rate != found.best else f"{found.rate:g} is still the nearest."
    )


def _how(found: Found, chosen: Probe) -> str:
    known = len(found.probes) - found.learned
    took = f"{found.learned} took {format_duration(found.seconds)}" if found.learned else "none was run now"
    return (
        f"Each is the first {chosen.steps} of {chosen.of} steps of this training, with the same pictures, noise levels "
        f"and noises; {took}"
        + (f", {known} known from before" if known else "")
        + f". All together are at most {SHARE:.0%} of the training."
    )


def _judged(found: Found, chosen: Probe) -> str:
    count = len(chosen.pictures)
    pictures = f"{count} picture" + ("" if count == 1 else "s")
    which = (
        f"{pictures} held out of the training"
        if found.held_out
        else f"{pictures} of the training set, since none is held out"
    )
    return (
        f"Judged by the loss on {which}, at fixed noise levels with fixed noises. Before anything is learned it is "
        f"{found.base:.5f}."
    )


def _row(found: Found, probe: Probe) -> str:
    if probe.problem:
        return f"{probe.rate:g} | - | {probe.problem}"
    mark = " (chosen)" if probe.rate == found.rate else " (best so far)" if probe.rate == found.best else ""
    return f"{probe.rate:g} | {probe.loss:.5f} | {probe.loss / found.base - 1:+.1%}{mark}"


def _swings(probe: Probe) -> str:
    return (
        f"{probe.rate:g} has a lower loss and does not count as the best, since its last steps had higher losses than "
        "those of the best on the same draws: its loss swings and is low at times only."
    )


def _sureness(found: Found, best: Probe) -> list[str]:
    """Of the tried rates on either side of the best one: on how many pictures they are worse, and by how much."""
    lines = list[str]()
    tried = [found.probes[rate] for rate in sorted(found.probes)]
    place = tried.index(best)
    for side, other in (("lower", tried[place - 1] if place else None), ("higher", _at(tried, place + 1))):
        if other is None or other.loss < best.loss:
            continue  # of the latter `_swings` says why
        if other.problem:
            lines.append(f"The next {side} rate, {other.rate:g}, could not be trained at.")
            continue
        better = sum(own < theirs for own, theirs in zip(best.pictures, other.pictures, strict=True))
        rise = other.loss / best.loss - 1
        lines.append(
            f"The next {side} rate that was tried, {other.rate:g}, is {rise:.1%} worse than {best.rate:g}, on {better} "
            f"of {len(best.pictures)} pictures" + ("; that is nearly the same." if rise < FLAT else ".")
        )
    return lines


def _at(probes: Sequence[Probe], place: int) -> Probe | None:
    return probes[place] if place < len(probes) else None


def _edge(found: Found, best: Probe) -> list[str]:
    if best.loss > (1 - LEAST_FALL) * found.base:
        return [
            f"HARDLY ANYTHING WAS LEARNED at any rate in {best.steps} steps: the lowest loss is "
            f"{best.loss / found.base - 1:+.2%} of the start's. Give more steps or higher rates, and check captions "
            "and targets."
        ]
    lowest, highest = found.rates[0], found.rates[-1]
    if found.best == highest:
        factor = min(10.0, RANGES["learning_rate"][1] / highest)
        if factor <= 1:
            return ["It is the highest rate that a trainer takes. Give more steps."]
        return [f"It is the highest of the range: a higher one may be better. {_moved(lowest, highest, factor)}"]
    if found.rate == lowest:
        return [f"It is the lowest of the range: a lower one may be better. {_moved(lowest, highest, 0.1)}"]
    return []


def _moved(lowest: float, highest: float, factor: float) -> str:
    """Both ends are moved, so that the range is as fine as before and shares rates with it."""
    return f"Set lowest to {factor * lowest:.3g} and highest to {factor * highest:.3g}."


def _next(found: Found, chosen: Probe) -> str:
    if found.begun == chosen.steps and found.is_alike:
        return (
            f"The training at this rate with the same settings goes on after step {chosen.steps}, which are done, and "
            "ends in the same bits as one that begins anew."
        )
    if 0 < found.begun <= chosen.of:
        return (
            f"A training at this rate with the same settings is there from before, with {found.begun} steps done. The "
            "trainer goes on after them."
        )
    why = found.why_not or (
        f"the one from before has {found.begun} steps, which are more than {chosen.of}"
        if found.begun
        else "its short training is not kept"
    )
    return f"The training at this rate begins anew: {why}."
