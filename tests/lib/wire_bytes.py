"""One of two processes that add up a gradient of argv[1] numbers: prints what its sockets sent and received for it."""

from __future__ import annotations

import importlib.util
import os
import socket
import struct
import sys
from pathlib import Path

import torch
import torch.distributed as dist

DISTRIBUTED = Path(__file__).resolve().parents[2] / "training" / "distributed.py"
# Offsets in Linux's struct tcp_info: tcpi_bytes_sent, of which tcpi_bytes_retrans once more, and tcpi_bytes_received.
SENT, AGAIN, RECEIVED = 200, 208, 128
TIMES = 10


def counted() -> tuple[int, int]:
    """Bytes that all TCP sockets of this process have (sent, received), as the kernel counts them."""
    sent = received = 0
    for name in os.listdir("/proc/self/fd"):
        try:
            with socket.socket(fileno=os.dup(int(name))) as one:
                if one.type == socket.SOCK_STREAM and one.family in (socket.AF_INET, socket.AF_INET6):
                    info = one.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256)
                    sent += struct.unpack_from("Q", info, SENT)[0] - struct.unpack_from("Q", info, AGAIN)[0]
                    received += struct.unpack_from("Q", info, RECEIVED)[0]
        except OSError:
            continue  # no socket
    return sent, received


def counted_together() -> tuple[int, int]:
    """`counted` while neither process sends: else what one sent ahead would be counted on one side of the border."""
    dist.barrier()
    now = counted()
    dist.barrier()
    return now


def main() -> None:
    spec = importlib.util.spec_from_file_location("distributed", DISTRIBUTED)
    distributed = sys.modules["distributed"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(distributed)
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    world = distributed.World(dist.get_rank(), dist.get_world_size())
    parameter = torch.nn.Parameter(torch.zeros(int(sys.argv[1])))
    parameter.grad = torch.ones_like(parameter)
    total = world.all_reduce_gradients([parameter], 1.0)  # connects
    assert total == 2.0
    assert parameter.grad.eq(2).all()
    before, told = counted_together(), world.sent["gradients"]
    for _ in range(TIMES):
        world.all_reduce_gradients([parameter], 1.0)
    after = counted_together()
    print(*((b - a) / TIMES for a, b in zip(before, after, strict=True)), (world.sent["gradients"] - told) / TIMES)
    dist.barrier()


if __name__ == "__main__":
    main()
