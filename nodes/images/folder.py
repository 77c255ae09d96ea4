"""Pictures from a folder: what is read, how it is brought to size, what is refused and why."""

from __future__ import annotations

import codecs
import functools
import hashlib
import math
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps

from ...training.errors import InputError
from ...training.images import MIRRORED, ImageSet, TrainingImage
from .quality import listed, remarks

CAPTIONS = ("text files", "file names", "template")
MASKS = ("none", "alpha", "*-mask.png")
MASK_SUFFIX = "-mask"
SMALLEST_SIDE = 64  # px; below it nothing is left to learn from
MAX_PIXELS = 200_000_000  # a picture beyond it is refused before it is decoded
# What is decoded. Others that Pillow knows are drawings, documents or rarities; EPS would start another program.
FORMATS = ("PNG", "JPEG", "MPO", "WEBP", "AVIF", "GIF", "BMP", "TIFF", "PPM", "TGA", "JPEG2000", "ICO", "DDS", "QOI")
# Files that lie in training folders without being pictures: thumbnails' caches, other trainers' caches and settings.
LEFT_ASIDE = {".npz", ".json", ".jsonl", ".toml", ".yaml", ".safetensors", ".db", ".ini"}


@dataclass(frozen=True)
class FolderRequest:
    """How a folder is read. resolution: px, the side of the square whose area a picture may have at most."""

    folder: Path
    captions: str = "text files"
    template: str = "{trigger}"
    trigger: str = ""
    resolution: int = 512
    bucket: bool = True
    flip: bool = False
    repeats: int = 1
    masks: str = "none"

    def __post_init__(self) -> None:
        if self.captions not in CAPTIONS:
            raise InputError(f"captions is {self.captions!r}; choose one of {', '.join(CAPTIONS)}")
        if self.masks not in MASKS:
            raise InputError(f"masks is {self.masks!r}; choose one of {', '.join(MASKS)}")
        if not SMALLEST_SIDE <= self.resolution <= 4096:
            raise InputError(f"resolution is {self.resolution}; give {SMALLEST_SIDE} to 4096 pixels")
        if self.repeats < 1:
            raise InputError(f"repeats is {self.repeats}; give 1 or more")


def pictures_in(folder: Path) -> list[Path]:
    """The folder's files that should be pictures, in name order; captions, masks and caches left aside."""
    return [
        path
        for path in sorted(folder.iterdir(), key=lambda p: p.name.lower())
        if path.is_file()
        and not path.name.startswith(".")
        and path.suffix.lower() not in LEFT_ASIDE | {".txt", ".caption"}
        and not path.stem.endswith(MASK_SUFFIX)
    ]


def hash_files(folder: Path) -> str:
    """A hash of every file's name and bytes: a changed caption or picture changes it."""
    digest = hashlib.sha256()
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if path.is_file():
            digest.update(path.name.encode("utf-8", "surrogatepass") + b"\0" + _hash_file(path))
    return digest.hexdigest()


def _hash_file(path: Path) -> bytes:
    digest = hashlib.sha256()
    with path.open("rb") as file:  # piece by piece: a film may lie there by mistake
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.digest()


