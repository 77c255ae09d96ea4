"""The report on a sum of LoRAs: what was added, the ranks, the energy kept, and the interference in one sentence."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import torch
from torch import Tensor

from ....training.timestep_range import common_range, range_in
from ..bases import base_of_file
from ..lowrank import least_rank
from ..named_lora import NamedLora
from .methods import How, own_effects
from .overlap import Overlap
from .source import Source

FAR = 4.0  # a factor of balance above which, or below its inverse, the report warns
FEW, MUCH = 0.1, 0.3  # |cosine| below which LoRAs hardly meet, and from which they do a lot


@dataclass(frozen=True)
class Kept:
    """A layer whose rank was lowered. values: all of its singular values, falling."""

    rank: int
    values: Tensor


@dataclass(frozen=True)
class Reduction:
    """How the ranks were lowered.

    how: what was asked for. ranks: the sum of the LoRAs' ranks by layer. kept: the layers whose rank was lowered.
    numbers: how many the LoRA that was made has.
    """

    how: How
    ranks: Mapping[str, int]
    kept: Mapping[str, Kept]
    numbers: int


def report(
    sources: Sequence[Source],
    names: Sequence[str],
    overlap: Overlap,
    reduction: Reduction,
    balance: Sequence[float] | None = None,
) -> str:
    """The whole report. names: the LoRAs' letters, in their order. balance: the factors of the method balance."""
    loras = [source.lora for source in sources]
    lines = []
    for i, (name, source) in enumerate(zip(names, sources, strict=True)):
        text = "" if source.text_strength is None else f" (text encoder {source.text_strength:g})"
        balanced = "" if balance is None else f", balanced: times {balance[i]:.3f}"
        lines.append(f"{name} = {source.lora.name} at strength {source.strength:g}{text}{balanced}.")
    lines += _method_lines(reduction.how, overlap, names, balance)
    lines += _rank_lines(reduction)
    lines.append(sentence(overlap, names))
    lines += _bases(loras) + _parts(loras, names)
    return "\n".join(lines)


def _method_lines(how: How, overlap: Overlap, names: Sequence[str], balance: Sequence[float] | None) -> list[str]:
    """What the method did, beyond a sum."""
    if how.method == "ties":
        return [
            f"TIES: of each change the {how.density:.0%} largest numbers of a layer, then the mean of those that agree "
            "in sign with their sum."
        ]
    if how.method == "dare":
        return [f"DARE: {how.density:.0%} of each change's numbers, drawn at random and divided by {how.density:g}."]
    if balance is None:
        return []
    before = own_effects(overlap.total, [1.0] * len(balance))
    each = ", ".join(
        f"{name} {effect:.2f}" for name, effect in zip(names, before, strict=True) if not math.isnan(effect)
    )
    lines = [
        "Balance: each LoRA has its own effect in the sum, 1 times its change at its strength (in a plain sum: "
        f"{each})."
    ]
    odd = [name for name, factor in zip(names, balance, strict=True) if not 1 / FAR <= factor <= FAR]
    if odd:
        lines.append(
            f"The factors of {', '.join(odd)} are far from 1: their change is mostly that of the others, or its "
            "opposite, and the picture may fall apart. Set method to sum, or leave one out."
        )
    return lines


def _rank_lines(reduction: Reduction) -> list[str]:
    ranks, how = reduction.ranks, reduction.how
    size = f"{len(ranks)} layers, {reduction.numbers:,} numbers"
    if not ranks:
        return [f"{size}: biases and norms only, summed exactly."]
    span = _span(ranks.values())
    if how.energy:
        got = _span(kept.rank for kept in reduction.kept.values())
        words = f"{how.energy_kind} {how.energy:g}"
        return _kept_lines(reduction.kept, None, f"Rank {got} of {span}, by {words} in each layer: {size}.")
    if how.rank:
        return _kept_lines(reduction.kept, how.rank, f"Rank {how.rank} of {span}: {size}.")
    if how.is_dense:
        return _kept_lines(reduction.kept, None, f"Rank {span}, that of the sum: {size}.")
    return [f"The exact sum: {size}, the ranks added, {span} in a layer."]


def _span(numbers: Iterable[int]) -> str:
    found = set(numbers)
    return f"{min(found)}" if len(found) == 1 else f"{min(found)} to {max(found)}"


def _kept_lines(kept: Mapping[str, Kept], rank: int | None, start: str) -> list[str]:
    """The share of the energy that is kept, where least, and the rank that would keep 99 %. rank: the same in all."""
    squares = {name: one.values.double() ** 2 for name, one in kept.items()}
    whole = float(sum(s.sum() for s in squares.values()))
    if whole <= 0.0:
        return [f"{start} All of it is 0."]
    share = float(sum(squares[name][: one.rank].sum() for name, one in kept.items())) / whole
    lines = [f"{start} It keeps {_percent(share)} of the energy (the squared singular values)."]
    if share < 0.9999:
        shares = {name: float(s[: kept[name].rank].sum() / s.sum()) for name, s in squares.items() if s.sum() > 0}
        worst = min(shares, key=lambda name: shares[name])
        more = ""
        if rank is not None:
            longest = max(len(s) for s in squares.values())
            padded = [torch.nn.functional.pad(s, (0, longest - len(s))) for s in squares.values()]
            need = least_rank(sum(padded[1:], padded[0]), 0.99 * whole) or longest
            more = f" Rank {need} would keep 99 % of the whole." if need > rank else ""
        lines.append(f"Least is kept in {worst}: {_percent(shares[worst])}.{more}")
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
