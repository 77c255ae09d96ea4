"""A LoRA beside the frozen weights: y = W x + strength * B (A x), and how much of it at which noise level.

Core's own bypass replaces each layer's `forward`, under one key that the next one overwrites. This one hangs on torch's
forward hooks, under a key of its own, so any number of them and core's stack, and come off again, in any order.

What is no such path (LoHa, LoKr, DoRA, OFT, full differences) has its weight made anew at every call, by ComfyUI's own
adapters through the layer's `weight_function`: slower, exact, and one layer's weight in memory at a time.
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

from ..patch import Patch
from .timing import Timing

Convolution = nn.Conv1d | nn.Conv2d | nn.Conv3d


@dataclass
class Level:
    """The share of strength at the present model call; one for all layers of an injection."""

    now: float = 1.0


def can_bypass(module: nn.Module | None, patch: Patch) -> bool:
    """Whether this patch can act at the call instead of in the stored weight."""
    computed = patch.weight.endswith((".weight", ".bias")) and hasattr(module, _function_list(patch.weight))
    return patch.new_shape is None and (_with_path(module, patch) is not None or computed)


def module_of(model: nn.Module, weight: str) -> nn.Module | None:
    """The layer that owns a weight by its key."""
    try:
        return comfy.utils.get_attr(model, weight.rpartition(".")[0])
    except (AttributeError, IndexError, KeyError):
        return None


def _function_list(weight: str) -> str:
    return "bias_function" if weight.endswith(".bias") else "weight_function"


def _with_path(module: nn.Module | None, patch: Patch) -> nn.Linear | Convolution | None:
    """The layer, where the patch can be a low-rank path beside it."""
    if not (patch.whole and patch.weight.endswith(".weight") and patch.low_rank):
        return None
    if isinstance(module, nn.Linear):
        return module
    if isinstance(module, Convolution) and module.groups == 1:
        mid = patch.factors[3]
        return module if mid is None or tuple(mid.shape[2:]) == tuple(module.kernel_size) else None
    return None


def add_injection(patcher, patches: Sequence[tuple[float, Patch]], timing: Timing) -> None:
    """Make these (strength, patch) act at every call of a ModelPatcher's model.

    timing: needs a diffusion model; a text encoder has no noise levels and is given `Timing()`.
    """
    add = _Injection(patches, timing)
    patcher.set_injections(f"bespoke_lora_{uuid.uuid4().hex}", [PatcherInjection(inject=add.inject, eject=add.eject)])


class _Injection:
    """What is put on a model's layers while it is loaded, and everything needed to take it off again."""

    def __init__(self, patches: Sequence[tuple[float, Patch]], timing: Timing):
        self.patches, self.timing = list(patches), timing
        self.owner: weakref.ref | None = None
        self.undo: list[Callable[[], None]] = []

    def inject(self, patcher) -> None:
        if self.undo:
            return
        self.owner = weakref.ref(patcher)
        level = Level()
        for strength, patch in self.patches:
            module = module_of(patcher.model, patch.weight)
            layer = _with_path(module, patch)
            if layer is not None:
                hook = _path(layer, patch, strength, level, patcher)
                self.undo.append(layer.register_forward_hook(hook, with_kwargs=True).remove)
            else:
                self.undo.append(_add_function(module, patch, strength, level))
        if not self.timing.always:
            hook = partial(_set_level, self.timing, level, weakref.ref(patcher.model))
            self.undo.append(patcher.model.diffusion_model.register_forward_pre_hook(hook, with_kwargs=True).remove)

    def eject(self, patcher) -> None:
        # Clones share this object, and one that is thrown away ejects what another still uses.
        owner = self.owner() if self.owner else None
        if owner is not None and owner is not patcher:
            return
        while self.undo:
            self.undo.pop()()


def _set_level(timing: Timing, level: Level, base, _, args: tuple, kwargs: dict) -> None:
    """Before each call of the diffusion model: the share of strength at its noise level."""
    sampling = base().model_sampling
    sigmas = (kwargs.get("transformer_options") or {}).get("sigmas")
    if sigmas is None:  # called by hand: the timestep's own sigma, near enough
        sigmas = sampling.sigma(args[1] if len(args) > 1 else kwargs["timesteps"])
    level.now = timing.strength(float(sigmas.flatten()[0]), sampling)


