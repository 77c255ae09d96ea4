"""The sum of several LoRAs as one: exact, or the nearest of a chosen rank; and how far they get in each other's way."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from string import ascii_uppercase

import torch
from torch import Tensor

from ....training.errors import InputError
from ....training.formats import trigger_words
from ....training.layer_names.blocks import place
from ....training.layer_names.dialects import flat_name
from ....training.layer_names.parts import ALPHA, DIFF, DIFF_BIAS, DOWN, NORM_BIAS, NORM_WEIGHT, UP, adapts, layers_of
from ....training.layer_names.spelling import common_name
from ....training.timestep_range import common_range, range_in
from ...bridge.models.names import unet_names
from ..fit import check_same_shape
from ..kinds import factors
from ..kinds.kind import Parts
from ..lowrank import Factors, add, inner_products, truncate
from ..named_lora import NamedLora
from .overlap import Overlap
from .report import Reduction, report

MOST_RANK = 4096
_VECTORS = (DIFF_BIAS, NORM_WEIGHT, NORM_BIAS)  # summed as they are; and `DIFF`, where it has one axis


@dataclass(frozen=True)
class Composition:
    """The sum, its report and what the heatmap is drawn from."""

    lora: NamedLora
    report: str
    overlap: Overlap
    names: tuple[str, ...]


def parse_strengths(text: str, count: int) -> list[float]:
    """A number for each of `count` LoRAs, one a line or between commas; an empty text is 1 each."""
    words = [word for word in re.split(r"[,;\n]", text) if word.strip()]
    if not words:
        return [1.0] * count
    if len(words) != count:
        raise InputError(
            f"strengths has {len(words)} numbers for {count} LoRAs; write one a line for each, or leave it empty"
        )
    out = []
    for word in words:
        try:
            out.append(float(word))
        except ValueError:
            out.append(math.nan)
        if not math.isfinite(out[-1]):
            raise InputError(f"strengths has {word.strip()!r}; write a number, such as 0.8")
    if not any(out):
        raise InputError("all strengths are 0, so that nothing would be left; give one of them another number")
    return out


@dataclass
class _Terms:
    """What the LoRAs have, strengths included, by each layer's common name.

    names: the first common name by its `flat_name`, since a name with underscores does not tell all of its dots.
    titles: the first file's own name for the layer. deltas: [(the LoRA's number, its delta)]. vectors: sums of biases
    and norms by key.
    """

    names: dict[str, str] = field(default_factory=dict)
    titles: dict[str, str] = field(default_factory=dict)
    deltas: dict[str, list[tuple[int, Factors]]] = field(default_factory=dict)
    vectors: dict[str, Tensor] = field(default_factory=dict)

    def add_layer(self, number: int, layer: str, parts: Parts, strength: float) -> None:
        name = common_name(layer, unet_names())
        name = self.names.setdefault(flat_name(name), name)
        vectors = [part for part in (*_VECTORS, DIFF) if part in parts and (part != DIFF or parts[part].ndim < 2)]
        for part in vectors:
            key = self.titles.setdefault(name, layer) + part
            self.vectors[key] = _sum(key, self.vectors.get(key), strength * parts[part].detach().cpu().float())
        matrices = {part: tensor for part, tensor in parts.items() if part not in vectors}
        if strength and adapts(matrices):
            self.titles.setdefault(name, layer)
            self.deltas.setdefault(name, []).append((number, factors(layer, matrices).scaled(strength)))


def _gather(loras: Sequence[NamedLora], strengths: Sequence[float]) -> _Terms:
    """All layers of all LoRAs. Raises `InputError` where two deltas of one layer differ in shape."""
    terms = _Terms()
    for i, (lora, strength) in enumerate(zip(loras, strengths, strict=True)):
        for layer, parts in layers_of(lora).items():
            terms.add_layer(i, layer, parts, strength)
    for name, ((first, one), *others) in terms.deltas.items():
        for i, other in others:
            check_same_shape(name, (loras[first], one), (loras[i], other))
    return terms


def compose(loras: Sequence[NamedLora], strengths: Sequence[float], rank: int) -> Composition:
    """The sum of strength * delta over LoRAs of one base, as a LoRA.

    rank: 0 adds the ranks, exactly; else the nearest LoRA of at most this rank in every layer (by singular values).
    Raises `InputError` for a layer that is no sum (DoRA, OFT, ...), or whose shapes differ between two LoRAs.
    """
    if not loras:
        raise InputError("no LoRA is wired in; wire in two or more")
    if not 0 <= rank <= MOST_RANK:
        raise InputError(f"rank is {rank}; give 0 for the exact sum, or 1 to {MOST_RANK}")
    if len(strengths) != len(loras):
        raise InputError(f"there are {len(strengths)} strengths for {len(loras)} LoRAs; give one for each")
    terms = _gather(loras, strengths)
    sums = {name: add([term for _, term in deltas]) for name, deltas in terms.deltas.items()}
    overlap = Overlap(_products(terms.deltas, sums, len(loras)), len(loras))
    out, energies = dict(terms.vectors), {}
    for name, delta in sums.items():
        if rank or delta.rank > min(delta.shape):  # no delta has a higher rank than its shorter side
            delta, energies[name] = truncate(delta, rank or min(delta.shape))
        out |= _tensors(terms.titles[name], delta)
    names = tuple(ascii_uppercase[i] if len(loras) <= 26 else f"L{i + 1}" for i in range(len(loras)))
    ranks = {name: sum(term.rank for _, term in deltas) for name, deltas in terms.deltas.items()}
    reduction = Reduction(rank, ranks, energies, sum(tensor.numel() for tensor in out.values()))
    words = report(loras, strengths, names, overlap, reduction)
    return Composition(NamedLora(out, " + ".join(lora.name for lora in loras), _meta(loras)), words, overlap, names)


def _sum(key: str, old: Tensor | None, new: Tensor) -> Tensor:
    if old is not None and old.shape != new.shape:
        raise InputError(
            f"{key} is {tuple(old.shape)} in one LoRA and {tuple(new.shape)} in another; choose LoRAs of one base"
        )
    return new if old is None else old + new


def _products(
    terms: dict[str, list[tuple[int, Factors]]], sums: dict[str, Factors], count: int
) -> dict[tuple[str, str], Tensor]:
    out: dict[tuple[str, str], Tensor] = {}
    for name, parts in terms.items():
        mine = inner_products([term for _, term in parts], sums[name])
        owner = torch.tensor([i for i, _ in parts])
        rows = torch.zeros(count, len(parts), dtype=torch.float64).index_add_(0, owner, mine)
        here = torch.zeros(count, count, dtype=torch.float64).index_add_(1, owner, rows)
        at = place(name)
        out[at] = out[at] + here if at in out else here
    return out


def _tensors(layer: str, delta: Factors) -> dict[str, Tensor]:
    up, down = delta.up, delta.down
    if delta.kernel:
        up = up.reshape(*up.shape, *[1] * len(delta.kernel))
        down = down.reshape(len(down), -1, *delta.kernel)
    # alpha = rank: the factors' product as it is, and no loader has to guess.
    return {
        layer + UP: up.contiguous(),
        layer + DOWN: down.contiguous(),
        layer + ALPHA: torch.tensor(float(delta.rank)),
    }


def _meta(loras: Sequence[NamedLora]) -> dict[str, str]:
    """What all of them agree on, and all their trigger words."""
    meta = {}
    for key in ("ss_base_model_version", "modelspec.architecture", "ss_sd_model_name", "modelspec.prediction_type"):
        values = {lora.meta.get(key, "") for lora in loras}
        if len(values) == 1 and "" not in values:
            meta[key] = values.pop()
    words = dict.fromkeys(w for lora in loras if (w := trigger_words(lora.meta)))
    part = common_range(range_in(lora.meta) for lora in loras)
    meta |= part.metadata() if part else {}
    return meta | ({"modelspec.trigger_phrase": ", ".join(words)} if words else {})
