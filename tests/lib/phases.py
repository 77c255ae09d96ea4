"""The phases of a training as places where something can be made to happen: see `Faults` and `wrap_all`."""

from __future__ import annotations

import functools
import os
import signal
import sys
import threading
import time


class Faults:
    """Does `action` at call number `at` of `phase`, and counts the calls of all phases.

    "kill" is SIGKILL to this process, "hold" lets the thread wait for `release`, at most 60 s, "pause" for 2 s, "fail"
    raises, and "interrupt" is what the page's Cancel does.
    """

    def __init__(self):
        self.phase, self.at, self.action, self.counts = "", 0, "", {}
        self.held, self.release = False, threading.Event()

    def arm(self, phase="", at=0, action=""):
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
        elif self.action == "pause":
            self.held = True
            time.sleep(2)
            self.held = False
        elif self.action == "fail":
            raise RuntimeError("a fault of the test")
        elif self.action == "interrupt":
            import comfy.model_management

            comfy.model_management.interrupt_current_processing()


FAULTS = Faults()


def module(name):
    return next(value for key, value in list(sys.modules.items()) if key.endswith(f"bespoke.{name}"))


def before(patch, owner, name, phase):
    """Report the phase before each call of `owner.name`."""
    original = getattr(owner, name)

    @functools.wraps(original)
    def call(*args, **kwargs):
        FAULTS(phase)
        return original(*args, **kwargs)

    patch(owner, name, call)


def made(patch, owner, name, phase):
    """Report the phase before each call of the function that `owner.name` makes."""
    original = getattr(owner, name)

    @functools.wraps(original)
    def make(*args, **kwargs):
        function = original(*args, **kwargs)

        def call():
            FAULTS(phase)
            return function()

        return function and call

    patch(owner, name, make)


def wrap_all(patch=setattr):
    """Report every phase of a training to `FAULTS`. patch: (object, name, value) -> sets an attribute."""
    import comfy.sd

    bridge, runs, loop = module("nodes.bridge.trainer"), "nodes.bridge.runs.", module("training.loop")
    monitor, store = module(runs + "monitor"), module(runs + "store")
    before(patch, comfy.sd.VAE, "encode", "picture")
    before(patch, comfy.sd.CLIP, "encode_from_tokens_scheduled", "caption")
    before(patch, comfy.sd.CLIP, "encode_from_tokens", "caption")
    before(patch, monitor, "measure_step", "measure")
    before(patch, bridge.MicroBatchLoss, "__call__", "loss")
    before(patch, loop.Training, "_update_parameters", "update")
    made(patch, bridge, "validation_scorer", "validation")
    made(patch, bridge, "sampler_for", "sample")
    before(patch, store.RunStore, "save", "save")
    before(patch, store, "write_safetensors", "state")
    before(patch, store.RunStore, "_write_record", "record")
    before(patch, store.RunStore, "_write_summary", "summary")
    before(patch, monitor.RunMonitor, "_save_file", "file")
    before(patch, monitor.RunMonitor, "end", "end")
    before(patch, module("nodes.bridge.files.writing"), "write_numbered", "lora")


def forget_encoded():
    """Empty the caches of latents and prompts, as after a start of the server."""
    caches = module("nodes.bridge.dataset.cache")
    for cache in (caches.latent_cache, caches.prompt_cache):
        cache._entries.clear()
        cache.size = 0
