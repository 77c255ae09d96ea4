"""File names for the pictures of a set, before their endings."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence

from ....training.images import TrainingImage
from ...bridge.files.names import is_reserved, shortened
from ..listing import without_ending
from ..masks import CONDITION, SUFFIXES
from ..pairing.match import CONTROL

LONGEST_STEM = 200  # bytes of UTF-8, which leaves room for a number and an ending
_NO_NAME = re.compile('[\x00-\x1f\x7f<>:"|?*\ud800-\udfff]')
_GENERATED = re.compile(r"(image |clip )(\d+)")  # the names of `batch.image_set`


def stems_of(items: Sequence[TrainingImage]) -> list[str]:
    """The name of each picture's files, without ending: each one other, and in the order of the pictures.

    A picture that was read from a file keeps the file's name where a file system takes it and `Image Folder` reads it
    as a picture. Of pictures of one name the folder's name, or what else their source is called, comes before it.
    `Image Folder` sorts by name; where the names would give another order, each gets its number before it. Names differ
    in more than case and Unicode form, since some file systems tell neither apart.
    """
    pairs = any(item.control is not None for item in items)
    plain = _padded([_plain(item, pairs) for item in items], items)
    named = list(plain)
    counts = Counter(map(_key, plain))
    for i, item in enumerate(items):
        if counts[_key(plain[i])] > 1 and item.source:
            named[i] = shortened(f"{_clean(_last(item.source))}_{plain[i]}", LONGEST_STEM)
    if _in_order(named):
        return named
    digits = len(str(len(items)))
    return [f"{number:0{digits}}_{stem}" for number, stem in enumerate(plain, 1)]


def _in_order(stems: Sequence[str]) -> bool:
    """Whether the names are all different and `Image Folder` reads them in this order."""
    keys = [f"{stem}.png".lower() for stem in stems]
    return len(set(map(_key, stems))) == len(stems) and keys == sorted(keys)


def _key(stem: str) -> str:
    return unicodedata.normalize("NFC", stem).casefold()


def _plain(item: TrainingImage, pairs: bool) -> str:
    """The picture's own name as a file's. pairs: see `_clean`."""
    return _clean(without_ending(_last(item.picture[1])), pairs)


def _padded(stems: list[str], items: Sequence[TrainingImage]) -> list[str]:
    """ "image 7" as "image 07", if there is an "image 10", where the names are numbers of a batch and no file's."""
    found = [_GENERATED.fullmatch(item.picture[1]) for item in items]
    digits = max((len(match[2]) for match in found if match), default=0)
    return [match[1] + match[2].zfill(digits) if match else stem for match, stem in zip(found, stems, strict=True)]


def _last(path: str) -> str:
    return path.replace("\\", "/").rstrip("/").rpartition("/")[2]


def _clean(name: str, pairs: bool = False) -> str:
    """The name with "_" for what no file system, or Windows, takes, and for what makes it hidden or a mask.

    pairs: whether the set has second pictures; a name that would make it one is changed too.
    """
    stem = unicodedata.normalize("NFC", _NO_NAME.sub("_", name)).strip(" .")
    for ending in (*SUFFIXES, CONDITION, *([CONTROL] if pairs else [])):
        if stem.lower().endswith(ending):
            stem = f"{stem[: -len(ending)]}_{stem[1 - len(ending) :]}"
    stem = shortened(stem, LONGEST_STEM) or "picture"
    return f"_{stem}" if is_reserved(stem) else stem
