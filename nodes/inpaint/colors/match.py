"""Three ways to bring the colours of a picture to those of a reference, measured where they can be compared.

* mean and deviation: each channel is scaled and moved so that its mean and its standard deviation are the reference's
  (Reinhard et al. 2001, "Color transfer between images", in RGB).
* smooth field: the low frequencies of the difference are added, place by place. Both pictures must show the same thing.
* histogram: each channel goes through the rising curve that gives it the reference's distribution.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from ....training.errors import InputError
from ..mask import clean, resize
from ..smooth_field import FINEST, smooth_field

MEAN, FIELD, HISTOGRAM = METHODS = ("mean and deviation", "smooth field", "histogram")
AMOUNT_MIN, AMOUNT_MAX = 0.0, 1.0
FIELD_SHARE = 16  # the smooth field's blocks are the shorter side over this
LEAST_COMPARED = 64  # px
CROPPED = 32  # px that a VAE may have cropped, of which one picture is still a copy of the other in size
MOST_SCALE = 4.0  # of a channel's deviation; a nearly flat picture has none to scale
KNOTS = 256  # of a histogram's curve
MOST_SORTED = 2**20  # px of which quantiles are computed; of more, every n-th


@dataclass(frozen=True)
class MatchSettings:
    """method: one of `METHODS`. amount: 0..1. Raises `InputError` for a value out of range."""

    method: str = MEAN
    amount: float = 1.0

    def __post_init__(self):
        if self.method not in METHODS:
            raise InputError(f"method is {self.method!r}; give one of {', '.join(METHODS)}")
        if not AMOUNT_MIN <= self.amount <= AMOUNT_MAX:
            raise InputError(f"amount is {self.amount}; give 0 (leave the picture) to 1 (match it fully)")


def match_colors(
    image: torch.Tensor, reference: torch.Tensor, mask: torch.Tensor | None, settings: MatchSettings
) -> tuple[torch.Tensor, list[str]]:
    """(the picture [B, H, W, C] with the reference's colours, notes). An alpha channel stays.

    image: [B, H, W, C], C of 1, 3 or 4. reference: [1 or B, h, w, c]. mask: [1 or B, .., ..] in 0..1 or None; pixels
    from .5 on are compared. A reference of another size is resized, where places are compared with places.

    Raises `InputError` for other shapes, for numbers of pictures that do not fit, and where nothing can be compared.
    """
    image, reference = (_picture(each, name) for each, name in ((image, "image"), (reference, "reference")))
    reference, notes = _fitted(reference, image, mask is not None or settings.method == FIELD)
    compared = _compared(mask, image, notes)
    out, errors = image.clone(), []
    for i, picture in enumerate(image):
        colours = slice(0, min(3, picture.shape[-1]))
        given, wanted = picture[..., colours], reference[min(i, len(reference) - 1)][..., :3]
        where = compared[min(i, len(compared) - 1)]
        one = _match_one(given, _channels(wanted, given.shape[-1]), where, settings)
        if one is not None:
            out[i, ..., colours], error = one
            errors.append(error)
    if not errors:
        raise InputError(
            f"too few pixels can be compared ({LEAST_COMPARED} are needed): the mask is below .5, or the pictures are "
            "too small or hold no numbers; make the mask white where both show the same thing, or leave it out"
        )
    if skipped := len(image) - len(errors):
        notes.append(f"Not matched: {skipped} of {len(image)} pictures, in which too few pixels can be compared.")
    before, after = (255 * sum(values) / len(values) for values in zip(*errors, strict=True))
    notes.append(
        f"Matched by {settings.method}, by {settings.amount:g}: where they are compared, the colours' means differed "
        f"by {before:.2f} of 255 and differ by {after:.2f} now."
    )
    return out, notes


def _picture(image: torch.Tensor, name: str) -> torch.Tensor:
    if image.ndim != 4 or image.shape[-1] not in (1, 3, 4) or 0 in image.shape:
        raise InputError(f"{name} has the shape {list(image.shape)}; give an IMAGE [pictures, height, width, channels]")
    return image.to("cpu", torch.float32)


def _fitted(reference: torch.Tensor, image: torch.Tensor, places: bool) -> tuple[torch.Tensor, list[str]]:
    """(the reference, at the picture's size if `places` are compared, notes)."""
    count, height, width = image.shape[:3]
    if len(reference) not in (1, count):
        raise InputError(f"{len(reference)} references for {count} pictures; give one, or one each")
    high, wide = reference.shape[1:3]
    if not places or (high, wide) == (height, width):
        return reference, []
    sizes = f"the reference is {wide}x{high} px and the picture {width}x{height} px"
    if abs(high * width - wide * height) > max(high, wide) * CROPPED:
        raise InputError(
            f"{sizes}, of other proportions, and a mask or the smooth field compares place by place; crop one like "
            "the other, or use another method without a mask"
        )
    scaled = F.interpolate(reference.movedim(-1, 1), (height, width), mode="bicubic", antialias=True).movedim(1, -1)
    return scaled.clamp(0.0, 1.0), [f"{sizes[0].upper()}{sizes[1:]}: the reference was resized."]


def _compared(mask: torch.Tensor | None, image: torch.Tensor, notes: list[str]) -> torch.Tensor:
    """[1 or B, H, W] bool: where to compare."""
    count, height, width = image.shape[:3]
    if mask is None:
        return torch.ones(1, height, width, dtype=torch.bool)
    mask, _ = clean(mask)
    if len(mask) not in (1, count):
        raise InputError(f"{len(mask)} masks for {count} pictures; give one, or one each")
    high, wide = mask.shape[1:]
    if (high, wide) != (height, width):
        if high * width != wide * height:
            raise InputError(
                f"the mask is {wide}x{high} px and the picture {width}x{height} px, of other proportions; give the "
                "mask at the picture's size"
            )
        notes.append(f"The mask is {wide}x{high} px and the picture {width}x{height} px: it was stretched to fit.")
        mask = resize(mask, height, width, "area")
    return mask >= 0.5


def _channels(reference: torch.Tensor, channels: int) -> torch.Tensor:
    """The reference [H, W, c] with 1 or 3 channels."""
    if reference.shape[-1] == channels:
        return reference
    return reference.mean(-1, keepdim=True) if channels == 1 else reference.expand(-1, -1, channels)


def _match_one(
    given: torch.Tensor, wanted: torch.Tensor, where: torch.Tensor, settings: MatchSettings
) -> tuple[torch.Tensor, tuple[float, float]] | None:
    """(colours [H, W, C], the mean difference of the channels' means before and after); None if nothing compares."""
    same = given.shape == wanted.shape
    known = where & torch.isfinite(given).all(-1)
    fit = torch.isfinite(wanted).all(-1)
    if same:
        known = fit = known & fit
    if int(known.sum()) < LEAST_COMPARED or int(fit.sum()) < LEAST_COMPARED:
        return None
    if settings.method == FIELD:
        block = max(FINEST, min(given.shape[:2]) // FIELD_SHARE)
        matched = given + smooth_field((wanted - given)[None], known[None], block)[0]
    else:
        curve = CURVES[settings.method]
        pairs = zip(given.unbind(-1), wanted.unbind(-1), strict=True)
        matched = torch.stack([curve(one, one[known], other[fit]) for one, other in pairs], -1)
    out = torch.lerp(given, matched.clamp(0.0, 1.0), settings.amount)
    means = wanted[fit].double().mean(0)
    before, after = (float((colours[known].double().mean(0) - means).abs().mean()) for colours in (given, out))
    return out, (before, after)


def moments(channel: torch.Tensor, given: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """The channel [H, W], scaled and moved as takes the mean and deviation of `given` [n] to those of `wanted` [m]."""
    given, wanted = given.double(), wanted.double()
    deviation = float(given.std(correction=0))
    scale = min(float(wanted.std(correction=0)) / deviation, MOST_SCALE) if deviation > 1e-6 else 1.0
    return (channel - float(given.mean())) * scale + float(wanted.mean())


def histogram(channel: torch.Tensor, given: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """The channel [H, W] through the rising curve that takes the quantiles of `given` [n] to those of `wanted` [m].

    Beyond the range of `given` the curve goes on with slope 1. Equal quantiles of `given` become the mean of theirs.
    """
    shares = torch.linspace(0.0, 1.0, KNOTS + 1, dtype=torch.float64)
    at, to = (torch.quantile(_thinned(values).double(), shares) for values in (given, wanted))
    at, position = torch.unique_consecutive(at, return_inverse=True)
    count = torch.zeros_like(at).index_add_(0, position, torch.ones_like(to))
    to = torch.zeros_like(at).index_add_(0, position, to) / count
    if len(at) == 1:
        return channel + float(to[0] - at[0])
    values = channel.double()
    right = torch.searchsorted(at, values.contiguous()).clamp(1, len(at) - 1)
    left = right - 1
    share = ((values - at[left]) / (at[right] - at[left])).clamp(0.0, 1.0)
    inner = to[left] + share * (to[right] - to[left])
    beyond = (values - at[-1]).clamp(min=0.0) + (values - at[0]).clamp(max=0.0)
    return (inner + beyond).to(channel.dtype)


def _thinned(values: torch.Tensor) -> torch.Tensor:
    return values[:: -(-len(values) // MOST_SORTED)]


CURVES: dict[str, Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]] = {
    MEAN: moments,
    HISTOGRAM: histogram,
}
