"""The nodes of textual inversion: train, save, apply and inspect a word."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, fields
from functools import partial
from pathlib import Path
from typing import Any

import torch
from comfy_api.latest import io
from torch import Tensor

from ...training.config import check_choice
from ...training.embedding import ALL, ENCODERS, INITS
from ...training.errors import InputError
from ...training.stopping import ALL_STEPS
from ..bridge.errors import name_node_in_errors
from ..bridge.files import writing as storage
from ..bridge.files.listing import NO_FILE, safetensors_in, stamp_of_choice
from ..bridge.runs.context import RunContext
from ..bridge.runs.samples import settings_in
from ..bridge.trainer import Models, train
from ..bridge.trainer_inputs import ADVANCED, advanced, config_of, sample_prompt_problem, seed_widget, widget
from ..bridge.training_model.pseudo_word import clip_with_pseudo_word, not_from_files, text_encoders
from ..bridge.types import Embedding, Run, graph_of, loss_output, pictures_input
from ..images.wired import training_set
from .file_input import file_of
from .files import FORMATS, as_file, save_on_the_way
from .inspect import describe, fitting, neighbours, plot_all, read_embedding
from .names import check_name
from .request import PATIENT, STOPS, InversionRequest
from .technique import TextualInversionTechnique, encode_dataset
from .templates import TEMPLATES
from .words import Embedding as WordsOnWire
from .words import named_by, on_wire, prompt_words, words_of

PATIENCE = 5  # validations, a quarter of the run, without a new lowest validation loss end it; see `TrainConfig`


def trainer_inputs() -> list[io.Input]:
    """The inputs of the trainer node and of the node that exports a job."""
    return [
        io.Model.Input("model", tooltip="The diffusion model that judges the word. It stays frozen."),
        io.Clip.Input(
            "clip", tooltip="The text encoder that learns the word, at its own clip skip. Its weights stay frozen."
        ),
        io.Vae.Input("vae", tooltip="Encodes the pictures."),
        pictures_input(
            "3 to 8 pictures of one thing, or of one style: from Bespoke Image Folder or Bespoke Image Batch, or a "
            "plain IMAGE batch."
        ),
        io.String.Input(
            "name",
            default="my-word",
            multiline=True,
            tooltip=(
                "What prompts call it: embedding:NAME. Letters, digits, '-' and '_'. For several words a line each, "
                "with its own start and count of vectors where it differs: 'cat : a cat : 4'; the captions then say "
                "{cat}."
            ),
        ),
        io.String.Input(
            "init_text",
            default="",
            tooltip="A word or two near to what is learned, where the search begins: 'toy', 'watercolour'.",
        ),
        widget(
            "vectors",
            (
                "How many token places the word takes. 1 is enough for most things; more hold more detail and obey "
                "prompts less."
            ),
            1,
        ),
        widget("learning_rate", "The highest learning rate of the schedule.", 5e-3, step=1e-4),
        widget(
            "steps",
            "Optimiser steps. With held-out pictures the training stops by itself once their loss has turned.",
            300,
        ),
        widget("batch_size", default=2),
        seed_widget("Decides pictures, sentences, noise levels and noises. The same seed learns the same word."),
        io.Combo.Input(
            "init",
            options=list(INITS),
            default=INITS[0],
            tooltip="Begin at the words of init_text, at their average, or at noise of the vocabulary's length.",
            **ADVANCED,
        ),
        io.Combo.Input(
            "template",
            options=list(TEMPLATES),
            default=TEMPLATES[0],
            tooltip=(
                "The sentences around the word: for an object, for a style, or the pictures' own captions with {word} "
                "where it stands. negative learns from pictures that you do not want a word for negative prompts."
            ),
            **ADVANCED,
        ),
        *advanced(("validation", "lr_schedule", "warmup_steps", "gradient_accumulation", "loss_weighting")),
        widget(
            "norm_limit",
            (
                "The longest that a vector may grow, in lengths of the vocabulary's median word. Around 1 to 2 keeps "
                "the word obedient; 0 is no limit."
            ),
            0.0,
            step=0.1,
            **ADVANCED,
        ),
        *advanced(("precision", "sample_every")),
        widget(
            "sample_prompt",
            (
                "What the sample images show, a prompt a line; {word} is the new word. Empty shows 'a photo of "
                "{word}'. --n, --w, --h, --d, --l, --s behind a prompt set its negative prompt, size, seed, cfg and "
                "steps, --f the frames of a film."
            ),
            **ADVANCED,
        ),
        *advanced(("save_every", "keep", "resume", "score_pictures", "min_timestep", "max_timestep")),
        *advanced(("loss_type", "huber_c", "multires_noise", "ip_noise_gamma", "compile")),
        io.Combo.Input(
            "stop",
            options=list(STOPS),
            default=PATIENT,
            tooltip=(
                f"Whether the training may end before its last step. {PATIENT}: after {PATIENCE} validations, a "
                "quarter of the run, without a new lowest held-out loss. all steps: never. when validation turns: "
                "after two in a row that are higher than the lowest by more than noise, or ten without a new lowest. "
                "when nothing changes: also after five without a change beyond noise."
            ),
            **ADVANCED,
        ),
        io.Combo.Input(
            "encoders",
            options=list(ENCODERS),
            default=ALL,
            tooltip=(
                "Which of the model's text encoders learn the word. all: T5, Qwen, Gemma, Llama and Mistral too, which "
                "run in each step. CLIP only: CLIP-L, -G and -H alone, which is faster and says less to Flux and SD3."
            ),
            **ADVANCED,
        ),
    ]


def request_from_inputs(values: Mapping[str, Any]) -> InversionRequest:
    """The request of a node's inputs. Inputs that are missing have the defaults of `InversionRequest`."""
    own = {f.name: values[f.name] for f in fields(InversionRequest) if f.name in values}
    stop = own.get("stop", PATIENT)
    check_choice("stop", stop, STOPS)
    how = {"patience": PATIENCE, "stop": ALL_STEPS} if stop == PATIENT else {"patience": 0, "stop": stop}
    return InversionRequest(config_of({**values, **how}), **own)


