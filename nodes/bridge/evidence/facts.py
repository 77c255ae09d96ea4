"""The numbers of a run as short texts, for the evidence card."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from ....training.evidence import FIND_RATE, rate_text
from ....training.optimizers import OPTIMIZERS
from ....training.record import DEFAULT, SET, Run, RunState
from ....training.strength_range import in_words


def title_of(run: Run, otherwise: str = "") -> str:
    """What the user calls the run, else its trigger, else `otherwise` or its id."""
    return run.info.label or run.info.trigger or otherwise or run.id


def state_of(run: Run) -> str:
    """How far the run is, in a word."""
    words = {RunState.KEPT: "ended early, kept", RunState.RUNNING: "not at its end"}
    return words.get(run.state, str(run.state))


def numbers_of(run: Run) -> list[tuple[str, str]]:
    """(name, value) of each number, in the order of interest; what is not known is left out."""
    found = {
        "trained": what_is_trained(run),
        "learning rate": rate_of(run),
        "steps": _steps(run),
        "time": _time(run),
        "memory": _memory(run),
        "pictures": _pictures(run),
        "held-out loss": _held_out(run),
        "leak": _leak(run),
        "useful strengths": in_words(run.useful_strengths) if run.useful_strengths else "",
        "trained numbers": f"{int(run.info.trained):,}" if run.info.trained else "",
        "schedule": _schedule(run),
        "part trained": _part(run),
        "seed": _text(run, "seed"),
    }
    return [(name, value) for name, value in found.items() if value]


def what_is_trained(run: Run) -> str:
    """ "LoRA, rank 8, alpha 8, cross-attention", "word, 4 vectors", or both of them."""
    settings = run.info.settings
    if "vectors" in settings:
        words = _words(settings)
        count = sum(words)
        word = f"{'word' if len(words) == 1 else f'{len(words)} words'}, {count} vector{'' if count == 1 else 's'}"
        return f"{word}, and {_adapters(run)}" if "rank" in settings else word
    return _adapters(run)


def _words(settings: Mapping[str, Any]) -> list[int]:
    """How many vectors each word of the setting `name` has: a line is `cat : a cat : 4`, or has that of `vectors`."""
    lines = [line.split(":") for line in str(settings.get("name", "")).splitlines() if line.strip()]
    own = [int(parts[-1]) if len(parts) > 2 and parts[-1].strip().isdecimal() else None for parts in lines]
    return [settings["vectors"] if count is None else count for count in own or [None]]


def _adapters(run: Run) -> str:
    settings, kinds = run.info.settings, ("lora", "word and lora")
    parts = [str(settings.get("adapter", "LoRA")) if run.info.technique in kinds else run.info.technique]
    parts += [f"{name} {_plain(settings[name])}" for name in ("rank", "alpha") if name in settings]
    if settings.get("conv_rank"):
        parts.append(f"conv rank {_plain(settings['conv_rank'])}")
    if "targets" in settings:
        parts.append(str(settings["targets"]))
    if settings.get("train_text_encoder"):
        parts.append("text encoder")
    return ", ".join(parts)


def rate_of(run: Run) -> str:
    """The learning rate and how it was found: by hand, the default, measured, or by the optimiser."""
    rate, source = run.info.settings.get("learning_rate"), run.info.rate_source
    name = str(run.info.settings.get("optimizer", "AdamW"))
    if run.found_rate and name in OPTIMIZERS and OPTIMIZERS[name].finds_rate:
        return f"{rate_text(run.found_rate)}, found by {name}"
    if not isinstance(rate, (int, float)):
        return ""
    how = {
        "": "",
        DEFAULT: ", the default: not measured for this set",
        SET: ", set by hand",
        **{kind: f", measured by {name}" for kind, name in FIND_RATE.items()},
    }.get(source, f", from the node {source}")
    return f"{rate_text(rate)}{how}"


def _steps(run: Run) -> str:
    requested, done = run.info.settings.get("steps"), len(run.losses)
    batch, calls = (run.info.settings.get(name, 1) for name in ("batch_size", "gradient_accumulation"))
    of = f" of {int(requested):,}" if isinstance(requested, (int, float)) and requested != done else ""
    size = f", batch {_plain(batch)}" if "batch_size" in run.info.settings else ""
    return f"{done:,}{of}{size}{f' x {_plain(calls)}' if calls not in (1, None) else ''}"


def _time(run: Run) -> str:
    if not run.seconds > 0:
        return ""
    settings = run.info.settings
    pictures = len(run.losses) * _number(settings.get("batch_size")) * _number(settings.get("gradient_accumulation"))
    return f"{clock(run.seconds)}, {pictures / run.seconds:.3g} pictures/s"


def clock(seconds: float) -> str:
    """ "0:42", "12:05" or "1:02:05"."""
    whole = max(0, round(seconds))
    hours, minutes = whole // 3600, whole // 60 % 60
    return f"{hours}:{minutes:02}:{whole % 60:02}" if hours else f"{minutes}:{whole % 60:02}"


def _memory(run: Run) -> str:
    if not run.memory_mb > 0:
        return ""
    shown = f"{run.memory_mb / 1024:.1f} GB" if run.memory_mb >= 1000 else f"{run.memory_mb:.0f} MB"
    return f"{shown} at most"


def _pictures(run: Run) -> str:
    count = int(run.info.images)
    if not count:
        return ""
    size = f" at {run.info.resolution}" if run.info.resolution else ""
    held_out = sum(row.held_out for row in run.pictures)
    more = f", {held_out} held out" if held_out and not run.folds else ""
    return f"{count:,}{size}{more}"


def _held_out(run: Run) -> str:
    points = [(step, loss) for step, loss in run.held_out if math.isfinite(loss)]
    if not points or run.best is None:
        return "" if run.held_out or not run.info.images else "not measured"
    (first, start), (step, loss) = points[0], run.best
    if run.no_step_improved:
        step, loss = points[-1]
    if first or not start > 0 or step == 0:
        return f"{loss:.4g} at step {step}"
    return f"{start:.4g} -> {loss:.4g} ({100 * (loss / start - 1):+.0f} %)"


def _leak(run: Run) -> str:
    point = run.leak_of_result
    if point is None or not math.isfinite(point.leak):
        return ""
    return f"{point.leak:.2f} at step {point.step} (0: none)"


def _schedule(run: Run) -> str:
    parts = [_text(run, "optimizer"), _text(run, "lr_schedule")]
    return ", ".join(filter(None, parts))


def _part(run: Run) -> str:
    if not run.info.timestep_range:
        return ""
    return f"t {run.info.part.low:g} to {run.info.part.high:g}"


def _text(run: Run, name: str) -> str:
    value = run.info.settings.get(name, "")
    return "" if isinstance(value, (dict, list)) else _plain(value)


def _plain(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _number(value: Any) -> float:
    return value if isinstance(value, (int, float)) and value > 0 else 1
