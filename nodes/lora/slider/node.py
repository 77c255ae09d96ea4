"""The node that trains a slider, or erases a concept."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from functools import partial
from typing import Any

from comfy_api.latest import io

from ....training import strength_range
from ....training.optimizers import check_optimizer
from ...bridge.errors import name_node_in_errors
from ...bridge.files import writing as storage
from ...bridge.runs.context import RunContext
from ...bridge.runs.samples import settings_in
from ...bridge.trainer import Models, train
from ...bridge.trainer_inputs import ADVANCED, config_of, seed_widget, widget
from ...bridge.types import Images, Run, graph_of, loss_output
from ...images.wired import training_set
from ..files import save_on_the_way
from ..named_lora import NamedLora
from ..training import node as lora
from .dataset import encode_slider_dataset
from .pairs import how_matched
from .request import MODES, SliderData, SliderRequest
from .technique import SliderTechnique

STEPS, LEARNING_RATE, GUIDANCE = 200, 2e-4, 0.5  # the defaults
# All noise levels alike: what tells both ends apart is decided at the noisy ones.
TIMESTEPS = "uniform"
# The trainer's inputs that mean the same here, in its order.
SHARED_ADVANCED = (
    *("targets", "custom_targets", "validation", "lr_schedule", "warmup_steps", "optimizer", "gradient_accumulation"),
    *("max_grad_norm", "loss_weighting", "timestep_sampling", "ema", "precision", "gradient_checkpointing"),
    *("save_every", "sample_every", "sample_prompt", "keep", "resume", "lora", "adapter", "lokr_factor", "rslora"),
    *("conv_rank", "rank_dropout", "module_dropout", "max_norm", "min_timestep", "max_timestep", "preserve_weight"),
    "compile",
)


def trainer_inputs() -> list[io.Input]:
    """The inputs of the trainer node and of the node that exports a job."""
    return [
        io.Model.Input(
            "model", tooltip="The model to train for, as it is on the wire: patches before this node count."
        ),
        io.Clip.Input("clip", tooltip="Encodes the prompts, at its own clip skip. It is not trained."),
        *_words(),
        widget("rank", "The width of the low-rank path. 4 to 8 is enough for a slider.", 4),
        widget("alpha", "The path's strength is alpha / rank. Equal to rank it is 1.", 4.0, step=0.5),
        widget(
            "learning_rate",
            (
                "The highest learning rate of the schedule, as in Bespoke Train LoRA. Too high: other things change "
                "with the slider. Too low: the slider moves little."
            ),
            LEARNING_RATE,
            step=1e-5,
        ),
        widget(
            "steps",
            "Optimiser steps. A step on words calls the model about 15 times for each of batch_size, on pairs 3 times.",
            STEPS,
        ),
        widget("batch_size", "Latents of words, or pairs of pictures, per step.", 2),
        seed_widget("Decides the noises, their levels and the order of pairs. The same seed gives the same LoRA."),
        widget(
            "guidance",
            (
                "How far strength 1 goes, as a multiple of the difference that the model itself makes between more and "
                "less. Higher: a stronger slider, and sooner other things that change with it."
            ),
            GUIDANCE,
            step=0.1,
        ),
        io.Int.Input(
            "resolution",
            default=512,
            min=64,
            max=4096,
            step=8,
            tooltip=(
                "The side in px of the latents that are made from words: what the model draws well, 512 for SD1.5, "
                "1024 for SDXL and later. With pictures their own sizes count instead."
            ),
        ),
        *_later(),
    ]


def _words() -> list[io.Input]:
    def text(name: str, default: str, tooltip: str, **more: Any) -> io.Input:
        return io.String.Input(name, default=default, tooltip=tooltip, **more)

    return [
        text(
            "target",
            "a person",
            "The prompt whose pictures change, such as 'a person'. With pictures: the prompt of all; empty takes their "
            "own captions.",
        ),
        text(
            "more",
            "an old person",
            "What strength 1 shows more of, such as 'an old person'. mode erase: what is drawn instead; empty is "
            "nothing in particular.",
        ),
        text(
            "less", "a young person", "What strength -1 shows more of, such as 'a young person'. mode erase: not read."
        ),
        text(
            "preserve",
            "",
            "What the slider must not change, a prompt a line, such as 'a man' and 'a woman' for a slider of age. Each "
            "is added to more and less, held to the model's own prediction, and measured in the report. Doubles the "
            "time of a step.",
            multiline=True,
        ),
    ]


def _later() -> list[io.Input]:
    known = {each.id: each for each in lora.trainer_inputs()}
    known["timestep_sampling"] = widget("timestep_sampling", default=TIMESTEPS, **ADVANCED)
    shared = [known[name] for name in SHARED_ADVANCED]
    for each in shared:
        each.optional, each.advanced = True, each.id != "lora"
    return [
        io.Combo.Input(
            "mode",
            options=list(MODES),
            default=MODES[0],
            optional=True,
            tooltip=(
                "slider: strengths above 0 are towards more, below 0 towards less. erase: at strength 1 the model no "
                "longer draws target."
            ),
        ),
        Images.Input(
            "positive_images",
            optional=True,
            tooltip=(
                "With negative_images, pairs of pictures instead of words: these are strength 1. Matched by name, or "
                "by order where no name is in both. 4 to 10 pairs that differ in one thing."
            ),
        ),
        Images.Input(
            "negative_images", optional=True, tooltip="The other pictures of the pairs: these are strength -1."
        ),
        io.Vae.Input(
            "vae",
            optional=True,
            tooltip="Encodes the pictures of pairs and draws sample images. Words alone need none.",
        ),
        *shared,
    ]


def request_from_inputs(values: Mapping[str, Any]) -> tuple[SliderRequest, SliderData]:
    """(request, data) of a node's inputs by name; those that are missing have the defaults of `SliderRequest`."""
    settings = {f.name: values[f.name] for f in fields(SliderRequest) if f.name in values}
    images = {name: values.get(f"{name}_images") for name in ("positive", "negative")}
    sets = {name: None if given is None else training_set(given) for name, given in images.items()}
    config = replace(
        config_of({"timestep_sampling": TIMESTEPS, **values}), score_pictures="off"
    )  # a loss of one picture says nothing of a pair
    return SliderRequest(config, **settings), SliderData(**sets, start=lora.lora_on_wire(values, "lora"))


