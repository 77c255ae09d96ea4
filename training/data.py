"""Latents and the batches drawn from them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .config import TrainConfig
from .randomness import batch_indices, generator, noise, stratified_uniform


@dataclass(frozen=True)
class Batch:
    """What one model call trains on. latent, noise: [B, C, ...]. u: [B] in 0..1, the place in the noise schedule.

    mask: [B, 1, ...] or None. indices: which image each sample is; -1 where its caption is dropped.
    """

    indices: list[int]
    captions: list[int]
    latent: Tensor
    noise: Tensor
    u: Tensor
    mask: Tensor | None


@dataclass(frozen=True)
class LatentSet:
    """The training set as the model sees it: one latent [1, C, ...] an image, and its loss mask [1, 1, ...] or None."""

    latents: list[Tensor]
    masks: list[Tensor | None]

    def groups(self, indices: Sequence[int]) -> list[list[int]]:
        """`indices` by latents of equal shape, which may share a batch."""
        by_shape: dict[tuple[int, ...], list[int]] = defaultdict(list)
        for index in indices:
            by_shape[tuple(self.latents[index].shape)].append(index)
        return list(by_shape.values())

    def batch(
        self, config: TrainConfig, micro: int, device: torch.device, among: Sequence[int] | None = None
    ) -> Batch:
        """The micro-batch number `micro` of the run, drawn from `among`: a pure function of it and the seed."""
        indices = batch_indices(self.groups(range(len(self.latents)) if among is None else among), config.batch_size, config.seed, micro)
        shape = self.latents[indices[0]].shape[1:]
        drawn = [noise(config.seed, micro, place, shape) for place in range(len(indices))]
        dropped = torch.rand(len(indices), generator=generator(config.seed, "caption", micro)) < config.caption_dropout
        masks = [self.masks[i] for i in indices]
        mask = None
        if any(m is not None for m in masks):
            whole = torch.ones(1, 1, *shape[1:])
            mask = torch.cat([whole if m is None else m for m in masks]).to(device)
        return Batch(
            indices,
            [-1 if drop else i for i, drop in zip(indices, dropped.tolist(), strict=True)],
            torch.cat([self.latents[i] for i in indices]).to(device),
            torch.stack(drawn).to(device),
            stratified_uniform(config.seed, micro, len(indices)).to(device),
            mask,
        )
