"""Checks of a job before its models are loaded: the settings, which may have been edited, and the use of `--shard`."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

import torch

from ...training.config import TrainConfig
from ...training.errors import InputError
from ...training.optimizers import check_optimizer
from ..bridge.files import writing
from .job import Job
from .sharding import supports_resharding
from .techniques import job_technique


def request_of(job: Job) -> Any:
    """The technique's request, from [settings]. Raises `InputError` for unknown settings and for wrong values."""
    kind = job_technique(job.technique).request
    config = {f.name for f in fields(TrainConfig)}
    own = {f.name for f in fields(kind)} - {"train", "resume"}
    unknown = sorted(set(job.settings) - config - own)
    if unknown:
        raise InputError(f"[settings] in job.toml has {unknown[0]}, which the trainer does not know; take the line out")
    try:
        train = TrainConfig(**{k: v for k, v in job.settings.items() if k in config})
        return kind(train, **{k: v for k, v in job.settings.items() if k in own})
    except TypeError as error:
        raise InputError(f"[settings] in job.toml: {error}; export the job again") from error


def check_job(job: Job, request: Any, processes: int, shard: bool) -> None:
    """Raise `InputError` for settings that the job's data or `processes` processes cannot serve. shard: `--shard`."""
    check_optimizer(request.train.optimizer, torch.device("cpu"))  # on the training's own device, `train` checks it
    technique = job_technique(job.technique)
    technique.check_result(job.result)
    name = Path(str(job.result.get("name") or job.folder.name)).name
    writing.resolve_inside(job.folder, name, writing.NUMBERED.format(1))
    technique.check_request(request, job.dataset(request.train))
    if shard:
        _check_sharding(job, request.train, processes)


def _check_sharding(job: Job, config: TrainConfig, processes: int) -> None:
    if not supports_resharding():
        raise InputError(
            f"--shard needs a newer PyTorch: {torch.__version__} does not free a block's gathered weights after its "
            "forward pass; update ComfyUI's environment, or train without --shard"
        )
    if config.batch_size < processes:
        raise InputError(
            f"--shard needs a picture of every batch in every process, and batch_size is {config.batch_size} for "
            f"{processes} processes; start fewer, or raise batch_size in job.toml"
        )
    if config.sample_every:
        raise InputError(
            "--shard draws no samples, since one process alone cannot call the model; set sample_every to 0 in job.toml"
        )
    prompts = (key for key in job.tensors if key.startswith("prompt/") and key.count("/") == 1)
    if len({tuple(job.tensors[key].shape[1:]) for key in prompts}) > 1:
        raise InputError(
            "--shard needs prompts of one length in tokens, since processes with other prompts would call the model "
            "more often; shorten the longest captions"
        )
