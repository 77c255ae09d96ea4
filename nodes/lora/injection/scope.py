"""Where a LoRA acts: a strength for each layer, from its attention projection and its block."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from ....training.errors import InputError
from ....training.layer_names.blocks import PROJECTIONS, block_names, block_order, projection_of
from ....training.layer_names.glob import check_pattern, glob_matches
from ..wording import listed

_RANGE = re.compile(r"(?:.*[^0-9])?([0-9]{1,9})-([0-9]{1,9})")
_NUMBERED = re.compile(r"(.*?)([0-9]{1,9})")


@dataclass(frozen=True)
class Term:
    """One part of a block pattern: `up.*:0.5`."""

    pattern: str
    strength: float = 1.0

    def fits(self, names: Iterable[str]) -> bool:
        """Whether the pattern matches one of a block's names.

        `up` matches `up.0`, `up.1`, ...; `up.1-3` matches `up.1` to `up.3`; `*` matches anything.
        """
        span = _RANGE.fullmatch(self.pattern)
        if span is None:
            return any(glob_matches(self.pattern, name) or glob_matches(f"{self.pattern}.*", name) for name in names)
        stem = self.pattern[: span.start(1)]
        numbered = (_NUMBERED.fullmatch(name) for name in names)
        return any(
            glob_matches(stem, found[1]) and int(span[1]) <= int(found[2]) <= int(span[2])
            for found in numbered
            if found
        )


def parse_blocks(text: str) -> tuple[Term, ...]:
    """The terms of a pattern such as `down.1, mid, up.*:0.5`; none for an empty text.

    A term is a block's name with `*` for anything, and after a colon a strength, else 1. Of two terms that fit one
    block the later counts. Raises `InputError` for a strength that is no number and for a text of more than
    `MAX_PATTERN` characters.
    """
    check_pattern("blocks", text)
    terms = []
    for part in re.split(r"[,;\n]", text):
        pattern, colon, strength = (piece.strip() for piece in part.partition(":"))
        if not pattern and not colon:
            continue
        try:
            value = float(strength) if colon else 1.0
        except ValueError:
            value = math.nan
        if not pattern or not math.isfinite(value):
            raise InputError(f"blocks has {part.strip()!r}; write a block and a strength, such as up.1:0.5")
        terms.append(Term(pattern.lower(), value))
    return tuple(terms)


@dataclass(frozen=True)
class Scope:
    """Strengths by projection and by block, each multiplied into the LoRA's own. Blocks that no term names get 0."""

    projections: Mapping[str, float] = field(default_factory=dict)
    blocks: tuple[Term, ...] = ()

    def __post_init__(self) -> None:
        for name, value in self.projections.items():
            if name not in PROJECTIONS or not math.isfinite(value):
                raise InputError(f"{name} is {value}; give a number")

    def block_strength(self, names: tuple[str, ...]) -> float:
        if not self.blocks:
            return 1.0
        return next((term.strength for term in reversed(self.blocks) if term.fits(names)), 0.0)

    def strength(self, layer: str, unet_config: Mapping | None) -> float:
        """The factor for a layer of the diffusion model, by its dotted key."""
        factor = self.projections.get(projection_of(layer) or "", 1.0)
        return factor * (self.block_strength(block_names(layer, unet_config)) if self.blocks else 1.0)

    def rows(self, layer: str) -> tuple[float, float, float] | None:
        """Factors for query, key and value of a layer that holds all three; None where they are all 1."""
        query, key, value = (self.projections.get(name, 1.0) for name in ("query", "key", "value"))
        parts = (query, key, value)
        return parts if projection_of(layer) == "fused" and parts != (1.0, 1.0, 1.0) else None

    def check(self, layers: Iterable[str], unet_config: Mapping | None) -> None:
        """Raises `InputError` for a term that fits no block of a model with these layers."""
        known = {block_names(layer, unet_config) for layer in layers}
        for term in self.blocks:
            if not any(term.fits(names) for names in known):
                first = sorted({names[0] for names in known}, key=block_order)
                raise InputError(
                    f"blocks names {term.pattern!r}, which this model does not have; it has {listed(first)}"
                )

    def matched(self, layers: Iterable[str], unet_config: Mapping | None) -> list[str]:
        """For every term in words how many of these layers it reaches."""
        layers = list(layers)
        counts = [sum(term.fits(block_names(layer, unet_config)) for layer in layers) for term in self.blocks]
        return [
            f"{term.pattern} at {term.strength:g}: {count} of {len(layers)} layers"
            for term, count in zip(self.blocks, counts, strict=True)
        ]
