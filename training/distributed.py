"""The processes of one training: each computes its share of every global batch, and the gradients are summed.

Adapters are small, so the gradients of a step go in one `torch.distributed.all_reduce` of one flat buffer.
`DistributedDataParallel` does not fit: it needs a gradient of every parameter from every process, where a share may be
empty and a text layer may have none; it takes the mean over processes, where shares of unequal size have to be summed;
and overlapping the all-reduce with the backward pass saves nothing with a few megabytes. The frozen base model is not
sent.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn

Call = Callable[..., Any]
MAX_TEXT_BYTES = 2048  # of a text in `World.all_gather_texts`


class StopRequest(IntEnum):
    """What a process asks for after a step. The highest request of any process holds for all."""

    CONTINUE = 0
    FINISH = 1  # end now and keep the result
    ABORT = 2  # end now, to be resumed


class PeerLost(RuntimeError):
    """Another process ended, or did not answer within the time limit."""


def is_collective_error(error: RuntimeError) -> bool:
    """Whether torch raised it because other processes could not be reached. gloo's errors have no type of their own."""
    return isinstance(error, getattr(dist, "DistError", ())) or "gloo" in str(error)


@dataclass
class World:
    """The `size` processes of one training; this one has number `rank`. A single process sends nothing.

    sent: bytes given to the collectives so far, by purpose.
    """

    rank: int = 0
    size: int = 1
    sent: dict[str, int] = field(default_factory=lambda: {"gradients": 0, "other": 0})

    def share(self, count: int) -> list[int]:
        """The positions of 0..count - 1 that this process computes: a contiguous range.

        The ranges differ in length by 1 at most. The first processes have the longer ones, so that process 0 has a
        position whenever any process has one.
        """
        least, more = divmod(count, self.size)
        first = self.rank * least + min(self.rank, more)
        return list(range(first, first + least + (self.rank < more)))

    def all_reduce_gradients(self, parameters: Sequence[nn.Parameter], loss: float) -> float:
        """Sum the gradients over all processes, in place, and return the sum of `loss`.

        Each loss is a share of the mean, so the sum is the mean over the global batch. A missing gradient counts as
        zeros: every process must call this, even without a position in the step.
        """
        if self.size == 1:
            return loss
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient
        flat = torch.cat([*(gradient.flatten() for gradient in gradients), gradients[0].new_tensor([loss])])
        self._all_reduce(flat)
        self.sent["gradients"] += flat.nbytes - flat.element_size()
        self.sent["other"] += flat.element_size()
        parts = torch.split(flat[:-1], [gradient.numel() for gradient in gradients])
        parts = [part.view_as(gradient) for part, gradient in zip(parts, gradients, strict=True)]
        torch._foreach_copy_(gradients, parts)  # pyright: ignore[reportPrivateUsage, reportPrivateImportUsage]
        return float(flat[-1])

    def all_reduce_numbers(self, numbers: Sequence[float]) -> list[float]:
        """The sum over processes of each number, in double precision."""
        if self.size == 1:
            return list(numbers)
        total = torch.tensor(numbers, dtype=torch.float64)
        self._all_reduce(total)
        self.sent["other"] += total.nbytes
        return total.tolist()  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]

    def agree(self, request: StopRequest) -> StopRequest:
        """The highest request of any process, the same in all of them."""
        if self.size == 1:
            return request
        highest = torch.tensor([int(request)])
        self._all_reduce(highest, "MAX")
        self.sent["other"] += highest.nbytes
        return StopRequest(int(highest))

    def broadcast(self, data: bytes) -> bytes:
        """The `data` of process 0, in all processes. The argument of the others is ignored."""
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

    def all_gather_texts(self, text: str) -> list[str]:
        """The text of each process, in the order of ranks, cut to `MAX_TEXT_BYTES`."""
        if self.size == 1:
            return [text]
        own = torch.zeros(MAX_TEXT_BYTES, dtype=torch.uint8)
        data = text.encode()[:MAX_TEXT_BYTES]
        if data:
            own[: len(data)] = torch.frombuffer(bytearray(data), dtype=torch.uint8)
        gathered = [torch.zeros_like(own) for _ in range(self.size)]
        self._collective(cast("Call", dist.all_gather), gathered, own)  # pyright: ignore[reportUnknownMemberType]
        return [one.numpy().tobytes().rstrip(b"\0").decode(errors="ignore") for one in gathered]

    def _all_reduce(self, tensor: Tensor, how: str = "SUM") -> None:
        operation = getattr(dist.ReduceOp, how)
        self._collective(cast("Call", dist.all_reduce), tensor, operation)  # pyright: ignore[reportUnknownMemberType]

    def _collective(self, call: Call, *arguments: Any) -> None:
        try:
            call(*arguments)
        except RuntimeError as error:  # torch's DistBackendError too
            raise PeerLost(f"another process ended or did not answer in time ({str(error).splitlines()[0]})") from error
