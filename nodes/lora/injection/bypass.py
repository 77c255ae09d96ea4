"""Computes a LoRA at each call of a layer, W x + share * strength * B (A x), and leaves the stored weight as it is.

ComfyUI's own bypass replaces each layer's `forward`, and a second one on the same model overwrites the first. Here each
injection adds forward hooks of torch under a key of its own, so several of them, and ComfyUI's, can be combined, and
each can be removed in any order.

Adapters that are not two factors (LoHa, LoKr, DoRA, OFT, full differences) change the weight itself. For these the
layer computes its weight at each call, with ComfyUI's adapter in the layer's `weight_function`. That is slower and
exact, and needs memory for the changed weight of one layer at a time.

"Share" below is the factor that `Timing.strength` gives for the noise level of the present call.
"""

from __future__ import annotations

import uuid
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import comfy.lora
import comfy.utils
import torch
from comfy.patcher_extension import PatcherInjection
from torch import Tensor, nn
from torch.nn import functional as F

from ...bridge.noise_level import sigma_of_timestep
from ..base_adapters import BaseAdapter, in_order
from ..patch import Patch
from .timing import Timing

Convolution = nn.Conv1d | nn.Conv2d | nn.Conv3d


@dataclass
class Share:
    """The share of the strength at the present call of the model. All layers of an injection read the same object."""

    now: float = 1.0


def can_bypass(module: nn.Module | None, patch: Patch) -> bool:
    """Whether the patch can be computed at each call: by a hook, or in the layer's list of weight functions."""
    if lacks_bias(module, patch):
        return patch.bias_change is not None and isinstance(module, nn.Linear | Convolution)
    has_functions = patch.weight.endswith((".weight", ".bias")) and hasattr(module, _function_list(patch.weight))
    return patch.new_shape is None and (hookable_layer(module, patch) is not None or has_functions)


def lacks_bias(module: nn.Module | None, patch: Patch) -> bool:
    """Whether the patch changes the bias of a layer that has none."""
    return patch.weight.endswith(".bias") and getattr(module, "bias", None) is None


def module_of(model: nn.Module, weight: str) -> nn.Module | None:
    """The layer that owns the weight with the key `weight`; None where there is none."""
    try:
        return comfy.utils.get_attr(model, weight.rpartition(".")[0])
    except (AttributeError, IndexError, KeyError):
        return None


def _function_list(weight: str) -> str:
    """The attribute of ComfyUI's layers that lists the functions applied to a weight at each call."""
    return "bias_function" if weight.endswith(".bias") else "weight_function"


def hookable_layer(module: nn.Module | None, patch: Patch) -> nn.Linear | Convolution | None:
    """`module` where a forward hook can add the patch to its output, else None.

    The patch must be two factors, with or without a Tucker core, for the whole weight of a linear layer or convolution.
    """
    if not (patch.whole and patch.weight.endswith(".weight") and patch.low_rank):
        return None
    if isinstance(module, nn.Linear):
        return module
    if isinstance(module, Convolution) and module.groups == 1:
        mid = patch.factors[3]
        return module if mid is None or tuple(mid.shape[2:]) == tuple(module.kernel_size) else None
    return None


def add_injection(patcher, injection: BaseInjection) -> None:
    """Let the injection act at each call of the patcher's model, from when ComfyUI next loads it."""
    callbacks = PatcherInjection(inject=injection.inject, eject=injection.eject)
    patcher.set_injections(f"bespoke_lora_{uuid.uuid4().hex}", [callbacks])


def weights_read_at_call(patcher) -> set[str]:
    """The weights that LoRAs injected before read at each call, see `base_adapters`; nothing may be merged there."""
    owners = [getattr(one.inject, "__self__", None) for group in patcher.injections.values() for one in group]
    return {
        patch.weight
        for owner in owners
        if isinstance(owner, _Injection)
        for _, patch in owner.patches
        if isinstance(patch.adapter, BaseAdapter)
    }


class BaseInjection:
    """The hooks and weight functions of one LoRA on one model.

    ComfyUI calls `inject` when it has loaded the model and `eject` before it unloads it. Clones of the ModelPatcher
    share this object.

    timing: needs a diffusion model; a text encoder has no noise levels and is given `Timing()`. owner: the patcher that
    injected. undo: functions that remove what `inject` added.
    """

    def __init__(self, timing: Timing):
        self.timing = timing
        self.owner: weakref.ref | None = None
        self.undo: list[Callable[[], None]] = []

    def inject(self, patcher) -> None:
        if self.undo:
            return
        self.owner = weakref.ref(patcher)
        share = Share()
        self.undo += self.attach(patcher, share)
        if not self.timing.always:
            hook = partial(_update_share, self.timing, share, weakref.ref(patcher.model))
            self.undo.append(patcher.model.diffusion_model.register_forward_pre_hook(hook, with_kwargs=True).remove)

    def attach(self, patcher, share: Share) -> list[Callable[[], None]]:
        """Add the hooks; the functions that remove them."""
        raise NotImplementedError

    def eject(self, patcher) -> None:
        # A clone that is discarded calls this too, while the owner still uses the hooks.
        owner = self.owner() if self.owner else None
        if owner is not None and owner is not patcher:
            return
        while self.undo:
            self.undo.pop()()


