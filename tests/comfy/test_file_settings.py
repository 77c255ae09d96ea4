"""What a downloaded LoRA says about its training becomes values of the trainer's widgets.

The metadata are made by the documented keys of each program: kohya's sd-scripts (`train_network.py`), OneTrainer
(`TrainConfig` and `DtypeModelSaverMixin`), ai-toolkit (`BaseSDTrainProcess.update_training_metadata`), diffusers
(`LORA_ADAPTER_METADATA_KEY`) and PEFT (`LoraConfig`). The values expected are written by hand from what each entry
means.
"""

from __future__ import annotations

import json
import random

import pytest
import torch
from bespoke.nodes.lora.settings import routes
from bespoke.nodes.lora.settings.of_file import settings_of_file
from bespoke.nodes.lora.settings.routes import chosen, dropped
from bespoke.nodes.lora.settings.sheet import MOST_NOTES, WIDGETS
from bespoke.nodes.lora.training.node import trainer_inputs
from bespoke.nodes.lora.training.request import LoraRequest
from bespoke.training.config import TrainConfig
from bespoke.training.errors import InputError
from safetensors.torch import save_file

KOHYA = {
    "ss_network_module": "networks.lora",
    "ss_network_dim": "32",
    "ss_network_alpha": "16.0",
    "ss_network_dropout": "None",
    "ss_network_args": json.dumps(
        {"conv_dim": "8", "conv_alpha": "1", "rank_dropout": "0.1", "loraplus_lr_ratio": "4"}
    ),
    "ss_learning_rate": "0.0001",
    "ss_unet_lr": "0.0002",
    "ss_text_encoder_lr": "[5e-05, 5e-05]",
    "ss_max_train_steps": "1600",
    "ss_steps": "800",
    "ss_num_epochs": "10",
    "ss_batch_size_per_device": "2",
    "ss_total_batch_size": "8",
    "ss_gradient_accumulation_steps": "4",
    "ss_lr_scheduler": "cosine_with_restarts",
    "ss_lr_warmup_steps": "160",
    "ss_optimizer": "bitsandbytes.optim.adamw.AdamW8bit(weight_decay=0.1,betas=(0.9, 0.99))",
    "ss_mixed_precision": "bf16",
    "ss_full_bf16": "False",
    "ss_min_snr_gamma": "5.0",
    "ss_debiased_estimation": "False",
    "ss_noise_offset": "0.0357",
    "ss_multires_noise_iterations": "6",
    "ss_multires_noise_discount": "0.3",
    "ss_ip_noise_gamma": "None",
    "ss_loss_type": "smooth_l1",
    "ss_huber_c": "0.2",
    "ss_huber_schedule": "exponential",
    "ss_caption_dropout_rate": "0.05",
    "ss_max_grad_norm": "1.0",
    "ss_scale_weight_norms": "1.0",
    "ss_prior_loss_weight": "0.5",
    "ss_seed": "42",
    "ss_gradient_checkpointing": "True",
    "ss_clip_skip": "2",
    "ss_shuffle_caption": "True",
    "ss_num_reg_images": "0",
    "ss_sd_model_name": "sd_xl_base_1.0.safetensors",
}
ONE_TRAINER = {
    "peft_type": "LORA",
    "lora_rank": 16,
    "lora_alpha": 1.0,
    "lora_decompose": True,
    "layer_filter_preset": "attn-mlp",
    "learning_rate": 3e-4,
    "learning_rate_scheduler": "COSINE",
    "learning_rate_warmup_steps": 200.0,
    "epochs": 100,
    "batch_size": 4,
    "gradient_accumulation_steps": 2,
    "ema": "CPU",
    "ema_decay": 0.999,
    "ema_update_step_interval": 5,
    "train_dtype": "BFLOAT_16",
    "mse_strength": 1.0,
    "mae_strength": 0.0,
    "loss_weight_fn": "MIN_SNR_GAMMA",
    "loss_weight_strength": 5.0,
    "clip_grad_norm": 1.0,
    "offset_noise_weight": 0.05,
    "min_noising_strength": 0.0,
    "max_noising_strength": 0.5,
    "timestep_distribution": "LOGIT_NORMAL",
    "text_encoder": {"train": True, "learning_rate": 1e-5, "stop_training_after": 30},
    "unet": {"train": True, "learning_rate": 2e-4, "gradient_checkpointing": True},
    "text_encoder_layer_skip": 1,
    "resolution": "1024",
    "optimizer": {"optimizer": "PRODIGY", "weight_decay": 0.01},
}


