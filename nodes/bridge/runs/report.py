"""What a training's report says about its run."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence

from ....training.config import TrainConfig
from ....training.evidence import HIGH_LEAK, LEAST_GAIN
from ....training.images import by_picture
from ....training.leak import plan_leak
from ....training.optimizers import OPTIMIZERS, rate_factor
from ....training.picture_findings import CAPTION, KINDS, LEAST_PICTURES, Finding, find
from ....training.rate_free import D0, LEAST_GROWTH
from ....training.record import TOLERATED_RISE, Run
from ....training.stopping import (
    ALL_STEPS,
    MARGIN,
    NOTHING_CHANGES,
    QUIET,
    TURNED,
    WAITED,
    Comparison,
    quiet_since,
    turned_at,
)
from ..dataset.pictures import Pictures
from ..models.second_picture import WORDS
from .cross_validation import training_indices_of

MOST_NAMED = 5  # pictures of a kind in a report
MOST_FOLDERS = 10  # that the report names
NO_CARD = "the evidence card could not be drawn"


def describe_draws(pictures: Pictures, run: Run, config: TrainConfig) -> str:
    """How often the steps of a run have drawn each picture, its copies together: "each of 20 pictures was seen 24
    times". Where the pictures of some folders are drawn more often than those of others, it says so for each folder.
    The counts are exact, of the order of this version.
    """
    indices = training_indices_of(pictures, run)
    draws = pictures.data.draw_counts(config, len(run.losses), indices)
    by_folder: dict[str, list[int]] = defaultdict(list)
    weights: dict[str, set[float]] = defaultdict(set)
    for own in by_picture(pictures.items[i] for i in indices):
        items = [pictures.items[indices[i]] for i in own]
        folder = items[0].picture[0]
        by_folder[folder].append(sum(draws[indices[i]] for i in own))
        weights[folder].add(round(sum(item.weight for item in items), 6))
    if len(set().union(*weights.values())) == 1 or len(by_folder) == 1:
        return _seen([count for counts in by_folder.values() for count in counts])
    shown = [_seen(counts, folder) for folder, counts in list(by_folder.items())[:MOST_FOLDERS]]
    rest = [count for counts in list(by_folder.values())[MOST_FOLDERS:] for count in counts]
    return ", ".join([*shown, *([_seen(rest, f"{len(by_folder) - MOST_FOLDERS} more folders")] if rest else [])])


def _seen(counts: Sequence[int], folder: str = "") -> str:
    least, most = min(counts), max(counts)
    times = ("once" if most == 1 else f"{most} times") if least == most else f"{least} to {most} times"
    if not folder:
        return f"each of {len(counts)} pictures was seen {times}"
    who = f"each of {len(counts)} pictures" if len(counts) > 1 else "the 1 picture"
    return f"{who} of {folder} was seen {times}"


def describe_notes(run: Run) -> list[str]:
    """What the user must know of how the run went: what could not be saved, a state that was set aside."""
    return [f"{note[0].upper()}{note[1:]}." for note in run.notes]


def describe_rate_at_start(config: TrainConfig) -> str:
    """Where the optimiser finds the learning rate: that it does, and what the one that is given means; else ""."""
    if not OPTIMIZERS[config.optimizer].finds_rate:
        return ""
    given, factor = config.learning_rate, rate_factor(config.learning_rate)
    use = (
        f"learning_rate ({given:g}) is not used" if factor != given else f"learning_rate ({given:g}) is a factor of it"
    )
    return f"; {config.optimizer} finds the learning rate, {use}"


def describe_rate(run: Run, config: TrainConfig, up_rate: float = 1.0) -> list[str]:
    """The learning rate in words, a sentence each: that of the settings, or what the optimiser found.

    up_rate: its multiple for the factor of an adapter that starts at zero.
    """
    kind, given = OPTIMIZERS[config.optimizer], config.learning_rate
    up = f", for the factor that started at zero {up_rate:g} times that" if up_rate != 1.0 else ""
    if not kind.finds_rate:
        lines = [f"The learning rate was {given:g} at most{up}."]
        if not kind.has_schedule and config.lr_schedule != "constant":
            lines.append(
                f"{config.optimizer} averages instead of lowering the rate: it stayed constant, and lr_schedule "
                f"({config.lr_schedule}) was not used."
            )
        return lines
    factor = rate_factor(given)
    lines = [f"{config.optimizer} found the learning rate: {run.found_rate:.3g} in the end{up}."]
    if factor != given:
        lines.append(
            f"learning_rate ({given:g}) is a rate for other optimisers and was not used; from 0.1 to 1 it is a factor "
            "of what is found."
        )
    elif factor != 1.0:
        lines.append(f"learning_rate ({given:g}) multiplied it.")
    if kind.one_rate:
        lines.append("Its package has one rate for all: no factor learned faster than another (LoRA+).")
    if run.losses and run.found_rate < LEAST_GROWTH * D0:
        lines.append(
            f"THE RATE WAS NOT FOUND: it is still near {D0:g}, at which it begins, so hardly anything was learned. "
            "Give more steps or a larger batch, no warm-up and learning_rate 1, or choose AdamW and a learning_rate."
        )
    return lines


def describe_pairs(pictures: Pictures) -> list[str]:
    """What the model was given of each picture's source, or of its hole; empty without any."""
    if not pictures.how:
        return []
    count = sum(bool(told) for told in pictures.told)
    return [
        f"{count} of {len(pictures.items)} pictures came with {WORDS[pictures.how]}, as ComfyUI's node encodes it. Use "
        "the LoRA with that node too."
    ]


