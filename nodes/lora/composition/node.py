"""LoRA: compose."""

from __future__ import annotations

from comfy_api.latest import io

from ....training.errors import InputError
from ...bridge.drawing.image import tensor_of
from ...bridge.errors import name_node_in_errors
from ..files import as_named_lora
from .compose import MOST_RANK, compose, parse_strengths
from .heatmap import picture

MOST = 26


class ComposeLoras(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        one = io.LoraModel.Input(
            "lora", tooltip="A LoRA from a loader or a trainer; a further socket appears when this one is wired."
        )
        return io.Schema(
            node_id="BespokeComposeLoras",
            display_name="Bespoke Compose LoRAs",
            category="Bespoke/lora",
            description=(
                "Adds up several LoRAs into one, exactly or at a rank you choose, and shows where they get in each "
                "other's way."
            ),
            search_aliases=[
                "merge loras",
                "combine loras",
                "add loras",
                "lora stack",
                "resize lora",
                "lora svd",
                "lora interference",
            ],
            inputs=[
                io.Autogrow.Input(
                    "loras",
                    template=io.Autogrow.TemplatePrefix(one, prefix="lora", min=1, max=MOST),
                    tooltip="The LoRAs to add up, all made for one base.",
                ),
                io.String.Input(
                    "strengths",
                    default="",
                    multiline=True,
                    tooltip=(
                        "How strongly each goes into the sum, one number a line in the order of the sockets: 1 is as "
                        "trained. Empty is 1 each."
                    ),
                ),
                io.Int.Input(
                    "rank",
                    default=0,
                    min=0,
                    max=MOST_RANK,
                    optional=True,
                    advanced=True,
                    tooltip=(
                        "0 keeps the exact sum, with the ranks added. Above 0 the nearest LoRA of that rank: a smaller "
                        "file that keeps the share of the energy which the report names. With one LoRA it makes that "
                        "one smaller."
                    ),
                ),
            ],
            outputs=[
                io.LoraModel.Output(
                    "lora",
                    display_name="lora",
                    tooltip="The sum, for Bespoke Inject LoRA, Bespoke Save LoRA and core's nodes.",
                ),
                io.String.Output(
                    "report",
                    display_name="report",
                    tooltip=(
                        "What was added, the ranks, the energy kept, and in one sentence how far the LoRAs interfere."
                    ),
                ),
                io.Image.Output(
                    "heatmap",
                    display_name="heatmap",
                    tooltip=(
                        "The cosine between the LoRAs' changes in every block: orange adds up, blue cancels, white "
                        "does not meet."
                    ),
                ),
            ],
        )

    @classmethod
    @name_node_in_errors
    def execute(cls, loras: io.Autogrow.Type, strengths="", rank=0) -> io.NodeOutput:
        wired = [as_named_lora(lora) for lora in (loras or {}).values() if lora is not None]
        if not wired:
            raise InputError("no LoRA is wired in; wire in two or more")
        done = compose(wired, parse_strengths(strengths or "", len(wired)), rank)
        heatmap = picture(done, [lora.name for lora in wired])
        return io.NodeOutput(done.lora, done.report, tensor_of(heatmap))
