"""Models that take a noise mask for the mask of frames that they are given, and need none of it for a blend.

Kandinsky 5 and HunyuanVideo 1.5 read one mask channel beside the latent, which says which frames of a film are given.
ComfyUI fills it with the noise mask, which has a channel for each of the latent's, so the model's first layer fails.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


def misreads_noise_mask(model: Any, latent: torch.Tensor, mask: torch.Tensor) -> bool:
    """Whether a `BaseModel` makes more input channels with a noise mask [B, C, ...] than without one."""
    given = {"noise": latent, "device": latent.device, "latent_image": latent}
    try:
        without, with_mask = model.concat_cond(**given), model.concat_cond(**given, denoise_mask=mask)
    except (AttributeError, KeyError, RuntimeError):  # it needs more than a latent
        return False
    if not isinstance(without, torch.Tensor) or not isinstance(with_mask, torch.Tensor):
        return False
    return with_mask.shape[1] != without.shape[1]


@contextmanager
def without_noise_mask(guider: Any, latent: torch.Tensor | None) -> Iterator[None]:
    """Within the block each conditioning of the guider says that nothing of `latent` [B, C, ...] is given.

    A mask that another node has set is kept. latent: None changes nothing.
    """
    conds = getattr(guider, "conds", None)
    if latent is None or not isinstance(conds, dict):
        yield
        return
    nothing = {"concat_mask": torch.ones_like(latent[:1, :1])}  # 1 is what the model makes
    guider.conds = {name: [nothing | each for each in own] for name, own in conds.items()}
    try:
        yield
    finally:
        guider.conds = conds
