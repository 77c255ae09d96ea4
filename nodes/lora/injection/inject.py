"""A LoRA into a model and its text encoder: merged into the weights or beside them, as much of it as the scope says."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from comfy.weight_adapter import LoRAAdapter, OFTAdapter

from ....training.errors import InputError
from ....training.layer_names.blocks import fused_rows, projection_of
from ....training.layer_names.spelling import COMFY_PREFIX
from ..match import describe_unmatched, keys_and_shapes, match
from ..named_lora import NamedLora
from ..patch import Patch
from ..wording import listed
from .bypass import add_injection, can_bypass, module_of
from .scope import Scope
from .timing import Timing

MODES = ("merge", "bypass")
STRENGTH: dict[str, Any] = {"min": -10.0, "max": 10.0}


@dataclass(frozen=True)
class Request:
    """How a LoRA is injected. mode "merge" adds it to the weights when the model is loaded, "bypass" at every call."""

    strength_model: float = 1.0
    strength_clip: float = 1.0
    scope: Scope = field(default_factory=Scope)
    timing: Timing = field(default_factory=Timing)
    mode: str = MODES[0]

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise InputError(f"mode is {self.mode!r}; choose one of {', '.join(MODES)}")
        for name in ("strength_model", "strength_clip"):
            if not math.isfinite(getattr(self, name)):
                raise InputError(f"{name} is {getattr(self, name)}; give a number")


Weighted = list[tuple[float, Patch]]


def inject(model, clip, lora: NamedLora, request: Request) -> tuple[object, object, str]:
    """(model, clip, report): clones with the LoRA. `clip` may be None; the base and its weights stay as they are.

    Raises `InputError`, with nothing changed, where the LoRA does not fit the model or the scope names no block of it.
    """
    found = match(model, clip, lora)
    config = getattr(model.model.model_config, "unet_config", None)
    scope = request.scope
    if scope.blocks:
        _, shapes = keys_and_shapes(model.model, False)
        scope.check((key for key in shapes if key.startswith(COMFY_PREFIX)), config)
    own = [
        (request.strength_model * scope.strength(_layer(patch), config), _by_rows(patch, scope, config))
        for patch in found.model
    ]
    text = [
        (request.strength_clip * scope.projections.get(projection_of(_layer(patch)) or "", 1.0), patch)
        for patch in found.clip
    ]
    new_model, new_clip = model.clone(), None
    merged, at_call = _apply(new_model, own, request.timing, request.mode == "bypass" or not request.timing.always)
    if clip is not None:
        new_clip = clip.clone()
        clip_merged, clip_at_call = _apply(new_clip.patcher, text, Timing(), request.mode == "bypass")
        merged, at_call = merged + clip_merged, at_call + clip_at_call
    report = [_applied(own, text, merged, at_call)]
    report += [f"Blocks: {line}." for line in scope.matched((_layer(p) for p in found.model), config)]
    report += _remarks(request, found.model, own, text, merged)
    report += describe_unmatched(found, lora, model)
    return new_model, new_clip, "\n".join(report)


def _layer(patch: Patch) -> str:
    """The layer's dotted name; of a fused one that a file knows by a name of its own, that name."""
    return patch.weight.removesuffix(".weight") if patch.whole else patch.layer


def _by_rows(patch: Patch, scope: Scope, config) -> Patch:
    """With query, key and value in one layer: the rows of each at its strength."""
    strengths = scope.rows(_layer(patch))
    if strengths is None or not patch.low_rank:
        return patch
    up, *rest = patch.adapter.weights
    rows = fused_rows(up.shape[0], config)
    if rows is None:
        return patch
    factor = torch.tensor(strengths, dtype=up.dtype).repeat_interleave(torch.tensor(rows))
    scaled = up * factor.reshape(-1, *[1] * (up.ndim - 1))
    return replace(patch, adapter=LoRAAdapter(patch.adapter.loaded_keys, (scaled, *rest)))


def _apply(clone, patches: Weighted, timing: Timing, bypass: bool) -> tuple[int, int]:
    """Put the patches on a ModelPatcher made for it: (layers merged, layers that act at the call)."""
    # A clone of a model that is in use copies the mark that its injections are in place. What is added here is not.
    clone.is_injected = False
    acting = [(strength, patch) for strength, patch in patches if strength != 0.0]
    at_call = [one for one in acting if bypass and can_bypass(module_of(clone.model, one[1].weight), one[1])]
    in_call = {id(patch) for _, patch in at_call}
    merged = [one for one in acting if id(one[1]) not in in_call]
    if merged and not timing.always:
        raise InputError(
            f"{merged[0][1].layer} changes the weight itself and cannot come and go between steps; "
            "set start_percent to 0, end_percent to 1 and leave keyframes empty"
        )
    groups: dict[tuple[float, int], dict] = defaultdict(dict)
    for strength, patch in merged:
        # Two spellings of one layer in one file are two patches of one weight.
        turn = next(n for n in range(len(merged)) if patch.key not in groups.get((strength, n), {}))
        groups[strength, turn][patch.key] = patch.adapter
    for (strength, _), group in groups.items():
        clone.add_patches(group, strength)
    if at_call:
        add_injection(clone, at_call, timing)
    return len(merged), len(at_call)


def _applied(own: Weighted, text: Weighted, merged: int, at_call: int) -> str:
    counts = [sum(strength != 0.0 for strength, _ in part) for part in (own, text)]
    how = {(True, False): "merged into the weights", (False, True): "beside the weights"}.get(
        (merged > 0, at_call > 0), ""
    )
    if merged and at_call:
        how = f"{at_call} beside the weights, {merged} merged into them"
    line = f"Applied to {counts[0]} layers of the model, {counts[1]} of the text encoder" + (
        f", {how}." if how else "."
    )
    left = len(own) + len(text) - sum(counts)
    return line + (f" {left} more have a strength of 0 and are left out." if left else "")


def _remarks(request: Request, found: Sequence[Patch], own: Weighted, text: Weighted, merged: int) -> list[str]:
    lines = []
    at_call = request.mode == "bypass" or not request.timing.always
    if not request.timing.always:
        lines += _timing_remarks(request, text)
    if request.mode == "bypass" and merged:
        lines.append("What has no path of its own and no layer that could compute it at the call is merged.")
    slow = [p for strength, p in own if strength and not p.low_rank]
    if slow and at_call:
        lines.append(
            f"{len(slow)} layers are no two plain factors; their weight is made anew at every call, which is "
            "slower than merging."
        )
    if any(isinstance(p.adapter, OFTAdapter) and strength not in (0.0, 1.0) for strength, p in own):
        lines.append("OFT: ComfyUI's adapter acts by the square of the strength.")
    whole = [p for p in found if request.scope.rows(_layer(p)) and not p.low_rank]
    if whole:
        names = listed([p.layer for p in whole], 3)
        lines.append(f"query, key and value are one layer here and cannot be told apart in {names}.")
    return lines


def _timing_remarks(request: Request, text: Weighted) -> list[str]:
    lines = [f"Acts {request.timing.describe()}."]
    if request.mode == "merge":
        lines.append("What comes and goes between steps cannot be merged, so it runs beside the weights.")
    if text:
        lines.append("The text encoder runs once, before the steps: its part does not follow the range.")
    return lines
