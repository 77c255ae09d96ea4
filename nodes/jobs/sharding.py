"""A frozen base model sharded over the processes, block by block (FSDP2), where it does not fit a single device.

Zhao et al. 2023, "PyTorch FSDP", arXiv 2304.11277; `torch.distributed.fsdp.fully_shard`.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed as dist

from ..bridge.models import checkpoint_blocks
from ..bridge.training_model.denoiser import ComfyDenoiser


def supports_resharding() -> bool:
    """Whether this PyTorch can free a root module's gathered weights after its forward pass.

    Older versions ignore `reshard_after_forward` for a root, and each block here is a root of its own.
    """
    from torch.distributed.fsdp import fully_shard

    return inspect.signature(fully_shard).parameters["reshard_after_forward"].default is None


def shard_blocks(blocks: Iterable[torch.nn.Module], device: torch.device) -> None:
    """Move the blocks to the device one after the other; each process keeps its shard of every block."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    for block in blocks:
        # The default (None) would not reshard a root module. Every block is a root, so that in the end each device
        # would hold the whole base.
        fully_shard(block, mesh=mesh, reshard_after_forward=True)
        block.register_forward_pre_hook(_own_arguments, with_kwargs=True)  # runs after the hook of `fully_shard`


def _own_arguments(_block: torch.nn.Module, args: tuple[Any, ...], named: dict[str, Any]) -> tuple[tuple, dict]:
    """The arguments of a block as tensors that it may write to.

    FSDP2 gives a block views that one function returns together, and autograd refuses to write to such views. Flux's
    blocks do (`img += ...`).
    """
    return tuple(map(_own, args)), {name: _own(value) for name, value in named.items()}


def _own(value: Any) -> Any:
    return value.clone() if isinstance(value, torch.Tensor) and value.requires_grad else value


def shard_base(denoiser: ComfyDenoiser, device: torch.device) -> tuple[int, int]:
    """Shard the blocks of the prepared model over all processes; this process computes on `device`.

    Returns the bytes of the base, and how many of them this process holds between two blocks.

    Each process keeps a shard of each block's weights. It gathers the whole block for its forward and its backward
    pass. Weights outside of the blocks are whole in every process. The base is frozen, so only weights are sent and no
    gradients; the adapters are not sharded. All processes must call the model the same number of times. Raises
    `InputError` where the blocks of the model are not known.
    """
    model = denoiser.base.diffusion_model
    blocks, base_bytes = checkpoint_blocks(model), sum(parameter.nbytes for parameter in model.parameters())
    shard_blocks(blocks, device)
    sharded = {id(module) for block in blocks for module in block.modules()}
    for module in denoiser.base.modules():
        if id(module) not in sharded:
            _move_own_tensors(module, device)
    denoiser.move_to(device)
    held = (parameter.to_local() if hasattr(parameter, "to_local") else parameter for parameter in model.parameters())
    return base_bytes, sum(tensor.nbytes for tensor in held)


def _move_own_tensors(module: torch.nn.Module, device: torch.device) -> None:
    """Move the parameters and buffers of the module itself, without those of its children."""
    for name, parameter in module._parameters.items():
        if parameter is not None and parameter.device != device:
            module._parameters[name] = torch.nn.Parameter(parameter.detach().to(device), requires_grad=False)
    for name, buffer in module._buffers.items():
        if buffer is not None and buffer.device != device:
            module._buffers[name] = buffer.detach().to(device)
