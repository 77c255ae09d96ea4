"""Refuses code of other nodes through which no gradient flows, found by trying it.

A layer before such code would get no gradient, or a part of it, and the training would go on without a word.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn

from ....training.errors import InputError
from ....training.tensors import backward
from ..wire.foreign_code import code_name

_Attention = Callable[..., Tensor]


def _refusal(name: str, why: str) -> InputError:
    return InputError(
        f"the MODEL carries {name}, {why}; wire the MODEL from before that node into the trainer. The node may follow "
        "the trainer"
    )


class _Checked:
    """Another node's function, with its attributes."""

    def __init__(self, code: Any) -> None:
        self._code = code

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["_code"], name)


class _CheckedPatch(_Checked):
    """Raises `InputError` where a result has no graph and an argument has one.

    copies: the patch gets copies of its arguments, and what it saves for the backward pass is copied, so that it may
    write into either (FreeU does both).
    """

    def __init__(self, code: Any, copies: bool) -> None:
        super().__init__(code)
        self._copies = copies

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self._copies and torch.is_grad_enabled() and _has_graph(args):
            own = [value.clone() if isinstance(value, Tensor) and value.requires_grad else value for value in args]
            with torch.autograd.graph.saved_tensors_hooks(Tensor.clone, lambda tensor: tensor):
                out = self._code(*own, **kwargs)
        else:
            out = self._code(*args, **kwargs)
        if torch.is_grad_enabled() and _has_graph((args, kwargs)):
            tensors = list(_tensors(out))
            if tensors and not any(tensor.requires_grad for tensor in tensors):
                raise _refusal(code_name(self._code), "which has no backward pass, so what is before it cannot learn")
        return out


class _CheckedAttention(_Checked):
    """Tries the gradients to queries, keys and values once, on the first call that needs them."""

    def __init__(self, code: Any, plain: _Attention) -> None:
        super().__init__(code)
        self._plain, self._tried = plain, False

    def __call__(self, default: Any, *args: Any, **kwargs: Any) -> Any:
        if not self._tried and torch.is_grad_enabled() and _has_graph(args[:3]):
            self._tried = True
            self._try(default, args, kwargs)
        return self._code(default, *args, **kwargs)

    def _try(self, default: Any, args: tuple, kwargs: Mapping[str, Any]) -> None:
        why = "an attention without a backward pass, so the layers before it cannot learn"
        try:
            own = _attention_gradients(self._code, default, args, kwargs)
        except (RuntimeError, NotImplementedError) as error:
            raise _refusal(code_name(self._code), f"{why} ({str(error).splitlines()[0][:100]})") from error
        plain = _attention_gradients(self._plain, default, args, kwargs)
        if any(expected and not found for found, expected in zip(own, plain, strict=True)):
            raise _refusal(code_name(self._code), why)


def _attention_gradients(attention: _Attention, default: Any, args: tuple, kwargs: Mapping[str, Any]) -> list[bool]:
    """Whether a gradient reaches queries, keys and values."""
    # Hooks of our own, so that the trial is apart from what gradient checkpointing saves.
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: tensor, lambda tensor: tensor):
        parts = [part.detach().clone().requires_grad_() for part in args[:3]]
        out = attention(default, *parts, *args[3:], **dict(kwargs))
        if not out.requires_grad:
            return [False] * len(parts)
        found = torch.autograd.grad((out.float() ** 2).sum(), parts, allow_unused=True)
    return [part is not None and bool(part.any()) for part in found]


def checked_attention(code: Any, plain: _Attention) -> Any:
    """An `optimized_attention_override` that is refused where it has no backward pass. plain: one that has."""
    return _CheckedAttention(code, plain)


def checked_patches(patches: Mapping[Any, Any]) -> dict[Any, Any]:
    """Patches by name, in nested mappings and lists, that are refused where they have no backward pass."""
    return {key: _checked(value, key in _BLOCK_PATCHES) for key, value in patches.items()}


# Of a U-Net, which takes their results: whatever they do to their arguments counts no more.
_BLOCK_PATCHES = frozenset({"input_block_patch", "input_block_patch_after_skip", "output_block_patch"})


def _checked(value: Any, copies: bool) -> Any:
    if isinstance(value, Mapping):
        return checked_patches(value)
    if isinstance(value, list):
        return [_checked(each, copies) for each in value]
    return _CheckedPatch(value, copies) if callable(value) else value


def _tensors(value: Any, depth: int = 3) -> Iterator[Tensor]:
    """The tensors in a value and, to a depth, in its lists and mappings."""
    if isinstance(value, Tensor):
        yield value
    elif depth and isinstance(value, (list, tuple)):
        for each in value:
            yield from _tensors(each, depth - 1)
    elif depth and isinstance(value, Mapping):
        for each in value.values():
            yield from _tensors(each, depth - 1)


def _has_graph(value: Any) -> bool:
    return any(tensor.requires_grad for tensor in _tensors(value))


def check_gradients(
    loss: Callable[[], Tensor | None],
    groups: Iterable[tuple[str, list[nn.Parameter]]],
    without_code: Callable[[], AbstractContextManager[None]],
    code: Iterable[str],
) -> None:
    """Raise `InputError` where the code on the wire keeps the gradient from a part of what is trained.

    One forward and backward pass; where a part gets no gradient, another one without the code says whose fault it is.
    loss: of one batch; None where this process has no share of it. groups: the parameters of each part, by name.
    without_code: a context in which the model is called without the code. code: its names.
    """
    parts = list(groups)
    without = _without_gradient(loss, parts)
    if not without:
        return
    with without_code():
        by_itself = set(_without_gradient(loss, parts))
    at_fault = [name for name in without if name not in by_itself]
    if at_fault:
        of = f"{', '.join(at_fault[:3])}{' and others' if len(at_fault) > 3 else ''} ({len(at_fault)} of {len(parts)})"
        raise _refusal(" and ".join(code), f"through which no gradient comes to {of}, so that would learn nothing")


def _without_gradient(loss: Callable[[], Tensor | None], parts: list[tuple[str, list[nn.Parameter]]]) -> list[str]:
    """The names of the parts to which no gradient comes; none where there is no loss."""
    value = loss()
    if value is None:
        return []
    if value.requires_grad:
        backward(value)
    out = []
    for name, parameters in parts:
        if not any(each.grad is not None and bool(each.grad.any()) for each in parameters):
            out.append(name)
        for each in parameters:
            each.grad = None
    return out
