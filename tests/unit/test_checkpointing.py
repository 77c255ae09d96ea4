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
    block, options = Block(), {"calls": 5}
    x = torch.ones(2, requires_grad=True)
    with checkpointed([block]):
        block(x, torch.tensor(1.0), options=options).sum().backward()
    assert options == {"calls": 5}
