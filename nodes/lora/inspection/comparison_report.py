"""The report on two LoRAs: how alike they are by block, which directions they share, their metadata side by side."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

from ..named_lora import NamedLora
from .compare import Comparison, Overlap, Shared
from .report import LONG_META

MOST_ENTRIES, LONGEST = 40, 60
_OF_ONE_TRAINING = (  # entries that one training's files have alike and no other's
    ("bespoke.run", "run"),
    ("ss_session_id", "session of kohya's trainer"),
)
_SAME = 0.99  # a cosine from which two changes are called the same


def comparison_report(one: NamedLora, other: NamedLora, found: Comparison) -> str:
    """The LoRAs are called A and B."""
    lines = [
        f"A = {one.name}, B = {other.name}: {len(found.shared)} layers are changed by both, {found.alone[0]} by A "
        f"alone, {found.alone[1]} by B alone."
    ]
    if found.unknown:
        lines.append(
            f"{found.unknown} layers of both are not compared: DoRA, OFT and the like depend on the base, and norms "
            "and biases have no directions."
        )
    if found.shared:
        lines += [_similarity(found), *_directions(found.shared), *_by_block(found)]
    return "\n".join([*lines, _training(one, other), *side_by_side(one, other)])


def _similarity(found: Comparison) -> str:
    cosine = found.cosine()
    if cosine is None:
        return "One of them changes nothing in the layers of both."
    products = found.products()
    nearest = float(products[0, 1] / products[1, 1])
    ratio = math.sqrt(float(products[1, 1] / products[0, 0]))
    words = "the same change" if cosine >= _SAME else "1 is the same change, 0 unrelated, below 0 opposite"
    return (
        f"Cosine of their changes: {cosine:.3f} ({words}). B's change is {ratio:.2f} times as large as A's; B at "
        f"strength {nearest:.2f} comes nearest to A at 1."
    )


def _directions(shared: Sequence[Shared]) -> list[str]:
    lines = []
    for side, words in (("out", "output"), ("inner", "input")):
        overlaps = [overlap for each in shared if (overlap := getattr(each, side)) is not None]
        if overlaps:
            near, of = sum(one.near for one in overlaps), sum(len(one.cosines) for one in overlaps)
            lines.append(
                f"Directions that hold 90 % of the change, on the {words}'s side: {near} of {of} lie within 45 degrees "
                f"of the other's; overlap {_mean(overlaps):.2f} (1: all shared), by chance {_chance(overlaps):.2f}."
            )
    return lines


def _by_block(found: Comparison) -> list[str]:
    lines = ["By block: cosine of the changes; overlap of the directions on the output's and the input's side:"]
    for row in found.rows:
        some = [each for each in found.shared if each.row == row]
        cosine = found.cosine(row)
        sides = [[overlap for each in some if (overlap := getattr(each, side))] for side in ("out", "inner")]
        shares = " and ".join(f"{_mean(side):.2f} (chance {_chance(side):.2f})" for side in sides if side)
        words = "no change in one of them" if cosine is None else f"cosine {cosine:.3f}"
        lines.append(f"  {row}: {words}" + (f"; overlap {shares}" if shares else "") + f"; {_layers(some)}")
    return lines


def _layers(some: Sequence[Shared]) -> str:
    return "1 layer" if len(some) == 1 else f"{len(some)} layers"


def _mean(overlaps: Sequence[Overlap]) -> float:
    return statistics.fmean(one.share for one in overlaps)


def _chance(overlaps: Sequence[Overlap]) -> float:
    return statistics.fmean(one.chance for one in overlaps)


def _training(one: NamedLora, other: NamedLora) -> str:
    """Whether one training made both, as far as their metadata says."""
    for key, words in _OF_ONE_TRAINING:
        ours, theirs = one.meta.get(key), other.meta.get(key)
        if ours and theirs:
            if ours == theirs:
                return f"One training made both: their {words} is {ours[:LONGEST]}."
            return f"Two trainings made them: their {words}s are {ours[:LONGEST]} and {theirs[:LONGEST]}."
    return "Their metadata does not say whether one training made both."


def side_by_side(one: NamedLora, other: NamedLora) -> list[str]:
    """The entries of the metadata in which they differ, with both values, and how many are alike."""
    keys = sorted(({*one.meta} | {*other.meta}) - {*LONG_META})
    different = [key for key in keys if one.meta.get(key) != other.meta.get(key)]
    if not keys:
        return ["Neither has metadata."]
    lines = [f"Metadata: {len(keys) - len(different)} entries are alike, {len(different)} differ (A | B):"]
    lines += [f"  {key[:LONGEST]}: {_value(one, key)} | {_value(other, key)}" for key in different[:MOST_ENTRIES]]
    if len(different) > MOST_ENTRIES:
        lines.append(f"  and {len(different) - MOST_ENTRIES} more entries.")
    return lines


def _value(lora: NamedLora, key: str) -> str:
    value = " ".join(lora.meta.get(key, "none").split())
    return value[:LONGEST] + (" ..." if len(value) > LONGEST else "")