def _path(module: nn.Linear | Convolution, patch: Patch, strength: float, level: Level, patcher) -> Callable:
    up, down, alpha, mid = patch.factors
    scale = strength * (1.0 if alpha is None else alpha / down.shape[0])
    device = patcher.load_device
    dtype = _dtype(module, patcher)

    def ready(tensor: Tensor, shape: tuple[int, ...]) -> Tensor:
        # Never more memory than the file's own numbers take: where the model computes in more bits, each call widens.
        smaller = dtype if dtype.itemsize <= tensor.dtype.itemsize else tensor.dtype
        return tensor.reshape(shape).to(device, smaller)

    rank_out, rank_in = up.flatten(1).shape[1], down.shape[0]
    if isinstance(module, nn.Linear):
        factors = (
            ready(up, (-1, rank_out)).t(),
            ready(down, (rank_in, -1)),
            None if mid is None else ready(mid, mid.shape[:2]),
        )
        return partial(_linear, *factors, scale, level)
    ones = (1,) * len(module.kernel_size)
    kernel = ones if mid is not None else tuple(module.kernel_size)
    up = ready(up, (-1, rank_out, *ones))
    down = ready(down, (rank_in, -1, *kernel))
    return partial(_convolution, up, down, None if mid is None else ready(mid, mid.shape), scale, level)


def _dtype(module: nn.Linear | Convolution, patcher) -> torch.dtype:
    cast = getattr(patcher.model, "manual_cast_dtype", None)
    dtype = cast or module.weight.dtype
    return dtype if dtype.is_floating_point and dtype.itemsize > 1 else torch.float32


def _input(args: tuple, kwargs: dict, like: Tensor) -> Tensor:
    return (args[0] if args else kwargs["input"]).to(like.dtype)


def _linear(up_t, down, mid, scale, level, module, args, kwargs, out):
    """Beside a linear layer: out [..., out_features] += scale * up (down x); up_t [rank, out], down [rank, in]."""
    if level.now == 0.0 or scale == 0.0:
        return None
    x = _input(args, kwargs, out)
    hidden = F.linear(x, down.to(x.dtype))
    if mid is not None:
        hidden = F.linear(hidden, mid.to(x.dtype))
    flat, hidden, up_t = out.reshape(-1, out.shape[-1]), hidden.reshape(-1, up_t.shape[0]), up_t.to(x.dtype)
    if torch.is_grad_enabled():
        return torch.addmm(flat, hidden, up_t, alpha=scale * level.now).view(out.shape)
    # The layer's own output, which nobody else holds yet: no second one of its size.
    return flat.addmm_(hidden, up_t, alpha=scale * level.now).view(out.shape)


def _convolution(up, down, mid, scale, level, module, args, kwargs, out):
    """Beside a convolution: its own stride and padding belong to the factor that has its kernel."""
    if level.now == 0.0 or scale == 0.0:
        return None
    x = _input(args, kwargs, out)
    convolve = (F.conv1d, F.conv2d, F.conv3d)[up.ndim - 3]
    if mid is None:
        hidden = module._conv_forward(x, down.to(x.dtype), None)
    else:
        hidden = module._conv_forward(convolve(x, down.to(x.dtype)), mid.to(x.dtype), None)
    return torch.add(out, convolve(hidden, up.to(x.dtype)), alpha=scale * level.now)


def _add_function(module: nn.Module | None, patch: Patch, strength: float, level: Level) -> Callable[[], None]:
    """Make the layer compute its weight through ComfyUI's adapter at every call; gives what undoes it."""
    name = _function_list(patch.weight)
    offset, function = (None, None) if isinstance(patch.key, str) else (*patch.key[1:], None)[:2]

    def patched(weight: Tensor) -> Tensor:  # a copy that belongs to this call
        if level.now == 0.0:
            return weight
        one = (strength * level.now, patch.adapter, 1.0, offset, function)
        return comfy.lora.calculate_weight([one], weight, patch.weight, intermediate_dtype=weight.dtype)

    setattr(module, name, [*getattr(module, name), patched])

    def undo() -> None:
        setattr(module, name, [f for f in getattr(module, name) if f is not patched])

    return undo
