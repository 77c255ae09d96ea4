"""Trains a job that Bespoke Export LoRA Job or Bespoke Export Textual Inversion Job wrote, on any number of GPUs.

    python command.py JOB                                             one process
    torchrun --standalone --nproc-per-node 2 command.py JOB           two processes on this machine, one for each GPU
    torchrun --standalone --nproc-per-node 8 --max-restarts 3 command.py JOB    a process that dies is started again
    TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 torchrun --nnodes 1:4 --nproc-per-node 8 --rdzv-backend c10d \\
        --rdzv-endpoint HOST:29400 --max-restarts 3 command.py JOB    up to four machines

Run it with the Python of ComfyUI. ComfyUI is $COMFYUI_PATH, or the one whose custom_nodes folder has this pack. Its
server is not started.

Everything is written into the job's folder: the LoRA or embedding file into result/, files during the training into
saves/, the state into runs/, events into log.jsonl. The next start resumes from the state, with any number of
processes. Ctrl-C stops after the present step and keeps the state. An empty file named `finish` in the job's folder
ends the training after the present step and writes the result.

Exit codes:
    0    the result is written
    1    an error in Bespoke itself
    2    the job, a model or an option cannot be used; nothing was trained
    3    the training failed (the loss is not a number, memory is full); what was learned before is kept
    4    another process ended or did not answer; the state is kept
    130  stopped by a signal; the state is kept
torchrun itself exits with 1 and prints these.
"""

from __future__ import annotations

import argparse
import datetime
import importlib
import importlib.util
import os
import signal
import sys
import threading
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from ...training.distributed import World

# The path as it was given, not resolved: the pack may be a symbolic link in custom_nodes.
SCRIPT = Path(os.path.abspath(__file__))
OK, FAULT, UNUSABLE, FAILED, PEER_LOST, STOPPED = 0, 1, 2, 3, 4, 130


class UsageError(Exception):
    """An option, the environment or the installation cannot be used. The message says what to do instead."""


def arguments(given: list[str]) -> argparse.Namespace:
    """The parsed command line."""
    plain = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(prog="command.py", description=__doc__, formatter_class=plain)
    parser.add_argument("job", type=Path, metavar="JOB", help="the folder that the export node wrote")
    parser.add_argument(
        "--models",
        type=Path,
        action="append",
        default=[],
        metavar="FOLDER",
        help="a further folder to look for the job's model files in",
    )
    parser.add_argument(
        "--shard",
        action="store_true",
        help="shard the base model over all processes (FSDP2), where it does not fit one GPU",
    )
    parser.add_argument(
        "--anew", action="store_true", help="start from step 0; the state of an earlier start is set aside, not deleted"
    )
    parser.add_argument("--cpu", action="store_true", help="compute on the CPU although there is a GPU")
    parser.add_argument(
        "--timeout",
        type=float,
        default=600,
        metavar="SECONDS",
        help="how long a process waits for the others (default 600)",
    )
    parser.add_argument(
        "--base-directory",
        type=Path,
        metavar="FOLDER",
        help="ComfyUI's option of this name: the folder that has its models folder",
    )
    parser.add_argument(
        "--extra-model-paths-config",
        type=Path,
        action="append",
        default=[],
        metavar="FILE",
        help="ComfyUI's option of this name",
    )
    return parser.parse_args(given)


# dev.py has a search of its own: it runs without this package and is not published with it.
def find_comfyui() -> Path:
    """The folder of ComfyUI: $COMFYUI_PATH, else the one whose custom_nodes folder has the pack.

    Raises `UsageError` where there is none.
    """

    def is_comfyui(folder: Path) -> bool:
        return (folder / "comfy").is_dir() and (folder / "folder_paths.py").is_file()

    named = os.environ.get("COMFYUI_PATH")
    if named:
        if not is_comfyui(Path(named)):
            raise UsageError(f"COMFYUI_PATH is {named!r}, which is no ComfyUI folder; correct it or unset it")
        return Path(named).resolve()
    for file in (SCRIPT, SCRIPT.resolve()):
        folder = file.parents[2].parent
        if folder.name == "custom_nodes" and is_comfyui(folder.parent):
            return folder.parent
    raise UsageError(
        f"no ComfyUI is around {SCRIPT.parents[2]}; set COMFYUI_PATH to the folder of one (nothing of it is changed)"
    )


