"""Clips as a video model's VAE takes them: their numbers of frames, the frames of each latent frame, tiles of time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ....training.errors import InputError
from ....training.images import TrainingImage
from ..latent_frames import CHUNKED, frame_groups
from ..training_model.offload import available_memory

# The defaults of ComfyUI's node VAEEncodeTiled: px, px, frames, frames.
TILE = {"tile_x": 512, "tile_y": 512, "overlap": 64, "tile_t": 64, "overlap_t": 8}
MOST_NAMED = 5  # clips in a note


def latent_frames(vae, frames: int) -> int:
    """The latent frames that the VAE makes of a clip. Raises `InputError` for a VAE of single pictures."""
    return int(_ratio(vae, "downscale_ratio")(frames))


def usable_frames(vae, frames: int) -> int:
    """The largest number up to `frames` that fills whole latent frames: of 8 frames Wan's VAE takes 5, 4 k + 1.

    Raises `InputError` for a VAE of single pictures.
    """
    return max(1, min(frames, int(_ratio(vae, "upscale_ratio")(latent_frames(vae, frames)))))


def _ratio(vae, name: str) -> Any:
    """The function between the frames of a clip and of its latent that ComfyUI's VAE has."""
    ratio = getattr(vae, name, None)
    first = ratio[0] if isinstance(ratio, (tuple, list)) else None
    if getattr(vae, "latent_dim", 2) != 3 or getattr(vae, "not_video", False) or not callable(first):
        raise InputError(
            "the set has clips, and the VAE on the wire encodes single pictures; wire in the VAE that belongs to the "
            "video model"
        )
    return first


def groups_of(vae, base, latent: Tensor) -> tuple[int, ...]:
    """The picture frames in each latent frame of `latent` [1, C, T, h, w]."""
    temporal = vae.temporal_compression_decode() or 1
    return frame_groups(latent.shape[2], temporal, CHUNKED.get(type(base.latent_format).__name__, 0))


def cut_clips(vae, items: Sequence[TrainingImage]) -> tuple[list[TrainingImage], list[str]]:
    """(the items with each clip cut to frames that the VAE takes, notes that say so).

    A clip of one frame becomes a picture. A note names clips whose mask was white in the cut-off frames alone.
    """
    out, cut, black = list[TrainingImage](), list[str](), list[str]()
    for item in items:
        frames = usable_frames(vae, item.frames) if item.frames > 1 else 1
        if frames < item.frames:
            cut.append(f"{item.path} from {item.frames} to {frames}")
        out.append(_first_frames(item, frames) if item.is_clip else item)
        mask = out[-1].mask
        if frames < item.frames and mask is not None and not bool(mask.any()):
            black.append(item.path)
    if not cut:
        return out, []
    more = f" and {len(cut) - MOST_NAMED} more" if len(cut) > MOST_NAMED else ""
    step = vae.temporal_compression_decode() or 1
    notes = [
        f"{len(cut)} clip{'s have' if len(cut) > 1 else ' has'} another number of frames than the VAE packs into "
        f"latent frames ({step} k + 1), and the last ones were cut off: {', '.join(cut[:MOST_NAMED])}{more}"
    ]
    if black:
        more = f" and {len(black) - MOST_NAMED} more" if len(black) > MOST_NAMED else ""
        notes.append(
            f"nothing is learned of {', '.join(black[:MOST_NAMED])}{more}: the mask is black in the frames that are "
            f"left; set frame_step of Bespoke Clip Folder to {step}"
        )
    return out, notes


def _first_frames(item: TrainingImage, frames: int) -> TrainingImage:
    """The first frames of a clip; a picture where that is one."""
    if item.frames == frames > 1:
        return item
    part: Any = slice(frames) if frames > 1 else 0
    mask, control = (None if each is None else each[part] for each in (item.mask, item.control))
    return replace(item, pixels=item.pixels[part], mask=mask, control=control, fps=item.fps if frames > 1 else 0.0)


def needs_tiles(vae, shape: Sequence[int]) -> bool:
    """Whether a clip of `shape` [F, H, W, 3] is encoded in tiles of time and picture: it does not fit as a whole.

    By ComfyUI's own estimate of what the VAE needs, beside what is free or can be freed.
    """
    frames, height, width = shape[:3]
    if frames == 1:
        return False
    needed = vae.memory_used_encode((1, 3, frames, height, width), vae.vae_dtype)
    return needed > available_memory(vae.device)


def encode(vae, pixels: Tensor, tiled: bool = False) -> Tensor:
    """The VAE's latent of frames [F, H, W, 3] uint8, as ComfyUI's nodes VAEEncode and VAEEncodeTiled make it."""
    values = pixels.float() / 255
    return vae.encode_tiled(values, **TILE) if tiled else vae.encode(values)


def mask_to_latent(mask: Tensor, latent: Tensor, groups: Sequence[int] = (1,)) -> Tensor:
    """A mask [H, W] or [F, H, W] at the latent's size, [1, 1, h, w] or [1, 1, T, h, w]: the mean over what a latent
    cell covers of the picture and of the frames.

    groups: the frames of each latent frame, see `groups_of`. One mask [H, W] counts for all latent frames.
    """
    height, width = latent.shape[-2:]
    frames = mask.float().reshape(-1, 1, *mask.shape[-2:])
    cells = torch.nn.functional.adaptive_avg_pool2d(frames, (height, width))  # [F, 1, h, w]
    if latent.ndim == 4:
        return cells[:1]
    if len(cells) > 1:
        cells = torch.stack([each.mean(0) for each in cells[: sum(groups)].split(list(groups))])
    return cells.transpose(0, 1)[None].expand(1, 1, latent.shape[2], height, width).clone()