def describe_shared(pictures: Pictures) -> list[str]:
    """A line on pictures of a validation set that are trained on too."""
    shared = pictures.held_out_and_trained_on()
    if not shared:
        return []
    more = f" and {len(shared) - MOST_NAMED} more" if len(shared) > MOST_NAMED else ""
    return [
        f"Held out and trained on: {', '.join(shared[:MOST_NAMED])}{more}. The held-out loss of these falls as that of "
        "every trained picture and says nothing about others; take them out of one of the two sets."
    ]


def describe_held_out(run: Run, config: TrainConfig) -> list[str]:
    """The held-out curve in words, a line each: its lowest point, where over-fitting began, which step was kept.

    Also, where it applies: that no step scored better than the start, and losses that are not finite. Empty without
    held-out pictures.
    """
    if not run.held_out:
        return []
    bad = [step for step, loss in run.held_out if not math.isfinite(loss)]
    lines = []
    if bad:
        lines.append(
            f"The held-out loss was not a number at {len(bad)} of {len(run.held_out)} validations, first at step "
            f"{bad[0]}: the model's numbers overflow there. {_advice('lower', config)}."
        )
    if run.best is None:
        return lines
    step, loss = run.best
    first = run.held_out[0]
    curve = (
        f"Held-out loss {first[1]:.4f} at step {first[0]}, lowest {loss:.4f} at step {step}, "
        f"{run.held_out[-1][1]:.4f} at the end."
    )
    if run.folds:
        pictures = "picture" if config.validation == 1 else "pictures"
        trainings = (
            f"1 training, without {config.validation} of the pictures,"
            if run.folds == 1
            else f"{run.folds} trainings, each without {config.validation} other {pictures},"
        )
        curve = f"{trainings} said when to stop; then all {run.info.images} were trained on. Of those left out: {curve}"
    lines.append(curve)
    lines += describe_stop(run, config)
    if run.no_step_improved:
        return [*lines, _no_better_step(run, config)]
    if step > 0 and first[1] - loss < LEAST_GAIN * first[1]:
        lines.append(
            f"That is less than {LEAST_GAIN:.2%} lower than at the start: hardly anything was learned. "
            f"{_advice('higher', config)} or more steps."
        )
    since = run.over_fitting_since()
    if since is not None and since > 0:
        above = f"{TOLERATED_RISE - 1:.0%}"
        lines.append(
            f"After step {since} it was more than {above} higher at each validation: that is over-fitting, so fewer "
            "steps would do."
        )
    # Step 0 is no result: where the training ended before the next validation, the last step is kept.
    lines.append(f"Kept: {'step ' + str(step) if config.keep == 'best' and step > 0 else 'the last step'}.")
    return lines


def describe_stop(run: Run, config: TrainConfig) -> list[str]:
    """Whether and why `config.stop` ended the run, with the margin over noise; empty where it asks for all steps.

    Also empty where folds decided: notes say how these ended.
    """
    rows = run.comparisons
    if config.stop == ALL_STEPS or not rows:
        return []
    done, turn, quiet = len(run.losses), turned_at(rows), quiet_since(rows)
    ended = f"Stopped after step {done} of {config.steps}" if done < config.steps else f"All {done} steps were trained"
    noise = f"({MARGIN:g} standard errors of the difference)"
    if turn is not None:
        turned, last = f"{ended}: the held-out loss turned at step {turn}.", rows[-TURNED:]
        if all(row.is_above for row in last):
            return [f"{turned} {_above(last)}, more than its noise {noise}."]
        return [f"{turned} None of the {WAITED} validations since was lower. {_above(last)} {noise}."]
    if config.stop == NOTHING_CHANGES and quiet is not None:
        since = f"in {QUIET} validations since step {quiet}"
        return [f"{ended}: {since} the held-out loss changed by no more than noise {noise}."]
    last = rows[-1]
    margin = f"{last.difference:+.4f} beside step {last.lowest} at the end, noise {last.margin:.4f} {noise}"
    return [f"{ended}: the held-out loss did not turn ({margin})."]


