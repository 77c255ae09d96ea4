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


# --- norms of large deltas from small files --------------------------------------------------------------------------

LAYER = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_q"


def drawn(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


def kron(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    return torch.kron(first.reshape(*first.shape, *[1] * (second.ndim - 2)), second)


def tucker(core: torch.Tensor, out: torch.Tensor, inner: torch.Tensor) -> torch.Tensor:
    return torch.einsum("pq...,po,qi->oi...", core, out, inner).contiguous()


SMALL = {
    "LoRA": (
        {"lora_up.weight": drawn(7, 3), "lora_down.weight": drawn(3, 5)},
        lambda p: p["lora_up.weight"] @ p["lora_down.weight"] * 2 / 3,
    ),
    "LoRA of a rank above both sides": (
        {"lora_up.weight": drawn(4, 9), "lora_down.weight": drawn(9, 5)},
        lambda p: p["lora_up.weight"] @ p["lora_down.weight"] * 2 / 9,
    ),
    "LoRA with a core": (
        {
            "lora_up.weight": drawn(7, 3, 1, 1),
            "lora_down.weight": drawn(2, 5, 1, 1),
            "lora_mid.weight": drawn(3, 2, 3, 3),
        },
        lambda p: tucker(p["lora_mid.weight"], p["lora_up.weight"][..., 0, 0].t(), p["lora_down.weight"][..., 0, 0]),
    ),
    "LoKr": ({"lokr_w1": drawn(2, 3), "lokr_w2": drawn(4, 5)}, lambda p: kron(p["lokr_w1"], p["lokr_w2"])),
    "LoKr of factors": (
        {"lokr_w1_a": drawn(4, 2), "lokr_w1_b": drawn(2, 3), "lokr_w2_a": drawn(4, 2), "lokr_w2_b": drawn(2, 5)},
        lambda p: kron(p["lokr_w1_a"] @ p["lokr_w1_b"], p["lokr_w2_a"] @ p["lokr_w2_b"]),
    ),
    "LoKr with a core": (
        {"lokr_w1": drawn(2, 3), "lokr_w2_a": drawn(2, 4), "lokr_w2_b": drawn(2, 5), "lokr_t2": drawn(2, 2, 3, 3)},
        lambda p: kron(p["lokr_w1"], tucker(p["lokr_t2"], p["lokr_w2_a"], p["lokr_w2_b"])),
    ),
    "LoHa": (
        {"hada_w1_a": drawn(7, 2), "hada_w1_b": drawn(2, 5), "hada_w2_a": drawn(7, 2), "hada_w2_b": drawn(2, 5)},
        lambda p: (p["hada_w1_a"] @ p["hada_w1_b"]) * (p["hada_w2_a"] @ p["hada_w2_b"]),
    ),
    "LoHa of rank 1 on long sides": (
        {"hada_w1_a": drawn(70, 1), "hada_w1_b": drawn(1, 50), "hada_w2_a": drawn(70, 1), "hada_w2_b": drawn(1, 50)},
        lambda p: 2 * (p["hada_w1_a"] @ p["hada_w1_b"]) * (p["hada_w2_a"] @ p["hada_w2_b"]),
    ),
    "LoHa with cores": (
        {
            **{"hada_w1_a": drawn(2, 7), "hada_w1_b": drawn(2, 5), "hada_t1": drawn(2, 2, 3, 3)},
            **{"hada_w2_a": drawn(2, 7) + 1, "hada_w2_b": drawn(2, 5) - 1, "hada_t2": drawn(2, 2, 3, 3) + 1},
        },
        lambda p: (
            tucker(p["hada_t1"], p["hada_w1_a"], p["hada_w1_b"]) * tucker(p["hada_t2"], p["hada_w2_a"], p["hada_w2_b"])
        ),
    ),
    "a whole difference": ({"diff": drawn(7, 5, 3, 3)}, lambda p: p["diff"]),
}


@pytest.mark.parametrize("kind", SMALL)
def test_norms_are_those_of_the_delta_itself(dial, kind):
    """The delta by the kind's own formula (LyCORIS, arXiv 2309.14859), alpha 2 where the formula has a rank."""
    parts, delta = SMALL[kind]
    alpha = {} if kind in ("LoKr", "a whole difference") else {f"{LAYER}.alpha": torch.tensor(2.0)}
    response = dial("small.safetensors", {f"{LAYER}.{part}": t.clone() for part, t in parts.items()} | alpha)
    assert response["rows"][0]["norms"]["query"] == pytest.approx(float(delta(parts).double().norm()), rel=1e-6)


N = 200_000
HUGE = {
    # The small matrices of all of these have 4e10 numbers, or the delta has.
    "a rank of 200,000": (
        {"lora_up.weight": torch.ones(1, N), "lora_down.weight": torch.full((N, 1), 0.5)},
        0.5 * N,
    ),
    "a Kronecker product of columns": ({"lokr_w1": torch.ones(N, 1), "lokr_w2": torch.full((N, 1), 3.0)}, 3.0 * N),
    "a LoHa of rank 1": (
        {
            **{"hada_w1_a": torch.ones(N, 1), "hada_w1_b": torch.ones(1, N)},
            **{"hada_w2_a": torch.ones(N, 1), "hada_w2_b": torch.full((1, N), 2.0)},
        },
        2.0 * N,
    ),
    "a core with a long side": (
        {
            **{"lora_up.weight": torch.ones(1, N, 1, 1), "lora_down.weight": torch.ones(1, 1, 1, 1)},
            "lora_mid.weight": torch.ones(N, 1, 1, 1),
        },
        1.0 * N,
    ),
    "a LoHa whose cores have a large kernel": (
        {
            **{"hada_w1_a": torch.ones(1, 1), "hada_w1_b": torch.ones(1, N), "hada_t1": torch.ones(1, 1, N, 1)},
            **{"hada_w2_a": torch.ones(1, 1), "hada_w2_b": torch.ones(1, N), "hada_t2": torch.ones(1, 1, N, 1)},
        },
        None,
    ),
    "a LoHa of 50,000 x 50,000 and rank 64": (
        {
            **{"hada_w1_a": torch.ones(50_000, 64), "hada_w1_b": torch.ones(64, 50_000)},
            **{"hada_w2_a": torch.ones(50_000, 64), "hada_w2_b": torch.ones(64, 50_000)},
        },
        None,
    ),
}


@pytest.mark.parametrize("bomb", HUGE)
def test_a_small_file_with_a_huge_delta_has_a_norm_or_none(dial, bomb):
    """By hand: all numbers of a delta are equal. None where even the norm would take minutes."""
    parts, norm = HUGE[bomb]
    response = dial("huge.safetensors", {f"{LAYER}.{part}": tensor for part, tensor in parts.items()})
    assert response["rows"][0]["norms"]["query"] == (norm and pytest.approx(norm, rel=1e-6))
