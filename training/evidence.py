"""What the figures of a run say: which step to use and why, and what to change in the next run.

Each rule is a function of the record alone, and each advice names the figure that it follows from.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from .optimizers import OPTIMIZERS, rate_factor
from .picture_findings import CAPTION, find
from .record import TOLERATED_RISE, Run, RunState
from .stopping import ALL_STEPS, STOPS, is_over

# The nodes that measure the learning rate, and their names.
FIND_RATE = {"BespokeFindLearningRate": "Find Learning Rate", "BespokeFindWordLearningRate": "Find Word Learning Rate"}
MOST_ADVICE = 3
FALLING = 0.02  # of the held-out loss over the last fifth of the steps: from here on it counts as falling still
FLAT = 0.01  # of the lowest held-out loss: steps that gain less count as spare
ROSE_FIRST = 1.1  # times the start: a curve that was above it before it fell had too large steps
EARLY = 0.25  # of the steps: a curve that turns before speaks for a lower learning rate rather than for fewer steps
MOST_SPARE = 0.6  # of the steps: a curve that is flat from here on, or sooner, has spare steps
HIGH_LEAK = 0.5  # above it the leak asks for a change
LEAST_GAIN = 1e-4  # of the start's held-out loss; with less, a result cannot be told from the start
LEAST_POINTS = 4  # of the held-out curve after the start, before its shape is read
MOST_NAMED = 3  # pictures
UNFINISHED = (RunState.INTERRUPTED, RunState.FAILED, RunState.RUNNING)


@dataclass(frozen=True)
class Verdict:
    """Which step to use. title: a few words. reason: the figures that say so, one or two sentences."""

    title: str
    reason: str


@dataclass(frozen=True)
class Advice:
    """change: what to do, a few words. figure: what it follows from, without a full stop."""

    change: str
    figure: str

    def __str__(self) -> str:
        return f"{self.change}: {self.figure}."

    @property
    def why(self) -> str:
        """The figure as a sentence."""
        return f"{_capital(self.figure)}."


def verdict(run: Run) -> Verdict:
    """Which step the run's figures speak for."""
    done, requested = len(run.losses), _steps(run)
    kept = run.kept_step
    if not done:
        return Verdict("Nothing was trained", "No step of the run is in its record.")
    if run.state in UNFINISHED:
        return _so_far(run, done, requested)
    if run.no_step_improved:
        return _no_better_step(run, done)
    if run.best is None:
        return Verdict(
            f"Step {kept} of {max(done, requested)}, the last",
            ("No pictures were held out" if run.info.images else "There are no pictures to hold out")
            + ", so no figure says which step is best. Compare samples of several steps.",
        )
    step, loss = run.best
    if kept != step and run.best_after_start is not None and not run.folds:
        at_end = _last_loss(run)
        return Verdict(
            f"Step {kept} is kept; step {step} scored best",
            f"The loss on held-out pictures was {loss:.4f} at step {step} and {at_end:.4f} at the end.",
        )
    if run.folds:
        return Verdict(
            f"Use step {kept} of {max(done, requested)}, which is kept",
            f"{run.folds} {'training' if run.folds == 1 else 'trainings'} that left pictures out said so: "
            f"{_fall(run)}. Then all {run.info.images} pictures were trained on up to that step.",
        )
    return Verdict(
        f"Use step {kept} of {max(done, requested)}, which is kept",
        f"{_capital(_fall(run))}. {_afterwards(run, step)} The trainer hands this step on, and it is what is saved.",
    )


def _so_far(run: Run, done: int, requested: int) -> Verdict:
    words = {RunState.FAILED: "failed", RunState.RUNNING: "is not at its end"}.get(run.state, "was interrupted")
    figure = f" So far {_fall(run)}." if run.best_after_start is not None and not run.no_step_improved else ""
    reason = "The run's panel says why." if run.state is RunState.FAILED else "No step is chosen before the end."
    return Verdict(f"Step {done} of {max(done, requested)}: the run {words}", reason + figure)


