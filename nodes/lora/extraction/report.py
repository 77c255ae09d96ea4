"""The report on an extraction: what is in the LoRA, how near it is, which rank it would take, and what is left out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ....training.layer_names.blocks import row_order
from ...bridge.wire.compatibility import compatibility_of
from ..wording import listed
from .decompose import rank_for
from .extract import Extraction, Layer, Rest
from .request import Request

SHARES = (0.90, 0.95, 0.99)
DIRECTIONS = (1, 2, 4, 8, 16, 32, 64, 128)


def report(done: Extraction, request: Request) -> str:
    """The whole report, without `remarks`."""
    lines = _size_lines(done, request)
    if done.layers:
        lines += [_kept(done.layers), ranks_line(done.layers), _spectrum(done.layers), *_blocks(done.layers)]
    return "\n".join([*lines, *_rest(done), *_oddities(done)])


def _size_lines(done: Extraction, request: Request) -> list[str]:
    changed = len(done.layers) + len(done.rest)
    numbers = sum(tensor.numel() for tensor in done.lora.values())
    ranks = sorted(layer.rank for layer in done.layers)
    span = "" if not ranks else f", rank {ranks[0]}" + (f" to {ranks[-1]}" if ranks[-1] > ranks[0] else "")
    lines = [
        f"{done.lora.name}: {changed} of {changed + done.unchanged} weights changed, {len(done.layers)} layers are in "
        f"the LoRA{span}; {numbers:,} numbers, {numbers * 2 / 1e6:.1f} MB in fp16."
    ]
    small = [layer for layer in done.layers if layer.rank < request.rank]
    if not request.energy and small and done.layers:
        some = "1 layer has" if len(small) == 1 else f"{len(small)} layers have"
        lines.append(f"{some} a smaller rank than {request.rank}: there is no more to keep there.")
    return lines


def _kept(layers: Sequence[Layer]) -> str:
    change, lost = (math.fsum(getattr(layer, name) for layer in layers) for name in ("change", "lost"))
    worst = max(layers, key=lambda layer: layer.lost)
    return (
        f"It keeps {percent(1 - lost / change)} of these layers' squared change; its relative error is "
        f"{percent(math.sqrt(max(lost, 0.0) / change))}. Most is left out in {worst.name} "
        f"(relative error {percent(worst.error)})."
    )


def summed(layers: Sequence[Layer]) -> tuple[Tensor, float]:
    """(the squared singular values of all layers, summed by their number; the whole squared change)."""
    out = torch.zeros(max(len(layer.squares) for layer in layers), dtype=torch.float64)
    for layer in layers:
        out[: len(layer.squares)] += layer.squares
    return out, math.fsum(layer.change for layer in layers)


def ranks_line(layers: Sequence[Layer]) -> str:
    """Which rank in every layer would keep which share of the whole."""
    squares, total = summed(layers)
    found = [(share, rank_for(squares, share, total)) for share in SHARES]
    words = [f"{share:.0%}: {'more than ' + str(len(squares)) if rank is None else rank}" for share, rank in found]
    return f"The rank that keeps {', '.join(words)} (the same rank in every layer)."


def _spectrum(layers: Sequence[Layer]) -> str:
    squares, total = summed(layers)
    held = squares.cumsum(0) / total
    words = dict[str, str]()  # what is held: "directions: what is held", the fewest of them
    for n in DIRECTIONS:
        if n <= len(held):
            share = percent(float(held[n - 1]))
            words.setdefault(share, f"{n}: {share}")
    return f"Spectrum, what the strongest directions of each layer hold: {', '.join(words.values())}."


def _blocks(layers: Sequence[Layer]) -> list[str]:
    lines = ["Relative error by block, beside the size of the change in percent of the base's weights:"]
    for row in sorted({layer.row for layer in layers}, key=row_order):
        own = [layer for layer in layers if layer.row == row]
        change, lost, base = (math.fsum(getattr(layer, name) for layer in own) for name in ("change", "lost", "base"))
        ratio = math.sqrt(change / base) if base else 0.0  # above 1 where the change is larger than the weight
        size = f"; change {f'{ratio * 100:.0f} %' if ratio > 1 else percent(ratio)}" if base else ""
        lines.append(
            f"  {row}: {percent(math.sqrt(max(lost, 0.0) / change))}{size}; {len(own)} layer{'s' * (len(own) > 1)}"
        )
    return lines


def _rest(done: Extraction) -> list[str]:
    whole = math.fsum([*(layer.change for layer in done.layers), *(each.change for each in done.rest)])
    lines = []
    for kind, words in (
        ("norm or bias", "Norms and biases"),
        ("parameter", "Parameters of no layer"),
        ("not chosen", "Matrices that targets and conv_rank leave out"),
    ):
        some = [each for each in done.rest if each.kind == kind]
        if some:
            lines.append(_rest_line(some, words, whole))
    if any(not each.written and each.kind != "not chosen" for each in done.rest):
        lines.append("Switch norms_and_biases on to write those as whole differences.")
    return lines


def _rest_line(some: Sequence[Rest], words: str, whole: float) -> str:
    share = percent(math.fsum(each.change for each in some) / whole)
    names = [each.name for each in sorted(some, key=lambda each: -each.change)]
    how = "written as whole differences" if some[0].written else "changed and not in the LoRA"
    return f"{words} {how}: {len(some)}, {share} of the squared change: {listed(names, 6)}."


def _oddities(done: Extraction) -> list[str]:
    lines = []
    if done.one_sided:
        lines.append(
            f"{len(done.one_sided)} weights are in one of the two models alone and in no LoRA: "
            f"{listed(done.one_sided, 6)}."
        )
    if done.mixed:
        lines.append(
            f"The models' weights are of different types ({'; '.join(sorted(done.mixed))}): in layers that changed, "
            "what the coarser type rounds counts as change too. Load both in one type for a cleaner LoRA."
        )
    return lines


def remarks(model: Any, base: Any) -> list[str]:
    """What the tuned MODEL has besides its weights, which no LoRA holds."""
    lines = []
    kinds = [getattr(getattr(each.model, "model_type", None), "name", "") for each in (model, base)]
    if kinds[0] != kinds[1]:
        lines.append(
            f"The tuned model predicts {kinds[0]} and the base {kinds[1]}, which no LoRA holds: set it on the base "
            "with a ModelSampling node."
        )
    carried = [[*found.refused, *found.sampling_only, *found.code] for found in map(compatibility_of, (model, base))]
    own = [each for each in carried[0] if each not in carried[1]]
    if own:
        lines.append(f"The tuned MODEL also carries {listed(own, 4)}, which acts beside its weights and is in no LoRA.")
    return lines


def percent(share: float) -> str:
    """A share in percent with three figures; one that only rounds to 100 % is written below it."""
    if share > 1 - 1e-6:
        return "100 %"
    if share > 0.9999:
        return "99.99 %"
    return f"{share * 100:.3g} %" if share >= 1e-6 else "0 %" if share <= 0 else f"{share * 100:.1e} %"
