"""The widgets that both trainers share, with the config's ranges and choices, and the config made of their values."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import fields
from typing import Any

from comfy_api.latest import io

from ...training.config import CHOICES, PRECISIONS, RANGES, TrainConfig
from ...training.errors import InputError
from ...training.sample_prompts import parse_sample_prompts
from .types import Images

ADVANCED: dict[str, Any] = {"optional": True, "advanced": True}

TOOLTIPS = {
    "steps": "Optimiser steps. More is not better: watch for images that only repeat the training set.",
    "batch_size": "Pictures per model call. Larger is steadier and needs more memory.",
    "validation": (
        "How many of the pictures are held out: not trained on, but scored at fixed noise levels, so that the curve "
        "says when to stop. Of fewer than ten pictures none is spared: up to three trainings each leave out other "
        "ones, then one on all goes as far as was best, which takes up to four times as long. 0 is off."
    ),
    "lr_schedule": "How the learning rate falls over the steps.",
    "warmup_steps": (
        "Steps over which the learning rate rises evenly to its highest; the first of them learns a little already."
    ),
    "optimizer": (
        "AdamW is the safe choice. Adafactor needs less memory, SGD the least, and a far higher learning rate. Prodigy "
        "(built in) finds the learning rate itself. Muon steps equally far in every direction of a matrix; it takes "
        "AdamW's rates. These need a package that you install: AdamW 8-bit (bitsandbytes) keeps a quarter of what "
        "AdamW keeps, schedule-free AdamW (schedulefree) averages instead of a schedule, Prodigy (prodigyopt)."
    ),
    "gradient_accumulation": "Model calls per step: a larger batch than the memory holds, at the cost of time.",
    "max_grad_norm": (
        "Longer gradients are scaled down to this, which keeps single odd batches from doing harm. 0 is off."
    ),
    "loss_weighting": (
        "Which noise levels count how much. none: all alike. min-SNR: the nearly clean ones less, often faster. "
        "debiased: the noisy ones more, for composition. P2: the nearly clean ones far less. cosmap: the velocity's "
        "error, the middle a little more. sigma-sqrt: the nearly clean ones by far the most, for fine detail."
    ),
    "timestep_sampling": (
        "Which noise levels are trained on. importance: all alike, but drawn as often as they matter, which learns "
        "sooner where the model predicts noise (SD1.5, SDXL) and is nearly uniform elsewhere. uniform: all alike. "
        "logit-normal: more of the middle, for flow models. shifted: more of the noisy end, for large pictures."
    ),
    "noise_offset": (
        "Shifts the mean of the noise at random, per channel, by this standard deviation. About 0.05 lets very dark "
        "and very bright pictures be learned; 0 is off. Not for flow models."
    ),
    "caption_dropout": (
        "The share of captions replaced by the empty prompt, which lets a style show without its trigger word."
    ),
    "ema": (
        "The result is a running average of the steps, and this the share of it that each step keeps: 0.99 averages "
        "about a hundred steps, which is steadier with small batches. 0 is off."
    ),
    "precision": "What the frozen models compute in. What is trained is float32 always.",
    "gradient_checkpointing": "Computes each block anew in the backward pass: much less memory, about a third slower.",
    "save_every": (
        "Steps between files written on the way. 0 writes one only where the run is interrupted or fails. The state to "
        "go on from is saved every half minute in any case."
    ),
    "sample_every": (
        "Steps between sample images, drawn with the sampler settings of this graph's KSampler and a fixed seed. 0 "
        "draws none."
    ),
    "sample_prompt": (
        "What the sample images show, a prompt a line; each is a row of pictures. Empty takes the first picture's "
        "caption. --n, --w, --h, --d, --l, --s behind a prompt set its negative prompt, size, seed, cfg and steps, --f "
        "the frames of a film."
    ),
    "keep": "With held-out pictures: hand on the state that scored best, or the last one.",
    "score_pictures": (
        "Measures the loss of every trained picture before and after the training, on fixed noise levels. The report "
        "and Bespoke Inspect Run then name the pictures that are much harder than the rest, whose caption does not "
        "fit, or that were learned by heart. auto: where that makes the run at most 5 % longer. It changes nothing "
        "that is learned."
    ),
    "min_timestep": (
        "Only noise levels from this one up are trained on: 0 is clean, 1 is noise (timestep / 1000; for flow models "
        "sigma after the shift). 0.5 learns layout and shapes and leaves the detail as it is."
    ),
    "max_timestep": (
        "Only noise levels up to this one are trained on: 0 is clean, 1 is noise (timestep / 1000; for flow models "
        "sigma after the shift). 0.5 learns detail and texture and leaves the layout as it is. With 0 and 1 an expert "
        "of Wan 2.2 is trained on its own part."
    ),
    "loss_type": (
        "How an error counts. mse: squared, the usual one. huber and smooth l1: large errors count in proportion only, "
        "so that a flawed picture among the others does less harm; huber learns more slowly."
    ),
    "huber_c": (
        "For huber and smooth l1: how large an error counts as large at pure noise, in standard deviations; at clean "
        "levels it is 1. Smaller forgives more. mse ignores it."
    ),
    "multires_noise": (
        "Adds up to six coarser noises to the noise, each with this share of the one before, so that light and dark of "
        "large areas can be learned. 0.1 to 0.3 for small sets; 0 is off. Not for flow models."
    ),
    "ip_noise_gamma": (
        "Adds noise to what the model sees but not to what it has to predict, as a share of the noise, which prepares "
        "the model for its own errors while sampling. 0.1 is usual; 0 is off."
    ),
    "resume": (
        "Go on where the same request was interrupted, or with more steps. Off begins anew; the earlier state is set "
        "aside, not deleted."
    ),
    "compile": (
        "For graphics cards with Triton: compiles the model's blocks before the first step, which then starts later. "
        "Where that cannot be done, the report says so and the training runs as without. Same result but for rounding."
    ),
    "stop": (
        "Whether the training may end before its last step, which needs held-out pictures. when validation turns: "
        "after two validations in a row whose loss is higher than the lowest by more than noise, or ten (half of the "
        "run) without a new lowest. when nothing changes: also after five in a row without a change beyond noise. The "
        "best state is handed on as ever (keep)."
    ),
    "prior_weight": "What the loss on prior_images counts beside that on images.",
}
STEP = {"max_grad_norm": 0.1, "noise_offset": 0.01, "caption_dropout": 0.01, "ema": 0.001, "prior_weight": 0.1}
BOOLEANS = {"gradient_checkpointing": False, "resume": True, "compile": False}
_DEFAULTS = {f.name: f.default for f in fields(TrainConfig)}


def widget(name: str, tooltip: str = "", default: Any = None, **more: Any) -> io.Input:
    """The widget of a trainer's setting, with the kind, range and default that the config has.

    tooltip: "" takes that of `TOOLTIPS`. default: None takes the config's. more: further arguments of the input.
    """
    tip = tooltip or TOOLTIPS[name]
    default = _DEFAULTS.get(name) if default is None else default
    if name in BOOLEANS:
        return io.Boolean.Input(name, default=BOOLEANS[name], tooltip=tip, **more)
    choices = PRECISIONS if name == "precision" else CHOICES.get(name)
    if choices:
        return io.Combo.Input(
            name, options=list(choices), default=choices[0] if name == "precision" else default, tooltip=tip, **more
        )
    if name == "sample_prompt":
        return io.String.Input(name, default="", multiline=True, tooltip=tip, **more)
    low, high = RANGES[name]
    if isinstance(low, int) and isinstance(high, int):
        return io.Int.Input(name, default=default, min=low, max=high, tooltip=tip, **more)
    step = more.pop("step", STEP.get(name, 0.01))
    return io.Float.Input(name, default=default, min=low, max=high, step=step, round=False, tooltip=tip, **more)


def advanced(names: Iterable[str]) -> list[io.Input]:
    """The settings' widgets, optional and in the node's advanced section."""
    return [widget(name, **ADVANCED) for name in names]


def seed_widget(tooltip: str) -> io.Input:
    """The seed, which does not change by itself after a run, since a change starts a long training."""
    return widget("seed", tooltip, default=0, control_after_generate=False)


def validation_images() -> io.Input:
    """The optional input of pictures that are scored instead of some of the training set."""
    return Images.Input(
        "validation_images", optional=True, tooltip="Pictures to score instead of some of the training set."
    )


def config_of(values: Mapping[str, Any]) -> TrainConfig:
    """The config of a node's inputs by name. Inputs that are no fields of `TrainConfig` are ignored.

    Raises `InputError` for values outside the ranges.
    """
    return TrainConfig(**{f.name: values[f.name] for f in fields(TrainConfig) if f.name in values})


def sample_prompt_problem(text: str | None) -> str:
    """Why a trainer refuses this sample_prompt, "" where it does not. None: the text comes by a wire."""
    try:
        parse_sample_prompts(text or "")
    except InputError as error:
        return str(error)
    return ""
