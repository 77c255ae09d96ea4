"""Shares of a batch, and what two processes send one another."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from bespoke.training.config import TrainConfig
from bespoke.training.data import LatentSet
from bespoke.training.distributed import FINISH, GO_ON, World
from bespoke.training.objective import ImportanceSampling
from bespoke.training.validation import grid, scorer

SCRIPT = Path(__file__).parent.parent / "lib" / "wire_bytes.py"
CPU = torch.device("cpu")


@pytest.mark.parametrize(("count", "size"), [(4, 1), (4, 2), (4, 3), (4, 4), (2, 3), (7, 4), (64, 8), (1, 5)])
def test_shares_are_all_places_once_and_even(count, size):
    shares = [World(rank, size).share(count) for rank in range(size)]
    assert sum(shares, []) == list(range(count))
    lengths = [len(share) for share in shares]
    assert max(lengths) - min(lengths) <= 1
    assert lengths[0] == max(lengths)  # the first always has a place


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("sampling", ["importance", "logit-normal"])
def test_a_shared_batch_is_the_whole_batch_to_the_bit(size, sampling):
    torch.manual_seed(0)
    latents = [torch.randn(1, 4, 8, 8 + 4 * (i % 2)) for i in range(9)]
    masks = [torch.rand(1, 1, *latent.shape[2:]) if i == 3 else None for i, latent in enumerate(latents)]
    data = LatentSet(latents, masks)
    levels = ImportanceSampling(torch.linspace(1.9, 0.1, 19, dtype=torch.float64)) if sampling == "importance" else None
    config = TrainConfig(10, 1e-3, 4, 7, noise_offset=0.2, caption_dropout=0.4, timestep_sampling=sampling)
    for micro in range(8):
        whole = data.batch(config, micro, CPU, levels=levels)
        parts = [
            data.batch(config, micro, CPU, places=share, levels=levels)
            for rank in range(size)
            if (share := World(rank, size).share(4))
        ]
        for name in ("latent", "noise", "u", *(["weight"] if levels else [])):
            assert torch.equal(torch.cat([getattr(part, name) for part in parts]), getattr(whole, name))
        for name in ("indices", "captions", "places"):
            assert sum((getattr(part, name) for part in parts), []) == getattr(whole, name)
        losses = torch.rand(4)
        assert sum(part.share_of_mean(losses[part.places]) for part in parts) == pytest.approx(
            float((losses * (whole.weight if levels else 1)).mean())
        )
        drawn = [part.mask for part in parts if part.mask is not None]
        assert (whole.mask is None) == (not drawn)


def test_alone_nothing_is_sent():
    world, parameter = World(), torch.nn.Parameter(torch.zeros(3))
    parameter.grad = torch.ones(3)
    assert world.add_up([parameter], 0.1) == 0.1  # to the bit
    assert world.add_numbers([1.5]) == [1.5]
    assert world.agree(FINISH) == FINISH
    assert world.agree(GO_ON) == GO_ON
    assert world.tell(b"x") == b"x"
    assert world.hear_all("y") == ["y"]
    assert world.sent == {"gradients": 0, "other": 0}


class Told(World):
    """A process of several that hears what the others would have added."""

    def add_numbers(self, numbers):
        self.own = list(numbers)
        return self.own


def test_held_out_pictures_are_shared_out():
    data = LatentSet([torch.randn(1, 4, 8, 8) for _ in range(5)], [None] * 5)
    batches = grid(data, range(5), CPU)
    calls, numbers = [], []
    for rank in range(2):
        world, own = Told(rank, 2), []
        scorer(batches, lambda batch, own=own: (own.append(batch.number), batch.u * 0 + batch.number + 1)[1], world)()
        calls.append(own)
        numbers.append(world.own)
    assert calls == [[0, 2, 4], [1, 3, 4]]  # each as many, so that a model that is spread over both is called by both
    assert [sum(pair) for pair in zip(*numbers, strict=True)] == [1, 2, 3, 4, 5]  # the one too many does not count


@pytest.mark.skipif(sys.platform != "linux", reason="reads Linux's counters of sockets")
def test_bytes_on_the_wire_are_the_gradients():
    """For a LoRA of rank 16 on SD1.5's cross-attention: 6.3 MB a step, as the kernel counts them."""
    numbers = 1_591_296  # see test_torchrun.py, which counts them on SD1.5's own layers
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = one.getsockname()[1]
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
        sent, received, told = map(float, text.split())
        assert told == 4 * numbers
        # Two processes: each sends half of its sums and half of the results, the whole once. A thousandth is framing.
        assert sent == pytest.approx(4 * numbers, rel=1e-3)
        assert received == pytest.approx(4 * numbers, rel=1e-3)
        print(f"\nsent {sent / 1e6:.3f} MB, received {received / 1e6:.3f} MB a step")
