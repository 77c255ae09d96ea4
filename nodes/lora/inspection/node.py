"""LoRA: inspect."""

from __future__ import annotations

from comfy_api.latest import io

from ...bridge.drawing.image import tensor_of
from ...bridge.errors import name_node_in_errors
from ...bridge.files.listing import NO_FILE, stamp_of_choice
from ..file_input import lora_choices, name_input, wired_or_chosen
from ..files import as_named_lora
from .compare import compare
from .comparison_report import comparison_report
from .heatmap import picture
from .inspect import inspect
from .report import report


class InspectLora(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="BespokeInspectLora",
            display_name="Bespoke Inspect LoRA",
            category="Bespoke/lora",
            description=(
                "Shows what a LoRA does: how large its change is in every block and projection, how much of its rank "
                "it uses, and how it was made."
            ),
            search_aliases=[
                "lora info",
                "lora metadata",
                "lora rank",
                "lora spectrum",
                "analyse lora",
                "lora block weights",
            ],
            inputs=[
                io.Combo.Input(
                    "lora_name",
                    options=lora_choices(),
                    tooltip="A .safetensors file in ComfyUI's loras folder. Not used when a lora is wired in.",
                ),
                io.LoraModel.Input(
                    "lora", optional=True, advanced=True, tooltip="A LoRA on the wire; it wins over lora_name."
                ),
                io.Model.Input(
                    "model",
                    optional=True,
                    advanced=True,
                    tooltip="The base it belongs to: then the changes are shown in percent of the base's weights.",
                ),
                name_input(),
                io.LoraModel.Input(
                    "compare_with",
                    optional=True,
                    advanced=True,
                    tooltip=(
                        "A second LoRA, from Bespoke Load LoRA or a trainer: then the report says how alike the two "
                        "are by block, which directions they share, and how their metadata differs."
                    ),
                ),
            ],
            outputs=[
                io.String.Output(
                    "report",
                    display_name="report",
                    tooltip=(
                        "Format, base, trigger words, metadata, the workflow that made it, and for every layer its "
                        "rank, alpha, norm and spectrum."
                    ),
                ),
                io.Image.Output(
                    "heatmap",
                    display_name="heatmap",
                    tooltip=(
                        "The size of the change by block and projection, and how its energy is spread over the rank."
                    ),
                ),
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, lora_name, **inputs):
        return stamp_of_choice("loras", lora_name, "name" in inputs)

    @classmethod
    @name_node_in_errors
    def execute(cls, lora_name=NO_FILE, lora=None, model=None, name=None, compare_with=None) -> io.NodeOutput:
        adapter = wired_or_chosen(lora_name, lora, name)
        found, remarks = inspect(adapter, model)
        words, compared = report(adapter, found, remarks), None
        if compare_with is not None:
            other = as_named_lora(compare_with)
            compared = compare(adapter, other)
            words = f"{comparison_report(adapter, other, compared)}\n\n{words}"
        return io.NodeOutput(words, tensor_of(picture(adapter.name, found, compared)))
