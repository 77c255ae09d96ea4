"""One process's part in a job: its models loaded, its share trained, and by the first process the result written."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...training.config import TrainConfig, check_choice
from ...training.distributed import FINISH, GO_ON, World
from ...training.errors import InputError
from ...training.formats import DTYPES, KEY_FORMATS
from ...training.record import Run
from ..bridge.files import writing as storage
from ..bridge.models import target_layers
from ..bridge.runs.context import RunContext
from ..bridge.runs.store import RunStore
from ..lora import files as lora_files
from ..lora.training.technique import LoraRequest, describe, fit_lora, sample_prompt
from ..textual_inversion import files as word_files
from ..textual_inversion.templates import check_captions
from ..textual_inversion.train import InversionRequest, fit_word
from .job import Job, needed, read_job, restored
from .lock import hold
from .sharding import gives_back, shard_base
from .source import find, load
from .watch import LOG, JobDisplay, Log, SharedStore

FINISH_FILE = "finish"  # made by hand in the job's folder, it ends the training early and its result is kept
REQUESTS = {"lora": LoraRequest, "textual inversion": InversionRequest}


@dataclass(frozen=True)
class Orders:
    """What the command was told. models: further folders of model files. anew: set an earlier state aside.

    shard: spread the base over the processes, to compute on this device; None gives each a whole one.
    wish: what this process wants after a step, beside what the job's folder says. kind: what it computes on.
    """

    models: Sequence[Path] = ()
    anew: bool = False
    shard: torch.device | None = None
    wish: Callable[[], int] = lambda: GO_ON
    kind: str = "cpu"


def agree(world: World, what: Callable[[], Any]) -> Any:
    """`what()`, or in every process the `InputError` of those that could not do it: none waits for one that has
    ended."""
    out, error = None, ""
    try:
        out = what()
    except InputError as found:
        error = str(found)
    said = world.hear_all(error)
    if any(said):
        if world.size == 1:
            raise InputError(error)
        raise InputError("; ".join(f"process {rank}: {text}" for rank, text in enumerate(said) if text))
    return out


def take_job(world: World, folder: Path) -> Job:
    """The job, read by every process. Raises `InputError` in all of them where they do not have the same one."""
    job = agree(world, lambda: read_job(folder))
    digests = world.hear_all(job.digest)
    others = [rank for rank, digest in enumerate(digests) if digest != digests[0]]
    if others:
        raise InputError(
            f"the processes disagree on the job: {folder / 'job.toml'} is another one for process "
            f"{', '.join(map(str, others))} than for process 0; copy the same folder to every machine"
        )
    return job


def request_of(job: Job):
    """The trainer's request. Raises `InputError` for settings that it does not know or refuses."""
    kind = REQUESTS.get(job.technique)
    if kind is None:
        raise InputError(f"the job's technique is {job.technique!r}; this Bespoke knows {', '.join(REQUESTS)}")
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


def models_of(job: Job, orders: Orders) -> dict[str, Any]:
    """The models that the job needs, found, compared with their hashes, loaded, and changed as they were on the
    wire."""
    out = {}
    for what in needed(job.technique, job.settings):
        if what not in job.sources:
            raise InputError(
                f"these settings need the {what}, which was not exported with the job; export it again with "
                "train_text_encoder or sample_every as you want them"
            )
        source = job.sources[what]
        paths = find(source, what, orders.models)
        with torch.inference_mode():  # as ComfyUI's own loader nodes: weights that no gradient is ever computed of
            made = load(source, paths, what)
            if what == "model" and orders.shard is not None:
                made.load_device = made.offload_device  # the whole of it never lies on the device
            out[what] = restored(job, what, made)
    return out


def check(job: Job, request, world: World, orders: Orders) -> None:
    """Raise `InputError` for settings that were edited into what the job or so many processes cannot do."""
    config, result = request.train, job.result
    if job.technique == "lora":  # said before hours of training, and not when the file is written
        check_choice("key_format in [result]", result.get("key_format", "kohya"), KEY_FORMATS)
        check_choice("dtype in [result]", result.get("dtype", "fp16"), list(DTYPES))
    else:
        check_choice("format in [result]", result.get("format", "comfy"), word_files.FORMATS)
    storage.inside(job.folder, Path(str(result.get("name") or job.folder.name)).name)
    if job.technique == "textual inversion" and request.template == "captions":
        check_captions(job.material(config).pictures.items)
    if job.technique == "lora" and not request.train_text_encoder:
        pictures = job.material(config).pictures
        missing = sorted(
            {*pictures.captions, sample_prompt(pictures, request)} - {text for text, _ in job.plan["prompts"]}
        )
        if missing:
            raise InputError(
                f"the prompt {missing[0]!r} was not encoded when the job was exported; export it again with these "
                "settings"
            )
    if orders.shard is None:
        return
    if not gives_back():
        raise InputError(
            f"--shard needs a newer PyTorch: that of {torch.__version__} keeps every block whole once it was "
            "computed; update "
            "ComfyUI's environment, or train without --shard"
        )
    if config.batch_size < world.size:
        raise InputError(
            f"--shard needs a picture of every batch in every process, and batch_size is {config.batch_size} for "
            f"{world.size} "
            "processes; start fewer, or raise batch_size in job.toml"
        )
    if config.sample_every:
        raise InputError(
            "--shard draws no samples, since one process alone cannot call the model; set sample_every to 0 in job.toml"
        )
    lengths = {
        tuple(cond.shape[1:]) for key, cond in job.tensors.items() if key.startswith("prompt/") and key.count("/") == 1
    }
    if len(lengths) > 1:
        raise InputError(
            "--shard needs prompts of one length in tokens, since processes with other prompts would call the "
            "model more often; "
            "shorten the longest captions"
        )


