"""Networks whose attention or blocks are unusual: their layers are found, or the training is refused."""

import odd_networks
import pytest
import torch
from bespoke.nodes.bridge.dataset.conditioning import encode_prompt, learn_layers_of
from bespoke.nodes.bridge.models import TARGETS, checkpoint_blocks, discovery, target_layers
from bespoke.training.errors import InputError
from family_checks import check_gradient
from odd_networks import ODD, Odd


def learnt(odd):
    models = odd_networks.make(odd)
    learn_layers_of(models[0].model, lambda: encode_prompt(models[1], "a red circle"))
    return models


@pytest.mark.parametrize("name", ODD)
def test_its_layers_and_its_gradient(comfyui, name):
    """The layers are counted by hand in the class; the oracle of the gradient is finite differences in float64, and
    gradient checkpointing gives the same."""
    odd, models = ODD[name], learnt(ODD[name])
    network = models[0].model.diffusion_model
    assert not discovery.why_not_discovered(network)
    names = {id(module): name for name, module in network.named_modules()}
    assert tuple(names[id(block)] for block in checkpoint_blocks(network)) == odd.blocks
    wanted = (odd.cross, odd.attention, odd.attention + odd.feed_forward)
    for targets, layers in zip(TARGETS, wanted, strict=False):
        assert set(target_layers(network, targets)) == {f"{block}.{one}" for block in odd.blocks for one in layers}
    network.double()
    network.dtype = torch.float64
    check_gradient(models)


def test_without_an_attention_the_refusal_says_so(comfyui):
    """Gradient checkpointing too: with an empty list of blocks it would save no memory without a word."""
    network = learnt(Odd(lambda: odd_networks.Block(odd_networks.pairwise)))[0].model.diffusion_model
    why = r"\(no attention was found in its forward pass\)"
    with pytest.raises(InputError, match=f"{why}; set targets to 'custom'"):
        target_layers(network, TARGETS[0])
    with pytest.raises(InputError, match=f"{why}, so gradient_checkpointing cannot be used with it"):
        checkpoint_blocks(network)


def test_without_blocks_gradient_checkpointing_is_refused(comfyui):
    odd = Odd(odd_networks.Block, lambda network, x, words: network.only(x, words))
    model, clip, _ = odd_networks.make(odd)
    network = model.model.diffusion_model
    network.only = network.parts[0]
    del network.parts
    learn_layers_of(model.model, lambda: encode_prompt(clip, "a red circle"))
    assert set(target_layers(network, TARGETS[0])) == {f"only.{name}" for name in odd.cross}
    with pytest.raises(InputError, match="has no blocks that could be computed again"):
        checkpoint_blocks(network)


def test_networks_of_the_same_modules_are_told_apart(comfyui):
    """By their settings: a layout is kept for a file that is loaded again, and another order of the same layers must
    not be read as that."""
    first, second = (learnt(ODD[name])[0].model.diffusion_model for name in ("einsums", "added in place"))
    overwritten = [discovery.discovered_family(network).overwritten_input(network) for network in (first, second)]
    assert list(map(len, overwritten)) == [0, 2]


def test_a_prompt_that_only_scales_channels_has_no_cross_attention(comfyui):
    """By hand: the class has one attention, of the picture to itself, and the target is for what reads the prompt."""
    odd = Odd(odd_networks.Modulated, attention=("sight", "tell"))
    models = learnt(odd)
    network = models[0].model.diffusion_model
    with pytest.raises(InputError, match="no attention of a Network reads the prompt.*choose 'attention'"):
        target_layers(network, "cross-attention")
    wanted = {f"{block}.{name}" for block in odd.blocks for name in odd.attention}
    assert set(target_layers(network, "attention")) == wanted
    network.double()
    network.dtype = torch.float64
    check_gradient(models)
