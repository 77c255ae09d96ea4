"""Files of kohya's sd-scripts and of programs that write its `ss_*` entries (musubi-tuner, LyCORIS, kohya_ss).

The entries are those of `train_network.py`; its options are written as text, "None" where they were not given.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from ....training.plain_json import read_json
from .sheet import Sheet, given, is_on, number, object_in, shown
from .spelling import note_up_rate, put_optimizer, put_precision, put_schedule, put_warmup

MARKS = ("ss_network_module", "ss_network_dim", "ss_learning_rate", "ss_unet_lr", "ss_optimizer")
# {entry: (widget, the value where the option was not given)}
_PLAIN: dict[str, tuple[str, Any]] = {
    "ss_noise_offset": ("noise_offset", 0.0),
    "ss_ip_noise_gamma": ("ip_noise_gamma", 0.0),
    "ss_scale_weight_norms": ("max_norm", 0.0),
    "ss_caption_dropout_rate": ("caption_dropout", 0.0),
    "ss_max_grad_norm": ("max_grad_norm", 0.0),
    "ss_prior_loss_weight": ("prior_weight", None),
    "ss_gradient_checkpointing": ("gradient_checkpointing", None),
    "ss_gradient_accumulation_steps": ("gradient_accumulation", None),
    "ss_seed": ("seed", None),
}
_LOSS_TYPES = {"l2": "mse", "huber": "huber", "smooth_l1": "smooth l1"}
_SCHEMES = {"sigma_sqrt": "sigma-sqrt", "cosmap": "cosmap"}
_SAMPLING = {"uniform": "uniform", "sigmoid": "logit-normal", "shift": "shifted", "flux_shift": "shifted"}
MIN_SNR_GAMMA, MULTIRES_ITERATIONS, HUBER_SCHEDULE = 5.0, 10.0, "snr"
_ELSEWHERE = {
    "ss_clip_skip": "wire CLIP Set Last Layer before clip, with stop_at_clip_layer at its negative",
    "ss_resolution": "set resolution of Bespoke Image Folder",
    "ss_flip_aug": "set flip of Bespoke Image Folder",
    "ss_shuffle_caption": "set shuffle of Bespoke Caption Variants",
    "ss_keep_tokens": "set keep_first of Bespoke Caption Variants",
    "ss_caption_tag_dropout_rate": "set drop_tags of Bespoke Caption Variants",
    "ss_num_reg_images": "wire pictures of the class into prior_images",
    "ss_zero_terminal_snr": "wire ModelSamplingDiscrete with zsnr before model",
    "ss_discrete_flow_shift": "wire the model's ModelSampling node with this shift before model",
    "ss_fp8_base": "load the model in fp8",
    "ss_network_dropout": "a dropout of the factors has no widget, the nearest are rank_dropout and module_dropout",
    "ss_caption_dropout_every_n_epochs": "no equivalent; caption_dropout is the nearest",
    "ss_adaptive_noise_scale": "no equivalent",
    "ss_noise_offset_random_strength": "no equivalent: noise_offset is the same in all steps",
    "ss_ip_noise_gamma_random_strength": "no equivalent: ip_noise_gamma is the same in all steps",
    "ss_full_fp16": "no equivalent: what is trained is float32 always",
    "ss_full_bf16": "no equivalent: what is trained is float32 always",
    "ss_color_aug": "no equivalent",
    "ss_random_crop": "no equivalent",
    "ss_face_crop_aug_range": "no equivalent",
}


def read(meta: Mapping[str, str], sheet: Sheet) -> None:
    """Set what the entries say."""
    arguments = object_in(meta.get("ss_network_args"))
    _read_network(meta, arguments, sheet)
    for key, (widget, otherwise) in _PLAIN.items():
        if given(meta, key) is not None:
            sheet.put(widget, meta[key], key)
        elif key in meta and otherwise is not None:
            sheet.put(widget, otherwise, key)
    _read_length(meta, sheet)
    _read_optimizer(meta, sheet)
    _read_rates(meta, sheet)
    _read_loss(meta, sheet)
    _read_flow(meta, sheet)
    note_up_rate(sheet, arguments.get("loraplus_unet_lr_ratio") or arguments.get("loraplus_lr_ratio"))
    for key, mend in _ELSEWHERE.items():
        if is_on(value := given(meta, key)):
            sheet.note(f"{key} is {shown(value)}: {mend}.")


# --- the network -----------------------------------------------------------------------------------------------------

_ALGORITHMS = {"lora": "LoRA", "locon": "LoRA", "loha": "LoHa", "lokr": "LoKr"}
_READ_ARGUMENTS = {
    *("algo", "dora_wd", "conv_dim", "conv_alpha", "factor", "rs_lora", "rank_dropout", "module_dropout", "preset"),
    *("loraplus_lr_ratio", "loraplus_unet_lr_ratio", "loraplus_text_encoder_lr_ratio"),
}
_PRESETS = {
    "full": "attention + feed-forward",
    "attn-mlp": "attention + feed-forward",
    "unet-transformer-only": "attention + feed-forward",
    "attn-only": "attention",
}


def _read_network(meta: Mapping[str, str], arguments: Mapping[str, Any], sheet: Sheet) -> None:
    for key, widget in (("ss_network_dim", "rank"), ("ss_network_alpha", "alpha")):
        # "Dynamic": the layers differ, the tensors say how.
        if given(meta, key) not in (None, "Dynamic", "dynamic"):
            sheet.put(widget, meta[key], key)
    if given(meta, "ss_network_module") is None:
        return
    _read_kind(meta["ss_network_module"], arguments, sheet)
    put_targets(arguments.get("preset", "full"), sheet)
    for widget, key in (("rank_dropout", "rank_dropout"), ("module_dropout", "module_dropout"), ("rslora", "rs_lora")):
        if given(arguments, key) is None:
            sheet.default(widget)
        else:
            sheet.put(widget, arguments[key], key)
    if given(arguments, "conv_dim") is not None:
        sheet.put("conv_rank", arguments["conv_dim"], "conv_dim")
        _compare_conv_alpha(arguments, sheet)
    if given(arguments, "factor") is not None:
        sheet.put("lokr_factor", arguments["factor"], "factor")
    for name, value in arguments.items():
        if name not in _READ_ARGUMENTS and is_on(given(arguments, name)):
            sheet.note(f"the network argument {shown(name)} is {shown(value)}: no equivalent.")


def _read_kind(module: str, arguments: Mapping[str, Any], sheet: Sheet) -> None:
    """Set `adapter`. Weight decomposition of a LoRA is DoRA."""
    name = module.lower()
    algorithm = str(arguments.get("algo", "lora")).lower() if name.startswith("lycoris") else name.rpartition(".")[2]
    if name.startswith(("networks.lora", "locon.", "networks.dylora")):
        algorithm = "lora"
    adapter = _ALGORITHMS.get(algorithm)
    if adapter is None:
        sheet.note(f"the network is {shown(module)} with {shown(algorithm)}, which is no adapter here; see adapter.")
        return
    is_dora = is_on(given(arguments, "dora_wd"))
    sheet.put("adapter", "DoRA" if is_dora and adapter == "LoRA" else adapter, "ss_network_module")
    if is_dora and adapter != "LoRA":
        sheet.note(f"dora_wd with {adapter}: no equivalent; here only LoRA can have it (adapter DoRA).")
    if name in ("networks.dylora", "networks.lora_fa"):
        sheet.note(f"the network is {module}: trained as a LoRA here, with all ranks and both factors in each step.")


def put_targets(preset: Any, sheet: Sheet) -> None:
    """Set `targets` by LyCORIS' preset, or OneTrainer's. kohya's own networks train what "full" names."""
    found = _PRESETS.get(preset) if isinstance(preset, str) else None
    if found is None:
        sheet.note(f"the preset of layers is {shown(preset)}; choose targets, or name the layers in custom_targets.")
    else:
        sheet.put("targets", found, "the preset of layers")


