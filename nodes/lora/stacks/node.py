"""LoRA: a stack from a training's files."""

from __future__ import annotations

from comfy_api.latest import io

from ....training.errors import InputError
from ...bridge.errors import name_node_in_errors
from ...bridge.files.writing import models_folder
from ...bridge.types import Run
from ..files import saved_on_the_way
from ..injection.request import STRENGTH
from ..stack import LoraStack, read_stack, stack_input


class LoraStackFromRun(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="BespokeLoraStackFromRun",
            display_name="Bespoke LoRA Stack from Run",
            category="Bespoke/lora",
            description=(
                "Puts a file that a training saved on the way into a LoRA stack, for the loaders of other packs and "
                "for Bespoke Inject LoRA."
            ),
            search_aliases=["lora stack", "lora stacker", "checkpoint of a training", "epoch"],
            inputs=[
                Run.Input("run", tooltip="The run output of Bespoke Train LoRA, with save_every above 0."),
                stack_input("A stack that this one is added to."),
                io.Int.Input(
                    "step",
                    default=0,
                    min=0,
                    max=10_000_000,
                    tooltip="The step whose file is taken, a multiple of save_every. 0 takes the last one.",
                ),
                io.Float.Input(
                    "strength_model",
                    default=1.0,
                    **STRENGTH,
                    step=0.05,
                    tooltip="How strongly the stack's loader applies it to the model: 1 is as trained.",
                ),
                io.Float.Input(
                    "strength_clip",
                    default=1.0,
                    **STRENGTH,
                    step=0.05,
                    tooltip="How strongly it is applied to the text encoder.",
                ),
            ],
            outputs=[
                LoraStack.Output(
                    "lora_stack",
                    display_name="lora_stack",
                    tooltip="The stack: a list of (file, model strength, text encoder strength).",
                ),
                io.String.Output("report", display_name="report", tooltip="What is in the stack, a line each."),
            ],
        )

    @classmethod
    @name_node_in_errors
    def execute(cls, run, step=0, strength_model=1.0, strength_clip=1.0, lora_stack=None) -> io.NodeOutput:
        saved = dict(saved_on_the_way(run.id))
        if not saved:
            raise InputError(
                f"the run {run.id} saved no LoRA on the way: its files would be in the loras folder under "
                "bespoke/runs; train with save_every above 0"
            )
        if step and step not in saved:
            steps = ", ".join(str(one) for one in saved)
            raise InputError(
                f"step is {step}, and the run saved files at {steps}; choose one of them, or 0 for the last"
            )
        path = saved[step or max(saved)]
        added = (str(path.relative_to(models_folder("loras"))), strength_model, strength_clip)  # as ComfyUI lists it
        entries = [*read_stack(lora_stack), *read_stack([added])]
        lines = [f"{e.name}: model {e.strength_model:g}, text encoder {e.strength_clip:g}." for e in entries]
        return io.NodeOutput([*(lora_stack or []), added], "\n".join(lines))
