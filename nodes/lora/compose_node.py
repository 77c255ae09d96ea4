"""LoRA: compose and inspect."""

from __future__ import annotations

from comfy_api.latest import io

from ..bridge.errors import InputError, names_itself
from ..bridge.image import tensor_of
from . import compose as composition
from . import inspect as inspection
from .files import named
from .inject_node import NONE, chosen, fingerprint, lora_choices

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
                    max=composition.MOST_RANK,
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
    @names_itself
    def execute(cls, loras: io.Autogrow.Type, strengths="", rank=0) -> io.NodeOutput:
        wired = [named(lora) for lora in (loras or {}).values() if lora is not None]
        if not wired:
            raise InputError("no LoRA is wired in; wire in two or more")
        done = composition.compose(wired, composition.parse_strengths(strengths or "", len(wired)), rank)
        heatmap = composition.picture(done, [lora.name for lora in wired])
        return io.NodeOutput(done.lora, done.report, tensor_of(heatmap))


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
    def fingerprint_inputs(cls, lora_name, **_):
        return fingerprint(lora_name)

    @classmethod
    @names_itself
    def execute(cls, lora_name=NONE, lora=None, model=None) -> io.NodeOutput:
        adapter = chosen(lora_name, lora)
        found, remarks = inspection.inspect(adapter, model)
        return io.NodeOutput(
            inspection.report(adapter, found, remarks), tensor_of(inspection.picture(adapter.name, found))
        )
