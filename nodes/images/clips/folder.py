"""A training set of clips from a folder of films."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import ClassVar

from torch import Tensor

from ....training.config import check_choice
from ....training.errors import InputError
from ....training.images import ImageSet, TrainingImage
from ..captions.sources import WRITTEN, with_trigger
from ..captions.text_files import CaptionFiles, first_caption_of, match_captions, read_caption_files
from ..captions.written import Written, read_written
from ..fingerprint import fingerprint
from ..folder import Findings, FolderRequest, captions_for, captions_without_picture, mirrored
from ..layout import Layout, layout_of
from ..listing import PICTURES
from ..masks import without_black_masks
from ..quality import counted, listed, remarks, traits_of_item
from ..reading.decode import read_mask
from ..reading.pictures import Progress, no_progress
from ..reading.stamps import Kept, stamp_of
from ..sizes import LEAST_KEPT, crop_offset, kept
from .captions import FIRST_FRAMES, NO_FIRST, STILL, Filled, filled_template, with_first
from .layout import MASKS_IN_FILES, Entry, FilmPart, entries_in, files_of, source_of, unused_masks
from .motion import moving
from .plan import Clip, Cutting, Planned, plan
from .read import ReadClip, read_clips, read_masks
from .scan import Scan, scan

NO_MASKS, ALPHA, IN_FILES, MOVES = "none", "alpha", MASKS_IN_FILES, "what moves"
CLIP_MASKS = (NO_MASKS, ALPHA, IN_FILES, MOVES)
MOST_BYTES = 2**33  # of all clips of a set as they lie in memory
MOST_KEPT, MOST_SCANS = 2**30, 2**26  # bytes of clips and of scans that are kept while the server runs
TICKS = 16  # frames between two calls of `Progress`

CLIPS: Kept[list[ReadClip]] = Kept(MOST_KEPT)
SCANS: Kept[Scan] = Kept(MOST_SCANS)


@dataclass(frozen=True)
class ClipRequest(FolderRequest):
    """How a folder of films is read; see `FolderRequest` for what pictures have too.

    cutting: see `plan.Cutting`. masks: one of `CLIP_MASKS`. first_frame: one of `FIRST_FRAMES`. frame_folders: whether
    a subfolder of pictures is a film. Raises `InputError` for a value out of range.
    """

    MASKS: ClassVar[tuple[str, ...]] = CLIP_MASKS

    cutting: Cutting = field(default_factory=Cutting)
    first_frame: str = FIRST_FRAMES[0]
    frame_folders: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("first_frame", self.first_frame, FIRST_FRAMES)


@dataclass
class _Film:
    """A film that was looked at. target: (height, width) px of its clips."""

    entry: Entry
    scan: Scan
    planned: Planned
    target: tuple[int, int]


@dataclass
class _Report:
    """What was noticed of the films."""

    noted: list[str] = field(default_factory=list)
    short: list[str] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    spread: list[str] = field(default_factory=list)
    none: list[str] = field(default_factory=list)
    repeated: list[str] = field(default_factory=list)
    still: list[str] = field(default_factory=list)
    rates: dict[str, list[str]] = field(default_factory=dict)
    without_mask: list[str] = field(default_factory=list)
    unused_first: list[str] = field(default_factory=list)

    def notes(self, request: ClipRequest) -> list[str]:
        """One note for each kind of finding."""
        cutting = request.cutting
        notes = []
        if cutting.whole != cutting.frames:
            notes.append(
                f"Clips have {cutting.whole} frames: {cutting.frames} is rounded down to a multiple of frame_step "
                f"({cutting.frame_step}) plus 1."
            )
        notes += self.noted
        if len(self.rates) > 1 and not cutting.fps:
            rates = [f"{rate} ({listed(names, 3)})" for rate, names in self.rates.items()]
            notes.append(
                f"Frames a second differ: {listed(rates)}. The model takes all clips to be of one rate; set fps to its "
                "own, so that movements keep their speed."
            )
        texts = {
            "Frames repeat, as fps is above the film's own": self.repeated,
            f"Shorter than {cutting.whole} frames, taken as long as they are": self.short,
            "Scenes that are too short, left out": self.left_out,
            "Spread evenly over the film, as max_clips says": self.spread,
            "NOT USED, as no scene is long enough": self.none,
            "Nothing moves": self.still,
            "No mask found, so the whole clip counts": self.without_mask,
            "Captions of first frames that no clip begins with, not used": self.unused_first,
        }
        return notes + [f"{text}: {listed(names)}." for text, names in texts.items() if names]


def read_clip_folder(request: ClipRequest, progress: Progress = no_progress) -> ImageSet:
    """Read every film of a folder as clips, in the order of names; subfolders follow.

    Each film is decoded twice, frame by frame: first to find its scenes and the time of each frame, then for the frames
    that clips are made of. progress: is called often. Raises `InputError` that lists everything wrong at once, and for
    a set that takes more than `MOST_BYTES`.
    """
    if not request.folder.is_dir():
        raise InputError(f"the folder {request.folder.name!r} is not there; make it under ComfyUI's input folder")
    layout = layout_of(request.folder, request.subfolders, kind=FilmPart)
    entries = entries_in(layout, request.frame_folders)
    used = (path for entry in entries for path in (entry.path, entry.mask))
    layout.taken.update(path for path in used if path is not None and path.is_dir())
    written, firsts = _written(request, layout, entries)
    findings, report = Findings(layout, written), _Report()
    others = [path for part in layout.parts for path in part.others]
    keys = [entry.key for entry in entries]
    captioned = [*keys, *map(first_caption_of, keys), *others]
    wrong = [*captions_without_picture(request, layout, captioned), *written.tables.wrong, *firsts.errors.values()]
    films = _scanned(request, entries, report, wrong, progress)
    _check_memory(request, films)
    items, first_of_films = list[TrainingImage](), list[TrainingImage]()
    for number, film in enumerate(films):
        try:
            clips = _read(request, film, report, _tick(progress, len(entries) + number, 2 * len(entries)))
            found = _items(request, film, clips, findings, firsts, report)
        except InputError as error:
            wrong.append(f"{film.entry.name} {error}")
            continue
        first_of_films += found[:1]
        items += found
    progress(1, 1)
    if wrong:
        raise InputError(
            f"{len(wrong)} of the files in {layout.folder.name!r} cannot be used; move them out of the folder or mend "
            f"them: {'; '.join(wrong)}"
        )
    notes = [*report.notes(request), *findings.notes(request, keys), *firsts.notes]
    notes += [*_mask_notes(request, layout, entries), *_shared_notes(layout, written)]
    if not items:
        why = " ".join(notes) or "put at least one .mp4 or .webm into it"
        raise InputError(f"the folder {layout.folder.name!r} holds no film that gives a clip: {why}")
    return _clip_set(request, items, first_of_films, notes)


def _mask_notes(request: ClipRequest, layout: Layout, entries: Sequence[Entry]) -> list[str]:
    """A note on films and other files that are left out since they are named as masks."""
    in_files = request.masks == IN_FILES
    left = layout.listed(unused_masks(layout, entries if in_files else ()))
    if not left:
        return []
    why = "no film has their name, or its mask is another file" if in_files else f"masks are not {IN_FILES!r}"
    return [
        f"Left out: {listed(left)}; named as a mask, and {why}. To train on such a film, give it a caption in a .txt "
        "of its name."
    ]


def _shared_notes(layout: Layout, written: Written) -> list[str]:
    """A note on caption files of films that pictures beside them have too."""
    film_of = {path: film for film, path in written.files.used.items()}
    others = [path for part in layout.parts for path in part.others]
    both = [
        f"{layout.shown(film_of[path])} and {layout.shown(picture)}"
        for picture, path in match_captions(others, layout.captions).items()
        if path in film_of
    ]
    return [f"One caption file for a film and a picture: {listed(both)}."] if both else []


def _written(request: ClipRequest, layout: Layout, entries: Sequence[Entry]) -> tuple[Written, CaptionFiles]:
    """(the captions of the films, those of their first frames); none where they come from elsewhere or are not used."""
    keys = [entry.key for entry in entries]
    tables = [part.table for part in layout.parts if part.table]
    written = Written()
    if request.captions in WRITTEN:
        written = read_written(keys, layout.captions, tables, layout.shown)
    if request.first_frame == NO_FIRST:
        return written, CaptionFiles()
    return written, read_caption_files(map(first_caption_of, keys), layout.captions, layout.shown)


def _scanned(
    request: ClipRequest, entries: Sequence[Entry], report: _Report, wrong: list[str], progress: Progress
) -> list[_Film]:
    """The films that clips can be made of. What is wrong with others goes into `wrong`."""
    films = []
    for number, entry in enumerate(entries):
        try:
            scanned = _scan(entry, request, _tick(progress, number, 2 * len(entries)))
            cutting = replace(request.cutting, fps=0.0) if entry.path.is_dir() else request.cutting
            film = _Film(entry, scanned, plan(scanned, cutting), request.target(*scanned.size))
        except InputError as error:
            wrong.append(f"{entry.name} {error}")
            continue
        _note(film, request, report)
        if film.planned.clips:
            films.append(film)
    return films


def _note(film: _Film, request: ClipRequest, report: _Report) -> None:
    """Note what a film is and how it was cut."""
    name, planned, scanned = film.entry.name, film.planned, film.scan
    report.noted += [f"{name}: {note}" for note in scanned.notes]
    if film.entry.path.is_dir() and not request.cutting.fps:
        report.noted.append(f"{name}: a folder does not say its frames a second; {scanned.rate:g} is taken. Set fps.")
    if planned.scenes > 1:
        report.noted.append(f"{name}: {planned.scenes} scenes")
    report.rates.setdefault(f"{scanned.rate:.4g}", []).append(name)
    if not planned.clips:
        report.none.append(f"{name} ({counted(len(scanned.times), 'frame')} at {scanned.rate:.4g} a second)")
        return
    if planned.clips[0].fps > 1.01 * scanned.rate:
        report.repeated.append(f"{name} ({scanned.rate:.4g})")
    if planned.short:
        report.short.append(f"{name} ({counted(planned.short, 'clip')})")
    if planned.left_out:
        report.left_out.append(f"{name} ({planned.left_out})")
    if len(planned.clips) < planned.spread:
        report.spread.append(f"{name} ({len(planned.clips)} of {planned.spread})")


def _check_memory(request: ClipRequest, films: Sequence[_Film]) -> None:
    """Raises `InputError` for clips that take more than `MOST_BYTES` together, before their frames are read."""
    a_pixel = (3 if request.masks == NO_MASKS else 7) * (2 if request.flip else 1)
    needed = count = 0
    for film in films:
        count += len(film.planned.clips)
        needed += sum(len(clip.indices) for clip in film.planned.clips) * film.target[0] * film.target[1] * a_pixel
    if needed > MOST_BYTES:
        largest = max(films, key=lambda film: film.target[0] * film.target[1]).target
        raise InputError(
            f"{counted(count, 'clip')} of {request.cutting.whole} frames at {largest[1]}x{largest[0]} px take "
            f"{needed / 2**30:.1f} GB of memory; at most {MOST_BYTES / 2**30:.0f} GB is taken for a set. Lower "
            "max_clips, frames or resolution"
        )


def _tick(progress: Progress, done: int, of: int) -> Callable[[], None]:
    """What is called for each frame, and tells `progress` of some."""
    frames = 0

    def tick() -> None:
        nonlocal frames
        if frames % TICKS == 0:
            progress(done, of)
        frames += 1

    return tick


def _stamps(paths: Sequence[Path | None]) -> Hashable | None:
    """What the content of sources depends on; None where it cannot be told."""
    stamps = tuple(stamp_of(file) for path in paths if path is not None for file in files_of(path))
    return None if None in stamps else (tuple(path is not None for path in paths), stamps)


def _scan(entry: Entry, request: ClipRequest, tick: Callable[[], None]) -> Scan:
    reading, stamps = SCANS.new_reading(), _stamps([entry.path])
    key = (stamps, request.cutting.fps if entry.path.is_dir() else 0)
    found = None if stamps is None else SCANS.get(key, reading)
    if found is None:
        found = scan(source_of(entry.path, request.cutting.fps), tick)
        if stamps is not None and stamps == _stamps([entry.path]):
            SCANS.put(key, found, found.nbytes, reading)
    return found


def _read(request: ClipRequest, film: _Film, report: _Report, tick: Callable[[], None]) -> list[ReadClip]:
    """The clips of a film with their masks. Raises `InputError` without the film's name."""
    entry, clips = film.entry, film.planned.clips
    mask = entry.mask if request.masks == IN_FILES else None
    if request.masks == IN_FILES and mask is None:
        report.without_mask.append(entry.name)
    reading, stamps = CLIPS.new_reading(), _stamps([entry.path, mask])
    key = (stamps, clips, film.target, request.masks)
    found = None if stamps is None else CLIPS.get(key, reading)
    if found is None:
        rate = request.cutting.fps
        found = read_clips(source_of(entry.path, rate), clips, film.target, request.masks == ALPHA, tick)
        if mask is not None:
            for clip, of_clip in zip(found, _masks_in(mask, film, tick), strict=True):
                clip.mask = of_clip
        elif request.masks == MOVES:
            for clip in found:
                clip.mask = moving(clip.pixels)
        if stamps is not None and stamps == _stamps([entry.path, mask]):
            CLIPS.put(key, found, sum(clip.nbytes for clip in found), reading)
    if request.masks == ALPHA and all(clip.mask is None for clip in found):
        report.without_mask.append(entry.name)
    still = all(bool((clip.pixels[1:] == clip.pixels[:-1]).all()) for clip in found)
    if still and max(len(clip.indices) for clip in clips) > 1:
        report.still.append(entry.name)
    return found


