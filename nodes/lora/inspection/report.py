"""The report on a LoRA: the file, the summary, the metadata, and a line for every layer."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence

from ....training.layer_names.spelling import COMFY_PREFIX
from ..named_lora import NamedLora
from .describe import describe
from .inspect import Projection

LONG_META = ("prompt", "workflow", "ss_tag_frequency", "bespoke.settings", "lora_adapter_metadata")
MOST_META, LONGEST_VALUE = 60, 120


def report(lora: NamedLora, found: Sequence[Projection], remarks: Sequence[str]) -> str:
    """The file, the summary, the metadata, the workflow, and a line for every projection."""
    lines = [describe(lora), *remarks, *summary(found)]
    lines += _metadata(lora.meta)
    lines.append("")
    lines.append(
        "Every layer: kind, rank, alpha; the norm of its change; singular values; directions that hold 90 % of the "
        "energy."
    )
    lines += [_line(one) for one in found]
    return "\n".join(lines)


def summary(found: Sequence[Projection]) -> list[str]:
    """How large the change is, where it is largest and smallest, and how much of the rank is used."""
    lines = _sizes(found)
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


def _sizes(found: Sequence[Projection]) -> list[str]:
    relative = [(p.relative, p) for p in found if p.relative is not None]
    sized = relative or [(p.norm, p) for p in found if p.norm is not None]
    if not sized:
        return []
    most, least = (pick(sized, key=lambda one: one[0]) for pick in (max, min))
    middle = statistics.median(value for value, _ in sized)
    number = _percent if relative else "{:.3g}".format
    of = " of the weight" if relative else ""
    return [
        f"It changes a layer by {number(middle)}{of} in the median; most in {most[1].row}, {most[1].column} "
        f"({number(most[0])}), least in {least[1].row}, {least[1].column} ({number(least[0])})."
    ]


def _percent(share: float) -> str:
    return f"{share * 100:.3g} %"


def _line(one: Projection) -> str:
    alpha = "no alpha" if one.alpha is None else f"alpha {one.alpha:g}"
    parts = [
        f"{one.row}: {one.name.removeprefix(COMFY_PREFIX)}",
        f"{one.kind}, rank {one.rank or 'none'}, {alpha}",
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
    entries = {key: " ".join(value.split()) for key, value in sorted(meta.items()) if key not in LONG_META}
    lines = ["Metadata: " + ("" if entries else "none.")] if entries or not meta else []
    lines += [
        f"  {key[:LONGEST_VALUE]}: {value[:LONGEST_VALUE]}{' ...' if len(value) > LONGEST_VALUE else ''}"
        for key, value in [*entries.items()][:MOST_META]
    ]
    if len(entries) > MOST_META:
        lines.append(f"  and {len(entries) - MOST_META} more entries.")
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