def _compare_conv_alpha(arguments: Mapping[str, Any], sheet: Sheet) -> None:
    own, values = number(arguments.get("conv_alpha")), sheet.values
    if own is None or not {"rank", "alpha", "conv_rank"} <= values.keys() or not values["conv_rank"]:
        return
    share = values["conv_rank"] / values["rank"]
    expected = values["alpha"] * (math.sqrt(share) if values.get("rslora") else share)
    if not math.isclose(own, expected, rel_tol=1e-3):
        sheet.note(
            f"conv_alpha is {own:g}; here convolutions have the strength of the other layers, which is conv_alpha "
            f"{expected:g}."
        )


# --- how long, how fast ----------------------------------------------------------------------------------------------


def _read_length(meta: Mapping[str, str], sheet: Sheet) -> None:
    """Set `batch_size` and `steps`: those that were asked for, else epochs * batches / accumulation."""
    batch = given(meta, "ss_batch_size_per_device") or _batch_in_datasets(meta, sheet)
    if batch is not None:
        sheet.put("batch_size", batch, "ss_batch_size_per_device")
    steps, done = given(meta, "ss_max_train_steps"), given(meta, "ss_steps")
    if steps is not None:
        sheet.put("steps", steps, "ss_max_train_steps")
    elif (counted := _counted_steps(meta, sheet)) is not None:
        sheet.put("steps", counted, "ss_num_epochs times the batches of an epoch")
    elif done is not None:
        sheet.put("steps", done, "ss_steps")
    steps, saved = sheet.values.get("steps"), number(done)
    if steps is not None and saved is not None and 0 < saved < steps:
        sheet.note(f"The file was saved after step {saved:g} of {steps}.")
    total, one = number(given(meta, "ss_total_batch_size")), sheet.values.get("batch_size")
    accumulated = sheet.values.get("gradient_accumulation", 1)
    if total is not None and one and total > one * accumulated:
        sheet.note(
            f"ss_total_batch_size is {total:g}: {total / one / accumulated:g} processes trained it. For the same batch "
            "raise gradient_accumulation, or export a job for several processes."
        )


