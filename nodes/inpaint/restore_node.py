"""The node that restores the original's pixels outside a mask."""

from __future__ import annotations

from comfy_api.latest import io

from ..bridge.errors import name_node_in_errors
from ..bridge.types import Crop
from .crop.paste import paste
from .restore import FEATHER, FEATHER_MAX, FEATHER_MIN, RestoreSettings, restore


class RestoreUnmasked(io.ComfyNode):
    """Copies the original's pixels back outside the mask and counts what differs there."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="BespokeRestoreUnmasked",
            display_name="Bespoke Restore Unmasked (inpaint)",
            category="Bespoke/inpaint",
            description="Put the original's pixels back outside the mask, bit for bit, and count what differs there.",
            search_aliases=[
                "paste back",
                "composite",
                "image composite masked",
                "inpaint restore",
                "color match",
                "stitch",
            ],
            inputs=[
                # The first of a type is what the page passes on where the node is bypassed.
                io.Image.Input("generated", tooltip="The decoded picture after repainting."),
                io.Image.Input("original", tooltip="The picture before repainting."),
                io.Mask.Input(
                    "mask",
                    tooltip=(
                        "White (1) is taken from the generated picture, black (0) stays the original. Wire latent_mask "
                        "of Latent Mask Blend here."
                    ),
                ),
                io.Int.Input(
                    "feather",
                    default=FEATHER,
                    min=FEATHER_MIN,
                    max=FEATHER_MAX,
                    optional=True,
                    advanced=True,
                    tooltip=(
                        "Pixels over which the generated picture fades in from the mask's edge, inward only: nothing "
                        "outside changes. Of an enlarged crop, its own pixels."
                    ),
                ),
                io.Float.Input(
                    "match_color",
                    default=0.0,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    optional=True,
                    advanced=True,
                    tooltip=(
                        "How much of the colour difference at the mask's border (0 to 1) is taken off inside. Hides a "
                        "faint change of tone; details stay."
                    ),
                ),
                Crop.Input(
                    "crop",
                    optional=True,
                    tooltip=(
                        "Of Crop to Mask, where the generated picture is its crop: it is scaled back and laid where it "
                        "was cut. original is then the whole picture."
                    ),
                ),
            ],
            outputs=[
                io.Image.Output(display_name="image", tooltip="The original with the repainted part in it."),
                io.String.Output(
                    display_name="report",
                    tooltip=(
                        "How many pixels differ from the original outside the mask, and by how much, before and after."
                    ),
                ),
                io.Int.Output(
                    display_name="changed_outside", tooltip="Pixels outside the mask that differ from the original: 0."
                ),
            ],
        )

    @classmethod
    @name_node_in_errors
    def execute(cls, generated, original, mask, feather=FEATHER, match_color=0.0, crop=None) -> io.NodeOutput:
        settings = RestoreSettings(feather, match_color)
        if crop is None:
            image, after, notes = restore(original, generated, mask, settings)
        else:
            image, after, notes = paste(original, generated, mask, crop, settings)
        by = f", by up to {after.largest:.4f}" if after.changed else ""
        result = f"Restored: {after.changed} of {after.outside} px outside the mask differ from the original{by}."
        return io.NodeOutput(image, "\n".join([result, *notes]), after.changed)
