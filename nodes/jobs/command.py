"""Trains a job that Bespoke Export LoRA Job or Export Textual Inversion Job wrote: without the page, on any number of
GPUs.

    python command.py JOB                                             one process
    torchrun --standalone --nproc-per-node 2 command.py JOB           two on this machine, one a GPU
    torchrun --standalone --nproc-per-node 8 --max-restarts 3 command.py JOB    a process that dies is started again
    TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 torchrun --nnodes 1:4 --nproc-per-node 8 --rdzv-backend c10d \\
        --rdzv-endpoint HOST:29400 --max-restarts 3 command.py JOB    up to four machines

Run it with ComfyUI's own Python. ComfyUI is $COMFYUI_PATH, or the one in whose custom_nodes this pack lies; its server
is
not started. Everything is written into the job's folder: result/ (the LoRA or embedding file), saves/, runs/ (the state
that a next start goes on from, with as many processes as it has), log.jsonl. Ctrl-C stops after the present step and
keeps the state; an empty file named `finish` in the job's folder ends the training and keeps its result.

Exit codes: 0 the result is written; 2 the job, a model or an option cannot be used, and nothing was trained; 3 the
training
failed (no number any more, memory full), what was learned before is kept; 4 another process ended or did not answer,
the
state is kept; 130 stopped, the state is kept; 1 a fault of Bespoke. torchrun itself ends with 1 and names these.
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

HERE = Path(os.path.abspath(__file__))  # as it was called: the pack may be linked into custom_nodes
OK, FAULT, UNUSABLE, FAILED, PEER_LOST, STOPPED = 0, 1, 2, 3, 4, 130


class Unusable(Exception):
    """Something that was given cannot be used. The message says what to do instead."""


def arguments(given: list[str]) -> argparse.Namespace:
    plain = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(prog="command.py", description=__doc__, formatter_class=plain)
    parser.add_argument("job", type=Path, metavar="JOB", help="the folder that the export node wrote")
    parser.add_argument(
        "--models",
        type=Path,
        action="append",
        default=[],
        metavar="FOLDER",
        help="look for the job's model files here too",
    )
    parser.add_argument(
        "--shard",
        action="store_true",
        help="spread the base model over all processes (FSDP2), for one that does not fit a GPU",
    )
    parser.add_argument(
        "--anew", action="store_true", help="begin anew; what an earlier start learned is set aside, not deleted"
    )
    parser.add_argument("--cpu", action="store_true", help="compute on the processor although there is a GPU")
    parser.add_argument(
        "--timeout",
        type=float,
        default=600,
        metavar="SECONDS",
        help="how long a process waits for another one (default 600)",
    )
    parser.add_argument(
        "--base-directory", type=Path, metavar="FOLDER", help="as ComfyUI's own option: where its models folder lies"
    )
    parser.add_argument(
        "--extra-model-paths-config",
        type=Path,
        action="append",
        default=[],
        metavar="FILE",
        help="as ComfyUI's own option",
    )
    return parser.parse_args(given)


def find_comfyui() -> Path:
    """$COMFYUI_PATH, else the ComfyUI in whose custom_nodes the pack lies."""

    def is_comfyui(folder: Path) -> bool:
        return (folder / "comfy").is_dir() and (folder / "folder_paths.py").is_file()

    named = os.environ.get("COMFYUI_PATH")
    if named:
        if not is_comfyui(Path(named)):
            raise Unusable(f"COMFYUI_PATH is {named!r}, which is no ComfyUI folder; correct it or unset it")
        return Path(named).resolve()
    for file in (HERE, HERE.resolve()):
        folder = file.parents[2].parent
        if folder.name == "custom_nodes" and is_comfyui(folder.parent):
            return folder.parent
    raise Unusable(
        f"no ComfyUI is around {HERE.parents[2]}; set COMFYUI_PATH to the folder of one (nothing of it is changed)"
    )


def start_comfyui(folder: Path, cpu: bool, options: argparse.Namespace) -> None:
    """Make ComfyUI's modules importable and set; nothing of its server is imported."""
    # This script's own folder must not be searched, and nor must the pack's root: its `nodes` is not ComfyUI's.
    sys.path[:] = [
        str(folder),
        *(
            place
            for place in sys.path
            if Path(place or ".").resolve() not in (HERE.resolve().parent, HERE.resolve().parents[2])
        ),
    ]
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
            raise Unusable(f"--extra-model-paths-config is {config}, which is no file")
        load_extra_path_config(str(config))


def load_pack():
    """The pack as a package of its own name, wherever its folder lies and whatever it is called."""
    root = HERE.parents[2]
    spec = importlib.util.spec_from_file_location(
        "bespoke", root / "__init__.py", submodule_search_locations=[str(root)]
    )
    module = importlib.util.module_from_spec(spec)
    sys.modules["bespoke"] = module
    spec.loader.exec_module(module)
    return importlib.import_module("bespoke.nodes.jobs.work")


def choose_device(options: argparse.Namespace):
    """The device of this process: the GPU of its number on this machine, else the processor."""
    try:
        import torch
    except ModuleNotFoundError as error:
        raise Unusable(f"{sys.executable} has no {error.name}; run the command with ComfyUI's own Python") from error
    if not hasattr(torch, "accelerator"):
        raise Unusable(
            f"this needs PyTorch 2.6 or newer, and {torch.__version__} is here; update ComfyUI's environment"
        )
    if options.cpu or not torch.accelerator.is_available():
        return torch.device("cpu")
    number, count = int(os.environ.get("LOCAL_RANK", 0)), torch.accelerator.device_count()
    if number >= count:
        raise Unusable(
            f"this machine has {count} GPUs and was given process {number + 1}; start torchrun with "
            f"--nproc-per-node {count}"
        )
    if count > 1:
        torch.accelerator.set_device_index(number)
    return torch.device(torch.accelerator.current_accelerator().type, number)


