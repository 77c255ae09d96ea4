"""What a training step will take of the device's memory, computed before anything is loaded, and whether it fits.

The step is run once on fake tensors: ComfyUI's own model code and this pack's adapters and checkpointing, with shapes
and types but no numbers. What the operations would allocate is counted as they come and go.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import comfy.model_base
import comfy.model_management
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from ....training.errors import InputError
from ....training.measure import LiveBytes, plain_tensors
from ..dataset.conditioning import ModelConds
from ..models import checkpoint_blocks, overwritten
from .autograd_views import autocast_for
from .checkpointing import checkpointed
from .frozen_linear import frozen_layers
from .in_place import keep_layer_inputs

# Bytes of each trained number beside itself and its gradient, which the step has: the optimiser's float32 state.
OPTIMIZER_BYTES = {"AdamW": 8, "Adafactor": 1, "SGD": 4}
STREAMS = 2  # ComfyUI brings one layer's weights while another's are in use
MEMORY_ADVICE = "batch_size 1 with gradient_accumulation, a smaller resolution of the pictures"
SMALL = 50  # a model of less than a fiftieth of the memory needs no forecast


@dataclass(frozen=True)
class StepMemory:
    """Bytes of one training step.

    weights: the frozen model. copies: the part of that which is made for the training. streamed: the part of it that
    must be on the device at once where the rest is offloaded.
    trained: what is learned, with the optimiser's state. kept: what the forward pass keeps for the backward. step: the
    most that the two passes hold at once, what is kept and the gradients of what is learned among it.
    """

    weights: int
    streamed: int
    trained: int
    kept: int
    step: int
    copies: int = 0

    def peak(self, offload: bool = False) -> int:
        return (self.streamed if offload else self.weights) + self.trained + self.step

    @property
    def beside(self) -> int:
        """What must be free beside the weights that stay on the device."""
        return self.trained + self.step


@dataclass(frozen=True)
class Plan:
    """What a forecast means for a training.

    leave_free: see `prepare_for_training`. said: the end of the line before the first step; empty without a forecast.
    """

    leave_free: int | None = None
    said: str = ""


def plan(model, step: Callable[[], StepMemory], helps: str = MEMORY_ADVICE) -> Plan:
    """How to load a MODEL for a training. step: makes the forecast of one step. helps: what a user can do against a
    full memory."""
    device = model.load_device
    need = try_forecast(model.model, device, step)
    if need is None:
        return Plan()
    offload = offloads(need, room(device), can_offload(device), device.type == "cpu", helps)
    return Plan(need.beside if offload else None, f"; {said(need, offload)}")


def forecast(
    base: comfy.model_base.BaseModel,
    latent: Tensor,
    conds: ModelConds,
    learn: Callable[[], Sequence[nn.Parameter]] | None,
    compute: torch.dtype | None,
    gradient_checkpointing: bool,
    state_bytes: int,
    attached: Callable[[], contextlib.AbstractContextManager] = contextlib.nullcontext,
) -> StepMemory:
    """What a step on a batch like `latent` [B, C, ...] and its conditioning takes. Only their shapes count.

    learn: makes the trained parameters, on fake tensors; None where the prompt itself is learned. attached: the block
    within which they act. compute: the type of autocast. state_bytes: the optimiser's and the running mean's, for each
    trained number. The model's own tensors are put aside for that long and come back as they were.
    """
    frozen = [
        (part.numel() * part.element_size(), layer)
        for layer in base.modules()
        for own in _tensors_of(layer)
        for part in plain_tensors(own)
    ]
    weights, by_layer = sum(size for size, _ in frozen), {}
    for size, layer in frozen:
        by_layer[id(layer)] = by_layer.get(id(layer), 0) + size
    copies = 0
    if compute is not None:  # float32 matrices are there twice, see `autograd_views`
        matrices = (m for m in base.modules() if isinstance(m, (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)))
        copies = sum(m.weight.numel() * compute.itemsize for m in matrices if m.weight.dtype == torch.float32)
    blocks = checkpoint_blocks(base.diffusion_model) if gradient_checkpointing else []
    in_place = overwritten(base.diffusion_model)
    options = {"optimized_attention_override": _attention}
    was_training = comfy.model_management.in_training
    comfy.model_management.in_training = True
    try:
        with (
            torch.inference_mode(False),
            torch.enable_grad(),
            FakeTensorMode(allow_non_fake_inputs=True),
            _nothing_kept(base),
            _fake_weights(base),
            frozen_layers(base, compute),
            keep_layer_inputs(in_place),
            checkpointed(blocks, bool(in_place)),
        ):
            noisy = torch.empty(latent.shape)
            sigma = torch.empty(len(latent))
            given = {name: _fake(value) for name, value in conds.tensors().items()}
            trained = list(learn()) if learn else [given["c_crossattn"].requires_grad_()]
            autocast = autocast_for(torch.device("cpu"), compute)
            with attached(), LiveBytes([*base.parameters(), *base.buffers(), *trained]) as live:
                with autocast():
                    out = base.apply_model(noisy, sigma, transformer_options=options, **given)
                loss = (out.float() - noisy).square().mean()
                kept = live.now
                loss.backward()
            numbers = sum(parameter.numel() for parameter in trained)
    finally:
        comfy.model_management.in_training = was_training
    return StepMemory(
        weights + copies, STREAMS * max(by_layer.values()), numbers * (4 + state_bytes), kept, live.peak, copies
    )


def _tensors_of(layer: nn.Module) -> list[Tensor]:
    return [tensor for tensor in (*layer._parameters.values(), *layer._buffers.values()) if tensor is not None]


@contextmanager
def _nothing_kept(module: nn.Module) -> Iterator[None]:
    """After the block the model has no fake tensor that its code has put aside for the next call.

    Some keep one in a layer's attribute, some in a `functools` cache (LTX's frequencies, Chroma Radiance's positions),
    which
    the whole process shares and any later sampling would read from.
    """
    before = [(layer, dict(vars(layer))) for layer in module.modules()]
    kinds = {kind for layer in module.modules() for kind in type(layer).__mro__}
    homes = [*kinds, *(sys.modules[name] for name in {kind.__module__ for kind in kinds} if name in sys.modules)]
    try:
        yield
    finally:
        for layer, own in before:
            vars(layer).clear()
            vars(layer).update(own)
        for cached in {
            value for home in homes for value in vars(home).values() if isinstance(value, functools._lru_cache_wrapper)
        }:
            cached.cache_clear()


@contextmanager
def _fake_weights(module: nn.Module) -> Iterator[None]:
    """Within the block the module's tensors are fake ones, on the CPU: shapes and types without numbers."""
    replaced = []
    try:
        for layer in module.modules():
            for holder in (layer._parameters, layer._buffers):
                for name, tensor in holder.items():
                    if tensor is not None:
                        replaced.append((holder, name, tensor))
                        fake = _fake(tensor)
                        holder[name] = nn.Parameter(fake, requires_grad=False) if holder is layer._parameters else fake
        yield
    finally:
        for holder, name, tensor in replaced:
            holder[name] = tensor