def how_matched_of(data: SliderData) -> list[str]:
    """The line of the report on how the pictures of pairs were matched; none for a training on words."""
    return [how_matched(data.positive, data.negative)] if data.positive and data.negative else []


class TrainSlider(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="BespokeTrainSlider",
            display_name="Bespoke Train Slider",
            category="Bespoke/lora",
            description=(
                "Trains a LoRA whose strength is a slider between two ends, from words alone or from pairs of "
                "pictures; or one that erases what a prompt names."
            ),
            hidden=[io.Hidden.prompt, io.Hidden.extra_pnginfo],
            search_aliases=["concept slider", "slider lora", "erase concept", "ESD", "leco", "train slider"],
            inputs=trainer_inputs(),
            has_intermediate_output=True,  # what it showed comes again with a cached run
            outputs=[
                io.Model.Output("model", display_name="model", tooltip="The model with the slider at strength 1."),
                io.LoraModel.Output(
                    "lora",
                    display_name="lora",
                    tooltip="The slider, an ordinary LoRA: its strength in any loader is where the slider stands.",
                ),
                loss_output(),
                Run.Output(
                    "run",
                    display_name="run",
                    tooltip=(
                        "The record of the run: settings, losses, useful strengths. Bespoke Save LoRA writes it into "
                        "the file."
                    ),
                ),
                io.String.Output(
                    "report",
                    display_name="report",
                    tooltip=(
                        "What was trained, how steadily the slider moves, up to which strength, and what else changed."
                    ),
                ),
                io.Clip.Output("clip", display_name="clip", tooltip="The text encoder, passed through."),
            ],
        )

    @classmethod
    @name_node_in_errors
    def execute(cls, model, clip, vae=None, **inputs) -> io.NodeOutput:
        request, data = request_from_inputs(inputs)
        check_optimizer(request.train.optimizer, model.load_device)
        graph = graph_of(cls.hidden)  # (prompt, workflow)
        folder = storage.models_folder("loras") / "bespoke" / "runs"  # of the files that `save_every` writes
        models = Models(model, clip, vae)
        dataset = encode_slider_dataset(models, data, request)
        technique = SliderTechnique(request, models, dataset)
        context = RunContext(sampler=settings_in(graph[0]), save=partial(save_on_the_way, folder, graph=graph))
        result = train(technique, models, dataset, context)
        run = result.run
        learned = NamedLora(
            result.learned, run.id, run.info.part.metadata() | strength_range.metadata(run.useful_strengths)
        )
        patched, _ = lora.with_adapters(model, None, learned, request.adapter)
        notes = how_matched_of(data)
        return io.NodeOutput(
            patched,
            learned,
            {"loss": run.losses},
            run,
            "\n".join([technique.describe(run, learned), *notes]),
            clip,
            ui={"bespoke_run": [run.id]},
        )
