"""The nodes that train and save a LoRA."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any

import comfy.sd
from comfy_api.latest import io
from torch import Tensor

from ....training.adapters import ADAPTERS
from ....training.errors import InputError
from ....training.formats import DTYPES, KEY_FORMATS
from ....training.layer_names.parts import layer_and_part
from ....training.optimizers import check_optimizer
from ....training.record import Run as RunRecord
from ...bridge.errors import name_node_in_errors
from ...bridge.evidence.kept import write_preview
from ...bridge.files import writing as storage
from ...bridge.models import TARGETS
from ...bridge.models.second_picture import AUTO, SOURCE_ENCODINGS
from ...bridge.runs.context import RunContext
from ...bridge.runs.samples import settings_in
from ...bridge.runs.store import folder_of_run
from ...bridge.trainer import Models, train
from ...bridge.trainer_inputs import (
    ADVANCED,
    TOOLTIPS,
    advanced,
    config_of,
    sample_prompt_problem,
    seed_widget,
    validation_images,
    widget,
)
from ...bridge.types import Embedding, Images, Run, graph_of, loss_output, pictures_input
from ...images.wired import training_set
from ..bundle import with_words
from ..files import as_file, as_named_lora, save_on_the_way
from ..injection.part import inject_on_its_part, limited_to_part
from ..injection.request import Request
from ..injection.timing import Timing
from ..match import match
from ..named_lora import NamedLora
from .few_steps import DEFAULT_SAMPLER
from .request import LoraData, LoraRequest
from .technique import LoraTechnique, encode_dataset


def trainer_inputs() -> list[io.Input]:
    """The inputs of the trainer node and of the node that exports a job."""
    return [
        io.Model.Input(
            "model", tooltip="The model to train for, as it is on the wire: patches and shifts before this node count."
        ),
        io.Clip.Input(
            "clip", tooltip="Encodes the captions, at its own clip skip. It is trained only with train_text_encoder."
        ),
        io.Vae.Input("vae", tooltip="Encodes the pictures."),
        pictures_input(
            "From Bespoke Image Folder or Bespoke Image Batch; of a plain IMAGE batch every caption is empty. 5 to 20 "
            "pictures for a subject, 50 to 200 for a style."
        ),
        io.Combo.Input(
            "targets",
            options=list(TARGETS),
            default=TARGETS[0],
            tooltip=(
                "Which layers learn. Cross-attention (W_Q, W_K, W_V, W_out) ties words to looks and is the smallest; "
                "attention and feed-forward learn more of the look itself and over-fit sooner. style blocks and "
                "content blocks are the two of SDXL that hold these (B-LoRA); train both and use one."
            ),
        ),
        widget(
            "rank",
            (
                "The width of the low-rank path. 4 to 8 for a subject, 16 to 32 for a style. Doubles the file when "
                "doubled."
            ),
            8,
        ),
        widget(
            "alpha",
            "The path's strength is alpha / rank. Equal to rank it is 1; half of it learns half as fast.",
            8.0,
            step=0.5,
        ),
        widget(
            "learning_rate",
            (
                "The highest learning rate of the schedule, for the factor that starts at random; the other learns 16 "
                "times as fast (LoRA+). Too high: garbled images within a hundred steps. Too low: nothing changes. "
                "Prodigy finds the rate itself: leave this as it is, or type 0.1 to 1, a factor of what it finds."
            ),
            1e-4,
            step=1e-5,
        ),
        widget("steps", default=400),
        widget("batch_size", default=4),
        seed_widget(
            "Decides the order of pictures, the noise levels and the noises. The same seed gives the same LoRA."
        ),
        io.String.Input(
            "custom_targets",
            default="",
            tooltip=(
                "For targets = custom: layer names with *, separated by commas, such as *attn2.to_k, *attn2.to_v. Each "
                "may have its own rank and alpha, *attn2.to_k : 16 : 8; the last one that fits a layer counts."
            ),
            **ADVANCED,
        ),
        widget("validation", **ADVANCED),
        validation_images(),
        *advanced(
            (
                "lr_schedule",
                "warmup_steps",
                "optimizer",
                "gradient_accumulation",
                "max_grad_norm",
                "loss_weighting",
                "timestep_sampling",
                "noise_offset",
                "caption_dropout",
                "ema",
                "precision",
                "gradient_checkpointing",
                "save_every",
                "sample_every",
                "sample_prompt",
                "keep",
                "resume",
            )
        ),
        io.LoraModel.Input(
            "lora",
            optional=True,
            tooltip="A LoRA to go on from, of the same rank and targets. Its numbers are where this training begins.",
        ),
        Images.Input(
            "prior_images",
            optional=True,
            tooltip=(
                "Pictures of what must not change (of the class that the subject belongs to): trained beside the "
                "others, with their own captions."
            ),
        ),
        widget("prior_weight", **ADVANCED),
        io.Boolean.Input(
            "train_text_encoder",
            default=False,
            tooltip=(
                "Trains adapters on the text encoder's attention too. Learns new words faster and forgets old ones "
                "sooner."
            ),
            **ADVANCED,
        ),
        widget(
            "text_encoder_lr",
            (
                "The text encoder's own learning rate. 0 takes learning_rate as it is, which is usually too much: type "
                "a tenth of it. As for the model, the factor that starts at zero learns 16 times as fast."
            ),
            0.0,
            step=1e-6,
            **ADVANCED,
        ),
        *_adapter_widgets(),
        *advanced(("score_pictures",)),
        *_regularisation_widgets(),
        widget(
            "min_timestep",
            f"{TOOLTIPS['min_timestep']} Bespoke Inject LoRA then applies the LoRA at these levels only.",
            **ADVANCED,
        ),
        *advanced(("max_timestep",)),
        *advanced(("loss_type", "huber_c", "multires_noise", "ip_noise_gamma")),
        *_training_adapter_inputs(),
        *_preserve_widgets(),
        *advanced(("compile", "stop")),
        io.Combo.Input(
            "source_encoding",
            options=list(SOURCE_ENCODINGS),
            default=AUTO,
            tooltip=(
                "For pairs: how the model is given the source. auto: by ComfyUI's node for the model; for "
                "Qwen-Image-Edit that of Edit Plus (2509 and later). reference latent: ReferenceLatent alone. Qwen "
                "edit: the node of the first Qwen-Image-Edit."
            ),
            **ADVANCED,
        ),
    ]


def _adapter_widgets() -> list[io.Input]:
    return [
        io.Combo.Input(
            "adapter",
            options=list(ADAPTERS),
            default="LoRA",
            tooltip=(
                "What learns beside each layer. LoRA: two narrow factors, read by every program. DoRA: a LoRA whose "
                "outputs are scaled one by one; slower. LoKr: a Kronecker product, the smallest file. LoHa: a product "
                "of two LoRAs, of higher rank at equal size. Start with LoRA."
            ),
            **ADVANCED,
        ),
        io.Int.Input(
            "lokr_factor",
            default=-1,
            min=-1,
            max=1024,
            tooltip=(
                "For adapter = LoKr: into how many blocks a layer is divided. -1 takes the smallest file; 4 to 16 "
                "learn more and need more."
            ),
            **ADVANCED,
        ),
        io.Boolean.Input(
            "rslora",
            default=False,
            tooltip=(
                "The strength is alpha / sqrt(rank) instead of alpha / rank (rsLoRA), so that a high rank learns as "
                "fast as a low one."
            ),
            **ADVANCED,
        ),
    ]


def _regularisation_widgets() -> list[io.Input]:
    return [
        widget(
            "conv_rank",
            (
                "For U-Nets (SD1.5, SDXL): the rank of adapters on the 3x3 convolutions too (LoCon), about half of "
                "rank; 1x1 ones get rank. Learns textures and line work better, with a larger file. 0 is off."
            ),
            0,
            **ADVANCED,
        ),
        widget(
            "rank_dropout",
            (
                "The share of ranks that is left out for each training picture (0.1 is usual), which delays "
                "over-fitting and slows learning a little. 0 is off."
            ),
            0.0,
            step=0.05,
            **ADVANCED,
        ),
        widget(
            "module_dropout",
            (
                "The share of layers that work without their adapter in each training step (0.1 is usual), which "
                "delays over-fitting and slows learning a little. 0 is off."
            ),
            0.0,
            step=0.05,
            **ADVANCED,
        ),
        widget(
            "max_norm",
            (
                "The largest Frobenius norm of the change of a layer's weight; a larger change is scaled down after "
                "each step, as kohya's scale_weight_norms. 1 keeps a LoRA mild and easy to mix. 0 is no limit."
            ),
            0.0,
            step=0.1,
            **ADVANCED,
        ),
    ]


def _preserve_widgets() -> list[io.Input]:
    return [
        io.String.Input(
            "preserve",
            default="",
            multiline=True,
            tooltip=(
                "Prompts at which the model must stay as it is, one a line, such as 'a photo of a dog' where you teach "
                "your dog. Needs no pictures. A step takes over twice as long. Empty is off."
            ),
            **ADVANCED,
        ),
        widget(
            "preserve_weight",
            (
                "How much the prompts of preserve count beside the pictures. Higher: other prompts change less, and "
                "the pictures are learned more slowly."
            ),
            1.0,
            step=0.1,
            **ADVANCED,
        ),
    ]


def _training_adapter_inputs() -> list[io.Input]:
    return [
        io.LoraModel.Input(
            "training_adapter",
            optional=True,
            tooltip=(
                "For a distilled base (Z-Image Turbo, FLUX schnell): the training adapter that was made for it, from "
                "Bespoke Load LoRA. It is on in the training steps only, so that the base with your LoRA still draws "
                "in few steps."
            ),
        ),
        widget(
            "training_adapter_strength",
            "The strength of training_adapter in the steps. 1 is what it was made for; 0 is off.",
            1.0,
            step=0.05,
            **ADVANCED,
        ),
    ]


def request_from_inputs(values: Mapping[str, Any]) -> tuple[LoraRequest, LoraData]:
    """(request, data) of a node's inputs by name.

    `images` and the fields of `TrainConfig` without a default are required. Others have the defaults of `LoraRequest`
    and `TrainConfig` where they are missing.
    """
    settings = {f.name: values[f.name] for f in fields(LoraRequest) if f.name in values}
    return LoraRequest(config_of(values), **settings), data_from_inputs(values)


def data_from_inputs(values: Mapping[str, Any]) -> LoraData:
    """The pictures and LoRAs of a node's inputs by name, of which `images` is required."""
    return LoraData(
        training_set(values["images"]),
        validation=values.get("validation_images"),
        prior=values.get("prior_images"),
        start=lora_on_wire(values, "lora"),
        training_adapter=lora_on_wire(values, "training_adapter"),
    )


