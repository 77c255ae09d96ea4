"""Adapters, the loop and the file formats, on torch alone."""

import json

import pytest
import torch
from bespoke.training import formats
from bespoke.training.adapters.lora import LowRankAdapters
from bespoke.training.config import TrainConfig
from bespoke.training.errors import InputError
from bespoke.training.loop import NotANumber, train
from bespoke.training.record import Run
from torch import nn

CPU = torch.device("cpu")


def adapters(rank=3, alpha=6.0):
    torch.manual_seed(0)
    layer = nn.Linear(10, 7).requires_grad_(False)
    return layer, LowRankAdapters({"a.to_q": layer}, rank, alpha, 0, CPU)


def config(**changes):
    return TrainConfig(
        **{"steps": 3, "learning_rate": 1e-2, "batch_size": 1, "seed": 0, "lr_schedule": "constant"} | changes
    )


def test_the_path_is_alpha_over_rank_times_up_down():
    layer, lora = adapters()
    x = torch.randn(2, 5, 10)
    base = layer(x)
    with lora.attached():
        assert torch.equal(layer(x), base)  # up starts at zero
        nn.init.normal_(lora.up["a.to_q"])
        expected = base + 2.0 * x @ lora.down["a.to_q"].T @ lora.up["a.to_q"].T
        assert torch.allclose(layer(x), expected, atol=1e-5)
    assert torch.equal(layer(x), base)
    assert not layer._forward_hooks
    assert sum(p.numel() for p in lora.parameters()) == 3 * (10 + 7)


def test_state_round_trip_and_start_is_decided_by_the_seed():
    _, lora = adapters()
    nn.init.normal_(lora.up["a.to_q"])
    state = lora.state_dict()
    assert set(state) == {"a.to_q.lora_up.weight", "a.to_q.lora_down.weight", "a.to_q.alpha"}
    assert state["a.to_q.alpha"].item() == 6.0
    _, other = adapters()
    assert torch.equal(other.down["a.to_q"], lora.down["a.to_q"])
    other.load_state_dict(state)
    assert torch.equal(other.up["a.to_q"], lora.up["a.to_q"])


def test_the_factor_that_starts_at_zero_learns_16_times_as_fast():
    """LoRA+; also where layers have a rate of their own. The run's rate is the first group's, which the page shows."""
    layers = {name: nn.Linear(4, 4) for name in ("unet.a", "text.b")}
    lora = LowRankAdapters(layers, 2, 2, 0, CPU, rates={"text.": 1e-5})
    rates = {id(parameter): rate for parameters, rate in lora.groups(1e-3) for parameter in parameters}
    assert len(rates) == 4
    assert rates[id(lora.down["unet.a"])] == pytest.approx(1e-3)
    assert rates[id(lora.up["unet.a"])] == pytest.approx(1.6e-2)
    assert rates[id(lora.down["text.b"])] == pytest.approx(1e-5)
    assert rates[id(lora.up["text.b"])] == pytest.approx(1.6e-4)
    assert lora.groups(1e-3)[0][1] == 1e-3


def test_convolutions_and_empty_targets_are_refused():
    with pytest.raises(InputError, match="convolution"):
        LowRankAdapters({"c": nn.Conv2d(3, 4, 3)}, 1, 1, 0, CPU)
    with pytest.raises(InputError, match="no layer"):
        LowRankAdapters({}, 1, 1, 0, CPU)


def test_accumulation_is_the_mean_gradient():
    layer, lora = adapters()
    nn.init.normal_(lora.up["a.to_q"])
    data = torch.randn(4, 10)
    start = lora.state_dict()

    def run(accumulation, batch):
        lora.load_state_dict(start)
        with lora.attached():

            def loss(i):
                return layer(data[i * batch : (i + 1) * batch]).square().mean()

            list(train(lora, loss, config(steps=1, gradient_accumulation=accumulation)))
        return lora.state_dict()

    whole, parts = run(1, 4), run(4, 1)
    for key in whole:
        assert torch.allclose(whole[key], parts[key], atol=1e-5)


def test_zero_gradient_is_an_error_at_the_first_step():
    _, lora = adapters()
    with pytest.raises(InputError, match="gradient is zero"):
        list(train(lora, lambda i: (lora.up["a.to_q"] * 0).sum() + (lora.down["a.to_q"] * 0).sum(), config()))
    with pytest.raises(InputError, match="no gradient"):
        list(train(lora, lambda i: lora.up["a.to_q"].sum(), config()))


def test_a_nan_stops_the_run_with_the_last_good_state():
    layer, lora = adapters()
    nn.init.normal_(lora.up["a.to_q"])

    def loss(i):
        value = layer(torch.ones(1, 10)).square().mean()
        return value * float("nan") if i == 2 else value

    steps, good = [], None

    def run():
        nonlocal good
        for step in train(lora, loss, config(steps=5)):
            steps.append(step.step)
            good = lora.state_dict()

    with lora.attached(), pytest.raises(NotANumber, match="step 3"):
        run()
    assert steps == [1, 2]
    assert all(torch.equal(good[key], value) for key, value in lora.state_dict().items())
    assert all(torch.isfinite(value).all() for value in good.values())