class _Injection(BaseInjection):
    """patches: (strength, patch) each."""

    def __init__(self, patches: Sequence[tuple[float, Patch]], timing: Timing):
        super().__init__(timing)
        self.patches = list(patches)

    def attach(self, patcher, share: Share) -> list[Callable[[], None]]:
        return attach(patcher.model, self.patches, share, patcher.load_device)


def injection_of(patches: Sequence[tuple[float, Patch]], timing: Timing) -> BaseInjection:
    """(strength, patch) of each item at each call of the model; see `can_bypass`."""
    return _Injection(patches, timing)


def attach(
    model: nn.Module, patches: Sequence[tuple[float, Patch]], share: Share, device: torch.device
) -> list[Callable[[], None]]:
    """Let (strength, patch) of each item act at each call of the model's layers; see `can_bypass`.

    Returns the functions that undo it. device: where the layers compute.
    """
    undo: list[Callable[[], None]] = []
    try:
        for strength, patch in patches:
            undo.append(_attach(model, strength, patch, share, device))
    except BaseException:
        for each in undo:
            each()
        raise
    return undo


def _attach(model: nn.Module, strength: float, patch: Patch, share: Share, device: torch.device) -> Callable[[], None]:
    module = module_of(model, patch.weight)
    layer, bias = hookable_layer(module, patch), patch.bias_change
    if bias is not None and isinstance(module, nn.Linear | Convolution) and module.bias is None:
        added = _bias_of_output(module, patch, strength * bias.float()).to(device)
        return module.register_forward_hook(partial(_add_bias, added, share)).remove
    if layer is not None:
        hook = low_rank_hook(layer, patch, strength, share, device, model)
        return layer.register_forward_hook(hook, with_kwargs=True).remove
    assert module is not None
    return _add_weight_function(module, patch, strength, share)


def _update_share(timing: Timing, share: Share, base, _module, args: tuple, kwargs: dict) -> None:
    """A forward pre-hook of the diffusion model: sets the share for the noise level of the call.

    base: a weak reference to the `BaseModel`. The last three arguments are torch's.
    """
    sampling = base().model_sampling
    sigmas = (kwargs.get("transformer_options") or {}).get("sigmas")
    if sigmas is None:  # called outside of ComfyUI's sampling: take the sigma of the timestep
        sigmas = sigma_of_timestep(sampling, args[1] if len(args) > 1 else kwargs["timesteps"])
    share.now = timing.strength(float(sigmas.flatten()[0]), sampling)


def low_rank_hook(
    module: nn.Linear | Convolution,
    patch: Patch,
    strength: float,
    share: Share,
    device: torch.device,
    model: nn.Module,
    where: Callable[[Tensor], Tensor] | None = None,
) -> Callable[..., Tensor | None]:
    """A forward hook that adds the patch to the output of `module`, a layer of `model`, which computes on `device`.

    where: of the path's hidden output, [..., rank] or [B, rank, ...], the factor of each position; None for 1.
    """
    dtype = _dtype(module, model)
    up, down, alpha, mid = patch.factors
    scale = strength * (1.0 if alpha is None else alpha / down.shape[0])

    def prepared(tensor: Tensor, shape: tuple[int, ...]) -> Tensor:
        # In the narrower of both dtypes, so that no factor takes more memory than in the file. Each call casts it.
        smaller = dtype if dtype.itemsize <= tensor.dtype.itemsize else tensor.dtype
        return tensor.reshape(shape).to(device, smaller)

    rank_out, rank_in = up.flatten(1).shape[1], down.shape[0]  # they may differ where a Tucker core lies between
    if isinstance(module, nn.Linear):
        factors = (
            prepared(up, (-1, rank_out)).t(),
            prepared(down, (rank_in, -1)),
            None if mid is None else prepared(mid, mid.shape[:2]),
        )
        return partial(_linear, *factors, scale, share, where)
    ones = (1,) * len(module.kernel_size)
    kernel = ones if mid is not None else tuple(module.kernel_size)
    up = prepared(up, (-1, rank_out, *ones))
    down = prepared(down, (rank_in, -1, *kernel))
    return partial(_convolution, up, down, None if mid is None else prepared(mid, mid.shape), scale, share, where)


def _dtype(module: nn.Linear | Convolution, model: nn.Module) -> torch.dtype:
    """The dtype that the layer of the model computes in; float32 where its weight is quantised or fp8."""
    cast = getattr(model, "manual_cast_dtype", None)
    dtype = cast or module.weight.dtype
    return dtype if dtype.is_floating_point and dtype.itemsize > 1 else torch.float32


