"""Several LoRAs as one: their sum, exact or the nearest of a chosen rank, or what another method makes of them; and how
far they get in each other's way."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from string import ascii_uppercase

import torch
from torch import Tensor

from ....training.errors import InputError
from ....training.formats import OF_ITS_BASE, OF_ITS_WORDS, trigger_words
from ....training.layer_names.dialects import flat_name
from ....training.layer_names.parts import DIFF, DIFF_BIAS, NORM_BIAS, NORM_WEIGHT, adapts, layers_of
from ....training.timestep_range import common_range, range_in
from ..fit import check_same_shape
from ..kinds import factors
from ..kinds.kind import Parts
from ..kinds.lora import parts_of
from ..lowrank import Factors, add, from_matrix, inner_products, truncate
from ..named_lora import NamedLora
from ..overview_names import OverviewNames, overview_names
from .methods import How, balanced, dare, ties
from .overlap import Overlap
from .ranks import rank_by
from .report import Kept, Reduction, report
from .source import Source

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
    return out


@dataclass(frozen=True)
class _Term:
    """One LoRA's change of a layer. number: the LoRA's. delta: without the strength."""

    number: int
    delta: Factors
    strength: float

    @property
    def scaled(self) -> Factors:
        return self.delta.scaled(self.strength)


@dataclass
class _Terms:
    """What the LoRAs have, by each layer's common name.

    overview: the common names. names: the first one by its `flat_name`, since a name with underscores does not tell all
    of its dots.
    titles: the first file's own name for the layer. vectors: biases and norms by key, strengths included, with the
    LoRA's number.
    """

    overview: OverviewNames
    names: dict[str, str] = field(default_factory=dict)
    titles: dict[str, str] = field(default_factory=dict)
    deltas: dict[str, list[_Term]] = field(default_factory=dict)
    vectors: dict[str, list[tuple[int, Tensor]]] = field(default_factory=dict)

    def add_layer(self, number: int, layer: str, parts: Parts, source: Source) -> None:
        name = self.overview.common(layer)
        name = self.names.setdefault(flat_name(name), name)
        strength = source.strength_of(name)
        vectors = [part for part in (*_VECTORS, DIFF) if part in parts and (part != DIFF or parts[part].ndim < 2)]
        for part in vectors:
            key = self.titles.setdefault(name, layer) + part
            self.vectors.setdefault(key, []).append((number, strength * parts[part].detach().cpu().float()))
        matrices = {part: tensor for part, tensor in parts.items() if part not in vectors}
        if strength and adapts(matrices):
            self.titles.setdefault(name, layer)
            self.deltas.setdefault(name, []).append(_Term(number, factors(layer, matrices), strength))

    def scaled_by(self, by: Sequence[float]) -> _Terms:
        """The same with another factor for each LoRA."""
        deltas = {
            name: [replace(term, strength=term.strength * by[term.number]) for term in terms]
            for name, terms in self.deltas.items()
        }
        vectors = {key: [(i, by[i] * tensor) for i, tensor in found] for key, found in self.vectors.items()}
        return replace(self, deltas=deltas, vectors=vectors)


def _gather(sources: Sequence[Source]) -> _Terms:
    """All layers of all LoRAs. Raises `InputError` where two deltas of one layer differ in shape."""
    terms = _Terms(overview_names(*(source.lora for source in sources)))
    for i, source in enumerate(sources):
        for layer, parts in layers_of(source.lora).items():
            terms.add_layer(i, layer, parts, source)
    for name, (first, *others) in terms.deltas.items():
        for other in others:
            one, two = ((sources[term.number].lora, term.delta) for term in (first, other))
            check_same_shape(name, one, two)
    return terms


def compose(sources: Sequence[Source], how: How | None = None) -> Composition:
    """LoRAs of one base as one: by default the sum of strength * delta, exactly.

    how: the method and the rank. Raises `InputError` for a layer that is no sum (DoRA, OFT, ...), or whose shapes
    differ between two LoRAs, and as `methods.balanced` does.
    """
    if not sources:
        raise InputError("no LoRA is wired in; wire in two or more")
    if not any(source.strength or source.text_strength for source in sources):
        raise InputError("all strengths are 0, so that nothing would be left; give one of them another number")
    how = how or How()
    terms, loras = _gather(sources), [source.lora for source in sources]
    names = tuple(ascii_uppercase[i] if len(loras) <= 26 else f"L{i + 1}" for i in range(len(loras)))
    sums = {name: add([term.scaled for term in deltas]) for name, deltas in terms.deltas.items()}
    overlap = Overlap(_products(terms, sums, len(loras)), len(loras))
    by = None
    if how.method == "balance":
        by = balanced(overlap.total, names)
        terms = terms.scaled_by(by)
        sums = {name: add([term.scaled for term in deltas]) for name, deltas in terms.deltas.items()}
    out, kept = {key: _sum(key, found) for key, found in terms.vectors.items()}, {}
    for name, deltas in terms.deltas.items():
        delta, found = _combined(name, deltas, sums[name], how)
        if found is not None:
            kept[name] = Kept(delta.rank, found)
        out |= parts_of(terms.titles[name], delta)
    ranks = {name: sum(term.delta.rank for term in deltas) for name, deltas in terms.deltas.items()}
    reduction = Reduction(how, ranks, kept, sum(tensor.numel() for tensor in out.values()))
    words = report(sources, names, overlap, reduction, by)
    of_files = {layer: forms for lora in reversed(loras) for layer, forms in lora.layer_names.items()}
    of_bundles, remarks = _words_of(sources)
    title = " + ".join(lora.name for lora in loras)
    made = NamedLora(out, title, _meta(loras), layer_names=of_files, words=of_bundles)
    return Composition(made, "\n".join([words, *remarks]), overlap, names)


def _words_of(sources: Sequence[Source]) -> tuple[dict[str, Mapping[str, Tensor]], list[str]]:
    """(the words of the LoRAs that go in, remarks). Of two words with one name the first LoRA's stays."""
    words: dict[str, Mapping[str, Tensor]] = {}
    remarks = list[str]()
    for source in sources:
        if not (source.strength or source.text_strength):
            continue
        for name, parts in source.lora.words.items():
            if name not in words:
                words[name] = parts
            elif {*parts} != {*words[name]} or not all(torch.equal(parts[key], words[name][key]) for key in parts):
                remarks.append(
                    f"{source.lora.name} has another word {name!r} than a LoRA before it, which is left out."
                )
    if words:
        remarks.insert(0, f"Words: {', '.join(words)}, with their vectors as they were.")
    return words, remarks