def lora_on_wire(values: Mapping[str, Any], name: str) -> Mapping[str, Tensor] | None:
    """The LoRA of an input; None where nothing is wired. Raises `InputError` for what is no LoRA."""
    lora = values.get(name)
    if lora is None:
        return None
    as_named_lora(lora)  # for its errors, such as that of a dict without layers
    return lora


class TrainLora(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="BespokeTrainLora",
            display_name="Bespoke Train LoRA",
            category="Bespoke/lora",
            description=(
                "Trains a LoRA (or DoRA, LoKr, LoHa) on your pictures, so that the model draws what they show. The "
                "model itself stays as it is, bit for bit."
            ),
            hidden=[io.Hidden.prompt, io.Hidden.extra_pnginfo],
            search_aliases=[
                "lora training",
                "fine-tune",
                "dreambooth",
                "train style",
                "train subject",
                "low-rank",
                "lycoris",
                "dora",
            ],
            inputs=trainer_inputs(),
            has_intermediate_output=True,  # what it showed comes again with a cached run
            outputs=[
                io.Model.Output(
                    "model", display_name="model", tooltip="The model with the LoRA applied at strength 1."
                ),
                io.LoraModel.Output(
                    "lora",
                    display_name="lora",
                    tooltip="The LoRA, for Bespoke Save LoRA, core's Save LoRA Weights or Load LoRA Model.",
                ),
                loss_output(),
                Run.Output(
                    "run",
                    display_name="run",
                    tooltip=(
                        "The record of the run: settings, times, losses. Bespoke Save LoRA writes it into the file."
                    ),
                ),
                io.String.Output(
                    "report", display_name="report", tooltip="What was trained and how it went, in words."
                ),
                io.Clip.Output(
                    "clip",
                    display_name="clip",
                    tooltip="The text encoder: with its part of the LoRA where it was trained, else passed through.",
                ),
            ],
        )

    @classmethod
    def validate_inputs(cls, sample_prompt: str | None = None) -> bool | str:
        """Refuses a bad line when the graph is queued, before the nodes in front of this one have run."""
        return sample_prompt_problem(sample_prompt) or True

    @classmethod
    @name_node_in_errors
    def execute(cls, model, clip, vae, images, train_text_encoder=False, **inputs) -> io.NodeOutput:
        request, data = request_from_inputs(inputs | {"images": images, "train_text_encoder": train_text_encoder})
        check_optimizer(request.train.optimizer, model.load_device)
        graph = graph_of(cls.hidden)  # (prompt, workflow)
        folder = storage.models_folder("loras") / "bespoke" / "runs"  # of the files that `save_every` writes
        models = Models(model, clip, vae)
        dataset = encode_dataset(models, data, request)
        technique = LoraTechnique(request, models, dataset)
        default = DEFAULT_SAMPLER if data.training_adapter else None
        context = RunContext(sampler=settings_in(graph[0], default), save=partial(save_on_the_way, folder, graph=graph))
        result = train(technique, models, dataset, context)
        learned, run = result.learned, result.run
        learned = naming_its_part(learned, run)
        patched, patched_clip = with_adapters(model, clip if train_text_encoder else None, learned, request.adapter)
        return io.NodeOutput(
            patched,
            learned,
            {"loss": run.losses},
            run,
            technique.describe(run, learned),
            patched_clip or clip,
            ui={"bespoke_run": [run.id]},
        )


