"""The node that writes a training set into a folder."""

from __future__ import annotations

from comfy_api.latest import io

from ....training.errors import InputError
from ....training.images import ImageSet
from ...bridge.errors import name_node_in_errors
from ...bridge.types import Images
from ..places import input_folder
from ..progress import shown_progress
from .report import report_of
from .save import save_set


class SaveImageSet(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="BespokeSaveImageSet",
            display_name="Bespoke Save Image Set",
            category="Bespoke/images",
            description=(
                "Writes the pictures, captions and masks of a training set into a folder under ComfyUI's input folder, "
                "where Bespoke Image Folder reads them and edits the captions. Never overwrites a file."
            ),
            search_aliases=[
                "save dataset",
                "save captions",
                "save training images",
                "export dataset",
                "write captions",
            ],
            is_output_node=True,
            inputs=[
                Images.Input("images", tooltip="The training set, from Bespoke Image Batch or another set node."),
                io.String.Input(
                    "folder",
                    default="bespoke/set",
                    tooltip=(
                        "The folder's name under ComfyUI's input folder; a '/' makes a subfolder. One that holds other "
                        "pictures is left alone: the next free number is added. An equal set is not written again."
                    ),
                ),
            ],
            outputs=[
                io.String.Output(
                    "folder",
                    display_name="folder",
                    tooltip="Where the set is, as text for folder_name of Bespoke Image Folder.",
                ),
                io.String.Output(
                    "report",
                    display_name="report",
                    tooltip="What was written, how to read it as it is, and what a folder cannot hold.",
                ),
            ],
        )

    @classmethod
    @name_node_in_errors
    def execute(cls, images, folder) -> io.NodeOutput:
        if not isinstance(images, ImageSet):
            raise InputError(
                f"images is of the kind {type(images).__name__}; wire in the images of Bespoke Image Batch"
            )
        saved = save_set(images, input_folder(), folder, shown_progress())
        report = report_of(saved, images)
        return io.NodeOutput(saved.folder, report, ui={"text": [report.splitlines()[0]]})
