"""A LoRA that was trained on a part of the schedule is used on that part: proposed from its file's metadata."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ....training.timestep_range import range_in
from ...bridge.noise_level import percents_of
from ...bridge.schedule_part import range_of_model
from ..named_lora import NamedLora
from .inject import ActsAtEveryStep, inject
from .request import Request
from .timing import Timing


def inject_on_its_part(
    model: Any, clip: Any, lora: NamedLora, request: Request, use_range: bool = True
) -> tuple[Any, Any, list[str], str]:
    """(model, clip, lines, report): `inject` with the part that the file's metadata names, see `limited_to_part`.

    lines: what the report says of the part. Where the part is proposed by the file alone and a patch of it cannot come
    and go between steps, the LoRA acts at every step, as in a graph from before files named a part.
    """
    timing, lines = limited_to_part(request.timing, model, lora, use_range)
    try:
        new_model, new_clip, report = inject(model, clip, lora, replace(request, timing=timing))
    except ActsAtEveryStep as error:
        if not request.timing.always:
            raise
        first = f"It was trained on the timesteps {timing.part} alone (of 1: 0 is clean, 1 is noise)"
        lines = [f"{first}, and acts outside of them too: {error.reason}."]
        new_model, new_clip, report = inject(model, clip, lora, request)
    return new_model, new_clip, lines, report


def limited_to_part(timing: Timing, model: Any, lora: NamedLora, use_range: bool = True) -> tuple[Timing, list[str]]:
    """(timing, report): the timing with the part that the file's metadata names, and what the report says of that.

    The part is taken where `use_range` is set and the timing has the whole of the denoising, and not where the MODEL is
    an expert that works in that part alone: merging is then the same and faster.
    """
    part = range_in(lora.meta)
    if part.is_whole:
        return timing, []
    own = range_of_model(model)
    trained = f"It was trained on the timesteps {part} alone (of 1: 0 is clean, 1 is noise)"
    if own.is_within(part):
        return timing, [f"{trained}. This model, the {own.expert} expert, works there only: no range is set."]
    start, end = percents_of(part, model.get_model_object("model_sampling"))
    share = f"start_percent {start:.2f} to end_percent {end:.2f} here"
    if timing.start > 0.0 or timing.end < 1.0:
        return timing, [f"{trained}, {share}; start_percent and end_percent are set and count instead."]
    if not use_range:
        return timing, [f"{trained}, {share}; use_range is off, so it acts outside of them too."]
    lines = [f"{trained}, so it acts there alone, {share}. use_range off lets it act everywhere."]
    if own.overlap(part) is None:
        lines.append(f"THIS LORA CHANGES NOTHING HERE: the model is the {own.expert} expert, for {own}.")
    return replace(timing, part=part), lines
