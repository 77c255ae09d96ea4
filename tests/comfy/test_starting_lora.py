"""The LoRA that a training goes on from."""

import pytest
import torch
from bespoke.nodes.lora.match import starting_parts
from bespoke.training.errors import InputError


def test_a_layer_under_two_names_is_refused(sd15):
    model, clip, _ = sd15
    layer = "diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k"
    out, inner = model.model.state_dict()[layer + ".weight"].shape
    names = layer, "lora_unet_" + layer.removeprefix("diffusion_model.").replace(".", "_")
    one, other = (
        {f"{name}.lora_up.weight": torch.ones(out, 2), f"{name}.lora_down.weight": torch.ones(2, inner)}
        for name in names
    )
    assert list(starting_parts(one, model, clip)) == list(starting_parts(other, model, clip))
    with pytest.raises(InputError, match="attn2.to_k under two names"):
        starting_parts(one | other, model, clip)
