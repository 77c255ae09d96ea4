"""A training set from images on the wire: one batch, or a list of batches of any sizes."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from ...training.captions import CAPTION_SYNTAXES, LITERAL
from ...training.config import check_choice
from ...training.errors import InputError
from ...training.images import ImageSet, TrainingImage
from .captions.sources import with_placeholder, with_trigger
from .captions.text_files import in_one_line
from .clips.plan import FASTEST, rounded_frames
from .fingerprint import fingerprint
from .masks import without_black_masks
from .quality import listed, remarks, traits_of_item
from .reading.bands import fit
from .sizes import LARGEST_RESOLUTION, SMALLEST_SIDE, crop_offset, target_size

# What `str.splitlines` takes for the end of a line and a text editor, or a caption file here, does not.
_OTHER_ENDS = re.compile("[\x0b\x0c\x1c-\x1e\x85\u2028\u2029]")


@dataclass(frozen=True)
class _Request:
    """How images on the wire become a set.

    trigger: a word put before captions that lack it. caption_syntax: one of `CAPTION_SYNTAXES`. resolution: 0 keeps
    sizes and crops sides at the middle to multiples of 8 px; else px, see `target_size`, to which `bucket` goes too.
    clips: each batch is one clip of `fps` frames a second, cut to a multiple of `frame_step` plus 1 frames.
    Raises `InputError` for a value out of range.
    """

    trigger: str = ""
    caption_syntax: str = LITERAL
    resolution: int = 0
    bucket: bool = True
    clips: bool = False
    fps: float = 24.0
    frame_step: int = 4

    def __post_init__(self) -> None:
        check_choice("caption_syntax", self.caption_syntax, CAPTION_SYNTAXES)
        if self.clips and not 0 < self.fps <= FASTEST:
            raise InputError(f"fps is {self.fps:g}; give more than 0 and at most {FASTEST:g} frames a second")
        if self.clips and self.frame_step < 1:
            raise InputError(f"frame_step is {self.frame_step}; give 1 or more")
        if isinstance(self.resolution, bool) or not isinstance(self.resolution, int):
            raise InputError(f"resolution is {self.resolution!r}; give a whole number of pixels, or 0")
        if self.resolution != 0 and not SMALLEST_SIDE <= self.resolution <= LARGEST_RESOLUTION:
            raise InputError(
                f"resolution is {self.resolution}; give 0 to keep the sizes, or {SMALLEST_SIDE} to "
                f"{LARGEST_RESOLUTION} pixels"
            )


def image_set(
    images: torch.Tensor | Sequence[torch.Tensor],
    captions: str | Sequence[str],
    trigger: str = "",
    masks: torch.Tensor | Sequence[torch.Tensor] | None = None,
    caption_syntax: str = LITERAL,
    resolution: int = 0,
    bucket: bool = True,
    clips: bool = False,
    fps: float = 24.0,
    frame_step: int = 4,
) -> ImageSet:
    """The training set of IMAGE batches.

    images: [B, H, W, C] in 0..1, C of 1, 3 or 4; or a list of such batches, of one size or several. captions: see
    `captions_of`. masks: for each batch in 0..1 [B or 1, H, W], also with a channel ([B, 1, H, W], [B, H, W, 1]) or
    without the first dimension; one batch of masks for all pictures, one for each batch, or one for each picture; or
    None. A picture whose mask is 0 everywhere is left out. The others: see `_Request`. Raises `InputError` for an empty
    batch, sides below 64 px, captions or masks of another number or size, and numbers that are not finite.
    """
    if not isinstance(trigger, str):
        raise InputError(f"trigger is of the kind {type(trigger).__name__}; wire text in")
    request = _Request(trigger.strip(), caption_syntax, resolution, bucket, clips, fps, frame_step)
    batches = [_checked(batch) for batch in _flat(images)]
    if not batches:
        raise InputError("the list of images is empty; wire at least one image in")
    counts = [1 if clips else len(batch) for batch in batches]
    texts = captions_of(_flat(captions), counts, "clip" if clips else "image")
    texts = [with_trigger(with_placeholder(text, request.trigger), request.trigger) for text in texts]
    of_pictures = _masks_of_all(None if masks is None else _flat(masks), batches)
    pictures = [picture for batch in batches for picture in batch]
    if clips:
        made = [
            _clip(number, batch, text, of_pictures, request)
            for number, (batch, text) in enumerate(zip(batches, texts, strict=True), 1)
        ]
    else:
        made = [
            _item(number, picture, text, mask, request)
            for number, (picture, text, mask) in enumerate(zip(pictures, texts, of_pictures, strict=True), 1)
        ]
    items, notes = without_black_masks(made)
    notes += _cut_notes(made, batches, frame_step) if clips else []
    if masks is None and any(bool((batch[..., 3] < 1).any()) for batch in batches if batch.shape[-1] == 4):
        notes.append("The images have an alpha channel, which is not used; wire a mask in if only a part should count.")
    notes += remarks([item.name for item in items], list(map(traits_of_item, items)), "clip" if clips else "picture")
    source = _source_of(pictures)
    items = [replace(item, source=source) for item in items]
    return ImageSet(tuple(items), request.trigger, fingerprint(items), tuple(notes))


def _source_of(pictures: Sequence[torch.Tensor]) -> str:
    """What tells the pictures of two batches apart: a hash of the pictures as they came.

    It is the same for the same pictures with other captions or at another resolution. No folder has such a name, as it
    holds a colon.
    """
    digest = hashlib.sha256()
    for picture in pictures:
        digest.update(str(tuple(picture.shape)).encode())
        digest.update(_as_bytes(picture).numpy().data)
    return f"batch:{digest.hexdigest()[:16]}"


def _as_bytes(picture: torch.Tensor) -> torch.Tensor:
    """The colours of a picture [H, W, C] as [H, W, 3] or [H, W, 1] uint8 on the CPU."""
    return (picture[..., :3].float().clamp(0, 1) * 255).round().to(torch.uint8).cpu().contiguous()


def _flat(values: Any) -> list[Any]:
    """The values of a wire in one list. Some nodes, ComfyUI's Add Text Suffix among them, put a list into each place of
    a list."""
    return [each for value in values for each in _flat(value)] if isinstance(values, (list, tuple)) else [values]


def captions_of(captions: Sequence[str], counts: Sequence[int], what: str = "image") -> list[str]:
    """The caption of each picture.

    captions: one text, with one caption a line in the order of the pictures or one line for all, where empty lines do
    not count and all lines for a single picture are its caption; or a list with a text for each picture, which becomes
    one line as in a caption file; or a list with such a text of lines for each batch. counts: the number of pictures of
    each batch. Raises `InputError` for another number of captions.
    """
    captions = list(captions)
    odd = [type(caption).__name__ for caption in captions if not isinstance(caption, str)]
    if odd:
        raise InputError(f"a caption is of the kind {odd[0]}; wire text in")
    # ComfyUI's loader leaves the mark at the start of an editor's UTF-8 file in its text.
    captions = [caption.replace("\ufeff", "") for caption in captions]
    count = sum(counts)
    if len(captions) == 1 and count > 1:
        return _lines(captions[0], count, what)
    if len(captions) == count:
        return [in_one_line(caption) for caption in captions]
    if len(captions) == len(counts):
        return [text for caption, n in zip(captions, counts, strict=True) for text in _lines(caption, n, what)]
    raise InputError(
        f"there is a list of {len(captions)} captions for {count} {what}s; wire one for all, or one a {_one(what)}"
    )


def _one(what: str) -> str:
    return "picture" if what == "image" else what


def _lines(text: str, count: int, what: str) -> list[str]:
    lines = [line.strip() for line in _OTHER_ENDS.sub(" ", text).splitlines() if line.strip()] or [""]
    if count == 1:  # a captioner's text of several lines is the caption of the one picture, as in a list of several
        return [" ".join(lines)]
    if len(lines) not in (1, count):
        raise InputError(
            f"there are {len(lines)} captions for {count} {what}s; write one line for all, or one a {_one(what)}"
        )
    return lines * count if len(lines) == 1 else lines


def _item(
    number: int, picture: torch.Tensor, caption: str, mask: torch.Tensor | None, request: _Request
) -> TrainingImage:
    """One picture [H, W, C] with its mask [H, W] at the size it is trained at. number: from 1, for its name."""
    original = (picture.shape[0], picture.shape[1])
    if request.resolution:
        height, width = target_size(*original, request.resolution, request.bucket)
    else:
        height, width = (side // 8 * 8 for side in original)
    if min(height, width) < SMALLEST_SIDE:
        raise InputError(f"image {number} is {original[1]}x{original[0]} px; a side needs {SMALLEST_SIDE} or more")
    pixels = _as_bytes(picture)
    if pixels.shape[-1] == 1:
        pixels = pixels.expand(-1, -1, 3)
    pixels = pixels.contiguous()
    if mask is not None:
        mask = mask.float().clamp(0, 1).cpu()
    if request.resolution:
        top, left = crop_offset(original, height, width)
        pixels, mask = fit(pixels, (height, width)), None if mask is None else fit(mask, (height, width))
    else:
        top, left = (original[0] - height) // 2, (original[1] - width) // 2
        rows, columns = slice(top, top + height), slice(left, left + width)
        pixels, mask = pixels[rows, columns], None if mask is None else mask[rows, columns]
    mask = None if mask is None else mask.clone()  # a part of a larger tensor would keep all of it
    return TrainingImage(
        f"image {number}",
        pixels.clone(),
        caption,
        mask,
        original,
        (top, left),
        request.caption_syntax,
        trigger=request.trigger,
    )


def _clip(
    number: int, batch: torch.Tensor, caption: str, masks: Iterator[torch.Tensor | None], request: _Request
) -> TrainingImage:
    """A batch [F, H, W, C] as one clip. masks: of its frames first, from which they are taken."""
    of_frames = [next(masks) for _ in batch]
    whole = rounded_frames(len(batch), request.frame_step)
    frames = [
        _item(number, frame, caption, mask, request)
        for frame, mask in zip(batch[:whole], of_frames[:whole], strict=True)
    ]
    found = [frame.mask for frame in frames if frame.mask is not None]
    return replace(
        frames[0],
        name=f"clip {number}",
        pixels=torch.stack([frame.pixels for frame in frames]),
        mask=torch.stack(found) if found else None,
        fps=request.fps,
    )


def _cut_notes(items: Sequence[TrainingImage], batches: Sequence[torch.Tensor], step: int) -> list[str]:
    """Which clips were cut to a multiple of `step` plus 1 frames."""
    cut = [
        f"{item.name} ({len(batch)} to {item.frames})"
        for item, batch in zip(items, batches, strict=True)
        if item.frames < len(batch)
    ]
    return [f"Cut at the end to a multiple of frame_step ({step}) plus 1 frames: {listed(cut)}."] if cut else []


def _checked(images: torch.Tensor) -> torch.Tensor:
    """The images, if they are floats [B, H, W, C] and finite. Raises `InputError`."""
    if not isinstance(images, torch.Tensor):
        raise InputError(f"the images are of the kind {type(images).__name__}; wire an IMAGE in")
    if images.ndim != 4 or images.shape[-1] not in (1, 3, 4):
        raise InputError(f"the images have the shape {list(images.shape)}; give [B, H, W, C] with 1, 3 or 4 channels")
    _check_plain("images", images)
    if not images.dtype.is_floating_point:
        raise InputError(f"the images hold numbers of the kind {images.dtype}; give floats from 0 (black) to 1 (white)")
    if images.shape[0] == 0:
        raise InputError("the batch holds 0 images; wire at least one image in")
    if not bool(torch.isfinite(images).all()):
        raise InputError("the images hold numbers that are not finite; look at the node that makes them")
    return images


def _check_plain(what: str, tensor: torch.Tensor) -> None:
    """Raise `InputError` for a tensor without data or of another layout, whose values cannot be read."""
    if tensor.is_meta or tensor.layout is not torch.strided:
        kind = "without data" if tensor.is_meta else f"of the layout {tensor.layout}"
        raise InputError(f"the {what} are a tensor {kind}; look at the node that makes them")


def _masks_of_all(
    masks: Sequence[torch.Tensor] | None, batches: Sequence[torch.Tensor]
) -> Iterator[torch.Tensor | None]:
    """The mask [H, W] of each picture, or None for each; see `image_set`. Raises `InputError`."""
    counts = [len(batch) for batch in batches]
    sizes = [(batch.shape[1], batch.shape[2]) for batch in batches]
    count = sum(counts)
    if masks is None:
        yield from [None] * count
    elif len(masks) == len(batches):
        for mask, n, size in zip(masks, counts, sizes, strict=True):
            yield from _masks_of(mask, n, size).expand(n, -1, -1)
    elif len(masks) == 1:
        for i, size in enumerate(size for n, size in zip(counts, sizes, strict=True) for _ in range(n)):
            found = _masks_of(masks[0], count, size)
            yield found[i % found.shape[0]]
    elif len(masks) == count:
        of_each = [size for n, size in zip(counts, sizes, strict=True) for _ in range(n)]
        for mask, size in zip(masks, of_each, strict=True):
            yield _masks_of(mask, 1, size)[0]
    else:
        raise InputError(
            f"there is a list of {len(masks)} masks for {count} images; wire one for all, or one a picture"
        )


def _masks_of(masks: torch.Tensor, count: int, size: tuple[int, int]) -> torch.Tensor:
    """The masks as [B or 1, H, W] of `size` (height, width); see `image_set`. Raises `InputError`."""
    if not isinstance(masks, torch.Tensor):
        raise InputError(f"a mask is of the kind {type(masks).__name__}; wire a MASK in, or none at all")
    _check_plain("masks", masks)
    shape = list(masks.shape)
    if masks.ndim == 2:
        masks = masks[None]
    elif masks.ndim == 4 and masks.shape[1] == 1 and tuple(masks.shape[2:]) == size:
        masks = masks[:, 0]
    elif masks.ndim == 4 and masks.shape[3] == 1:
        masks = masks[..., 0]
    if masks.ndim != 3:
        raise InputError(f"the masks have the shape {shape}; give [B, H, W], one for all images or one each")
    if masks.shape[0] not in (1, count):
        raise InputError(f"there are {masks.shape[0]} masks for {count} images; wire one for all, or one a picture")
    if tuple(masks.shape[1:]) != size:
        raise InputError(
            f"the masks are {masks.shape[2]}x{masks.shape[1]} px and the images {size[1]}x{size[0]}; make them equal"
        )
    if masks.dtype.is_complex or (not masks.dtype.is_floating_point and bool((masks > 1).any())):
        raise InputError(
            f"the masks hold numbers of the kind {masks.dtype}; give floats from 0 (left out) to 1 (counts)"
        )
    if not bool(torch.isfinite(masks).all()):
        raise InputError("the masks hold numbers that are not finite; look at the node that makes them")
    return masks
