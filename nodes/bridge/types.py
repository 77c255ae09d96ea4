"""The pack's own wire types."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from comfy_api.latest import io

Images = io.Custom("BESPOKE_IMAGES")  # training.images.ImageSet
Run = io.Custom("BESPOKE_RUN")  # training.record.Run
Embedding = io.Custom("BESPOKE_EMBEDDING")  # {"clip_l": [vectors, width] float32, ...}; several: {name: ...}
Crop = io.Custom("BESPOKE_CROP")  # nodes.inpaint.crop.record.Crop


def loss_output() -> Any:
    """The output of a trainer for core's Plot Loss Graph: {"loss": [of each step]}."""
    return io.LossMap.Output("loss", display_name="loss", tooltip="The loss of every step, for core's Plot Loss Graph.")


def pictures_input(tooltip: str) -> io.Input:
    """The input `images` of a trainer: a training set, or IMAGE, of which `images.wired` makes one."""
    return io.MultiType.Input("images", [Images, io.Image], tooltip=tooltip)


def graph_of(hidden) -> tuple[Any, Any]:
    """(prompt, workflow) of the running graph, each None where ComfyUI passes none.

    The workflow is the graph as the page saves it: a file that contains it opens the graph when it is dropped on the
    canvas.
    """
    if not hidden:
        return None, None
    return hidden.prompt, (hidden.extra_pnginfo or {}).get("workflow")


def grown_values(grown: Mapping[str, Any] | None) -> list[Any]:
    """The connected values of a growing input, sorted by the number in its name: image10 comes after image9."""
    return [value for _, value in sorted((grown or {}).items(), key=_number_at_end) if value is not None]


def _number_at_end(item: tuple[str, Any]) -> int:
    name, _ = item
    return int(name[len(name.rstrip("0123456789")) :])
