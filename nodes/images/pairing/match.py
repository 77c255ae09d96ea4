"""Which picture of one list belongs to which of another, by their names, or by order where names give nothing."""

from __future__ import annotations

import unicodedata
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from ....training.images import MIRRORED
from ..listing import without_ending

CONTROL = "-control"  # the end of the name of a second picture, before the file's ending


@dataclass(frozen=True)
class Matched:
    """pairs: {position of a result: position of its source}. by_order: whether no name told them.

    lonely_results, lonely_sources: positions without a partner. ambiguous: (results, sources) of one name.
    """

    pairs: dict[int, int]
    by_order: bool = False
    lonely_results: tuple[int, ...] = ()
    lonely_sources: tuple[int, ...] = ()
    ambiguous: tuple[tuple[tuple[int, ...], tuple[int, ...]], ...] = ()


def key_of(name: str) -> str:
    """What the names of a source and its result have in common: "cats/1" of "cats/1-control.png".

    Without the ending of a picture or film, without `CONTROL`, in lower case.
    """
    stem = unicodedata.normalize("NFC", name.removesuffix(MIRRORED)).lower()
    stem = without_ending(stem)
    return stem.removesuffix(CONTROL) if len(stem) > len(CONTROL) else stem


def matched_names(results: Sequence[str], sources: Sequence[str]) -> Matched:
    """Match two lists of names by `key_of`.

    Where the lists have no name in common and are equally long, they are matched by order.
    """
    of_results, of_sources = _by_key(results), _by_key(sources)
    common = [key for key in of_results if key in of_sources]
    if not common and results and len(results) == len(sources):
        return Matched({position: position for position in range(len(results))}, by_order=True)
    single = [key for key in common if len(of_results[key]) == len(of_sources[key]) == 1]
    return Matched(
        {of_results[key][0]: of_sources[key][0] for key in single},
        lonely_results=tuple(i for key, own in of_results.items() if key not in of_sources for i in own),
        lonely_sources=tuple(i for key, own in of_sources.items() if key not in of_results for i in own),
        ambiguous=tuple((tuple(of_results[key]), tuple(of_sources[key])) for key in common if key not in single),
    )


def _by_key(names: Sequence[str]) -> dict[str, list[int]]:
    groups: dict[str, list[int]] = defaultdict(list)
    for position, name in enumerate(names):
        groups[key_of(name)].append(position)
    return dict(groups)