def test_learning_rates_follow_the_schedule():
    layer, lora = adapters()
    nn.init.normal_(lora.up["a.to_q"])

    def rates(**changes):
        with lora.attached():
            return [
                s.learning_rate
                for s in train(lora, lambda i: layer(torch.ones(1, 10)).square().mean(), config(**changes))
            ]

    # The rise has no step at rate 0, which would learn nothing.
    assert rates(steps=4, warmup_steps=2) == pytest.approx([1e-2 / 3, 2e-2 / 3, 1e-2, 1e-2])
    assert rates(steps=4, lr_schedule="linear") == pytest.approx([1e-2, 7.5e-3, 5e-3, 2.5e-3])
    assert rates(steps=2, lr_schedule="cosine") == pytest.approx([1e-2, 5e-3])


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"batch_size": 0}, "batch_size is 0"),
        ({"steps": 0}, "steps is 0"),
        ({"learning_rate": float("nan")}, "learning_rate is nan"),
        ({"learning_rate": -1.0}, "learning_rate is -1"),
        ({"lr_schedule": "wobbly"}, "wobbly"),
        ({"warmup_steps": 3}, "warmup_steps is 3 of 3"),
    ],
)
def test_bad_settings_name_the_value_and_the_mend(changes, word):
    with pytest.raises(InputError, match=word) as error:
        config(**changes)
    assert "give" in str(error.value) or "choose" in str(error.value)


LAYER = "input_blocks.1.1.transformer_blocks.0.attn2.to_q"
KEY = f"diffusion_model.{LAYER}"
NAMES = {
    KEY: {
        "kohya": "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_q",
        "diffusers": "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_q",
    }
}


def comfy_lora():
    return {
        f"diffusion_model.{LAYER}.lora_up.weight": torch.randn(6, 2),
        f"diffusion_model.{LAYER}.lora_down.weight": torch.randn(2, 6),
        f"diffusion_model.{LAYER}.alpha": torch.tensor(4.0),
    }


def test_key_formats():
    lora = comfy_lora()
    assert formats.to_format(lora, "comfy", {}) == lora
    kohya = formats.to_format(lora, "kohya", NAMES)
    assert set(kohya) == {f"{NAMES[KEY]['kohya']}.{part}" for part in ("lora_up.weight", "lora_down.weight", "alpha")}
    unnamed = formats.to_format(lora, "kohya", {})
    assert f"lora_unet_{LAYER.replace('.', '_')}.alpha" in unnamed
    with pytest.raises(InputError, match="wire the trainer's run"):
        formats.to_format(lora, "diffusers", {})


def test_diffusers_keeps_the_strength_without_alpha_and_comes_back():
    lora = comfy_lora()
    diffusers = formats.to_format(lora, "diffusers", NAMES)
    name = NAMES[KEY]["diffusers"]
    assert set(diffusers) == {f"{name}.lora_A.weight", f"{name}.lora_B.weight"}
    delta = diffusers[f"{name}.lora_B.weight"] @ diffusers[f"{name}.lora_A.weight"]
    prefix = f"diffusion_model.{LAYER}"
    assert torch.allclose(delta, 4.0 / 2 * lora[f"{prefix}.lora_up.weight"] @ lora[f"{prefix}.lora_down.weight"])
    back = formats.from_diffusers(diffusers)
    assert set(back) == {f"{NAMES[KEY]['kohya']}.lora_up.weight", f"{NAMES[KEY]['kohya']}.lora_down.weight"}


def test_metadata_is_what_others_read():
    run = Run(
        "lora-1",
        "lora",
        {"steps": 9, "learning_rate": 1e-3, "seed": 5, "loraplus_lr_ratio": 16.0},
        "base.safetensors",
        3,
        "teal",
        {"teal": 3},
    )
    run.losses = [1.0] * 9
    meta = formats.metadata(comfy_lora(), run, "my-lora", {"1": {}}, {"nodes": []})
    assert all(isinstance(value, str) for value in meta.values())
    assert (meta["ss_network_dim"], meta["ss_network_alpha"], meta["ss_steps"]) == ("2", "4.0", "9")
    assert json.loads(meta["ss_network_args"]) == {"loraplus_lr_ratio": "16.0"}
    assert meta["ss_sd_model_name"] == "base.safetensors"
    assert json.loads(meta["ss_tag_frequency"]) == {"images": {"teal": 3}}
    assert json.loads(meta["workflow"]) == {"nodes": []}
    assert formats.trigger_words(meta) == "teal"
    assert formats.trigger_words({"ss_tag_frequency": '{"a": {"x": 1, "y": 4}}'}) == "y, x"
    assert formats.trigger_words({"ss_tag_frequency": "[1"}) == ""