def _fake(value):
    if isinstance(value, (list, tuple)):
        return type(value)(map(_fake, value))
    if not isinstance(value, Tensor):
        return value
    # A quantised matrix is cast at each call: any type that is no type of a computation stands for its own.
    dtype = torch.float8_e4m3fn if hasattr(value, "__tensor_flatten__") else value.dtype
    return torch.empty(value.shape, dtype=dtype, device="cpu")


def _attention(
    _chosen, q: Tensor, k: Tensor, v: Tensor, heads: int, *_mask, skip_reshape=False, skip_output_reshape=False, **_how
):
    """The shapes of torch's fused attention, which never holds the table of all pairs."""
    if not skip_reshape:
        q, k, v = (t.view(t.shape[0], t.shape[1], -1, q.shape[-1] // heads).transpose(1, 2) for t in (q, k, v))
    if torch.is_autocast_enabled("cpu"):
        q, k, v = (t.to(torch.get_autocast_dtype("cpu")) for t in (q, k, v))
    out = _FusedAttention.apply(q, k, v)  # [B, heads, tokens, width]
    return out if skip_output_reshape else out.transpose(1, 2).reshape(out.shape[0], out.shape[2], -1)


class _FusedAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out = torch.empty_like(q[..., :1].expand(*q.shape[:-1], v.shape[-1]), memory_format=torch.contiguous_format)
        log_sum = torch.empty(q.shape[:-1])
        ctx.save_for_backward(q, k, v, out, log_sum)
        return out

    @staticmethod
    def backward(ctx, _grad: Tensor):
        q, k, v, *_ = ctx.saved_tensors
        return torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)


# --- does it fit ----------------------------------------------------------------------------------------------------


def room(device: torch.device) -> int:
    """Bytes that a training may fill: what is free on the device and what ComfyUI's loaded models there would give
    back."""
    free = comfy.model_management.get_free_memory(device)
    if device.type != "cpu":
        loaded = (m for m in comfy.model_management.current_loaded_models if m.device == device and m.model is not None)
        free += sum(m.model_loaded_memory() for m in loaded) - comfy.model_management.extra_reserved_memory()
    return int(free)


def can_offload(device: torch.device) -> bool:
    """Whether ComfyUI can leave weights in the computer's memory while the model runs on this device."""
    states = comfy.model_management.VRAMState
    return device.type != "cpu" and comfy.model_management.vram_state in (
        states.NO_VRAM,
        states.LOW_VRAM,
        states.NORMAL_VRAM,
    )


def offloads(
    step: StepMemory, free: int, possible: bool, weights_there: bool = False, helps: str = MEMORY_ADVICE
) -> bool:
    """Whether weights must be offloaded for the step to fit into `free` bytes.

    possible: whether they can be. weights_there: the weights are in that memory already, as on the CPU. helps: what a
    user can do. Where even that is not enough: on the CPU, where the system would end the whole server, `InputError`;
    an
    accelerator says itself when it is full, so a forecast that may be wrong forbids nothing there and is only logged.
    """
    least = step.peak() - (step.weights - step.copies if weights_there else 0)
    if least <= free:
        return False
    if possible:
        least = step.peak(offload=True)
        if least <= free:
            return True
    needed = (
        f"a step needs about {gigabytes(least)}{' with the weights offloaded' if possible else ''} and "
        f"{gigabytes(free)} are "
        f"free; what lowers it: {helps}"
    )
    if weights_there:
        raise InputError(needed)
    logging.warning("Bespoke: %s. It is tried all the same", needed)
    return possible


def said(step: StepMemory, offload: bool) -> str:
    """The forecast for the line before the first step."""
    weights = gigabytes(step.weights) + (", offloaded as far as they do not fit" if offload else "")
    return (
        f"{'at least' if offload else 'about'} {gigabytes(step.peak(offload))} at the peak (weights {weights}; step "
        f"{gigabytes(step.step)}; learned {gigabytes(step.trained)})"
    )


def gigabytes(size: int) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e8 else f"{size / 1e6:.0f} MB"


def try_forecast(
    base: comfy.model_base.BaseModel, device: torch.device, make: Callable[[], StepMemory]
) -> StepMemory | None:
    """The forecast, or None where none is needed (a small model) or none can be made (a model whose code looks at
    numbers)."""
    if comfy.model_management.module_size(base) * SMALL < room(device):
        return None
    try:
        return make()
    except Exception as error:  # of any kind: models of other packs run here, on tensors they were not written for
        logging.info("Bespoke: no forecast of the memory for a %s (%s)", type(base).__name__, error)
        return None
