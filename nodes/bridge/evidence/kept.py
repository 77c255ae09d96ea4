"""The files of an evidence card in a run's folder, and the thumbnail beside a saved LoRA."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from ....training.images import TrainingImage
from ....training.record import Run
from ..files.writing import replacing
from .card import draw_card
from .preview import draw_preview
from .training_sheet import WIDTH, draw_training_sheet

CARD, SHEET = "card.jpg", "training_sheet.jpg"
LARGEST = 20_000_000  # pixels of a sheet
PREVIEW = ".preview.png"  # behind the stem of a LoRA's file
# What ComfyUI, ComfyUI-Lora-Manager, A1111 and ComfyUI-Custom-Scripts show of a model, behind its stem or with
# ".preview" before it.
PREVIEW_ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".mp4", ".webm")


def keep_card(trained: Sequence[TrainingImage], held_out: Sequence[TrainingImage], run: Run, folder: Path) -> None:
    """Draw the card of a run into its folder, and once the sheet of the pictures that it is trained on."""
    if run.info.images and not (folder / SHEET).is_file():
        sheet = draw_training_sheet(trained, held_out)
        if sheet is not None:
            _save(sheet, folder / SHEET)
    write_card(run, folder)


def write_card(run: Run, folder: Path) -> Path:
    """Draw the card from the record, the samples and the sheet that are there; gives its path.

    Raises `OSError` where it cannot be written.
    """
    _save(draw_card(run, folder, _kept_sheet(folder)), folder / CARD)
    return folder / CARD


def card_image(run: Run, folder: Path | None) -> Image.Image:
    """The card as it was drawn at the end of the run, or drawn now where there is none."""
    if folder is None:
        return draw_card(run, None, None)
    with contextlib.suppress(OSError, ValueError), Image.open(folder / CARD) as card:
        return card.convert("RGB")
    return draw_card(run, folder, _kept_sheet(folder))


def write_preview(run: Run, folder: Path | None, lora: Path) -> str:
    """Write the thumbnail of a run beside a LoRA's file; gives a sentence on what was written, or why it was not.

    folder: the run's, None where it has none. A picture that is there already stays.
    """
    taken = _preview_of(lora)
    if taken is not None:
        return f"{taken.name} was there already and stays its preview"
    picture = draw_preview(run, folder, lora.stem)
    if picture is None:
        return "no preview, as the run drew no sample of its result; set sample_every of the trainer"
    path = lora.with_suffix(PREVIEW)
    try:
        with replacing(path) as temporary:
            picture.save(temporary, "PNG")
    except OSError as error:
        return f"its preview could not be written ({(error.strerror or type(error).__name__).lower()})"
    return f"its preview is {path.name}"


def _preview_of(lora: Path) -> Path | None:
    """The picture that programs show of a LoRA's file, or None."""
    names = (lora.with_suffix(f"{middle}{end}") for middle in ("", ".preview") for end in PREVIEW_ENDINGS)
    return next((path for path in names if path.exists()), None)


def _kept_sheet(folder: Path) -> Image.Image | None:
    with contextlib.suppress(OSError, ValueError), Image.open(folder / SHEET) as sheet:
        if sheet.width == WIDTH and sheet.width * sheet.height <= LARGEST:
            return sheet.convert("RGB")
    return None


def _save(picture: Image.Image, path: Path) -> None:
    with replacing(path) as temporary:
        picture.save(temporary, "JPEG", quality=92, subsampling=0)
