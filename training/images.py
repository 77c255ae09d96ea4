"""A training set: pictures and clips with captions, in sizes that a model takes."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from .caption_variants import CaptionVariants, fixed_variants
from .captions import LITERAL, as_prompt
from .errors import InputError

MIRRORED = " (mirrored)"  # the end of the name of a mirrored copy


@dataclass(frozen=True)
class TrainingImage:
    """One picture or clip. pixels: [H, W, 3] uint8 of a picture, [F, H, W, 3] of a clip of F >= 1 frames.

    mask: [H, W] in 0..1, the weight of a pixel in the loss, or None; of a clip [F, H, W].

    original: (height, width) in px before it was scaled, None where it was not. crop: (top, left), the px of the
    scaled picture that were cropped. SDXL is conditioned on both (Podell et al. 2023, arXiv 2307.01952, section 2.2).
    caption_syntax: one of `captions.CAPTION_SYNTAXES`, whether the caption is text or a prompt. Raises `InputError` for
    a caption with half of a surrogate pair, which no encoding takes: a file's name that is no UTF-8 gives one.

    more_captions: further captions; a training takes all by turns, validation takes `caption`. weight: how often the
    picture is drawn in proportion to others. trigger: the word that its captions say for what is learned, several one a
    line, or "".
    source: the folder, as the user knows it, or what else tells pictures of one name in several sets apart; items of
    one source and name are the same picture: its mirrored and repeated copies, and those of other sizes. variants: how
    each caption is varied in a training, or None; the captions themselves are not.

    control: a second picture of the shape of `pixels`, or None: what an edit model is given, where `pixels` is the
    result and the caption the instruction. Raises `InputError` for one of another shape.

    fps: frames a second of a clip as it was sampled, 0 for a picture. film: the name of the film that a clip was cut
    from, "" where it is none or the whole of it. start: s from the film's beginning to the clip's first frame. Raises
    `InputError` for a clip without frames, and for a mask that is not of the shape of the frames.
    """

    name: str
    pixels: Tensor
    caption: str
    mask: Tensor | None = None
    original: tuple[int, int] | None = None
    crop: tuple[int, int] = (0, 0)
    caption_syntax: str = LITERAL
    more_captions: tuple[str, ...] = ()
    weight: float = 1.0
    trigger: str = ""
    source: str = ""
    variants: CaptionVariants | None = None
    control: Tensor | None = None
    fps: float = 0.0
    film: str = ""
    start: float = 0.0

    def __post_init__(self) -> None:
        self._check_clip()
        if self.control is not None and self.control.shape != self.pixels.shape:
            raise InputError(
                f"{self.name!a} has a second picture of the shape {list(self.control.shape)} and is itself "
                f"{list(self.pixels.shape)}; scale it to the picture's size"
            )
        for caption in self.captions:
            half = next((character for character in caption if "\ud800" <= character <= "\udfff"), None)
            if half is not None:
                raise InputError(
                    f"{self.name!a} has the caption {caption[:60]!a}, in which {half!a} is half of a "
                    "surrogate pair and no character; write the caption, trigger or template anew, or rename the file"
                )

    def _check_clip(self) -> None:
        if not self.is_clip:
            return
        if self.frames < 1:
            raise InputError(f"{self.name!a} is a clip of 0 frames; give it at least one")
        if self.mask is not None and self.mask.shape != self.pixels.shape[:3]:
            raise InputError(
                f"{self.name!a} is a clip of the shape {list(self.pixels.shape)} and its mask {list(self.mask.shape)}; "
                "give a mask [frames, height, width]"
            )

    @property
    def is_clip(self) -> bool:
        """Whether it is a clip, [F, H, W, 3], also one of a single frame."""
        return self.pixels.ndim == 4

    @property
    def frames(self) -> int:
        """The number of frames; 1 for a picture."""
        return self.pixels.shape[0] if self.is_clip else 1

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) in px."""
        height, width = self.pixels.shape[-3:-1]
        return height, width

    @property
    def first_frame(self) -> Tensor:
        """A picture's pixels, or those of a clip's first frame: [H, W, 3] uint8."""
        return self.pixels[0] if self.is_clip else self.pixels

    @property
    def seconds(self) -> float:
        """How long a clip lasts; 0 for a picture."""
        return self.frames / self.fps if self.fps else 0.0

    @property
    def captions(self) -> tuple[str, ...]:
        """All captions of the picture; the first is `caption`."""
        return (self.caption, *self.more_captions)

    @property
    def prompt(self) -> str:
        """The prompt that a training encodes for the first caption."""
        return as_prompt(self.caption, self.caption_syntax)

    @property
    def texts(self) -> tuple[str, ...]:
        """The texts that a training takes by turns: the captions, or the fixed variants of each; `caption` is first."""
        rule = self.variants
        if rule is None or rule.at_each_draw:
            return self.captions
        return fixed_variants(self.captions, rule, self.trigger, self.caption_syntax)

    @property
    def prompts(self) -> tuple[str, ...]:
        """The prompts of `texts`, in their order. A text may be there several times."""
        prompts = {text: as_prompt(text, self.caption_syntax) for text in self.texts}
        return tuple(prompts[text] for text in self.texts)

    @property
    def picture(self) -> tuple[str, str]:
        """(folder, name in it): what all items that show one picture share.

        "cats/1.png" of the source "pets" and "1.png" of "pets/cats" are one file.
        """
        folder, _, name = self.path.rpartition("/")
        return folder, name

    @property
    def path(self) -> str:
        """The name with its source before it, for texts about several sets: "cats/1.png"."""
        return "/".join(part for part in (self.source, self.name.removesuffix(MIRRORED)) if part)


