"""What the text encoders add to the device memory of a training step that a gradient flows through them in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from ....training.measure import LiveBytes
from ..forward_pass.differentiable import DifferentiableFunctions
from ..forward_pass.fake import fake_training
from .autograd_views import autocast_for
from .learned_encoder import backward_through, encode_without_padding
from .memory_forecast import StepMemory


@dataclass(frozen=True)
class EncoderMemory:
    """Bytes of one encoder. weights: as they lie. kept: what its forward pass saves for the backward pass of all
    prompts. peak: the most in use in both passes, besides the weights."""

    weights: int
    kept: int
    peak: int


def encoder_memory(encoder: Any, tokens: Sequence[Any], prompts: int, compute: torch.dtype | None) -> EncoderMemory:
    """The memory of `prompts` passes of an encoder over a prompt, on fake tensors.

    encoder: ComfyUI's `SDClipModel`. tokens: the numbers of one prompt; the first of them stands for the learned
    vector. compute: the dtype of autocast.
    """
    weights = sum(each.numel() * each.element_size() for each in encoder.parameters())
    width = encoder.transformer.get_input_embeddings().weight.shape[1]
    with fake_training(encoder), backward_through([encoder], compute):
        vector = torch.zeros(width, requires_grad=True)
        autocast = autocast_for(torch.device("cpu"), compute)
        with DifferentiableFunctions(), LiveBytes([*encoder.parameters(), *encoder.buffers(), vector]) as live:
            with autocast():
                out = encode_without_padding(encoder, [[vector, *tokens[1:]]])
            kept = live.now
            out[0].float().square().mean().backward()
        peak = live.peak
    return EncoderMemory(weights, kept * prompts, peak + kept * (prompts - 1))


def with_encoders(step: StepMemory, encoders: Sequence[EncoderMemory]) -> StepMemory:
    """A step's memory with that of the encoders that run in it: what they keep is held while the model runs."""
    kept = sum(each.kept for each in encoders)
    peaks = [each.peak + kept - each.kept for each in encoders]
    return replace(
        step,
        weights=step.weights + sum(each.weights for each in encoders),
        kept=step.kept + kept,
        step=max(step.step + kept, *peaks) if peaks else step.step,
    )
