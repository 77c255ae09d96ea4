"""LoRA: load and inject."""

from __future__ import annotations

from pathlib import Path

import folder_paths
from comfy_api.latest import io

from ...training.formats import trigger_words
from ..bridge.errors import InputError, names_itself
from .files import apply_lora, describe, read_lora

NONE = "none"


def _lora_choices() -> list[str]:
    return [NONE, *folder_paths.get_filename_list("loras")]


def _lora_path(lora_name: str) -> Path:
    if not lora_name or lora_name == NONE:
        raise InputError("no LoRA is chosen; choose a file in lora_name or wire a lora in")
    path = folder_paths.get_full_path("loras", lora_name)
    if path is None:
        raise InputError(f"{lora_name!r} is not in ComfyUI's loras folder; choose another one")
    return Path(path)


def _fingerprint(lora_name: str) -> str:
    """A file replaced under the same name is read again."""
    path = folder_paths.get_full_path("loras", lora_name or "") if lora_name != NONE else None
    if path is None:
        return lora_name
    stat = Path(path).stat()
    return f"{lora_name}:{stat.st_size}:{stat.st_mtime_ns}"


class LoadLora(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="BespokeLoadLora",
            display_name="Bespoke Load LoRA",
            category="Bespoke/lora",
            description="Reads a LoRA file and says what is in it. Nothing is applied yet: wire it into Bespoke Inject LoRA.",
            search_aliases=["load lora", "lora file", "trigger words"],
            inputs=[io.Combo.Input("lora_name", options=_lora_choices(), tooltip="A .safetensors file in ComfyUI's loras folder.")],
            outputs=[
                io.LoraModel.Output("lora", display_name="lora", tooltip="The LoRA's factors."),
                io.String.Output("trigger_words", display_name="trigger_words", tooltip="The words that call it, from the file's metadata; empty when it names none."),
                io.String.Output("report", display_name="report", tooltip="Rank, alpha, number of layers and base, in words."),
            ],
        )  # fmt: skip

    @classmethod
    def fingerprint_inputs(cls, lora_name):
        return _fingerprint(lora_name)

    @classmethod
    @names_itself
    def execute(cls, lora_name) -> io.NodeOutput:
        tensors, meta = read_lora(_lora_path(lora_name))
        return io.NodeOutput(tensors, trigger_words(meta), describe(tensors, meta, lora_name))


class InjectLora(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        advanced = {"optional": True, "advanced": True}

        def scale(name: str, what: str):
            return io.Float.Input(name, default=1.0, min=-10.0, max=10.0, step=0.05, tooltip=f"Strength of the {what} part, times strength_model. 0 leaves it out.", **advanced)  # fmt: skip

        return io.Schema(
            node_id="BespokeInjectLora",
            display_name="Bespoke Inject LoRA",
            category="Bespoke/lora",
            description="Applies a LoRA to the model, with a strength for each of the attention's four projections. The base stays as it is.",
            search_aliases=["apply lora", "lora loader", "load lora", "lora strength"],
            inputs=[
                io.Model.Input("model", tooltip="The model to adapt."),
                io.Combo.Input("lora_name", options=_lora_choices(), tooltip="A file in ComfyUI's loras folder. Not used when a lora is wired in."),
                io.Float.Input("strength_model", default=1.0, min=-10.0, max=10.0, step=0.05, tooltip="How strongly the LoRA moves the model: 1 is as trained, 0 nothing, below 0 away from it."),
                io.Clip.Input("clip", optional=True, tooltip="The text encoder, for LoRAs that were trained on it too."),
                io.Float.Input("strength_clip", default=1.0, min=-10.0, max=10.0, step=0.05, tooltip="How strongly the LoRA moves the text encoder.", **advanced),
                io.LoraModel.Input("lora", optional=True, tooltip="A LoRA on the wire; it wins over lora_name."),
                scale("query", "query (where the picture asks)"),
                scale("key", "key (what words answer to)"),
                scale("value", "value (what words bring in)"),
                scale("out", "output (how it is written back)"),
            ],
            outputs=[
                io.Model.Output("model", display_name="model", tooltip="The model with the LoRA."),
                io.Clip.Output("clip", display_name="clip", tooltip="The text encoder with the LoRA; nothing when no clip is wired in."),
                io.String.Output("report", display_name="report", tooltip="What was matched and what was not."),
                io.String.Output("trigger_words", display_name="trigger_words", tooltip="The words that call it, from the file's metadata."),
            ],
        )  # fmt: skip

    @classmethod
    def fingerprint_inputs(cls, lora_name, **_):
        return _fingerprint(lora_name)

    @classmethod
    @names_itself
    def execute(
        cls, model, lora_name, strength_model, clip=None, strength_clip=1.0, lora=None, query=1.0, key=1.0, value=1.0,
        out=1.0,
    ) -> io.NodeOutput:  # fmt: skip
        if lora is None:
            tensors, meta = read_lora(_lora_path(lora_name))
            name = lora_name
        else:
            tensors, meta, name = lora, {}, "the LoRA on the wire"
        scales = {"query": query, "key": key, "value": value, "out": out}
        new_model, new_clip, matched = apply_lora(model, clip, tensors, strength_model, strength_clip, scales)
        report = f"{describe(tensors, meta, name)}\nApplied to {matched}"
        return io.NodeOutput(new_model, new_clip, report, trigger_words(meta))
