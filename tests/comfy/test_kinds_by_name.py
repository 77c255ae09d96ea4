"""Kinds of adapter by name: kohya's own OFT is applied, other kinds are refused by name, programs are named.

Oracles: kohya's rule of OFT (`networks/oft.py` of sd-scripts, `OFTModule.get_weight` and `merge_to`), by hand; the
files of (IA)^3, AdaLoRA and others are made by LyCORIS' and PEFT's own code.
"""

import pytest
import tiny
import torch
from bespoke.nodes.lora.files import in_comfy_names
from bespoke.training.errors import InputError
from bespoke.training.layer_names.foreign import foreign_kind

TO_Q = "down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_q"
OWN = "diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_q.weight"


@pytest.fixture(scope="module")
def model(comfyui):
    return tiny.patcher(tiny.SMALLEST)


def kohya_oft(weight, blocks, constraint, multiplier):
    """kohya's merged weight. blocks: [k, n, n]; constraint: the file's alpha."""
    count, size = blocks.shape[:2]
    skew = blocks - blocks.transpose(1, 2)
    norm = skew.flatten().norm()
    skew = skew * ((norm.clamp(max=constraint * len(weight)) + 1e-8) / (norm + 1e-8))
    turn = (torch.eye(size) + skew) @ torch.linalg.inv(torch.eye(size) - skew)
    turn = multiplier * (turn - torch.eye(size)) + torch.eye(size)
    return torch.einsum("knm,knp->kmp", turn, weight.reshape(count, size, -1)).reshape(weight.shape)


# The last two need the arithmetic of `kinds/oft.py`: the constraint times the layer's outputs, and the strength.
@pytest.mark.parametrize(("scale", "constraint", "strength"), [(0.02, 1.0, 1.0), (0.3, 0.01, 1.0), (0.1, 1.0, 0.5)])
def test_kohyas_own_oft(run_node, model, scale, constraint, strength):
    weight = model.model.state_dict()[OWN]
    blocks = scale * torch.randn(4, len(weight) // 4, len(weight) // 4, generator=torch.Generator().manual_seed(0))
    lora = {f"oft_unet_{TO_Q}.oft_blocks": blocks, f"oft_unet_{TO_Q}.alpha": torch.tensor(constraint)}
    injected, _, report, *_ = run_node(
        "BespokeInjectLora", model=model, lora_name="none", strength_model=strength, lora=lora
    )
    assert "1 layers (1 OFT)" in report
    assert "Names: kohya (OFT)." in report
    changed = injected.patch_weight_to_device(OWN, return_weight=True)
    expected = kohya_oft(weight, blocks, constraint, strength)
    assert (changed - expected).norm() <= 1e-4 * (expected - weight).norm()


def test_the_wire_carries_kohyas_oft_under_names_that_core_maps(model, comfyui):
    import comfy.lora

    lora = in_comfy_names({f"oft_unet_{TO_Q}.oft_blocks": torch.zeros(4, 8, 8)}, "a", {})
    assert list(comfy.lora.load_lora(lora, comfy.lora.model_lora_keys_unet(model.model, {}))) == [OWN]


def by_lycoris():
    from lycoris.modules.ia3 import IA3Module

    module = IA3Module("lora_unet_" + TO_Q, torch.nn.Linear(32, 32))
    return {f"lora_unet_{TO_Q}.{key}": tensor for key, tensor in module.state_dict().items()}


def by_peft(**configs):
    import peft

    class Small(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.to_q = torch.nn.Linear(32, 32)

        def forward(self, x):
            return self.to_q(x)

    def make():
        (name, settings), *_ = configs.items()
        config = getattr(peft, name)(target_modules=["to_q"], **settings)
        return peft.get_peft_model_state_dict(peft.get_peft_model(Small(), config))

    return make


@pytest.mark.parametrize(
    ("make", "kind"),
    [
        (by_lycoris, r"\(IA\)\^3 by LyCORIS"),
        (by_peft(IA3Config={"feedforward_modules": []}), r"\(IA\)\^3 by PEFT"),
        (by_peft(AdaLoraConfig={"total_step": 100}), "AdaLoRA"),
        (by_peft(OFTConfig={"oft_block_size": 8}), "OFT by PEFT"),
        (by_peft(VeraConfig={"r": 4}), "VeRA"),
        (by_peft(HRAConfig={"r": 4}), "HRA"),
    ],
)
def test_kinds_that_are_not_applied_are_refused_by_name(run_node, model, make, kind):
    tensors = {key: tensor.detach() for key, tensor in make().items()}
    with pytest.raises(ValueError, match=f"is {kind} .*, which is not applied here; merge it into its base"):
        run_node("BespokeInjectLora", model=model, lora_name="none", strength_model=1.0, lora=tensors)


def test_kohyas_oft_of_flux_is_refused_by_name(comfyui):
    with pytest.raises(InputError, match=r"kohya's OFT for Flux.*qkv\.oft_blocks\.0"):
        in_comfy_names({"oft_unet_double_blocks_0_img_attn_qkv.oft_blocks.0": torch.zeros(2, 4, 4)}, "a", {})


def test_a_diffusers_file_is_not_called_kohyas(run_node, model):
    up, down = torch.ones(32, 2), torch.ones(2, 32)
    for layer, program in (
        ("unet.down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_q", "diffusers"),
        ("base_model.model.down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_q", "PEFT"),
        ("lora_unet_" + TO_Q, "kohya (diffusers' layer names)"),
    ):
        lora = {f"{layer}.lora_B.weight": up, f"{layer}.lora_A.weight": down}
        report = run_node("BespokeInjectLora", model=model, lora_name="none", strength_model=1.0, lora=lora)[2]
        assert f"Names: {program}." in report


def test_no_part_that_is_applied_is_foreign():
    from bespoke.training.layer_names import parts

    known = [value for name, value in vars(parts).items() if name.isupper() and isinstance(value, str) and value]
    assert foreign_kind("lora_unet_x" + part for part in known) is None
