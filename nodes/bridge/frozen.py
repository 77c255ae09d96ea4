"""A model's weights made fit for autograd for the length of a training, and put back as they were."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


def ordinary(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor that autograd can save, over the same memory as one made in inference mode; a copy where there is no view.

    What it is given must not change while it is in use. Called outside of inference mode.
    """
    try:
        return torch.from_dlpack(tensor.detach())
    except (BufferError, RuntimeError, TypeError, NotImplementedError):  # quantised kinds, devices without the protocol
        return tensor.detach().clone()


@contextmanager
def trainable_graph(module: nn.Module, compute: torch.dtype | None = None) -> Iterator[None]:
    """Within the block, gradients can flow through `module`; its own parameter objects return afterwards, untouched.

    ComfyUI loads weights under `torch.inference_mode()`, and autograd refuses to save such a tensor: each one is
    replaced by a view of the same memory for as long as the block lasts. With `compute`, the float32 weights of linear
    and convolution layers are replaced by copies in that type, so that autocast need not convert them at every step.
    """
    replaced: list[tuple[dict, str, torch.Tensor]] = []
    try:
        for layer in module.modules():
            narrow = compute is not None and isinstance(layer, (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d))
            for name, parameter in layer._parameters.items():
                if parameter is None:
                    continue
                to = compute if narrow and parameter.dtype == torch.float32 else parameter.dtype
                if to != parameter.dtype:
                    fit = parameter.detach().to(to)
                elif parameter.is_inference():
                    fit = ordinary(parameter)
                else:
                    continue
                replaced.append((layer._parameters, name, parameter))
                layer._parameters[name] = nn.Parameter(fit, requires_grad=False)
            for name, buffer in layer._buffers.items():
                if buffer is not None and buffer.is_inference():
                    replaced.append((layer._buffers, name, buffer))
                    layer._buffers[name] = ordinary(buffer)
        yield
    finally:
        for holder, name, tensor in replaced:
            holder[name] = tensor