def read_folder(request: FolderRequest) -> ImageSet:
    """Read and prepare every picture of the folder.

    Raises `InputError` that lists everything wrong at once: files that are no pictures, captions without a picture,
    pictures that are too small.
    """
    folder = request.folder
    if not folder.is_dir():
        raise InputError(f"the folder {folder.name!r} is not there; make it under ComfyUI's input folder")
    paths = pictures_in(folder)
    stems = {path.stem for path in paths}
    wrong = [
        f"{path.name} is a caption without a picture of that name"
        for path in sorted(folder.glob("*.txt"))
        if path.stem not in stems
    ]
    items, notes, distinct, uncaptioned, unmasked, small = [], [], [], [], [], []
    for path in paths:
        try:
            pixels, alpha, note = read_picture(path)
        except InputError as error:
            wrong.append(f"{path.name} {error}")
            continue
        height, width = target_size(pixels.shape[0], pixels.shape[1], request.resolution, request.bucket)
        if min(height, width) < SMALLEST_SIDE:
            wrong.append(f"{path.name} is {pixels.shape[1]}x{pixels.shape[0]} px; a side needs {SMALLEST_SIDE} or more")
            continue
        mask = None
        if request.masks == "alpha":
            mask = alpha
        elif request.masks == "*-mask.png":
            mask_path = path.with_name(f"{path.stem}{MASK_SUFFIX}.png")
            if mask_path.is_file():
                try:
                    mask = read_mask(mask_path, pixels.shape[:2])
                except InputError as error:
                    wrong.append(f"{mask_path.name} {error}")
                    continue
            else:
                unmasked.append(path.name)
        try:
            caption, missing = caption_of(path, request)
        except OSError as error:
            wrong.append(f"{path.name} has a caption file that cannot be read ({error})")
            continue
        if missing:
            uncaptioned.append(path.name)
        if note:
            notes.append(f"{path.name}: {note}")
        if pixels.shape[0] * pixels.shape[1] < request.resolution**2 / 2:
            small.append(f"{path.name} ({pixels.shape[1]}x{pixels.shape[0]} px)")
        original = tuple(pixels.shape[:2])
        item = TrainingImage(
            path.name,
            fit(pixels, height, width),
            caption,
            None if mask is None else fit(mask, height, width),
            original,
            cut_away(original, height, width),
        )
        items.append(item)
        distinct.append(item)
        if request.flip:
            items.append(mirrored(item))
    if wrong:
        raise InputError(
            f"{len(wrong)} of the files in {folder.name!r} cannot be used; move them out of the folder or mend them: "
            + "; ".join(wrong)
        )
    if not items:
        raise InputError(f"the folder {folder.name!r} holds no picture; put at least one .png, .jpg or .webp into it")
    if uncaptioned:
        caption = request.trigger.strip()
        notes.append(
            f"No caption: {listed(uncaptioned)}; "
            + (f"only {caption!r} is said of them." if caption else "the prompt is empty for them.")
        )
    if unmasked:
        notes.append(f"No {MASK_SUFFIX}.png: {listed(unmasked)}; the whole picture counts.")
    if small:
        notes.append(
            f"Small: {listed(small)}; less than half of the {request.resolution}x{request.resolution} px asked "
            "for, and nothing is enlarged."
        )
    notes += remarks([item.name for item in distinct], [item.pixels for item in distinct])
    items = items * request.repeats
    return ImageSet(tuple(items), request.trigger.strip(), fingerprint(items), tuple(notes))


@functools.cache
def _formats() -> tuple[str, ...]:
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)  # an older Pillow knows fewer


def read_picture(path: Path) -> tuple[torch.Tensor, torch.Tensor | None, str]:
    """([H, W, 3] uint8, alpha [H, W] in 0..1 or None, a note on what was done to it).

    EXIF rotation applied, transparency laid on white, CMYK and 16 bits brought to RGB, the first frame of an
    animation. Raises `InputError` for what is no picture, is cut off or is too large to decode.
    """
    try:
        with Image.open(path, formats=_formats()) as opened:
            if opened.width * opened.height > MAX_PIXELS:
                raise InputError(f"has {opened.width}x{opened.height} px, which is more than {MAX_PIXELS:,}")
            # A phone's MPO holds other views of the same moment behind the picture.
            frames = 1 if opened.format == "MPO" else getattr(opened, "n_frames", 1)
            picture = ImageOps.exif_transpose(opened)
            picture.load()
        return *_as_rgb(picture), f"animated, the first of {frames} frames is used" if frames > 1 else ""
    except InputError:
        raise
    except Exception as error:  # Pillow's readers raise anything from SyntaxError to struct.error on a malformed file
        raise InputError(f"is no picture that can be read ({type(error).__name__}: {error})") from error


def _as_rgb(picture: Image.Image) -> tuple[torch.Tensor, torch.Tensor | None]:
    if picture.mode.startswith("I") or picture.mode == "F":
        picture = eight_bits(picture)
    alpha = None
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        alpha = torch.from_numpy(np.asarray(picture.getchannel("A"), np.float32) / 255)
        ground = Image.new("RGBA", picture.size, "white")
        picture = Image.alpha_composite(ground, picture)
    return torch.from_numpy(np.array(picture.convert("RGB"))), alpha


def eight_bits(picture: Image.Image) -> Image.Image:
    """A 16-bit or float greyscale picture as 8 bits; Pillow's own conversion clips instead of scaling."""
    values = np.asarray(picture, np.float64)
    if not np.isfinite(values).all():
        raise InputError("holds numbers that are not finite")
    top = 65535.0 if picture.mode.startswith("I") else max(float(values.max()), 1e-9)
    return Image.fromarray((values / top * 255).clip(0, 255).round().astype(np.uint8))


