"""The table behind the heatmap on the LoRA nodes, against norms computed by hand."""

from __future__ import annotations

import pytest
import torch
from bespoke.training.errors import InputError
from safetensors.torch import save_file


@pytest.fixture
def dial(comfyui):
    """dial(name, tensors) -> the route's response for a file with these tensors."""
    from bespoke.nodes.lora.injection import routes

    def answer(name, tensors):
        save_file(tensors, comfyui / "models" / "loras" / name)
        return routes.answer_to(name)

    return answer


def pair(layer: str, up: float, alpha: float = 2.0, rank: int = 2) -> dict[str, torch.Tensor]:
    """The tensors of a layer whose change has 3 x 5 numbers, each up * rank * alpha / rank = up * alpha."""
    return {
        f"{layer}.lora_up.weight": torch.full((3, rank), up),
        f"{layer}.lora_down.weight": torch.ones(rank, 5),
        f"{layer}.alpha": torch.tensor(alpha),
    }


def test_norms_names_and_order(dial):
    attention = "lora_unet_{}_attentions_0_transformer_blocks_0_attn{}_to_{}"
    tensors = (
        pair(attention.format("up_blocks_1", 2, "q"), 1.0)
        | pair(attention.format("mid_block", 2, "v"), 3.0)
        | pair(attention.format("mid_block", 1, "v"), 4.0)  # with the other one, the root of the sum of squares is 5
        | pair("lora_unet_mid_block_attentions_0_transformer_blocks_0_ff_net_2", 1.0)
        | pair("lora_te_text_model_encoder_layers_3_self_attn_k_proj", 1.0)
    )
    response = dial("dial.safetensors", tensors)
    assert response["columns"] == ["query", "key", "value", "rest"]
    assert [row["block"] for row in response["rows"]] == ["mid", "up.1", "text"]
    norm = (3 * 5) ** 0.5 * 2  # of a change with up = 1
    mid, up, text = response["rows"]
    assert mid["norms"] == pytest.approx({"value": 5 * norm, "rest": norm})
    assert up["norms"] == pytest.approx({"query": norm})
    assert text["norms"] == pytest.approx({"key": norm})
    assert mid["names"] == [["mid"]]
    assert up["names"] == [["up.1", "out.3"]]
    assert text["names"] == []  # `blocks` does not apply to it


def test_dora_has_no_norm(dial):
    layer = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_q"
    response = dial("dora.safetensors", pair(layer, 1.0) | {f"{layer}.dora_scale": torch.ones(1, 5)})
    assert response["rows"][0]["norms"] == {"query": None}


def test_missing_and_unsuitable_files_are_refused(dial):
    from bespoke.nodes.lora.injection.routes import answer_to

    for name in ("gone.safetensors", "../../secret.safetensors", ""):
        with pytest.raises(InputError, match="loras folder"):
            answer_to(name)
    with pytest.raises(InputError, match="no part of a LoRA"):
        dial("other.safetensors", {"weight": torch.ones(2)})
