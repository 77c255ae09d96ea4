"""The strength at which attached adapters act in a training, as a loader's strength: 1 is what is learned, -1 its
opposite.

Gradient checkpointing brings the strength of a block's first pass back when it computes the block again; see
`same_strength_again`.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager

from torch import Tensor


class _State:
    """What is in force in this process, which trains one model at a time; see `dropout._State`."""

    def __init__(self) -> None:
        self.strength = 1.0


_state = _State()


def current_strength() -> float:
    """The strength in force; 1 outside of `at_strength`."""
    return _state.strength


@contextmanager
def at_strength(strength: float) -> Generator[None]:
    """Within the block every adapter changes its layer's output `strength` times as much."""
    before, _state.strength = _state.strength, strength
    try:
        yield
    finally:
        _state.strength = before


def scaled(output: Tensor, adapted: Tensor) -> Tensor:
    """The layer's `output` with `current_strength` times the change that makes `adapted` of it."""
    return adapted if _state.strength == 1.0 else output + _state.strength * (adapted - output)


def same_strength_again() -> _SameStrength:
    """A context for later in which the strength is in force that is so now."""
    return _SameStrength(current_strength())


class _SameStrength:
    # No generator: the context of a block that is never computed again would then be left half-way.
    def __init__(self, strength: float) -> None:
        self._strength = strength

    def __enter__(self) -> None:
        self._before, _state.strength = _state.strength, self._strength

    def __exit__(self, *_: object) -> None:
        _state.strength = self._before
