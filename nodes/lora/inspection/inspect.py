"""What a LoRA does, layer by layer: how large its change is beside the base's weight, and in how many directions."""

from __future__ import annotations

import json
import math
import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import comfy.lora
import comfy.model_management
import torch
from PIL import Image
from torch import Tensor

from ....training.errors import InputError
from ...bridge.drawing.heatmap import Scale, Table, draw, fixed
from ...bridge.drawing.palette import PAPER, RISING
from .. import lowrank
from ..files import NamedLora, layers_of
from ..layer_names import COLUMNS, common_name, place, row_order
from ..match import Patch, base_of_model, describe_unmatched, match
from .describe import describe, rank_of

ALL, REST = "all", "rest"
DIRECTIONS = 12  # columns of the spectrum's table
ENERGY = 0.9
_LONG_META = ("prompt", "workflow", "ss_tag_frequency", "bespoke.settings", "lora_adapter_metadata")
MOST_META, LONGEST_VALUE = 60, 120


@dataclass(frozen=True)
class Projection:
    """One layer of a LoRA. norm, base: Frobenius norms of its change and of the weight under it, where they are
    known."""

    layer: str
    row: str
    column: str
    what: str
    rank: int | None
    alpha: float | None
    norm: float | None
    base: float | None
    spectrum: tuple[float, ...]  # singular values, falling; empty where they are not known

    @property
    def relative(self) -> float | None:
        return self.norm / self.base if self.norm is not None and self.base else None

    @property
    def directions(self) -> int | None:
        """How many directions hold 90 % of the energy, the squared singular values."""
        squares = torch.tensor(self.spectrum, dtype=torch.float64) ** 2
        if not len(squares) or squares.sum() <= 0:
            return None
        return int((squares.cumsum(0) < ENERGY * squares.sum()).sum()) + 1


def inspect(lora: NamedLora, model=None) -> tuple[list[Projection], list[str]]:
    """(every projection in the model's order, what there is to say about the model).

    model: a ModelPatcher or None; with one, the norms of its own weights and the change that DoRA, OFT and the like
    make.
    """
    patches, remarks = _patches(lora, model)
    bases = model.get_key_patches("diffusion_model.") if patches else {}
    found = []
    for layer, parts in layers_of(lora).items():
        if not set(parts) - {"", ".alpha"}:
            continue
        patch = patches.get(layer)
        base = None if patch is None or patch.weight not in bases else _base_weight(bases[patch.weight][0], patch)
        found.append(_projection(layer, parts, patch, base))
    return sorted(found, key=lambda p: (row_order(p.row), common_name(p.layer))), remarks


def _patches(lora: NamedLora, model) -> tuple[dict[str, Patch], list[str]]:
    if model is None:
        return {}, [
            "No model is wired in: the changes are given in numbers of their own, not beside the base's weights."
        ]
    try:
        found = match(model, None, lora)
    except InputError as error:
        return {}, [f"It does not fit the model that is wired in: {error}."]
    lines = [f"Beside the weights of the model that is wired in ({base_of_model(model.model)})."]
    found.no_clip.clear()  # here no text encoder can be wired in
    patches: dict[str, Patch] = {}
    for patch in found.model:
        if patch.weight.endswith(".weight"):
            patches.setdefault(patch.layer, patch)
    return patches, lines + describe_unmatched(found, lora, model)


def _base_weight(entry: tuple, patch: Patch) -> Tensor:
    """The base's own weight in float32 on the CPU, without what is merged into it at present."""
    weight, convert = entry
    weight = convert(
        comfy.model_management.cast_to_device(weight, torch.device("cpu"), torch.float32, copy=True), inplace=True
    )
    return weight.float() if isinstance(patch.key, str) else weight.float().narrow(*patch.key[1])


def _projection(layer: str, parts: Mapping[str, Tensor], patch: Patch | None, base: Tensor | None) -> Projection:
    what = lowrank.kind(parts)
    row, column = place(layer)
    alpha = float(parts[".alpha"]) if ".alpha" in parts else None
    norm, spectrum = _change(layer, parts, patch, base)
    return Projection(
        layer, row, column, what, rank_of(parts), alpha, norm, None if base is None else float(base.norm()), spectrum
    )


