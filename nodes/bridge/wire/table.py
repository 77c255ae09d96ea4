"""The table of what a wire can carry: every attribute of ComfyUI's MODEL patcher, CLIP and VAE.

Run identity, caches (`reading`), job export (`nodes/jobs/wire.py`) and training (`compatibility`) read these rows. An
attribute that has no row is never passed over: where it is set, nothing on the wire can be compared, exported or
trained with. `tests/comfy/test_wire.py` fails where a ComfyUI has an attribute without a row.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any


class Role(enum.Enum):
    """How an attribute counts.

    CHANGE: nodes set it, and it changes what the model computes. LOADED: the loader makes it from the file, so that the
    weights stand for it; it counts where it is set to another program's code. STATE: it does not change a result:
    memory, devices, what the last run has left.
    """

    CHANGE = enum.auto()
    LOADED = enum.auto()
    STATE = enum.auto()


class InTraining(enum.Enum):
    """What a training does with something that a wire carries.

    APPLIED: the training's model computes with it, as sampling does. SAMPLING_ONLY: it acts on how a sampler joins or
    masks the model's predictions, so the samples have it and the training does not; the report says so. NO_EFFECT: it
    does not change a prediction. REFUSED: a training with it would be wrong, or would leave it out.
    BY_KEY: a table of its own decides for each of its keys (`compatibility`).
    """

    APPLIED = enum.auto()
    SAMPLING_ONLY = enum.auto()
    NO_EFFECT = enum.auto()
    REFUSED = enum.auto()
    BY_KEY = enum.auto()


@dataclass(frozen=True)
class Row:
    """One attribute. words: what a report calls it. in_training: what a training does with it, where it is set.

    unset: a value that counts as not set, besides None, and collections in which nothing is set.
    exported: whether a job carries it. in_0_1: whether version 0.1 read it for a run's identity.
    """

    role: Role
    words: str
    in_training: InTraining
    unset: Any = None
    exported: bool = False
    in_0_1: bool = False


_STATE = Row(Role.STATE, "", InTraining.NO_EFFECT)
_LOADED = Row(Role.LOADED, "", InTraining.APPLIED)  # a training computes with the same object


def _change(words: str, in_training: InTraining = InTraining.APPLIED, **more: Any) -> Row:
    return Row(Role.CHANGE, words, in_training, **more)


def _state(*names: str) -> dict[str, Row]:
    return dict.fromkeys(names, _STATE)


PATCHER: Mapping[str, Row] = {
    "patches": _change("patches of its weights", exported=True, in_0_1=True),
    "object_patches": _change("replaced objects", exported=True, in_0_1=True),
    # `manual_cast_dtype` among the object patches sets it, and is read and exported.
    "force_cast_weights": _change("a cast of its weights", unset=False, exported=True, in_0_1=True),
    "model_options": _change("attention, block or sampler patches", InTraining.BY_KEY, exported=True),
    "injections": _change(
        "a path beside its weights (such as Bespoke Inject LoRA's mode bypass; mode merge can be exported)", in_0_1=True
    ),
    "wrappers": _change("a wrapper of another node", InTraining.BY_KEY),
    "callbacks": _change("a callback of another node", InTraining.BY_KEY),
    # A MODEL's hooks act through a conditioning that names them, and a training's has none.
    "hook_patches": _change("hooks of another node", InTraining.REFUSED),
    "forced_hooks": _change("hooks of another node", InTraining.REFUSED),
    "additional_models": _change("a further model of another node"),
    "weight_wrapper_patches": _change("a weight wrapper of another node"),
    "attachments": _change("an attachment of another node"),
    "model": _LOADED,
    "is_clip": _LOADED,
    **_state("size", "load_device", "offload_device", "weight_inplace_update", "patches_uuid", "parent", "pinned"),
    **_state("backup", "backup_buffers", "object_patches_backup", "is_injected", "skip_injection"),
    **_state("hook_patches_backup", "hook_backup", "cached_hook_patches", "current_hooks", "hook_mode"),
    **_state("cached_patcher_init", "is_multigpu_base_clone", "clone_base_uuid"),
    # ModelPatcherDynamic
    **_state("non_dynamic_delegate_model", "_last_prepare_log_key", "_free_methods", "_last_free_log_time"),
}
CLIP: Mapping[str, Row] = {
    "layer_idx": _change("a clip skip", exported=True, in_0_1=True),
    "tokenizer_options": _change("tokenizer options", exported=True),
    "apply_hooks_to_conds": _change("hooks of another node", InTraining.REFUSED),
    "use_clip_schedule": _change("a schedule of hooks", InTraining.REFUSED, unset=False),
    "tokenizer": _LOADED,
    "cond_stage_model": _LOADED,
    "patcher": _STATE,  # read as a patcher
}
VAE: Mapping[str, Row] = {
    "first_stage_model": _LOADED,
    **dict.fromkeys(
        (
            "downscale_ratio",
            "upscale_ratio",
            "downscale_index_formula",
            "upscale_index_formula",
            "latent_channels",
            "latent_dim",
            "output_channels",
            "pad_channel_value",
            "process_input",
            "process_output",
            "not_video",
            "extra_1d_channel",
            "crop_input",
            "handles_tiling",
            "format_encoded",
            "audio_sample_rate",
            "audio_sample_rate_output",
            "autoencoder",
            "vae_dtype",
            "conv_out_channels",
        ),
        _LOADED,
    ),
    **_state("patcher", "memory_used_encode", "memory_used_decode", "working_dtypes", "disable_offload", "size"),
    **_state("device", "output_device", "_select_base_device"),
}


def is_set(value: Any) -> bool:
    """Whether a value is, or contains at any depth, something else than None."""
    if isinstance(value, Mapping):
        return any(map(is_set, value.values()))
    if isinstance(value, (list, tuple, set, frozenset)):
        return any(map(is_set, value))
    return value is not None


def carried(thing: Any, table: Mapping[str, Row]) -> Iterator[tuple[str, Row | None, Any]]:
    """(attribute, its row, its value) of all that is set on a patcher, CLIP or VAE and counts, by name.

    The row is None for an attribute that the table does not know.
    """
    for name, value in sorted(vars(thing).items()):
        row = table.get(name)
        if row is not None and row.role is Role.STATE:
            continue
        if is_set(value) and (row is None or row.unset is None or value != row.unset):
            yield name, row, value
