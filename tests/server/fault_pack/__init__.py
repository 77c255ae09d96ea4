"""A pack for the tests: makes one moment of a training in a real server a place to stop, end or fail.

POST /faults {"phase": name, "at": n, "action": "kill" | "hold" | "fail" | ""} arms the n-th call of a phase (counted
from 1) and sets all counts to 0:

* "kill": SIGKILL to this process.
* "hold": the thread waits there until POST /faults/release, at most 60 s.
* "fail": an exception.

GET /faults answers {"counts": {phase: calls}, "held": whether a thread waits}; with ?process=1 also "weights",
checksums of the loaded models, "threads", "files" and "rss" in MiB. The functions are wrapped at the first POST, when
all packs are loaded.
"""

from __future__ import annotations

import functools
import gc
import hashlib
import os
import signal
import sys
import threading

from aiohttp import web
from server import PromptServer

NODE_CLASS_MAPPINGS = {}


class Faults:
    def __init__(self):
        self.phase, self.at, self.action, self.counts = "", 0, "", {}
        self.held, self.release, self.wrapped = False, threading.Event(), False

    def arm(self, phase="", at=0, action=""):
        if not self.wrapped:
            wrap_all()
            self.wrapped = True
        self.release.clear()
        self.phase, self.at, self.action, self.counts = phase, at, action, {}

    def __call__(self, phase):
        self.counts[phase] = count = self.counts.get(phase, 0) + 1
        if (phase, count) != (self.phase, self.at):
            return
        if self.action == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        elif self.action == "hold":
            self.held = True
            self.release.wait(60)
            self.held = False
        elif self.action == "fail":
            raise RuntimeError("a fault of the test")


FAULTS = Faults()


def module(name):
    return next(value for key, value in list(sys.modules.items()) if key.endswith(f"bespoke.{name}"))


def before(owner, name, phase):
    """Report the phase before each call of `owner.name`."""
    original = getattr(owner, name)

    @functools.wraps(original)
    def call(*args, **kwargs):
        FAULTS(phase)
        return original(*args, **kwargs)

    setattr(owner, name, call)


def made(owner, name, phase):
    """Report the phase before each call of the function that `owner.name` makes."""
    original = getattr(owner, name)

    @functools.wraps(original)
    def make(*args, **kwargs):
        function = original(*args, **kwargs)

        def call():
            FAULTS(phase)
            return function()

        return function and call

    setattr(owner, name, make)


def wrap_all():
    import comfy.sd

    bridge, runs, loop = module("nodes.bridge.trainer"), "nodes.bridge.runs.", module("training.loop")
    monitor, store = module(runs + "monitor"), module(runs + "store")
    before(comfy.sd.VAE, "encode", "picture")
    before(comfy.sd.CLIP, "encode_from_tokens_scheduled", "caption")
    before(comfy.sd.CLIP, "encode_from_tokens", "caption")
    before(monitor, "measure_step", "measure")
    before(bridge.MicroBatchLoss, "__call__", "loss")
    before(loop.Training, "_update_parameters", "update")
    made(bridge, "validation_scorer", "validation")
    made(bridge, "sampler_for", "sample")
    before(store.RunStore, "save", "save")
    before(store, "write_safetensors", "state")
    before(store.RunStore, "_write_record", "record")
    before(store.RunStore, "_write_summary", "summary")
    before(monitor.RunMonitor, "_save_file", "file")
    before(monitor.RunMonitor, "end", "end")
    before(module("nodes.bridge.files.writing"), "write_numbered", "lora")


def checksums():
    """{name of the class: checksum} of the weights of each model that ComfyUI keeps loaded."""
    import comfy.model_management as management

    found = {}
    for loaded in management.current_loaded_models:
        if loaded.model is not None:
            out = hashlib.blake2b(digest_size=8)
            for name, tensor in sorted(loaded.model.model.state_dict().items()):
                out.update(name.encode() + tensor.detach().cpu().contiguous().view(-1).numpy().tobytes())
            found[type(loaded.model.model).__name__] = out.hexdigest()
    return found


def routes(server):
    @server.routes.post("/faults")
    async def arm(request):
        FAULTS.arm(**await request.json())
        return web.json_response({})

    @server.routes.post("/faults/release")
    async def release(request):
        FAULTS.release.set()
        return web.json_response({})

    @server.routes.get("/faults")
    async def state(request):
        values = {"counts": FAULTS.counts, "held": FAULTS.held}
        if "process" in request.query:
            gc.collect()
            values |= {"weights": checksums(), "threads": threading.active_count()}
            values |= {"files": len(os.listdir("/proc/self/fd")), "rss": rss()}
        return web.json_response(values)


def rss():
    """Resident memory of this process in MiB."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


routes(PromptServer.instance)