@dataclass(frozen=True)
class ImageSet:
    """The value of a `BESPOKE_IMAGES` wire. fingerprint: a hash of every pixel, prompt and mask.

    notes: remarks for the report. Raises `InputError` without a picture.
    """

    items: tuple[TrainingImage, ...]
    trigger: str = ""
    fingerprint: str = ""
    notes: tuple[str, ...] = field(default=())

    def __post_init__(self) -> None:
        if not self.items:
            raise InputError("the training set is empty; give it at least one picture")

    @property
    def trigger_prompt(self) -> str:
        """What a user writes in a prompt to say the trigger, or the several ones, as the captions say them."""
        syntax = {item.trigger: item.caption_syntax for item in reversed(self.items)}  # of the first that says it
        first = self.items[0].caption_syntax
        return ", ".join(as_prompt(word, syntax.get(word, first)) for word in self.triggers)

    @property
    def triggers(self) -> list[str]:
        """Every trigger word of the set once: the set's own first, then those of the items."""
        return list(dict.fromkeys(word for word in (self.trigger, *(item.trigger for item in self.items)) if word))

    @property
    def has_clips(self) -> bool:
        """Whether any item is a clip."""
        return any(item.is_clip for item in self.items)

    @property
    def are_pairs(self) -> bool:
        """Whether every picture has a second one, `TrainingImage.control`."""
        return all(item.control is not None for item in self.items)

    def by_size(self) -> list[list[int]]:
        """Indices grouped by frames, height and width; a batch has one size. The largest group is first."""
        groups: dict[tuple[int, ...], list[int]] = defaultdict(list)
        for index, item in enumerate(self.items):
            groups[(item.frames, *item.size)].append(index)
        return sorted(groups.values(), key=len, reverse=True)

    def copies(self) -> list[list[int]]:
        """Indices grouped by picture: its repeats, mirrored copies and copies of other sizes are one group."""
        return by_picture(self.items)


def by_picture(items: Iterable[TrainingImage]) -> list[list[int]]:
    """Indices of `items` grouped by picture; see `ImageSet.copies`."""
    groups: dict[tuple[str, str], list[int]] = defaultdict(list)
    for index, item in enumerate(items):
        groups[item.picture].append(index)
    return list(groups.values())


def first_equal(items: Sequence[TrainingImage]) -> list[int]:
    """For each item the index of the first one whose pixels are all the same, its own where it is the first."""
    seen: dict[tuple[tuple[int, ...], int], list[int]] = {}
    first = list[int]()
    for index, item in enumerate(items):
        alike = seen.setdefault((tuple(item.pixels.shape), int(item.pixels.sum())), [])
        found = next((other for other in alike if torch.equal(items[other].pixels, item.pixels)), index)
        if found == index:
            alike.append(index)
        first.append(found)
    return first


def apart(items: Sequence[TrainingImage], equal: Sequence[int]) -> list[list[int]]:
    """Indices of `items` grouped so that no two groups show the same: `by_picture`; equal pixels join groups.

    So do frames that two clips of one film share.

    A picture that is there under two names, such as the repeats in a list of ComfyUI's loader of datasets, would
    otherwise be held out under one of them and trained on under the other. equal: see `first_equal`.
    """
    groups = [set(own) for own in by_picture(items)]
    group_of = {index: group for group in groups for index in group}
    for index, other in [*enumerate(equal), *_overlaps(items)]:
        group, joined = group_of[other], group_of[index]
        if group is not joined:
            group |= joined
            group_of |= dict.fromkeys(joined, group)
    return sorted(map(sorted, {id(group): group for group in group_of.values()}.values()))


def _overlaps(items: Sequence[TrainingImage]) -> list[tuple[int, int]]:
    """(index, index of an earlier clip) for each clip that begins before another of the same film ends."""
    films: dict[str, list[int]] = defaultdict(list)
    for index, item in enumerate(items):
        if item.film:
            films["/".join(part for part in (item.source, item.film) if part)].append(index)
        elif item.is_clip:  # the whole film, which another set may have clips of
            films[item.path].append(index)
    found = list[tuple[int, int]]()
    for own in films.values():
        own.sort(key=lambda index: (items[index].start, -_end(items[index])))
        last = own[0]
        for index in own[1:]:
            if items[index].start < _end(items[last]) - 1e-6:
                found.append((index, last))
            last = max(last, index, key=lambda each: _end(items[each]))
    return found


def _end(clip: TrainingImage) -> float:
    """The time at which a clip's last frame ends, in s of its film."""
    return clip.start + clip.seconds


def passes(images: int, steps: int, batch_size: int) -> float:
    """How often each of `images` is trained on, on average. batch_size: images per step."""
    return steps * batch_size / images


def passes_in_words(images: int, steps: int, batch_size: int) -> str:
    """`passes` as text: "about 50 times", "about once", "less than once"."""
    times = round(passes(images, steps, batch_size))
    return "less than once" if times < 1 else "about once" if times == 1 else f"about {times} times"


def common_resolution(images: ImageSet) -> str:
    """The most frequent size in px, as "512x768" (width first); of clips "512x320, 33 frames"."""
    item = images.items[images.by_size()[0][0]]
    height, width = item.size
    return f"{width}x{height}, {item.frames} frames" if item.is_clip else f"{width}x{height}"