def of(meta, shapes=None, alphas=()):
    return settings_of_file(meta, shapes or {}, alphas)


def test_the_settings_of_a_file_by_kohya():
    found = of(KOHYA)
    assert found.program == "kohya"
    assert found.values == {
        "adapter": "LoRA",
        "rank": 32,
        "alpha": 16.0,
        "targets": "attention + feed-forward",
        "conv_rank": 8,
        "rank_dropout": 0.1,
        "module_dropout": 0.0,
        "rslora": False,
        "learning_rate": 2e-4,  # the U-Net's own
        "train_text_encoder": True,
        "text_encoder_lr": 5e-5,
        "steps": 1600,
        "batch_size": 2,
        "gradient_accumulation": 4,
        "lr_schedule": "cosine with restarts",
        "warmup_steps": 160,
        "optimizer": "AdamW 8-bit",
        "precision": "bf16",
        "loss_weighting": "min-SNR",
        "noise_offset": 0.0357,
        "multires_noise": 0.3,
        "ip_noise_gamma": 0.0,
        "loss_type": "smooth l1",
        "huber_c": 0.2,
        "caption_dropout": 0.05,
        "max_grad_norm": 1.0,
        "max_norm": 1.0,
        "prior_weight": 0.5,
        "seed": 42,
        "gradient_checkpointing": True,
    }
    for part in (
        "LoRA+ ratio of 4; here the factor that starts at zero learns 16 times",
        "learning_rate 5e-05 gives that factor the file's rate",  # 2e-4 * 4 / 16
        "conv_alpha is 1; here convolutions have the strength of the other layers, which is conv_alpha 4",  # 16 * 8/32
        "weight_decay=0.1,betas=(0.9, 0.99)",
        "bitsandbytes",
        "ss_huber_schedule is exponential",
        "ss_multires_noise_iterations is 6",
        "ss_clip_skip is 2: wire CLIP Set Last Layer",
        "Bespoke Caption Variants",
        "saved after step 800 of 1600",
        "sd_xl_base_1.0.safetensors",
    ):
        assert any(part in note for note in found.notes), part
    # 8 pictures a step are 2 in each of 4 calls: one process. No regularisation pictures, no dropout of the factors.
    assert not any(word in note for note in found.notes for word in ("processes", "ss_num_reg", "ss_network_dropout"))


@pytest.mark.parametrize(
    ("module", "arguments", "adapter", "note"),
    [
        ("networks.lora_flux", {}, "LoRA", None),
        ("lycoris.kohya", {"algo": "locon"}, "LoRA", None),
        ("lycoris.kohya", {"algo": "lora", "dora_wd": "True"}, "DoRA", None),
        ("lycoris.kohya", {"algo": "loha"}, "LoHa", None),
        ("lycoris.kohya", {"algo": "lokr", "factor": "8"}, "LoKr", None),
        ("lycoris.kohya", {"algo": "lokr", "dora_wd": "True"}, "LoKr", "dora_wd with LoKr"),
        ("lycoris.kohya", {"algo": "diag-oft"}, None, "diag-oft"),
        ("networks.loha", {}, "LoHa", None),
        ("networks.oft", {}, None, "networks.oft"),
        ("networks.lora", {"down_lr_weight": "sine"}, "LoRA", "down_lr_weight is sine"),
    ],
)
def test_the_networks_of_kohya_and_lycoris(module, arguments, adapter, note):
    found = of({"ss_network_module": module, "ss_network_args": json.dumps(arguments)})
    assert found.values.get("adapter") == adapter
    assert found.values.get("lokr_factor") == (8 if "factor" in arguments else None)
    assert note is None or any(note in one for one in found.notes)


@pytest.mark.parametrize(
    ("entry", "optimizer"),
    [
        ("torch.optim.adamw.AdamW", "AdamW"),
        ("bitsandbytes.optim.adamw.PagedAdamW8bit", "AdamW 8-bit"),
        ("prodigyopt.prodigy.Prodigy(decouple=True)", "Prodigy"),
        ("schedulefree.adamw_schedulefree.AdamWScheduleFree", "schedule-free AdamW"),
        ("transformers.optimization.Adafactor(scale_parameter=False)", "Adafactor"),
        ("lion_pytorch.lion_pytorch.Lion", None),
    ],
)
def test_the_optimisers_of_kohya(entry, optimizer):
    found = of({"ss_optimizer": entry})
    assert found.values.get("optimizer") == optimizer
    assert (optimizer is None) == any("not in the list of optimizer" in note for note in found.notes)


