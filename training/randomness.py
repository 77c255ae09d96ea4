"""Random draws of a training. Each is a pure function of (seed, micro-batch, position in the global batch).

A run that is resumed, restarted or distributed over processes therefore needs no saved random state: micro-batch 317
draws the same images, timesteps and noises wherever it is computed.

micro: the number of the micro-batch, counted from 0 over the whole run. A step has `gradient_accumulation` of them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch


def generator(seed: int | str, *path: int | str) -> torch.Generator:
    """A CPU generator for one named draw: `generator(seed, "noise", micro, position)`.

    The path is hashed (BLAKE2b), so that neighbouring seeds and micro-batches give unrelated streams.
    """
    key = "/".join(str(part) for part in (seed, *path)).encode()
    digest = hashlib.blake2b(key, digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "big") >> 1)


def noise(seed: int | str, micro: int, position: int, shape: Sequence[int], stream: str = "noise") -> torch.Tensor:
    """Standard normal noise of `shape` for the sample at `position` of the global batch, float32 on the CPU.

    Validation passes the index of the image as `micro`, with a `stream` of its own.
    """
    return torch.randn(tuple(shape), generator=generator(seed, stream, micro, position))


def stratified_uniform(seed: int | str, micro: int, count: int) -> torch.Tensor:
    """[count] draws from 0..1, one from each of `count` equal strata, in random order.

    Each draw by itself is uniform. Together they cover 0..1 evenly, which reduces the variance of a batch's gradient
    (Kingma et al. 2021, "Variational Diffusion Models", appendix I.1).
    """
    draw = generator(seed, "timestep", micro)
    strata = torch.randperm(count, generator=draw)
    return (strata + torch.rand(count, generator=draw)) / count
