"""The node that varies the captions of a training set."""

from __future__ import annotations

from comfy_api.latest import io

from ....training.caption_variants import MOST_VARIANTS
from ...bridge.errors import name_node_in_errors
from ...bridge.types import Images
from .variants import LARGEST_KEEP, VariantsRequest, with_variants


class CaptionVariantsNode(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="BespokeCaptionVariants",
            display_name="Bespoke Caption Variants",
            category="Bespoke/images",
            description=(
                "Shows captions to the model with their tags in changing order, and sometimes without some of them."
            ),
            search_aliases=["shuffle captions", "shuffle tags", "keep tokens", "tag dropout", "caption prefix"],
            inputs=[
                Images.Input("images", tooltip="The training set, from Bespoke Image Folder or Bespoke Image Batch."),
                io.String.Input(
                    "separator",
                    default=",",
                    tooltip=(
                        "What stands between two tags. ', ' is written between them. For sentences give '. ', for line "
                        "breaks \\n. A separator within brackets separates nothing."
                    ),
                ),
                io.Boolean.Input(
                    "shuffle",
                    default=True,
                    tooltip=(
                        "Tags change places, so that the model does not learn their order. For sentences switch it off."
                    ),
                ),
                io.Int.Input(
                    "keep_first",
                    default=1,
                    min=0,
                    max=LARGEST_KEEP,
                    tooltip=(
                        "How many tags at the beginning stay there and are never left out; the trigger is one of them. "
                        "The trigger stays first with 0 too."
                    ),
                ),
                io.Float.Input(
                    "drop_tags",
                    default=0.0,
                    min=0.0,
                    max=1.0,
                    step=0.05,
                    tooltip=(
                        "The probability with which a tag is left out of a variant, of each tag by itself. 0.1 "
                        "leaves out one of ten. The model learns the look of what is left out for the other words."
                    ),
                ),
                io.String.Input(
                    "keep_tags",
                    default="",
                    tooltip="Tags that are never left out, between separators. Case and underscores do not matter.",
                ),
                io.Int.Input(
                    "variants",
                    default=8,
                    min=0,
                    max=MOST_VARIANTS,
                    tooltip=(
                        "How many of each caption, taken by turns; all are encoded once before the training. The first "
                        "is the caption itself. 0 makes a new one at each draw, where the text encoder runs in each "
                        "step: with train_text_encoder, and in textual inversion."
                    ),
                ),
                io.String.Input(
                    "prepend",
                    default="",
                    optional=True,
                    advanced=True,
                    tooltip="Tags put before each caption, behind the trigger. They stay there.",
                ),
                io.String.Input(
                    "append",
                    default="",
                    optional=True,
                    advanced=True,
                    tooltip="Tags put after each caption. They stay there.",
                ),
                io.String.Input(
                    "replace",
                    default="",
                    multiline=True,
                    optional=True,
                    advanced=True,
                    tooltip=(
                        "One rule a line: old -> new. Whole words, in any case; nothing after the arrow takes the text "
                        'out. In quotes blanks count: "_" -> " ".'
                    ),
                ),
            ],
            outputs=[
                Images.Output(
                    "images", display_name="images", tooltip="The training set with its captions edited and varied."
                ),
                io.String.Output(
                    "preview",
                    display_name="preview",
                    tooltip="How many prompts will be encoded, and the variants of the first pictures.",
                ),
            ],
        )

    @classmethod
    @name_node_in_errors
    def execute(cls, images, **settings) -> io.NodeOutput:
        return io.NodeOutput(*with_variants(images, VariantsRequest(**settings)))
