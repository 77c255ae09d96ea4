"""A model with fake weights: shapes and dtypes without data, so that a step of any size takes seconds."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import comfy.model_management
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from .in_place import fresh_key_caches


@contextmanager
def fake_training(base: nn.Module) -> Iterator[None]:
    """Within the block a model's tensors are fake, gradients are on, and ComfyUI is told of a training.

    Afterwards the model is as it was, with its own tensors. base: a `BaseModel` or a text encoder.
    """
    was_training = comfy.model_management.in_training
    comfy.model_management.in_training = True
    try:
        with (
            torch.inference_mode(False),
            torch.enable_grad(),
            FakeTensorMode(allow_non_fake_inputs=True),
            _restored_caches(base),
            _fake_weights(base),
            fresh_key_caches(getattr(base, "diffusion_model", base)),
        ):
            yield
    finally:
        comfy.model_management.in_training = was_training


@contextmanager
def _restored_caches(module: nn.Module) -> Iterator[None]:
    """Remove every fake tensor that the model's code cached within the block.

    Some models cache a tensor in an attribute of a layer, others in a `functools.lru_cache` (LTX's frequencies, Chroma
    Radiance's positions), which the whole process shares and any later sampling would read.
    """
    before = [(layer, dict(vars(layer))) for layer in module.modules()]
    try:
        yield
    finally:
        for layer, attributes in before:
            vars(layer).clear()
            vars(layer).update(attributes)
        for cached in _function_caches(module.modules()):
            cached.cache_clear()


def _function_caches(layers: Iterable[nn.Module]) -> set[functools._lru_cache_wrapper]:
    """Every `lru_cache` in the layers' classes, their base classes and the modules these are defined in."""
    classes = {kind for layer in layers for kind in type(layer).__mro__}
    modules = [sys.modules[name] for name in {kind.__module__ for kind in classes} if name in sys.modules]
    return {
        value
        for namespace in (*classes, *modules)
        for value in vars(namespace).values()
        if isinstance(value, functools._lru_cache_wrapper)
    }


@contextmanager
def _fake_weights(module: nn.Module) -> Iterator[None]:
    """Within the block the module's parameters and buffers are fake tensors on the CPU, and `to` leaves them there.

    `_restored_caches` must be around it.
    """
    replaced: list[tuple[dict[str, Any], str, Tensor]] = []
    try:
        for layer in module.modules():
            vars(layer)["_apply"] = partial(_stay, layer)  # some classes move a layer in their forward pass
            holders: tuple[dict[str, Any], dict[str, Any]] = (layer._parameters, layer._buffers)
            for holder in holders:
                for name, tensor in holder.items():
                    if tensor is not None:
                        replaced.append((holder, name, tensor))
                        fake = _fake(tensor)
                        holder[name] = nn.Parameter(fake, requires_grad=False) if holder is layer._parameters else fake
        yield
    finally:
        for holder, name, tensor in replaced:
            holder[name] = tensor


def _stay(layer: nn.Module, *_: Any, **__: Any) -> nn.Module:
    return layer


class FullMasks(TorchDispatchMode):
    """Within the block, a boolean mask selects all rows: fake tensors do not know how many it selects.

    A model that sends tokens to experts (HiDream) has the shapes and dependencies of one that sends all to each.
    """

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        return full_masks(func, args, kwargs or {})


def full_masks(func: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """The result of an operation, with a boolean mask as an index read as all true."""
    name = func.__name__.split(".")[0]
    if name in _INDEXING and any(isinstance(index, Tensor) and index.dtype == torch.bool for index in args[1]):
        tensor, mask = args[0], args[1][0]
        if name == "index":
            return tensor.new_empty((mask.numel(), *tensor.shape[mask.ndim :]))
        return tensor if name.endswith("_") else torch.empty_like(tensor)
    return func(*args, **kwargs)


_INDEXING = {"index", "index_put", "index_put_", "_index_put_impl_"}


def fake_values(value: Any) -> Any:
    """`value` with every tensor in lists and tuples replaced by a fake one."""
    if isinstance(value, (list, tuple)):
        return type(value)(map(fake_values, value))
    return _fake(value) if isinstance(value, Tensor) else value


def _fake(tensor: Tensor) -> Tensor:
    # A quantised matrix is cast at each call: float8 stands for any dtype that no computation is done in.
    dtype = torch.float8_e4m3fn if hasattr(tensor, "__tensor_flatten__") else tensor.dtype
    return torch.empty(tensor.shape, dtype=dtype, device="cpu")


def fused_attention(
    _default,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    heads: int,
    *_mask,
    skip_reshape: bool = False,
    skip_output_reshape: bool = False,
    **_options,
) -> Tensor:
    """The shapes of torch's fused attention, which never allocates the matrix of all pairs of tokens.

    q, k, v: [B, tokens, heads * width], or [B, heads, tokens, width] with `skip_reshape`.
    """
    if not skip_reshape:
        q, k, v = (t.view(t.shape[0], t.shape[1], -1, q.shape[-1] // heads).transpose(1, 2) for t in (q, k, v))
    if torch.is_autocast_enabled("cpu"):
        q, k, v = (t.to(torch.get_autocast_dtype("cpu")) for t in (q, k, v))
    out: Tensor = _FusedAttention.apply(q, k, v)  # [B, heads, tokens, width]
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
