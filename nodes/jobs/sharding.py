"""A frozen base spread over the processes, block by block (FSDP2), for one that does not fit a single device."""

from __future__ import annotations

import inspect
from collections.abc import Iterable

import torch
import torch.distributed as dist

from ..bridge.models import checkpoint_blocks
from ..bridge.training_model.denoiser import ComfyDenoiser


def gives_back() -> bool:
    """Whether this PyTorch lets go of a block after its forward pass when it is told to; older ones keep the outermost
    whole."""
    from torch.distributed.fsdp import fully_shard

    return inspect.signature(fully_shard).parameters["reshard_after_forward"].default is None


def shard_blocks(blocks: Iterable[torch.nn.Module], device: torch.device) -> None:
    """Move one block after the other to the device, where each process keeps its share of it."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    for block in blocks:
        # Said outright: each block is the outermost of its kind, which FSDP2 would else keep whole after the forward
        # pass,
        # and with it in the end the whole base on every device.
        fully_shard(block, mesh=mesh, reshard_after_forward=True)


def shard_base(denoiser: ComfyDenoiser, device: torch.device) -> tuple[int, int]:
    """Spread the blocks of the opened model over all processes; each computes on `device`. Gives (the base's bytes,
    those of them that this process holds between two blocks).

    Every process keeps its share of each block's weights and gathers the whole block for the moment in which it is
    computed, forward and backward; what lies outside of the blocks each keeps whole. The base is frozen, so that no
    gradient of it exists and only weights travel; the adapters are no part of it. All processes must call the model
    equally often. Raises `InputError` where the model's blocks are not known.
    """
    model = denoiser.base.diffusion_model
    blocks, whole = checkpoint_blocks(model), sum(parameter.nbytes for parameter in model.parameters())
    shard_blocks(blocks, device)
    resolve_inside = {id(part) for block in blocks for part in block.modules()}
    for part in denoiser.base.modules():
        if id(part) not in resolve_inside:
            for held in (part._parameters, part._buffers):
                for name, tensor in held.items():
                    if tensor is not None and tensor.device != device:
                        moved = tensor.detach().to(device)
                        held[name] = (
                            torch.nn.Parameter(moved, requires_grad=False) if held is part._parameters else moved
                        )
    denoiser.move_to(device)
    held = (parameter.to_local() if hasattr(parameter, "to_local") else parameter for parameter in model.parameters())
    return whole, sum(tensor.nbytes for tensor in held)
