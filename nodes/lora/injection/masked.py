"""A LoRA over a part of the picture: its path in each layer times a mask at the layer's resolution.

Of a cross-attention that reads the prompt, the key and the value have no place in the picture. There the attention is
computed twice, with the LoRA's key and value and without, and the mask chooses between both outputs. Text tokens of a
stream of their own stay as the base has them.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar

import torch
from comfy.ldm.modules.attention import SpatialTransformer
from comfy.weight_adapter import LoRAAdapter
from torch import Tensor, nn

from ....training.errors import InputError
from ....training.layer_names.parts import DOWN, SET_WEIGHT, UP, WHOLE_BIAS, layers_of
from ....training.layer_names.spelling import COMFY_PREFIX
from .. import kinds
from ..kinds.kind import Parts
from ..kinds.lora import parts_of
from ..lowrank import Factors
from ..match import describe_unmatched
from ..named_lora import NamedLora
from ..patch import Patch
from ..wording import listed
from .bypass import BaseInjection, Share, add_injection, hookable_layer, low_rank_hook, module_of
from .layout import Site, layout_of
from .region import CellsHook, Region
from .request import Request
from .strengths import layer_of, place, scaled_rows
from .timing import Timing


@dataclass(frozen=True)
class _Masked:
    """A patch of two factors, or of a bias, with its strength and its site."""

    strength: float
    patch: Patch
    site: Site


def inject_masked(model: Any, clip: Any, lora: NamedLora, request: Request, mask: Tensor) -> tuple[Any, str]:
    """(model, report): a clone with the LoRA where the mask [N, H, W] is above 0, as much as it is.

    Raises `InputError` for mode merge, for a model whose layers are not known, for kinds of adapter that need the
    base's weight, and where nothing of the LoRA has a place in the picture.
    """
    if request.mode != "bypass":
        raise InputError(
            "mask is wired and mode is merge, which changes the weights for the whole picture; set mode to bypass, "
            "which is among the advanced inputs"
        )
    if mask.ndim != 3 or not mask.numel():
        raise InputError(f"mask has the shape {tuple(mask.shape)}; wire in a MASK")
    layout = layout_of(model.model.diffusion_model)
    placed = place(model, clip, lora, request)
    parts = layers_of(lora)
    found: list[_Masked] = []
    elsewhere: list[str] = []
    for patch, strength in zip(placed.found.model, placed.model, strict=True):
        if strength.value == 0.0:
            continue
        name = patch.weight_layer.removeprefix(COMFY_PREFIX)
        site = layout.site(name)
        module = module_of(model.model, patch.weight)
        if site is Site.ELSEWHERE or not isinstance(module, nn.Linear | nn.Conv2d | nn.Conv3d):
            elsewhere.append(patch.layer)
            continue
        whole = scaled_rows(_two_factors(patch, parts[patch.layer], module), strength.rows)
        found.append(_Masked(strength.value, whole, site))
    if elsewhere and not found:
        raise InputError(
            f"nothing of {lora.name} has a place in the picture ({listed(elsewhere, 3)}), so mask cannot limit it; "
            "leave mask unwired"
        )
    if not placed.found.model:
        raise InputError(
            f"{lora.name} adapts the text encoder only, and a prompt is encoded for the whole picture, so mask cannot "
            "limit it; leave mask unwired"
        )
    new_model = model.clone()
    new_model.is_injected = False
    if found:  # else all strengths are 0
        region = Region(mask, layout, new_model.model.diffusion_model)
        add_injection(new_model, _MaskedInjection(found, request.timing, region))
    report = _report(found, elsewhere, len(placed.found.clip) or len(placed.found.no_clip), request.timing)
    layers = (layer_of(patch) for patch in placed.found.model)
    report += [f"Blocks: {line}." for line in request.scope.matched(layers, placed.unet_config)]
    report += describe_unmatched(replace(placed.found, no_clip=[]), lora, model)
    return new_model, "\n".join(report)


def _report(found: Sequence[_Masked], elsewhere: Sequence[str], text: int, timing: Timing) -> list[str]:
    """text: the number of the text encoder's layers."""
    keys = sum(one.site is Site.KEYS for one in found)
    lines = [f"Applied to {len(found)} layers under the mask, beside the weights."]
    if not found:
        lines = ["Nothing is applied: with these strengths and blocks nothing of the LoRA is left."]
    if not timing.always:
        lines.append(f"Acts {timing.describe()}.")
    if keys:
        lines.append(
            f"{keys} of them are keys and values of the prompt: the part under the mask reads the prompt through them, "
            "and these attentions are computed twice."
        )
    if elsewhere:
        lines.append(
            f"{len(elsewhere)} layers have no place in the picture (text tokens, time, modulation, norms) and are left "
            f"out: {listed(elsewhere, 3)}."
        )
    if text:
        lines.append(
            f"The text encoder's part ({text} layers) cannot be masked and is left out: a prompt is "
            "encoded for the whole picture."
        )
    return lines


