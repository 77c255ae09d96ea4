"""Functions in a model's forward pass that have no backward pass, or whose input is overwritten, made safe for one.

ComfyUI's classes call comfy_kitchen's kernels for rotary positions, some of them in a training too (Cosmos Predict 2,
Anima, ERNIE-Image): these have no gradient. LTX adds to its tokens in place after `rms_norm` has read them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

_NORMS = {"rms_norm", "layer_norm", "group_norm"}
_KERNELS = "comfy_kitchen::"


class DifferentiableFunctions(TorchFunctionMode):
    """Within the block comfy_kitchen's functions for rotary positions are computed by torch's own operations, and norms
    that are no layers read a copy of their input, as does `x.addcmul_(x, scale)`, which overwrites it (PixelDiT). A
    result that is written to `out=` (language models within a network, from ComfyUI 0.33) is copied there."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if getattr(func, "_qualified_op_name", "").startswith(_KERNELS):
            replacement = _ROTARY.get(name)
            if replacement is not None:
                return replacement(*args, **kwargs)
        elif name in _NORMS and args and isinstance(args[0], Tensor) and args[0].requires_grad:
            args = (args[0].clone(), *args[1:])
        elif isinstance(kwargs.get("out"), Tensor) and torch.is_grad_enabled():
            out = kwargs["out"]
            return out.copy_(func(*args, **{key: value for key, value in kwargs.items() if key != "out"}))
        elif name.endswith("_") and any(value is args[0] for value in args[1:]) and isinstance(args[0], Tensor):
            args = (args[0], *(value.clone() if value is args[0] else value for value in args[1:]))
        return func(*args, **kwargs)


@contextmanager
def differentiable(network: nn.Module, needed: bool) -> Iterator[None]:
    """Within the block the network's forward pass is within `DifferentiableFunctions`, if `needed`.

    A second pass of gradient checkpointing is not part of it and needs the context of its own.
    """
    before = vars(network).get("forward")
    forward = network.forward

    def within(*args: Any, **kwargs: Any) -> Any:
        with DifferentiableFunctions():
            return forward(*args, **kwargs)

    if needed:
        network.forward = within
    try:
        yield
    finally:
        if needed:
            vars(network).pop("forward", None)  # the class's method is in effect again
            if before is not None:
                network.forward = before


_MakeContext = Callable[[], AbstractContextManager[Any]]


def with_differentiable(context: _MakeContext, needed: bool) -> _MakeContext:
    """A maker of contexts: those of `context`, and, if `needed`, `DifferentiableFunctions` within."""

    @contextmanager
    def both() -> Iterator[None]:
        with context(), DifferentiableFunctions():
            yield

    return both if needed else context


def _rotated(x: Tensor, matrices: Tensor, halves: bool) -> Tensor:
    """Each pair of numbers of `x` [..., width], multiplied by its matrix of `matrices` [..., width / 2, 2, 2].

    halves: a pair is (i, i + width / 2), otherwise (2i, 2i + 1) (Su et al. 2021, arXiv 2104.09864, section 3.2.2).
    """
    if x.ndim > 2 and matrices.ndim > 2 and x.shape[2] != 1 and matrices.shape[2] > x.shape[2] and not halves:
        matrices = matrices[:, :, : x.shape[2]]  # positions beyond those of `x`
    pairs = x.unflatten(-1, (2, -1)).transpose(-1, -2) if halves else x.unflatten(-1, (-1, 2))
    out = (matrices * pairs.to(matrices.dtype).unsqueeze(-2)).sum(-1)
    return (out.transpose(-1, -2) if halves else out).flatten(-2).type_as(x)


def _normed(
    x: Tensor, matrices: Tensor, scale: Tensor, epsilon: float = 1e-6, rot_dim: int = 0, *, halves: bool
) -> Tensor:
    """`_rotated` of the first `rot_dim` numbers (0: all) of the normalised `x`."""
    x = torch.nn.functional.rms_norm(x, (x.shape[-1],), scale, epsilon)
    if rot_dim and rot_dim != x.shape[-1]:
        return torch.cat((_rotated(x[..., :rot_dim], matrices, halves), x[..., rot_dim:]), -1)
    return _rotated(x, matrices, halves)


def _one(halves: bool) -> Callable[..., Tensor]:
    return lambda x, freqs_cis: _rotated(x, freqs_cis, halves)


def _two(halves: bool) -> Callable[..., tuple[Tensor, Tensor]]:
    return lambda xq, xk, freqs_cis: (_rotated(xq, freqs_cis, halves), _rotated(xk, freqs_cis, halves))


def _one_normed(halves: bool) -> Callable[..., Tensor]:
    return lambda x, freqs_cis, scale, epsilon=1e-6: _normed(x, freqs_cis, scale, epsilon, halves=halves)


def _two_normed(halves: bool) -> Callable[..., tuple[Tensor, Tensor]]:
    def rotate(
        q: Tensor,
        k: Tensor,
        freqs_cis: Tensor,
        q_scale: Tensor,
        k_scale: Tensor | None = None,
        epsilon: float = 1e-6,
        rot_dim: int = 0,
    ) -> tuple[Tensor, Tensor]:
        k_scale = q_scale if k_scale is None else k_scale
        return (
            _normed(q, freqs_cis, q_scale, epsilon, rot_dim, halves=halves),
            _normed(k, freqs_cis, k_scale, epsilon, rot_dim, halves=halves),
        )

    return rotate


_ROTARY: dict[str, Callable[..., Any]] = {
    "apply_rope1": _one(False),
    "apply_rope": _two(False),
    "apply_rope_split_half1": _one(True),
    "apply_rope_split_half": _two(True),
    "rms_rope1": _one_normed(False),
    "rms_rope": _two_normed(False),
    "rms_rope_split_half1": _one_normed(True),
    "rms_rope_split_half": _two_normed(True),
}