def test_steps_of_a_file_that_names_epochs_alone():
    """10 epochs of 25 pictures in batches of 4, two batches a step: 7 batches and 4 steps an epoch, as kohya counts."""
    meta = {"ss_learning_rate": "1e-4", "ss_num_epochs": "10", "ss_num_train_images": "25"}
    meta |= {"ss_gradient_accumulation_steps": "2", "ss_datasets": json.dumps([{"batch_size_per_device": 4}])}
    assert of(meta).values["steps"] == 40
    assert of(meta).values["batch_size"] == 4


def test_a_flow_model_trained_by_kohya():
    meta = {"ss_learning_rate": "1e-4", "ss_weighting_scheme": "none", "ss_timestep_sampling": "shift"}
    meta |= {"ss_discrete_flow_shift": "3.1582", "ss_sigmoid_scale": "1.0", "ss_text_encoder_lr": "None"}
    found = of(meta)
    assert (found.values["timestep_sampling"], found.values["loss_weighting"]) == ("shifted", "none")
    assert any("ss_discrete_flow_shift is 3.1582" in note for note in found.notes)
    assert not any("sigmoid" in note for note in found.notes)


def test_a_share_of_the_steps_as_warm_up_and_one_that_is_too_long():
    meta = {"ss_learning_rate": "1e-4", "ss_max_train_steps": "500"}
    assert of(meta | {"ss_lr_warmup_steps": "0.1"}).values["warmup_steps"] == 50
    long = of(meta | {"ss_lr_warmup_steps": "500"})
    assert "warmup_steps" not in long.values
    assert any("has to be fewer" in note for note in long.notes)


def test_the_settings_of_a_file_by_onetrainer():
    found = of({"ot_branch": "master", "ot_revision": "abc", "ot_config": json.dumps(ONE_TRAINER)})
    assert found.program == "OneTrainer"
    assert found.values == {
        "adapter": "DoRA",
        "rank": 16,
        "alpha": 1.0,
        "targets": "attention + feed-forward",
        "learning_rate": 2e-4,  # the U-Net's own
        "lr_schedule": "cosine",
        "warmup_steps": 200,
        "batch_size": 4,
        "gradient_accumulation": 2,
        "ema": 0.999,
        "precision": "bf16",
        "loss_type": "mse",
        "loss_weighting": "min-SNR",
        "max_grad_norm": 1.0,
        "noise_offset": 0.05,
        "min_timestep": 0.0,
        "max_timestep": 0.5,
        "timestep_sampling": "logit-normal",
        "train_text_encoder": True,
        "text_encoder_lr": 1e-5,
        "gradient_checkpointing": True,
        "optimizer": "Prodigy",
    }
    for part in ("epochs is 100", "resolution is 1024", "text_encoder_layer_skip is 1", "stop_training_after is 30"):
        assert any(part in note for note in found.notes), part
    assert any("does not say steps" in note for note in found.notes)
    # Prodigy's package has one rate for all, so the trainer refuses the text encoder's own.
    assert any("refuses these values together" in note for note in found.notes)


def test_onetrainer_without_its_configuration():
    found = of({"ot_revision": "abc"}, {"lora_unet_a.lora_down.weight": [4, 320], "lora_unet_a.alpha": []}, [2.0])
    assert found.values == {
        "rank": 4,
        "alpha": 2.0,
        "adapter": "LoRA",
        "conv_rank": 0,
        "train_text_encoder": False,
    }
    assert any("Include Config was NONE" in note for note in found.notes)


def test_the_settings_of_a_file_by_ai_toolkit():
    """Its PEFT format has no alpha: it acts at strength 1."""
    meta = {"software": json.dumps({"name": "ai-toolkit"}), "training_info": json.dumps({"step": 2000, "epoch": 91})}
    shapes = {
        f"diffusion_model.double_blocks.{n}.img_attn.qkv.lora_{letter}.weight": shape
        for n in range(3)
        for letter, shape in (("A", [16, 3072]), ("B", [9216, 16]))
    }
    found = of(meta | {"ss_base_model_version": "flux1"}, shapes)
    assert found.program == "ai-toolkit"
    assert found.values == {
        "steps": 2000,
        "rank": 16,
        "alpha": 16.0,
        "adapter": "LoRA",
        "conv_rank": 0,
        "train_text_encoder": False,
    }
    assert any("job file" in note for note in found.notes)
    assert any("does not say learning_rate, batch_size" in note for note in found.notes)