def _two_factors(patch: Patch, parts: Parts, module: nn.Module) -> Patch:
    """The patch as two factors for the whole weight of the layer, or as the change of its whole bias.

    Raises `InputError` for a kind whose change depends on the base's weight.
    """
    if patch.bias_change is not None:
        rows = int(getattr(module, "out_features", 0) or getattr(module, "out_channels", 0))
        bias = patch.bias_change.detach().float().cpu()
        bias = bias if patch.row_order is None else patch.row_order(bias)
        _, start, length = patch.offset or (0, 0, rows)
        full = torch.zeros(rows)
        full[start : start + length] = bias
        return replace(patch, key=patch.weight, adapter=("diff", (full,)))
    if hookable_layer(module, patch) is not None:
        return patch
    if patch.weight.endswith(".bias") or {SET_WEIGHT, WHOLE_BIAS} & set(parts):
        raise InputError(
            f"{patch.layer} replaces the base's bias or weight, which mask cannot limit; leave mask unwired"
        )
    matrices = {part: tensor for part, tensor in parts.items() if not part.endswith(("diff_b", "b_norm"))}
    try:
        delta = kinds.factors(patch.layer, matrices)
    except InputError as error:
        raise InputError(f"{error}; with mask only kinds without the base's weights can be used") from error
    return replace(patch, key=patch.weight, adapter=_adapter(_padded(delta, patch, module), patch))


def _padded(delta: Factors, patch: Patch, module: Any) -> Factors:
    """The factors of a part of a weight as those of the whole weight, zero outside of the part."""
    up = delta.up if patch.row_order is None else patch.row_order(delta.up)
    if patch.offset is None:
        return replace(delta, up=up)
    axis, start, length = patch.offset
    if axis == 0:
        full = torch.zeros(module.weight.shape[0], up.shape[1])
        full[start : start + length] = up
        return replace(delta, up=full)
    down = torch.zeros(delta.rank, module.weight.shape[1])
    down[:, start : start + length] = delta.down
    return replace(delta, up=up, down=down)


def _adapter(delta: Factors, patch: Patch) -> LoRAAdapter:
    parts = parts_of("", delta)
    keys = getattr(patch.adapter, "loaded_keys", set())
    return LoRAAdapter(keys, (parts[UP], parts[DOWN], None, None, None, None))


