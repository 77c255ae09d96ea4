"""Which picture of one list belongs to which of another, by their names, or by order where names give nothing."""

from __future__ import annotations

import unicodedata
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
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


def matched_names(
    results: Sequence[str], sources: Sequence[str], key: Callable[[str], str] = key_of, in_order: bool = False
) -> Matched:
    """Match two lists of names by `key`.

    in_order: as many names of one key in both lists are pairs: those of the very same name but for its ending first,
    the others in their order. Without it they are ambiguous. Where the lists have no key in common and are equally
    long, they are matched by order.
    """
    of_results, of_sources = _by_key(results, key), _by_key(sources, key)
    common = [each for each in of_results if each in of_sources]
    if not common and results and len(results) == len(sources):
        return Matched({position: position for position in range(len(results))}, by_order=True)
    pairs, ambiguous = dict[int, int](), list[tuple[tuple[int, ...], tuple[int, ...]]]()
    for each in common:
        own, theirs = of_results[each], of_sources[each]
        if len(own) == len(theirs) == 1 or (in_order and len(own) == len(theirs)):
            pairs.update(_within([(i, results[i]) for i in own], [(j, sources[j]) for j in theirs]))
        else:
            ambiguous.append((tuple(own), tuple(theirs)))
    return Matched(
        pairs,
        lonely_results=tuple(i for each, own in of_results.items() if each not in of_sources for i in own),
        lonely_sources=tuple(j for each, own in of_sources.items() if each not in of_results for j in own),
        ambiguous=tuple(ambiguous),
    )


def _within(ours: Sequence[tuple[int, str]], theirs: Sequence[tuple[int, str]]) -> Iterator[tuple[int, int]]:
    """The pairs of positions of as many (position, name) of one key."""
    left, waiting = list(theirs), list[int]()
    for position, name in ours:
        same = next((i for i, (_, other) in enumerate(left) if _stem(other) == _stem(name)), None)
        if same is None:
            waiting.append(position)
        else:
            yield position, left.pop(same)[0]
    yield from zip(waiting, (position for position, _ in left), strict=True)


def _stem(name: str) -> str:
    return name.removesuffix(MIRRORED).rpartition(".")[0] or name


def _by_key(names: Sequence[str], key: Callable[[str], str]) -> dict[str, list[int]]:
    groups: dict[str, list[int]] = defaultdict(list)
    for position, name in enumerate(names):
        groups[key(name)].append(position)
    return dict(groups)
