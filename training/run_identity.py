"""The id of a run: equal requests on equal pictures and models are the same run, however long it takes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import MISSING, fields
from typing import Any

# Settings that may differ between two requests for the same run: how long it is, how closely it is watched, and whether
# its steps are compiled.
NOT_IDENTITY = frozenset({"steps", "save_every", "sample_every", "sample_prompt", "keep", "score_pictures", "compile"})

_SHARED_0_1 = frozenset(
    {
        "batch_size",
        "caption_dropout",
        "ema",
        "gradient_accumulation",
        "gradient_checkpointing",
        "learning_rate",
        "loss_weighting",
        "lr_schedule",
        "max_grad_norm",
        "noise_offset",
        "optimizer",
        "patience",
        "precision",
        "prior_weight",
        "seed",
        "timestep_sampling",
        "validation",
        "warmup_steps",
    }
)
# The settings that version 0.1 hashed, by technique. Never add to them: it would give the states of older runs new ids.
SETTINGS_0_1: Mapping[str, frozenset[str]] = {
    "lora": _SHARED_0_1
    | {"alpha", "custom_targets", "loraplus_lr_ratio", "rank", "targets", "text_encoder_lr", "train_text_encoder"},
    "textual inversion": _SHARED_0_1 | {"init", "init_text", "name", "norm_limit", "template", "vectors"},
}


def run_id(
    technique: str, settings: Mapping[str, Any], images: str, base: str, defaults: Mapping[str, Any] | None = None
) -> str:
    """The id of a run, such as "lora-3f9c44f8455a": the technique and 48 bits of a hash (BLAKE2b) of the request.

    A setting in `NOT_IDENTITY` never counts and one in `SETTINGS_0_1` always does. Any other counts where it has no
    default or differs from it, so that a setting that is added later leaves the ids of earlier requests as they are.

    images: the training set's fingerprint. base: a hash of the models. defaults: the settings' defaults by name, as
    `defaults_of` gives them.
    """
    counted = {name: value for name, value in sorted(settings.items()) if _counts(technique, name, value, defaults)}
    text = json.dumps([technique, counted, images, base], default=str)
    return f"{technique.replace(' ', '-')}-{hashlib.blake2b(text.encode(), digest_size=6).hexdigest()}"


def _counts(technique: str, name: str, value: Any, defaults: Mapping[str, Any] | None) -> bool:
    if name in NOT_IDENTITY:
        return False
    if name in SETTINGS_0_1.get(technique, ()) or defaults is None or name not in defaults:
        return True
    return bool(value != defaults[name])


def defaults_of(*requests: type) -> dict[str, Any]:
    """{field: its default} of dataclasses; fields without a default value are left out.

    Raises `TypeError` for a class that is no dataclass.
    """
    return {field.name: field.default for kind in requests for field in fields(kind) if field.default is not MISSING}
