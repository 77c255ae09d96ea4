"""Random draws of a training. Each is a pure function of (seed, step, position in the global batch).

A run that is resumed, restarted or distributed over processes therefore needs no saved random state: step 317 draws
the same images, timesteps and noises wherever it is computed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch

from .tensors import to_list


def generator(seed: int | str, *path: int | str) -> torch.Generator:
    """A CPU generator for one named draw: `generator(seed, "noise", step, position)`.

    The path is hashed (BLAKE2b), so that neighbouring seeds and steps give unrelated streams.
    """
    key = "/".join(str(part) for part in (seed, *path)).encode()
    digest = hashlib.blake2b(key, digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "big") >> 1)


def noise(seed: int | str, step: int, position: int, shape: Sequence[int], stream: str = "noise") -> torch.Tensor:
    """Standard normal noise of `shape` for the sample at `position` of the global batch, float32 on the CPU."""
    return torch.randn(tuple(shape), generator=generator(seed, stream, step, position))


def stratified_uniform(seed: int | str, step: int, batch: int) -> torch.Tensor:
    """[batch] draws from 0..1, one from each of `batch` equal strata, in random order.

    Each draw by itself is uniform. Together they cover 0..1 evenly, which reduces the variance of a batch's gradient
    (Kingma et al. 2021, "Variational Diffusion Models", appendix I.1).
    """
    draw = generator(seed, "timestep", step)
    strata = torch.randperm(batch, generator=draw)
    return (strata + torch.rand(batch, generator=draw)) / batch


def batch_indices(buckets: Sequence[Sequence[int]], batch: int, seed: int | str, step: int) -> list[int]:
    """The `batch` indices of step `step`, all from one of `buckets`.

    buckets: indices that may share a batch (images of one size). An index may occur more than once (repeats).
    An epoch goes through every bucket in shuffled order and fills the last batch of a bucket from its beginning, so
    every image is drawn at least once and at most `batch - 1` images twice.
    """
    batches_of = [-(-len(bucket) // batch) for bucket in buckets]
    epoch, position = divmod(step, sum(batches_of))
    starts = [(g, b) for g, count in enumerate(batches_of) for b in range(count)]
    g, b = starts[int(torch.randperm(len(starts), generator=generator(seed, "batches", epoch))[position])]
    bucket = buckets[g]
    order = to_list(torch.randperm(len(bucket), generator=generator(seed, "images", epoch, g)))
    return [bucket[order[(b * batch + i) % len(bucket)]] for i in range(batch)]
