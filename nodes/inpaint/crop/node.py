"""The node that crops pictures to what a mask may change."""

from __future__ import annotations

from comfy_api.latest import io, ui

from ...bridge.errors import name_node_in_errors
from ...bridge.types import Crop
from .cut import Cut, cut
from .preview import LINES, describe, draw
from .rectangles import LEAST
from .settings import (
    CONTEXT,
    CONTEXT_MAX,
    CONTEXT_MIN,
    MULTIPLE,
    MULTIPLE_MAX,
    PADS,
    RESOLUTION,
    RESOLUTION_MAX,
    TRACKINGS,
    CropSettings,
    common_multiple,
)


class CropToMask(io.ComfyNode):
    """Cuts pictures around their masks and scales the crops to what the model draws best."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="BespokeCropToMask",
            display_name="Bespoke Crop to Mask (inpaint)",
            category="Bespoke/inpaint",
            description=(
                "Cut the picture around its mask and scale the crop to the model's own resolution, so that a small "
                "place is repainted in full detail. Wire crop to Restore Unmasked, which puts it back exactly."
            ),
            search_aliases=[
                "inpaint only masked",
                "inpaint crop",
                "crop and stitch",
                "detailer",
                "face detailer",
                "crop by mask",
                "mask bounding box",
            ],
            inputs=[
                io.Image.Input("image", tooltip="The picture to repaint a part of, or several, or a clip's frames."),
                io.Mask.Input(
                    "mask",
                    tooltip=(
                        "White (1) may change. One for all pictures, or one each. Several for one picture are united, "
                        "or have a crop each."
                    ),
                ),
                io.Float.Input(
                    "context",
                    default=CONTEXT,
                    min=CONTEXT_MIN,
                    max=CONTEXT_MAX,
                    step=0.05,
                    optional=True,
                    tooltip=(
                        "The crop's side divided by the mask's. 1.5 shows the model a quarter of the mask's size "
                        "around it. More helps it to fit what is there; less gives the new part more pixels."
                    ),
                ),
                io.Int.Input(
                    "resolution",
                    default=RESOLUTION,
                    min=0,
                    max=RESOLUTION_MAX,
                    step=8,
                    optional=True,
                    tooltip=(
                        "Pixels: the crop is scaled to the area of a square with this side, such as 512 for SD1.5 and "
                        "1024 for SDXL and Flux. 0 leaves its size."
                    ),
                ),
                io.Boolean.Input(
                    "keep_aspect",
                    default=True,
                    optional=True,
                    advanced=True,
                    tooltip=(
                        "On: the crop has the mask's proportions, up to 2 to 1. Off: it is a square. It is never "
                        "stretched."
                    ),
                ),
                io.Boolean.Input(
                    "each",
                    default=False,
                    optional=True,
                    tooltip=(
                        "On: each separate part of the mask is a crop of its own, as for the faces that a detector "
                        "found, all of one size. Off: one crop around all of them."
                    ),
                ),
                io.Combo.Input(
                    "follow",
                    options=list(TRACKINGS),
                    default="picture",
                    optional=True,
                    advanced=True,
                    tooltip=(
                        "Where each picture has its own mask. picture: each is cropped for itself. clip: one place for "
                        "all frames of a video. smooth: the crop follows the mask through a video without jumps."
                    ),
                ),
                io.Combo.Input(
                    "pad",
                    options=list(PADS),
                    default="reflect",
                    optional=True,
                    advanced=True,
                    tooltip=(
                        "What fills a crop that is larger than the picture. reflect: its mirror image. edge: its "
                        "border's pixels. none: the crop stays within, with less around the mask and other proportions."
                    ),
                ),
                io.Int.Input(
                    "multiple",
                    default=MULTIPLE,
                    min=1,
                    max=MULTIPLE_MAX,
                    optional=True,
                    advanced=True,
                    tooltip=(
                        "Pixels: both sides of the scaled crop are multiples of it. 8 suits SD1.5 and SDXL, 16 Flux, "
                        "32 most video models."
                    ),
                ),
                io.Mask.Input(
                    "context_mask",
                    optional=True,
                    tooltip="What is white here is in the crop, too, for the model to see; it is not repainted.",
                ),
                io.Vae.Input(
                    "vae",
                    optional=True,
                    tooltip="With a VAE the crop's sides are multiples of its cells as well, whatever multiple says.",
                ),
            ],
            has_intermediate_output=True,  # what it showed comes again with a cached run
            outputs=[
                io.Image.Output(display_name="image", tooltip="The crops, scaled: encode these."),
                io.Mask.Output(display_name="mask", tooltip="Their masks, for Latent Mask Blend."),
                Crop.Output(display_name="crop", tooltip="Where they came from, for Restore Unmasked."),
                io.Image.Output(
                    display_name="preview", tooltip="Where the picture was cut, and to which size and scale."
                ),
                io.String.Output(
                    display_name="report", tooltip="Each crop's place, size and scale, and notes on the mask."
                ),
            ],
        )

    @classmethod
    @name_node_in_errors
    def execute(
        cls,
        image,
        mask,
        context=CONTEXT,
        resolution=RESOLUTION,
        keep_aspect=True,
        each=False,
        follow="picture",
        pad="reflect",
        multiple=MULTIPLE,
        context_mask=None,
        vae=None,
    ) -> io.NodeOutput:
        if vae is not None:
            multiple = common_multiple(multiple, int(vae.spacial_compression_encode()))
        settings = CropSettings(context, resolution, multiple, keep_aspect, pad, each, follow)
        made = cut(image, mask, settings, context_mask)
        preview = draw(image, made.whole, made.crop, pad)
        return io.NodeOutput(
            made.images,
            made.masks,
            made.crop,
            preview,
            _report(made, settings),
            ui=ui.PreviewImage(preview, cls=cls),
        )


def _report(made: Cut, settings: CropSettings) -> str:
    pieces = made.crop.pieces
    several = len(pieces) > 1
    lines = [f"{len(pieces)} crops, all of one size." if several else "One crop."]
    lines += [f"{i}: {describe(piece, made.crop)}." for i, piece in enumerate(pieces[:LINES], 1)]
    if len(pieces) > LINES:
        lines.append(f"And {len(pieces) - LINES} more.")
    if settings.resolution == 0 and any((p.rect.height, p.rect.width) != made.crop.scaled for p in pieces):
        lines.append("The picture has no whole multiple of that size around the mask, so the crop was scaled a little.")
    if min(made.crop.scaled) < LEAST:
        lines.append(
            f"A side of less than {LEAST} px is too small for most models to draw anything: raise resolution to the "
            "size that the model was trained at, such as 512 or 1024."
        )
    if padded := sum(p.rect.within(*made.crop.size) != p.rect for p in pieces):
        which = f"{padded} crops are" if several else "It is"
        lines.append(
            f"{which} larger than the picture: what is beyond was filled ({settings.pad}) and is not put back."
        )
    return "\n".join([*lines, *made.notes])
