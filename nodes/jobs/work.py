"""What `command.py` does in each process: read and check the job, load the models, train, write the result.

Process 0 alone writes files. An `InputError` in one process is raised in all of them.
"""

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
from ..bridge.dataset.conditioning import encode_prompt, learn_layers_of
from ..bridge.files import writing
from ..bridge.runs.context import RunContext
from ..bridge.runs.store import RunStore
from ..bridge.trainer import Models, train
from ..bridge.training_model.denoiser import ComfyDenoiser
from .checks import check_job, request_of
from .job import Job, read_job
from .lock import lock_folder
from .sharding import shard_base
from .source import find_files, load_source
from .techniques import job_technique, needed_models
from .watch import LOG, JobDisplay, Log, SharedStore

FINISH_FILE = "finish"  # a file of this name in the job's folder ends the training early; the result is written
T = TypeVar("T")


def _continue() -> StopRequest:
    return StopRequest.CONTINUE


@dataclass(frozen=True)
class Options:
    """The options of the command for this process.

    models: further folders of model files. anew: set an earlier state aside. shard: the device to compute on with the
    base sharded over the processes; None gives each process a whole base. stop_request: what this process requests
    after a step, besides the file `finish` in the job's folder. device_type: "cpu", "cuda", ...
    """

    models: Sequence[Path] = ()
    anew: bool = False
    shard: torch.device | None = None
    stop_request: Callable[[], StopRequest] = _continue
    device_type: str = "cpu"


def run_in_every_process(world: World, function: Callable[[], T]) -> T:
    """The result of `function()`. All processes must call this together.

    Where `function` raises `InputError` in any process, all raise it: none waits for a process that has ended.
    """
    results, message = list[T](), ""
    try:
        results.append(function())
    except InputError as error:
        message = str(error)
    messages = world.all_gather_texts(message)
    if any(messages):
        if world.size == 1:
            raise InputError(message)
        raise InputError("; ".join(f"process {rank}: {text}" for rank, text in enumerate(messages) if text))
    return results[0]


def read_same_job(world: World, folder: Path) -> Job:
    """The job, read by every process. Raises `InputError` in all of them where their jobs differ."""
    job = run_in_every_process(world, lambda: read_job(folder))
    digests = world.all_gather_texts(job.digest)
    others = [rank for rank, digest in enumerate(digests) if digest != digests[0]]
    if others:
        raise InputError(
            f"the processes disagree on the job: {folder / 'job.toml'} is another one for process "
            f"{', '.join(map(str, others))} than for process 0; copy the same folder to every machine"
        )
    return job


def prepare(job: Job, world: World, options: Options) -> tuple[Any, Models]:
    """(the technique's request, the loaded models). Raises `InputError` in every process where any of them fails."""
    kinds = world.all_gather_texts(options.device_type + (" and --shard" if options.shard is not None else ""))
    others = [f"process {rank} with {text}" for rank, text in enumerate(kinds) if text != kinds[0]]
    if others:  # their collectives would not match, and all would wait until the timeout
        raise InputError(
            f"the processes disagree on how to compute: process 0 with {kinds[0]}, {', '.join(others)}; give every "
            "machine the same command, and see that PyTorch finds the GPUs of each"
        )
    request = run_in_every_process(world, lambda: request_of(job))
    run_in_every_process(world, lambda: check_job(job, request, world.size, options.shard is not None))
    models = run_in_every_process(world, lambda: load_models(job, options))
    learn_layers_of(models.model.model, partial(_a_prompt, job, request, models))
    run_in_every_process(world, lambda: job_technique(job.technique).check_model(request, models))
    return request, models


def _a_prompt(job: Job, request: Any, models: Models) -> tuple[Tensor, dict[str, Any]]:
    """The conditioning of some prompt of the job."""
    prompts = job.dataset(request.train).prompts
    return next(iter(prompts.values())) if prompts else encode_prompt(models.clip, "a photo")


def load_models(job: Job, options: Options) -> Models:
    """Find, verify and load the models that the job needs, and apply the changes that other nodes had made on them."""
    loaded: dict[str, Any] = {}
    for role in needed_models(job.technique, job.settings):
        if role not in job.sources:
            raise InputError(
                f"these settings need the {role}, which was not exported with the job; export it again with "
                "train_text_encoder or sample_every as you want them"
            )
        source = job.sources[role]
        paths = find_files(source, role, options.models)
        with torch.inference_mode():  # as ComfyUI's loader nodes do: the base weights never get a gradient
            made = load_source(source, paths, role)
            if role == "model" and options.shard is not None:
                made.load_device = made.offload_device  # it is sharded from there, and never whole on the device
            loaded[role] = job.apply_changes(role, made)
    return Models(**loaded)


def train_job(job: Job, world: World, options: Options, request: Any, models: Models) -> Path | None:
    """Train the job to its end. Returns the path of the result in process 0, None in the others.

    request, models: as `prepare` returns them.
    """
    writes = world.rank == 0
    lock = run_in_every_process(world, lambda: lock_folder(job.folder) if writes else None)
    with lock or contextlib.nullcontext():
        dataset = job.dataset(request.train)
        technique = job_technique(job.technique).technique(request, models, dataset)
        log = Log(job.folder / LOG if writes else None)
        result = train(technique, models, dataset, _JobContext(job, world, options, log).run_context())
        if not writes:
            return None
        path = write_result(job, result.learned, result.run)
        report = technique.describe(result.run, result.learned)
        log.write("result", file=path.relative_to(job.folder).as_posix(), report=report)
        print(f"{report}\nWritten: {path}", flush=True)
        return path


@dataclass(frozen=True)
class _JobContext:
    """Makes the `RunContext` of a job: all is written into the job's folder, by process 0."""

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
            base_bytes, held_bytes = shard_base(denoiser, self.options.shard)
            self.log.write("sharded", base_bytes=base_bytes, held_bytes=held_bytes)

    def save(self, step: int, learned: dict[str, Tensor], run: Run) -> None:
        if self.world.rank == 0:
            save_file = job_technique(self.job.technique).save_file
            save_file(self.job.folder / "saves", step, learned, run, self.job.graph)


def write_result(job: Job, learned: dict[str, Tensor], run: Run) -> Path:
    """Write into the job's folder what the save node would write; the path of the first file.

    There is one, but for several words. An existing file is never overwritten.
    """
    name, folder = str(job.result.get("name") or job.folder.name), job.folder / "result"
    files = job_technique(job.technique).result_files(learned, run, name, job.result, job.graph)
    folder.mkdir(parents=True, exist_ok=True)
    written = list[Path]()
    for each, (tensors, metadata) in files.items():
        write = partial(_write_file, tensors, metadata)
        written.append(folder / writing.write_numbered_in(folder, Path(each).name, write))
    return written[0]


def _write_file(tensors: dict[str, Tensor], metadata: dict[str, str], path: Path) -> None:
    writing.write_safetensors(path, tensors, metadata, overwrite=False)
