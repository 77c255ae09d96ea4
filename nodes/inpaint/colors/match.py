"""Three ways to bring the colours of a picture to those of a reference, measured where they can be compared.

* mean and deviation: each channel is scaled and moved so that its mean and its standard deviation are the reference's
  (Reinhard et al. 2001, "Color transfer between images", in RGB).
* smooth field: the low frequencies of the difference are added, place by place. Both pictures must show the same thing.
* histogram: each channel goes through the rising curve that gives it the reference's distribution.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from ....training.errors import InputError
from ..mask import clean, resize
from ..smooth_field import FINEST, finite_pixels, smooth_field

MEAN, FIELD, HISTOGRAM = METHODS = ("mean and deviation", "smooth field", "histogram")
AMOUNT_MIN, AMOUNT_MAX = 0.0, 1.0
FIELD_SHARE = 16  # the smooth field's blocks are the shorter side over this
LEAST_COMPARED = 64  # px
CROPPED = 32  # px that a VAE may have cropped, of which one picture is still a copy of the other in size
MOST_SCALE = 4.0  # of a channel's deviation; a nearly flat picture has none to scale
KNOTS = 256  # of a histogram's curve
MOST_SORTED = 2**20  # px of which quantiles are computed; of more, every n-th
ROWS = 64  # rows of a picture to which a curve is applied at once: they stay in the processor's cache


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
    known, fit = where & finite_pixels(given), finite_pixels(wanted)
    if same:
        known = fit = known & fit
    measured = _Measured(given, known), _Measured(wanted, fit)
    if min(one.count for one in measured) < LEAST_COMPARED:
        return None
    if settings.method == FIELD:
        block = max(FINEST, min(given.shape[:2]) // FIELD_SHARE)
        matched = given + smooth_field((wanted - given)[None], known[None], block)[0]
    else:
        curve = CURVES[settings.method]
        matched = torch.stack([curve(given[..., i], *measured, i) for i in range(given.shape[-1])], -1)
    out = torch.lerp(given, matched.clamp(0.0, 1.0), settings.amount)
    means = measured[1].means()
    before, after = (float((one.means() - means).abs().mean()) for one in (measured[0], _Measured(out, known)))
    return out, (before, after)


class _Measured:
    """Statistics of colours [H, W, C] where `known` [H, W] bool. count: how many pixels these are.

    Where all are known, nothing is selected or copied, which takes longer than the arithmetic on a large picture. Sums
    of rows are in fp32 and those of their sums in fp64.
    """

    def __init__(self, colours: torch.Tensor, known: torch.Tensor) -> None:
        self.count = int(known.sum())
        self._known, self._all = known, self.count == known.numel()
        self._colours = colours if self._all else torch.where(known[..., None], colours, 0.0)
        self._means: torch.Tensor | None = None

    def means(self) -> torch.Tensor:
        """[C] fp64."""
        if self._means is None:
            self._means = self._colours.sum(1).double().sum(0) / self.count
        return self._means

    def deviation(self, channel: int) -> float:
        """The standard deviation of a channel, divided by the number of pixels."""
        apart = self._colours[..., channel] - float(self.means()[channel])
        if not self._all:
            apart = torch.where(self._known, apart, 0.0)
        return math.sqrt(float(apart.square_().sum(1).double().sum()) / self.count)

    def quantiles(self, channel: int, shares: torch.Tensor) -> torch.Tensor:
        """Of a channel at shares [n] fp64 -> [n] fp64; of every n-th pixel where more than `MOST_SORTED` count."""
        every = -(-self.count // MOST_SORTED)
        values = self._colours[..., channel].flatten()
        if self._all:
            values = values[::every]
        else:
            thin = self._known.flatten()[::every]
            is_fair = 2 * int(thin.sum()) * every > self.count  # not so for a mask of columns that are left out
            values = values[::every][thin] if is_fair else values[self._known.flatten()][::every]
        return torch.quantile(values.double(), shares)


def moments(channel: torch.Tensor, given: _Measured, wanted: _Measured, i: int) -> torch.Tensor:
    """The channel [H, W], scaled and moved as takes the mean and deviation of channel `i` of `given` to `wanted`'s."""
    deviation = given.deviation(i)
    scale = min(wanted.deviation(i) / deviation, MOST_SCALE) if deviation > 1e-6 else 1.0
    return (channel - float(given.means()[i])) * scale + float(wanted.means()[i])


def histogram(channel: torch.Tensor, given: _Measured, wanted: _Measured, i: int) -> torch.Tensor:
    """The channel [H, W] through the rising curve that takes the quantiles of channel `i` of `given` to `wanted`'s."""
    shares = torch.linspace(0.0, 1.0, KNOTS + 1, dtype=torch.float64)
    return through_quantiles(channel, given.quantiles(i, shares), wanted.quantiles(i, shares))


def through_quantiles(channel: torch.Tensor, at: torch.Tensor, to: torch.Tensor) -> torch.Tensor:
    """The channel [H, W] through the curve that takes the rising quantiles `at` [n] fp64 to `to` [n] fp64.

    Beyond the range of `at` the curve goes on with slope 1. Equal numbers of `at` become the mean of theirs.
    """
    at, position = torch.unique_consecutive(at, return_inverse=True)
    count = torch.zeros_like(at).index_add_(0, position, torch.ones_like(to))
    to = torch.zeros_like(at).index_add_(0, position, to) / count
    if len(at) == 1:
        return channel + float(to[0] - at[0])
    slopes = (to[1:] - to[:-1]) / (at[1:] - at[:-1])
    out = torch.empty(channel.shape, dtype=channel.dtype)
    for row in range(0, len(channel), ROWS):
        values = channel[row : row + ROWS].double()
        left = torch.searchsorted(at[1:-1], values, right=True)
        inner = values.clamp(at[0], at[-1])
        out[row : row + ROWS] = to[left] + (inner - at[left]) * slopes[left] + (values - inner)
    return out


CURVES: dict[str, Callable[[torch.Tensor, _Measured, _Measured, int], torch.Tensor]] = {
    MEAN: moments,
    HISTOGRAM: histogram,
}
