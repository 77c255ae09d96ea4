"""Gradient checkpointing of a block gives the same gradient, whatever the names of its arguments."""

import pytest
import torch
from bespoke.nodes.bridge.training_model.checkpointing import checkpointed


class Block(torch.nn.Module):
    """Its arguments have names that `torch.utils.checkpoint` (`debug`, `early_stop`, `determinism_check`) and this
    pack's functions (`context`) have too."""

    def forward(self, x, scale, debug=0.0, early_stop=0.0, determinism_check="", context=0.0, options=None):
        if options is not None:
            options["calls"] = options.get("calls", 0) + 1
        return (x * scale).sin() + debug * x + early_stop * x**2 + len(determinism_check) * x**3 + context


@pytest.mark.parametrize("in_place", [False, True])
def test_a_blocks_arguments_reach_the_block(in_place):
    block, gradients = Block(), []
    arguments = dict(scale=torch.tensor(0.7), debug=2.0, early_stop=3.0, determinism_check="four", context=5.0)
    for blocks in ([], [block]):
        x = torch.linspace(-1, 1, 5, dtype=torch.float64).requires_grad_()
        with checkpointed(blocks, in_place):
            out = block(x, **arguments)
            out.sum().backward()
        gradients.append((out.detach(), x.grad))
    for plain, saved in zip(*gradients, strict=True):
        assert torch.equal(plain, saved)
    assert "forward" not in vars(block)


def test_both_passes_get_the_options_as_they_were():
    """And the caller sees what the block has written, once, as without gradient checkpointing."""
    block, options = Block(), {"calls": 5}
    x = torch.ones(2, requires_grad=True)
    with checkpointed([block]):
        block(x, torch.tensor(1.0), options=options).sum().backward()
    assert options == {"calls": 6}


class Writes(torch.nn.Module):
    """Scales its input in place and returns nothing; what it puts into the list is its result."""

    def forward(self, x, kept, *, added):
        x.mul_(2).add_(added.sin())
        kept[0] = kept[0] * x


@pytest.mark.parametrize("later", [1.0, 3.0])
def test_a_block_that_changes_its_arguments(later):
    """The oracle is the gradient without checkpointing; the caller changes the input again after the block."""
    gradients = []
    for blocks in ([], [Writes()]):
        start = torch.linspace(-1, 1, 5, dtype=torch.float64).requires_grad_()
        block = blocks[0] if blocks else Writes()
        x, added, kept = start * 1.0, start * 0.5, [start**2]
        with checkpointed(blocks, in_place=True):
            block(x, kept, added=added)
            x = x.add_(kept[0]).mul_(later) if later != 1 and blocks else (x + kept[0]) * later
            (gradient,) = torch.autograd.grad((x**2).sum(), start)
        gradients.append(gradient)
    assert torch.equal(*gradients)
