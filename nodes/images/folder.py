"""A training set from a folder of pictures."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import ClassVar

from ...training.captions import CAPTION_SYNTAXES, LITERAL, says
from ...training.config import check_choice
from ...training.errors import InputError
from ...training.images import MIRRORED, ImageSet, TrainingImage
from .captions.sources import CAPTIONS, EVERY_LINE, MOST_CAPTIONS, WRITTEN, FolderWords, captions_of, filled
from .captions.text_files import doubled_captions, first_caption_of, match_captions
from .captions.written import Written, read_written
from .controls import FolderControls
from .fingerprint import fingerprint
from .layout import Layout, Part, layout_of
from .left_out import left_out, parts_note
from .masks import MASKS, FolderMasks, without_black_masks
from .quality import Traits, counted, listed, remarks
from .reading.pictures import PictureFile, Progress, ReadPicture, no_progress, read_pictures
from .sizes import (
    BUCKET_STEP,
    BUCKET_STEPS,
    LARGEST_RESOLUTION,
    LEAST_KEPT,
    SMALL_STEP,
    SMALLEST_SIDE,
    crop_offset,
    kept,
    size_of,
    target_size,
)


@dataclass(frozen=True)
class FolderRequest:
    """How a folder is read.

    captions: one of `CAPTIONS`, with `template` for "template". trigger: a word put before captions that lack it;
    {folder} in it is the name of the picture's folder. subfolders: whether all below the folder is read, see
    `layout.layout_of`.
    resolution: px, the side of the square whose area a picture may have at most. bucket: keep aspect ratios. flip: add
    mirrored copies. repeats: how often each picture stands in the set. masks: one of `MASKS`. bucket_step: px, the step
    between the sides of buckets; see `target_size`. caption_syntax: one of `CAPTION_SYNTAXES`. source: the folder as
    the user has chosen it, see `TrainingImage`. pairs: each picture has a second one, see `controls`. Raises
    `InputError` for a value out of range.
    """

    MASKS: ClassVar[tuple[str, ...]] = MASKS

    folder: Path
    captions: str = "text files"
    template: str = "{trigger}"
    trigger: str = ""
    resolution: int = 512
    bucket: bool = True
    flip: bool = False
    repeats: int = 1
    masks: str = "none"
    bucket_step: int = BUCKET_STEP
    caption_syntax: str = LITERAL
    source: str = ""
    subfolders: bool = False
    pairs: bool = False

    def __post_init__(self) -> None:
        if self.captions not in CAPTIONS:
            raise InputError(f"captions is {self.captions!r}; choose one of {', '.join(CAPTIONS)}")
        if self.masks not in self.MASKS:
            raise InputError(f"masks is {self.masks!r}; choose one of {', '.join(self.MASKS)}")
        check_choice("caption_syntax", self.caption_syntax, CAPTION_SYNTAXES)
        if not SMALLEST_SIDE <= self.resolution <= LARGEST_RESOLUTION:
            raise InputError(f"resolution is {self.resolution}; give {SMALLEST_SIDE} to {LARGEST_RESOLUTION} pixels")
        if self.repeats < 1:
            raise InputError(f"repeats is {self.repeats}; give 1 or more")
        low, high = BUCKET_STEPS
        if not low <= self.bucket_step <= high or self.bucket_step % SMALL_STEP:
            raise InputError(f"bucket_step is {self.bucket_step}; give a multiple of {SMALL_STEP} from {low} to {high}")

    @property
    def shape(self) -> tuple[int, bool, int]:
        """All that `target` depends on."""
        return self.resolution, self.bucket, self.bucket_step

    def target(self, height: int, width: int) -> tuple[int, int]:
        """(height, width) that a picture is trained at, see `target_size`. Raises `InputError` for one too small."""
        size = target_size(height, width, self.resolution, self.bucket, self.bucket_step)
        if min(size) < SMALLEST_SIDE:
            raise InputError(f"is {width}x{height} px; a side needs {SMALLEST_SIDE} or more")
        return size


@dataclass
class Findings:
    """What was noticed while a folder was read, as names of files."""

    layout: Layout
    written: Written
    noted: list[str] = field(default_factory=list)  # "name: note"
    uncaptioned: dict[str, str] = field(default_factory=dict)  # {name: the caption that it has}
    by_concept: dict[str, str] = field(default_factory=dict)  # {name: the concept that is its caption}
    says_concept: dict[tuple[str, str], bool] = field(default_factory=dict)  # {(place, concept): in any caption}
    cropped: list[str] = field(default_factory=list)
    small: list[str] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)  # pictures by the places of their folders
    captions: list[int] = field(default_factory=list)  # how many each picture has

    def notes(self, request: FolderRequest, pictures: Iterable[Path]) -> list[str]:
        """One note for each picture or kind of finding."""
        shown = self.layout.shown
        notes = [
            *parts_note(self.layout.parts, self.counts),
            *self.noted,
            *self.written.notes(list(pictures), request.captions == EVERY_LINE, shown),
            *left_out(self.layout, request.captions, self.written),
            *self._caption_notes(),
        ]
        if self.cropped:
            finer = " A smaller bucket_step may keep more." if request.bucket_step > SMALL_STEP else ""
            notes.append(
                f"Cropped by more than a fifth: {listed(self.cropped)}; no bucket is closer to their shape.{finer}"
            )
        if self.small:
            notes.append(
                f"Small: {listed(self.small)}; less than half of the {request.resolution}x{request.resolution} px "
                "asked for, and nothing is enlarged."
            )
        return notes

    def _caption_notes(self) -> list[str]:
        notes = []
        if self.by_concept:
            examples = [f"{name} ({concept})" for name, concept in self.by_concept.items()]
            notes.append(f"Captions from the names of folders: {listed(examples)}.")
        unsaid = [f"{concept} ({place})" for (place, concept), is_said in self.says_concept.items() if not is_said]
        if unsaid:
            notes.append(
                f"No caption says the name of its folder: {listed(unsaid)}. As in kohya's scripts the name is not used "
                "there; write {folder} into trigger to put it before each caption."
            )
        names_of: dict[str, list[str]] = {}
        for name, caption in self.uncaptioned.items():
            names_of.setdefault(caption, []).append(name)
        notes += [
            f"No caption: {listed(names)}; "
            + (f"only {caption!r} is said of them." if caption else "the prompt is empty for them.")
            for caption, names in names_of.items()
        ]
        if max(self.captions, default=1) > 1:
            several = sum(count > 1 for count in self.captions)
            notes.append(
                f"Several captions, drawn by turns: {counted(several, 'picture')} with up to {max(self.captions)}."
            )
        return notes


def read_folder(request: FolderRequest, progress: Progress = no_progress) -> ImageSet:
    """Read and prepare every picture of the folder, in the order of file names; subfolders follow, see `layout`.

    progress: see `reading.pictures.read_pictures`. Raises `InputError` that lists everything wrong at once: files that
    are no pictures, captions without a picture, pictures that are too small.
    """
    if not request.folder.is_dir():
        raise InputError(f"the folder {request.folder.name!r} is not there; make it under ComfyUI's input folder")
    layout = layout_of(request.folder, request.subfolders, request.pairs)
    controls = FolderControls(layout)
    masks = FolderMasks(request.masks, controls.others, controls.pictures, layout.shown)
    controls.match(masks.pictures)
    findings = Findings(layout, _written(request, layout))
    films = [path for part in layout.parts for path in part.others]
    captioned = [*masks.pictures, *masks.captioned, *controls.companions, *films, *map(first_caption_of, films)]
    wrong = [*captions_without_picture(request, layout, captioned), *findings.written.tables.wrong, *controls.wrong]
    pictures, traits = [], []
    with_alpha = request.masks == "alpha"
    files = [PictureFile(path, masks.of(path), with_alpha, controls.of(path)) for path in masks.pictures]
    for path, read in zip(masks.pictures, read_pictures(files, request.target, request.shape, progress), strict=True):
        try:
            if isinstance(read, InputError):
                raise read
            pictures.append(_item(path, read, request, findings))
        except InputError as error:
            place = layout.part_of(path).place
            wrong.append(f"{place}/{error}" if place and isinstance(read, InputError) else str(error))
            continue
        traits.append(read.traits)
        controls.note_shape(path, read)
        if read.mask is None:
            masks.note_missing(path)
    if wrong:
        raise InputError(
            f"{len(wrong)} of the files in {layout.folder.name!r} cannot be used; move them out of the folder or mend "
            f"them: {'; '.join(wrong)}"
        )
    if not pictures:
        text = f"the folder {layout.folder.name!r} holds no picture; put at least one .png, .jpg or .webp into it"
        notes = masks.notes() + controls.notes() + left_out(layout, request.captions, findings.written)
        raise InputError(" ".join([f"{text}.", *notes]) if notes else text)
    notes = findings.notes(request, masks.pictures) + masks.notes() + controls.notes()
    return _image_set(request, pictures, traits, notes)


def _image_set(
    request: FolderRequest, pictures: list[TrainingImage], traits: list[Traits], notes: list[str]
) -> ImageSet:
    """The set of the pictures with their copies. notes: what was noticed so far."""
    measured = dict(zip(map(id, pictures), traits, strict=True))
    pictures, black = without_black_masks(pictures)
    notes = notes + black + remarks([item.name for item in pictures], [measured[id(item)] for item in pictures])
    items = [copy for item in pictures for copy in ((item, mirrored(item)) if request.flip else (item,))]
    items = items * request.repeats
    triggers = {item.trigger for item in items}
    trigger = triggers.pop() if len(triggers) == 1 else ""
    return ImageSet(tuple(items), trigger, fingerprint(items), tuple(notes))


def _item(path: Path, read: ReadPicture, request: FolderRequest, findings: Findings) -> TrainingImage:
    """A picture that was read, with its captions. Raises `InputError` with the file's name."""
    original, (height, width) = read.picture.original, size_of(read.picture.pixels)
    part, name = findings.layout.part_of(path), findings.layout.shown(path)
    captions, trigger = captions_for(path, part, request, findings)
    if read.picture.note:
        findings.noted.append(f"{name}: {read.picture.note}")
    share = kept(*original, height, width)
    if request.bucket and share < LEAST_KEPT:
        findings.cropped.append(f"{name} ({share:.0%} of {original[1]}x{original[0]} px is kept)")
    if original[0] * original[1] < request.resolution**2 / 2:
        findings.small.append(f"{name} ({original[1]}x{original[0]} px)")
    findings.counts[part.place] += 1
    findings.captions.append(len(captions))
    return TrainingImage(
        name,
        read.picture.pixels,
        captions[0],
        read.mask,
        original,
        crop_offset(original, height, width),
        request.caption_syntax,
        captions[1:],
        float(part.repeats),
        trigger,
        request.source,
        control=read.control,
    )