def _change(
    layer: str, parts: Mapping[str, Tensor], patch: Patch | None, base: Tensor | None
) -> tuple[float | None, tuple[float, ...]]:
    vector = [t for p, t in parts.items() if p in (".diff", ".w_norm", ".diff_b", ".b_norm") and t.ndim < 2]
    if vector and len(vector) == len(set(parts) - {"", ".alpha"}):
        return math.sqrt(sum(float(t.double().square().sum()) for t in vector)), ()
    try:
        delta = lowrank.factors(layer, {p: t for p, t in parts.items() if p not in (".diff_b", ".b_norm")})
    except InputError:
        if base is None:  # what it changes depends on the base
            return None, ()
        one = (1.0, patch.adapter, 1.0, None, None)
        changed = comfy.lora.calculate_weight([one], base.clone(), patch.weight)
        if changed.shape != base.shape:
            return None, ()
        change = (changed - base).flatten(1)
        if not float(change.double().norm()) < lowrank.TOO_LARGE:
            return None, ()
        small = change @ change.t() if change.shape[0] <= change.shape[1] else change.t() @ change
        values = torch.linalg.eigvalsh(small.double()).clamp(min=0).sqrt().flip(0)
    else:
        values = lowrank.spectrum(delta)
    return float(values.double().norm()), tuple(values.tolist())


# --- in words -------------------------------------------------------------------------------------------------------


def report(lora: NamedLora, found: Sequence[Projection], remarks: Sequence[str]) -> str:
    """The file, the summary, the metadata, the workflow, and a line for every projection."""
    lines = [describe(lora), *remarks, *_summary(found)]
    lines += _metadata(lora.meta)
    lines.append("")
    lines.append(
        "Every layer: kind, rank, alpha; the norm of its change; singular values; directions that hold 90 % of the "
        "energy."
    )
    lines += [_line(one) for one in found]
    return "\n".join(lines)


def _summary(found: Sequence[Projection]) -> list[str]:
    lines = []
    beside = [(p.relative, p) for p in found if p.relative is not None]
    sized = beside or [(p.norm, p) for p in found if p.norm is not None]
    if sized:
        most, least = (pick(sized, key=lambda one: one[0]) for pick in (max, min))
        middle = statistics.median(value for value, _ in sized)
        say = _percent if beside else "{:.3g}".format
        of = " of the weight" if beside else ""
        lines.append(
            f"It changes a layer by {say(middle)}{of} in the median; most in {most[1].row}, {most[1].column} "
            f"({say(most[0])}), "
            f"least in {least[1].row}, {least[1].column} ({say(least[0])})."
        )
    used = [(p.directions, len(p.spectrum)) for p in found if p.directions]
    if used:
        need, have = (round(statistics.median(column)) for column in zip(*used, strict=True))
        lines.append(f"In the median layer {need} of {have} directions hold 90 % of the energy.")
        if need <= have / 3 and have >= 6:
            lines.append(
                "Much of the rank is hardly used: Bespoke Compose LoRAs with a smaller rank makes a smaller file of it."
            )
    still = sum(p.norm == 0 for p in found)
    if still:
        lines.append(f"{still} layers change nothing: their factors are zero.")
    return lines


def _percent(share: float) -> str:
    return f"{share * 100:.3g} %"


def _line(one: Projection) -> str:
    alpha = "no alpha" if one.alpha is None else f"alpha {one.alpha:g}"
    parts = [
        f"{one.row}: {common_name(one.layer).removeprefix('diffusion_model.')}",
        f"{one.what}, rank {one.rank or 'none'}, {alpha}",
    ]
    if one.norm is None:
        parts.append("norm not known without the model" if one.base is None else "norm too large to be one")
    else:
        parts.append(
            f"norm {one.norm:.3g}" + ("" if one.relative is None else f" ({_percent(one.relative)} of the weight)")
        )
    if one.spectrum:
        first = " ".join(f"{value:.3g}" for value in one.spectrum[:6])
        parts.append(f"spectrum {first}" + (" ..." if len(one.spectrum) > 6 else ""))
    if one.directions:
        parts.append(f"90 % in {one.directions} of {len(one.spectrum)}")
    return "; ".join(parts)


def _metadata(meta: Mapping[str, str]) -> list[str]:
    said = {key: " ".join(value.split()) for key, value in sorted(meta.items()) if key not in _LONG_META}
    lines = ["Metadata: " + ("" if said else "none.")] if said or not meta else []
    lines += [
        f"  {key[:LONGEST_VALUE]}: {value[:LONGEST_VALUE]}{' ...' if len(value) > LONGEST_VALUE else ''}"
        for key, value in [*said.items()][:MOST_META]
    ]
    if len(said) > MOST_META:
        lines.append(f"  and {len(said) - MOST_META} more entries.")
    return lines + _workflow(meta)


def _workflow(meta: Mapping[str, str]) -> list[str]:
    """The graph that made the file, by its nodes; how to open it."""
    for key, of, kind in (
        ("workflow", lambda graph: graph["nodes"], "type"),
        ("prompt", lambda graph: graph.values(), "class_type"),
    ):
        try:
            nodes = [str(node[kind]) for node in of(json.loads(meta[key]))]
        except (KeyError, TypeError, ValueError, AttributeError, RecursionError):
            continue
        if not nodes:
            continue
        counts = {name: nodes.count(name) for name in dict.fromkeys(nodes)}
        names = ", ".join(name[:40] + (f" x {n}" if n > 1 else "") for name, n in [*counts.items()][:30])
        what = "the workflow" if key == "workflow" else "the prompt (the graph without its layout)"
        return [
            (
                f"The file carries {what} that made it, {len(nodes)} nodes: {names}. Drop the file on ComfyUI's canvas "
                "to open it."
            )
        ]
    return ["The file carries no workflow."]


