"""Applies a LoRA to a model and its text encoder: merged into the weights, or computed at each call of the model."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from ....training.errors import InputError
from ..base_adapters import BaseAdapter, in_order, makes_base
from ..match import describe_unmatched
from ..named_lora import NamedLora
from ..patch import Patch
from ..wording import listed
from .bypass import add_injection, can_bypass, injection_of, lacks_bias, module_of, weights_read_at_call
from .request import Request
from .strengths import Weighted, layer_of, place
from .timing import Timing


class ActsAtEveryStep(InputError):
    """A LoRA that is to come and go between steps has a patch that can only be merged into the weights.

    reason: which one, in words.
    """

    def __init__(self, reason: str, mend: str) -> None:
        super().__init__(f"{reason}; {mend}")
        self.reason = reason


def inject(model, clip, lora: NamedLora, request: Request) -> tuple[object, object, str]:
    """(model, clip, report): clones with the LoRA. `clip` may be None; the base and its weights stay as they are.

    Raises `InputError`, with nothing changed, where the LoRA does not fit the model or the scope names no block of it,
    and `ActsAtEveryStep` where the timing cannot be kept.
    """
    placed = place(model, clip, lora, request)
    found, scope = placed.found, request.scope
    of_model, of_clip = placed.of_model(), placed.of_clip()
    new_model, new_clip = model.clone(), None
    bypass = request.mode == "bypass"
    merged, at_call = _apply(new_model, of_model, request.timing, bypass or not request.timing.always)
    given = _given_bias(new_model, of_model)
    if clip is not None:
        new_clip = clip.clone()
        given += _given_bias(new_clip.patcher, of_clip)
        clip_merged, clip_at_call = _apply(new_clip.patcher, of_clip, Timing(), bypass)
        merged, at_call = merged + clip_merged, at_call + clip_at_call
    report = [_applied(of_model, of_clip, merged, at_call)]
    layers = (layer_of(patch) for patch in found.model)
    report += [f"Blocks: {line}." for line in scope.matched(layers, placed.unet_config)]
    report += _remarks(request, found.model, of_model, of_clip, merged)
    report += given
    report += describe_unmatched(found, lora, model)
    return new_model, new_clip, "\n".join(report)


def _apply(clone, patches: Weighted, timing: Timing, bypass: bool) -> tuple[int, int]:
    """Add the patches to `clone`, a new ModelPatcher: (number merged, number computed at each call).

    bypass: whether patches are computed at each call where they can be; the others are merged. `_at_each_call` has the
    exceptions. The bias of a layer that has none of its own is computed at each call in any case. Raises
    `InputError` where that cannot be.
    """
    # `ModelPatcher.clone` copies `is_injected` from a model in use, and ComfyUI would skip the injection added below.
    clone.is_injected = False
    read_at_call = weights_read_at_call(clone)
    at_call: Weighted = []
    merged: Weighted = []
    for strength, patch in patches:
        if strength != 0.0:
            module = module_of(clone.model, patch.weight)
            possible = can_bypass(module, patch)
            if lacks_bias(module, patch):
                if not possible:
                    raise InputError(
                        f"{patch.layer} has a bias in the LoRA and none in the model, a {type(module).__name__}, which "
                        "cannot be given one; use the model in a format that ComfyUI loads itself"
                    )
                at_call.append((strength, patch))
            else:
                now = possible and _at_each_call(clone, patch, timing, bypass or patch.weight in read_at_call)
                (at_call if now else merged).append((strength, patch))
    if merged and not timing.always:
        raise ActsAtEveryStep(
            f"{merged[0][1].layer} changes the weight itself and cannot come and go between steps",
            "set start_percent to 0, end_percent to 1 and leave keyframes empty",
        )
    _merge(clone, merged)
    if at_call:
        add_injection(clone, injection_of(at_call, timing))
    return len(merged), len(at_call)


def _at_each_call(clone, patch: Patch, timing: Timing, wanted: bool) -> bool:
    """Whether a patch that can be computed at each call is. wanted: unless its place is among the merged ones.

    An adapter that reads the base's weight must not see the patches of other nodes in it. So it is merged beside those
    that are merged already, and nothing is merged under one that is computed at each call.
    """
    others = (one for one in clone.patches.get(patch.weight, ()) if not makes_base(one))
    return wanted and not (isinstance(patch.adapter, BaseAdapter) and timing.always and any(others))


def _merge(clone, patches: Weighted) -> None:
    """Add the patches to those that ComfyUI merges into the clone's weights."""
    # {(strength, round): {key: adapter}}, each for one call of `add_patches`. A file may have a layer in two spellings:
    # these are two patches of one key, the second in another round.
    groups: dict[tuple[float, int], dict] = defaultdict(dict)
    for strength, patch in patches:
        number = next(n for n in range(len(patches)) if patch.key not in groups.get((strength, n), {}))
        groups[strength, number][patch.key] = patch.adapter
    for (strength, _), group in groups.items():
        clone.add_patches(group, strength)
    for weight in {patch.weight for _, patch in patches}:
        if weight in clone.patches:
            clone.patches[weight] = in_order(clone.patches[weight])


