"""Shares of a batch, and the bytes that two processes send each other."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from bespoke.training.config import TrainConfig
from bespoke.training.data import LatentSet
from bespoke.training.distributed import StopRequest, World
from bespoke.training.timesteps import ImportanceSampling, LogitNormalTimesteps
from bespoke.training.validation import validation_batches, validation_scorer

SCRIPT = Path(__file__).parent.parent / "lib" / "wire_bytes.py"
CPU = torch.device("cpu")


@pytest.mark.parametrize(("count", "size"), [(4, 1), (4, 2), (4, 3), (4, 4), (2, 3), (7, 4), (64, 8), (1, 5)])
def test_shares_partition_the_positions_evenly(count, size):
    shares = [World(rank, size).share(count) for rank in range(size)]
    assert sum(shares, []) == list(range(count))
    lengths = [len(share) for share in shares]
    assert max(lengths) - min(lengths) <= 1
    assert lengths[0] == max(lengths)  # the first process always has a sample


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5])
@pytest.mark.parametrize(
    "timesteps",
    [ImportanceSampling(torch.linspace(1.9, 0.1, 19, dtype=torch.float64)), LogitNormalTimesteps()],
    ids=["importance", "logit-normal"],
)
def test_a_shared_batch_is_the_whole_batch_to_the_bit(size, timesteps):
    torch.manual_seed(0)
    latents = [torch.randn(1, 4, 8, 8 + 4 * (i % 2)) for i in range(9)]
    masks = [torch.rand(1, 1, *latent.shape[2:]) if i == 3 else None for i, latent in enumerate(latents)]
    data = LatentSet(latents, masks)
    config = TrainConfig(10, 1e-3, 4, 7, noise_offset=0.2, caption_dropout=0.4, multires_noise=0.3, ip_noise_gamma=0.1)
    for micro in range(8):
        whole = data.batch(config, micro, CPU, timesteps)
        parts = [
            data.batch(config, micro, CPU, timesteps, sample_positions=share)
            for rank in range(size)
            if (share := World(rank, size).share(4))
        ]
        for name in ("latent", "noise", "perturbation", "t", *(["weight"] if whole.weight is not None else [])):
            assert torch.equal(torch.cat([getattr(part, name) for part in parts]), getattr(whole, name))
        for name in ("indices", "caption_indices", "sample_positions"):
            assert sum((getattr(part, name) for part in parts), []) == getattr(whole, name)
        losses = torch.rand(4)
        assert sum(part.share_of_mean(losses[part.sample_positions]) for part in parts) == pytest.approx(
            float((losses * (1 if whole.weight is None else whole.weight)).mean())
        )
        drawn = [part.mask for part in parts if part.mask is not None]
        assert (whole.mask is None) == (not drawn)


def test_one_process_sends_nothing():
    world, parameter = World(), torch.nn.Parameter(torch.zeros(3))
    parameter.grad = torch.ones(3)
    assert world.all_reduce_gradients([parameter], 0.1) == 0.1  # to the bit
    assert world.all_reduce_numbers([1.5]) == [1.5]
    assert world.agree(StopRequest.FINISH) is StopRequest.FINISH
    assert world.agree(StopRequest.CONTINUE) is StopRequest.CONTINUE
    assert world.broadcast(b"x") == b"x"
    assert world.all_gather_texts("y") == ["y"]
    assert world.sent == {"gradients": 0, "other": 0}


class OneOfTwo(World):
    """One of two processes, which keeps the numbers that it would send."""

    def all_reduce_numbers(self, numbers):
        self.own = list(numbers)
        return self.own


def test_held_out_pictures_are_shared_out():
    data = LatentSet([torch.randn(1, 4, 8, 8) for _ in range(5)], [None] * 5)
    batches = validation_batches(data, range(5), CPU)
    calls, numbers = [], []
    for rank in range(2):
        world, called = OneOfTwo(rank, 2), []

        def loss(batch):
            called.append(batch.number)
            return batch.t * 0 + batch.number + 1

        validation_scorer(batches, loss, world)()
        calls.append(called)
        numbers.append(world.own)
    assert calls == [[0, 2, 4], [1, 3, 4]]  # equally often, as a sharded model needs
    assert [sum(pair) for pair in zip(*numbers, strict=True)] == [
        1,
        2,
        3,
        4,
        5,
    ]  # the last batch of rank 1 is not counted


@pytest.mark.skipif(sys.platform != "linux", reason="reads Linux's counters of sockets")
def test_bytes_on_the_wire_are_the_gradients():
    """For a LoRA of rank 16 on SD1.5's cross-attention: 6.3 MB a step, as the kernel counts them."""
    numbers = 1_591_296  # see test_torchrun.py, which counts them on SD1.5's own layers
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    env = os.environ | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen(
            [sys.executable, SCRIPT, str(numbers)], env=env | {"RANK": str(rank)}, stdout=subprocess.PIPE, text=True
        )
        for rank in range(2)
    ]
    for process in processes:
        text, _ = process.communicate(timeout=120)
        assert process.returncode == 0
        sent, received, counted = map(float, text.split())
        assert counted == 4 * numbers
        # Of two processes each sends half of its sums and half of the results. A thousandth is framing.
        assert sent == pytest.approx(4 * numbers, rel=1e-3)
        assert received == pytest.approx(4 * numbers, rel=1e-3)
        print(f"\nsent {sent / 1e6:.3f} MB, received {received / 1e6:.3f} MB a step")
