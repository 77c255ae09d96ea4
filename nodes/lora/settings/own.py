"""Files of this pack: `bespoke.settings` has the trainer's own names and values."""

from __future__ import annotations

from collections.abc import Mapping

from ....training.adapters.lora import UP_RATE
from ....training.config import ADDED as ADDED_TO_CONFIG
from ..training.request import ADDED as ADDED_TO_REQUEST
from .sheet import WIDGETS, Sheet, number, object_in, shown

KEY = "bespoke.settings"
_NOT_SET_HERE = {"patience", "resume"}


def read(meta: Mapping[str, str], sheet: Sheet) -> None:
    """Set every widget. Settings of later versions are not written where they are at their default."""
    settings = object_in(meta.get(KEY))
    if not settings:
        sheet.note(f"{KEY} is {shown(meta.get(KEY, ''))}, which is no JSON object; the file is damaged.")
        return
    for name in (*ADDED_TO_CONFIG, *ADDED_TO_REQUEST):
        sheet.default(name)
    for name, value in settings.items():
        if name == "loraplus_lr_ratio":
            if number(value) not in (UP_RATE, 1):
                sheet.note(f"loraplus_lr_ratio is {shown(value)}; here it is {UP_RATE:g}.")
        elif name in WIDGETS and name not in _NOT_SET_HERE:
            sheet.put(name, value, name)
        elif name not in _NOT_SET_HERE:
            sheet.note(f"{shown(name)} is {shown(value)}; this version has no such widget.")
    if "training_adapter_strength" in settings:
        sheet.note("It was trained with a LoRA wired into training_adapter; wire the same one in.")