@pytest.mark.parametrize(
    ("modules", "targets"),
    [
        (["to_k", "to_q", "to_v", "to_out.0"], "attention"),
        (["attn2.to_k", "attn2.to_v"], "cross-attention"),
        (["attn.to_k", "attn.to_q", "ff.net.0.proj", "ff.net.2"], "attention + feed-forward"),
        (["transformer_blocks.7.attn.to_k"], None),
        ("all-linear", None),
    ],
)
def test_the_settings_of_a_file_by_diffusers(modules, targets):
    config = {"r": 8, "lora_alpha": 16, "use_dora": True, "use_rslora": True, "lora_dropout": 0.1}
    meta = {f"transformer.{key}": value for key, value in (config | {"target_modules": modules}).items()}
    meta |= {"text_encoder.r": 4, "text_encoder.lora_alpha": 4}
    found = of({"format": "pt", "lora_adapter_metadata": json.dumps(meta)})
    assert found.program == "diffusers"
    expected = {"adapter": "DoRA", "rank": 8, "alpha": 16.0, "rslora": True, "train_text_encoder": True}
    assert found.values.items() >= expected.items()
    assert found.values.get("targets") == targets
    assert any("text_encoder has rank 4" in note for note in found.notes)
    assert any("lora_dropout is 0.1" in note for note in found.notes)
    assert any("target_modules" in note for note in found.notes) == (targets is None)


def test_a_file_of_our_own_comes_back_exactly():
    """Also the settings that are at their default and so not in the file."""
    train = TrainConfig(steps=250, learning_rate=3e-5, batch_size=3, seed=7, loss_type="huber", max_timestep=0.5)
    request = LoraRequest(train, targets="custom", custom_targets="*attn2.to_k : 16", rank=6, alpha=3.0, adapter="LoKr")
    found = of({"bespoke.settings": json.dumps(request.settings() | {"loraplus_lr_ratio": 16.0})})
    values = dict(found.values)
    names = TrainConfig.__dataclass_fields__
    again = LoraRequest(
        TrainConfig(**{name: value for name, value in values.items() if name in names}),
        **{name: value for name, value in values.items() if name not in names},
    )
    assert again == request
    assert found.notes == []
    assert values["rank_dropout"] == 0.0
    assert "patience" not in values
    assert "resume" not in values


def test_tensors_say_ranks_convolutions_and_the_text_encoder():
    shapes = {
        "lora_unet_down_blocks_0_attentions_0_proj_in.lora_down.weight": [8, 320, 1, 1],
        "lora_unet_down_blocks_0_resnets_0_conv1.lora_down.weight": [4, 320, 3, 3],
        "lora_unet_down_blocks_0_resnets_0_conv2.lora_down.weight": [4, 320, 3, 3],
        "lora_unet_mid_block_attentions_0_to_q.lora_down.weight": [8, 320],
        "lora_unet_mid_block_attentions_0_to_k.lora_down.weight": [2, 320],
        "lora_te_text_model_encoder_layers_0_mlp_fc1.lora_down.weight": [8, 768],
        "lora_te_text_model_encoder_layers_0_mlp_fc1.alpha": [],
    }
    found = of({"ss_network_module": "networks.lora", "ss_network_dim": "Dynamic"}, shapes, [4.0, 4.0, 1.0])
    values = found.values
    assert (values["rank"], values["conv_rank"], values["alpha"]) == (8, 4, 4.0)
    assert values["train_text_encoder"] is True
    assert any("most have rank 8, others 2 in 1" in note for note in found.notes)


def test_a_chosen_file_is_read_with_its_alphas_and_with_pefts_settings_beside_it(monkeypatch, tmp_path):
    """kohya's alpha is a tensor; PEFT's `save_pretrained` writes `adapter_config.json` beside the LoRA."""
    path = tmp_path / "adapter_model.safetensors"
    monkeypatch.setattr(routes, "find_file", lambda folder, name: (name, path))
    tensors = {"lora_unet_a.lora_down.weight": torch.zeros(4, 8), "lora_unet_a.alpha": torch.tensor(2.0)}
    save_file(tensors, path)
    assert chosen("x")["values"]["alpha"] == 2.0
    (tmp_path / "adapter_config.json").write_text(json.dumps({"r": 4, "lora_alpha": 6, "peft_type": "LORA"}))
    answer = chosen("x")
    assert (answer["program"], answer["values"]["alpha"]) == ("diffusers", 6.0)
    path.write_bytes(b"\xff" * 100)
    with pytest.raises(InputError, match="cannot be read as a safetensors file"):
        chosen("x")


