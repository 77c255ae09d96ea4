"""A mask at the resolution of each layer of a model, for the present call of the model."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ....training.errors import InputError
from .layout import Layout, Site, patch_size

FRAMES_OF_LATENT = 4  # frames of a video that one of its latents holds, after the first


class Region:
    """mask: [N, H, W], 0 to 1: one for all pictures, one for each, or one for each frame of a video.

    latent: frames, rows and columns of the latent of the present call. before: tokens of a reference picture that stand
    before the picture's own. cells: rows and columns of the feature map that a U-Net's transformer works on at present.
    """

    def __init__(self, mask: Tensor, layout: Layout, diffusion_model: Any) -> None:
        self.mask = mask.detach().float().cpu()
        self.layout = layout
        self.patch = (1, 1, 1) if layout.feature_maps else patch_size(diffusion_model)
        self.multiple: int = getattr(diffusion_model, "pad_tokens_multiple", None) or 1
        self.latent, self.text, self.before = (1, 1, 1), 0, 0
        self.cells: tuple[int, int] | None = None
        self._made: dict[tuple, Tensor] = {}

    def begin(self, x: Tensor, context: Any, prompts: int = 1, reference: Any = None) -> None:
        """A call of the model.

        x: latents [B, C, (frames,) H, W]. context: the prompts' tokens [B, tokens, C]. prompts: how many prompts the
        pictures of the batch are joined with in this call. reference: the latents [B, C, h, w] of a picture whose
        tokens the model puts before its own (Wan's `ref_conv`). Raises `InputError` for another number of masks.
        """
        frames, rows, columns = (1, *x.shape[2:])[-3:]
        self.latent = (frames, rows, columns)
        self.text = context.shape[1] if isinstance(context, Tensor) and context.ndim > 2 else 0
        self.before = 0
        if isinstance(reference, Tensor):
            self.before = math.prod(
                size // patch for size, patch in zip(reference.shape[-2:], self.patch[1:], strict=True)
            )
        if frames == 1:
            self._check_batch(x.shape[0], prompts)

    def where(self, layer: str, site: Site, hidden: Tensor) -> Tensor:
        """The mask in a shape that multiplies `hidden`.

        hidden: [B, rank, (frames,) h, w] of a convolution, or [B, tokens, rank].
        """
        if hidden.ndim > 3:
            sizes = (1, *hidden.shape[2:])[-3:]
            mask = self._at(sizes, hidden)
            return (mask if hidden.ndim == 5 else mask[:, 0]).unsqueeze(1)
        if hidden.ndim != 3:
            raise self._misfit(layer, hidden)
        sizes = self._grid(layer, hidden)
        count, tokens = math.prod(sizes), hidden.shape[1]
        first = self.before
        if self.layout.from_end:  # after the prompt, reference pictures or both
            padded = -(-count // self.multiple) * self.multiple
            first = max(0, tokens - padded)
        elif site is Site.JOINT:
            first = self.text
        if not 0 <= first <= tokens - count or (self.layout.feature_maps and tokens != count):
            raise self._misfit(layer, hidden)
        key = ("tokens", sizes, first, tokens, hidden.shape[0], hidden.device, hidden.dtype)
        if key not in self._made:
            flat = self._at(sizes, hidden).flatten(1)  # [B, cells]
            self._keep(key, F.pad(flat, (first, tokens - count - first)).unsqueeze(-1))
        return self._made[key]

    def _grid(self, layer: str, hidden: Tensor) -> tuple[int, int, int]:
        """Frames, rows and columns of the cells that the tokens are."""
        if not self.layout.feature_maps:
            return tuple(-(-size // patch) for size, patch in zip(self.latent, self.patch, strict=True))  # type: ignore
        if self.cells is None:
            raise self._misfit(layer, hidden)
        return (1, *self.cells)

    def _at(self, sizes: tuple[int, ...], like: Tensor) -> Tensor:
        """The mask [B, frames, rows, columns] by the mean of what each cell covers, in the dtype of `like`."""
        frames, *cells = sizes
        key = (sizes, like.shape[0], like.device, like.dtype)
        if key not in self._made:
            mask = self.mask
            smaller = mask.shape[1] >= cells[0] and mask.shape[2] >= cells[1]
            how: dict[str, Any] = {"mode": "area"} if smaller else {"mode": "bilinear", "align_corners": False}
            mask = F.interpolate(mask[None], size=tuple(cells), **how)[0]  # [N, rows, columns]
            made = self._of_frames(mask, frames) if frames > 1 else self._of_batch(mask, like.shape[0])
            self._keep(key, made.expand(like.shape[0], -1, -1, -1).to(like.device, like.dtype))
        return self._made[key]

    def _of_frames(self, mask: Tensor, frames: int) -> Tensor:
        """[1, frames, rows, columns] of one mask for all frames, one for each latent, or one for each frame."""
        if len(mask) == FRAMES_OF_LATENT * (frames - 1) + 1 and len(mask) > 1:
            rest = mask[1:].unflatten(0, (frames - 1, FRAMES_OF_LATENT)).mean(1)
            mask = torch.cat([mask[:1], rest])
        if len(mask) not in (1, frames):
            raise InputError(
                f"mask has {len(mask)} pictures, and the video has {frames} latents; give 1, {frames} or "
                f"{FRAMES_OF_LATENT * (frames - 1) + 1} masks"
            )
        return mask.expand(frames, -1, -1)[None]

    def _check_batch(self, batch: int, prompts: int) -> None:
        """Raise `InputError` where the masks are not those of the pictures, whose latents are there for each prompt."""
        pictures = batch // prompts if batch % prompts == 0 else batch
        if pictures % len(self.mask):
            each = f" for {pictures} pictures" if pictures < batch else ""
            raise InputError(
                f"mask has {len(self.mask)} pictures, and the model is called with {batch} latents{each}; give one "
                "mask for all or one for each picture of the batch"
            )

    def _of_batch(self, mask: Tensor, batch: int) -> Tensor:
        """[B, 1, rows, columns]. ComfyUI joins the pictures with each prompt one after the other."""
        return mask.repeat(batch // len(mask), 1, 1)[:, None]

    def _keep(self, key: tuple, mask: Tensor) -> None:
        if len(self._made) > 256:  # many sizes, as with tiles
            self._made.clear()
        self._made[key] = mask

    def _misfit(self, layer: str, hidden: Tensor) -> InputError:
        return InputError(
            f"{layer} works on {tuple(hidden.shape[:-1])} here and the latent is {self.latent}, so it is not known "
            "which of it the mask covers; another node merges or cuts tokens: take that node out, or leave mask unwired"
        )


class CellsHook:
    """A forward pre-hook of a U-Net's transformers: notes the size of the feature map, x [B, C, h, w]."""

    def __init__(self, region: Region) -> None:
        self.region = region

    def __call__(self, _module: nn.Module, args: tuple, kwargs: dict) -> None:
        x = args[0] if args else kwargs["x"]
        self.region.cells = tuple(x.shape[2:])
