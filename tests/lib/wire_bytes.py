"""One of two processes that all-reduce a gradient of argv[1] numbers.

Prints (bytes that its sockets sent, bytes that they received, bytes that `World` counted), for each all-reduce.
"""

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
# Offsets in Linux's struct tcp_info: tcpi_bytes_sent, tcpi_bytes_retrans (part of the former) and tcpi_bytes_received.
SENT, RETRANSMITTED, RECEIVED = 200, 208, 128
TIMES = 10


def counted() -> tuple[int, int]:
    """Bytes that all TCP sockets of this process have (sent, received), as the kernel counts them."""
    sent = received = 0
    for name in os.listdir("/proc/self/fd"):
        try:
            with socket.socket(fileno=os.dup(int(name))) as connection:
                if connection.type == socket.SOCK_STREAM and connection.family in (socket.AF_INET, socket.AF_INET6):
                    info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256)
                    sent += struct.unpack_from("Q", info, SENT)[0] - struct.unpack_from("Q", info, RETRANSMITTED)[0]
                    received += struct.unpack_from("Q", info, RECEIVED)[0]
        except OSError:
            continue  # not a socket
    return sent, received


def counted_between_barriers() -> tuple[int, int]:
    """`counted` while neither process sends, so that both count the same all-reduces."""
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
    before, sent_before = counted_between_barriers(), world.sent["gradients"]
    for _ in range(TIMES):
        world.all_reduce_gradients([parameter], 1.0)
    after = counted_between_barriers()
    print(
        *((b - a) / TIMES for a, b in zip(before, after, strict=True)), (world.sent["gradients"] - sent_before) / TIMES
    )
    dist.barrier()


if __name__ == "__main__":
    main()