def captions_for(path: Path, part: Part, request: FolderRequest, findings: Findings) -> tuple[tuple[str, ...], str]:
    """(the captions of a picture, its trigger word). Raises `InputError` where its file cannot be read.

    Without a trigger on the node it is kohya's name of the folder, for the pictures whose captions say it.
    """
    name, written = findings.layout.shown(path), findings.written
    words = FolderWords(filled(request.trigger, part.name), part.name, part.concept)
    try:
        lines = written.lines_of(path, request.captions == EVERY_LINE) if written.has(path) else None
    except OSError as error:
        raise InputError(f"{name} has a caption file that cannot be read ({error}); replace or remove it") from error
    captions, missing = captions_of(path, request.captions, request.template, words, lines)
    if len(captions) > MOST_CAPTIONS:
        raise InputError(f"{name} has {len(captions):,} captions; give it at most {MOST_CAPTIONS:,}")
    if missing:
        findings.uncaptioned[name] = captions[0]
    elif lines is None and request.captions in WRITTEN:
        findings.by_concept[name] = part.concept
    if words.trigger or not part.concept:
        return captions, words.trigger
    is_said = any(says(caption, part.concept) for caption in captions)
    known = findings.says_concept.get((part.place, part.concept), False)
    findings.says_concept[part.place, part.concept] = known or is_said
    return captions, part.concept if is_said else ""


def captions_without_picture(request: FolderRequest, layout: Layout, captioned: Iterable[Path]) -> list[str]:
    """What is said of caption files that belong to no picture or film. captioned: the files that may have one."""
    captions = sorted(layout.captions)
    used = set(match_captions(captioned, captions).values())
    doubles = doubled_captions(captions, used)  # `left_out` names them
    return [
        f"{layout.shown(path)} is a caption without a {layout.parts[0].WHAT} of that name"
        for path in captions
        if path not in used and path not in doubles and (request.captions in WRITTEN or path.suffix.lower() == ".txt")
    ]


def _written(request: FolderRequest, layout: Layout) -> Written:
    """The captions in files and tables; none are read where the captions come from elsewhere."""
    if request.captions not in WRITTEN:
        return Written()
    tables = [part.table for part in layout.parts if part.table]
    return read_written(layout.pictures, layout.captions, tables, layout.shown)


def mirrored(item: TrainingImage) -> TrainingImage:
    """The picture or clip, its mask and its second picture mirrored left to right."""
    mask = None if item.mask is None else item.mask.flip(-1)
    control = None if item.control is None else item.control.flip(-2)
    return replace(item, name=item.name + MIRRORED, pixels=item.pixels.flip(-2), mask=mask, control=control)