def backend_for(device) -> str:
    """What gradients travel over. PyTorch for Windows is built without NCCL; gloo takes tensors of a GPU too."""
    import torch.distributed as dist

    name = dist.get_default_backend_for_device(device)
    return "gloo" if name == "nccl" and not dist.is_nccl_available() else name


def join(options: argparse.Namespace, device):
    """This process's place among those that torchrun started, connected to them; alone without torchrun."""
    import torch.distributed as dist
    from bespoke.training.distributed import World

    size = int(os.environ.get("WORLD_SIZE", 1))
    if size == 1 and not options.shard:
        return World()
    if "MASTER_ADDR" not in os.environ:
        raise Unusable("--shard spreads the model over processes; start it with torchrun")
    where = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
    starts = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0))
    shared = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    if (
        shared
        and int(os.environ.get("GROUP_WORLD_SIZE", 1)) > 1
        and int(os.environ.get("TORCHELASTIC_MAX_RESTARTS", 0)) > 0
    ):
        raise Unusable(
            "set TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 on every machine before torchrun: without it PyTorch's restarted "
            "processes look for one another where the dead ones were (pytorch/pytorch issue 135712)"
        )
    wait = datetime.timedelta(seconds=options.timeout)
    lost = f"the processes did not find one another at {where} within {options.timeout:g} s"
    # torch waits without end for a program that takes the connection and says nothing.
    watch = threading.Timer(options.timeout + 2, give_up, [f"{lost}; another program may have the port"])
    watch.daemon = True
    watch.start()
    # The first for what is said between the processes, the second for gradients and weights.
    backend = "gloo" if device.type == "cpu" else f"cpu:gloo,{device.type}:{backend_for(device)}"
    try:
        store, number, count = next(iter(dist.rendezvous("env://", timeout=wait)))
        # On one machine torchrun counts the starts for all, so that a name a start keeps the dead ones' addresses
        # apart.
        store = dist.PrefixStore(f"start {starts}", store)
        dist.init_process_group(backend, store=store, rank=number, world_size=count, timeout=wait)
    except Exception as error:
        text = str(error).splitlines()[0]
        if "in use" in text or "EADDRINUSE" in text:
            raise Unusable(
                f"the port {where} is in use by another program; give torchrun another --master-port, or --standalone"
            ) from error
        raise Unusable(f"{lost} ({text})") from error
    finally:
        watch.cancel()
    return World(dist.get_rank(), dist.get_world_size())


def say(text: str) -> None:
    rank = os.environ.get("RANK")
    who = "bespoke" if rank is None else f"bespoke, process {rank} of {os.environ.get('WORLD_SIZE')}"
    print(f"{who}: {text}", file=sys.stderr, flush=True)


def give_up(text: str) -> None:
    say(text)
    os._exit(UNUSABLE)


class StopSignal:
    """What signals ask for: the first to stop after the present step, a second Ctrl-C at once."""

    def __init__(self, stop: int, go_on: int):
        self._stop, self.value, self._pressed = stop, go_on, False
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._heard)

    def _heard(self, number: int, _frame) -> None:
        # From Ctrl-C under torchrun both signals come: one from the terminal, one from torchrun.
        if number == signal.SIGINT and self._pressed:
            raise KeyboardInterrupt
        self.value, self._pressed = self._stop, self._pressed or number == signal.SIGINT

    def __call__(self) -> int:
        return self.value


def main(given: list[str]) -> int:
    options = arguments(given)
    try:
        comfyui = find_comfyui()
        device = choose_device(options)
        start_comfyui(comfyui, device.type == "cpu", options)
        work = load_pack()
    except Unusable as error:
        say(str(error))
        return UNUSABLE
    import comfy.model_management
    from bespoke.training import distributed
    from bespoke.training.errors import InputError
    from safetensors import SafetensorError

    begun = False
    try:
        world = join(options, device)
        job = work.take_job(world, options.job.absolute())
        again = (
            int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0)) > 0
        )  # what this very start learned is not set aside
        stop_request = StopSignal(distributed.StopRequest.ABORT, distributed.StopRequest.CONTINUE)
        job_options = work.Options(
            options.models, options.anew and not again, device if options.shard else None, stop_request, device.type
        )
        parts = work.prepared(job, world, job_options)
        begun = True
        work.train(job, world, job_options, *parts)
        return OK
    except (Unusable, InputError) as error:
        say(str(error))
        return FAILED if begun else UNUSABLE
    except distributed.PeerLost as error:
        say(f"{error}; the state of the last save is kept in {options.job}/runs, and the same command goes on from it")
        return PEER_LOST
    except (KeyboardInterrupt, comfy.model_management.InterruptProcessingException):
        say(f"stopped; the state is kept in {options.job}/runs, and the same command goes on from it")
        return STOPPED
    except (OSError, SafetensorError) as error:  # a full disk, a folder that may not be written into
        say(f"{error}; mend that, and the same command goes on from the last save in {options.job}/runs")
        return FAILED if begun else UNUSABLE
    except Exception:
        say(f"a fault of Bespoke, please report it:\n{traceback.format_exc()}")
        return FAULT


if __name__ == "__main__":
    status = main(sys.argv[1:])
    sys.stdout.flush()
    # Not by way of the interpreter's own end: a process group whose others are gone can make that wait for them.
    os._exit(status)
