"""Every draw of a training is a pure function of (seed, step, place in the global batch).

So a run that is resumed, restarted or spread over processes needs no saved random state: step 317 draws the same
images, timesteps and noises wherever it is computed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch


def generator(seed: int | str, *path: int | str) -> torch.Generator:
    """A CPU generator for one named draw: `generator(seed, "noise", step, place)`.

    The path is hashed (BLAKE2b), so that neighbouring seeds and steps give unrelated streams.
    """
    key = "/".join(str(part) for part in (seed, *path)).encode()
    digest = hashlib.blake2b(key, digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "big") >> 1)


def noise(seed: int | str, step: int, place: int, shape: Sequence[int], stream: str = "noise") -> torch.Tensor:
    """Standard normal noise of `shape` for the sample at `place` of the global batch, float32 on the CPU."""
    return torch.randn(tuple(shape), generator=generator(seed, stream, step, place))


def stratified_uniform(seed: int | str, step: int, batch: int) -> torch.Tensor:
    """[batch] draws from 0..1, one from each of `batch` equal strata, in random order.

    Each draw by itself is uniform. Together they cover the noise levels evenly, which takes much of the variance out
    of a batch's gradient (Kingma et al. 2021, "Variational Diffusion Models", appendix I.1).
    """
    draw = generator(seed, "timestep", step)
    strata = torch.randperm(batch, generator=draw)
    return (strata + torch.rand(batch, generator=draw)) / batch


def batch_indices(groups: Sequence[Sequence[int]], batch: int, seed: int | str, step: int) -> list[int]:
    """Which images step `step` trains on: `batch` indices out of one of `groups`.

    groups: indices that may share a batch (images of one size). An index may occur more than once (repeats).
    An epoch goes through every group in shuffled order and fills a group's last batch from its own start, so every
    image is seen at least once and at most `batch - 1` images a second time.
    """
    batches_of = [-(-len(group) // batch) for group in groups]
    epoch, place = divmod(step, sum(batches_of))
    starts = [(g, b) for g, count in enumerate(batches_of) for b in range(count)]
    g, b = starts[int(torch.randperm(len(starts), generator=generator(seed, "batches", epoch))[place])]
    group = groups[g]
    order = torch.randperm(len(group), generator=generator(seed, "images", epoch, g)).tolist()
    return [group[order[(b * batch + i) % len(group)]] for i in range(batch)]