def _batch_in_datasets(meta: Mapping[str, str], sheet: Sheet) -> Any:
    """The batch size of the first of several datasets."""
    try:
        datasets = read_json(meta.get("ss_datasets", "[]"))
    except ValueError:
        return None
    found = (
        [one["batch_size_per_device"] for one in datasets if isinstance(one, dict) and "batch_size_per_device" in one]
        if isinstance(datasets, list)
        else []
    )
    if any(one != found[0] for one in found):
        sheet.note(
            f"The file's {len(found)} datasets have batches of different sizes; batch_size has that of the first."
        )
    return found[0] if found else None


def _counted_steps(meta: Mapping[str, str], sheet: Sheet) -> int | None:
    epochs, batches = number(given(meta, "ss_num_epochs")), number(given(meta, "ss_num_batches_per_epoch"))
    pictures, batch = number(given(meta, "ss_num_train_images")), sheet.values.get("batch_size")
    if batches is None and pictures is not None and batch:
        batches = math.ceil(pictures / batch)
    if not epochs or not batches:
        return None
    return int(epochs) * math.ceil(batches / sheet.values.get("gradient_accumulation", 1))


def _read_optimizer(meta: Mapping[str, str], sheet: Sheet) -> None:
    name = given(meta, "ss_optimizer")
    if name is not None:
        kind, _, arguments = name[:1000].partition("(")
        put_optimizer(sheet, kind.strip(), arguments.removesuffix(")").strip(), "ss_optimizer")
    schedule = given(meta, "ss_lr_scheduler")
    if schedule is not None:
        put_schedule(sheet, schedule, "ss_lr_scheduler")
    if "ss_lr_warmup_steps" in meta:
        # kohya's "constant" has no warm-up, whatever the number.
        put_warmup(sheet, 0 if schedule == "constant" else given(meta, "ss_lr_warmup_steps") or 0, "ss_lr_warmup_steps")
    if (precision := given(meta, "ss_mixed_precision")) is not None:
        put_precision(sheet, precision, "ss_mixed_precision")
    elif meta.get("ss_mixed_precision"):
        put_precision(sheet, "no", "ss_mixed_precision")