def read_mask(path: Path, size: tuple[int, int]) -> torch.Tensor:
    """[H, W] in 0..1 from a greyscale picture of the same size as its picture."""
    pixels, _, _ = read_picture(path)
    if tuple(pixels.shape[:2]) != tuple(size):
        raise InputError(
            f"is {pixels.shape[1]}x{pixels.shape[0]} px and its picture {size[1]}x{size[0]}; make them equal"
        )
    return pixels.float().mean(-1) / 255


def target_size(height: int, width: int, resolution: int, bucket: bool) -> tuple[int, int]:
    """(height, width) that a picture is trained at: never larger than it is, area at most resolution squared.

    With `bucket` the aspect ratio is kept to the nearest step, without it the middle square is taken. Sides are
    multiples of 64 px, of 8 px for small pictures.
    """
    if bucket:
        scale = min(1.0, resolution / math.sqrt(height * width))
        sides = (height * scale, width * scale)
    else:
        sides = (min(resolution, height, width),) * 2

    def floor_to_step(side: float) -> int:
        step = 64 if side >= 256 else 8
        return int(side + 1e-6) // step * step

    return floor_to_step(sides[0]), floor_to_step(sides[1])


def fit(pixels: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Scale down to cover height x width and crop the middle. [H, W, 3] uint8 or [H, W] float, as it came."""
    if tuple(pixels.shape[:2]) == (height, width):
        return pixels
    mask = pixels.ndim == 2
    picture = (
        Image.fromarray(pixels.numpy())
        if not mask
        else Image.fromarray((pixels.numpy() * 255).round().astype(np.uint8))
    )
    picture = ImageOps.fit(picture, (width, height), Image.LANCZOS)
    return torch.from_numpy(np.array(picture).astype(np.float32) / 255 if mask else np.array(picture))


def cut_away(original: tuple[int, int], height: int, width: int) -> tuple[int, int]:
    """(top, left) px of the scaled picture that `fit` crops."""
    scale = max(height / original[0], width / original[1])
    return round((original[0] * scale - height) / 2), round((original[1] * scale - width) / 2)


def mirrored(item: TrainingImage) -> TrainingImage:
    """The picture left to right."""
    mask = None if item.mask is None else item.mask.flip(1)
    return replace(item, name=item.name + MIRRORED, pixels=item.pixels.flip(1), mask=mask)


def read_caption(path: Path) -> str:
    """The text of a caption file in one line, in whatever encoding editors write: UTF-8, UTF-16 with its mark,
    Latin-1."""
    data = path.read_bytes()
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        text = data.decode("utf-16", "replace")
    else:
        try:
            text = data.decode("utf-8-sig")
        except UnicodeDecodeError:
            text = data.decode("latin-1")
    return " ".join(re.sub(r"[\x00-\x1f\x7f-\x9f]", " ", text).split())


def caption_of(path: Path, request: FolderRequest) -> tuple[str, bool]:
    """(the caption, whether its file is missing or empty). The trigger word is put before a caption that lacks it."""
    trigger = request.trigger.strip()
    if request.captions == "template":
        name = path.stem.replace("_", " ").replace("-", " ")
        # Only these two names: a template is a user's text, not a format string.
        return request.template.replace("{trigger}", trigger).replace("{name}", name).strip(), False
    missing = False
    if request.captions == "file names":
        text = path.stem.replace("_", " ").replace("-", " ").strip()
    else:
        text_path = path.with_suffix(".txt")
        text = read_caption(text_path) if text_path.is_file() else ""
        missing = not text
    if trigger and trigger not in text:
        text = f"{trigger}, {text}" if text else trigger
    return text, missing


def fingerprint(items: Iterable[TrainingImage]) -> str:
    """A hash of all that a training sees of the pictures."""
    digest = hashlib.sha256()
    for item in items:
        digest.update(f"{tuple(item.pixels.shape)}\0{item.caption}\0{item.original}{item.crop}".encode())
        digest.update(item.pixels.contiguous().numpy().tobytes())
        if item.mask is not None:
            digest.update(item.mask.contiguous().numpy().tobytes())
    return digest.hexdigest()