def _combined(name: str, terms: Sequence[_Term], whole: Factors, how: How) -> tuple[Factors, Tensor | None]:
    """(a layer's change by the method, its singular values where its rank was lowered). whole: the sum of the terms."""
    limit = min(whole.shape)  # no delta has a higher rank than its shorter side
    rank = how.rank or min(limit, whole.rank)
    delta = whole
    if how.is_dense:
        changes = [term.delta.up @ term.delta.down for term in terms]
        strengths = [term.strength for term in terms]
        made = (
            ties(changes, strengths, how.density)
            if how.method == "ties"
            else dare(changes, strengths, how.density, name)
        )
        delta = from_matrix(made.reshape(made.shape[0], -1, *whole.kernel))
    if how.energy:
        return truncate(delta, lambda values: rank_by(values, how.energy, how.energy_kind))
    if how.rank or how.is_dense or delta.rank > limit:
        return truncate(delta, rank)
    return delta, None


def _sum(key: str, found: Sequence[tuple[int, Tensor]]) -> Tensor:
    (_, total), *others = found
    for _, tensor in others:
        if total.shape != tensor.shape:
            raise InputError(
                f"{key} is {tuple(total.shape)} in one LoRA and {tuple(tensor.shape)} in another; choose LoRAs of one "
                "base"
            )
        total = total + tensor
    return total


def _products(terms: _Terms, sums: Mapping[str, Factors], count: int) -> dict[tuple[str, str], Tensor]:
    out: dict[tuple[str, str], Tensor] = {}
    for name, parts in terms.deltas.items():
        mine = inner_products([term.scaled for term in parts], sums[name])
        owner = torch.tensor([term.number for term in parts])
        rows = torch.zeros(count, len(parts), dtype=torch.float64).index_add_(0, owner, mine)
        here = torch.zeros(count, count, dtype=torch.float64).index_add_(1, owner, rows)
        at = terms.overview.place(name)
        out[at] = out[at] + here if at in out else here
    return out


def _meta(loras: Sequence[NamedLora]) -> dict[str, str]:
    """What all of them agree on, and all their trigger words."""
    meta = {}
    for key in OF_ITS_BASE:
        values = {lora.meta.get(key, "") for lora in loras}
        if len(values) == 1 and "" not in values:
            meta[key] = values.pop()
    words = dict.fromkeys(w for lora in loras if (w := trigger_words(lora.meta)))
    part = common_range(range_in(lora.meta) for lora in loras)
    meta |= part.metadata() if part else {}
    return meta | ({OF_ITS_WORDS: ", ".join(words)} if words else {})