def _input(args: tuple, kwargs: dict, like: Tensor) -> Tensor:
    """The layer's input, in the dtype of `like`."""
    return (args[0] if args else kwargs["input"]).to(like.dtype)


def _linear(up_t, down, mid, scale, share, where, _module, args, kwargs, out):
    """A forward hook of a linear layer: out [..., out_features] + share * scale * up (mid (down x)).

    up_t: [rank, out]. down: [rank, in]. mid: [rank, rank] or None. where: see `low_rank_hook`. The last four arguments
    are torch's. Without gradients `out` is changed in place. None leaves the output as it is.
    """
    if share.now == 0.0 or scale == 0.0:
        return None
    x = _input(args, kwargs, out)
    hidden = F.linear(x, down.to(x.dtype))
    if mid is not None:
        hidden = F.linear(hidden, mid.to(x.dtype))
    if where is not None:
        hidden = hidden * where(hidden)
    flat, hidden, up_t = out.reshape(-1, out.shape[-1]), hidden.reshape(-1, up_t.shape[0]), up_t.to(x.dtype)
    if torch.is_grad_enabled():
        return torch.addmm(flat, hidden, up_t, alpha=scale * share.now).view(out.shape)
    # In place, to save memory: nothing else refers to the layer's output yet.
    return flat.addmm_(hidden, up_t, alpha=scale * share.now).view(out.shape)


def _convolution(up, down, mid, scale, share, where, module, args, kwargs, out):
    """A forward hook of a convolution: out + share * scale * up (mid (down x)).

    up: [out, rank, 1, ...]. down: [rank, in, *kernel], mid: None; or with a Tucker core down: [rank, in, 1, ...],
    mid: [rank, rank, *kernel]. The factor with the kernel takes the layer's stride and padding. The last four arguments
    are torch's. None leaves the output as it is.
    """
    if share.now == 0.0 or scale == 0.0:
        return None
    x = _input(args, kwargs, out)
    convolve = (F.conv1d, F.conv2d, F.conv3d)[up.ndim - 3]
    if mid is None:
        hidden = module._conv_forward(x, down.to(x.dtype), None)
    else:
        hidden = module._conv_forward(convolve(x, down.to(x.dtype)), mid.to(x.dtype), None)
    if where is not None:
        hidden = hidden * where(hidden)
    return torch.add(out, convolve(hidden, up.to(x.dtype)), alpha=scale * share.now)


def _bias_of_output(module: nn.Linear | Convolution, patch: Patch, bias: Tensor) -> Tensor:
    """What the patch's bias adds to the layer's output: [out], of a convolution [out, 1, ...]."""
    if patch.row_order is not None:
        bias = patch.row_order(bias)
    rows = module.out_features if isinstance(module, nn.Linear) else module.out_channels
    full = torch.zeros(rows)
    _, start, length = patch.offset or (0, 0, rows)
    full[start : start + length] = bias
    return full if isinstance(module, nn.Linear) else full.reshape(-1, *[1] * len(module.kernel_size))


def _add_bias(bias: Tensor, share: Share, _module, _args, out: Tensor) -> Tensor | None:
    """A forward hook: out + share * bias, for a layer without a bias. None leaves the output as it is."""
    return None if share.now == 0.0 else out + (share.now * bias).to(out.device, out.dtype)


class _WeightFunction:
    """Computes a layer's weight or bias at each call, for all injections that act on it.

    They share one such object, so that an adapter that reads the weight sees it without the others' changes. What is
    merged into the weight is part of it.
    """

    def __init__(self, key: str) -> None:
        self.key = key
        self.entries: list[tuple[float, Patch, Share]] = []

    def __call__(self, weight: Tensor) -> Tensor:
        """weight: ComfyUI's copy for this call, which may be changed in place."""
        patches = [
            (strength * share.now, patch.adapter, 1.0, patch.offset, patch.row_order)
            for strength, patch, share in self.entries
            if share.now != 0.0
        ]
        return comfy.lora.calculate_weight(in_order(patches), weight, self.key, intermediate_dtype=weight.dtype)


def _add_weight_function(module: nn.Module | None, patch: Patch, strength: float, share: Share) -> Callable[[], None]:
    """Let the layer compute its weight with ComfyUI's adapter at each call. Returns a function that undoes this."""
    name = _function_list(patch.weight)
    functions = getattr(module, name)
    ours = next((f for f in functions if isinstance(f, _WeightFunction)), None)
    if ours is None:
        ours = _WeightFunction(patch.weight)
        setattr(module, name, [*functions, ours])
    entry = (strength, patch, share)
    ours.entries.append(entry)

    def undo() -> None:
        ours.entries = [one for one in ours.entries if one is not entry]
        if not ours.entries:
            setattr(module, name, [f for f in getattr(module, name) if f is not ours])

    return undo
