"""Lets gradients flow past tensors that other nodes have made in inference mode.

ComfyUI runs nodes under `torch.inference_mode()`, so what a node hangs beside a model (a hypernetwork's layers, the
factors of a LoRA in bypass, a control vector) are tensors that autograd refuses to save for the backward pass. The
model's own parameters are dealt with in `autograd_views`; these lie in closures and objects that are not ours.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from ..wire.table import is_set


class _NormalTensors(TorchFunctionMode):
    """Within it, each torch function gets a copy that autograd can save in the place of an inference tensor.

    copies: {id: (the inference tensor, its copy)}, which also keeps the id from being used again.
    """

    def __init__(self, copies: dict[int, tuple[Tensor, Tensor]]):
        super().__init__()
        self._copies = copies

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        return func(*map(self._normal, args), **{name: self._normal(value) for name, value in kwargs.items()})

    def _normal(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            return self._copy_of(value) if value.is_inference() else value
        if type(value) in (list, tuple) and any(isinstance(item, Tensor) for item in value):
            return type(value)(map(self._normal, value))
        return value

    def _copy_of(self, tensor: Tensor) -> Tensor:
        if id(tensor) not in self._copies:
            with torch._C.DisableTorchFunction():
                self._copies[id(tensor)] = (tensor, tensor.detach().clone())
        return self._copies[id(tensor)][1]


def normal_tensors(patcher: Any) -> Callable[[], AbstractContextManager[Any]]:
    """A factory of the context in which a training calls the model.

    The context costs a few microseconds for each torch function, so it is empty unless other nodes have put code on
    the patcher: injections, wrappers, callbacks, hooks, functions or modules in the place of the model's (but for its
    noise levels), or anything in `model_options`.
    """
    options = dict(patcher.model_options)
    options |= options.pop("transformer_options", {})
    replaced = [each for name, each in patcher.object_patches.items() if name != "model_sampling" and callable(each)]
    places = (options, replaced, patcher.injections, patcher.wrappers, patcher.callbacks, patcher.hook_patches)
    has_code = is_set(places)
    copies: dict[int, tuple[Tensor, Tensor]] = {}
    return (lambda: _NormalTensors(copies)) if has_code else contextlib.nullcontext
