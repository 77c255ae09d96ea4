"""Rank dropout and module dropout of adapters, by the rules of kohya's sd-scripts (`networks/lora.py`).

Rank dropout: in each sample each of a layer's ranks counts with probability 1 - p, and then 1 / (1 - p) times. Module
dropout: with probability p a layer's adapter has no effect in a whole model call.

Each draw is a pure function of the seed, the micro-batch and the sample's position, see `randomness`. Gradient
checkpointing brings the draw of a block's first pass back when it computes the block again; see `same_draw_again`.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..errors import InputError
from ..randomness import generator
from ..tensors import to_list


@dataclass(frozen=True)
class Dropout:
    """The probabilities p, in 0 <= p < 1; 0 is off."""

    rank: float = 0.0
    module: float = 0.0

    @property
    def is_on(self) -> bool:
        return self.rank > 0 or self.module > 0


@dataclass(frozen=True)
class DropoutDraw:
    """What one model call drops.

    columns: {layer: (first, number)} of its units among all. keep: [B, units], 0 or 1 / (1 - p) for each sample; None
    without rank dropout. shared: [1, units] for layers whose rows are no samples (a text encoder's). of_rows: the
    layers that are such. dropped: the layers without an adapter in this call.
    """

    columns: Mapping[str, tuple[int, int]]
    keep: Tensor | None
    shared: Tensor | None
    of_rows: frozenset[str]
    dropped: frozenset[str]
    _moved: dict[torch.device, tuple[Tensor, Tensor]] = field(
        default_factory=dict[torch.device, tuple[Tensor, Tensor]], repr=False, compare=False
    )

    def of_layer(self, name: str, x: Tensor) -> Tensor | None:
        """The factors [rows of x, units of the layer], on the device of its input x; None without rank dropout."""
        if self.keep is None or self.shared is None:
            return None
        if x.device not in self._moved:
            self._moved[x.device] = self.keep.to(x.device), self.shared.to(x.device)
        keep, shared = self._moved[x.device]
        first, number = self.columns[name]
        if name in self.of_rows:
            return shared[:, first : first + number]
        times, rest = divmod(len(x), len(keep))
        if rest:
            raise InputError(
                f"rank_dropout is on, and {name} is called with {len(x)} rows for a batch of {len(keep)}, so that its "
                "samples cannot be told apart; set rank_dropout to 0"
            )
        own = keep[:, first : first + number]
        return own if times == 1 else own.repeat_interleave(times, 0)

    def part(self, rows: Sequence[int]) -> DropoutDraw:
        """That of some of the samples."""
        keep = None if self.keep is None else self.keep[list(rows)]
        return DropoutDraw(self.columns, keep, self.shared, self.of_rows, self.dropped)


def draw(
    dropout: Dropout,
    units: Mapping[str, int],
    of_rows: frozenset[str],
    seed: int | str,
    micro: int,
    positions: Sequence[int],
) -> DropoutDraw:
    """The draw of the samples at `positions` of the global batch of micro-batch number `micro`.

    units: {layer: how many of its ranks (or outputs) can be dropped}. of_rows: see `DropoutDraw`.
    """
    columns: dict[str, tuple[int, int]] = {}
    total = 0
    for name, number in units.items():
        columns[name] = total, number
        total += number
    gone = torch.rand(len(units), generator=generator(seed, "module dropout", micro)) < dropout.module
    dropped = frozenset(name for name, is_gone in zip(units, to_list(gone), strict=True) if is_gone)
    if not dropout.rank:
        return DropoutDraw(columns, None, None, of_rows, dropped)

    def keep(*path: int | str) -> Tensor:
        kept = torch.rand(total, generator=generator(seed, *path)) > dropout.rank
        return kept.float() / (1 - dropout.rank)

    rows = [keep("rank dropout", micro, position) for position in positions]
    shared = keep("shared rank dropout", micro)[None]
    return DropoutDraw(columns, torch.stack(rows), shared, of_rows, dropped)


class _State:
    """What is in force in this process, which trains one model at a time.

    The attributes are an instance's: torch.compile traces these and checks them at each call, but cannot trace context
    variables and does not check a class's attributes.
    """

    def __init__(self) -> None:
        self.draw: DropoutDraw | None = None
        self.is_off = False


_state = _State()


def current_draw() -> DropoutDraw | None:
    """The draw in force; None where nothing is dropped."""
    return _state.draw


@contextmanager
def in_force(found: DropoutDraw | None) -> Generator[None]:
    """Within the block adapters drop what `found` says."""
    before, _state.draw = _state.draw, found
    try:
        yield
    finally:
        _state.draw = before


@contextmanager
def without_dropout() -> Generator[None]:
    """Within the block `AdapterSet.dropping` drops nothing."""
    before, _state.is_off = _state.is_off, True
    try:
        yield
    finally:
        _state.is_off = before


def is_switched_off() -> bool:
    """Whether `without_dropout` is in effect."""
    return _state.is_off


@contextmanager
def part_of_batch(rows: Sequence[int]) -> Generator[None]:
    """Within the block the model is called with these samples of the batch alone."""
    found = current_draw()
    with in_force(None if found is None else found.part(rows)):
        yield


def same_draw_again() -> _SameDraw:
    """A context for later in which the draw is in force that is so now."""
    return _SameDraw(current_draw())


class _SameDraw:
    # No generator: the context of a block that is never computed again would then be left half-way.
    def __init__(self, found: DropoutDraw | None) -> None:
        self._found = found

    def __enter__(self) -> None:
        self._before, _state.draw = _state.draw, self._found

    def __exit__(self, *_: object) -> None:
        _state.draw = self._before
