"""Files of OneTrainer: `ot_config` has its whole configuration where it was told to include it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .kohya import MIN_SNR_GAMMA, put_targets
from .sheet import Sheet, boolean, given, is_on, number, object_in, shown
from .spelling import note_up_rate, put_optimizer, put_precision, put_schedule, put_warmup

KEY = "ot_config"
MARKS = (KEY, "ot_revision", "ot_branch")
_PLAIN = {
    "batch_size": "batch_size",
    "gradient_accumulation_steps": "gradient_accumulation",
    "offset_noise_weight": "noise_offset",
    "min_noising_strength": "min_timestep",
    "max_noising_strength": "max_timestep",
}
_MODELS = ("unet", "transformer", "prior")
_TEXT_ENCODERS = ("text_encoder", "text_encoder_2", "text_encoder_3", "text_encoder_4")
_WEIGHTINGS = {
    "CONSTANT": "none",
    "P2": "P2",
    "MIN_SNR_GAMMA": "min-SNR",
    "DEBIASED_ESTIMATION": "debiased",
}
_SAMPLING = {"UNIFORM": "uniform", "LOGIT_NORMAL": "logit-normal"}
# {entry: (what OneTrainer has where it is not used, what to do)}
_ELSEWHERE: dict[str, tuple[Any, str]] = {
    "resolution": (None, "set resolution of Bespoke Image Folder"),
    "epochs": (None, "steps are epochs * pictures / (batch_size * gradient_accumulation), as many as you have; set it"),
    "learning_rate_cycles": (1, "no equivalent"),
    "learning_rate_min_factor": (0, "no equivalent: schedules here end at 0"),
    "learning_rate_scaler": ("NONE", "no equivalent: learning_rate is the file's, without the scaling"),
    "loss_scaler": ("NONE", "no equivalent"),
    "dropout_probability": (0, "a dropout in the adapters; the nearest are rank_dropout and module_dropout"),
    "generalized_offset_noise": (False, "no equivalent"),
    "perturbation_noise_weight": (0, "no equivalent: ip_noise_gamma changes the input alone, this the target too"),
    "rescale_noise_scheduler_to_zero_terminal_snr": (False, "wire ModelSamplingDiscrete with zsnr before model"),
    "timestep_shift": (1, "wire the model's ModelSampling node with this shift before model"),
    "dynamic_timestep_shifting": (False, "timestep_sampling shifted is the nearest"),
    "noising_weight": (0, "no equivalent"),
    "noising_bias": (0, "no equivalent"),
    "masked_training": (False, "give the pictures of Bespoke Image Folder masks"),
    "mae_strength": (0, "no equivalent"),
    "log_cosh_strength": (0, "no equivalent"),
    "text_encoder_layer_skip": (0, "wire CLIP Set Last Layer before clip; 1 there is stop_at_clip_layer -2"),
    "text_encoder_2_layer_skip": (0, "no equivalent: CLIP Set Last Layer moves all text encoders"),
    "layer_filter": ("", "name the layers in custom_targets"),
}


def read(meta: Mapping[str, str], sheet: Sheet) -> None:
    """Set what the configuration says."""
    config = object_in(meta.get(KEY))
    if not config:
        sheet.note(
            "OneTrainer wrote this file without its configuration (Include Config was NONE); only its tensors are read."
        )
        return
    _read_adapter(config, sheet)
    for key, widget in _PLAIN.items():
        if given(config, key) is not None:
            sheet.put(widget, config[key], key)
    if "clip_grad_norm" in config:
        sheet.put("max_grad_norm", config["clip_grad_norm"] or 0.0, "clip_grad_norm")
    if given(config, "train_dtype") is not None:
        put_precision(sheet, config["train_dtype"], "train_dtype")
    _read_optimizer(config, sheet)
    _read_rates(config, sheet)
    _read_loss(config, sheet)
    _read_parts(config, sheet)
    note_up_rate(sheet, None)
    for key, (unused, mend) in _ELSEWHERE.items():
        value = given(config, key)
        if is_on(value) and value != unused and number(value) != (unused if isinstance(unused, int) else "no"):
            sheet.note(f"{key} is {shown(value)}: {mend}.")


def _read_adapter(config: Mapping[str, Any], sheet: Sheet) -> None:
    kind = config.get("peft_type", "LORA")
    if kind == "LOKR":
        names = {"rank": "lokr_dim", "alpha": "lora_alpha", "lokr_factor": "lokr_decompose_factor"}
    else:
        names = {"rank": "lora_rank", "alpha": "lora_alpha"}
    adapter = {"LORA": "LoRA", "LOHA": "LoHa", "LOKR": "LoKr"}.get(kind) if isinstance(kind, str) else None
    if adapter is None:
        sheet.note(f"peft_type is {shown(kind)}, which is no adapter here; the nearest is LoRA.")
    else:
        is_dora = adapter == "LoRA" and is_on(config.get("lora_decompose"))
        sheet.put("adapter", "DoRA" if is_dora else adapter, "peft_type")
    for widget, key in names.items():
        if given(config, key) is not None:
            sheet.put(widget, config[key], key)
    if is_on(config.get("lora_decompose_output_axis")):
        sheet.note("lora_decompose_output_axis is on: no equivalent; adapter DoRA has one magnitude an output.")
    if given(config, "layer_filter_preset") is not None:
        put_targets(config["layer_filter_preset"], sheet)


def _read_optimizer(config: Mapping[str, Any], sheet: Sheet) -> None:
    optimizer = object_in(config.get("optimizer"))
    if isinstance(name := optimizer.get("optimizer"), str):
        decay = optimizer.get("weight_decay")
        put_optimizer(sheet, name, f"weight_decay={shown(decay)}" if is_on(decay) else "", "optimizer")
    if given(config, "learning_rate_scheduler") is not None:
        put_schedule(sheet, config["learning_rate_scheduler"], "learning_rate_scheduler")
    if "learning_rate_warmup_steps" in config:
        put_warmup(sheet, config["learning_rate_warmup_steps"], "learning_rate_warmup_steps")


def _read_rates(config: Mapping[str, Any], sheet: Sheet) -> None:
    """A part of the model has its own rate where it names one, else that of all."""
    own = [(f"{part}.learning_rate", object_in(config.get(part)).get("learning_rate")) for part in _MODELS]
    key, rate = next(((k, r) for k, r in own if r is not None), ("learning_rate", config.get("learning_rate")))
    if rate is not None:
        sheet.put("learning_rate", rate, key)
    trained = [part for part in _TEXT_ENCODERS if object_in(config.get(part)).get("train") is True]
    if "text_encoder" in config:
        sheet.values["train_text_encoder"] = "text_encoder" in trained
    if not trained:
        return
    first = object_in(config[trained[0]]).get("learning_rate")
    if first is not None:
        sheet.put("text_encoder_lr", first, f"{trained[0]}.learning_rate")
    for part in trained:
        fields = object_in(config[part])
        if fields.get("learning_rate") != first:
            sheet.note(f"{part}.learning_rate is {shown(fields.get('learning_rate'))}; text_encoder_lr is one for all.")
        if is_on(after := fields.get("stop_training_after")):
            sheet.note(f"{part}.stop_training_after is {shown(after)}: no equivalent; it learns to the end here.")


def _read_loss(config: Mapping[str, Any], sheet: Sheet) -> None:
    weighting = config.get("loss_weight_fn")
    if isinstance(weighting, str) and weighting in _WEIGHTINGS:
        sheet.put("loss_weighting", _WEIGHTINGS[weighting], "loss_weight_fn")
        own = {"MIN_SNR_GAMMA": MIN_SNR_GAMMA, "P2": 1.0}.get(weighting)
        if own is not None and number(strength := config.get("loss_weight_strength")) not in (None, own):
            sheet.note(f"loss_weight_strength is {shown(strength)}; here it is {own:g}.")
    elif weighting is not None:
        sheet.note(f"loss_weight_fn is {shown(weighting)}: no equivalent; see loss_weighting.")
    mse, huber = number(config.get("mse_strength")), number(config.get("huber_strength"))
    if huber and not mse:
        sheet.put("loss_type", "huber", "huber_strength")
        sheet.note(
            f"huber_delta is {shown(config.get('huber_delta'))} at all noise levels; here the threshold falls from 1 "
            "for clean pictures to huber_c for noise."
        )
    elif mse is not None:
        sheet.put("loss_type", "mse", "mse_strength")
        if huber:
            sheet.note(f"huber_strength is {huber:g} beside mse_strength: no equivalent; loss_type is one of them.")
    sampling = config.get("timestep_distribution")
    if isinstance(sampling, str) and sampling in _SAMPLING:
        sheet.put("timestep_sampling", _SAMPLING[sampling], "timestep_distribution")
    elif sampling is not None:
        sheet.note(f"timestep_distribution is {shown(sampling)}: no equivalent; see timestep_sampling.")


def _read_parts(config: Mapping[str, Any], sheet: Sheet) -> None:
    """Gradient checkpointing, of all parts up to version 9 of the configuration and of each later; the average."""
    whole = config.get("gradient_checkpointing")
    parts = [object_in(config.get(part)).get("gradient_checkpointing") for part in _MODELS]
    found = next((one for one in (whole, *parts) if one is not None), None)
    if found is not None:
        on = found in ("ON", "CPU_OFFLOADED") or boolean(found) is True
        sheet.put("gradient_checkpointing", on, "gradient_checkpointing")
    ema = config.get("ema")
    if ema == "OFF":
        sheet.default("ema")
    elif ema is not None and given(config, "ema_decay") is not None:
        sheet.put("ema", config["ema_decay"], "ema_decay")
        if number(every := config.get("ema_update_step_interval")) not in (None, 1):
            sheet.note(f"ema_update_step_interval is {shown(every)}; here the average moves in every step.")
