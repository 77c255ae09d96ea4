"""The device memory of one training step, computed before anything is loaded.

The step runs once on fake tensors (shapes and dtypes without data): ComfyUI's own model code, with this pack's adapters
and gradient checkpointing. The allocations of its operations are counted.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import comfy.model_base
import comfy.model_management
import torch
from torch import Tensor, nn

from ....training.measure import LiveBytes, plain_tensors
from ....training.optimizers import OPTIMIZERS
from ..dataset.conditioning import ModelConds
from ..forward_pass.fake import FullMasks, fake_training, fake_values, fused_attention
from .autograd_views import autocast_for
from .backward_pass import prepared_for_backward
from .frozen_linear import frozen_layers

OPTIMIZER_BYTES = {name: kind.state_bytes for name, kind in OPTIMIZERS.items()}
STREAMED_LAYERS = 2  # ComfyUI copies the next layer's weights to the device while the current layer's are in use


@dataclass(frozen=True)
class StepMemory:
    """Memory of one training step, in bytes.

    weights: the frozen model, `copies` included. streamed: the weights that are on the device at once when the rest is
    offloaded. trained: the trained parameters and their optimiser state. kept: what the forward pass saves for the
    backward pass. step: the peak of both passes, with `kept` and the gradients of the trained parameters. copies: the
    copies of weights in another dtype that only a training makes.
    """

    weights: int
    streamed: int
    trained: int
    kept: int
    step: int
    copies: int = 0

    def peak(self, offload: bool = False) -> int:
        """The peak of the step in bytes. offload: count only the streamed weights."""
        return (self.streamed if offload else self.weights) + self.trained + self.step

    @property
    def without_weights(self) -> int:
        """The bytes that must be free in addition to the weights that stay on the device."""
        return self.trained + self.step


def forecast(
    base: comfy.model_base.BaseModel,
    latent: Tensor,
    conds: ModelConds,
    make_trainable: Callable[[], Sequence[nn.Parameter]] | None,
    compute: torch.dtype | None,
    gradient_checkpointing: bool,
    state_bytes: int,
    attach: Callable[[], contextlib.AbstractContextManager] = contextlib.nullcontext,
) -> StepMemory:
    """The memory of one step on a batch with the shapes of `latent` [B, C, ...] and its conditioning.

    make_trainable: makes the trained parameters, on fake tensors; None when the prompt's embedding itself is trained.
    compute: the dtype of autocast. state_bytes: bytes of the optimiser and the running mean for each trained number.
    attach: the context in which the adapters act. The model's tensors are replaced during the forecast and put back.
    """
    weight_bytes = _bytes_by_layer(base)
    copies = _converted_bytes(base, compute)
    with (
        fake_training(base),
        FullMasks(),
        frozen_layers(base, compute),
        prepared_for_backward(base.diffusion_model, gradient_checkpointing),
    ):
        numbers, kept, peak = _fake_step(base, latent, conds, make_trainable, compute, attach)
    return StepMemory(
        weights=sum(weight_bytes) + copies,
        streamed=STREAMED_LAYERS * max(weight_bytes),
        trained=numbers * (4 + state_bytes),
        kept=kept,
        step=peak,
        copies=copies,
    )


def _bytes_by_layer(base: nn.Module) -> list[int]:
    """The bytes of each layer's own parameters and buffers, without those of its children."""
    return [
        sum(part.numel() * part.element_size() for tensor in _own_tensors(layer) for part in plain_tensors(tensor))
        for layer in base.modules()
    ]


def _own_tensors(layer: nn.Module) -> list[Tensor]:
    return [tensor for tensor in (*layer._parameters.values(), *layer._buffers.values()) if tensor is not None]


def _converted_bytes(base: nn.Module, compute: torch.dtype | None) -> int:
    """The bytes of the copies in `compute` that `autograd_views` makes of float32 matrices."""
    if compute is None:
        return 0
    matrices = (m for m in base.modules() if isinstance(m, (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)))
    return sum(m.weight.numel() * compute.itemsize for m in matrices if m.weight.dtype == torch.float32)


def _fake_step(
    base: comfy.model_base.BaseModel,
    latent: Tensor,
    conds: ModelConds,
    make_trainable: Callable[[], Sequence[nn.Parameter]] | None,
    compute: torch.dtype | None,
    attach: Callable[[], contextlib.AbstractContextManager],
) -> tuple[int, int, int]:
    """Forward and backward pass on fake tensors: (trained numbers, bytes saved for the backward pass, peak bytes)."""
    noisy = torch.empty(latent.shape)
    sigma = torch.empty(len(latent))
    inputs = {name: fake_values(value) for name, value in conds.tensors().items()}
    trained: list[Tensor] = list(make_trainable()) if make_trainable else [inputs["c_crossattn"].requires_grad_()]
    autocast = autocast_for(torch.device("cpu"), compute)
    options = {"optimized_attention_override": fused_attention}
    with attach(), LiveBytes([*base.parameters(), *base.buffers(), *trained]) as live:
        with autocast():
            out = base.apply_model(noisy, sigma, transformer_options=options, **inputs)
        loss = (out.float() - noisy).square().mean()
        kept = live.now
        loss.backward()
    return sum(parameter.numel() for parameter in trained), kept, live.peak
