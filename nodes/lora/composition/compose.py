"""The sum of several LoRAs as one: exact, or the nearest of a chosen rank; and how far they get in each other's way."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from string import ascii_uppercase

import torch
from PIL import Image
from torch import Tensor

from ....training.errors import InputError
from ....training.formats import trigger_words
from ...bridge.drawing.heatmap import Scale, Table, draw
from ...bridge.drawing.palette import SIGNED
from ..files import NamedLora, layers_of
from ..layer_names import COLUMNS, common_name, place, row_order
from ..lowrank import Factors, add, factors, inner_products, truncate
from ..match import base_of_file

MOST_RANK = 4096
MOST_PAIRS = 15  # columns of the heatmap
ALL = "all"
_VECTORS = (".diff_b", ".w_norm", ".b_norm")
FEW, MUCH = 0.1, 0.3  # |cosine| below which LoRAs hardly meet, and from which they do a lot


@dataclass(frozen=True)
class Overlap:
    """Inner products of n LoRAs' deltas, strengths included: by (row, column) of the overview, each [n, n]."""

    products: dict[tuple[str, str], Tensor]
    count: int

    def cosines(self, row: str | None = None, column: str | None = None) -> Tensor:
        """[n, n] over what lies in a row, in a column, or everywhere; nan where one of two has nothing there."""
        parts = [t for (r, c), t in self.products.items() if row in (None, r) and column in (None, c)]
        total = sum(parts, torch.zeros(self.count, self.count, dtype=torch.float64))
        norms = total.diagonal().clamp(min=0).sqrt()
        return total / (norms[:, None] * norms[None, :]).where(
            norms[:, None] * norms[None, :] > 0, torch.tensor(math.nan)
        )

    @property
    def rows(self) -> list[str]:
        return sorted({row for row, _ in self.products}, key=row_order)


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
    titles: dict[str, str] = {}  # one name a layer -> the first file's own
    terms: dict[str, list[tuple[int, Factors]]] = {}
    vectors: dict[str, Tensor] = {}
    for i, (lora, strength) in enumerate(zip(loras, strengths, strict=True)):
        for layer, parts in layers_of(lora).items():
            name = common_name(layer)
            for part in set(parts) & {*_VECTORS, ".diff"}:
                if part != ".diff" or parts[part].ndim < 2:
                    key = titles.setdefault(name, layer) + part
                    vectors[key] = _sum(key, vectors.get(key), strength * parts[part].detach().cpu().float())
            matrix = {p: t for p, t in parts.items() if p not in _VECTORS and not (p == ".diff" and t.ndim < 2)}
            if strength and set(matrix) - {"", ".alpha"}:
                titles.setdefault(name, layer)
                terms.setdefault(name, []).append((i, factors(layer, matrix).scaled(strength)))
    _check_shapes(terms, loras)
    sums = {name: add([term for _, term in parts]) for name, parts in terms.items()}
    overlap = Overlap(_products(terms, sums, len(loras)), len(loras))
    names = tuple(ascii_uppercase[i] if len(loras) <= 26 else f"L{i + 1}" for i in range(len(loras)))
    out, energies = dict(vectors), {}
    for name, whole in sums.items():
        if rank or whole.rank > min(whole.shape):  # no delta has a higher rank than its shorter side
            whole, energies[name] = truncate(whole, rank or min(whole.shape))
        out |= _tensors(titles[name], whole)
    report = [
        f"{names[i]} = {lora.name} at strength {strength:g}."
        for i, (lora, strength) in enumerate(zip(loras, strengths, strict=True))
    ]
    report += _rank_lines(terms, energies, rank, out)
    report.append(sentence(overlap, names))
    report += _bases(loras)
    return Composition(
        NamedLora(out, " + ".join(lora.name for lora in loras), _meta(loras)), "\n".join(report), overlap, names
    )


def _sum(key: str, old: Tensor | None, new: Tensor) -> Tensor:
    if old is not None and old.shape != new.shape:
        raise InputError(
            f"{key} is {tuple(old.shape)} in one LoRA and {tuple(new.shape)} in another; choose LoRAs of one base"
        )
    return new if old is None else old + new


def _check_shapes(terms: dict[str, list[tuple[int, Factors]]], loras: Sequence[NamedLora]) -> None:
    for name, parts in terms.items():
        first, one = parts[0]
        for i, other in parts[1:]:
            if (other.shape, other.kernel) != (one.shape, one.kernel):
                bases = [base_of_file(loras[n]) or "an unknown base" for n in (first, i)]
                raise InputError(
                    f"{name} is {one.shape} in {loras[first].name} ({bases[0]}) and {other.shape} in {loras[i].name} "
                    f"({bases[1]}); compose LoRAs of one base only"
                )


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
        f"{layer}.lora_up.weight": up.contiguous(),
        f"{layer}.lora_down.weight": down.contiguous(),
        f"{layer}.alpha": torch.tensor(float(delta.rank)),
    }