def _no_better_step(run: Run, done: int) -> Verdict:
    assert run.best is not None
    assert run.best_after_start is not None
    step, loss = run.best_after_start
    return Verdict(
        "No step is better than the base",
        f"The loss on held-out pictures was {run.best[1]:.4f} before the training and {loss:.4f} at best after it "
        f"(step {step}). The last step, {done}, is kept; compare pictures with and without it.",
    )


def _fall(run: Run) -> str:
    """ "the loss on held-out pictures was lowest at step 120: 0.1234, 31 % below the start (0.1788)"."""
    assert run.best is not None
    step, loss = run.best
    first, start = run.held_out[0]
    held_out = sum(row.held_out for row in run.pictures)
    which = f"{held_out} held-out pictures" if held_out > 1 else "held-out pictures"
    below = f", {_percent(1 - loss / start)} below the start ({start:.4f})" if first == 0 and start > 0 else ""
    return f"the loss on {which} was lowest at step {step}: {loss:.4f}{below}"


def _afterwards(run: Run, step: int) -> str:
    last, loss = run.held_out[-1]
    best, ended = run.best, _ended(run)
    assert best is not None
    if last <= step or not math.isfinite(loss):
        return f"That was the last measurement{ended}."
    return f"At step {last} it was {loss:.4f}, {_percent(loss / best[1] - 1)} above that{ended}."


def _ended(run: Run) -> str:
    """ ", and the run ended (when validation turns)" where the setting `stop` ended it, else ""."""
    stop = run.info.settings.get("stop", ALL_STEPS)
    if run.state is not RunState.KEPT or stop not in STOPS or not is_over(stop, run.comparisons):
        return ""
    return f", and the run ended, as stop is '{stop}'"


def advice(run: Run) -> list[Advice]:
    """What to change in the next run: at most `MOST_ADVICE`, the most urgent first; empty where no rule applies."""
    found = (rule(run) for rule in RULES)
    return [each for each in found if each is not None][:MOST_ADVICE]


# --- the rules ------------------------------------------------------------------------------------------------------


def interrupted(run: Run) -> Advice | None:
    """A run that was interrupted goes on where the same is queued again."""
    if run.state is not RunState.INTERRUPTED or not run.losses:
        return None
    return Advice(
        "Queue the same again, it goes on from there", f"the run ended at step {len(run.losses)} of {_steps(run)}"
    )


def not_a_number(run: Run) -> Advice | None:
    """Held-out losses that are no numbers."""
    bad = [step for step, loss in run.held_out if not math.isfinite(loss)]
    if not bad:
        return None
    return Advice(
        _rate(run, "lower"),
        f"the held-out loss was not a number at {len(bad)} of {len(run.held_out)} measurements, first at step {bad[0]}",
    )


def no_improvement(run: Run) -> Advice | None:
    """No step scored better than the start."""
    if not run.no_step_improved:
        return None
    assert run.best is not None
    before, last = run.best[1], run.held_out[-1][1]
    if last <= TOLERATED_RISE * before:
        return Advice(
            f"{_rate(run, 'higher')}, or give more steps",
            f"the held-out loss hardly moved, from {before:.4f} to {last:.4f}",
        )
    return Advice(_rate(run, "lower"), f"the held-out loss rose from {before:.4f} to {last:.4f}")


def little_learned(run: Run) -> Advice | None:
    """The best step can hardly be told from the start."""
    start = _start(run)
    if start is None or run.best is None or run.best[0] == 0 or start - run.best[1] >= LEAST_GAIN * start:
        return None
    return Advice(
        f"{_rate(run, 'higher')}, or give more steps",
        f"the held-out loss fell by less than {LEAST_GAIN:.2%}, from {start:.5f} to {run.best[1]:.5f}",
    )


def rose_first(run: Run) -> Advice | None:
    """The curve rose far above the start before it fell below it: the steps were too large."""
    start = _start(run)
    if start is None or run.best is None or run.best[0] == 0:
        return None
    step, highest = max(((at, loss) for at, loss in _finite(run) if at < run.best[0]), key=lambda point: point[1])
    if highest <= ROSE_FIRST * start:
        return None
    above = f"{_percent(highest / start - 1)} above the start at step {step}"
    return Advice(_rate(run, "lower"), f"the held-out loss was {above}, before it fell below it")


