"""The node that draws a LoRA at several steps and strengths."""

from __future__ import annotations

from typing import Any

import comfy.samplers
from comfy_api.latest import io
from torch import Tensor

from ....training.errors import InputError
from ....training.images import ImageSet
from ....training.record import Run as Record
from ...bridge.dataset.cache import key_of
from ...bridge.errors import name_node_in_errors
from ...bridge.trainer import Models
from ...bridge.types import Images, Run
from ...images.wired import training_set
from .cells import Cells, Sampling, loss_cache
from .losses import Predictions, Score, predictions_on, score_beside
from .plan import Column, Plan, Row, columns_of, make_plan, trigger_of
from .report import report
from .sheet import draw

MOST = 26
MAX_RESOLUTION = 16384  # px: of Empty Latent Image


def _inputs() -> list[io.Input]:
    return [
        io.Model.Input("model", tooltip="The model that the LoRAs were trained on, without them."),
        io.Clip.Input("clip", tooltip="The text encoder, without a LoRA."),
        io.Vae.Input("vae", tooltip="Decodes the pictures."),
        Run.Input(
            "run",
            optional=True,
            tooltip=(
                "The run output of Bespoke Train LoRA: the files that it saved on the way (save_every) are the "
                "columns, by their steps."
            ),
        ),
        io.Autogrow.Input(
            "loras",
            template=io.Autogrow.TemplatePrefix(
                io.LoraModel.Input("lora", tooltip="A LoRA from a loader or a trainer; it is one more column."),
                prefix="lora",
                min=0,
                max=MOST,
            ),
            optional=True,
            tooltip="Further columns. A further socket appears when this one is wired.",
        ),
        io.String.Input(
            "strengths",
            default="0.6, 0.8, 1",
            tooltip="The rows: how strongly each LoRA is applied, to the model and to the text encoder.",
        ),
        io.String.Input(
            "prompts",
            default="",
            multiline=True,
            tooltip=(
                "One a line; each is a block of the grid. Empty takes the LoRA's trigger words. A prompt with them "
                "gets a last row without them: where that row differs from the first column, the LoRA has leaked."
            ),
        ),
        *_sampling_inputs(),
        Images.Input(
            "images",
            optional=True,
            tooltip=(
                "Pictures that were not trained on, with captions: each LoRA's loss on them, and how far it moves "
                "prompts without the trigger (leak), are written under its pictures, the lowest loss in darker letters."
            ),
        ),
    ]


def _sampling_inputs() -> list[io.Input]:
    """Those of KSampler and Empty Latent Image."""
    return [
        io.String.Input("negative", default="", multiline=True, tooltip="The negative prompt of every picture."),
        io.Int.Input("steps", default=20, min=1, max=10000, tooltip="Denoising steps of a picture, as in KSampler."),
        io.Float.Input(
            "cfg", default=8.0, min=0.0, max=100.0, step=0.1, round=0.01, tooltip="Guidance, as in KSampler."
        ),
        io.Combo.Input(
            "sampler_name", options=comfy.samplers.KSampler.SAMPLERS, tooltip="The sampler, as in KSampler."
        ),
        io.Combo.Input(
            "scheduler", options=comfy.samplers.KSampler.SCHEDULERS, tooltip="The noise schedule, as in KSampler."
        ),
        io.Int.Input(
            "seed",
            default=0,
            min=0,
            max=2**64 - 1,
            control_after_generate=False,
            tooltip="The seed of every picture, so that only the LoRA and the strength differ.",
        ),
        io.Int.Input(
            "width",
            default=512,
            min=16,
            max=MAX_RESOLUTION,
            step=8,
            tooltip="The width of a picture, in pixels: 512 is usual for SD1.5, 1024 for SDXL and newer models.",
        ),
        io.Int.Input(
            "height", default=512, min=16, max=MAX_RESOLUTION, step=8, tooltip="The height of a picture, in pixels."
        ),
    ]


class LoraSweep(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="BespokeLoraSweep",
            display_name="Bespoke LoRA Sweep",
            category="Bespoke/compare",
            description=(
                "Draws the same pictures with a LoRA after several numbers of steps and at several strengths, as one "
                "grid, so that you see which file and which strength to use. What was drawn before is not drawn again."
            ),
            search_aliases=["xy plot", "lora strength test", "compare loras", "lora grid", "epoch comparison"],
            inputs=_inputs(),
            outputs=[
                io.Image.Output(
                    "grid",
                    display_name="grid",
                    tooltip="LoRAs across, strengths down, one block a prompt; the first column is without a LoRA.",
                ),
                io.String.Output(
                    "report",
                    display_name="report",
                    tooltip=("How many pictures were drawn and how many were kept from before, and the losses."),
                ),
            ],
        )

    @classmethod
    @name_node_in_errors
    def execute(
        cls, model, clip, vae, strengths, prompts, negative, run=None, loras=None, images=None, **sampling: Any
    ) -> io.NodeOutput:
        if run is not None and not isinstance(run, Record):
            raise InputError(f"a {type(run).__name__} is no run; wire in the run output of Bespoke Train LoRA")
        columns = columns_of(run, loras)
        trigger = trigger_of(run, columns)
        plan = make_plan(columns, strengths, prompts, trigger)
        scored = training_set(images) if images is not None else None
        cells = Cells(Models(model, clip, vae), Sampling(negative, **sampling), plan.cells)
        pictures, scores = _fill(plan, cells, scored, trigger)
        return io.NodeOutput(draw(plan, pictures, scores), report(plan, cells, scores))


def _fill(
    plan: Plan, cells: Cells, images: ImageSet | None, trigger: str
) -> tuple[dict[tuple[int, Row, Column], Tensor], dict[tuple[str, float], Score]]:
    """(pictures, scores): the LoRA changes least often, since each change loads the model anew."""
    pictures, scores = dict[tuple[int, Row, Column], Tensor](), dict[tuple[str, float], Score]()
    base: Predictions | None = None
    strengths = sorted({row.strength for block in plan.blocks for row in block.rows})
    for column in plan.columns:
        for strength in strengths if column.lora is not None else [0.0]:
            drawn = dict[tuple[int, str], Tensor]()
            for number, block in enumerate(plan.blocks):
                for row in block.rows:
                    if column.lora is None or row.strength == strength:
                        if (number, row.prompt) not in drawn:
                            drawn[number, row.prompt] = cells.picture(column, strength, row.prompt)
                        pictures[number, row, column] = drawn[number, row.prompt]
            if images is not None:
                base = base or _base(cells, images, trigger)
                scores[column.name, strength] = _score(cells, images, trigger, base, column, strength)
    return pictures, scores


def _base(cells: Cells, images: ImageSet, trigger: str) -> Predictions:
    """What the model without a LoRA predicts, computed now where it is not kept."""
    key = key_of(cells.reading, "base", images.fingerprint, trigger)
    return loss_cache.get(key, lambda: predictions_on(images, trigger, cells.models))


def _score(cells: Cells, images: ImageSet, trigger: str, base: Predictions, column: Column, strength: float) -> Score:
    """The loss and leak of a LoRA at a strength. base: what the model without it predicts. Scores are kept."""
    if column.lora is None or strength == 0.0:
        return Score(base.loss)
    return loss_cache.get(
        cells.key(column, strength, "score", images.fingerprint, trigger),
        lambda: score_beside(base, images, trigger, Models(*cells.patched(column, strength), cells.models.vae)),
    )
