"""Several training sets as one: how often each is drawn, and at which resolutions its pictures are trained on."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import torch

from ....training.batch_order import LARGEST_RATIO
from ....training.config import check_choice
from ....training.errors import InputError
from ....training.images import MIRRORED, ImageSet, TrainingImage, by_picture
from ..fingerprint import fingerprint
from ..quality import counted, listed
from ..reading.bands import Size, fit_item
from ..reading.pictures import Progress, no_progress, threads
from ..sizes import (
    BUCKET_STEP,
    LARGE,
    LARGEST_RESOLUTION,
    LEAST_AREA,
    LEAST_KEPT,
    SMALL_STEP,
    SMALLEST_SIDE,
    crop_offset,
    kept,
    size_of,
    target_size,
)

AS_THEY_ARE, EACH_THE_SAME = "as they are", "each set the same"
BALANCES = (AS_THEY_ARE, EACH_THE_SAME)
WEIGHTS = 1e-6, 1e6  # of a set, the smallest and the largest: sums of such weights lose nothing
RARE = 0.01  # of the draws: the report names a set that gets less


@dataclass(frozen=True)
class Part:
    """One of the sets as it stands in the result.

    name: of its socket. title: the name with the folder. weight: what was of_sets for. items: with their weights in the
    result. notes: those of the set, and what was noticed when its pictures were made smaller.
    """

    name: str
    title: str
    weight: float
    items: tuple[TrainingImage, ...]
    notes: tuple[str, ...] = ()

    @property
    def total(self) -> float:
        """The weights of its items together: its draws in proportion to those of the other sets."""
        return sum(item.weight for item in self.items)

    @property
    def pictures(self) -> list[list[int]]:
        """The indices of its items, grouped by picture."""
        return by_picture(self.items)


@dataclass(frozen=True)
class Combined:
    """The sets as one set, and the parts it is made of, in the order of its items."""

    images: ImageSet
    parts: tuple[Part, ...]

    def share(self, part: Part) -> float:
        """The part's share of all draws, 0..1."""
        return part.total / sum(each.total for each in self.parts)


def combine(
    sets: Mapping[str, ImageSet],
    weights: str = "",
    balance: str = AS_THEY_ARE,
    resolutions: str = "",
    progress: Progress = no_progress,
) -> Combined:
    """One set of all pictures of `sets`, which are named by their sockets.

    weights: see `parse_weights`; a picture's weight is multiplied by that of its set. balance: one of `BALANCES`; with
    the second, the pictures of a set are first weighted so that all sets have the same share of the draws. resolutions:
    see `parse_resolutions`; each picture is trained on at each of them, see `_at_resolutions`. progress: called with
    (pictures done, all). Items keep caption, trigger, mask and syntax. Pictures of one folder and name are one picture,
    also where the folder stands in two sets. Raises `InputError` for no set, for other values, and for weights of
    pictures further apart than `LARGEST_RATIO`.
    """
    if not sets:
        raise InputError("no set is wired in; wire in the images of Bespoke Image Folder or Bespoke Image Batch")
    check_choice("balance", balance, BALANCES)
    of_sets = parse_weights(weights, list(sets))
    wanted = parse_resolutions(resolutions)
    parts = [
        Part(name, title_of(name, images), weight, _named_items(images), images.notes)
        for (name, images), weight in zip(sets.items(), of_sets, strict=True)
    ]
    factors = _factors(parts, balance)
    if wanted:
        copies = iter(_all_at_resolutions(parts, wanted, progress))
        parts = [_with_copies(part, [next(copies) for _ in part.items], wanted) for part in parts]
    parts = [
        replace(part, items=tuple(replace(item, weight=item.weight * factor) for item in part.items))
        for part, factor in zip(parts, factors, strict=True)
    ]
    _check_ratio(parts)
    items = tuple(item for part in parts for item in part.items)
    triggers = {images.trigger for images in sets.values()}
    images = ImageSet(items, triggers.pop() if len(triggers) == 1 else "", _fingerprint(items, list(sets.values())))
    combined = Combined(images, tuple(parts))
    notes = [f"{part.title}: {note}" for part in parts for note in part.notes]
    notes += [*_repeats_note(parts, balance), *_remarks(combined)]
    return replace(combined, images=replace(images, notes=tuple(notes)))