def _rank_lines(terms: dict, energies: dict[str, Tensor], rank: int, out: dict[str, Tensor]) -> list[str]:
    sums = {name: sum(term.rank for _, term in parts) for name, parts in terms.items()}
    size = f"{len(terms)} layers, {sum(tensor.numel() for tensor in out.values()):,} numbers"
    if not sums:
        return [f"{size}: biases and norms only, summed exactly."]
    low, high = min(sums.values()), max(sums.values())
    span = f"{low}" if low == high else f"{low} to {high}"
    if not rank:
        return [f"The exact sum: {size}, the ranks added, {span} in a layer."]
    squares = {name: s.double() ** 2 for name, s in energies.items()}
    whole = float(sum(s.sum() for s in squares.values()))
    if whole <= 0.0:
        return [f"Rank {rank} of {span}: {size}. All of it is 0."]
    kept = float(sum(s[:rank].sum() for s in squares.values())) / whole
    longest = max(len(s) for s in squares.values())
    by_rank = sum(torch.nn.functional.pad(s, (0, longest - len(s))) for s in squares.values()).cumsum(0) / whole
    shares = {name: float(s[:rank].sum() / s.sum()) for name, s in squares.items() if s.sum() > 0}
    worst = min(shares, key=shares.get)
    lines = [f"Rank {rank} of {span}: {size}. It keeps {_percent(kept)} of the energy (the squared singular values)."]
    if kept < 0.9999:
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
    said = ", ".join(f"{name}: {base}" for name, base in bases.items())
    return [f"They were made for different bases ({said}): most likely they do not belong together."]


def _meta(loras: Sequence[NamedLora]) -> dict[str, str]:
    """What all of them agree on, and all their trigger words."""
    meta = {}
    for key in ("ss_base_model_version", "modelspec.architecture", "ss_sd_model_name", "modelspec.prediction_type"):
        values = {lora.meta.get(key, "") for lora in loras}
        if len(values) == 1 and "" not in values:
            meta[key] = values.pop()
    words = dict.fromkeys(w for lora in loras if (w := trigger_words(lora.meta)))
    return meta | ({"modelspec.trigger_phrase": ", ".join(words)} if words else {})


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
    pair = f"{names[i]} and {names[j]}"
    if abs(value) < FEW:
        return (
            f"Interference: hardly any; even where it is greatest, {pair} in {row}, the cosine of their changes is "
            f"{value:.2f}."
        )
    much = "strongly" if abs(value) >= MUCH else "somewhat"
    if value > 0:
        return (
            f"Interference: {pair} {much} push the same way, most in {row} (cosine {value:.2f}), so that together "
            "they act "
            "more there than each was made to; lower one of their strengths if the picture is overdone."
        )
    return (
        f"Interference: {pair} {much} push against each other, most in {row} (cosine {value:.2f}), so that each "
        "loses some "
        "of its effect there; raise their strengths or use one of them in other blocks."
    )


# The root spreads the small values, where the interesting ones lie.
_COSINE = Scale(
    SIGNED,
    lambda c: 0.5 + 0.5 * math.copysign(math.sqrt(min(abs(c), 1.0)), c),
    tuple((0.5 + 0.5 * math.copysign(math.sqrt(abs(c)), c), f"{c:g}") for c in (-1, -0.5, -0.1, 0, 0.1, 0.5, 1)),
    "cosine of their changes: below 0 they cancel, above 0 they add up; grey: only one of them changes it",
)


def picture(done: Composition, titles: Sequence[str]) -> Image.Image:
    """The cosines: of two LoRAs by block and projection, of more by block and pair (the 15 that meet most)."""
    overlap, names = done.overlap, done.names
    cells: dict[tuple[str, str], float] = {}
    said = sentence(overlap, names).removeprefix("Interference: ")
    under = [
        said[0].upper() + said[1:],
        *(f"{name} = {title}" for name, title in zip(names, titles, strict=True)),
    ]

    def note(row: str, column: str, value: float) -> None:
        if not math.isnan(value):
            cells[row, column] = value

    rows = [*overlap.rows, ALL]
    if overlap.count == 2:
        present = {column for _, column in overlap.products}
        columns = [one for one in COLUMNS if one[1] in present]
        for row in rows:
            at = None if row == ALL else row
            for _, column in columns:
                note(row, column, float(overlap.cosines(at, column)[0, 1]))
            note(row, ALL, float(overlap.cosines(at)[0, 1]))
        met = [one for one in columns if any((row, one[1]) in cells for row in rows)]
        columns = [*(met or columns), ("", ALL)]
    else:
        total = overlap.cosines()
        by_block = {row: overlap.cosines(None if row == ALL else row) for row in rows}
        pairs = list(combinations(range(overlap.count), 2))
        most = {
            (i, j): max((abs(float(c[i, j])) for c in by_block.values() if not c[i, j].isnan()), default=-1.0)
            for i, j in pairs
        }
        shown = sorted(sorted(pairs, key=lambda p: -most[p])[:MOST_PAIRS])
        columns = [(f"{names[i]} with", f"{names[i]} {names[j]}") for i, j in shown]
        for (i, j), (_, column) in zip(shown, columns, strict=True):
            for row in rows:
                note(row, column, float((total if row == ALL else by_block[row])[i, j]))
        if len(shown) < len(pairs):
            under.append(f"Shown are the {len(shown)} of {len(pairs)} pairs that interfere most.")
    if not columns:  # a single LoRA
        columns = [("", ALL)]
    table = Table(
        f"Interference of {overlap.count} LoRA" + "s" * (overlap.count != 1), rows, columns, cells, _COSINE, _cosine
    )
    return draw(replace(table, under=tuple(under), apart={ALL}, gaps={ALL}))


def _cosine(value: float) -> str:
    return "0" if abs(value) < 0.005 else f"{value:+.2f}"
