"""A pack for the tests: makes one moment of a training in a real server a place to stop, end or fail.

POST /faults {"phase", "at", "action"} arms one call of a phase, as `Faults` of tests/lib/phases.py says, and sets all
counts to 0; encoded pictures and captions are forgotten. POST /faults/release lets a thread go on that waits there.

GET /faults answers {"counts": {phase: calls}, "held": whether a thread waits}; with ?process=1 also "weights",
checksums of the loaded models, "threads", "files" and "rss" in MiB. The functions are wrapped at the first POST, when
all packs are loaded.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import hashlib
import os
import threading

from aiohttp import web
from server import PromptServer

from .phases import FAULTS, forget_encoded, wrap_all  # copied beside this file

NODE_CLASS_MAPPINGS = {}


WRAPPED = []


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
        if not WRAPPED:
            wrap_all()
            WRAPPED.append(True)
        forget_encoded()
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
    """Resident memory of this process in MiB, after freed memory has gone back to the system where glibc can do that.

    Without that the number also has the gaps between live blocks, which grow for a while without any leak.
    """
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


routes(PromptServer.instance)