def clip_with_words(clip, words: Mapping[str, Mapping[str, Tensor]]):
    """A clone of the CLIP that knows each of the words {name: {encoder: vectors}}."""
    for name, vectors in words.items():
        clip = clip_with_pseudo_word(clip, name, {key: partial(torch.clone, each) for key, each in vectors.items()})
    return clip


def check_names(prefix: str, embedding: WordsOnWire) -> dict[str, Mapping[str, Tensor]]:
    """{name that prompts say: {encoder: vectors}} of what is on the wire, by the widget `name`.

    Raises `InputError` for a name that prompts would misread.
    """
    return {check_name(name): vectors for name, vectors in named_by(prefix, embedding).items()}


class TrainTextualInversion(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="BespokeTrainTextualInversion",
            display_name="Bespoke Train Textual Inversion",
            category="Bespoke/textual inversion",
            description=(
                "Learns a new word for the text encoder from a few pictures. No weight of any model changes: what "
                "comes out is a vector that prompts can say."
            ),
            hidden=[io.Hidden.prompt, io.Hidden.extra_pnginfo],
            search_aliases=["textual inversion", "train embedding", "learn word", "pseudo-word", "concept"],
            inputs=trainer_inputs(),
            has_intermediate_output=True,  # what it showed comes again with a cached run
            outputs=[
                io.Clip.Output(
                    "clip", display_name="clip", tooltip="The text encoder, knowing the new word at once, with no file."
                ),
                Embedding.Output(
                    "embedding", display_name="embedding", tooltip="The word's vectors, for Bespoke Save Embedding."
                ),
                io.String.Output(
                    "prompt_word", display_name="prompt_word", tooltip="embedding:NAME, to wire into a prompt."
                ),
                loss_output(),
                Run.Output("run", display_name="run", tooltip="The record of the run."),
                io.String.Output(
                    "report", display_name="report", tooltip="What was learned: loss, length, the nearest words."
                ),
            ],
        )

    @classmethod
    def validate_inputs(cls, sample_prompt: str | None = None) -> bool | str:
        """Refuses a bad line when the graph is queued, before the nodes in front of this one have run."""
        return sample_prompt_problem(sample_prompt) or True

    @classmethod
    @name_node_in_errors
    def execute(cls, model, clip, vae, images, name, **settings) -> io.NodeOutput:
        request = request_from_inputs(settings | {"name": name})
        graph = graph_of(cls.hidden)
        folder = storage.models_folder("embeddings") / "bespoke" / "runs"  # of the files that `save_every` writes
        models = Models(model, clip, vae)
        dataset = encode_dataset(models, training_set(images), request)
        technique = TextualInversionTechnique(request, models, dataset)
        context = RunContext(sampler=settings_in(graph[0]), save=partial(save_on_the_way, folder, graph=graph))
        result = train(technique, models, dataset, context)
        run, embedding = result.run, on_wire(result.learned)
        names = [word.name for word in request.words]
        return io.NodeOutput(
            clip_with_words(clip, {n or names[0]: vectors for n, vectors in words_of(embedding).items()}),
            embedding,
            prompt_words(names),
            {"loss": run.losses},
            run,
            technique.describe(run, result.learned),
            ui={"bespoke_run": [run.id]},
        )


