"""A model's weights as tensors that autograd can save, for the duration of a training."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ....training.errors import InputError
from .frozen_linear import is_frozen_layer


def autocast_for(
    device: torch.device, compute: torch.dtype | None
) -> Callable[[], contextlib.AbstractContextManager[Any]]:
    """A factory of the context in which matrices are multiplied in `compute`; None keeps their own dtype."""
    return contextlib.nullcontext if compute is None else partial(torch.autocast, device.type, compute)


def check_reloadable(patcher, what: str, loader: str) -> None:
    """Raise `InputError` where ComfyUI may evict the weights at any time and cannot load them anew to stay.

    what: "MODEL" or "CLIP". loader: the ComfyUI loader that it can come from instead, besides the checkpoint's.
    """
    if patcher.is_dynamic() and patcher.cached_patcher_init is None:
        raise InputError(
            f"this {what}'s weights lie in memory that ComfyUI may take back at any time, and its loader left no "
            f"way to load them anew; use ComfyUI's own checkpoint or {loader} loader, or start ComfyUI with "
            "--disable-dynamic-vram"
        )


def autograd_view(tensor: Tensor) -> Tensor:
    """A tensor over the same memory that autograd can save, also where `tensor` was made in inference mode.

    A copy for quantised tensors and on devices without DLPack. Call it outside of inference mode; the memory must not
    change while the view is in use.
    """
    if hasattr(tensor, "__tensor_flatten__"):  # quantised tensors
        return tensor.detach().clone()
    try:
        return torch.from_dlpack(tensor.detach())
    except (BufferError, RuntimeError, TypeError, NotImplementedError):  # devices without the protocol
        return tensor.detach().clone()


def _lacks_version_counter(tensor: Tensor) -> bool:
    """Whether autograd cannot save the tensor: made in inference mode, or given other memory outside of it since.

    `Module.to` does the latter to such a parameter on its way to an accelerator: it is no inference tensor any more and
    still has no version counter.
    """
    if tensor.is_inference():
        return True
    try:
        return tensor._version is None
    except RuntimeError:
        return True


def _on_other_device(tensor: Tensor, device: torch.device) -> bool:
    # A device without an index, as ComfyUI names a Mac's, is the tensor's device with any index.
    return tensor.device.type != device.type or (device.index is not None and tensor.device.index != device.index)


@contextmanager
def autograd_views(
    module: nn.Module, device: torch.device, compute: torch.dtype | None = None
) -> Iterator[Callable[[], None]]:
    """Within the block, gradients can flow through `module`; its own parameter objects are put back afterwards.

    ComfyUI loads weights under `torch.inference_mode()`, and autograd refuses to save such tensors: each one is
    replaced by a view of the same memory. With `compute`, the float32 weights of linear and convolution layers are
    replaced by copies in that dtype, so that autocast need not convert them at every step. A parameter that has a view
    holds no memory itself, so that ComfyUI can free it when it unloads the model. Layers that cast their weight at each
    call (`frozen_layers`) are left out, since their weight is never saved. The weights of all others are on the device.

    Gives a function that replaces anew what ComfyUI has loaded since.
    """
    replacements = _Replacements(module, device, compute)
    try:
        replacements.apply()
        yield replacements.apply
    finally:
        replacements.undo()


class _Replacements:
    """The parameters and buffers of `module` that other tensors stand in for."""

    def __init__(self, module: nn.Module, device: torch.device, compute: torch.dtype | None):
        self._module, self._device, self._compute = module, device, compute
        self._replaced: list[tuple[dict[str, Any], str, Tensor, Tensor]] = []  # (holder, name, original, replacement)
        self._views: dict[int, nn.Parameter] = {}  # by the id of the original, which `_replaced` keeps alive

    def apply(self) -> None:
        for layer in self._module.modules():
            if not is_frozen_layer(layer):
                for name, parameter in layer._parameters.items():
                    if parameter is not None:
                        self._replace_parameter(layer, name, parameter)
            for name, buffer in layer._buffers.items():
                if buffer is not None and _lacks_version_counter(buffer):
                    self._put(layer._buffers, name, autograd_view(buffer))

    def undo(self) -> None:
        for _, _, original, replacement in reversed(self._replaced):
            if self._views.get(id(original)) is replacement:
                with torch.inference_mode():  # an inference tensor again, as ComfyUI made it
                    original.data = autograd_view(replacement)
        for holder, name, original, replacement in reversed(self._replaced):
            if holder.get(name) is replacement:  # otherwise ComfyUI has put another one there meanwhile
                holder[name] = original

    def _replace_parameter(self, layer: nn.Module, name: str, parameter: nn.Parameter) -> None:
        dtype = parameter.dtype
        matrix = isinstance(layer, (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d))
        if self._compute is not None and matrix and dtype == torch.float32:
            dtype = self._compute
        if dtype != parameter.dtype or _on_other_device(parameter, self._device):
            # ComfyUI may have left norms, biases and the like on another device. What it would stream of them at each
            # call does not last until the backward pass.
            copied = parameter.detach().to(self._device, dtype)
            self._put(layer._parameters, name, nn.Parameter(copied, requires_grad=False))
        elif _lacks_version_counter(parameter):
            self._put(layer._parameters, name, self._view(parameter))

    def _put(self, holder: dict[str, Any], name: str, replacement: Tensor) -> None:
        self._replaced.append((holder, name, holder[name], replacement))
        holder[name] = replacement

    def _view(self, parameter: nn.Parameter) -> nn.Parameter:
        view = self._views.get(id(parameter))  # one parameter may be used by two layers
        if view is None:
            view = nn.Parameter(autograd_view(parameter), requires_grad=False)
            if view.data_ptr() == parameter.data_ptr():
                self._views[id(parameter)] = view
                with torch.inference_mode():
                    parameter.data = parameter.new_empty(0)
        return view
