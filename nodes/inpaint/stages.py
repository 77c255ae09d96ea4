"""What runs under the mask blend left behind, so that a later stage knows its latent again by its content.

A LATENT's other keys do not survive core's batch nodes, and a model's wrapper sees only tensors. So each run of a
blended model leaves a digest of every sample of its result here. A later stage looks its samples up one by one: picks,
repeats and another order of a batch need no index.

Memory: digests are kept of the last `MOST_RUNS` runs, about a kilobyte each. Tensors are held while those of the newest
runs fit in `MOST_BYTES`; those of the newest run always are. An original that somebody else still holds, as
ComfyUI's cache of node outputs does, is found beyond that limit too.
"""

from __future__ import annotations

import hashlib
import weakref
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch

MOST_BYTES = 256 * 2**20
MOST_RUNS = 4096
# Nodes pass latents on in one of these (`--fp16-intermediates`); a result is known again after such a rounding.
ROUNDINGS = (torch.float32, torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class Sample:
    """One sample of an earlier run's result.

    finished: the run went down to sigma 0. original: the clean latents [B, ...] of that run in the space of LATENT, of
    which the sample's is number `index`; None if they are not in memory any more. first: the sigma at which its first
    stage began; None if it is not known. noise: the first stage's noise [...] in the model's latent space, if it is in
    memory; had_noise: it was kept.
    """

    finished: bool
    original: torch.Tensor | None
    index: int
    first: float | None
    noise: torch.Tensor | None
    had_noise: bool


class _StoredRun:
    def __init__(self, original, first: Sequence[float | None], noise, finished: bool):
        self.first, self.finished = tuple(first), finished
        self.digests: list[bytes] = []
        self.had_noise = noise is not None
        self._weak = None if finished else weakref.ref(original)
        self.held: tuple[torch.Tensor | None, torch.Tensor | None] = (None, None)
        if not finished:
            # With `--gpu-only` latents lie on the device, whose memory is not for keeping them.
            self.held = (original if original.device.type == "cpu" else original.cpu(), noise)

    @property
    def bytes(self) -> int:
        return sum(tensor.numel() * tensor.element_size() for tensor in self.held if tensor is not None)

    def let_go(self) -> None:
        self.held = (None, None)

    def sample(self, index: int) -> Sample:
        original, noise = self.held
        if original is None and self._weak is not None:
            original = self._weak()
        return Sample(
            self.finished,
            original,
            index,
            self.first[index],
            None if noise is None else noise[index],
            self.had_noise,
        )


class StageStore:
    """Results of runs by the digests of their samples. most_bytes, most_runs: see the module."""

    def __init__(self, most_bytes: int = MOST_BYTES, most_runs: int = MOST_RUNS):
        self.most_bytes, self.most_runs = most_bytes, most_runs
        self._runs: OrderedDict[int, _StoredRun] = OrderedDict()
        self._places: dict[bytes, tuple[int, int]] = {}
        self._next = 0

    def add(
        self,
        result: torch.Tensor,
        original: torch.Tensor,
        first: Sequence[float | None],
        noise: torch.Tensor | None,
        finished: bool,
    ) -> None:
        """Keep a run's result [B, ...]. original, first [B], noise [B, ...] and finished: see `Sample`."""
        run = _StoredRun(original, first, None if noise is None else noise.detach().cpu(), finished)
        number, self._next = self._next, self._next + 1
        for index, sample in enumerate(result):
            for digest in _digests(sample):
                self._places[digest] = (number, index)
                run.digests.append(digest)
        self._runs[number] = run
        while len(self._runs) > self.most_runs:
            oldest, gone = self._runs.popitem(last=False)
            for digest in gone.digests:
                if self._places.get(digest, (None,))[0] == oldest:
                    del self._places[digest]
        self._limit_bytes()

    def find(self, samples: torch.Tensor) -> list[Sample | None]:
        """For each of samples [B, ...] what is known of it; None for one that no run left."""
        return [self._find(_digests(sample)) for sample in samples]

    def _find(self, digests: Iterable[bytes]) -> Sample | None:
        for digest in digests:
            if digest in self._places:
                number, index = self._places[digest]
                return self._runs[number].sample(index)
        return None

    def _limit_bytes(self) -> None:
        total = 0
        for age, run in enumerate(reversed(self._runs.values())):
            total += run.bytes
            if age and total > self.most_bytes:
                run.let_go()

    @property
    def bytes(self) -> int:
        """The bytes of all tensors that the store itself holds."""
        return sum(run.bytes for run in self._runs.values())


STORE = StageStore()


def _digests(sample: torch.Tensor) -> Iterable[bytes]:
    """The digests of a sample in its own precision and in the lower ones, the most precise first."""
    sample = sample.detach().cpu()
    size = sample.element_size()
    for dtype in ROUNDINGS if size >= 4 else (sample.dtype,):
        rounded = sample.to(dtype).contiguous()
        head = f"{dtype} {tuple(sample.shape)}".encode()
        yield hashlib.blake2b(rounded.view(torch.uint8).numpy().tobytes(), digest_size=16, key=head[:64]).digest()
