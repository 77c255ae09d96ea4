"""A training set from a folder of pictures."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path

from ...training.captions import CAPTION_SYNTAXES, LITERAL
from ...training.config import check_choice
from ...training.errors import InputError
from ...training.images import MIRRORED, ImageSet, TrainingImage
from .captions.sources import CAPTIONS, caption_of
from .captions.text_files import CaptionFiles, doubled_captions, is_caption, match_captions, read_caption_files
from .left_out import CAPTION_FILES, OTHER_FILES, left_out
from .listing import entries_of
from .masks import MASKS, FolderMasks, without_black_masks, without_companions
from .quality import listed, remarks
from .reading.pictures import PictureFile, Progress, ReadPicture, read_pictures
from .sizes import (
    BUCKET_STEP,
    BUCKET_STEPS,
    LEAST_KEPT,
    SMALL_STEP,
    SMALLEST_SIDE,
    crop_offset,
    kept,
    size_of,
    target_size,
)

LARGEST_RESOLUTION = 4096  # px


@dataclass(frozen=True)
class FolderRequest:
    """How a folder is read.

    captions: one of `CAPTIONS`, with `template` for the last. trigger: a word put before captions that lack it.
    resolution: px, the side of the square whose area a picture may have at most. bucket: keep aspect ratios. flip: add
    mirrored copies. repeats: how often each picture stands in the set. masks: one of `MASKS`. bucket_step: px, the step
    between the sides of buckets; see `target_size`. caption_syntax: one of `CAPTION_SYNTAXES`. source: the folder as
    the user has chosen it, see `TrainingImage`. Raises `InputError` for a value out of range.
    """

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

    def __post_init__(self) -> None:
        if self.captions not in CAPTIONS:
            raise InputError(f"captions is {self.captions!r}; choose one of {', '.join(CAPTIONS)}")
        if self.masks not in MASKS:
            raise InputError(f"masks is {self.masks!r}; choose one of {', '.join(MASKS)}")
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
class _Findings:
    """What was noticed while a folder was read, as names of files."""

    noted: list[str] = field(default_factory=list)  # "name: note"
    uncaptioned: list[str] = field(default_factory=list)
    cropped: list[str] = field(default_factory=list)
    small: list[str] = field(default_factory=list)
    captions: CaptionFiles = field(default_factory=CaptionFiles)

    def notes(self, request: FolderRequest) -> list[str]:
        """One note for each picture or kind of finding."""
        notes = [*self.noted, *self.captions.notes, *left_out(request.folder, request.captions, self.captions)]
        if self.uncaptioned:
            caption = request.trigger.strip()
            notes.append(
                f"No caption: {listed(self.uncaptioned)}; "
                + (f"only {caption!r} is said of them." if caption else "the prompt is empty for them.")
            )
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


def _no_progress(done: int, of: int) -> None:
    """The progress of a reading that nobody watches."""


def read_folder(request: FolderRequest, progress: Progress = _no_progress) -> ImageSet:
    """Read and prepare every picture of the folder, in the order of file names.

    progress: see `reading.pictures.read_pictures`. Raises `InputError` that lists everything wrong at once: files that
    are no pictures, captions without a picture, pictures that are too small.
    """
    folder = request.folder
    if not folder.is_dir():
        raise InputError(f"the folder {folder.name!r} is not there; make it under ComfyUI's input folder")
    masks = FolderMasks(request.masks, files_in(folder), pictures_in(folder))
    wrong = _captions_without_picture(folder, masks.pictures + masks.captioned)
    pictures, traits, findings = [], [], _Findings(captions=_caption_files(request))
    files = [PictureFile(path, masks.of(path), request.masks == "alpha") for path in masks.pictures]
    for path, read in zip(masks.pictures, read_pictures(files, request.target, request.shape, progress), strict=True):
        try:
            if isinstance(read, InputError):
                raise read
            pictures.append(_item(path, read, request, findings))
        except InputError as error:
            wrong.append(str(error))
            continue
        traits.append(read.traits)
        if read.mask is None:
            masks.note_missing(path)
    if wrong:
        raise InputError(
            f"{len(wrong)} of the files in {folder.name!r} cannot be used; move them out of the folder or mend them: "
            + "; ".join(wrong)
        )
    if not pictures:
        text = f"the folder {folder.name!r} holds no picture; put at least one .png, .jpg or .webp into it"
        notes = masks.notes() + left_out(folder, request.captions, findings.captions)
        raise InputError(" ".join([f"{text}.", *notes]) if notes else text)
    measured = dict(zip(map(id, pictures), traits, strict=True))
    pictures, black = without_black_masks(pictures)
    notes = findings.notes(request) + masks.notes() + black
    notes += remarks([item.name for item in pictures], [measured[id(item)] for item in pictures])
    items = [copy for item in pictures for copy in ((item, mirrored(item)) if request.flip else (item,))]
    items = items * request.repeats
    return ImageSet(tuple(items), request.trigger.strip(), fingerprint(items), tuple(notes))


def _item(path: Path, read: ReadPicture, request: FolderRequest, findings: _Findings) -> TrainingImage:
    """A picture that was read, with its caption. Raises `InputError` with the file's name."""
    original, (height, width) = read.picture.original, size_of(read.picture.pixels)
    try:
        text = findings.captions.text_of(path)
        caption, missing = caption_of(path, request.captions, request.template, request.trigger.strip(), text)
    except OSError as error:
        raise InputError(f"{path.name} has a caption file that cannot be read ({error})") from error
    if missing:
        findings.uncaptioned.append(path.name)
    if read.picture.note:
        findings.noted.append(f"{path.name}: {read.picture.note}")
    share = kept(*original, height, width)
    if request.bucket and share < LEAST_KEPT:
        findings.cropped.append(f"{path.name} ({share:.0%} of {original[1]}x{original[0]} px is kept)")
    if original[0] * original[1] < request.resolution**2 / 2:
        findings.small.append(f"{path.name} ({original[1]}x{original[0]} px)")
    return TrainingImage(
        path.name,
        read.picture.pixels,
        caption,
        read.mask,
        original,
        crop_offset(original, height, width),
        request.caption_syntax,
        trigger=request.trigger.strip(),
        source=request.source,
    )