def parse_weights(text: str, names: Sequence[str]) -> list[float]:
    """A weight for each of the sets `names`, one a line in their order; an empty text is 1 each.

    Empty lines do not count. Raises `InputError` with the line and the mend.
    """
    lines = [(number, line.strip()) for number, line in enumerate(text.splitlines(), 1) if line.strip()]
    if not lines:
        return [1.0] * len(names)
    weights = []
    for number, line in lines:
        try:
            weight = float(line)
        except ValueError:
            weight = math.nan
        if not math.isfinite(weight) or weight < 0:
            raise InputError(
                f"line {number} of weights is {line[:40]!r}; write one number above 0 on each line, such as 2 or 0.5"
            )
        if weight == 0:
            of_set = f" of {names[len(weights)]}" if len(weights) < len(names) else ""
            raise InputError(
                f"line {number} of weights is 0, so that no picture{of_set} would be drawn; unwire that set, or give a "
                "number above 0"
            )
        if not WEIGHTS[0] <= weight <= WEIGHTS[1]:
            raise InputError(
                f"line {number} of weights is {line[:40]!r}; write numbers from {WEIGHTS[0]:g} to {WEIGHTS[1]:,.0f}, "
                "as only their ratios count"
            )
        weights.append(weight)
    if len(weights) != len(names):
        raise InputError(
            f"weights has {counted(len(weights), 'line')} for {counted(len(names), 'set')} ({listed(names)}); write "
            "one number a line for each set, or leave it empty for 1 each"
        )
    return weights


def parse_resolutions(text: str) -> list[int]:
    """The resolutions in px, each once and the largest first, of numbers between commas, blanks or lines.

    An empty text gives none. Raises `InputError` for what is no whole number from `SMALLEST_SIDE` to
    `LARGEST_RESOLUTION`.
    """
    found = set[int]()
    for word in re.split(r"[,;\s]+", text.strip()):
        if not word:
            continue
        value = int(word) if re.fullmatch(r"[0-9]{1,9}", word) else -1
        if not SMALLEST_SIDE <= value <= LARGEST_RESOLUTION:
            raise InputError(
                f"resolutions has {word[:40]!r}; write whole numbers from {SMALLEST_SIDE} to {LARGEST_RESOLUTION} "
                "pixels with commas between them, such as 512, 768, 1024"
            )
        found.add(value)
    return sorted(found, reverse=True)


def title_of(name: str, images: ImageSet) -> str:
    """The socket's name and the folder of a set: "set0 (cats)"."""
    sources = list(dict.fromkeys(item.source for item in images.items if item.source))
    if not sources:
        return name
    more = f" and {len(sources) - 1} more" if len(sources) > 1 else ""
    return f"{name} ({sources[0]}{more})"


def _named_items(images: ImageSet) -> tuple[TrainingImage, ...]:
    """The items, so named that no other set has the same names, and with their trigger.

    A set that some other node has made may have neither: its content then tells its pictures apart.
    """
    items = images.items
    if images.trigger and not any(item.trigger for item in items):
        items = tuple(replace(item, trigger=images.trigger) for item in items)
    if all(item.source for item in items):
        return items
    made = f"set:{fingerprint(items)[:16]}"
    return tuple(item if item.source else replace(item, source=made) for item in items)


def _factors(parts: Sequence[Part], balance: str) -> list[float]:
    """What the weights of each part's items are multiplied with. Where sets are treated alike it is 1 exactly."""
    alike = len({part.weight for part in parts}) == 1
    weights = [1.0 if alike else part.weight for part in parts]
    if balance == AS_THEY_ARE:
        return weights
    mean = sum(part.total for part in parts) / len(parts)
    return [weight * (mean / part.total) for weight, part in zip(weights, parts, strict=True)]


def _check_ratio(parts: Sequence[Part]) -> None:
    """Raise `InputError` where one picture would be drawn more than `LARGEST_RATIO` times as often as another."""
    rare = min(parts, key=lambda part: min(item.weight for item in part.items))
    often = max(parts, key=lambda part: max(item.weight for item in part.items))
    least, most = min(item.weight for item in rare.items), max(item.weight for item in often.items)
    if most > LARGEST_RATIO * least:
        raise InputError(
            f"a picture of {often.title} would be drawn {most / least:,.0f} times as often as one of {rare.title}; "
            f"at most {LARGEST_RATIO} times can be kept to: give weights that are closer, or more pictures to "
            f"{often.title}"
        )


