"""The node that brings a picture's colours to another's."""

from __future__ import annotations

from comfy_api.latest import io

from ...bridge.errors import name_node_in_errors
from .match import AMOUNT_MAX, AMOUNT_MIN, MEAN, METHODS, MatchSettings, match_colors


class MatchColors(io.ComfyNode):
    """Takes off the colour drift of a whole picture."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="BespokeMatchColors",
            display_name="Bespoke Match Colors (inpaint)",
            category="Bespoke/inpaint",
            description=(
                "Give a picture the colours of another: for whole pictures after one or ten rounds of encoding and "
                "decoding, which drift. Restore Unmasked has its own match for one repainted place."
            ),
            search_aliases=[
                "color match",
                "color correction",
                "color transfer",
                "colour match",
                "histogram matching",
                "color drift",
            ],
            inputs=[
                io.Image.Input("image", tooltip="The picture whose colours are to change, such as a decoded one."),
                io.Image.Input(
                    "reference", tooltip="The picture with the right colours. One for all pictures, or one each."
                ),
                io.Mask.Input(
                    "mask",
                    optional=True,
                    tooltip=(
                        "Where to compare the two: white (1) is compared, black is not. All of the picture is changed. "
                        "After inpainting, the inverted mask: what was not repainted."
                    ),
                ),
                io.Combo.Input(
                    "method",
                    options=list(METHODS),
                    default=MEAN,
                    tooltip=(
                        "mean and deviation: one brightness and contrast for each channel; the safest, new content "
                        "keeps its own colours. smooth field: place by place, in large patches; for a drift that is "
                        "not the same everywhere, where both show the same picture. histogram: a curve for each "
                        "channel; to take the colours of another picture."
                    ),
                ),
                io.Float.Input(
                    "amount",
                    default=1.0,
                    min=AMOUNT_MIN,
                    max=AMOUNT_MAX,
                    step=0.05,
                    tooltip="How much of the difference is taken off: 1 all of it, 0 leaves the picture as it is.",
                ),
            ],
            outputs=[
                io.Image.Output(display_name="image", tooltip="The picture in the reference's colours."),
                io.String.Output(
                    display_name="report", tooltip="By how much the mean colours differed, before and after."
                ),
            ],
        )

    @classmethod
    @name_node_in_errors
    def execute(cls, image, reference, mask=None, method=MEAN, amount=1.0) -> io.NodeOutput:
        matched, notes = match_colors(image, reference, mask, MatchSettings(method, amount))
        return io.NodeOutput(matched, "\n".join(notes))
