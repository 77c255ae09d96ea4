"""The processes that train together: each takes its share of every global batch, and their gradients are added up.

Adapters are small, so all that a step's processes have to tell one another goes in one `torch.distributed.all_reduce`
of one flat buffer. `DistributedDataParallel`, which is that call in pieces, does not fit: it waits for a gradient of
every parameter from every process, where a share may be empty and a text layer may have none; it takes the mean over
processes, where shares of unequal size have to be added; and its overlap with the backward pass saves nothing with a
few megabytes. The frozen base never travels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
import torch.distributed as dist
from torch import Tensor, nn

SAID = 2048  # bytes of what a process may say to the others

# What a process may ask of all after a step; the highest is what they agree on.
GO_ON, FINISH, STOP = range(3)


class PeerLost(RuntimeError):
    """Another process ended, or did not answer within the time limit."""


def from_a_collective(error: RuntimeError) -> bool:
    """Whether torch raised it because other processes could not be reached. gloo's errors have no type of their own."""
    return isinstance(error, getattr(dist, "DistError", ())) or "gloo" in str(error)


@dataclass
class World:
    """The processes of one training, `size` of them; this one is number `rank`. Alone, nothing is sent.

    sent: bytes handed to the collectives so far, by what they were.
    """

    rank: int = 0
    size: int = 1
    sent: dict[str, int] = field(default_factory=lambda: {"gradients": 0, "other": 0})

    def share(self, count: int) -> list[int]:
        """Which of the places 0..count - 1 this process computes: neighbours, as many as the others' or one more or
        less.

        The first processes take the larger shares, so that the first has one wherever anybody has.
        """
        least, more = divmod(count, self.size)
        first = self.rank * least + min(self.rank, more)
        return list(range(first, first + least + (self.rank < more)))

    def add_up(self, parameters: Sequence[nn.Parameter], loss: float) -> float:
        """Give every process the sum of all gradients, in place, and of `loss`: of shares of the mean, so the global
        mean.

        A process that had no place in this step takes part with zeros.
        """
        if self.size == 1:
            return loss
        for parameter in parameters:
            parameter.grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        gradients = [parameter.grad for parameter in parameters]
        flat = torch.cat([*(gradient.flatten() for gradient in gradients), gradients[0].new_tensor([loss])])
        self._all_reduce(flat)
        self.sent["gradients"] += flat.nbytes - flat.element_size()
        self.sent["other"] += flat.element_size()
        parts = flat[:-1].split([gradient.numel() for gradient in gradients])
        torch._foreach_copy_(
            gradients, [part.view_as(gradient) for part, gradient in zip(parts, gradients, strict=True)]
        )
        return float(flat[-1])

    def add_numbers(self, numbers: Sequence[float]) -> list[float]:
        """The sum over processes of each number, in double precision."""
        if self.size == 1:
            return list(numbers)
        together = torch.tensor(numbers, dtype=torch.float64)
        self._all_reduce(together)
        self.sent["other"] += together.nbytes
        return together.tolist()

    def agree(self, wish: int) -> int:
        """The strongest wish of any process (`GO_ON`, `FINISH`, `STOP`), which all of them then follow at the same
        step."""
        if self.size == 1:
            return wish
        strongest = torch.tensor([wish])
        self._all_reduce(strongest, "MAX")
        self.sent["other"] += strongest.nbytes
        return int(strongest)

    def tell(self, data: bytes | None) -> bytes:
        """What the first process has, for all of them. data: given by it alone."""
        if self.size == 1:
            return data
        length = torch.tensor([len(data) if self.rank == 0 else 0])
        self._collective(dist.broadcast, length, 0)
        buffer = torch.zeros(int(length), dtype=torch.uint8)
        if self.rank == 0 and data:
            buffer = torch.frombuffer(bytearray(data), dtype=torch.uint8)
        if len(buffer):
            self._collective(dist.broadcast, buffer, 0)
        return buffer.numpy().tobytes()

    def hear_all(self, text: str) -> list[str]:
        """What each process says, in the order of their ranks; longer texts are cut."""
        if self.size == 1:
            return [text]
        own = torch.zeros(SAID, dtype=torch.uint8)
        data = text.encode()[:SAID]
        if data:
            own[: len(data)] = torch.frombuffer(bytearray(data), dtype=torch.uint8)
        everyone = [torch.zeros_like(own) for _ in range(self.size)]
        self._collective(dist.all_gather, everyone, own)
        return [one.numpy().tobytes().rstrip(b"\0").decode(errors="ignore") for one in everyone]

    def _all_reduce(self, tensor: Tensor, how: str = "SUM") -> None:
        self._collective(dist.all_reduce, tensor, getattr(dist.ReduceOp, how))

    def _collective(self, call, *arguments) -> None:
        try:
            call(*arguments)
        except RuntimeError as error:  # torch's DistBackendError too
            raise PeerLost(f"another process ended or did not answer in time ({str(error).splitlines()[0]})") from error
