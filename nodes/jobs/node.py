"""The nodes that write a training into a job folder instead of running it; `command.py` runs it on any machine."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from comfy_api.latest import io

from ..bridge.dataset.encoded import EncodedDataset
from ..bridge.errors import name_node_in_errors
from ..bridge.runs.samples import SamplerSettings, settings_in
from ..bridge.trainer import Models
from ..bridge.types import graph_of
from ..images.wired import training_set
from ..lora.slider import node as slider
from ..lora.slider.dataset import encode_slider_dataset
from ..lora.slider.technique import SliderTechnique
from ..lora.training import node as lora
from ..lora.training.few_steps import DEFAULT_SAMPLER
from ..lora.training.technique import LoraTechnique, settings_with_adapter
from ..lora.training.technique import encode_dataset as encode_lora_dataset
from ..textual_inversion import node as word
from ..textual_inversion.technique import TextualInversionTechnique
from ..textual_inversion.technique import encode_dataset as encode_word_dataset
from ..word_and_lora import node as word_and_lora
from ..word_and_lora.technique import WordAndLoraTechnique
from ..word_and_lora.technique import encode_dataset as encode_word_and_lora_dataset
from .export import export_job, export_models, resolve_job_folder
from .job import JobContents

LORA_RESULT: Mapping[str, Any] = {"name": "", "key_format": "kohya", "dtype": "fp16"}  # how the file is written


def _schema(node_id: str, display_name: str, what: str, inputs: list[io.Input], last: str, folder: str) -> io.Schema:
    """last: the trainer's last input in version 0.1. `folder` comes after it and before those that were added since,
    since a saved graph knows a widget by its place.
    """
    at = next(i for i, known in enumerate(inputs) if known.id == last) + 1
    return io.Schema(
        node_id=node_id,
        display_name=display_name,
        category="Bespoke/jobs",
        description=(
            f"Writes {what} into a folder instead of doing it here: one command trains it on another machine, on as "
            "many GPUs as it has, and gives the same file."
        ),
        is_output_node=True,
        hidden=[io.Hidden.prompt, io.Hidden.extra_pnginfo],
        search_aliases=[
            "export job",
            "torchrun",
            "multi-GPU",
            "distributed training",
            "train on a server",
            "headless training",
        ],
        inputs=[
            *inputs[:at],
            io.String.Input(
                "folder",
                default=folder,
                optional=True,
                tooltip=(
                    "Where the job is written, below ComfyUI's output folder. A name that is taken gets a number; "
                    "nothing is overwritten."
                ),
            ),
            *inputs[at:],
        ],
        outputs=[
            io.String.Output(
                "folder", display_name="folder", tooltip="The job's folder: copy it to the machine that trains."
            ),
            io.String.Output(
                "report",
                display_name="report",
                tooltip="What the job holds, which model files it needs there, and the command that trains it.",
            ),
        ],
    )


def _export(
    graph: tuple[Any, Any],
    folder: str,
    models: Models,
    technique: str,
    settings: Mapping[str, Any],
    encode: Callable[[], EncodedDataset],
    result: Mapping[str, Any] = LORA_RESULT,
    default_sampler: SamplerSettings | None = None,
    notes: Callable[[], list[str]] = list,
) -> io.NodeOutput:
    """Write a job into `folder`. settings: of the training. encode: makes its data, once all else has been checked.

    notes: further lines of the report, asked for after `encode`.
    """
    wanted = resolve_job_folder(folder)
    exported = export_models(models, technique, settings)
    samples = settings_in(graph[0], default_sampler)
    contents = JobContents(technique, settings, encode(), exported, result, samples, graph)
    path, report = export_job(wanted, contents)
    report = "\n".join([report, *notes()])
    return io.NodeOutput(str(path), report, ui={"text": [report]})


class ExportLoraJob(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return _schema(
            "BespokeExportLoraJob",
            "Bespoke Export LoRA Job",
            "a LoRA training",
            lora.trainer_inputs(),
            "text_encoder_lr",
            "bespoke/jobs/lora",
        )

    @classmethod
    @name_node_in_errors
    def execute(cls, model, clip, vae, images, folder="bespoke/jobs/lora", **settings) -> io.NodeOutput:
        request, data = lora.request_from_inputs(settings | {"images": images})
        models = Models(model, clip, vae)
        return _export(
            graph_of(cls.hidden),
            folder,
            models,
            LoraTechnique.name,
            settings_with_adapter(request, data.training_adapter),
            lambda: encode_lora_dataset(models, data, request),
            default_sampler=DEFAULT_SAMPLER if data.training_adapter else None,
        )


class ExportSliderJob(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return _schema(
            "BespokeExportSliderJob",
            "Bespoke Export Slider Job",
            "the training of a slider",
            slider.trainer_inputs(),
            "compile",
            "bespoke/jobs/slider",
        )

    @classmethod
    @name_node_in_errors
    def execute(cls, model, clip, vae=None, folder="bespoke/jobs/slider", **settings) -> io.NodeOutput:
        request, data = slider.request_from_inputs(settings)
        models = Models(model, clip, vae)
        return _export(
            graph_of(cls.hidden),
            folder,
            models,
            SliderTechnique.name,
            request.settings(),
            lambda: encode_slider_dataset(models, data, request),
            notes=lambda: slider.how_matched_of(data),
        )


class ExportTextualInversionJob(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return _schema(
            "BespokeExportTextualInversionJob",
            "Bespoke Export Textual Inversion Job",
            "a textual inversion",
            word.trainer_inputs(),
            "resume",
            "bespoke/jobs/word",
        )

    @classmethod
    @name_node_in_errors
    def execute(cls, model, clip, vae, images, folder="bespoke/jobs/word", **settings) -> io.NodeOutput:
        request = word.request_from_inputs(settings)
        models = Models(model, clip, vae)
        return _export(
            graph_of(cls.hidden),
            folder,
            models,
            TextualInversionTechnique.name,
            request.settings(),
            lambda: encode_word_dataset(models, training_set(images), request),
            {"name": "" if request.names else request.words[0].name, "format": "comfy"},
        )


class ExportWordAndLoraJob(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return _schema(
            "BespokeExportWordAndLoraJob",
            "Bespoke Export Word and LoRA Job",
            "a training of a word and a LoRA",
            word_and_lora.trainer_inputs(),
            word_and_lora.trainer_inputs()[-1].id,
            "bespoke/jobs/word-and-lora",
        )

    @classmethod
    @name_node_in_errors
    def execute(cls, model, clip, vae, images, folder="bespoke/jobs/word-and-lora", **settings) -> io.NodeOutput:
        request, data = word_and_lora.request_from_inputs(settings | {"images": images})
        models = Models(model, clip, vae)
        return _export(
            graph_of(cls.hidden),
            folder,
            models,
            WordAndLoraTechnique.name,
            settings_with_adapter(request, data.training_adapter),
            lambda: encode_word_and_lora_dataset(models, data, request),
            default_sampler=DEFAULT_SAMPLER if data.training_adapter else None,
        )
