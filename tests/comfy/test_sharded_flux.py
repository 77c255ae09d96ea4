"""FSDP2 over blocks that write to their arguments: the gradient against the one of the model that is not sharded."""

import pytest
import tiny
import torch
import torch.distributed as dist
from bespoke.nodes.bridge.forward_pass.differentiable import DifferentiableFunctions
from bespoke.nodes.bridge.models import checkpoint_blocks
from bespoke.nodes.jobs.sharding import shard_blocks


@pytest.fixture
def world_of_one():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def gradient(network) -> torch.Tensor:
    """d(sum of the output) / d(prompt), through both kinds of Flux's blocks, which do `img += ...`."""
    draw = torch.Generator().manual_seed(0)
    picture, prompt = torch.randn(1, 16, 4, 4, generator=draw), torch.randn(1, 3, 64, generator=draw)
    pooled = torch.randn(1, tiny.CONTEXT, generator=draw)
    prompt.requires_grad_(True)
    network(picture, torch.tensor([0.5]), prompt, pooled, guidance=torch.tensor([3.5])).sum().backward()
    return prompt.grad


def test_a_sharded_flux_has_the_same_gradient(comfyui, world_of_one):
    network = tiny.flux()[0].model.diffusion_model
    with torch.inference_mode(False), DifferentiableFunctions():
        wanted = gradient(network)
        shard_blocks(checkpoint_blocks(network), torch.device("cpu"))
        assert torch.allclose(gradient(network), wanted, rtol=1e-5, atol=1e-6)
    assert wanted.abs().max() > 0