class _MaskedInjection(BaseInjection):
    """The hooks of a masked LoRA, see `BaseInjection`."""

    def __init__(self, patches: Sequence[_Masked], timing: Timing, region: Region) -> None:
        super().__init__(timing)
        self.masked, self.region = list(patches), region

    def attach(self, patcher: Any, share: Share) -> list[Callable[[], None]]:
        undo: list[Callable[[], None]] = []
        try:
            self._attach(patcher, share, undo)
        except BaseException:
            for each in undo:
                each()
            raise
        return undo

    def _attach(self, patcher: Any, share: Share, undo: list[Callable[[], None]]) -> None:
        base, region = patcher.model, self.region
        undo += [base.diffusion_model.register_forward_pre_hook(partial(_begin, region), with_kwargs=True).remove]
        if region.layout.feature_maps:
            hook = CellsHook(region)
            undo += [
                module.register_forward_pre_hook(hook, with_kwargs=True).remove
                for module in base.diffusion_model.modules()
                if isinstance(module, SpatialTransformer)
            ]
        gates: dict[str, Share] = {}
        for one in self.masked:
            layer = one.patch.weight.rpartition(".")[0]
            module: Any = module_of(base, one.patch.weight)
            own, where = share, partial(region.where, layer.removeprefix(COMFY_PREFIX), one.site)
            if one.site is Site.KEYS:
                attention = layer.rpartition(".")[0]
                if attention not in gates:
                    gates[attention] = Share(0.0)
                    owner: Any = module_of(base, f"{attention}.weight")
                    undo.append(_CrossAttention.add(owner, _Entry(attention, region, share, gates[attention])))
                own, where = gates[attention], None
            bias = one.patch.bias_change
            if bias is None:
                hook = low_rank_hook(module, one.patch, one.strength, own, patcher.load_device, base, where)
            else:
                hook = partial(_add_bias, (one.strength * bias).to(patcher.load_device), own, where)
            undo.append(module.register_forward_hook(hook, with_kwargs=True).remove)
        if gates:
            undo.append(base.diffusion_model.register_forward_pre_hook(_refuse_replaced, with_kwargs=True).remove)


def _begin(region: Region, module: nn.Module, args: tuple, kwargs: dict) -> None:
    """A forward pre-hook of the diffusion model: forward(x, timesteps, context, ...)."""
    prompts = len((kwargs.get("transformer_options") or {}).get("cond_or_uncond") or (0,))
    reference = kwargs.get("reference_latent") if getattr(module, "ref_conv", None) is not None else None
    x, context = args[0] if args else kwargs["x"], args[2] if len(args) > 2 else kwargs.get("context")
    region.begin(x, context, prompts, reference)


def _refuse_replaced(_module: nn.Module, _args: tuple, kwargs: dict) -> None:
    replaced = (kwargs.get("transformer_options") or {}).get("patches_replace", {})
    if replaced.get("attn2"):
        raise InputError(
            "another node (such as IP-Adapter) replaces the attention to the prompt, where mask cannot limit the "
            "LoRA's key and value; set key and value of Bespoke Inject LoRA to 0, or take one of the nodes out"
        )


def _add_bias(bias: Tensor, share: Share, where: Callable[[Tensor], Tensor] | None, module, _args, _kwargs, out):
    """A forward hook: out + share * mask * bias [out]."""
    if share.now == 0.0:
        return None
    shape = bias if isinstance(module, nn.Linear) else bias.reshape(-1, *[1] * len(module.kernel_size))
    change = (share.now * shape).to(out.device, out.dtype)
    return out + (change if where is None else change * where(out))


@dataclass(frozen=True)
class _Entry:
    """A masked LoRA on a cross-attention. gate: the share of its key and value, 0 but while they are computed."""

    layer: str
    region: Region
    share: Share
    gate: Share


class _CrossAttention:
    """A forward hook of a cross-attention, one for all masked LoRAs on it: out + sum over LoRAs of mask * (out with the
    LoRA's key and value - out)."""

    known: ClassVar[weakref.WeakKeyDictionary[nn.Module, _CrossAttention]] = weakref.WeakKeyDictionary()

    def __init__(self, module: nn.Module) -> None:
        self.entries: list[_Entry] = []
        self.handle = module.register_forward_hook(self, with_kwargs=True)

    @classmethod
    def add(cls, module: nn.Module, entry: _Entry) -> Callable[[], None]:
        """Returns a function that undoes this."""
        ours = cls.known.get(module) or cls.known.setdefault(module, cls(module))
        ours.entries.append(entry)

        def undo() -> None:
            ours.entries = [one for one in ours.entries if one is not entry]
            if not ours.entries:
                ours.handle.remove()
                cls.known.pop(module, None)

        return undo

    def __call__(self, module: nn.Module, args: tuple, kwargs: dict, out: Tensor) -> Tensor:
        total = out
        for entry in self.entries:
            if entry.share.now == 0.0:
                continue
            entry.gate.now = entry.share.now
            try:
                changed = module.forward(*args, **kwargs)
            finally:
                entry.gate.now = 0.0
            total = total + entry.region.where(entry.layer, Site.PICTURE, out) * (changed - out)
        return total