class SaveEmbedding(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="BespokeSaveEmbedding",
            display_name="Bespoke Save Embedding",
            category="Bespoke/textual inversion",
            description=(
                "Saves a learned word into ComfyUI's embeddings folder, where every prompt finds it as embedding:NAME."
            ),
            search_aliases=["save embedding", "save textual inversion", "export embedding"],
            is_output_node=True,
            hidden=[io.Hidden.prompt, io.Hidden.extra_pnginfo],
            inputs=[
                Embedding.Input("embedding", tooltip="From Bespoke Train Textual Inversion."),
                io.String.Input(
                    "name",
                    default="my-word",
                    tooltip=(
                        "The word and the file's name: prompts say embedding:NAME. Of several words each has a file, "
                        "NAME-word; empty keeps the words' own names."
                    ),
                ),
                Run.Input("run", optional=True, tooltip="The training's record, written into the file."),
                io.Boolean.Input(
                    "overwrite",
                    default=False,
                    tooltip="Off refuses a name that is taken. On replaces its file.",
                    **ADVANCED,
                ),
                io.Combo.Input(
                    "format",
                    options=list(FORMATS),
                    default=FORMATS[0],
                    tooltip="comfy uses ComfyUI's keys; a1111 a single nameless one, which both read (SD1.5 and SD2).",
                    **ADVANCED,
                ),
            ],
            outputs=[
                io.String.Output(
                    "prompt_word",
                    display_name="prompt_word",
                    tooltip=(
                        "embedding:NAME, once the file is there. Wire it into the prompt, so that it is read after "
                        "saving."
                    ),
                )
            ],
        )

    @classmethod
    @name_node_in_errors
    def execute(cls, embedding, name, run=None, overwrite=False, format="comfy") -> io.NodeOutput:
        named = check_names(name, embedding)
        folder = storage.models_folder("embeddings")
        for each in named:
            _check_free(folder, each, overwrite)
        for each, vectors in named.items():
            path = storage.resolve_inside(folder, f"{each}.safetensors")
            tensors, meta = as_file(each, vectors, run, format, graph_of(cls.hidden))
            try:
                storage.write_safetensors(path, tensors, meta, overwrite)
            except FileExistsError:
                raise InputError(
                    f"the name {each!r} is taken; choose another, or set overwrite to replace it"
                ) from None
        words = prompt_words(list(named))
        return io.NodeOutput(words, ui={"text": [f"saved as {words}"]})


def _check_free(folder: Path, name: str, overwrite: bool) -> None:
    """Raise `InputError` where a word of that name cannot be saved, before any of several is."""
    path = storage.resolve_inside(folder, f"{name}.safetensors")
    if path.is_dir():
        raise InputError(f"the name {name!r} is that of a folder; choose another")
    taken = sorted(
        other.relative_to(folder).as_posix()
        for other in folder.rglob("*")
        if other.suffix in (".safetensors", ".pt", ".bin")
        and other.stem == path.stem
        and other != path
        and other.is_file()
    )
    if taken:
        raise InputError(f"the name {name!r} would collide with {taken[0]}: prompts could mean either; choose another")
    if path.exists() and not overwrite:
        raise InputError(f"the name {name!r} is taken; choose another, or set overwrite to replace it")


