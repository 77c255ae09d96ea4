"""Trainings in processes that can be killed: ComfyUI is imported once here, each training runs in a fork.

Lines in: a request as JSON, {"node": ..., "result": file stem, "settings": {...}}. Lines out: {"base": folder} at the
start, {"pid": ...} when a training runs, {"status": ...} when it has ended. This process has one thread and uses no
autograd before a fork.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE)]

import conftest  # noqa: E402 - loads the pack
import inprocess  # noqa: E402


def make_models():
    import tiny

    return tiny.patcher(tiny.SMALLEST), tiny.clip(), tiny.vae()


def train(node: str, result: str, settings: dict, models) -> None:
    """Train and write the result: the losses as JSON, the tensors by the save node."""
    from helpers import sprite_set

    model, clip, vae = models
    images = sprite_set(2, 4, side=64, colour="teal")
    out = inprocess.call_node(node, model=model, clip=clip, vae=vae, images=images, precision="fp32", **settings)
    word = node == "BespokeTrainTextualInversion"
    losses, record = (out[3], out[4]) if word else (out[2], out[3])
    if word:
        inprocess.call_node("BespokeSaveEmbedding", embedding=out[1], name=result, overwrite=True)
    else:
        inprocess.call_node("BespokeSaveLora", lora=out[1], filename_prefix=result, dtype="fp32")
    Path(inprocess.start_comfyui() / f"{result}.json").write_text(
        json.dumps({"losses": losses["loss"], "held_out": record.held_out, "id": record.id})
    )


def main() -> None:
    import asyncio

    import torch

    torch.set_num_threads(1)
    base = inprocess.start_comfyui()
    import nodes

    asyncio.run(conftest._load_all(nodes))
    models = make_models()
    answer({"base": str(base)})
    for line in sys.stdin:
        request = json.loads(line)
        child = os.fork()
        if child == 0:
            status = 1
            try:
                train(request["node"], request["result"], request["settings"], models)
                status = 0
            except BaseException as error:
                print(f"{type(error).__name__}: {error}", file=sys.stderr)
            finally:
                sys.stderr.flush()
                os._exit(status)
        answer({"pid": child})
        answer({"status": os.waitpid(child, 0)[1]})


def answer(message: dict) -> None:
    print(json.dumps(message), flush=True)


if __name__ == "__main__":
    # ComfyUI prints on stdout too: only the answers of this module go to the parent's pipe.
    out = os.dup(1)
    os.dup2(2, 1)
    sys.stdout = os.fdopen(out, "w")
    main()
