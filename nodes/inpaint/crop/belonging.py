"""Whether an original, generated pictures and a mask belong to a crop, and which of them belongs to which piece."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ....training.errors import InputError
from ..mask import clean, stacked
from ..restore import drops_frames
from .record import Crop, samples_of
from .resample import resample_mask

ANOTHER = 0.1  # a median difference of the original from the picture that was cropped: it is another picture
CHANGED = 1 / 255  # a difference of a position that is reported


def check_original(original: torch.Tensor, crop: Crop) -> list[str]:
    """Notes on an original [B, H, W, C]. Raises `InputError` where it is not of the pictures that were cropped.

    It may have changed since, as after the restore of another crop: only where most positions differ much it is
    another one.
    """
    height, width = crop.size
    if tuple(original.shape[1:3]) != crop.size or len(original) != crop.pictures:
        raise InputError(
            f"original is {len(original)} of {original.shape[2]}x{original.shape[1]} px and the crop is of "
            f"{crop.pictures} of {width}x{height} px; wire the picture that Crop to Mask got into original"
        )
    now = samples_of(original)
    shared = min(now.shape[-1], crop.samples.shape[-1])
    difference = (now[..., :shared] - crop.samples[..., :shared]).abs().amax(-1)
    if float(difference.flatten(1).median(1).values.max()) > ANOTHER:
        raise InputError(
            "the crop is of another picture of the same size; wire the picture that Crop to Mask got into original"
        )
    share = float((difference > CHANGED).float().mean())
    if share == 0.0:
        return []
    return [f"original is not quite the picture that was cropped: about {share:.0%} of it has changed since."]


def repeats_of(made: int, crop: Crop) -> tuple[int, int, list[str]]:
    """(crops that were generated, how often all of them, notes) for `made` generated pictures.

    Raises `InputError` for a number that does not fit.
    """
    count = len(crop.pieces)
    if made and made % count == 0:
        several = [f"{made} generated pictures for {count} crops: {made // count} results, one after the other."]
        return count, made // count, several if made > count else []
    is_clip = all(a.picture < b.picture for a, b in zip(crop.pieces, crop.pieces[1:], strict=False))
    if made > 1 and is_clip and drops_frames(count, made):
        note = (
            f"{count} crops and {made} generated pictures: taken for a video of which the VAE dropped frames at the "
            f"end ({count - made}), which stay the original's."
        )
        return made, 1, [note]
    raise InputError(
        f"{made} generated pictures for {count} crops; decode all of them, in the order in which Crop to Mask gave them"
    )


@dataclass(frozen=True)
class Masks:
    """The masks of generated crops. whole: whether they are of the whole pictures, else of the crops as scaled."""

    masks: torch.Tensor  # [N, .., ..]
    whole: bool
    crop: Crop
    own: bool = False  # the very masks that Crop to Mask gave out

    def within(self, made: int) -> torch.Tensor:
        """[h, w]: where generated picture `made` may be seen, in the part of its rectangle within the picture."""
        index = made % len(self.crop.pieces)
        piece = self.crop.pieces[index]
        seen = piece.rect.within(*self.crop.size)
        if self.own:
            return piece.mask
        if self.whole:
            # One picture's several masks have a crop each; those of several pictures are one each.
            of = 0 if len(self.masks) == 1 else index if self.crop.pictures == 1 else piece.picture
            mask = self.masks[of][seen.top : seen.bottom, seen.left : seen.right]
            return mask if piece.others is None else mask * ~piece.others
        mask = self.masks[made % len(self.masks)]
        mask = resample_mask(mask, piece.rect.height, piece.rect.width)
        top, left = seen.top - piece.rect.top, seen.left - piece.rect.left
        return mask[top : top + seen.height, left : left + seen.width]


def masks_of(mask: torch.Tensor, crop: Crop, made: int) -> tuple[Masks, list[str]]:
    """(the masks of `made` generated pictures, notes). Raises `InputError` for another size or number."""
    given = stacked(mask)
    mask, notes = clean(given)
    size, count = tuple(mask.shape[1:]), len(crop.pieces)
    whole = size == crop.size and (crop.given is not None or size != crop.scaled)
    if whole and size == crop.scaled:  # both have this size: the content tells
        whole = crop.given is not None and torch.equal(mask, crop.given)
    if not whole and size != crop.scaled:
        raise InputError(
            f"mask is {size[1]}x{size[0]} px; with a crop give latent_mask of Latent Mask Blend or mask of Crop to "
            f"Mask ({crop.scaled[1]}x{crop.scaled[0]} px), or the mask of the whole picture "
            f"({crop.size[1]}x{crop.size[0]} px)"
        )
    if not whole:
        if len(mask) not in (1, count, made):
            raise InputError(f"{len(mask)} masks for {made} generated crops; give one, or {made}")
        own = torch.equal(given.to(crop.masks), crop.masks)
        return Masks(mask, False, crop, own), notes
    if crop.pictures == 1 and len(mask) not in (1, count):
        mask = mask.amax(0, keepdim=True)
    if crop.pictures > 1 and len(mask) not in (1, crop.pictures):
        raise InputError(f"{len(mask)} masks for {crop.pictures} pictures; give one, or {crop.pictures}")
    notes.append("The mask is of the whole picture. Cells of the latent that it cuts may show at its edge.")
    return Masks(mask, True, crop), notes