class ApplyEmbedding(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="BespokeApplyEmbedding",
            display_name="Bespoke Apply Embedding",
            category="Bespoke/textual inversion",
            description=(
                "Gives a text encoder a learned word under a name, with no file: for trying a word, or two words under "
                "two names."
            ),
            search_aliases=["use embedding", "apply textual inversion", "embedding on the wire"],
            inputs=[
                io.Clip.Input(
                    "clip", tooltip="The text encoder. It stays as it is; the one that comes out knows the word."
                ),
                Embedding.Input("embedding", tooltip="The word's vectors, from Bespoke Train Textual Inversion."),
                io.String.Input(
                    "name",
                    default="my-word",
                    tooltip=(
                        "What prompts call it: embedding:NAME. It wins over a file of that name. Several words are "
                        "NAME-word; empty keeps their own names."
                    ),
                ),
            ],
            outputs=[
                io.Clip.Output("clip", display_name="clip", tooltip="The text encoder that knows the word."),
                io.String.Output(
                    "prompt_word", display_name="prompt_word", tooltip="embedding:NAME, to wire into a prompt."
                ),
            ],
        )

    @classmethod
    @name_node_in_errors
    def execute(cls, clip, embedding, name) -> io.NodeOutput:
        words = {each: fitting(each, vectors, clip) for each, vectors in check_names(name, embedding).items()}
        return io.NodeOutput(clip_with_words(clip, words), prompt_words(list(words)))


class InspectEmbedding(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="BespokeInspectEmbedding",
            display_name="Bespoke Inspect Embedding",
            category="Bespoke/textual inversion",
            description=(
                "Says what a learned word is near to in the text encoder's vocabulary, and how long its vectors are."
            ),
            search_aliases=["embedding info", "nearest words", "inspect textual inversion"],
            inputs=[
                io.Clip.Input("clip", tooltip="The text encoder that the word was learned for."),
                io.Combo.Input(
                    "embedding_name",
                    options=[NO_FILE, *safetensors_in("embeddings")],
                    tooltip=(
                        "A .safetensors file in ComfyUI's embeddings folder; others are not opened and not listed. Not "
                        "used when an embedding is wired in."
                    ),
                ),
                Embedding.Input("embedding", optional=True, tooltip="A word on the wire; it wins over embedding_name."),
                io.String.Input(
                    "name",
                    optional=True,
                    force_input=True,
                    tooltip=(
                        "A word's name as text, such as prompt_word of Bespoke Save Embedding; it wins over the list."
                    ),
                ),
            ],
            has_intermediate_output=True,  # what it showed comes again with a cached run
            outputs=[
                io.String.Output(
                    "report",
                    display_name="report",
                    tooltip="Nearest words and lengths of every vector, and the file's metadata.",
                ),
                io.Image.Output(
                    "plot",
                    display_name="plot",
                    tooltip="The nearest words of each vector and its length beside the vocabulary's.",
                ),
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, embedding_name, **inputs):
        return stamp_of_choice("embeddings", embedding_name, "name" in inputs)

    @classmethod
    @name_node_in_errors
    def execute(cls, clip, embedding_name, embedding=None, name=None) -> io.NodeOutput:
        if embedding is not None:
            words, meta, notes = words_of(embedding), {}, []
        else:
            name, path = file_of(embedding_name if name is None else name)
            vectors, meta, notes = read_embedding(path, clip)
            words = {name: vectors}
        reason = not_from_files(clip, text_encoders(clip))
        if reason:
            notes = [*notes, f"Prompts read it through Bespoke Apply Embedding only: {reason}."]
        shown = {each or "the word on the wire": vectors for each, vectors in words.items()}
        near = {each: neighbours(fitting(each, vectors, clip), clip) for each, vectors in shown.items()}
        return io.NodeOutput(
            "\n".join(describe(each, found, meta, notes) for each, found in near.items()),
            plot_all(near),
            ui={"bespoke_words": [asdict(one) for found in near.values() for one in found]},
        )