def _masks_in(mask: Path, film: _Film, tick: Callable[[], None]) -> list[Tensor]:
    """The masks of a film's clips. Raises `InputError` that names the mask."""
    clips, size = film.planned.clips, film.scan.size
    try:
        if mask.suffix.lower() in PICTURES and mask.is_file():
            of_all = read_mask(mask, size, film.target)
            return [of_all.expand(len(clip.indices), -1, -1).clone() for clip in clips]
        return read_masks(source_of(mask, film.scan.rate), clips, film.scan, film.target, tick)
    except InputError as error:
        raise InputError(f"has the mask {mask.name}, which {error}") from error


def _items(
    request: ClipRequest,
    film: _Film,
    clips: Sequence[ReadClip],
    findings: Findings,
    firsts: CaptionFiles,
    report: _Report,
) -> list[TrainingImage]:
    """The items of a film: its clips, and its first frame where that is asked for. Raises `InputError`."""
    entry, several = film.entry, len(clips) > 1
    share = kept(*film.scan.size, *film.target)
    if request.bucket and share < LEAST_KEPT:
        height, width = film.scan.size
        findings.cropped.append(f"{entry.name} ({share:.0%} of {width}x{height} px is kept)")
    if film.scan.size[0] * film.scan.size[1] < request.resolution**2 / 2:
        findings.small.append(f"{entry.name} ({film.scan.size[1]}x{film.scan.size[0]} px)")
    findings.counts[entry.part.place] += 1
    first = " ".join(firsts.lines_of(first_caption_of(entry.key)))
    if first and film.planned.clips[0].start > 0:
        report.unused_first.append(entry.name)
    items = []
    for number, (clip, read) in enumerate(zip(film.planned.clips, clips, strict=True), 1):
        own_first = first if clip.start == 0 else ""
        captions, trigger = _captions(request, entry, clip, own_first, findings)
        item = TrainingImage(
            f"{entry.name}#{number:0{len(str(len(clips)))}}" if several else entry.name,
            read.pixels,
            captions[0],
            read.mask,
            film.scan.size,
            crop_offset(film.scan.size, *film.target),
            request.caption_syntax,
            captions[1:],
            float(entry.part.repeats),
            trigger,
            request.source,
            fps=clip.fps,
            film=entry.name if several or (own_first and request.first_frame == STILL) else "",
            start=clip.start,
        )
        items.append(item)
        if own_first and request.first_frame == STILL:
            items.append(_still(item, f"{entry.name}.first.png", own_first))
    return items


