"""One process's part in a job: load the models, train, and in the first process write the result."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from ...training.distributed import StopRequest, World
from ...training.errors import InputError
from ...training.record import Run
from ..bridge.files import writing
from ..bridge.runs.context import RunContext
from ..bridge.runs.store import RunStore
from ..bridge.trainer import Models
from ..bridge.trainer import train as train_technique
from ..bridge.training_model.denoiser import ComfyDenoiser
from .checks import check_job, request_of
from .job import Job, read_job, restored
from .lock import hold
from .sharding import shard_base
from .source import find, load
from .techniques import job_technique, needed_models
from .watch import LOG, JobDisplay, Log, SharedStore

FINISH_FILE = "finish"  # made by hand in the job's folder, it ends the training early and its result is kept
T = TypeVar("T")


def _continue() -> StopRequest:
    return StopRequest.CONTINUE


@dataclass(frozen=True)
class Options:
    """What the command was told.

    models: further folders of model files. anew: set an earlier state aside. shard: the device to compute on with the
    base spread over the processes; None gives each process a whole base. stop_request: what this process requests
    after a step, besides the file `finish` in the job's folder. device_type: what it computes on.
    """

    models: Sequence[Path] = ()
    anew: bool = False
    shard: torch.device | None = None
    stop_request: Callable[[], StopRequest] = _continue
    device_type: str = "cpu"


def in_every_process(world: World, function: Callable[[], T]) -> T:
    """`function()`; where it raises `InputError` in one process, all raise it: none waits for one that has ended."""
    out, message = None, ""
    try:
        out = function()
    except InputError as error:
        message = str(error)
    messages = world.all_gather_texts(message)
    if any(messages):
        if world.size == 1:
            raise InputError(message)
        raise InputError("; ".join(f"process {rank}: {text}" for rank, text in enumerate(messages) if text))
    return out


def take_job(world: World, folder: Path) -> Job:
    """The job, read by every process. Raises `InputError` in all of them where they do not have the same one."""
    job = in_every_process(world, lambda: read_job(folder))
    digests = world.all_gather_texts(job.digest)
    others = [rank for rank, digest in enumerate(digests) if digest != digests[0]]
    if others:
        raise InputError(
            f"the processes disagree on the job: {folder / 'job.toml'} is another one for process "
            f"{', '.join(map(str, others))} than for process 0; copy the same folder to every machine"
        )
    return job


def prepared(job: Job, world: World, options: Options) -> tuple[Any, Models]:
    """(request, models). Raises `InputError` in every process where one of them lacks something."""
    kinds = world.all_gather_texts(options.device_type + (" and --shard" if options.shard is not None else ""))
    others = [f"process {rank} with {text}" for rank, text in enumerate(kinds) if text != kinds[0]]
    if others:  # a process that sends elsewhere, or calls the model alone, would wait for nobody
        raise InputError(
            f"the processes disagree on how to compute: process 0 with {kinds[0]}, {', '.join(others)}; give every "
            "machine the same command, and see that PyTorch finds the GPUs of each"
        )
    request = in_every_process(world, lambda: request_of(job))
    in_every_process(world, lambda: check_job(job, request, world.size, options.shard is not None))
    models = in_every_process(world, lambda: load_models(job, options))
    in_every_process(world, lambda: job_technique(job.technique).check_model(request, models))
    return request, models


def load_models(job: Job, options: Options) -> Models:
    """The models that the job needs: files found, hashes compared, loaded, and changed as they were on the wire."""
    out = {}
    for what in needed_models(job.technique, job.settings):
        if what not in job.sources:
            raise InputError(
                f"these settings need the {what}, which was not exported with the job; export it again with "
                "train_text_encoder or sample_every as you want them"
            )
        source = job.sources[what]
        paths = find(source, what, options.models)
        with torch.inference_mode():  # as ComfyUI's own loader nodes: weights that no gradient is ever computed of
            made = load(source, paths, what)
            if what == "model" and options.shard is not None:
                made.load_device = made.offload_device  # the whole of it never lies on the device
            out[what] = restored(job, what, made)
    return Models(**out)


def train(job: Job, world: World, options: Options, request: Any, models: Models) -> Path | None:
    """Train the job to its end; gives the result's file in the first process, None in the others."""
    first = world.rank == 0
    held = in_every_process(world, lambda: hold(job.folder) if first else None)
    with held or contextlib.nullcontext():
        kind = job_technique(job.technique)
        dataset = job.dataset(request.train)
        technique = kind.technique(request, models, dataset)
        log = Log(job.folder / LOG if first else None)
        context = _JobContext(job, world, options, log)
        result = train_technique(technique, models, dataset, context.run_context())
        if not first:
            return None
        path = write_result(job, result.learned, result.run)
        report = technique.describe(result.run, result.learned)
        log.write("result", file=path.relative_to(job.folder).as_posix(), report=report)
        print(f"{report}\nWritten: {path}", flush=True)
        return path


@dataclass(frozen=True)
class _JobContext:
    """Where a job's training reads and writes: everything in the job's folder, by the first process."""

    job: Job
    world: World
    options: Options
    log: Log

    def run_context(self) -> RunContext:
        return RunContext(
            world=self.world,
            store=self.store,
            display=partial(JobDisplay, self.log, self.world),
            stop_request=self.stop_request,
            prepare_model=self.prepare_model,
            sharded=self.options.shard is not None,
            sampler=self.job.samples,
            save=self.save,
        )

    def store(self, run_id: str) -> SharedStore:
        store = SharedStore(RunStore(run_id, self.job.folder / "runs"), self.world)
        if self.options.anew:
            store.set_aside()
        return store

    def stop_request(self, run_id: str) -> StopRequest:
        finish = self.job.folder / FINISH_FILE
        if self.world.rank == 0 and finish.exists():
            finish.unlink()
            return max(StopRequest.FINISH, self.options.stop_request())
        return self.options.stop_request()

    def prepare_model(self, denoiser: ComfyDenoiser) -> None:
        if self.options.shard is not None:
            whole, held = shard_base(denoiser, self.options.shard)
            self.log.write("sharded", base_bytes=whole, held_bytes=held)

    def save(self, step: int, learned: dict[str, Tensor], run: Run) -> None:
        if self.world.rank == 0:
            save = job_technique(self.job.technique).save
            save(self.job.folder / "saves", step, learned, run, self.job.graph)


def write_result(job: Job, learned: dict[str, Tensor], run: Run) -> Path:
    """Write the file that the save node would have written, into the job's folder; never over one that is there."""
    name, folder = str(job.result.get("name") or job.folder.name), job.folder / "result"
    tensors, metadata = job_technique(job.technique).result_file(learned, run, name, job.result, job.graph)
    folder.mkdir(parents=True, exist_ok=True)

    def write(path: Path) -> None:
        writing.write_safetensors(path, tensors, metadata, overwrite=False)

    return folder / writing.write_numbered_in(folder, Path(name).name, write)