def test_kohyas_first_and_last_layer_of_each_transformer_are_named():
    """sd-scripts' `Transformer2DModel` has proj_in and proj_out; here `CONVOLUTIONS` of the U-Net has them."""
    shapes = {"lora_unet_mid_block_attentions_0_proj_in.lora_down.weight": [8, 320, 1, 1]}
    found = of({"ss_network_module": "networks.lora"}, shapes)
    assert found.values["conv_rank"] == 0
    assert any("proj_in, proj_out" in note for note in found.notes)
    shapes["lora_unet_mid_block_resnets_0_conv1.lora_down.weight"] = [4, 320, 3, 3]
    assert not any("proj_in" in note for note in of({"ss_network_module": "networks.lora"}, shapes).notes)


HOSTILE = [
    *("", "None", "nan", "inf", "-1", "1e999", "9" * 5000, "0x10", "true", "[" * 100_000, "{}", "\ud800", "x" * 10**6),
    *('{"algo": {"algo": []}}', '[{"batch_size_per_device": [1]}]', "[]", "[null]", "[[]]", '{"r": 1e400}', "null"),
]
KEYS = [*KOHYA, "ss_datasets", "ss_total_batch_size", "ss_weighting_scheme", "ss_timestep_sampling", "ss_num_epochs"]
KEYS += ["ot_config", "lora_adapter_metadata", "training_info", "software", "bespoke.settings", "ss_num_train_images"]


@pytest.mark.parametrize("value", HOSTILE, ids=lambda value: value[:12].encode("ascii", "replace").decode())
def test_no_value_raises_or_gets_into_a_widget_that_cannot_take_it(value):
    for key in KEYS:
        check_valid(of({**KOHYA, key: value}))
        check_valid(of({key: value}))


def test_no_configuration_of_random_types_raises():
    draw = random.Random(0)
    odd = [None, True, -1, 0, 3, 0.5, 1e308, 10**400, "x", "1", [], [1], {}, {"learning_rate": []}, {"train": 1}, [[]]]
    fields = {
        "ot_config": [*ONE_TRAINER, "ema_decay", "huber_strength", "layer_filter"],
        "lora_adapter_metadata": [
            f"unet.{name}" for name in ("r", "lora_alpha", "peft_type", "target_modules", "alpha")
        ],
        "bespoke.settings": [*WIDGETS, "other"],
        "ss_network_args": ["algo", "conv_dim", "conv_alpha", "factor", "preset", "dora_wd", "loraplus_lr_ratio"],
        "training_info": ["step"],
    }
    for _ in range(300):
        for key, names in fields.items():
            values = {name: draw.choice(odd) for name in names if draw.random() < 0.5}
            text = json.dumps(values)
            check_valid(of({key: text}))
            check_valid(of({"ss_network_module": "lycoris.kohya", "ss_network_dim": "4", key: text}))


def check_valid(found) -> None:
    """Each value is one that the widget takes, and the answer can be sent."""
    specs = {item.id: item for item in trainer_inputs()}
    for name, value in found.values.items():
        spec = specs[name]
        options = getattr(spec, "options", None)
        if options:
            assert value in options, (name, value)
        elif getattr(spec, "min", None) is not None:
            assert type(value) in (int, float), (name, value)
            assert spec.min <= value <= spec.max, (name, value)
        else:
            assert isinstance(value, (bool, str)), (name, value)
    assert len(found.notes) <= MOST_NOTES + 1
    assert all(len(note) < 400 for note in found.notes), found.notes
    json.dumps(found.values).encode("utf-8")
    "".join(found.notes).encode("utf-8")


def test_every_widget_that_is_read_is_the_trainers():
    assert {item.id for item in trainer_inputs()} >= WIDGETS


def test_the_routes_read_a_header():
    body = json.dumps({"metadata": {"ss_network_dim": "4", "x": 3}, "shapes": {"a.lora_down.weight": [4, 8], "b": "x"}})
    answer = dropped(body.encode())
    assert (answer["program"], answer["values"]["rank"]) == ("kohya", 4)
    for wrong in (b"", b"[]", b'{"metadata": {}}', b'{"metadata": [], "shapes": {}}'):
        with pytest.raises(InputError):
            dropped(wrong)
    with pytest.raises(InputError, match="not in ComfyUI's loras folder"):
        chosen("gone.safetensors")
    big = json.dumps({"metadata": {"ss_seed": str(2**64 - 1), "ss_network_dim": "4"}, "shapes": {}})
    answer = dropped(big.encode())
    assert "seed" not in answer["values"]
    assert any(str(2**64 - 1) in note for note in answer["notes"])
