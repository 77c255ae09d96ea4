"""What a kind of adapter is: the base class that `lora.py` and others implement."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor, nn

from ..errors import InputError
from ..tensors import length

if TYPE_CHECKING:
    from typing_extensions import Self


@dataclass(frozen=True)
class AdapterConfig:
    """The settings of an adapter. A kind reads those that it has; the seed decides the initial values.

    factor: how LoKr divides a layer, see `lokr.factorization`.
    """

    rank: int
    alpha: float
    seed: int
    factor: int = -1


class Adapter(nn.Module, ABC):
    """The adapter of one frozen linear layer or convolution, in float32 whatever the layer computes in.

    Names of parameters and buffers are the names of parts in files: `<layer>.<part>`.
    """

    alpha: Tensor  # the buffer of kinds that have one

    KIND: ClassVar[str]  # in error texts, and the name in `ADAPTERS`
    SHAPE_MEND: ClassVar[str] = ""  # in the error text for a state of other shapes: the settings that decide them
    ZERO_PARTS: ClassVar[tuple[str, ...]] = ()  # the parts that start at zero: while all are zero, nothing is learned

    @classmethod
    @abstractmethod
    def for_layer(cls, name: str, layer: nn.Module, config: AdapterConfig, device: torch.device) -> Self:
        """An adapter that leaves `layer` unchanged until it is trained.

        The initial values are a function of the layer's name and the seed alone. Raises `InputError` for a layer that
        this kind cannot adapt.
        """

    @abstractmethod
    def forward(self, x: Tensor, output: Tensor, keep: Tensor | None = None) -> Tensor:
        """The adapted output [..., out] from the frozen layer's input `x` [..., in] and its `output` [..., out].

        Of a convolution [B, out, H', W'] from [B, in, H, W]. keep: factors [B, dropout_units] of rank dropout, or one
        row for all samples.
        """

    @property
    def dropout_units(self) -> int:
        """How many units rank dropout can drop; 0 for a kind without."""
        return 0

    @abstractmethod
    def delta_weight(self) -> Tensor | None:
        """The change [out, in, *kernel] of the layer's weight that has the same effect; None is no change."""

    def factors(self) -> list[nn.Parameter]:
        """The parameters that the change of the weight is a product of, whatever the product; none for other kinds."""
        return []

    def change_norm(self) -> Tensor:
        """The Frobenius norm of the product of `factors`, a scalar."""
        delta = self.delta_weight()
        assert delta is not None
        return length(delta.flatten())

    @torch.no_grad()
    def limit_norm(self, max_norm: float) -> Tensor:
        """Scale the factors so that their product is at most `max_norm` long; returns the ratio, a scalar.

        kohya's `scale_weight_norms` (`apply_max_norm_regularization`): each of LoRA's two factors is multiplied by the
        root of the ratio, and so for n factors by its n-th root.
        """
        factors = self.factors()
        ratio = (max_norm / self.change_norm()).clamp(max=1.0)
        for factor in factors:
            factor.mul_(ratio ** (1 / len(factors)))
        return ratio

    def delta_bias(self) -> Tensor | None:
        """The change [out] of the layer's bias that has the same effect as the adapter; None is no change."""
        return None

    def learning_rates(self) -> dict[str, float]:
        """For each parameter by name, the multiple of the learning rate that it is trained with.

        The order is that of the optimiser's groups.
        """
        return {name: 1.0 for name, _ in self.named_parameters()}

    def _in_own_scale(self, state: Mapping[str, Tensor], rank: int) -> dict[str, Tensor]:
        """A converted state with this adapter's own alpha, and the part that starts at zero scaled in return.

        A state without alpha counts as one with alpha equal to `rank`.
        """
        out, own = dict(state), float(self.alpha)
        part = next(part for part in self.ZERO_PARTS if part in out)
        given = float(out.get("alpha", torch.tensor(float(rank))))
        if own and given != own:
            out[part] = out[part].float() * (given / own)
        return out | {"alpha": self.alpha}

    def convert_state(self, layer: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The state dict of this adapter from another training's `state` of the same layer, by part.

        Raises `InputError` where a part is missing or has another shape.
        """
        out: dict[str, Tensor] = {}
        for part, own in self.state_dict().items():
            given = state.get(part)
            if given is None and not {*state} - {"alpha"}:
                raise InputError(nothing_for(self.KIND, layer))
            if given is not None and own.numel() == given.numel() == 1:  # some programs write alpha as [1]
                given = given.reshape(own.shape)
            if given is None or given.shape != own.shape:
                has = f"no {part} at {layer}" if given is None else f"the shape {tuple(given.shape)} at {layer}.{part}"
                raise InputError(
                    f"the {self.KIND} to go on from has {has}; {tuple(own.shape)} is wanted: "
                    f"{self.SHAPE_MEND}wire in the model it was made for"
                )
            out[part] = given
        return out


def nothing_for(kind: str, layer: str) -> str:
    """The error text for a state dict without a layer."""
    return f"the {kind} to go on from has nothing for {layer}; choose the targets it was trained with"
