"""Processes of a job that start quickly: torch and ComfyUI are imported here, each process is a fork of this one.

Lines in: {"arguments": [[...] of each process], "port": ..., "out": folder, "env": {...}}. Lines out: {"pids": [...]}
when they run, {"statuses": [...]} when all have ended. out/RANK.txt holds the output of each. Argument: ComfyUI's base
directory.
"""

from __future__ import annotations

import importlib.util
import json
import os
import sys
from pathlib import Path

COMMAND = Path(__file__).resolve().parents[2] / "nodes" / "jobs" / "command.py"


def load_command():
    spec = importlib.util.spec_from_file_location("bespoke_command", COMMAND)
    command = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(command)
    return command


def child(command, rank: int, request: dict) -> int:
    size, out = len(request["arguments"]), Path(request["out"])
    out.mkdir(parents=True, exist_ok=True)
    text = os.open(out / f"{rank}.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(text, 1)
    os.dup2(text, 2)
    if size > 1 or request.get("port"):
        os.environ |= {
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(size),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(request["port"]),
        }
    os.environ |= request.get("env", {})
    return command.main(request["arguments"][rank])


def main(base: str) -> None:
    import torch

    torch.set_num_threads(1)
    command = load_command()
    command.start_comfyui(command.find_comfyui(), True, command.arguments(["-", "--base-directory", base]))
    command.load_pack()
    for line in sys.stdin:
        request, pids = json.loads(line), []
        for rank in range(len(request["arguments"])):
            pid = os.fork()
            if pid == 0:
                status = 99
                try:
                    status = child(command, rank, request)
                finally:
                    os._exit(status)
            pids.append(pid)
        answer({"pids": pids})
        statuses = [os.waitpid(pid, 0)[1] for pid in pids]
        answer({"statuses": [-os.WTERMSIG(s) if os.WIFSIGNALED(s) else os.WEXITSTATUS(s) for s in statuses]})


def answer(message: dict) -> None:
    print(json.dumps(message), file=answers, flush=True)


if __name__ == "__main__":
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    main(sys.argv[1])
