"""The settings of a LoRA file for the trainer's widgets, whichever program wrote it."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ....training.config import TrainConfig
from ....training.errors import InputError
from ..training.request import LoraRequest
from . import aitoolkit, kohya, onetrainer, own, peft, tensors
from .sheet import Sheet, given, shown

_FIRST_OF_ALL = ("learning_rate", "steps", "batch_size", "rank", "alpha")
_STAND_INS = {"steps": 400, "learning_rate": 1e-4, "batch_size": 4, "seed": 0}  # the widgets' defaults
_BASES = ("ss_sd_model_name", "ss_base_model_version", "modelspec.architecture")


@dataclass(frozen=True)
class FileSettings:
    """program: which wrote the file. values: {widget: value}. notes: sentences on what has no equivalent."""

    program: str
    values: dict[str, Any]
    notes: list[str]


def settings_of_file(
    meta: Mapping[str, str], shapes: Mapping[str, Sequence[int]], alphas: Collection[float] = ()
) -> FileSettings:
    """What a file says about its training, as values that the trainer's widgets take.

    meta: its metadata. shapes: of its tensors, by name. alphas: the values of its alphas, where they were read. Values
    that a widget cannot take are named in a sentence and left out; nothing in a file raises an error.
    """
    sheet = Sheet()
    program = _read(meta, sheet)
    if own.KEY not in meta or "rank" not in sheet.values:
        tensors.read(shapes, alphas, sheet)
        _note_base(meta, sheet)
    missing = [name for name in _FIRST_OF_ALL if name not in sheet.values]
    if missing:
        sheet.note(f"The file does not say {', '.join(missing)}; what the node has stays.")
    _check_together(sheet)
    return FileSettings(program, sheet.values, sheet.notes)


def _read(meta: Mapping[str, str], sheet: Sheet) -> str:
    """Read the metadata by the program that wrote it; returns the program's name."""
    if own.KEY in meta:
        own.read(meta, sheet)
        return "Bespoke"
    if any(key in meta for key in onetrainer.MARKS):
        onetrainer.read(meta, sheet)
        return "OneTrainer"
    if any(key in meta for key in kohya.MARKS):
        kohya.read(meta, sheet)
        return "kohya"
    if peft.KEY in meta:
        peft.read(meta, sheet)
        return "diffusers"
    if aitoolkit.is_of(meta):
        aitoolkit.read(meta, sheet)
        return "ai-toolkit"
    return ""


def _note_base(meta: Mapping[str, str], sheet: Sheet) -> None:
    base = next((value for key in _BASES if (value := given(meta, key)) is not None), None)
    if base is not None:
        sheet.note(f"It was trained on {shown(base)}; wire that model in.")


def _check_together(sheet: Sheet) -> None:
    """Say where the trainer would refuse the values together, such as a warm-up as long as the run."""
    values = _STAND_INS | sheet.values
    config = {name: value for name, value in values.items() if name in TrainConfig.__dataclass_fields__}
    rest = {name: value for name, value in values.items() if name not in config}
    try:
        LoraRequest(TrainConfig(**config), **rest)
    except InputError as error:
        sheet.note(f"The trainer refuses these values together: {error}.")
