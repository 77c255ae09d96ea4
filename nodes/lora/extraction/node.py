"""LoRA: extract."""

from __future__ import annotations

from comfy_api.latest import io

from ....training.errors import InputError
from ...bridge.drawing.image import tensor_of
from ...bridge.errors import name_node_in_errors
from .extract import extract
from .heatmap import picture
from .report import remarks, report
from .request import AS_RANK, CHOICES, EVERYTHING, MOST_RANK, Request


class ExtractLora(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="BespokeExtractLora",
            display_name="Bespoke Extract LoRA",
            category="Bespoke/lora",
            description=(
                "Makes a LoRA of the difference between a tuned model and the base that it was made from, and says how "
                "near it comes and which rank it would take."
            ),
            search_aliases=[
                "extract lora",
                "lora from checkpoint",
                "checkpoint to lora",
                "model difference",
                "subtract models",
                "lora svd",
            ],
            inputs=[
                io.Model.Input(
                    "model",
                    tooltip="The tuned model. LoRAs that are merged into it on the wire count as part of it.",
                ),
                io.Model.Input(
                    "base",
                    tooltip="The model that it was made from: the LoRA changes this one into the tuned one.",
                ),
                io.Int.Input(
                    "rank",
                    default=32,
                    min=1,
                    max=MOST_RANK,
                    tooltip=(
                        "How many directions of each layer's change the LoRA keeps. Doubles the file when doubled; the "
                        "report names the rank for 90, 95 and 99 % of the change. Not used with energy."
                    ),
                ),
                io.Float.Input(
                    "energy",
                    default=0.0,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip=(
                        "Above 0: the share of each layer's squared change to keep, such as 0.9, and every layer gets "
                        "the rank that takes. 0 goes by rank."
                    ),
                ),
                io.Clip.Input(
                    "clip",
                    optional=True,
                    tooltip="The tuned text encoder; wire base_clip too, and its change is part of the LoRA.",
                ),
                io.Clip.Input("base_clip", optional=True, tooltip="The base's text encoder."),
                *_advanced(),
            ],
            outputs=[
                io.LoraModel.Output(
                    "lora",
                    display_name="lora",
                    tooltip="The difference, for Bespoke Save LoRA, Bespoke Inject LoRA and core's nodes.",
                ),
                io.String.Output(
                    "report",
                    display_name="report",
                    tooltip=(
                        "How near the LoRA comes, by block, the rank for 90, 95 and 99 %, and what changed and is not "
                        "in it."
                    ),
                ),
                io.Image.Output(
                    "heatmap",
                    display_name="heatmap",
                    tooltip="By block and projection: how much changed, and how much of it the LoRA leaves out.",
                ),
            ],
        )

    @classmethod
    @name_node_in_errors
    def execute(
        cls,
        model,
        base,
        rank=32,
        energy=0.0,
        clip=None,
        base_clip=None,
        targets=EVERYTHING,
        custom_targets="",
        conv_rank=AS_RANK,
        norms_and_biases=False,
    ) -> io.NodeOutput:
        if (clip is None) != (base_clip is None):
            wired, missing = ("clip", "base_clip") if base_clip is None else ("base_clip", "clip")
            raise InputError(f"{wired} is wired in and {missing} is not; wire both, or none to leave out text encoders")
        request = Request(rank, energy, targets, custom_targets, conv_rank, norms_and_biases)
        done = extract(model, base, request, None if clip is None else (clip, base_clip))
        words = "\n".join([report(done, request), *remarks(model, base)])
        return io.NodeOutput(done.lora, words, tensor_of(picture(done)))


def _advanced() -> list[io.Input]:
    return [
        io.Combo.Input(
            "targets",
            options=list(CHOICES),
            default=EVERYTHING,
            optional=True,
            advanced=True,
            tooltip=(
                "Which of the model's layers are in the LoRA. The choices by name are those of Bespoke Train LoRA and "
                "take linear layers; what they leave out is named in the report."
            ),
        ),
        io.String.Input(
            "custom_targets",
            default="",
            optional=True,
            advanced=True,
            tooltip=(
                "For targets = custom: layer names with *, separated by commas, such as *attn2.to_k, *ff*. Each may "
                "have its own rank, *attn2.to_k : 16; the last one that fits a layer counts."
            ),
        ),
        io.Int.Input(
            "conv_rank",
            default=AS_RANK,
            min=AS_RANK,
            max=MOST_RANK,
            optional=True,
            advanced=True,
            tooltip=(
                "The rank of convolutions larger than 1x1, which make most of the file in a U-Net. -1 is the same as "
                "rank, 0 leaves them out."
            ),
        ),
        io.Boolean.Input(
            "norms_and_biases",
            default=False,
            optional=True,
            advanced=True,
            tooltip=(
                "Also write what changed and is no matrix, as whole differences. ComfyUI and LyCORIS read them; other "
                "programs refuse them or leave them out."
            ),
        ),
    ]