def _all_at_resolutions(
    parts: Sequence[Part], resolutions: Sequence[int], progress: Progress
) -> list[list[TrainingImage]]:
    """`_at_resolutions` of each item of each part in their order, computed in threads."""
    steps = [_step_of(part.items) for part in parts]
    work = [(item, resolutions, step) for part, step in zip(parts, steps, strict=True) for item in part.items]
    pool = ThreadPoolExecutor(threads())
    try:
        futures = [pool.submit(_at_resolutions, *each) for each in work]
        copies = list[list[TrainingImage]]()
        for future in futures:
            progress(len(copies), len(work))
            copies.append(future.result())
        progress(len(work), len(work))
        return copies
    finally:
        pool.shutdown(cancel_futures=True)  # of an interrupt, which `progress` raises


def _with_copies(part: Part, copies: Sequence[list[TrainingImage]], resolutions: Sequence[int]) -> Part:
    """The part with the copies of each item in its place, which share its weight. resolutions: px, for the notes."""
    items = list[TrainingImage]()
    small, cropped, black = dict[int, list[str]](), list[str](), list[str]()
    for item, own in zip(part.items, copies, strict=True):
        height, width = size_of(item.pixels)
        visible = [copy for copy in own if copy.mask is None or bool(copy.mask.any())]
        if len(visible) < len(own):
            black.append(item.name)
        visible = visible or [item]
        items += [replace(copy, weight=item.weight / len(visible)) for copy in visible]
        for resolution in resolutions:
            if height * width < LEAST_AREA * resolution**2:
                small.setdefault(resolution, []).append(item.name)
        share = min(kept(height, width, *size_of(copy.pixels)) for copy in visible)
        if share < LEAST_KEPT and not item.name.endswith(MIRRORED):
            cropped.append(f"{item.name} ({share:.0%} is kept)")
    notes = [_small_note(resolution, names, part.items) for resolution, names in small.items()]
    if cropped:
        notes.append(f"Smaller copies cropped by more than a fifth: {listed(_once(cropped))}.")
    if black:
        notes.append(f"Smaller copies left out: {listed(_once(black))}; nothing of the mask is left at that size.")
    return replace(part, items=tuple(items), notes=(*part.notes, *notes))


def _small_note(resolution: int, names: Sequence[str], items: Sequence[TrainingImage]) -> str:
    """That some or all pictures of a set are smaller than a resolution. names: of their items."""
    whole = _once(item.name for item in items)
    names = _once(names)
    what = "all its pictures were" if len(names) == len(whole) else f"{listed(names)} {_was(names)}"
    return (
        f"Not at {resolution} px: {what} read at a smaller size, which is taken instead, as nothing is enlarged. Where "
        f"the files are that large, raise resolution of Image Folder to {resolution}."
    )


def _was(names: Sequence[str]) -> str:
    return "was" if len(names) == 1 else "were"


def _once(names: Iterable[str]) -> list[str]:
    """The names of pictures, each once, without mirrored copies."""
    return list(dict.fromkeys(name.removesuffix(MIRRORED) for name in names))


def _step_of(items: Sequence[TrainingImage]) -> int:
    """The step in px between the sides of copies: up to `BUCKET_STEP`, and one that the sides of the set are in.

    A set that was read with a smaller step has sides that are no multiples of the larger one.
    """
    sides = {side for item in items for side in size_of(item.pixels) if side >= LARGE}
    return max(math.gcd(BUCKET_STEP, *sides), SMALL_STEP)


def _at_resolutions(item: TrainingImage, resolutions: Sequence[int], step: int) -> list[TrainingImage]:
    """The item at each of the resolutions (px, the largest first), each size once.

    A size is what Image Folder would give a picture of the item's size, see `target_size`; an item whose area is at
    most that of a resolution stays as it is there.
    """
    height, width = size_of(item.pixels)
    sizes = [
        (height, width) if height * width <= resolution**2 else target_size(height, width, resolution, True, step)
        for resolution in resolutions
    ]
    return [item if size == (height, width) else shrunk_item(item, size) for size in dict.fromkeys(sizes)]


