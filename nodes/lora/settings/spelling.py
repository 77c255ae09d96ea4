"""What other programs call the choices of the trainer: optimisers, schedules, types."""

from __future__ import annotations

from typing import Any

from ....training.adapters.lora import UP_RATE
from ....training.optimizers import OPTIMIZERS
from .sheet import Sheet, number, shown

# By the class's name in small letters, without "_" and "-".
_OPTIMIZERS = {
    "adamw": "AdamW",
    "adam": "AdamW",  # the same where nothing is decayed, as here
    "adamw8bit": "AdamW 8-bit",
    "adam8bit": "AdamW 8-bit",
    "pagedadamw8bit": "AdamW 8-bit",
    "adamwschedulefree": "schedule-free AdamW",
    "schedulefreeadamw": "schedule-free AdamW",
    "adafactor": "Adafactor",
    "sgd": "SGD",
    "prodigy": "Prodigy",
    "muon": "Muon",
}
_SCHEDULES = {
    "constant": "constant",
    "constant_with_warmup": "constant",
    "linear": "linear",
    "cosine": "cosine",
    "cosine_with_restarts": "cosine with restarts",
    "cosine_with_hard_restarts": "cosine with restarts",
}
_PRECISIONS = {
    "no": "fp32",
    "fp16": "fp16",
    "bf16": "bf16",
    "float_32": "fp32",
    "tfloat_32": "fp32",
    "float_16": "fp16",
    "bfloat_16": "bf16",
}


def put_optimizer(sheet: Sheet, name: str, arguments: str, source: str) -> None:
    """Set `optimizer`. name: with or without its module, such as bitsandbytes.optim.adamw.AdamW8bit."""
    kind = name.rpartition(".")[2].lower().replace("_", "").replace("-", "")
    found = _OPTIMIZERS.get(kind)
    if found is None:
        sheet.note(f"{source} is {shown(name)}, which is not in the list of optimizer; choose the nearest one.")
        return
    sheet.put("optimizer", found, source)
    if package := OPTIMIZERS[found].package:
        sheet.note(
            f"optimizer {found} needs the package {package}; without it choose {OPTIMIZERS[found].instead}, which "
            "needs none."
        )
    if arguments:
        sheet.note(
            f"{source} has the arguments {shown(arguments)}, which have no widgets: optimisers here have no weight "
            "decay and the settings of the help page."
        )


def put_schedule(sheet: Sheet, name: Any, source: str) -> None:
    """Set `lr_schedule`."""
    found = _SCHEDULES.get(name.lower()) if isinstance(name, str) else None
    if found is None:
        sheet.note(f"{source} is {shown(name)}, which is not in the list of lr_schedule; choose the nearest one.")
        return
    sheet.put("lr_schedule", found, source)
    if found == "cosine with restarts":
        sheet.note("cosine with restarts has a cycle per 500 steps here, at least two; the file's may be others.")


def put_precision(sheet: Sheet, name: Any, source: str) -> None:
    """Set `precision`."""
    found = _PRECISIONS.get(name.lower()) if isinstance(name, str) else None
    if found is None:
        sheet.note(f"{source} is {shown(name)}; precision takes fp32, bf16 or fp16, so it stays as it is.")
    else:
        sheet.put("precision", found, source)


def put_warmup(sheet: Sheet, value: Any, source: str) -> None:
    """Set `warmup_steps`: from 1 on a number of steps, below 1 the share of all steps."""
    found, steps = number(value), sheet.values.get("steps")
    if found is not None and 0 < found < 1:
        if steps is None:
            sheet.note(f"{source} is {found:g}, a share of all steps, which the file does not say: set warmup_steps.")
            return
        found = round(found * steps)
    if found and steps is not None and found >= steps:
        sheet.note(f"{source} is {shown(value)} and the run has {steps} steps; warmup_steps has to be fewer.")
        return
    sheet.put("warmup_steps", value if found is None else int(found), source)


def note_up_rate(sheet: Sheet, ratio: Any) -> None:
    """Say what LoRA+ changes of the learning rate. ratio: the file's own; None where it was trained without."""
    values, own = sheet.values, number(ratio) or 1
    is_low_rank = values.get("adapter", "LoRA") in ("LoRA", "DoRA")
    one_rate = OPTIMIZERS[values.get("optimizer", "AdamW")].one_rate
    rate = values.get("learning_rate")
    if rate is None or own == UP_RATE or not is_low_rank or one_rate:
        return
    was = f"with a LoRA+ ratio of {own:g}" if own != 1 else "without LoRA+, both factors at one rate"
    sheet.note(
        f"The file was trained {was}; here the factor that starts at zero learns {UP_RATE:g} times as fast as "
        f"learning_rate says. learning_rate {rate * own / UP_RATE:g} gives that factor the file's rate."
    )
