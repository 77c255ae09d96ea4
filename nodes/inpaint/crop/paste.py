"""Crops put back into their pictures, with the original bit for bit outside their masks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F

from ....training.errors import InputError
from ..distance import distance_within
from ..restore import (
    Audit,
    RestoreSettings,
    audit,
    color_shift,
    hidden_note,
    is_crop,
    is_hidden,
    picture,
    place,
    ramp_inward,
    with_channels,
)
from .belonging import check_original, masks_of, repeats_of
from .cut import crop_of
from .record import Crop, Piece
from .rectangles import Rect
from .resample import area, resample

TILE = 256  # px
PROPORTIONS = 0.01  # by which those of a picture that was scaled on may differ from the crop's


@dataclass(frozen=True)
class Layer:
    """A generated crop at its place in a picture."""

    rect: Rect  # within the picture
    image: torch.Tensor  # [h, w, C]
    mask: torch.Tensor  # [h, w] in 0..1
    feather: int  # px of the picture over which it fades in


@dataclass
class Counts:
    """What is reported of all crops together."""

    changed: int = 0  # px outside the masks that differed, as decoded
    outside: int = 0
    largest: float = 0.0
    broken: int = 0  # px that are not numbers
    unmatched: int = 0  # crops without a pixel to compare colours at
    matched: int = 0
    shift: float = 0.0  # the sum of their mean changes
    overlapping: int = 0  # px in two crops or more
    hidden: int = 0  # crops whose fade leaves less than half of them anywhere


def paste(
    original: torch.Tensor, generated: torch.Tensor, mask: torch.Tensor, crop: Crop, settings: RestoreSettings
) -> tuple[torch.Tensor, Audit, list[str]]:
    """(the pictures with the crops in them [R * B, H, W, C], their audit over all pixels, notes).

    original: the B pictures that were cropped. generated: the K crops, or R times all of them in order, or the frames
    that a video VAE left of them. mask: of the crops as they were scaled, or of the whole pictures. Raises `InputError`
    for what does not belong to `crop`.
    """
    original, generated = picture(original, "original"), picture(generated, "generated")
    notes = check_original(original, crop)
    count, repeats, repeated = repeats_of(len(generated), crop)
    masks, cleaned = masks_of(mask, crop, len(generated))
    notes += [*repeated, *cleaned]
    if tuple(generated.shape[1:3]) != crop.scaled:
        notes.append(_other_size(generated, crop))
    image = original.repeat(repeats, 1, 1, 1)
    touched = torch.zeros(image.shape[:3], dtype=torch.bool)
    counts = Counts()
    for at in range(len(image)):
        result, of = divmod(at, crop.pictures)
        layers = []
        for i, piece in enumerate(crop.pieces[:count]):
            if piece.picture == of:
                made = result * count + i
                layer = _layer(original[of], generated[made], masks.within(made), piece, crop, counts)
                layer = replace(layer, feather=feather_at(settings.feather, piece.rect, crop.scaled))
                layers.append(_matched(original[of], layer, settings.match_color, counts))
        for group in overlapping(layers):
            if len(group) == 1:
                _lay(image[at], touched[at], group[0], counts)
            else:
                _lay_mixed(image[at], touched[at], group, counts)
    notes += [*_notes(counts, settings.match_color), _places(crop, count)]
    return image, audit(original.repeat(repeats, 1, 1, 1) if repeats > 1 else original, image, ~touched), notes


def _other_size(generated: torch.Tensor, crop: Crop) -> str:
    """The note on generated pictures of another size than the crops. Raises `InputError` for other proportions."""
    (h, w), (height, width) = generated.shape[1:3], crop.scaled
    sizes = f"The generated picture is {w}x{h} px and the crop {width}x{height} px"
    if is_crop(crop.scaled, (h, w)):
        return f"{sizes}: it was laid into the middle, as a VAE crops to whole cells."
    if abs(w * height / (h * width) - 1) > PROPORTIONS:
        raise InputError(
            f"generated is {w}x{h} px, which has other proportions than the crop of {width}x{height} px; wire the "
            "decoded crop, or one that was only scaled"
        )
    return f"{sizes}: it was scaled to the crop's place."


def _layer(
    original: torch.Tensor, generated: torch.Tensor, mask: torch.Tensor, piece: Piece, crop: Crop, counts: Counts
) -> Layer:
    """A generated crop [h, w, c] scaled to its place in the original [H, W, C], and counted outside its mask."""
    rect, seen = piece.rect, piece.rect.within(*crop.size)
    here = original[seen.top : seen.bottom, seen.left : seen.right]
    generated = with_channels(generated, original.shape[-1])
    if is_crop(crop.scaled, (generated.shape[0], generated.shape[1])) and tuple(generated.shape[:2]) != crop.scaled:
        base = resample(crop_of(original, rect, "edge"), *crop.scaled)[None]
        generated = place(base, generated[None], base.new_zeros((1, *crop.scaled))).generated[0]
    if not math.isfinite(float(generated.sum())):  # one would spread to its neighbours when it is scaled
        broken = ~torch.isfinite(generated).all(-1)
        counts.broken += int(broken.sum())
        generated = torch.where(broken[..., None], 0.0, generated)
    top, left = seen.top - rect.top, seen.left - rect.left
    fitted = resample(generated, rect.height, rect.width, area)[top : top + seen.height, left : left + seen.width]
    if fitted.shape[-1] < here.shape[-1]:  # an alpha channel that only the original has stays
        fitted = torch.cat((fitted, here[..., fitted.shape[-1] :]), -1)
    fitted = fitted[..., : here.shape[-1]]
    before = audit(here[None], fitted[None], (mask == 0.0)[None])
    counts.changed, counts.outside = counts.changed + before.changed, counts.outside + before.outside
    counts.largest = max(counts.largest, before.largest)
    return Layer(seen, fitted, mask, 0)


def feather_at(pixels: int, rect: Rect, scaled: tuple[int, int]) -> int:
    """px of the picture over which a crop fades in: `pixels` of the crop where it was enlarged, else of the picture.

    What has to be hidden, a decoder's error in the cells at the mask's edge, becomes as narrow as they do.
    """
    scale = math.sqrt(scaled[0] * scaled[1] / (rect.height * rect.width))
    return round(pixels / max(scale, 1.0))


def _matched(original: torch.Tensor, layer: Layer, amount: float, counts: Counts) -> Layer:
    """The layer without `amount` of the colour difference at its mask's border."""
    if amount == 0.0:
        return layer
    rect, inside = layer.rect, layer.mask > 0.0
    here = original[rect.top : rect.bottom, rect.left : rect.right]
    shift = color_shift(here[None], layer.image[None], inside[None])
    if shift is None:
        counts.unmatched += 1
        return layer
    counts.matched += 1
    counts.shift += float(shift[0].abs()[inside].mean())
    matched = (layer.image + amount * shift[0]).clamp(0.0, 1.0)
    return replace(layer, image=torch.where(inside[..., None], matched, layer.image))


