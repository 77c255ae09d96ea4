"""LoRA: train and save."""

from __future__ import annotations

from pathlib import Path

import comfy.sd
from comfy_api.latest import io

from ...training.config import KEEPS, LR_SCHEDULES, PRECISIONS, RANGES, TrainConfig
from ...training.formats import DTYPES, KEY_FORMATS, layer_and_part, metadata, to_format
from ..bridge import storage
from ..bridge.errors import InputError, names_itself
from ..bridge.models import TARGETS
from ..bridge.types import Images, Run
from .train import LoraRequest, describe, train_lora


def _limits(name: str) -> dict:
    low, high = RANGES[name]
    return {"min": low, "max": high}


def _workflow(hidden):
    """The graph as the page drew it, for the file: dropping the file on the canvas opens it."""
    return (hidden.extra_pnginfo or {}).get("workflow") if hidden else None


class TrainLora(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        advanced = {"optional": True, "advanced": True}
        return io.Schema(
            node_id="BespokeTrainLora",
            display_name="Bespoke Train LoRA",
            category="Bespoke/lora",
            description="Trains low-rank adapters on the model's cross-attention with the noise-prediction loss. The model itself stays as it is, bit for bit.",
            hidden=[io.Hidden.prompt, io.Hidden.extra_pnginfo],
            search_aliases=["lora training", "fine-tune", "dreambooth", "train style", "train subject", "low-rank"],
            inputs=[
                io.Model.Input("model", tooltip="The model to train for, as it is on the wire: patches and shifts before this node count."),
                io.Clip.Input("clip", tooltip="Encodes the captions, at its own clip skip. It is not trained."),
                io.Vae.Input("vae", tooltip="Encodes the pictures."),
                Images.Input("images", tooltip="From Bespoke Image Folder or Bespoke Image Batch. 5 to 20 pictures for a subject, 50 to 200 for a style."),
                io.Combo.Input("targets", options=list(TARGETS), default=TARGETS[0], tooltip="Which layers learn. Cross-attention (W_Q, W_K, W_V, W_out) ties words to looks and is the smallest; attention and feed-forward learn more of the look itself and over-fit sooner."),
                io.Int.Input("rank", default=8, **_limits("rank"), tooltip="The width of the low-rank path. 4 to 8 for a subject, 16 to 32 for a style. Doubles the file when doubled."),
                io.Float.Input("alpha", default=8.0, **_limits("alpha"), step=0.5, tooltip="The path's strength is alpha / rank. Equal to rank it is 1; half of it learns half as fast."),
                io.Float.Input("learning_rate", default=1e-3, **_limits("learning_rate"), step=1e-5, round=False, tooltip="The highest learning rate of the schedule. Too high: garbled images within a hundred steps. Too low: nothing changes."),
                io.Int.Input("steps", default=400, **_limits("steps"), tooltip="Optimiser steps. More is not better: watch for images that only repeat the training set."),
                io.Int.Input("batch_size", default=4, **_limits("batch_size"), tooltip="Pictures per model call. Larger is steadier and needs more memory."),
                io.Int.Input("seed", default=0, **_limits("seed"), control_after_generate=False, tooltip="Decides the order of pictures, the noise levels and the noises. The same seed gives the same LoRA."),
                io.String.Input("custom_targets", default="", tooltip="For targets = custom: layer names with *, separated by commas, such as *attn2.to_k, *attn2.to_v.", **advanced),
                io.Int.Input("validation", default=0, **_limits("validation"), tooltip="How many of the pictures are held out: not trained on, but scored at fixed noise levels, so that the curve says when to stop. 0 is off.", **advanced),
                Images.Input("validation_images", optional=True, tooltip="Pictures to score instead of some of the training set."),
                io.Combo.Input("lr_schedule", options=list(LR_SCHEDULES), default="cosine", tooltip="How the learning rate falls over the steps.", **advanced),
                io.Int.Input("warmup_steps", default=0, **_limits("warmup_steps"), tooltip="Steps over which the learning rate rises from 0.", **advanced),
                io.Int.Input("gradient_accumulation", default=1, **_limits("gradient_accumulation"), tooltip="Model calls per step: a larger batch than the memory holds, at the cost of time.", **advanced),
                io.Float.Input("max_grad_norm", default=1.0, **_limits("max_grad_norm"), step=0.1, tooltip="Longer gradients are scaled down to this, which keeps single odd batches from doing harm. 0 is off.", **advanced),
                io.Float.Input("caption_dropout", default=0.0, **_limits("caption_dropout"), step=0.01, tooltip="The share of captions replaced by the empty prompt, which lets a style show without its trigger word.", **advanced),
                io.Combo.Input("precision", options=list(PRECISIONS), default="auto", tooltip="What the frozen model computes in. The LoRA itself is float32 always.", **advanced),
                io.Int.Input("save_every", default=0, **_limits("save_every"), tooltip="Steps between LoRA files written on the way, into loras/bespoke/runs. 0 writes none; the state to go on from is saved every half minute all the same.", **advanced),
                io.Combo.Input("keep", options=list(KEEPS), default=KEEPS[0], tooltip="With held-out pictures: hand on the state that scored best, or the last one.", **advanced),
                io.Boolean.Input("resume", default=True, tooltip="Go on where the same request was interrupted, or with more steps. Off begins anew; the earlier state is set aside, not deleted.", **advanced),
            ],
            outputs=[
                io.Model.Output("model", display_name="model", tooltip="The model with the LoRA applied at strength 1."),
                io.LoraModel.Output("lora", display_name="lora", tooltip="The LoRA, for Bespoke Save LoRA, core's Save LoRA or Load LoRA Model."),
                io.LossMap.Output("loss", display_name="loss", tooltip="The loss of every step, for core's Plot Loss Graph."),
                Run.Output("run", display_name="run", tooltip="The record of the run: settings, times, losses. Bespoke Save LoRA writes it into the file."),
                io.String.Output("report", display_name="report", tooltip="What was trained and how it went, in words."),
                io.Clip.Output("clip", display_name="clip", tooltip="The text encoder, passed through."),
            ],
        )  # fmt: skip

    @classmethod
    @names_itself
    def execute(
        cls, model, clip, vae, images, targets, rank, alpha, learning_rate, steps, batch_size, seed, custom_targets="",
        validation=0, validation_images=None, lr_schedule="cosine", warmup_steps=0, gradient_accumulation=1,
        max_grad_norm=1.0, caption_dropout=0.0, precision="auto", save_every=0, keep="best", resume=True,
    ) -> io.NodeOutput:  # fmt: skip
        config = TrainConfig(steps, learning_rate, batch_size, seed, lr_schedule, warmup_steps, gradient_accumulation,
                             max_grad_norm, caption_dropout, validation, save_every, keep)  # fmt: skip
        request = LoraRequest(config, targets, rank, alpha, custom_targets, precision, resume)

        def save(step: int, lora: dict, run) -> None:
            name = f"bespoke/runs/{run.id}-step{step:06}"
            path = storage.inside(storage.models_folder("loras"), f"{name}.safetensors")
            meta = metadata(lora, run, Path(name).name, cls.hidden.prompt if cls.hidden else None, _workflow(cls.hidden))
            storage.write_safetensors(path, to_format(lora, "kohya", run.names), meta, overwrite=True)

        lora, run = train_lora(model, clip, vae, images, request, validation_images, save)
        trained, _ = comfy.sd.load_lora_for_models(model, None, lora, 1.0, 0.0)
        report = describe(run, request, images, len(lora) // 3)
        return io.NodeOutput(trained, lora, {"loss": run.losses}, run, report, clip)


class SaveLora(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        advanced = {"optional": True, "advanced": True}
        return io.Schema(
            node_id="BespokeSaveLora",
            display_name="Bespoke Save LoRA",
            category="Bespoke/lora",
            description="Saves a LoRA into ComfyUI's loras folder, so that every LoRA list has it at once. Never overwrites a file.",
            search_aliases=["save lora", "export lora", "kohya", "safetensors"],
            is_output_node=True,
            hidden=[io.Hidden.prompt, io.Hidden.extra_pnginfo],
            inputs=[
                io.LoraModel.Input("lora", tooltip="The LoRA to save, from Bespoke Train LoRA."),
                io.String.Input("filename_prefix", default="bespoke/lora", tooltip="The file's name without number and ending; a '/' makes a subfolder of the loras folder."),
                Run.Input("run", optional=True, tooltip="The training's record: writes its settings, trigger words and layer names into the file."),
                io.Combo.Input("key_format", options=list(KEY_FORMATS), default="kohya", tooltip="How the file names the layers. kohya is read by nearly every program, ComfyUI included; diffusers needs the run wired in.", **advanced),
                io.Combo.Input("dtype", options=list(DTYPES), default="fp16", tooltip="The precision of the numbers in the file. fp16 halves the file; the difference cannot be seen.", **advanced),
            ],
            outputs=[io.String.Output("lora_name", display_name="lora_name", tooltip="The file's name as LoRA lists show it; wire it into a loader's lora_name.")],
        )  # fmt: skip

    @classmethod
    @names_itself
    def execute(cls, lora, filename_prefix, run=None, key_format="kohya", dtype="fp16") -> io.NodeOutput:
        if dtype not in DTYPES:
            raise InputError(f"dtype is {dtype!r}; choose one of {', '.join(DTYPES)}")
        if not lora:
            raise InputError("the LoRA is empty; wire in the lora output of a trainer")
        for key in lora:
            layer_and_part(key)
        tensors = {
            key: tensor.detach().to("cpu", DTYPES[dtype], copy=True)
            for key, tensor in to_format(lora, key_format, run.names if run else {}).items()
        }
        prompt = cls.hidden.prompt if cls.hidden else None
        meta = metadata(lora, run, Path(filename_prefix).name, prompt, _workflow(cls.hidden))
        name = storage.write_numbered(
            "loras", filename_prefix, lambda path: storage.write_safetensors(path, tensors, meta, overwrite=False)
        )
        return io.NodeOutput(name, ui={"text": [f"saved as {name}"]})
