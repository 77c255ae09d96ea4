"""Latents and the batches drawn from them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .config import TrainConfig
from .objective import ImportanceSampling, sample_timesteps
from .randomness import batch_indices, generator, noise, stratified_uniform


@dataclass(frozen=True)
class Batch:
    """What one model call trains on. latent, noise: [B, C, ...]. u: [B] in 0..1, the place in the noise schedule.

    mask: [B, 1, ...] or None. indices: which image each sample is. captions: the same, -1 where the caption is dropped.
    places: the place of each sample in the global batch, which has `count`: one process of several has some of them.
    seed, number: the seed and the number of the draw that made the batch, for further draws.
    weight: [B], what each loss counts, where levels are not drawn as the objective has them; None is 1.
    """

    indices: list[int]
    captions: list[int]
    latent: Tensor
    noise: Tensor
    u: Tensor
    mask: Tensor | None
    places: list[int]
    count: int
    weight: Tensor | None = None
    seed: int | str = 0
    number: int = 0

    def share_of_mean(self, losses: Tensor) -> Tensor:
        """What the losses [B] of these places add to the mean over the global batch."""
        return (losses if self.weight is None else losses * self.weight).sum() / self.count


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
        self,
        config: TrainConfig,
        micro: int,
        device: torch.device,
        among: Sequence[int] | None = None,
        stream: str = "",
        places: Sequence[int] | None = None,
        levels: ImportanceSampling | None = None,
    ) -> Batch:
        """The micro-batch number `micro` of the run, drawn from `among`: a pure function of it and the seed.

        stream: another name gives other draws (for prior-preservation images). places: those of the batch that are
        wanted, one at least; what is drawn for a place does not depend on which others are. levels: how noise levels
        are
        drawn, where the config says importance.
        """
        if (levels is not None) != (config.timestep_sampling == "importance"):
            raise ValueError("levels, the law of importance sampling, belongs to that sampling and to no other")
        seed = f"{config.seed}/{stream}" if stream else config.seed
        groups = self.groups(range(len(self.latents)) if among is None else among)
        indices = batch_indices(groups, config.batch_size, seed, micro)
        count, shape = len(indices), self.latents[indices[0]].shape[1:]
        dropped = torch.rand(count, generator=generator(seed, "caption", micro)) < config.caption_dropout
        places = list(range(count) if places is None else places)
        even = stratified_uniform(seed, micro, count)[places]
        u = levels.place(even) if levels else sample_timesteps(even, config.timestep_sampling)
        indices = [indices[place] for place in places]
        drawn = torch.stack([noise(seed, micro, place, shape) for place in places])
        if config.noise_offset:
            # One number a channel: the model sees other mean brightnesses than nought ("offset noise", Guttenberg
            # 2023).
            means = torch.stack([noise(seed, micro, place, shape[:1], "offset") for place in places])
            drawn += config.noise_offset * means.reshape(len(places), shape[0], *[1] * (len(shape) - 1))
        masks = [self.masks[i] for i in indices]
        mask = None
        if any(m is not None for m in masks):
            whole = torch.ones(1, 1, *shape[1:])
            mask = torch.cat([whole if m is None else m for m in masks]).to(device)
        return Batch(
            indices,
            [-1 if drop else i for i, drop in zip(indices, dropped[places].tolist(), strict=True)],
            torch.cat([self.latents[i] for i in indices]).to(device),
            drawn.to(device),
            u.to(device),
            mask,
            places,
            count,
            levels.weight(u).to(device) if levels else None,
            seed,
            micro,
        )
