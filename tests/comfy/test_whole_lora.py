"""A LoRA of which more than 5 % of the squared change has no place in the model is refused, unless `partial` is on.

Oracle: arithmetic by hand. Each layer's factors are `size` in one cell, so that its squared change is size^2.
"""

import pytest
import tiny
import torch
from bespoke.nodes.lora import whole
from bespoke.nodes.lora.files import in_comfy_names
from bespoke.nodes.lora.match import starting_parts
from bespoke.nodes.lora.whole import share_of, squared_change
from bespoke.training.errors import InputError
from bespoke.training.layer_names import parts
from bespoke.training.layer_names.parts import layers_of

OURS = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_q"
ALSO = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_out_0"
NOWHERE = "lora_unet_down_blocks_7_attentions_0_transformer_blocks_0_attn2_to_q"
TEXT = "lora_te_text_model_encoder_layers_0_self_attn_q_proj"


def layer(name, size, width=tiny.WIDTH, alpha=None):
    up, down = torch.zeros(width, 2), torch.zeros(2, width)
    up[0, 0], down[0, 0] = size, 1.0
    out = {f"{name}.lora_up.weight": up, f"{name}.lora_down.weight": down}
    return out | ({} if alpha is None else {f"{name}.alpha": torch.tensor(alpha)})


@pytest.fixture(scope="module")
def models(comfyui):
    return tiny.patcher(tiny.SMALLEST), tiny.clip()


def inject(run_node, models, lora, clip=False, **more):
    return run_node(
        "BespokeInjectLora",
        model=models[0],
        lora_name="none",
        strength_model=1.0,
        lora=lora,
        **({"clip": models[1]} if clip else {}),
        **more,
    )


def test_shares_by_hand(comfyui):
    # 3^2 + 4^2 * (alpha 1 / rank 2)^2 = 9 + 4, and a bias of norm 2.
    lora = in_comfy_names(layer(OURS, 3.0) | layer(NOWHERE, 4.0, alpha=1.0), "a", {})
    assert share_of(lora, {NOWHERE}) == pytest.approx(4 / 13)
    lora = in_comfy_names({**lora, f"{OURS}.diff_b": torch.tensor([0.0, 2.0])}, "a", {})
    assert share_of(lora, {NOWHERE}) == pytest.approx(4 / 17)
    assert share_of(lora, {NOWHERE}, leave_out={OURS}) == 1.0
    assert squared_change(OURS, layers_of(lora)[OURS]) == pytest.approx(13)
    assert squared_change(OURS, {parts.NORM_WEIGHT: torch.tensor([3.0, 4.0])}) == pytest.approx(25)
    assert squared_change(OURS, {parts.DIFF: torch.full((2, 3), 2.0)}) == pytest.approx(24)
    # A rotation's change depends on the base: such a layer counts as the mean of the others.
    rotation = {f"{ALSO}.oft_blocks": torch.ones(4, 8, 8)}
    lora = in_comfy_names(layer(OURS, 3.0) | rotation | layer(NOWHERE, 1.0), "a", {})
    assert share_of(lora, {ALSO}) == pytest.approx(5 / 15)


def test_few_norms_are_computed_where_a_part_of_them_decides(comfyui, monkeypatch):
    """Counted by hand: 0.1^2 is at most 5 % of what it makes with the first layer's 1, so the others are not needed."""
    names = [f"lora_unet_down_blocks_{i}_attentions_0_transformer_blocks_0_attn2_to_k" for i in range(50)]
    lora = in_comfy_names({key: t for name in names for key, t in layer(name, 1.0).items()}, "a", {})
    lora = in_comfy_names({**lora, **layer(NOWHERE, 0.1)}, "a", {})
    computed = []
    norm = whole.kinds.norm
    monkeypatch.setattr(whole.kinds, "norm", lambda name, parts: computed.append(name) or norm(name, parts))
    whole.check_whole(lora, [NOWHERE], [], "", "")
    assert len(computed) == 2
    with pytest.raises(InputError, match="3 of 51 layers .* 6% of its squared change"):
        whole.check_whole(lora, names[:3], [], "", "")


@pytest.mark.parametrize("partial", [False, True])
@pytest.mark.parametrize(("size", "share"), [(0.2, 0.0385), (0.22, 0.0462), (0.24, 0.0545), (2.0, 0.8)])
def test_a_part_of_a_lora_is_refused(run_node, models, size, share, partial):
    assert size**2 / (size**2 + 1) == pytest.approx(share, abs=1e-3)
    lora = layer(OURS, 0.6) | layer(ALSO, 0.8) | layer(NOWHERE, size)
    if share > 0.05 and not partial:
        with pytest.raises(ValueError, match=f"1 of 3 layers .* {share:.0%} of its squared change, such as .*blocks_7"):
            inject(run_node, models, lora)
        assert not models[0].patches
        return
    _, _, report, *_ = inject(run_node, models, lora, partial=partial)
    assert "Applied to 2 layers of the model" in report
    assert "1 layers of the file matched nothing here: lora_unet_down_blocks_7" in report


def test_text_encoder_layers_without_a_clip_do_not_count(run_node, models):
    lora = layer(OURS, 1.0) | layer(TEXT, 9.0, tiny.CONTEXT)
    assert "no clip is wired in" in inject(run_node, models, lora)[2]
    assert "1 of the text encoder" in inject(run_node, models, lora, clip=True)[2]
    # A text encoder that lacks the layer has no place for it, and the text encoder's other layers count then.
    deeper = layer(TEXT.replace("layers_0", "layers_9"), 0.5, tiny.CONTEXT)
    with pytest.raises(ValueError, match="1 of 2 layers .* 20% of its squared change"):
        inject(run_node, models, layer(OURS, 1.0) | deeper, clip=True)
    assert "no clip is wired in" in inject(run_node, models, layer(OURS, 1.0) | deeper)[2]


def test_a_training_does_not_start_from_a_part(models):
    with pytest.raises(InputError, match="80% of its squared change.*start from another LoRA"):
        starting_parts(layer(OURS, 1.0) | layer(NOWHERE, 2.0), models[0], None)
    assert len(starting_parts(layer(OURS, 1.0) | layer(NOWHERE, 0.1), models[0], None)) == 3