def start_comfyui(folder: Path, cpu: bool, options: argparse.Namespace) -> None:
    """Make ComfyUI's modules importable and set its options. Its server is not imported.

    cpu: whether to compute on the CPU. options: from `arguments`.
    """
    # Without this script's folder and the root of the pack, whose `nodes` would hide ComfyUI's.
    hidden = (SCRIPT.resolve().parent, SCRIPT.resolve().parents[2])
    sys.path[:] = [str(folder), *(path for path in sys.path if Path(path or ".").resolve() not in hidden)]
    importlib.import_module("utils")  # first, as ComfyUI's main.py does
    import comfy.options

    comfy.options.enable_args_parsing(False)
    from comfy.cli_args import args

    args.cpu = cpu
    if options.base_directory is not None:
        args.base_directory = str(options.base_directory.resolve())
    from utils.extra_config import load_extra_path_config

    own = folder / "extra_model_paths.yaml"
    for config in [*([own] if own.is_file() else []), *options.extra_model_paths_config]:
        if not config.is_file():
            raise UsageError(f"--extra-model-paths-config is {config}, which is no file")
        load_extra_path_config(str(config))


def load_pack() -> Any:
    """Import the pack as the package `bespoke`, whatever its folder is called; returns the module `nodes.jobs.work`."""
    root = SCRIPT.parents[2]
    spec = importlib.util.spec_from_file_location(
        "bespoke", root / "__init__.py", submodule_search_locations=[str(root)]
    )
    if spec is None or spec.loader is None:
        raise UsageError(f"{root} cannot be imported as a package; install the pack again")
    module = importlib.util.module_from_spec(spec)
    sys.modules["bespoke"] = module
    spec.loader.exec_module(module)
    return importlib.import_module("bespoke.nodes.jobs.work")


def choose_device(options: argparse.Namespace) -> torch.device:
    """The device of this process: the GPU whose index is the process's number on this machine, else the CPU."""
    try:
        import torch
    except ModuleNotFoundError as error:
        raise UsageError(f"{sys.executable} has no {error.name}; run the command with ComfyUI's own Python") from error
    if not hasattr(torch, "accelerator"):
        raise UsageError(
            f"this needs PyTorch 2.6 or newer, and {torch.__version__} is here; update ComfyUI's environment"
        )
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    if options.cpu or accelerator is None:
        return torch.device("cpu")
    number, count = int(os.environ.get("LOCAL_RANK", 0)), torch.accelerator.device_count()
    if number >= count:
        raise UsageError(
            f"this machine has {count} GPUs and was given process {number + 1}; start torchrun with "
            f"--nproc-per-node {count}"
        )
    if count > 1:
        torch.accelerator.set_device_index(number)
    return torch.device(accelerator.type, number)


def backend_for(device: torch.device) -> str:
    """The backend for collectives on tensors of the device.

    PyTorch for Windows is built without NCCL; gloo can send tensors of a GPU too.
    """
    import torch.distributed as dist

    name = dist.get_default_backend_for_device(device)
    return "gloo" if name == "nccl" and not dist.is_nccl_available() else name


def connect(options: argparse.Namespace, device: torch.device) -> World:
    """Connect to the other processes that torchrun started; without torchrun, a world of one process.

    Raises `UsageError` where the processes do not find one another within the timeout.
    """
    import torch.distributed as dist
    from bespoke.training.distributed import World  # pyright: ignore[reportMissingImports]

    size = int(os.environ.get("WORLD_SIZE", 1))
    if size == 1 and not options.shard:
        return World()
    if "MASTER_ADDR" not in os.environ:
        raise UsageError("--shard spreads the model over processes; start it with torchrun")
    check_restarts()
    address = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
    lost = f"the processes did not find one another at {address} within {options.timeout:g} s"
    # PyTorch has no timeout for a program that accepts the connection and sends nothing.
    timer = threading.Timer(options.timeout + 2, exit_unusable, [f"{lost}; another program may have the port"])
    timer.daemon = True
    timer.start()
    try:
        init_process_group(device, datetime.timedelta(seconds=options.timeout))
    except Exception as error:
        text = str(error).splitlines()[0]
        if "in use" in text or "EADDRINUSE" in text:
            raise UsageError(
                f"the port {address} is in use by another program; give torchrun another --master-port, or --standalone"
            ) from error
        raise UsageError(f"{lost} ({text})") from error
    finally:
        timer.cancel()
    return World(dist.get_rank(), dist.get_world_size())


def check_restarts() -> None:
    """Raise `UsageError` where torchrun could not restart the processes of several machines."""
    environ = os.environ
    shares_store = environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    machines = int(environ.get("GROUP_WORLD_SIZE", 1))
    restarts = int(environ.get("TORCHELASTIC_MAX_RESTARTS", 0))
    if shares_store and machines > 1 and restarts > 0:
        raise UsageError(
            "set TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 on every machine before torchrun: without it PyTorch's restarted "
            "processes look for one another where the dead ones were (pytorch/pytorch issue 135712)"
        )