def shrunk_item(item: TrainingImage, size: Size) -> TrainingImage:
    """The item with all its pictures scaled to cover `size` (height, width) in px and cropped at the middle.

    `original` stays the size of the file. `crop` is what was cropped from the picture that is scaled from the file to
    this size: what the item had lost, scaled along, and what is lost now.
    """
    height, width = size_of(item.pixels)
    scale = max(size[0] / height, size[1] / width)
    top, left = crop_offset((height, width), *size)
    return replace(
        item,
        pixels=fit_item(item.pixels, size, item.is_clip),
        mask=fit_item(item.mask, size, item.is_clip),
        control=fit_item(item.control, size, item.is_clip),
        original=item.original or (height, width),
        crop=(round(item.crop[0] * scale) + top, round(item.crop[1] * scale) + left),
    )


def _fingerprint(items: Sequence[TrainingImage], sets: Sequence[ImageSet]) -> str:
    """A hash of the result: that of the set where it is one set as it was.

    Else of the items, of the sets, and of which items show one picture, as that decides what is held out.
    """
    if len(sets) == 1 and len(items) == len(sets[0].items) and all(map(_same_item, items, sets[0].items)):
        return sets[0].fingerprint
    parts = [fingerprint(items), str(by_picture(items)), *(images.fingerprint for images in sets)]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def _same_item(item: TrainingImage, other: TrainingImage) -> bool:
    return item.pixels is other.pixels and item.weight == other.weight


def _repeats_note(parts: Sequence[Part], balance: str) -> list[str]:
    """A note where weights of 2 and 1 do not draw a picture twice as often, as the sets have repeats of their own."""
    if balance != AS_THEY_ARE or len(parts) < 2:
        return []
    draws = {part.title: part.total / len(part.pictures) / part.weight for part in parts}
    least = min(draws.values())
    more = [f"of {title} {draw / least:.3g} times" for title, draw in draws.items() if draw > 1.01 * least]
    if not more:
        return []
    return [
        f"Repeats and mirrored copies count besides the weights: each picture {', '.join(more)} as often as its weight "
        f"alone says. Set balance to {EACH_THE_SAME!r} to leave them out."
    ]


def _remarks(combined: Combined) -> list[str]:
    """What is odd about the sets beside each other."""
    parts, notes = combined.parts, list[str]()
    for part in parts:
        share = combined.share(part)
        if share < RARE:
            notes.append(
                f"{part.title} gets {share:.2%} of the draws, about {400 * share:.1f} of the 400 in 100 steps of "
                f"batch_size 4; give it a larger weight, or set balance to {EACH_THE_SAME!r}."
            )
    without = [part.title for part in parts if not any(item.trigger for item in part.items)]
    if without and len(without) < len(parts):
        notes.append(f"No trigger: {listed(without)}; the other sets have one.")
    twice = [own for own in combined.images.copies() if len(_parts_of(own, parts)) > 1]
    if twice:
        notes.append(
            f"In more than one set: {listed([combined.images.items[own[0]].path for own in twice])}. Each counts as "
            "one picture, is drawn for both sets, and is held out with all its copies or not at all."
        )
    same = _same_pixels(combined.images.items)
    if same:
        notes.append(
            f"The same picture under two names: {listed([f'{a} is {b}' for a, b in same])}. They are drawn as two, and "
            "held out together or not at all; remove one."
        )
    return notes


def _parts_of(indices: Sequence[int], parts: Sequence[Part]) -> set[int]:
    """The numbers of the parts that hold some of the items `indices` of the combined set."""
    ends, end = list[int](), 0
    for part in parts:
        end += len(part.items)
        ends.append(end)
    return {next(number for number, end in enumerate(ends) if index < end) for index in indices}


def _same_pixels(items: Sequence[TrainingImage]) -> list[tuple[str, str]]:
    """[(path, path of the earlier one)] of pictures of different folders that are equal in every pixel."""
    seen, pairs = dict[tuple[tuple[int, ...], int], list[TrainingImage]](), dict[tuple[str, str], None]()
    for item in items:
        key = tuple(item.pixels.shape), int(item.pixels.sum())
        for other in seen.get(key, []):
            if other.source != item.source and other.picture != item.picture and torch.equal(other.pixels, item.pixels):
                pairs[item.path, other.path] = None
                break
        else:
            seen.setdefault(key, []).append(item)
    return list(pairs)
