"""torch's calls that its own annotations leave untyped, with types."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor


def backward(loss: Tensor) -> None:
    """Add the gradient of the scalar `loss` to the parameters' `grad`."""
    loss.backward()  # pyright: ignore[reportUnknownMemberType]


def to_list(tensor: Tensor) -> list[Any]:
    """The numbers of a tensor [N]: int, float or bool by its type."""
    return cast("list[Any]", tensor.tolist())  # pyright: ignore[reportUnknownMemberType]


def length(vectors: Tensor, keepdim: bool = False) -> Tensor:
    """The Euclidean length over the last dimension."""
    norm = cast("Callable[..., Tensor]", torch.linalg.vector_norm)  # pyright: ignore[reportUnknownMemberType]
    return norm(vectors, dim=-1, keepdim=keepdim)


def divide(tensors: list[Tensor], by: float) -> None:
    """Divide each tensor by a number in place, with one kernel for all."""
    torch._foreach_div_(tensors, by)  # pyright: ignore[reportPrivateUsage, reportPrivateImportUsage]


def interpolate(tensors: list[Tensor], others: list[Tensor], share: float) -> None:
    """tensor + share * (other - tensor) for each, in place, with one kernel for all."""
    torch._foreach_lerp_(tensors, others, share)  # pyright: ignore[reportPrivateUsage, reportPrivateImportUsage]


def inverse_normal(probability: Tensor) -> Tensor:
    """The standard normal number that is exceeded with 1 - `probability`."""
    ndtri = cast("Callable[[Tensor], Tensor]", torch.special.ndtri)  # pyright: ignore[reportUnknownMemberType]
    return ndtri(probability)


def inner_product(tensors: list[Tensor], others: list[Tensor]) -> float:
    """The sum of the products of all numbers of two lists of tensors. One transfer from the device."""
    products = [torch.dot(one.flatten(), other.flatten()) for one, other in zip(tensors, others, strict=True)]
    return float(torch.stack(products).cpu().double().sum())


def sum_of_sizes(tensors: list[Tensor]) -> float:
    """The sum of the absolute values of all numbers. One transfer from the device."""
    norms = cast("Callable[..., list[Tensor]]", torch._foreach_norm)  # pyright: ignore[reportPrivateUsage, reportPrivateImportUsage]
    return float(torch.stack(norms(tensors, 1)).cpu().double().sum())
