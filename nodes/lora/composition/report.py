"""The report on a sum of LoRAs: what was added, the ranks, the energy kept, and the interference in one sentence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import torch
from torch import Tensor

from ....training.timestep_range import common_range, range_in
from ..bases import base_of_file
from ..named_lora import NamedLora
from .overlap import Overlap

FEW, MUCH = 0.1, 0.3  # |cosine| below which LoRAs hardly meet, and from which they do a lot


@dataclass(frozen=True)
class Reduction:
    """How the ranks of a sum were lowered.

    rank: the greatest that was asked for, 0 for the exact sum. ranks: the sum of the ranks by layer. energies: the
    singular values, falling, of the layers whose rank was lowered. numbers: how many the LoRA that was made has.
    """

    rank: int
    ranks: Mapping[str, int]
    energies: Mapping[str, Tensor]
    numbers: int


def report(
    loras: Sequence[NamedLora],
    strengths: Sequence[float],
    names: Sequence[str],
    overlap: Overlap,
    reduction: Reduction,
) -> str:
    """The whole report. names: the LoRAs' letters, in their order."""
    lines = [
        f"{name} = {lora.name} at strength {strength:g}."
        for name, lora, strength in zip(names, loras, strengths, strict=True)
    ]
    lines += _rank_lines(reduction)
    lines.append(sentence(overlap, names))
    lines += _bases(loras) + _parts(loras, names)
    return "\n".join(lines)


def _rank_lines(reduction: Reduction) -> list[str]:
    ranks, rank = reduction.ranks, reduction.rank
    size = f"{len(ranks)} layers, {reduction.numbers:,} numbers"
    if not ranks:
        return [f"{size}: biases and norms only, summed exactly."]
    low, high = min(ranks.values()), max(ranks.values())
    span = f"{low}" if low == high else f"{low} to {high}"
    if not rank:
        return [f"The exact sum: {size}, the ranks added, {span} in a layer."]
    return _kept_lines(reduction.energies, rank, f"Rank {rank} of {span}: {size}.")


def _kept_lines(energies: Mapping[str, Tensor], rank: int, start: str) -> list[str]:
    """The share of the energy that the sum keeps at this rank, where least, and the rank that would keep 99 %."""
    squares = {name: s.double() ** 2 for name, s in energies.items()}
    whole = float(sum(s.sum() for s in squares.values()))
    if whole <= 0.0:
        return [f"{start} All of it is 0."]
    kept = float(sum(s[:rank].sum() for s in squares.values())) / whole
    lines = [f"{start} It keeps {_percent(kept)} of the energy (the squared singular values)."]
    if kept < 0.9999:
        longest = max(len(s) for s in squares.values())
        padded = [torch.nn.functional.pad(s, (0, longest - len(s))) for s in squares.values()]
        by_rank = sum(padded[1:], padded[0]).cumsum(0) / whole
        shares = {name: float(s[:rank].sum() / s.sum()) for name, s in squares.items() if s.sum() > 0}
        worst = min(shares, key=lambda name: shares[name])
        need = int((by_rank >= 0.99).nonzero()[0, 0]) + 1
        lines.append(
            f"Least is kept in {worst}: {_percent(shares[worst])}."
            + (f" Rank {need} would keep 99 % of the whole." if need > rank else "")
        )
    return lines


def _percent(share: float) -> str:
    # A share that only rounds to 100 % is not all of it.
    return "all" if share > 1 - 1e-6 else f"{min(share * 100, 99.99):.2f} %"


def _bases(loras: Sequence[NamedLora]) -> list[str]:
    bases = {lora.name: base for lora in loras if (base := base_of_file(lora))}
    if len(set(bases.values())) < 2:
        return []
    each = ", ".join(f"{name}: {base}" for name, base in bases.items())
    return [f"They were made for different bases ({each}): most likely they do not belong together."]


def _parts(loras: Sequence[NamedLora], names: Sequence[str]) -> list[str]:
    """A line on the parts of the schedule that the LoRAs were trained on; none where all have the whole of it."""
    parts = [range_in(lora.meta) for lora in loras]
    common = common_range(parts)
    if common is not None:
        whole = common.is_whole
        return [] if whole else [f"All were trained on the timesteps {common} alone (of 1), and so is their sum."]
    each = ", ".join(f"{name}: {part}" for name, part in zip(names, parts, strict=True))
    return [
        f"They were trained on different parts of the schedule ({each}, of 1), so the sum acts at every step, each of "
        "them outside of its part too. Inject them by nodes of their own, one after the other, to keep the parts."
    ]


def sentence(overlap: Overlap, names: Sequence[str]) -> str:
    """Interference in one plain sentence: the two LoRAs and the block where it is greatest."""
    if overlap.count < 2:
        return "Interference: there is only one LoRA."
    found = []
    for row in overlap.rows:
        cosines = overlap.cosines(row)
        found += [
            (float(cosines[i, j]), i, j, row)
            for i, j in combinations(range(overlap.count), 2)
            if not cosines[i, j].isnan()
        ]
    if not found:
        return "Interference: none, no block is changed by two of them."
    value, i, j, row = max(found, key=lambda one: abs(one[0]))
    return _sentence_of(value, f"{names[i]} and {names[j]}", row)


def _sentence_of(value: float, pair: str, row: str) -> str:
    much = "strongly" if abs(value) >= MUCH else "somewhat"
    if abs(value) < FEW:
        return (
            f"Interference: hardly any; even where it is greatest, {pair} in {row}, the cosine of their changes is "
            f"{value:.2f}."
        )
    if value > 0:
        return (
            f"Interference: {pair} {much} push the same way, most in {row} (cosine {value:.2f}), so that together they "
            "act more there than each was made to; lower one of their strengths if the picture is overdone."
        )
    return (
        f"Interference: {pair} {much} push against each other, most in {row} (cosine {value:.2f}), so that each loses "
        "some of its effect there; raise their strengths or use one of them in other blocks."
    )
