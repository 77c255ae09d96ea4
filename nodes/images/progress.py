"""The progress of work on a training set, shown on the node that does it."""

from __future__ import annotations

import comfy.model_management
import comfy.utils

from .reading.pictures import Progress


def shown_progress() -> Progress:
    """Shows the progress on the node, and raises ComfyUI's exception where the user has cancelled the prompt."""
    bar = comfy.utils.ProgressBar(1)

    def show(done: int, of: int) -> None:
        comfy.model_management.throw_exception_if_processing_interrupted()
        bar.update_absolute(done, max(1, of))

    return show
