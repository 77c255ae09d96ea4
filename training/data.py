"""Latents and the batches drawn from them."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from .batch_order import Buckets, WeightedBucket, batch_draws, draw_counts, whole_shares
from .caption_variants import vary
from .captions import as_prompt, caption_number
from .config import TrainConfig
from .images import TrainingImage
from .noises import perturbations, sample_noises
from .objective import SQUARED, ErrorMeasure
from .randomness import generator, stratified_uniform
from .tensors import to_list
from .timesteps import TimestepSampler


@dataclass(frozen=True)
class Batch:
    """The samples of one model call.

    indices: the image of each sample, by its index in the `LatentSet`.
    caption_indices: the image whose caption each sample has: that of `indices`, or -1 where the caption is dropped.
    latent, noise: [B, C, ...]. t: [B] in 0..1, 0 clean, 1 noise. mask: [B, 1, ...] in 0..1, or None.
    sample_positions: the position of each sample in the global batch of `count` samples. One process of several has
    some of them.
    weight: [B], the factor of each loss; None is 1.
    seed, number: of the draw that made the batch. A technique makes further draws from them.
    turns: how often the image of each sample was drawn before, which chooses among its captions; see
    `captions.caption_number`. None takes the first caption of each.
    measure, perturbation: see `objective.denoising_loss`. Held-out and scored pictures have the squared error and no
    perturbation whatever is trained with, so that the losses of runs with different settings compare.
    """

    indices: list[int]
    caption_indices: list[int]
    latent: Tensor
    noise: Tensor
    t: Tensor
    mask: Tensor | None
    sample_positions: list[int]
    count: int
    weight: Tensor | None = None
    seed: int | str = 0
    number: int = 0
    turns: list[int] | None = None
    measure: ErrorMeasure = SQUARED
    perturbation: Tensor | None = None

    def share_of_mean(self, losses: Tensor) -> Tensor:
        """The part of the mean over the global batch that comes from these samples' losses [B]: a scalar."""
        return (losses if self.weight is None else losses * self.weight).sum() / self.count


@dataclass(frozen=True)
class LatentSet:
    """The training set in latent space: for each image a latent [1, C, ...] and a loss mask [1, 1, ...] or None.

    weights: how often an image is drawn in proportion to the others, above 0; empty is the same for all.
    """

    latents: list[Tensor]
    masks: list[Tensor | None]
    weights: Sequence[float] = ()
    _buckets: dict[tuple[int, ...], Buckets] = field(
        default_factory=dict[tuple[int, ...], Buckets], init=False, repr=False, compare=False
    )

    def buckets(self, indices: Sequence[int]) -> Buckets:
        """`indices` grouped by the shape of the latent, as a batch has one; weighted where the weights differ.

        They are kept, since every batch needs them. Raises `InputError` for weights that `whole_shares` refuses.
        """
        key = tuple(indices)
        if key not in self._buckets:
            self._buckets[key] = self._make_buckets(key)
        return self._buckets[key]

    def _make_buckets(self, indices: Sequence[int]) -> Buckets:
        by_shape: dict[tuple[int, ...], list[int]] = defaultdict(list)
        for index in indices:
            by_shape[tuple(self.latents[index].shape)].append(index)
        weights = [self.weights[index] for index in indices] if self.weights else []
        if len(set(weights)) < 2:
            return list(by_shape.values())
        shares = dict(zip(indices, whole_shares(weights), strict=True))
        return [WeightedBucket(bucket, [shares[index] for index in bucket]) for bucket in by_shape.values()]

    def draw_counts(self, config: TrainConfig, steps: int, among: Sequence[int]) -> Counter[int]:
        """{index: how often the first `steps` steps of a training on `among` draw that image}, exactly."""
        micros = steps * config.gradient_accumulation
        return draw_counts(self.buckets(among), config.batch_size, config.seed, micros)

    def batch(
        self,
        config: TrainConfig,
        micro: int,
        device: torch.device,
        timesteps: TimestepSampler,
        among: Sequence[int] | None = None,
        stream: str = "",
        sample_positions: Sequence[int] | None = None,
    ) -> Batch:
        """Micro-batch number `micro` of the run, counted from 0: a pure function of it, `config` and the arguments.

        timesteps: the distribution of t. among: the images to draw from, all by default. stream: a name for
        independent draws (prior-preservation images). sample_positions: the positions of the global batch to return,
        at least one, all by default; the draws of a position do not depend on the others.
        """
        seed = f"{config.seed}/{stream}" if stream else config.seed
        among = range(len(self.latents)) if among is None else among
        draws = batch_draws(self.buckets(among), config.batch_size, seed, micro)
        indices = [index for index, _ in draws]
        count, shape = len(indices), self.latents[indices[0]].shape[1:]
        positions = list(range(count) if sample_positions is None else sample_positions)
        dropped = torch.rand(count, generator=generator(seed, "caption", micro)) < config.caption_dropout
        t = timesteps.sample(stratified_uniform(seed, micro, count)[positions])
        weight = timesteps.weight(t)
        indices = [indices[position] for position in positions]
        perturbation = perturbations(config, seed, micro, positions, shape)
        return Batch(
            indices,
            [-1 if drop else i for i, drop in zip(indices, to_list(dropped[positions]), strict=True)],
            torch.cat([self.latents[i] for i in indices]).to(device),
            sample_noises(config, seed, micro, positions, shape).to(device),
            t.to(device),
            self.mask(indices, device),
            positions,
            count,
            None if weight is None else weight.to(device),
            seed,
            micro,
            [draws[position][1] for position in positions],
            config.measure,
            None if perturbation is None else perturbation.to(device),
        )

    def mask(self, indices: Sequence[int], device: torch.device) -> Tensor | None:
        """The loss masks [B, 1, ...], ones where an image has none; None where no image has one."""
        masks = [self.masks[i] for i in indices]
        if all(mask is None for mask in masks):
            return None
        whole = torch.ones(1, 1, *self.latents[indices[0]].shape[2:])
        return torch.cat([whole if mask is None else mask for mask in masks]).to(device)


def prompts_of(batch: Batch, items: Sequence[TrainingImage]) -> list[str]:
    """The prompt of each sample of a batch: of its picture's captions the one whose turn it is.

    Where captions are varied at each draw, the variant is a function of seed, number of the batch and position of the
    sample in the global batch. Validation takes the first caption, as it is.

    items: the pictures of the `LatentSet`. A dropped caption, -1 in `Batch.caption_indices`, is not dropped here.
    """
    if batch.turns is None:
        return [items[index].prompt for index in batch.indices]
    draws = zip(batch.indices, batch.turns, batch.sample_positions, strict=True)
    return [_prompt_of(items[index], index, turn, batch, position) for index, turn, position in draws]


def _prompt_of(item: TrainingImage, index: int, turn: int, batch: Batch, position: int) -> str:
    """See `prompts_of`. index: of the item. position: of the sample."""
    texts, rule = item.texts, item.variants
    text = texts[caption_number(len(texts), turn, batch.seed, index)]
    if rule is not None and rule.at_each_draw:
        draw = generator(batch.seed, "caption variant", batch.number, position)
        text = vary(text, rule, item.trigger, item.caption_syntax, draw)
    return as_prompt(text, item.caption_syntax)
