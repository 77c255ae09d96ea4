"""A model's weights made fit for autograd for the length of a training, and put back as they were."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import nn

from ....training.errors import InputError
from .frozen_linear import is_frozen_layer


def autocast_for(device: torch.device, compute: torch.dtype | None) -> Callable[[], contextlib.AbstractContextManager]:
    """What makes the context in which matrices are multiplied in `compute`; None leaves them their own type."""
    return contextlib.nullcontext if compute is None else partial(torch.autocast, device.type, compute)


def refuse_evictable(patcher, what: str, loader: str) -> None:
    """Raise `InputError` where weights may be taken back at any time and cannot be loaded anew to stay.

    what: "MODEL" or "CLIP". loader: which of ComfyUI's own loaders it can come from, besides the checkpoint's.
    """
    if patcher.is_dynamic() and patcher.cached_patcher_init is None:
        raise InputError(
            f"this {what}'s weights lie in memory that ComfyUI may take back at any time, and its loader left no "
            "way to load "
            f"them anew; use ComfyUI's own checkpoint or {loader} loader, or start ComfyUI with --disable-dynamic-vram"
        )


def ordinary(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor that autograd can save, over the same memory as one made in inference mode; a copy where there is no
    view.

    What it is given must not change while it is in use. Called outside of inference mode.
    """
    if hasattr(tensor, "__tensor_flatten__"):  # quantised kinds
        return tensor.detach().clone()
    try:
        return torch.from_dlpack(tensor.detach())
    except (BufferError, RuntimeError, TypeError, NotImplementedError):  # devices without the protocol
        return tensor.detach().clone()


def _untracked(tensor: torch.Tensor) -> bool:
    """Whether autograd cannot save the tensor: made in inference mode, or given other memory outside of it since.

    The latter is what `Module.to` does to such a parameter on its way to an accelerator: it is no inference tensor any
    more and still has no version counter.
    """
    if tensor.is_inference():
        return True
    try:
        return tensor._version is None
    except RuntimeError:
        return True


def _elsewhere(tensor: torch.Tensor, device: torch.device) -> bool:
    # A device without a number, as ComfyUI names a Mac's, is that of the tensor with one.
    return tensor.device.type != device.type or (device.index is not None and tensor.device.index != device.index)


@contextmanager
def autograd_views(
    module: nn.Module, device: torch.device, compute: torch.dtype | None = None
) -> Iterator[Callable[[], None]]:
    """Within the block, gradients can flow through `module`; its own parameter objects return afterwards, untouched.

    ComfyUI loads weights under `torch.inference_mode()`, and autograd refuses to save such a tensor: each one is
    replaced by a view of the same memory for as long as the block lasts. With `compute`, the float32 weights of linear
    and convolution layers are replaced by copies in that type, so that autocast need not convert them at every step.
    What only has another view meanwhile holds no memory itself: where ComfyUI unloads the model, it is given back.
    Layers that cast their weight at each call (`recast`) are left, since theirs is never saved; of all others the
    weights
    are on the device. Gives a function that does the same once more, for weights that ComfyUI has loaded meanwhile.
    """
    replaced: list[tuple[dict, str, torch.Tensor, torch.Tensor]] = []
    views: dict[int, nn.Parameter] = {}  # by the id of the parameter that it stands for, which `replaced` keeps alive

    def put(holder: dict, name: str, fit: torch.Tensor) -> None:
        replaced.append((holder, name, holder[name], fit))
        holder[name] = fit

    def view(parameter: nn.Parameter) -> nn.Parameter:
        fit = views.get(id(parameter))  # one parameter may stand in two layers
        if fit is None:
            fit = nn.Parameter(ordinary(parameter), requires_grad=False)
            if fit.data_ptr() == parameter.data_ptr():
                views[id(parameter)] = fit
                with torch.inference_mode():
                    parameter.data = parameter.new_empty(0)
        return fit

    def replace() -> None:
        for layer in module.modules():
            narrow = compute is not None and isinstance(layer, (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d))
            for name, parameter in layer._parameters.items():
                if parameter is None or is_frozen_layer(layer):
                    continue
                to = compute if narrow and parameter.dtype == torch.float32 else parameter.dtype
                if to != parameter.dtype or _elsewhere(parameter, device):
                    # Of norms, biases and the like ComfyUI may have left some elsewhere. What it would stream of them
                    # at each call does not last until the backward pass.
                    put(layer._parameters, name, nn.Parameter(parameter.detach().to(device, to), requires_grad=False))
                elif _untracked(parameter):
                    put(layer._parameters, name, view(parameter))
            for name, buffer in layer._buffers.items():
                if buffer is not None and _untracked(buffer):
                    put(layer._buffers, name, ordinary(buffer))

    try:
        replace()
        yield replace
    finally:
        for _, _, own, fit in reversed(replaced):
            if views.get(id(own)) is fit:
                with torch.inference_mode():  # an inference tensor again, as ComfyUI made it
                    own.data = ordinary(fit)
        for holder, name, own, fit in reversed(replaced):
            if holder.get(name) is fit:  # else ComfyUI has put another there meanwhile
                holder[name] = own