def _captions(
    request: ClipRequest, entry: Entry, clip: Clip, first: str, findings: Findings
) -> tuple[tuple[str, ...], str]:
    """(the captions of a clip, its trigger). first: the caption of its first frame, or ""."""
    filled = Filled(len(clip.indices), clip.fps, first)
    filled_request = replace(request, template=filled_template(request.template, filled))
    captions, trigger = captions_for(entry.key, entry.part, filled_request, findings)
    findings.captions.append(len(captions))
    has_first = request.captions == "template" and "{first}" in request.template
    if first and request.first_frame != STILL and not has_first:
        captions = tuple(with_first(caption, first, trigger) for caption in captions)
        findings.uncaptioned.pop(entry.name, None)
    return captions, trigger


def _still(clip: TrainingImage, name: str, caption: str) -> TrainingImage:
    """The first frame of a clip as a picture."""
    return replace(
        clip,
        name=name,
        pixels=clip.first_frame.clone(),
        caption=with_trigger(caption, clip.trigger),
        more_captions=(),
        mask=None if clip.mask is None else clip.mask[0].clone(),
        fps=0.0,
    )


def _clip_set(
    request: ClipRequest, items: list[TrainingImage], first_of_films: Sequence[TrainingImage], notes: list[str]
) -> ImageSet:
    """The set of the clips with their copies. first_of_films: one clip of each film, which are compared."""
    items, black = without_black_masks(items)
    names = [item.film or item.name for item in first_of_films]
    notes = notes + black + remarks(names, list(map(traits_of_item, first_of_films)), "film")
    items = [copy for item in items for copy in ((item, mirrored(item)) if request.flip else (item,))]
    items = items * request.repeats
    triggers = {item.trigger for item in items}
    trigger = triggers.pop() if len(triggers) == 1 else ""
    return ImageSet(tuple(items), trigger, fingerprint(items), tuple(notes))