def _applied(of_model: Weighted, of_clip: Weighted, merged: int, at_call: int) -> str:
    """The report's first line: how many layers were patched, and how."""
    counts = [sum(strength != 0.0 for strength, _ in part) for part in (of_model, of_clip)]
    how = {(True, False): "merged into the weights", (False, True): "beside the weights"}.get(
        (merged > 0, at_call > 0), ""
    )
    if merged and at_call:
        how = f"{at_call} beside the weights, {merged} merged into them"
    line = f"Applied to {counts[0]} layers of the model, {counts[1]} of the text encoder" + (
        f", {how}." if how else "."
    )
    left = len(of_model) + len(of_clip) - sum(counts)
    return line + (f" {left} more have a strength of 0 and are left out." if left else "")


def _remarks(request: Request, found: Sequence[Patch], of_model: Weighted, of_clip: Weighted, merged: int) -> list[str]:
    """The report's remarks on what a user may not expect. found: the model's patches before rows were scaled."""
    lines = []
    at_call = request.mode == "bypass" or not request.timing.always
    if not request.timing.always:
        lines += _timing_remarks(request, of_clip)
    if request.mode == "bypass" and merged:
        lines.append(
            "What has no path of its own and no layer that could compute it at the call is merged, and a DoRA, "
            "OFT or GLoRA where other LoRAs are merged."
        )
    slow = [p for strength, p in of_model if strength and not p.low_rank and not p.weight.endswith(".bias")]
    if slow and at_call:
        lines.append(
            f"{len(slow)} layers are no two plain factors; their weight is made anew at every call, which is "
            "slower than merging."
        )
    inseparable = [
        p for p, (_, scaled) in zip(found, of_model, strict=True) if scaled is p and request.scope.rows(layer_of(p))
    ]
    if inseparable:
        names = listed([p.layer for p in inseparable], 3)
        lines.append(f"query, key and value are one layer here and cannot be told apart in {names}.")
    return lines


def _given_bias(patcher, patches: Weighted) -> list[str]:
    """The remark on layers without a bias that the LoRA gives one."""
    count = sum(strength != 0.0 and lacks_bias(module_of(patcher.model, p.weight), p) for strength, p in patches)
    if not count:
        return []
    if count == 1:
        return ["1 layer has no bias of its own: the LoRA's is added to its output at each call."]
    return [f"{count} layers have no bias of their own: the LoRA's is added to their output at each call."]


def _timing_remarks(request: Request, of_clip: Weighted) -> list[str]:
    lines = [f"Acts {request.timing.describe()}."]
    if request.mode == "merge":
        lines.append("What comes and goes between steps cannot be merged, so it runs beside the weights.")
    if of_clip:
        lines.append("The text encoder runs once, before the steps: its part does not follow the range.")
    return lines
