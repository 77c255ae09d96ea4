"""The node that makes a set of pairs out of two sets."""

from __future__ import annotations

from comfy_api.latest import io

from ....training.errors import InputError
from ....training.images import ImageSet
from ...bridge.errors import name_node_in_errors
from ...bridge.types import Images
from ..sheet import contact_sheet, describe
from .pair import pair_sets


class PairImageSets(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="BespokePairImageSets",
            display_name="Bespoke Pair Image Sets",
            category="Bespoke/images",
            description=(
                "Makes pairs of two training sets, a source and its result each, from which Train LoRA teaches an edit "
                "model what to do to a picture."
            ),
            search_aliases=[
                "edit model",
                "paired images",
                "before and after",
                "control images",
                "kontext",
                "qwen image edit",
                "instruct pix2pix",
            ],
            inputs=[
                Images.Input(
                    "source",
                    tooltip=(
                        "The pictures before the change, what the edit model is given. Matched to the results by name, "
                        "NAME or NAME-control; by order where no name is in both sets."
                    ),
                ),
                Images.Input(
                    "result",
                    tooltip=(
                        "The pictures after the change, what the model learns to make. Their captions are the "
                        "instructions, such as: make the circle green."
                    ),
                ),
            ],
            outputs=[
                Images.Output("images", display_name="images", tooltip="The pairs, for images of Bespoke Train LoRA."),
                io.Image.Output(
                    "preview",
                    display_name="preview",
                    tooltip="A contact sheet: source and result side by side, with the instruction.",
                ),
                io.String.Output(
                    "report",
                    display_name="report",
                    tooltip="How many pairs, how they were matched, their sizes and instructions.",
                ),
            ],
        )

    @classmethod
    @name_node_in_errors
    def execute(cls, source, result) -> io.NodeOutput:
        for name, images in (("source", source), ("result", result)):
            if not isinstance(images, ImageSet):
                raise InputError(
                    f"{name} is of the kind {type(images).__name__}; wire in the images of Bespoke Image Folder or "
                    "Bespoke Image Batch"
                )
        images = pair_sets(source, result)
        return io.NodeOutput(images, contact_sheet(images), describe(images))
