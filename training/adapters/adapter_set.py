"""The adapters of all target layers of a model, trained as one."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Generic, TypeVar, cast

import torch
from torch import Tensor, nn

from ..errors import InputError
from ..optimizers import Group
from .adapter import Adapter, AdapterConfig
from .dropout import Dropout, current_draw, draw, in_force, is_switched_off
from .strength import scaled

AdapterT = TypeVar("AdapterT", bound=Adapter)
Hook = Callable[[nn.Module, tuple[Tensor, ...], Tensor], Tensor]


class AdapterSet(nn.Module, Generic[AdapterT]):
    """One adapter of a kind per target layer: a `Trainable` of `loop.py`.

    The model is not changed: the adapters act within `attached()` only, and there not within `detached()`. The state
    dict has `<layer>.<part>` keys in the order of the layers.

    kind: see `ADAPTERS`. layers: the frozen target layers by name. rates: learning rates by the beginning of a layer's
    name, instead of the run's. optional_prefix: the beginning of the names of layers that may not contribute to the
    output (a text encoder's last layer under clip skip) and so may get no gradient; their rows are no samples.
    configs: the settings of layers that have their own, by name. dropout: see `dropping`. max_norm: the longest change
    of a layer, see `Adapter.limit_norm`; 0 is no limit.
    Raises `InputError` when there is no layer, or one that cannot be adapted.
    """

    def __init__(
        self,
        kind: type[AdapterT],
        layers: Mapping[str, nn.Module],
        config: AdapterConfig,
        device: torch.device,
        rates: Mapping[str, float] | None = None,
        optional_prefix: str | None = None,
        configs: Mapping[str, AdapterConfig] | None = None,
        dropout: Dropout | None = None,
        max_norm: float = 0.0,
    ):
        super().__init__()
        if not layers:
            raise InputError("the targets name no layer of this model; choose another set of targets")
        self.kind, self.rates = kind, dict(rates or {})
        self._is_detached = False  # within `detached()`
        self.enabled = True  # while it is False, the layers' outputs stay as they are within `attached()` too
        self.dropout, self.max_norm = dropout or Dropout(), max_norm
        self._ratios = list[Tensor]()  # what the last step's changes were scaled by
        self._layers = dict(layers)  # in a dict, so that they are no submodules
        for name, layer in self._layers.items():
            # Not by `add_module`, which refuses names with dots. They make the keys `<layer>.<part>`.
            self._modules[name] = kind.for_layer(name, layer, (configs or {}).get(name, config), device)
        self.optional_layers = frozenset(
            name for name in self._layers if optional_prefix and name.startswith(optional_prefix)
        )
        # An adapter that module dropout has left out of a step has no gradient there.
        self.optional_parameters = [
            parameter
            for name, adapter in self.items()
            if name in self.optional_layers or self.dropout.module
            for parameter in adapter.parameters()
        ]

    def __getitem__(self, name: str) -> AdapterT:
        return cast(AdapterT, self._modules[name])

    def __iter__(self) -> Iterator[AdapterT]:
        return (self[name] for name in self._layers)

    def items(self) -> Iterator[tuple[str, AdapterT]]:
        """(layer name, adapter) of each layer."""
        return ((name, self[name]) for name in self._layers)

    @contextmanager
    def attached(self) -> Generator[None, None, None]:
        """Within the block every target layer's output goes through its adapter."""
        hooks = [self._layers[name].register_forward_hook(self._hook(name, adapter)) for name, adapter in self.items()]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    @contextmanager
    def detached(self) -> Generator[None, None, None]:
        """Within the block attached adapters do nothing: the model is the frozen base, to the bit, without gradients.

        No graph is recorded, since gradient checkpointing would compute it again in a backward pass outside of the
        block, with the adapters. A backward pass must not run within the block.
        """
        before, self._is_detached = self._is_detached, True
        try:
            with torch.no_grad():
                yield
        finally:
            self._is_detached = before

    def _hook(self, name: str, adapter: Adapter) -> Hook:
        def apply(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
            if self._is_detached or not self.enabled:
                return output
            found = current_draw()
            if found is None:
                return scaled(output, adapter(inputs[0], output))
            if name in found.dropped:
                return output
            return scaled(output, adapter(inputs[0], output, found.of_layer(name, inputs[0])))

        return apply

    def parameter_groups(self, learning_rate: float) -> list[Group]:
        """The optimiser's groups: the parameters of one name, of all layers with one learning rate, make one group.

        Its learning rate is that of the layers times the parameter's multiple, see `Adapter.learning_rates`.
        """
        by_rate: dict[float, list[AdapterT]] = {}
        for name, adapter in self.items():
            rate = next((rate for prefix, rate in self.rates.items() if name.startswith(prefix)), learning_rate)
            by_rate.setdefault(rate, []).append(adapter)
        groups: list[Group] = []
        for rate, adapters in by_rate.items():
            multiples = {part: times for adapter in adapters for part, times in adapter.learning_rates().items()}
            named = [dict(adapter.named_parameters()) for adapter in adapters]
            groups += [([own[part] for own in named if part in own], rate * times) for part, times in multiples.items()]
        return groups

    def dropping(self, seed: int | str, micro: int, positions: Sequence[int]) -> AbstractContextManager[None]:
        """A context in which the adapters drop ranks and layers, by `dropout.draw` of these samples of a batch."""
        if not self.dropout.is_on or is_switched_off():
            return nullcontext()
        units = {name: adapter.dropout_units for name, adapter in self.items()}
        return in_force(draw(self.dropout, units, self.optional_layers, seed, micro, positions))

    @property
    def is_limited(self) -> bool:
        return self.max_norm > 0

    def after_step(self) -> None:
        """`hold`, and count what it has scaled down, see `limited`."""
        self._ratios = self.hold()

    def hold(self) -> list[Tensor]:
        """Scale down each layer's change that is longer than `max_norm`; returns the ratios, see `limit_norm`."""
        return [adapter.limit_norm(self.max_norm) for adapter in self] if self.max_norm else []

    @property
    def limited(self) -> int:
        """How many layers' changes the last step has scaled down."""
        return sum(float(ratio) < 1 for ratio in self._ratios)

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Take over the state of another training of the same kind; see `Adapter.convert_state`.

        Raises `InputError` where it does not fit, before anything is changed. `strict` has no effect.
        """
        self._check_layers(state_dict)
        converted: dict[str, Tensor] = {}
        for name, adapter in self.items():
            keys = {part: f"{name}.{part}" for part in adapter.state_dict()}
            given = {part: state_dict[key] for part, key in keys.items() if key in state_dict}
            converted |= {keys[part]: tensor for part, tensor in adapter.convert_state(name, given).items()}
        # torch's own strict check splits the names of submodules at dots.
        return super().load_state_dict(converted, strict=False, assign=assign)

    def _check_layers(self, state: Mapping[str, Any]) -> None:
        """Raise `InputError` where the state has layers that are not trained here."""
        first_part = next(iter(next(iter(self)).state_dict()))  # every layer has it: it stands for the layer
        ending = f".{first_part}"
        others = sorted({key.removesuffix(ending) for key in state if key.endswith(ending)} - set(self._layers))
        if others:
            raise InputError(
                f"the {self.kind.KIND} to go on from has {len(others)} layers that are not trained here, such as "
                f"{others[0]}, and they would be lost; choose the targets it was trained with, and train_text_encoder "
                "if it has text layers"
            )