def pictures_in(folder: Path) -> list[Path]:
    """The folder's files that should be pictures, in the order of names: no captions, masks, caches or settings.

    A file that is named as a mask is one, unless it has a caption file of its own; see `without_companions`.
    """
    return without_companions(files_in(folder), filter(is_caption, entries_of(folder)))


def files_in(folder: Path) -> list[Path]:
    """The folder's pictures and masks, in the order of names."""
    return [
        path
        for path in sorted(entries_of(folder), key=lambda p: p.name.lower())
        if path.is_file() and not path.name.startswith(".") and path.suffix.lower() not in OTHER_FILES | CAPTION_FILES
    ]


def _captions_without_picture(folder: Path, pictures: Iterable[Path]) -> list[str]:
    captions = [path for path in sorted(entries_of(folder)) if is_caption(path)]
    used = set(match_captions(pictures, captions).values())
    doubles = doubled_captions(captions, used)  # `left_out` names them
    return [
        f"{path.name} is a caption without a picture of that name"
        for path in captions
        if path not in used and path not in doubles
    ]


def _caption_files(request: FolderRequest) -> CaptionFiles:
    """The caption files of a folder; none are read where the captions come from elsewhere."""
    if request.captions != "text files":
        return CaptionFiles()
    return read_caption_files(pictures_in(request.folder), filter(is_caption, entries_of(request.folder)))


def mirrored(item: TrainingImage) -> TrainingImage:
    """The picture and its mask mirrored left to right."""
    mask = None if item.mask is None else item.mask.flip(1)
    return replace(item, name=item.name + MIRRORED, pixels=item.pixels.flip(1), mask=mask)


def fingerprint(items: Iterable[TrainingImage]) -> str:
    """A hash of all that a training sees of the pictures."""
    digest = hashlib.sha256()
    for item in items:
        digest.update(f"{tuple(item.pixels.shape)}\0{item.prompt}\0{item.original}{item.crop}".encode())
        if item.more_captions or item.weight != 1:  # version 0.1 has neither
            digest.update(repr((item.prompts, item.weight)).encode())
        if item.variants is not None:
            digest.update(repr((item.prompts, item.variants, item.trigger)).encode())
        digest.update(item.pixels.contiguous().numpy().data)
        if item.mask is not None:
            digest.update(item.mask.contiguous().numpy().data)
    return digest.hexdigest()
