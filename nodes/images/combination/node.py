"""The node that makes one training set of several."""

from __future__ import annotations

from comfy_api.latest import io

from ...bridge.errors import name_node_in_errors
from ...bridge.types import Images
from ..progress import shown_progress
from .combine import AS_THEY_ARE, BALANCES, combine
from .report import describe_sets, preview

MOST_SETS = 50


class CombineImageSets(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        one = Images.Input(
            "set",
            tooltip="A training set; a further socket appears when this one is wired.",
        )
        return io.Schema(
            node_id="BespokeCombineImageSets",
            display_name="Bespoke Combine Image Sets",
            category="Bespoke/images",
            description=(
                "Makes one training set of several, says how often each is drawn, and trains at several resolutions."
            ),
            search_aliases=[
                "merge datasets",
                "multiple concepts",
                "several folders",
                "dataset weights",
                "repeats",
                "balance datasets",
                "multi resolution",
                "regularization images",
            ],
            inputs=[
                io.Autogrow.Input(
                    "sets",
                    template=io.Autogrow.TemplatePrefix(one, prefix="set", min=1, max=MOST_SETS),
                    tooltip="The sets to train on together. Each keeps its captions, trigger and masks.",
                ),
                io.String.Input(
                    "weights",
                    default="",
                    multiline=True,
                    tooltip=(
                        "One number a line in the order of the sockets: with 2 each picture of that set is drawn twice "
                        "as often as one of a set with 1. Repeats of a set (a folder 10_cat) count besides. Empty is "
                        "1 each."
                    ),
                ),
                io.Combo.Input(
                    "balance",
                    options=list(BALANCES),
                    default=AS_THEY_ARE,
                    optional=True,
                    advanced=True,
                    tooltip=(
                        "as they are: every picture is drawn equally often, so that a large set gets more steps. each "
                        "set the same: all sets get the same share of the steps. The weights are multiplied onto it."
                    ),
                ),
                io.String.Input(
                    "resolutions",
                    default="",
                    optional=True,
                    advanced=True,
                    tooltip=(
                        "Pixels, such as 512, 768, 1024: every picture is trained on at each of them by turns, as "
                        "smaller copies of what was read. Nothing is enlarged, so read at the largest. Empty leaves "
                        "the sizes."
                    ),
                ),
            ],
            outputs=[
                Images.Output("images", display_name="images", tooltip="The sets as one, for a Bespoke trainer."),
                io.Image.Output(
                    "preview", display_name="preview", tooltip="A contact sheet with captions, set by set."
                ),
                io.String.Output(
                    "report",
                    display_name="report",
                    tooltip=(
                        "A table of the sets: pictures, weight, share of the draws, sizes and trigger; and what was "
                        "noticed."
                    ),
                ),
            ],
        )

    @classmethod
    @name_node_in_errors
    def execute(cls, sets: io.Autogrow.Type, weights="", balance=AS_THEY_ARE, resolutions="") -> io.NodeOutput:
        wired = {name: images for name, images in (sets or {}).items() if images is not None}
        combined = combine(wired, weights or "", balance, resolutions or "", shown_progress())
        return io.NodeOutput(combined.images, preview(combined), describe_sets(combined))
