"""Files of ai-toolkit: `training_info` has the step, and the settings stay in the job's own file beside it."""

from __future__ import annotations

from collections.abc import Mapping

from .sheet import Sheet, object_in

KEY, SOFTWARE = "training_info", "software"


def is_of(meta: Mapping[str, str]) -> bool:
    """Whether ai-toolkit or a program made of it wrote the file."""
    return object_in(meta.get(SOFTWARE)).get("name") == "ai-toolkit" or "step" in object_in(meta.get(KEY))


def read(meta: Mapping[str, str], sheet: Sheet) -> None:
    """Set the steps. Rank, alpha and the adapter are in the tensors."""
    info = object_in(meta.get(KEY))
    if "step" in info:
        sheet.put("steps", info["step"], "training_info.step")
    sheet.note(
        "ai-toolkit writes no other settings into its files: its job file (config.yaml in the folder of the training) "
        "has them."
    )