def overlapping(layers: Sequence[Layer]) -> list[list[Layer]]:
    """The layers in groups that do not overlap each other, each in order."""
    groups: list[list[Layer]] = []
    for layer in layers:
        touched = [group for group in groups if any(layer.rect.overlaps(other.rect) for other in group)]
        groups = [group for group in groups if group not in touched]
        groups.append([*(one for group in touched for one in group), layer])
    return groups


def _lay(image: torch.Tensor, touched: torch.Tensor, layer: Layer, counts: Counts) -> None:
    """Lay a layer on a picture [H, W, C], and mark its mask in `touched` [H, W].

    In tiles: only those that the mask's edge crosses need the ramp.
    """
    rect, margin, most = layer.rect, layer.feather + 2, 0.0
    top, left, bottom, right = _open_sides(rect, image.shape)
    inside = F.pad(layer.mask > 0.0, (left, right, top, bottom))
    touched[rect.top : rect.bottom, rect.left : rect.right] |= layer.mask > 0.0
    here = image[rect.top : rect.bottom, rect.left : rect.right]
    for y in range(0, rect.height, TILE):
        for x in range(0, rect.width, TILE):
            tile = (slice(y, y + TILE), slice(x, x + TILE))
            # The tile in the padded mask, with a margin.
            y0, x0 = max(y + top - margin, 0), max(x + left - margin, 0)
            around = inside[y0 : y + top + TILE + margin, x0 : x + left + TILE + margin]
            if not bool(around.any()):
                continue
            weight = layer.mask[tile]
            if not bool(around.all()):
                first = (y + top - y0, x + left - x0)
                ramp = ramp_inward(around[None], layer.feather)[0]
                weight = weight * ramp[first[0] : first[0] + weight.shape[0], first[1] : first[1] + weight.shape[1]]
            _blend(here[tile], layer.image[tile], weight)
            most = max(most, float(weight.max()))
    counts.hidden += is_hidden(layer.mask, most)