def keeps_last(run: Run) -> Advice | None:
    """`keep` hands on the last step, and an earlier one scored better."""
    best = run.best_after_start
    if run.info.settings.get("keep", "best") == "best" or best is None or run.folds or run.no_step_improved:
        return None
    last = _last_loss(run)
    if not last > TOLERATED_RISE * best[1]:
        return None
    return Advice("Set keep to best", f"step {best[0]} scored {_percent(1 - best[1] / last)} better than the last")


def turned(run: Run) -> Advice | None:
    """The curve turned before the end, by more than its noise where that was measured."""
    last = _last_step(run)
    if run.best is None or run.best[0] == 0 or not _shape_is_known(run) or run.rise_is_noise:
        return None
    (since, lowest), at_end = run.best, _last_loss(run)
    if at_end <= TOLERATED_RISE * lowest or since == last:
        return None
    figure = f"the held-out loss turned at step {since} of {last} and ended {_percent(at_end / lowest - 1)} higher"
    if since <= EARLY * last:
        return Advice(f"{_rate(run, 'lower')}, so that it learns for longer", figure)
    return Advice(f"Fewer steps are enough, about {_round(1.2 * since)}", figure)


def still_falling(run: Run) -> Advice | None:
    """The curve fell up to its end."""
    last = _last_step(run)
    if not _shape_is_known(run) or run.best is None or run.best[0] != last or run.state is RunState.INTERRUPTED:
        return None
    if rose_first(run) is not None:
        return None
    since, before = max(((at, loss) for at, loss in _finite(run) if at <= 0.8 * last), default=(0, math.nan))
    fall = 1 - run.best[1] / before if before > 0 else math.nan
    if not fall >= FALLING:
        return None
    figure = f"the held-out loss still fell by {_percent(fall)} over the last fifth, from step {since} to {last}"
    if run.state is RunState.KEPT and len(run.losses) < _steps(run):
        # Queued with fewer steps than were asked for it gives the same result again.
        return Advice(f"Train longer: with more than {_steps(run)} steps it goes on after {len(run.losses)}", figure)
    return Advice(f"Train longer, about {_round(1.5 * last)} steps", figure)


def spare_steps(run: Run) -> Advice | None:
    """The curve was flat over its last part."""
    last, start = _last_step(run), _start(run)
    if not _shape_is_known(run) or run.best is None or run.best[0] == 0:
        return None
    close = [(at, loss <= (1 + FLAT) * run.best[1]) for at, loss in _finite(run) if at > 0]
    enough = next((at for i, (at, _) in enumerate(close) if all(is_close for _, is_close in close[i:])), last)
    gained = start is None or run.best[1] < (1 - FALLING) * start
    if enough > MOST_SPARE * last or not gained:
        return None
    return Advice(
        f"Fewer steps do as well, about {_round(enough)}",
        f"from step {enough} of {last} on the held-out loss changed by less than {FLAT:.0%}",
    )


def high_leak(run: Run) -> Advice | None:
    """Prompts without the trigger moved far."""
    point = run.leak_of_result
    if point is None or not point.leak > HIGH_LEAK:
        return None
    moved = f"{point.leak:.2f} times as far from the base as the captions did"
    figure = f"the leak is {point.leak:.2f}: prompts without the trigger moved {moved}"
    if str(run.info.settings.get("preserve", "")).strip():
        weight = _number(run, "preserve_weight", 1.0)
        return Advice(f"Raise preserve_weight (it was {weight:g}), or add prompts to preserve", figure)
    return Advice("Write prompts of the class into preserve, one a line", figure)


def none_held_out(run: Run) -> Advice | None:
    """Nothing was held out."""
    if run.held_out or not run.info.images:
        return None
    count = 1 if run.info.images < 10 else max(2, round(run.info.images / 10))
    return Advice(
        f"Set validation to {count}",
        f"0 of {int(run.info.images)} pictures were held out, so nothing says when to stop",
    )