def init_process_group(device: torch.device, timeout: datetime.timedelta) -> None:
    """Make PyTorch's default process group, as torchrun's environment variables describe it."""
    import torch.distributed as dist
    from torch.distributed.rendezvous import rendezvous

    # gloo for texts and states, which are on the CPU; the device's backend for gradients and weights.
    backend = "gloo" if device.type == "cpu" else f"cpu:gloo,{device.type}:{backend_for(device)}"
    store, rank, size = next(iter(rendezvous("env://", timeout=timeout)))
    # On one machine torchrun counts the restarts of all processes together. A prefix for each start keeps the addresses
    # of ended processes apart from those of their successors.
    start = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0))
    store = dist.PrefixStore(f"start {start}", store)  # pyright: ignore[reportPrivateImportUsage]
    dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=timeout)


def print_message(text: str) -> None:
    """Print to stderr, with the number of this process where there are several."""
    rank = os.environ.get("RANK")
    prefix = "bespoke" if rank is None else f"bespoke, process {rank} of {os.environ.get('WORLD_SIZE')}"
    print(f"{prefix}: {text}", file=sys.stderr, flush=True)


def exit_unusable(text: str) -> None:
    """Print a message and end the process at once, from any thread."""
    print_message(text)
    os._exit(UNUSABLE)


class StopSignal:
    """What SIGINT and SIGTERM request: the first one a stop after the present step, a second SIGINT one at once.

    stop, go_on: the values that a call gives after a signal and before it.
    """

    def __init__(self, stop: int, go_on: int) -> None:
        self._stop, self.value, self._interrupted = stop, go_on, False
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._handle)

    def _handle(self, number: int, _frame: object) -> None:
        # Ctrl-C under torchrun sends both signals: SIGINT from the terminal, SIGTERM from torchrun.
        if number == signal.SIGINT and self._interrupted:
            raise KeyboardInterrupt
        self.value, self._interrupted = self._stop, self._interrupted or number == signal.SIGINT

    def __call__(self) -> int:
        return self.value


def main(given: list[str]) -> int:
    """Train the job of a command line; returns the exit code."""
    options = arguments(given)
    try:
        comfyui = find_comfyui()
        device = choose_device(options)
        start_comfyui(comfyui, device.type == "cpu", options)
        work = load_pack()
    except UsageError as error:
        print_message(str(error))
        return UNUSABLE
    return run_job(options, device, work)


def run_job(options: argparse.Namespace, device: torch.device, work: Any) -> int:
    """Train the job; returns the exit code. work: the module that `load_pack` returns."""
    import comfy.model_management
    from bespoke.training import distributed  # pyright: ignore[reportMissingImports]
    from bespoke.training.errors import InputError  # pyright: ignore[reportMissingImports]
    from safetensors import SafetensorError

    code_of_bad_input = UNUSABLE  # FAILED once the training has begun
    in_runs = f"in {options.job}/runs"
    try:
        world = connect(options, device)
        job = work.read_same_job(world, options.job.absolute())
        stop_request = StopSignal(distributed.StopRequest.ABORT, distributed.StopRequest.CONTINUE)
        # After a restart by torchrun, --anew must not set aside what this same start has learned.
        restarted = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0)) > 0
        job_options = work.Options(
            models=options.models,
            anew=options.anew and not restarted,
            shard=device if options.shard else None,
            stop_request=stop_request,
            device_type=device.type,
        )
        request, models = work.prepare(job, world, job_options)
        code_of_bad_input = FAILED
        work.train_job(job, world, job_options, request, models)
        return OK
    except (UsageError, InputError) as error:
        print_message(str(error))
        return code_of_bad_input
    except distributed.PeerLost as error:
        print_message(f"{error}; the state of the last save is kept {in_runs}, and the same command goes on from it")
        return PEER_LOST
    except (KeyboardInterrupt, comfy.model_management.InterruptProcessingException):
        print_message(f"stopped; the state is kept {in_runs}, and the same command goes on from it")
        return STOPPED
    except (OSError, SafetensorError) as error:  # a full disk, a folder that may not be written into
        print_message(f"{error}; mend that, and the same command goes on from the last save {in_runs}")
        return code_of_bad_input
    except Exception:
        print_message(f"a fault of Bespoke, please report it:\n{traceback.format_exc()}")
        return FAULT


if __name__ == "__main__":
    status = main(sys.argv[1:])
    sys.stdout.flush()
    # Not sys.exit: at the interpreter's end, a process group can wait for processes that are gone.
    os._exit(status)