def naming_its_part(learned: dict[str, Tensor], run: RunRecord) -> dict[str, Tensor]:
    """What was learned, with the part of the schedule that it was trained on, for the nodes that it is wired into."""
    return NamedLora(learned, run.id, run.info.part.metadata()) if run.info.timestep_range else learned


def with_adapters(model, clip, learned: Mapping[str, Tensor], kind: str) -> tuple[Any, Any]:
    """Clones of the models with what was learned at strength 1; None for a text encoder that is not given.

    What was trained on a part of the schedule acts on that part, as through Inject LoRA. ComfyUI's own DoRA is
    normalised otherwise than the one that is trained (PEFT's and LyCORIS').
    """
    if isinstance(learned, NamedLora):
        timing, _ = limited_to_part(Timing(), model, learned)
        if not timing.always:
            patched, patched_clip, *_ = inject_on_its_part(model, clip, learned, Request())
            return patched, patched_clip
    if kind != "DoRA":
        return comfy.sd.load_lora_for_models(model, clip, learned, 1.0, 1.0)
    found = match(model, clip, as_named_lora(learned))
    patched, patched_clip = model.clone(), None if clip is None else clip.clone()
    patched.add_patches({patch.key: patch.adapter for patch in found.model})
    if patched_clip is not None:
        patched_clip.add_patches({patch.key: patch.adapter for patch in found.clip})
    return patched, patched_clip


