"""What a user does with a run in the list: name it, move it away, export its curve."""

from __future__ import annotations

import csv
import io
import logging
import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from ....training.errors import InputError
from ....training.optimizers import LR_SCHEDULES, OPTIMIZERS, make_lr_schedule, schedule_of
from ....training.record import Run
from ..evidence.kept import CARD, write_card
from ..files.writing import reason_of
from ..web import CONFLICT, NOT_FOUND, RequestRefused, read_object
from .live import is_trained, live_run
from .record_file import RECORD
from .store import RunStore, runs_folder
from .training_picture import PICTURE

LONGEST_LABEL = 80  # characters
CURVE_COLUMNS = ("step", "loss", "validation_loss", "lr")


def removed_folder() -> Path:
    """Where runs that the user removed are kept, in ComfyUI's user directory. Nothing reads them."""
    return runs_folder().parent / "removed"


def rename_run(run_id: str, body: bytes) -> dict[str, str]:
    """Give a run the name `label` of the JSON body in lists, "" for none: {"id", "label"}.

    Raises `InputError` for a body without a text of at most `LONGEST_LABEL` characters in one line, and
    `RequestRefused` for a run that is not there or that another server trains.
    """
    label = " ".join(read_object(body, {"label": str})["label"].split())
    if len(label) > LONGEST_LABEL:
        raise InputError(f"label has {len(label)} characters; give at most {LONGEST_LABEL}")
    store, _ = found_run(run_id)
    live = live_run(run_id)
    if live is None and is_trained(run_id):
        raise RequestRefused(CONFLICT, "another ComfyUI server trains the run now; rename it there, or after its end")
    if live is not None:  # its next save writes its own info
        live.info = replace(live.info, label=label)
    try:
        store.set_label(label)
    except OSError as error:
        raise _not_written(error) from error
    return {"id": run_id, "label": label}


def remove_run(run_id: str) -> dict[str, str]:
    """Move a run's folder into `removed_folder`: {"id", "moved"}. The LoRAs and words that it saved stay.

    Raises `RequestRefused` for a run that is trained now, and for one that is not there.
    """
    store, _ = found_run(run_id)
    if is_trained(run_id):
        raise RequestRefused(CONFLICT, "the run is being trained; finish or cancel it before you remove it")
    folder = removed_folder()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        moved = store.move_to(folder)
    except OSError as error:
        raise _not_written(error) from error
    return {"id": run_id, "moved": f"bespoke/{folder.name}/{moved.name}"}


def curve_of_run(run_id: str) -> dict[str, str]:
    """The curve as a table: {"name": a file name, "csv": lines of `CURVE_COLUMNS`}, a line for each step.

    Raises `RequestRefused` for a run that is not there.
    """
    _, run = found_run(run_id)
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    leak = {point.step: point.leak for point in run.leak if math.isfinite(point.leak)}
    table.writerow((*CURVE_COLUMNS, "leak") if leak else CURVE_COLUMNS)
    table.writerows((*row, leak.get(row[0], "")) if leak else row for row in _rows(run))
    return {"name": f"{run_id}.csv", "csv": text.getvalue()}


def picture_of_run(run_id: str) -> Path | None:
    """The file of the training picture that is shown beside the samples, or None."""
    try:
        path = RunStore(run_id).folder / PICTURE
    except ValueError:
        return None
    return path if path.is_file() else None


def card_of_run(run_id: str) -> Path | None:
    """The file of a run's evidence card, or None: of a run that is trained now or has no step.

    It is drawn where it is missing or older than the record, as of a run of version 0.1 or one that was renamed since.
    """
    try:
        store, run = found_run(run_id)
    except RequestRefused:
        return None
    if is_trained(run_id) or not run.losses:
        return None
    card = store.folder / CARD
    try:
        if card.is_file() and card.stat().st_mtime_ns >= (store.folder / RECORD).stat().st_mtime_ns:
            return card
        return write_card(run, store.folder)
    except (OSError, ValueError) as error:  # a folder that cannot be written, a picture that cannot be read
        logging.warning("Bespoke: the evidence card of %s could not be drawn: %s", run_id, reason_of(error))
        return card if card.is_file() else None


def _rows(run: Run) -> Iterator[tuple[int, float | str, float | str, float | str]]:
    """(step, loss, held-out loss, learning rate) of each step, "" for what is not known.

    Step 0, which has no loss, only where the untrained model was scored. The learning rate is that of the run's
    settings, since the record does not keep it: of a run that was resumed with more steps, the rates of the steps
    before may have been others.
    """
    held_out = {step: loss for step, loss in run.held_out if math.isfinite(loss)}
    if 0 in held_out:
        yield 0, "", held_out[0], ""
    rates = _learning_rates(run.info.settings, len(run.losses))
    for step, (loss, rate) in enumerate(zip(run.losses, rates, strict=True), 1):
        yield step, loss if math.isfinite(loss) else "", held_out.get(step, ""), rate


def _learning_rates(settings: Mapping[str, Any], steps: int) -> list[float | str]:
    """The learning rate of each step by the settings, "" where these do not tell it.

    They do not where the optimiser found the rate itself.
    """
    rate, of_schedule = settings.get("learning_rate"), settings.get("steps")
    name, warmup = settings.get("lr_schedule", "constant"), settings.get("warmup_steps", 0)
    out: list[float | str] = []
    if not (isinstance(rate, (int, float)) and isinstance(of_schedule, int) and isinstance(warmup, int)):
        return [""] * steps
    if str(name) not in LR_SCHEDULES or not 0 <= warmup < max(of_schedule, 1) or not 0 <= rate < math.inf:
        return [""] * steps
    chosen = str(settings.get("optimizer", "AdamW"))
    if chosen not in OPTIMIZERS or OPTIMIZERS[chosen].finds_rate:
        return [""] * steps
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=rate)
    schedule = make_lr_schedule(schedule_of(chosen, str(name)), optimizer, of_schedule, warmup)
    for _ in range(steps):
        out.append(float(schedule.get_last_lr()[0]))
        optimizer.step()
        schedule.step()
    return out


def found_run(run_id: str) -> tuple[RunStore, Run]:
    """A run's store and its record. Raises `RequestRefused` where there is none or the id is no run's."""
    try:
        store = RunStore(run_id)
        run = store.record()
    except ValueError:
        run = None
    if run is None:
        raise no_such_run()
    return store, run


def no_such_run() -> RequestRefused:
    """The answer for an id that no run has."""
    return RequestRefused(NOT_FOUND, "no such run")


def _not_written(error: OSError) -> RequestRefused:
    return RequestRefused(CONFLICT, f"the run's folder cannot be changed ({reason_of(error)}); allow writing and retry")
