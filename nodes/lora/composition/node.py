"""LoRA: compose."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ....training.errors import InputError
from ...bridge.drawing.image import tensor_of
from ...bridge.errors import name_node_in_errors
from ...bridge.files.listing import NO_FILE, stamp_of_choice
from ...bridge.types import grown_values
from ..files import as_named_lora
from ..stack import read_stack, stack_input
from .compose import compose, parse_strengths
from .heatmap import picture
from .methods import DENSITY, METHODS, MOST_RANK, How
from .ranks import KINDS, MOST_RATIO
from .source import Source

MOST = 26
_ADVANCED: dict[str, Any] = {"optional": True, "advanced": True}


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
                "Adds up several LoRAs into one, exactly or at a rank you choose, and shows where they interfere."
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
                    template=io.Autogrow.TemplatePrefix(one, prefix="lora", min=0, max=MOST),
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
                    tooltip=(
                        "0 keeps the exact sum, with the ranks added. Above 0 the nearest LoRA of that rank: a smaller "
                        "file that keeps the share of the energy which the report names. With one LoRA it makes that "
                        "one smaller."
                    ),
                    **_ADVANCED,
                ),
                stack_input("Further LoRAs, each with its own strengths, after those of the sockets."),
                io.Combo.Input(
                    "method",
                    options=list(METHODS),
                    default=METHODS[0],
                    tooltip=(
                        "sum adds the changes. balance adds them at strengths with which each LoRA has its own "
                        "effect in the sum, where a plain sum makes them stronger or weaker. ties keeps the largest "
                        "numbers of each and the mean of those that agree in sign; dare keeps some at random: both "
                        "are for LoRAs that interfere, and slower."
                    ),
                    **_ADVANCED,
                ),
                io.Float.Input(
                    "density",
                    default=0.5,
                    **DENSITY,
                    step=0.05,
                    tooltip="For ties and dare: the share of each LoRA's numbers that is kept in a layer.",
                    **_ADVANCED,
                ),
                io.Float.Input(
                    "energy",
                    default=0.0,
                    min=0.0,
                    max=MOST_RATIO,
                    step=0.01,
                    tooltip=(
                        "0 is off. Else each layer gets the least rank that keeps this share of its energy (the "
                        "squared singular values), such as 0.95, whatever rank says: a small file where a layer needs "
                        "little."
                    ),
                    **_ADVANCED,
                ),
                io.Combo.Input(
                    "energy_kind",
                    options=list(KINDS),
                    default=KINDS[0],
                    tooltip=(
                        "What energy means. energy: the share of the squared singular values. sv_fro: the share of the "
                        "Frobenius norm, the root of that. sv_ratio: how many times smaller than the largest singular "
                        "value the smallest may be, such as 20. The last two are kohya's."
                    ),
                    **_ADVANCED,
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
                        "does not overlap."
                    ),
                ),
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, **inputs):
        # Which files a stack names is known only when the node runs: any change in the loras folder counts.
        return stamp_of_choice("loras", NO_FILE, "lora_stack" in inputs)

    @classmethod
    @name_node_in_errors
    def execute(
        cls,
        loras: io.Autogrow.Type | None = None,
        strengths="",
        rank=0,
        lora_stack=None,
        method=METHODS[0],
        density=0.5,
        energy=0.0,
        energy_kind=KINDS[0],
    ) -> io.NodeOutput:
        wired = [as_named_lora(lora) for lora in grown_values(loras)]
        stack = read_stack(lora_stack)
        if not wired and not stack:
            raise InputError("no LoRA is wired in; wire in two or more, or a lora_stack")
        sources = [
            Source(lora, strength)
            for lora, strength in zip(wired, parse_strengths(strengths or "", len(wired)) if wired else [], strict=True)
        ]
        sources += [Source(one.lora(), one.strength_model, one.strength_clip) for one in stack]
        done = compose(sources, How(rank, method, density, energy, energy_kind))
        heatmap = picture(done, [source.lora.name for source in sources])
        return io.NodeOutput(done.lora, done.report, tensor_of(heatmap))
