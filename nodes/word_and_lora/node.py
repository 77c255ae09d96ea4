"""The node that trains a word and a LoRA in one run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from functools import partial
from typing import Any

import torch
from comfy_api.latest import io
from torch import Tensor

from ...training.bundles import split_bundle
from ...training.optimizers import check_optimizer
from ...training.record import Run as RunRecord
from ..bridge.errors import name_node_in_errors
from ..bridge.files import writing as storage
from ..bridge.runs.context import RunContext
from ..bridge.runs.samples import settings_in
from ..bridge.trainer import Models, train
from ..bridge.trainer_inputs import ADVANCED, config_of, widget
from ..bridge.training_model.pseudo_word import clip_with_pseudo_word
from ..bridge.types import Embedding, Run, graph_of, loss_output, pictures_input
from ..lora.files import save_on_the_way
from ..lora.named_lora import NamedLora
from ..lora.training import node as lora
from ..lora.training.few_steps import DEFAULT_SAMPLER
from ..lora.training.request import LoraData
from ..textual_inversion import node as word
from ..textual_inversion.words import prompt_words
from .request import WordAndLoraRequest
from .technique import WordAndLoraTechnique, encode_dataset

# The word's inputs, each after the input of the LoRA trainer that it belongs to.
_AFTER = {
    "images": ("name", "init_text", "vectors"),
    "learning_rate": ("word_learning_rate",),
    "custom_targets": ("word_until", "init", "norm_limit", "encoders"),
}


def trainer_inputs() -> list[io.Input]:
    """The inputs of the trainer node and of the node that exports a job."""
    known = {one.id: one for one in (*word.trainer_inputs(), *lora.trainer_inputs())}
    own = {one.id: one for one in _own_inputs()}
    out: list[io.Input] = []
    for each in lora.trainer_inputs():
        out.append(own.get(each.id, each))
        out += [own.get(name) or known[name] for name in _AFTER.get(each.id, ())]
    return out


def _own_inputs() -> list[io.Input]:
    return [
        io.Clip.Input("clip", tooltip="The text encoder that learns the word, at its own clip skip."),
        pictures_input(
            "Pictures whose captions say {word} where the new word stands, such as 'a {word} on a table'. 5 to 20 for "
            "a subject, 50 to 200 for a style."
        ),
        widget(
            "word_learning_rate",
            (
                "The word's highest learning rate, on the schedule of the LoRA's. A word needs a far higher one than a "
                "LoRA: 1e-3 to 1e-2."
            ),
            5e-3,
            step=1e-4,
        ),
        widget(
            "word_until",
            (
                "The share of the steps in which the word learns; after them it stays as it is and the LoRA goes on "
                "alone. 1 trains both to the end, 0 leaves the word at init_text."
            ),
            1.0,
            step=0.05,
            **ADVANCED,
        ),
        widget(
            "sample_prompt",
            (
                "What the sample images show, a prompt a line; {word} is the new word. Empty takes the first picture's "
                "caption. --n, --w, --h, --d, --l, --s behind a prompt set its negative prompt, size, seed, cfg and "
                "steps, --f the frames of a film."
            ),
            **ADVANCED,
        ),
    ]


def request_from_inputs(values: Mapping[str, Any]) -> tuple[WordAndLoraRequest, LoraData]:
    """(request, data) of a node's inputs by name; see `request_from_inputs` of the LoRA's trainer."""
    settings = {f.name: values[f.name] for f in fields(WordAndLoraRequest) if f.name in values}
    return WordAndLoraRequest(config_of(values), **settings), lora.data_from_inputs(values)


class TrainWordAndLora(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="BespokeTrainWordAndLora",
            display_name="Bespoke Train Word and LoRA",
            category="Bespoke/lora",
            description=(
                "Trains a new word and the LoRA that draws it in one run, on captions that say {word}. The models stay "
                "as they are, bit for bit."
            ),
            hidden=[io.Hidden.prompt, io.Hidden.extra_pnginfo],
            search_aliases=["pivotal tuning", "word and lora", "train embedding and lora", "learn word with lora"],
            inputs=trainer_inputs(),
            has_intermediate_output=True,  # what it showed comes again with a cached run
            outputs=[
                io.Model.Output(
                    "model", display_name="model", tooltip="The model with the LoRA applied at strength 1."
                ),
                io.Clip.Output(
                    "clip",
                    display_name="clip",
                    tooltip="The text encoder, knowing the new word; with its part of the LoRA where it was trained.",
                ),
                io.LoraModel.Output(
                    "lora",
                    display_name="lora",
                    tooltip="The LoRA, which carries the word: Bespoke Save LoRA writes both into one file.",
                ),
                Embedding.Output(
                    "embedding",
                    display_name="embedding",
                    tooltip="The word's vectors under its name, for Bespoke Save LoRA and Bespoke Save Embedding.",
                ),
                io.String.Output(
                    "prompt_word", display_name="prompt_word", tooltip="embedding:NAME, to wire into a prompt."
                ),
                loss_output(),
                Run.Output("run", display_name="run", tooltip="The record of the run."),
                io.String.Output(
                    "report",
                    display_name="report",
                    tooltip="What was trained and how it went, with the words that the new one is near to.",
                ),
            ],
        )

    @classmethod
    @name_node_in_errors
    def execute(cls, model, clip, vae, images, **inputs) -> io.NodeOutput:
        request, data = request_from_inputs(inputs | {"images": images})
        check_optimizer(request.train.optimizer, model.load_device)
        graph = graph_of(cls.hidden)  # (prompt, workflow)
        folder = storage.models_folder("loras") / "bespoke" / "runs"  # of the files that `save_every` writes
        models = Models(model, clip, vae)
        dataset = encode_dataset(models, data, request)
        technique = WordAndLoraTechnique(request, models, dataset)
        default = DEFAULT_SAMPLER if data.training_adapter else None
        context = RunContext(sampler=settings_in(graph[0], default), save=partial(save_on_the_way, folder, graph=graph))
        result = train(technique, models, dataset, context)
        run = result.run
        made = _bundle_of(result.learned, run)
        patched, patched_clip = lora.with_adapters(
            model, clip if request.train_text_encoder else None, made, request.adapter
        )
        known = patched_clip or clip
        for name, vectors in made.words.items():
            known = clip_with_pseudo_word(
                known, name, {key: partial(torch.clone, each) for key, each in vectors.items()}
            )
        return io.NodeOutput(
            patched,
            known,
            made,
            {name: dict(vectors) for name, vectors in made.words.items()},
            prompt_words(request.word_names),
            {"loss": run.losses},
            run,
            technique.describe(run, result.learned),
            ui={"bespoke_run": [run.id]},
        )


def _bundle_of(learned: Mapping[str, Tensor], run: RunRecord) -> NamedLora:
    """The LoRA with its word, and with the part of the schedule that it was trained on."""
    layers, words = split_bundle(learned)
    return NamedLora(layers, run.id, run.info.part.metadata(), layer_names=run.info.names, words=words)