def _read_rates(meta: Mapping[str, str], sheet: Sheet) -> None:
    key = "ss_unet_lr" if given(meta, "ss_unet_lr") is not None else "ss_learning_rate"
    if given(meta, key) is not None:
        sheet.put("learning_rate", meta[key], key)
    rate = given(meta, "ss_text_encoder_lr")
    if rate is None:
        return
    try:
        values = read_json(rate)
    except ValueError:
        values = rate
    rates = values if isinstance(values, list) else [values]
    if not rates:
        return
    if any(one != rates[0] for one in rates):
        sheet.note(f"ss_text_encoder_lr is {shown(rate)}; text_encoder_lr has the first of them.")
    if sheet.put("text_encoder_lr", rates[0], "ss_text_encoder_lr"):
        sheet.values["train_text_encoder"] = sheet.values["text_encoder_lr"] > 0


# --- the loss --------------------------------------------------------------------------------------------------------


def _read_loss(meta: Mapping[str, str], sheet: Sheet) -> None:
    gamma, debiased = number(given(meta, "ss_min_snr_gamma")), is_on(given(meta, "ss_debiased_estimation"))
    if gamma:
        sheet.put("loss_weighting", "min-SNR", "ss_min_snr_gamma")
        if gamma != MIN_SNR_GAMMA:
            sheet.note(f"ss_min_snr_gamma is {gamma:g}; here gamma is {MIN_SNR_GAMMA:g}.")
        if debiased:
            sheet.note("ss_debiased_estimation is on beside min-SNR; here one loss_weighting counts.")
    elif debiased:
        sheet.put("loss_weighting", "debiased", "ss_debiased_estimation")
    elif "ss_min_snr_gamma" in meta:
        sheet.put("loss_weighting", "none", "ss_min_snr_gamma")
    if (kind := given(meta, "ss_loss_type")) is not None:
        if kind in _LOSS_TYPES:
            sheet.put("loss_type", _LOSS_TYPES[kind], "ss_loss_type")
        else:
            sheet.note(f"ss_loss_type is {shown(kind)}: no equivalent; see loss_type.")
    if sheet.values.get("loss_type") in ("huber", "smooth l1"):
        if given(meta, "ss_huber_c") is not None:
            sheet.put("huber_c", meta["ss_huber_c"], "ss_huber_c")
        if given(meta, "ss_huber_schedule") not in (None, HUBER_SCHEDULE):
            sheet.note(f"ss_huber_schedule is {shown(meta['ss_huber_schedule'])}; here it is {HUBER_SCHEDULE}.")
    _read_multires(meta, sheet)


def _read_multires(meta: Mapping[str, str], sheet: Sheet) -> None:
    iterations = number(given(meta, "ss_multires_noise_iterations"))
    if iterations:
        if given(meta, "ss_multires_noise_discount") is not None:
            sheet.put("multires_noise", meta["ss_multires_noise_discount"], "ss_multires_noise_discount")
        if iterations != MULTIRES_ITERATIONS:
            sheet.note(f"ss_multires_noise_iterations is {iterations:g}; here up to {MULTIRES_ITERATIONS:g} are made.")
    elif "ss_multires_noise_iterations" in meta:
        sheet.default("multires_noise")


def _read_flow(meta: Mapping[str, str], sheet: Sheet) -> None:
    """What kohya's trainers of flow models write."""
    if (scheme := given(meta, "ss_weighting_scheme")) in _SCHEMES:
        sheet.put("loss_weighting", _SCHEMES[scheme], "ss_weighting_scheme")
    elif scheme is not None:
        sheet.note(f"ss_weighting_scheme is {shown(scheme)}: no equivalent; see loss_weighting and timestep_sampling.")
    elif "ss_weighting_scheme" in meta:
        sheet.put("loss_weighting", "none", "ss_weighting_scheme")
    sampling = given(meta, "ss_timestep_sampling")
    if sampling in _SAMPLING:
        sheet.put("timestep_sampling", _SAMPLING[sampling], "ss_timestep_sampling")
        if sampling in ("sigmoid", "shift", "flux_shift") and number(given(meta, "ss_sigmoid_scale")) not in (None, 1):
            sheet.note(f"ss_sigmoid_scale is {shown(meta['ss_sigmoid_scale'])}; here it is 1.")
    elif sampling is not None:
        sheet.note(f"ss_timestep_sampling is {shown(sampling)}: no equivalent; see timestep_sampling.")