def _above(rows: Sequence[Comparison]) -> str:
    """ "It was higher by 0.0021 at step 140 (noise 0.0009) and by 0.0032 at step 160 (noise 0.0011)"."""
    parts = [f"by {row.difference:.4f} at step {row.step} (noise {row.margin:.4f})" for row in rows]
    return f"It was higher {' and '.join(parts)}"


def _no_better_step(run: Run, config: TrainConfig) -> str:
    """That no step was better than the start, what was kept, and what to change."""
    assert run.best is not None
    assert run.best_after_start is not None
    (_, before), (step, lowest), last = run.best, run.best_after_start, run.held_out[-1][1]
    if not last <= TOLERATED_RISE * before:  # also where it is no number
        advice = _advice("lower", config)
    else:
        advice = f"The loss hardly moved. {_advice('higher', config)} or more steps"
    return (
        f"NO STEP WAS BETTER than the start on the held-out pictures: {before:.4f} before the training, {lowest:.4f} "
        f"at best after it (step {step}). Kept: the last step, {len(run.losses)}, as the start has learned nothing. "
        f"It may be worse than no training: compare images with and without it. {advice}, captions that name what "
        "differs from picture to picture, or more pictures of the same thing."
    )


def describe_leak(run: Run, config: TrainConfig | None = None) -> list[str]:
    """How far prompts without the trigger moved, at the step that was kept or the nearest one that was measured.

    config: the run's settings, by which a sentence says why nothing was measured; None says nothing. Empty without
    held-out pictures.
    """
    if not run.held_out:
        return []
    point = run.leak_of_result
    if point is None:
        if config is None or plan_leak(config, 1) is not None:
            return []
        return ["The leak was not measured: that would make the run more than 5 % longer."]
    if not math.isfinite(point.leak):
        return [f"Leak at step {point.step}: not a number."]
    preserved = str(run.info.settings.get("preserve", "")).strip()
    others = "the prompts of preserve" if preserved else "prompts without the trigger"
    advice = ""
    if not preserved and point.leak > HIGH_LEAK:
        advice = ". Prompts of the class in preserve, one a line, hold the model to the base there"
    return [
        f"Leak {point.leak:.2f} at step {point.step}: the predictions at {others} moved {point.leak:.2f} times as far "
        f"from the base's as those at the captions (0: not at all){advice}."
    ]


def _advice(way: str, config: TrainConfig) -> str:
    """ "Try a lower learning_rate (it was 0.01)", as a beginning of a sentence. way: "lower" or "higher"."""
    if not OPTIMIZERS[config.optimizer].finds_rate:
        return f"Try a {way} learning_rate (it was {config.learning_rate:g})"
    if way == "higher":
        return f"Try AdamW with a learning_rate of your own instead of {config.optimizer},"
    return f"Try learning_rate {rate_factor(config.learning_rate) / 2:g}, a factor of what {config.optimizer} finds"


def describe_pictures(run: Run) -> list[str]:
    """Which pictures stand out by their losses, a line for each kind; empty where no trained picture was scored."""
    trained = sum(not row.held_out for row in run.pictures)
    if not trained:
        return []
    if len(run.pictures) < LEAST_PICTURES:
        return [
            f"{len(run.pictures)} pictures were scored, too few to say which stands out: that takes {LEAST_PICTURES}."
        ]
    found = find(run.pictures)
    if not found:
        return [f"Of {len(run.pictures)} pictures that were scored one by one, none stands out."]
    lines = []
    for kind in KINDS:
        own = [each for each in found if each.kind is kind]
        if own:
            more = f" and {len(own) - MOST_NAMED} more" if len(own) > MOST_NAMED else ""
            names = ", ".join(map(_named, own[:MOST_NAMED]))
            label = f"{kind.label[0].upper()}{kind.label[1:]}"
            lines.append(f"{label}, {len(own)} of {len(run.pictures)} pictures: {names}{more}; {kind.meaning}.")
    return lines


def _named(finding: Finding) -> str:
    row = finding.row
    first, last = row.points[0], row.points[-1]
    losses = f"loss {first[1]:.4f} at step {first[0]}"
    if len(row.points) > 1:
        losses += f", {last[1]:.4f} at step {last[0]}"
    if finding.kind is CAPTION and row.caption_gain is not None:
        losses += f", {math.expm1(-row.caption_gain):.0%} higher with its caption than without"
    return f"{row.path!r} ({losses})"


def describe_card(run: Run) -> list[str]:
    """Where the evidence card is; empty where it could not be drawn, which is a note then."""
    if any(note.startswith(NO_CARD) for note in run.notes):
        return []
    return [
        f"The evidence card, card.jpg in the folder of the run {run.id}, says which step to use and why, and what to "
        "change next; on the page, Evidence card on the node opens it."
    ]


def describe_unread(unread: Sequence[str]) -> list[str]:
    """A line for each thing on the wires that cannot be compared, so that the run is resumed by no other."""
    return [f"{each[0].upper()}{each[1:]}, which cannot be compared; this run cannot be resumed." for each in unread]
