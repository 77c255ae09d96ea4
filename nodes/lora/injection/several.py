"""Several LoRAs by one node: its own, and those of a stack, one after the other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from ....training.strength_range import in_words, strengths_in
from ....training.timestep_range import common_range, range_in
from ..bundle import clip_with_words, prompt_words
from ..composition.compose import compose
from ..composition.source import Source
from ..inspection.describe import describe
from ..named_lora import NamedLora
from .masked import inject_masked
from .part import inject_on_its_part, limited_to_part
from .request import Request
from .scoped import scoped_lora

Loras = Sequence[tuple[NamedLora, Request]]


def inject_all(
    model: Any, clip: Any, loras: Loras, use_range: bool = True, mask: Tensor | None = None
) -> tuple[Any, Any, str]:
    """(model, clip, report): `inject_on_its_part`, or with a mask `inject_masked`, with each in turn.

    The CLIP knows the words that the files carry.
    Raises `InputError` as these do.
    """
    report, words = list[str](), list[str]()
    if not loras:
        return model, clip, "lora_stack has no LoRA that is on, so model and clip are as they were."
    for lora, request in loras:
        if mask is None:
            model, clip, lines, own = inject_on_its_part(model, clip, lora, request, use_range)
        else:
            timing, lines = limited_to_part(request.timing, model, lora, use_range)
            model, own = inject_masked(model, clip, lora, replace(request, timing=timing), mask)
        clip, known = clip_with_words(clip, lora, words)
        words += prompt_words(lora)
        report += ["\n".join([describe(lora), *lines, *_beyond(lora, request.strength_model), own, *known])]
    return model, clip, "\n\n".join(report)


def _beyond(lora: NamedLora, strength: float) -> list[str]:
    """That the strength is outside of those that a slider was found useful at; empty for others."""
    useful = strengths_in(lora.meta)
    if useful is None or useful[0] <= strength <= useful[1]:
        return []
    return [f"strength_model is {strength:g}, outside of the useful strengths {in_words(useful)}."]


def scoped_sum(model: Any, clip: Any, loras: Loras, use_range: bool = True) -> tuple[NamedLora, list[str]]:
    """(one LoRA, remarks): the scoped LoRA, see `scoped_lora`; of several their exact sum.

    Raises `InputError` where several cannot be summed, see `compose`.
    """
    if not loras:
        return NamedLora({}, "none", {}), ["The lora output is empty."]
    made = [scoped_lora(model, clip, lora, request, use_range) for lora, request in loras]
    remarks = list(dict.fromkeys(line for _, lines in made for line in lines))
    scoped = [lora for lora, _ in made if lora]
    if not scoped:
        return made[0][0], [*remarks, "The lora output is empty: with these strengths nothing of the LoRA is left."]
    if len(scoped) == 1:
        return scoped[0], remarks
    total = compose([Source(lora) for lora in scoped]).lora
    remarks.append(f"The lora output is the exact sum of the {len(scoped)} LoRAs, with their ranks added.")
    if common_range(range_in(lora.meta) for lora in scoped) is None:
        remarks.append(
            "They are for different parts of the schedule, which one file cannot hold: the lora output is for every "
            "step."
        )
    return total, remarks
