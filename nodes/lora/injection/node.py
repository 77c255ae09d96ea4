"""LoRA: load and inject."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ...bridge.errors import name_node_in_errors
from ...bridge.files.listing import stamp_of_choice
from ...bridge.running_prompt import is_wired
from ..bundle import words_to_say
from ..file_input import is_chosen, lora_choices, name_input, read_chosen, wired_or_chosen
from ..inspection.describe import describe
from ..stack import UNWIRED, read_stack, stack_input
from .request import MODES, STRENGTH, Request
from .scope import Scope, parse_blocks
from .several import inject_all, scoped_sum
from .timing import Timing, parse_keyframes

LORA_SLOT = 4  # the number of the output `lora`


class LoadLora(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="BespokeLoadLora",
            display_name="Bespoke Load LoRA",
            category="Bespoke/lora",
            description=(
                "Reads a LoRA file and says what is in it. Nothing is applied yet: wire it into Bespoke Inject LoRA."
            ),
            search_aliases=["load lora", "lora file", "trigger words"],
            inputs=[
                io.Combo.Input(
                    "lora_name", options=lora_choices(), tooltip="A .safetensors file in ComfyUI's loras folder."
                ),
                name_input(),
            ],
            outputs=[
                io.LoraModel.Output("lora", display_name="lora", tooltip="The LoRA's factors."),
                io.String.Output(
                    "trigger_words",
                    display_name="trigger_words",
                    tooltip="The words that call it, from the file's metadata, and those it carries; empty for none.",
                ),
                io.String.Output(
                    "report",
                    display_name="report",
                    tooltip="Format, base, rank, alpha, which projections and blocks it adapts, in words.",
                ),
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, lora_name, **inputs):
        return stamp_of_choice("loras", lora_name, "name" in inputs)

    @classmethod
    @name_node_in_errors
    def execute(cls, lora_name, name=None) -> io.NodeOutput:
        lora = read_chosen(lora_name, name)
        return io.NodeOutput(lora, words_to_say([lora]), describe(lora))


class InjectLora(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        advanced: dict[str, Any] = {"optional": True, "advanced": True}

        def strength_of(name: str, what: str):
            return io.Float.Input(
                name,
                default=1.0,
                **STRENGTH,
                step=0.05,
                tooltip=f"Strength of the {what} part, times strength_model. 0 leaves it out.",
                **advanced,
            )

        return io.Schema(
            node_id="BespokeInjectLora",
            display_name="Bespoke Inject LoRA",
            category="Bespoke/lora",
            description=(
                "Applies a LoRA to the model: as strongly as you say, in the projections, blocks and part of the "
                "denoising you choose. The base stays as it is."
            ),
            search_aliases=[
                "apply lora",
                "lora loader",
                "load lora",
                "lora strength",
                "lora block weight",
                "lora schedule",
                "lora bypass",
            ],
            inputs=[
                io.Model.Input("model", tooltip="The model to adapt."),
                io.Combo.Input(
                    "lora_name",
                    options=lora_choices(),
                    tooltip="A file in ComfyUI's loras folder. Not used when a lora is wired in.",
                ),
                io.Float.Input(
                    "strength_model",
                    default=1.0,
                    **STRENGTH,
                    step=0.05,
                    tooltip="How strongly the LoRA moves the model: 1 is as trained, 0 nothing, below 0 away from it.",
                ),
                io.Clip.Input(
                    "clip", optional=True, tooltip="The text encoder, for LoRAs that were trained on it too."
                ),
                io.Float.Input(
                    "strength_clip",
                    default=1.0,
                    **STRENGTH,
                    step=0.05,
                    tooltip="How strongly the LoRA moves the text encoder.",
                    **advanced,
                ),
                io.LoraModel.Input("lora", optional=True, tooltip="A LoRA on the wire; it wins over lora_name."),
                strength_of("query", "query (where the picture asks)"),
                strength_of("key", "key (what words answer to)"),
                strength_of("value", "value (what words bring in)"),
                strength_of("out", "output (how it is written back)"),
                io.String.Input(
                    "blocks",
                    default="",
                    tooltip=(
                        "Which blocks, each with a strength after a colon: down.1, mid, up.*:0.5. Empty is all; blocks "
                        "that are not named get nothing; of two that fit the later counts. down.0 is the finest "
                        "resolution on the way in, mid the coarsest, up.0 the coarsest on the way out; in.4 and out.7 "
                        "are single blocks by the checkpoint's numbers."
                    ),
                    **advanced,
                ),
                io.Float.Input(
                    "start_percent",
                    default=0.0,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip=(
                        "The share of the denoising after which it begins to act: 0 is all noise, 1 the finished "
                        "image. Early steps decide the layout."
                    ),
                    **advanced,
                ),
                io.Float.Input(
                    "end_percent",
                    default=1.0,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip="The share of the denoising after which it acts no more. Late steps decide the detail.",
                    **advanced,
                ),
                io.String.Input(
                    "keyframes",
                    default="",
                    tooltip=(
                        "Strengths on the way, times the others: 0:1, 0.5:0.3 is full up to half of the denoising, "
                        "then 0.3. Empty changes nothing."
                    ),
                    **advanced,
                ),
                io.Combo.Input(
                    "mode",
                    options=list(MODES),
                    default=MODES[0],
                    tooltip=(
                        "merge adds it to the weights when the model is loaded: as fast as the bare model. bypass "
                        "computes it beside the weights at every step: nothing to merge when a strength changes, a "
                        "little slower per step, right for quantised models."
                    ),
                    **advanced,
                ),
                io.Boolean.Input(
                    "partial",
                    default=False,
                    tooltip=(
                        "Off refuses a LoRA of which more than 5 % (of its squared change) has no place in this model. "
                        "On applies the rest of it, and the report names what is left out."
                    ),
                    **advanced,
                ),
                name_input(),
                io.Boolean.Input(
                    "use_range",
                    default=True,
                    tooltip=(
                        "A LoRA that was trained on a part of the schedule acts on that part alone, as its file says, "
                        "where start_percent is 0 and end_percent 1. Off lets it act at every step. Other files do not "
                        "change."
                    ),
                    **advanced,
                ),
                stack_input(
                    "Further LoRAs, applied after this one, each with its own strengths times strength_model and "
                    "strength_clip, and with the same projections, blocks, range and mode."
                ),
                io.Mask.Input(
                    "mask",
                    optional=True,
                    tooltip=(
                        "Where in the picture the LoRA acts: 1 fully, 0 not at all. One mask, one for each picture of "
                        "the batch, or one for each frame of a video. Needs mode bypass. The text encoder's part "
                        "cannot be masked and is left out."
                    ),
                ),
            ],
            outputs=[
                io.Model.Output("model", display_name="model", tooltip="The model with the LoRA."),
                io.Clip.Output(
                    "clip",
                    display_name="clip",
                    tooltip=(
                        "The text encoder with the LoRA, knowing the words that the file carries; nothing when no clip "
                        "is wired in."
                    ),
                ),
                io.String.Output("report", display_name="report", tooltip="What was matched and what was not."),
                io.String.Output(
                    "trigger_words",
                    display_name="trigger_words",
                    tooltip="The words that call it, from the file's metadata, and those that it carries.",
                ),
                io.LoraModel.Output(
                    "lora",
                    display_name="lora",
                    tooltip=(
                        "The LoRA as the dials scope it, as a file of its own: strengths, projections and blocks are "
                        "folded in. For Save LoRA, Compose LoRAs and any node that takes a LoRA."
                    ),
                ),
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, lora_name, **inputs):
        stamp = stamp_of_choice("loras", lora_name, not inputs.keys().isdisjoint(("name", "lora_stack")))
        # With or without the lora output: what was made for the one is not handed on for the other.
        return f"{stamp}:lora" if is_wired(LORA_SLOT) else stamp

    @classmethod
    @name_node_in_errors
    def execute(
        cls,
        model,
        lora_name,
        strength_model,
        clip=None,
        strength_clip=1.0,
        lora=None,
        query=1.0,
        key=1.0,
        value=1.0,
        out=1.0,
        blocks="",
        start_percent=0.0,
        end_percent=1.0,
        keyframes="",
        mode=MODES[0],
        partial=False,
        name=None,
        use_range=True,
        lora_stack=UNWIRED,
        mask=None,
    ) -> io.NodeOutput:
        scope = Scope({"query": query, "key": key, "value": value, "out": out}, parse_blocks(blocks))
        timing = Timing(start_percent, end_percent, parse_keyframes(keyframes))
        request = Request(strength_model, strength_clip, scope, timing, mode, partial)
        stack = read_stack(lora_stack)
        own = lora_stack is UNWIRED or lora is not None or is_chosen(lora_name, name)
        loras = [(wired_or_chosen(lora_name, lora, name), request)] if own else []
        loras += [(one.lora(), request.times(one.strength_model, one.strength_clip)) for one in stack]
        new_model, new_clip, report = inject_all(model, clip, loras, use_range, mask)
        scoped = None
        if is_wired(LORA_SLOT):
            scoped, remarks = scoped_sum(model, clip, loras, use_range)
            remarks += [] if mask is None else ["A file holds no mask: the lora output is for the whole picture."]
            report = "\n".join([report, *remarks])
        return io.NodeOutput(new_model, new_clip, report, words_to_say(one for one, _ in loras), scoped)