# --- as a picture ---------------------------------------------------------------------------------------------------


def picture(name: str, found: Sequence[Projection]) -> Image.Image:
    """Two tables: the size of the change by block and projection; how the energy is spread over the directions."""
    beside = any(p.relative is not None for p in found)
    tables = [draw(_sizes(name, found, beside))]
    if any(p.directions for p in found):
        tables.append(draw(_spread([p for p in found if p.directions])))
    width = max(table.width for table in tables)
    sheet = Image.new("RGB", (width, sum(table.height for table in tables)), PAPER)
    y = 0
    for table in tables:
        sheet.paste(table, (0, y))
        y += table.height
    return sheet


def _columns(found: Sequence[Projection]) -> list[tuple[str, str]]:
    present = {p.column for p in found}
    return [one for one in COLUMNS if one[1] in present]


def _sizes(name: str, found: Sequence[Projection], beside: bool) -> Table:
    """Per block and projection the root of the summed squares: of the change over that of the weight, or alone."""
    sums: dict[tuple[str, str], list[float]] = defaultdict(lambda: [0.0, 0.0])
    for p in found:
        if (p.relative if beside else p.norm) is None:
            continue
        for row in (p.row, ALL):
            for column in (p.column, ALL):
                cell = sums[row, column]
                cell[0] += (p.norm or 0.0) ** 2
                cell[1] += (p.base or 0.0) ** 2
    cells = {key: math.sqrt(a / b) if beside else math.sqrt(a) for key, (a, b) in sums.items() if b > 0 or not beside}
    rows = [*sorted({p.row for p in found}, key=row_order), ALL]
    inner = [value for (row, column), value in cells.items() if ALL not in (row, column)]
    top = max(inner, default=0.0) or 1.0
    unit, times = ("%", 100.0) if beside else ("", 1.0)
    ticks = tuple((i / 4, f"{top * i / 4 * times:.3g} {unit}".strip()) for i in range(5))
    caption = "size of the change as a share of the base's weight" if beside else "size of the change (Frobenius norm)"
    under = (
        "How much it changes each block's projections, in percent of the weight's own size."
        if beside
        else "How large its change is in each block's projections. Wire a model in to see it beside the base's weights."
    )
    scale = Scale(RISING, lambda value: value / top, ticks, caption)
    digits = fixed(top * times)
    # Norms add up, so that a sum is on no scale of its parts; shares are.
    plain = set() if beside else {ALL}
    columns = [*_columns(found), ("", ALL)]
    return Table(
        name,
        rows,
        columns,
        cells,
        scale,
        lambda v: digits(v * times),
        (under, *_summary(found)[:1]),
        {ALL},
        {ALL},
        plain,
    )


def _spread(found: Sequence[Projection]) -> Table:
    """Per projection the mean share of the energy in its first directions."""
    longest = max(len(p.spectrum) for p in found)
    names = [str(i + 1) for i in range(min(longest, DIRECTIONS))] + ([REST] if longest > DIRECTIONS else [])
    cells: dict[tuple[str, str], float] = {}
    present = [column for _, column in _columns(found)]
    rows = [*present, ALL] if len(present) > 1 else present
    for row in rows:
        of_row = [p for p in found if row in (p.column, ALL)]
        total = torch.zeros(longest, dtype=torch.float64)
        for p in of_row:
            squares = torch.tensor(p.spectrum, dtype=torch.float64) ** 2
            total[: len(squares)] += squares / squares.sum() / len(of_row)
        for i, name in enumerate(names):
            cells[row, name] = float(total[DIRECTIONS:].sum() if name == REST else total[i])

    def digits(share: float) -> str:
        return f"{share * 100:.1f}" if share >= 0.0005 else "0"

    scale = Scale(
        RISING,
        lambda value: math.sqrt(value),
        tuple((math.sqrt(t), f"{t:.0%}") for t in (0, 0.05, 0.25, 0.5, 1)),
        "share of the energy, the squared singular values",
    )
    under = (
        "How its energy is spread over the directions of a layer, the strongest first, in percent (mean of the "
        "layers). All in a few: a smaller rank would do."
    )
    return Table(
        "Spectrum",
        rows,
        [("direction", name) for name in names],
        cells,
        scale,
        digits,
        (under,),
        {ALL},
        {REST},
        cell=52,
    )