class SaveLora(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="BespokeSaveLora",
            display_name="Bespoke Save LoRA",
            category="Bespoke/lora",
            description=(
                "Saves a LoRA into ComfyUI's loras folder, where every LoRA list has it after a refresh (R). Never "
                "overwrites a file."
            ),
            search_aliases=["save lora", "export lora", "kohya", "safetensors"],
            is_output_node=True,
            hidden=[io.Hidden.prompt, io.Hidden.extra_pnginfo],
            inputs=[
                io.LoraModel.Input("lora", tooltip="The LoRA to save, from Bespoke Train LoRA."),
                io.String.Input(
                    "filename_prefix",
                    default="bespoke/lora",
                    tooltip="The file's name without number and ending; a '/' makes a subfolder of the loras folder.",
                ),
                Run.Input(
                    "run",
                    optional=True,
                    tooltip="The training's record: writes its settings, trigger words and layer names into the file.",
                ),
                io.Combo.Input(
                    "key_format",
                    options=list(KEY_FORMATS),
                    default="kohya",
                    tooltip=(
                        "How the file names the layers. kohya is read by nearly every program, ComfyUI included; "
                        "diffusers needs the run wired in, or a LoRA from Bespoke Inject LoRA or Bespoke Extract "
                        "LoRA, which know the names."
                    ),
                    **ADVANCED,
                ),
                io.Combo.Input(
                    "dtype",
                    options=list(DTYPES),
                    default="fp16",
                    tooltip=(
                        "The precision of the numbers in the file. fp16 halves the file; the difference cannot be seen."
                    ),
                    **ADVANCED,
                ),
                io.Boolean.Input(
                    "preview",
                    default=True,
                    tooltip=(
                        "With run, and where samples were drawn: writes NAME.preview.png beside the file, the run's "
                        "last sample with the figures that chose the step, which LoRA lists show. A picture that is "
                        "there stays."
                    ),
                    **ADVANCED,
                ),
                Embedding.Input(
                    "embedding",
                    optional=True,
                    tooltip=(
                        "A word to write into the file beside the LoRA, so that one file carries both: Bespoke Inject "
                        "LoRA then gives a clip that knows it. From Bespoke Train Word and LoRA, or any learned word."
                    ),
                ),
                io.String.Input(
                    "embedding_name",
                    default="",
                    tooltip=(
                        "What prompts call the word, embedding:NAME. Needed for a word without a name of its own, as "
                        "Bespoke Train Textual Inversion gives it; empty keeps the name that the word has."
                    ),
                    **ADVANCED,
                ),
            ],
            outputs=[
                io.String.Output(
                    "lora_name",
                    display_name="lora_name",
                    tooltip=(
                        "The file's name, as LoRA lists show it after a refresh (R); for inputs of text, such as name "
                        "of Bespoke Inject LoRA."
                    ),
                ),
                io.AnyType.Output(
                    "for_lists",
                    display_name="for_lists",
                    tooltip="The same name, for the lora_name list of any loader, which takes no text.",
                ),
            ],
        )

    @classmethod
    @name_node_in_errors
    def execute(
        cls,
        lora,
        filename_prefix,
        run=None,
        key_format="kohya",
        dtype="fp16",
        preview=True,
        embedding=None,
        embedding_name="",
    ) -> io.NodeOutput:
        if not lora:
            raise InputError("the LoRA is empty; wire in the lora output of a trainer")
        for key in lora:
            layer_and_part(key)
        lora, remarks = with_words(lora, embedding, embedding_name, key_format)
        tensors, meta = as_file(lora, run, Path(filename_prefix).name, key_format, dtype, graph_of(cls.hidden))
        name = storage.write_numbered(
            "loras", filename_prefix, lambda path: storage.write_safetensors(path, tensors, meta, overwrite=False)
        )
        told = "; ".join([f"saved as {name}", *remarks])
        if preview and isinstance(run, RunRecord):
            told += f"; {write_preview(run, folder_of_run(run), storage.models_folder('loras') / name)}"
        return io.NodeOutput(name, name, ui={"text": [told]})