def odd_pictures(run: Run) -> Advice | None:
    """Captions that may not fit their pictures, else pictures that are harder than the rest or learned by heart."""
    found = find(run.pictures)
    kinds = [each.kind for each in found]
    if not kinds:
        return None
    kind = CAPTION if CAPTION in kinds else kinds[0]
    own = [each.row.name for each in found if each.kind is kind]
    more = f" and {len(own) - MOST_NAMED} more" if len(own) > MOST_NAMED else ""
    look = "Look at the captions of" if kind is CAPTION else "Look at"
    return Advice(
        f"{look} {', '.join(own[:MOST_NAMED])}{more}", f"{len(own)} of {len(run.pictures)} pictures: {kind.label}"
    )


def no_samples(run: Run) -> Advice | None:
    """No sample was drawn."""
    if run.samples or not run.losses:
        return None
    every = max(1, _round(max(_steps(run), len(run.losses)) / 4))
    return Advice(f"Set sample_every to {every}", "0 samples were drawn, so base and result cannot be compared here")


RULES: Sequence[Callable[[Run], Advice | None]] = (
    interrupted,
    not_a_number,
    no_improvement,
    little_learned,
    rose_first,
    keeps_last,
    turned,
    still_falling,
    spare_steps,
    high_leak,
    none_held_out,
    odd_pictures,
    no_samples,
)


# --- figures --------------------------------------------------------------------------------------------------------


def _finite(run: Run) -> list[tuple[int, float]]:
    return [(step, loss) for step, loss in run.held_out if math.isfinite(loss)]


def _start(run: Run) -> float | None:
    """The held-out loss before anything was learned; None where it is not known."""
    points = _finite(run)
    return points[0][1] if points and points[0][0] == 0 and points[0][1] > 0 else None


def _last_step(run: Run) -> int:
    points = _finite(run)
    return points[-1][0] if points else 0


def _last_loss(run: Run) -> float:
    points = _finite(run)
    return points[-1][1] if points else math.nan


def _shape_is_known(run: Run) -> bool:
    return sum(step > 0 for step, _ in _finite(run)) >= LEAST_POINTS and all(loss > 0 for _, loss in _finite(run))


def _steps(run: Run) -> int:
    """The steps that were requested; those that were done where the record does not say."""
    return int(_number(run, "steps", len(run.losses)))


def _number(run: Run, name: str, default: float) -> float:
    value: Any = run.info.settings.get(name, default)
    return value if isinstance(value, (int, float)) and math.isfinite(value) else default


def _rate(run: Run, way: str) -> str:
    """What to do with the learning rate. way: "lower" or "higher"."""
    given = _number(run, "learning_rate", math.nan)
    name = str(run.info.settings.get("optimizer", "AdamW"))
    if name in OPTIMIZERS and OPTIMIZERS[name].finds_rate and math.isfinite(given):
        if way == "higher":
            return f"Try AdamW with a learning_rate of your own instead of {name}"
        return f"Set learning_rate to {rate_factor(given) / 2:g}, a factor of what {name} finds"
    if run.info.rate_source in FIND_RATE and math.isfinite(given):
        return f"Type a {way} learning_rate than the {rate_text(given)} of {FIND_RATE[run.info.rate_source]}"
    now = f" (it was {rate_text(given)})" if math.isfinite(given) else ""
    return f"{'Lower' if way == 'lower' else 'Raise'} learning_rate{now}"


def rate_text(rate: float) -> str:
    """ "1e-4", "3.2e-5", "0.01": a learning rate with at most three figures."""
    if not 0 < rate < 0.01:
        return f"{rate:.3g}"
    figures, _, power = f"{rate:.2e}".partition("e")
    return f"{float(figures):g}e{int(power)}"


def _percent(share: float) -> str:
    """ "31 %", with one decimal below 10 %."""
    return f"{100 * share:.0f} %" if abs(share) >= 0.0995 else f"{100 * share:.1f} %"


def _round(number: float) -> int:
    """A number of steps with two figures: 146 becomes 150."""
    if number < 10:
        return max(1, round(number))
    unit = 10 ** (math.floor(math.log10(number)) - 1)
    return round(number / unit) * unit


def _capital(text: str) -> str:
    return text[0].upper() + text[1:]