def _blend(here: torch.Tensor, image: torch.Tensor, weight: torch.Tensor) -> None:
    """Lay `image` on `here` [h, w, C] with a weight [h, w]; 0 and 1 are exact."""
    if bool((weight == 1.0).all()):
        here.copy_(image)
        return
    weight = weight[..., None]
    blended = torch.where(weight == 1.0, image, here + weight * (image - here))
    here.copy_(torch.where(weight == 0.0, here, blended))


def _lay_mixed(image: torch.Tensor, touched: torch.Tensor, group: Sequence[Layer], counts: Counts) -> None:
    """Lay layers that overlap on a picture [H, W, C], and mark their masks in `touched` [H, W].

    The weight at a pixel is the largest of any layer, so no edge shows where another layer goes on. Among layers each
    counts by the distance from its mask's edge, and fades to nothing there.
    """
    top, left = min(one.rect.top for one in group), min(one.rect.left for one in group)
    bottom, right = max(one.rect.bottom for one in group), max(one.rect.right for one in group)
    here = image[top:bottom, left:right]
    marks, colour = touched[top:bottom, left:right], here.clone()
    weight, distance = here.new_zeros(here.shape[:2]), here.new_zeros(here.shape[:2])
    for one in group:
        at = (
            slice(one.rect.top - top, one.rect.bottom - top),
            slice(one.rect.left - left, one.rect.right - left),
        )
        inside = one.mask > 0.0
        counts.overlapping += int((inside & marks[at]).sum())
        up, to_left, down, to_right = _open_sides(one.rect, image.shape)
        padded = F.pad(inside, (to_left, to_right, up, down))
        core = (slice(up, up + one.rect.height), slice(to_left, to_left + one.rect.width))
        faded = one.mask * ramp_inward(padded[None], one.feather)[0][core]
        counts.hidden += is_hidden(one.mask, float(faded.max()))
        weight[at] = torch.maximum(weight[at], faded)
        own = distance_within(padded)[core]
        share = torch.where(inside, own / (own + distance[at]), 0.0)[..., None]
        colour[at] = torch.where(share == 1.0, one.image, colour[at] + share * (one.image - colour[at]))
        distance[at] += own
        marks[at] |= inside
    _blend(here, colour, weight)


def _open_sides(rect: Rect, size: Sequence[int]) -> tuple[int, int, int, int]:
    """(top, left, bottom, right): 1 at a side beyond which the picture goes on, where the mask has an edge, else 0."""
    return int(rect.top > 0), int(rect.left > 0), int(rect.bottom < size[0]), int(rect.right < size[1])


def _notes(counts: Counts, match_color: float) -> list[str]:
    notes = []
    if counts.broken:
        notes.append(
            f"{counts.broken} px of the generated picture are not numbers; they were taken as black. Look to the "
            "sampler or the VAE: often it computes in a type that is too small."
        )
    notes.append(
        f"As decoded and scaled back, {counts.changed} of {counts.outside} px of the crops outside the mask differed, "
        f"by up to {counts.largest:.4f}."
    )
    if counts.overlapping:
        notes.append(f"{counts.overlapping} px lie in several crops and were mixed by the distance from their edges.")
    if counts.hidden:
        notes.append(hidden_note(counts.hidden))
    if match_color > 0.0 and counts.matched:
        notes.append(f"Colours were matched at the border: mean change {counts.shift / counts.matched:.4f}.")
    if match_color > 0.0 and counts.unmatched:
        notes.append(f"Colours of {counts.unmatched} crops were not matched: no pixel outside the mask to compare.")
    return notes


def _places(crop: Crop, count: int) -> str:
    rect = crop.pieces[0].rect
    more = f", and {count - 1} more" if count > 1 else ""
    return (
        f"{crop.scaled[1]}x{crop.scaled[0]} px were put back into {rect.width}x{rect.height} px, {rect.left} px from "
        f"the left and {rect.top} px from the top{more}."
    )