def prepared(job: Job, world: World, orders: Orders) -> tuple[Any, dict[str, Any]]:
    """(the request, the models by name). Raises `InputError` in every process where one of them lacks something."""
    said = world.hear_all(orders.kind + (" and --shard" if orders.shard is not None else ""))
    others = [f"process {rank} with {text}" for rank, text in enumerate(said) if text != said[0]]
    if others:  # a process that sends elsewhere, or calls the model alone, would wait for nobody
        raise InputError(
            f"the processes disagree on how to compute: process 0 with {said[0]}, {', '.join(others)}; give every "
            "machine the "
            "same command, and see that PyTorch finds the GPUs of each"
        )
    request = agree(world, lambda: request_of(job))
    agree(world, lambda: check(job, request, world, orders))
    models = agree(world, lambda: models_of(job, orders))
    if job.technique == "lora":
        agree(
            world, lambda: target_layers(models["model"].model.diffusion_model, request.targets, request.custom_targets)
        )
    return request, models


def train(job: Job, world: World, orders: Orders, request, models: dict[str, Any]) -> Path | None:
    """Train the job to its end; gives the result's file, in the first process."""
    first = world.rank == 0
    held = agree(world, lambda: hold(job.folder) if first else None)
    with held or contextlib.nullcontext():
        return _train(job, world, orders, request, models, first)


def _train(job: Job, world: World, orders: Orders, request, models: dict[str, Any], first: bool) -> Path | None:
    log = Log(job.folder / LOG if first else None)
    finish = job.folder / FINISH_FILE

    def wish(run_id: str) -> int:
        if first and finish.exists():
            finish.unlink()
            return max(FINISH, orders.wish())
        return orders.wish()

    def store(run_id: str) -> SharedStore:
        own = SharedStore(RunStore(run_id, job.folder / "runs"), world)
        if orders.anew:
            own.set_aside()
        return own

    def prepare(denoiser) -> None:
        if orders.shard is not None:
            whole, held = shard_base(denoiser, orders.shard)
            log.write("sharded", base_bytes=whole, held_bytes=held)

    where = RunContext(world, store, partial(JobDisplay, log, world), wish, prepare, orders.shard is not None)
    material = job.material(request.train)
    of = (models["model"], models.get("clip"), models.get("vae"), material, request, job.samples)
    if job.technique == "lora":
        learned, run = fit_lora(*of, _saver(lora_files, job, first), where)
        report = describe(run, request, material.about["trigger"], len(learned) // 3)
    else:
        word = fit_word(*of, _saver(word_files, job, first), where)
        learned, run, report = word.embedding, word.run, word.report
    if not first:
        return None
    path = write_result(job, learned, run)
    log.write("result", file=path.relative_to(job.folder).as_posix(), report=report)
    print(f"{report}\nWritten: {path}", flush=True)
    return path


def _saver(files, job: Job, first: bool) -> Callable[[int, dict[str, Tensor], Run], None]:
    def save(step: int, learned: dict[str, Tensor], run: Run) -> None:
        if first:
            files.save_on_the_way(job.folder / "saves", step, learned, run, job.graph)

    return save


def write_result(job: Job, learned: dict[str, Tensor], run: Run) -> Path:
    """Write the file that the save node would have written, into the job's folder; never over one that is there."""
    name, folder = str(job.result.get("name") or job.folder.name), job.folder / "result"
    if job.technique == "lora":
        made = lora_files.as_file(
            learned,
            run,
            Path(name).name,
            job.result.get("key_format", "kohya"),
            job.result.get("dtype", "fp16"),
            job.graph,
        )
    else:
        made = word_files.as_file(name, learned, run, job.result.get("format", "comfy"), job.graph)
    folder.mkdir(parents=True, exist_ok=True)
    return folder / storage.write_numbered_in(
        folder, Path(name).name, lambda path: storage.write_safetensors(path, *made, overwrite=False)
    )
